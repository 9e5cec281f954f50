"""The style of all figures: size, colours, labels, and the parts that several of them share.

- Colours are Okabe and Ito's, which colour-blind people can tell apart: training levels blue, unseen levels orange-red.
- Type is large for the figure's size, so that a phone's 350 pixels still show readable labels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray
from PIL import Image

from ppo_lib.runs import Run
from ppo_lib.stats import RANDOM_RETURN, Estimate
from ppo_lib.study import published

SPLIT_COLOR = {"train": "#0072B2", "unseen": "#D55E00"}
SPLIT_NAME = {"train": "training levels", "unseen": "unseen levels"}
RUN_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#6b6b6b"
RETURN = "return (score of an episode)"
STEPS = "training (game steps)"


def new_figure(rows: int, columns: int, height: float = 3.2, **options: object) -> tuple[Figure, list[Axes]]:
    """A figure 5 inches (1,000 pixels) wide and its axes in reading order."""
    figure = Figure(figsize=(5, height), dpi=200, layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    for axis in axes:
        axis.set_facecolor("white")
        axis.grid(color="#e6e6e6", lw=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8.5, color="#999999")
    return figure, axes


def figure_png(figure: Figure, dpi: float | str = "figure") -> bytes:
    """The figure as a PNG file, see light_png. dpi: pixels per inch, the figure's own by default."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return light_png(Image.open(buffer))


def light_png(image: Image.Image) -> bytes:
    """A PNG file with the 256 colours that fit best: the eye sees no difference, and it takes a third of the room."""
    buffer = io.BytesIO()
    image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def label_axes(axis: Axes, x: str, y: str, size: float = 9.5) -> None:
    """Name both axes; an axis of training steps gets short numbers such as 1.5M."""
    axis.set_xlabel(x, fontsize=size)
    axis.set_ylabel(y, fontsize=size)
    if x in (STEPS, "") and axis.get_xscale() == "linear":
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_steps(value)))


def format_steps(steps: float) -> str:
    """1500000 -> '1.5M', 20000 -> '20k'."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(steps) >= size:
            return f"{steps / size:.3g}{letter}"
    return f"{steps:.3g}"


def run_color(index: int) -> str:
    """The colour of the run at this place in a list."""
    return RUN_COLORS[index % len(RUN_COLORS)]


def run_line(index: int) -> str:
    """Its line, which tells apart runs of one colour."""
    return ("-", "--", ":", "-.")[index // len(RUN_COLORS) % 4]


def legend_above(figure: Figure, handles: Sequence[Artist]) -> None:
    """One legend above the axes, where it hides no data: in two columns, or in one on a taller figure (long names)."""
    if not handles:
        return
    long = max(len(str(handle.get_label())) for handle in handles) > 6.2 * figure.get_figwidth()
    if long:
        figure.set_figheight(figure.get_figheight() + 0.16 * (len(handles) // 2))
    options = dict(fontsize=8, frameon=False, loc="outside upper left", columnspacing=1.2)
    figure.legend(handles=handles, ncols=1 if long else 2, **options)


def whisker(axis: Axes, x: float, mean: Estimate, color: str) -> None:
    """A 95% interval as a vertical line; nothing where there is none."""
    if not math.isnan(mean.low):
        errors = [[max(0.0, mean.value - mean.low)], [max(0.0, mean.high - mean.value)]]
        axis.errorbar([x], [mean.value], yerr=errors, color=color, lw=1.4, capsize=3, fmt="none")


def draw_random(axis: Axes, runs: Sequence[Run], inline: bool = False) -> None:
    """A line at the random agent's mean return, where it is known and the same for all runs; named by the legend, or
    inline, at its right end."""
    games = {(run.config.env_name, run.config.distribution_mode) for run in runs}
    if len(games) == 1 and (game := games.pop()) in RANDOM_RETURN:
        level = RANDOM_RETURN[game]
        name = f"random agent {level:g}"
        axis.axhline(level, color=GREY, lw=1, ls="--", label=None if inline else name, zorder=1)
        if inline:
            axis.annotate(name, (1, level), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                          ha="right", fontsize=8, color=GREY)  # fmt: skip


def running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Centred mean over `window` entries that leaves out nan; nan where all are."""
    known = ~np.isnan(values)
    kernel = np.ones(2 * (window // 2) + 1)
    total = np.convolve(np.where(known, values, 0.0), kernel)
    count = np.convolve(known.astype(float), kernel)
    middle = slice(window // 2, window // 2 + len(values))
    return np.where(count[middle] > 0, total[middle] / np.maximum(count[middle], 1), np.nan)


def draw_reference(axis: Axes, path: str | Path, end: int, split: str) -> None:
    """The band between the lowest and the highest published run on a split, up to `end` steps."""
    curves = published.read_curves(path).get(split, [])
    known = sorted({float(step) for steps, _ in curves for step in steps})
    if known and known[0] <= end:
        grid = [*(step for step in known if step < end), min(end, known[-1])]
        found = [published.returns_at(curves, step) for step in grid]
        axis.fill_between(grid, *([pick(r) for r in found] for pick in (min, max)), color=SPLIT_COLOR[split],
                          alpha=0.15, lw=0, label=f"published, {SPLIT_NAME[split]}")  # fmt: skip
