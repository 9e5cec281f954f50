"""Figures of one experiment (a run, or its seeds), and the style that all figures share.

- They use no pyplot, and rcParams of their own: safe in threads and notebooks, and unchanged by the user's settings.
- Every mean has its 95% bootstrap interval, and the random agent's return beside it where that is known.
- Colours are Okabe and Ito's, which colour-blind readers can distinguish: training levels blue, unseen orange-red.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.figure
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from ppo_lib.runs import SPLITS, Run, Runs, common_steps, load_runs, one_experiment
from ppo_lib.stats import RANDOM_RETURN, Estimate, estimate, generalization_gap

SPLIT_COLOR = {"train": "#0072B2", "unseen": "#D55E00"}
SPLIT_NAME = {"train": "training levels", "unseen": "unseen levels"}
RUN_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY, DARK = "#6b6b6b", "#222222"
RETURN, STEPS = "return (score of an episode)", "training (game steps)"
Curves = Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]]  # split -> (steps, returns) per run

_TICKS = {"labelsize": 8.5, "labelcolor": "black", "color": "#999999"}
_STYLE = {  # on top of matplotlib's defaults; type is large for the figure's size, so that it is readable on a phone
    "axes.axisbelow": True, "axes.grid": True, "axes.prop_cycle": matplotlib.cycler(color=RUN_COLORS),
    "axes.spines.top": False, "axes.spines.right": False, "grid.color": "#e6e6e6", "legend.frameon": False,
    "legend.fontsize": 8, **{f"{axis}tick.{name}": value for axis in "xy" for name, value in _TICKS.items()},
}  # fmt: skip
_LOCK = threading.RLock()  # rcParams are global: threads that changed them in turns would not restore the user's


@contextmanager
def house_style() -> Iterator[None]:
    """The rcParams of all figures, as a context manager or a decorator."""
    with _LOCK, matplotlib.style.context(["default", _STYLE]):
        yield


class Figure(matplotlib.figure.Figure):
    """matplotlib's, in the house style wherever it is shown: some of its parts, such as tick labels, are made late."""

    draw = house_style()(matplotlib.figure.Figure.draw)
    savefig = house_style()(matplotlib.figure.Figure.savefig)


@house_style()
def new_figure(rows: int, columns: int, height: float = 3.2, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure 5 inches (1,000 pixels) wide and its axes in reading order. options: see Figure.subplots."""
    figure = Figure(figsize=(5, height), dpi=200, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options).ravel().tolist()


def figure_png(figure: Figure, dpi: float | str = "figure") -> bytes:
    """The figure as a PNG file, see light_png. dpi: pixels per inch, the figure's own by default."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return light_png(Image.open(buffer))


def light_png(image: Image.Image) -> bytes:
    """A PNG file with the 256 colours that fit best: a third of the size, with no visible difference."""
    buffer = io.BytesIO()
    image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def label_axes(axis: Axes, x: str, y: str, size: float = 9.5) -> None:
    """Name both axes; an axis of training steps gets short numbers such as 1.5M."""
    axis.set_xlabel(x, fontsize=size)
    axis.set_ylabel(y, fontsize=size)
    if x in (STEPS, "") and axis.get_xscale() == "linear":
        axis.xaxis.set_major_formatter(lambda value, _: format_steps(value))


def format_steps(steps: float) -> str:
    """1500000 -> '1.5M', 20000 -> '20k'."""
    if abs(steps) >= 1e6:
        return f"{steps / 1e6:.3g}M"
    return f"{steps / 1e3:.3g}k" if abs(steps) >= 1e3 else f"{steps:.3g}"


def run_color(index: int) -> str:
    """The colour of the run at this place in a list."""
    return RUN_COLORS[index % len(RUN_COLORS)]


@house_style()
def legend_above(figure: Figure, handles: Sequence[Any]) -> None:
    """One legend above the axes with each label once: in two columns, or one on a taller figure for long names."""
    named = {handle.get_label(): handle for handle in handles}
    long = max(map(len, named), default=0) > 6.2 * figure.get_figwidth()
    if long:
        figure.set_figheight(figure.get_figheight() + 0.16 * (len(named) // 2))
    if named:
        figure.legend(handles=named.values(), ncols=1 if long else 2, loc="outside upper left", columnspacing=1.2)


@house_style()
def note(axis: Axes, text: str, x: float, y: float, *, right: float = 0, up: float = 0, **options: Any) -> None:
    """A small text at (x, y), moved by `right` and `up` points (1/72 inch). options: see Axes.annotate."""
    axis.annotate(text, (x, y), (right, up), textcoords="offset points", **{"fontsize": 8, **options})


@house_style()
def whisker(axis: Axes, x: float, mean: Estimate, color: str) -> None:
    """A 95% interval as a vertical line; nothing where there is none."""
    if not np.isnan(mean.low):
        error = np.maximum(0, [[mean.value - mean.low], [mean.high - mean.value]])
        axis.errorbar([x], [mean.value], yerr=error, color=color, lw=1.4, capsize=3, fmt="none")


def draw_estimates(axis: Axes, points: Sequence[tuple[float, Estimate]], color: str, **line: Any) -> None:
    """(x, estimate) pairs as a line with 95% intervals. line: see Axes.plot."""
    axis.plot([x for x, _ in points], [mean.value for _, mean in points], color=color, ms=5, **line)
    for x, mean in points:
        whisker(axis, x, mean, color)


def draw_experiment(panels: Mapping[str, Axes], runs: Sequence[Run], colors: Mapping[str, str], **line: Any) -> None:
    """Draw an experiment's learning curves on the axes and in the colour of each split: each run while training (raw
    and its running mean), and the evaluations at common steps (mean of the runs, 95% interval)."""
    for run in runs:
        steps, values = run.metrics.get("steps"), run.metrics.get("return_mean")
        if values is not None:
            mean, color = running_mean(values, max(1, len(values) // 15)), colors["train"]
            panels["train"].plot(steps, values, color=color, lw=0.8, alpha=0.3)
            panels["train"].plot(steps, mean, color=color, lw=1.5, label="while training", **line)
    apart = 0.005 * max(run.steps for run in runs) * (panels["train"] is panels["unseen"])  # so that intervals show
    for split, shift in (("train", -apart), ("unseen", apart)):
        means = []
        for steps in common_steps(runs, split):
            episodes = (run.evaluation.select(split, steps) for run in runs)
            means.append((steps + shift, estimate([e.returns for e in episodes if len(e)], resamples=2000)))
        style = dict(marker="o" if len(means) < 12 else None, lw=1.2, zorder=3, **line)
        style["label"] = f"evaluated on {SPLIT_NAME[split]}" if means else None
        draw_estimates(panels[split], means, colors[split], **style)


def draw_published(axis: Axes, runs: Sequence[Run], reference: Curves) -> None:
    """Published runs, up to the last step of `runs`, as the band from the lowest to the highest on each split."""
    for split, curves in reference.items():
        known, end = np.concatenate([steps for steps, _ in curves]), max(run.steps for run in runs)
        if min(known) <= end:
            grid = np.unique(np.minimum(known, end))
            returns = [np.interp(grid, *curve) for curve in curves]
            style = dict(color=SPLIT_COLOR[split], alpha=0.15, lw=0, label=f"published, {SPLIT_NAME[split]}")
            axis.fill_between(grid, np.min(returns, axis=0), np.max(returns, axis=0), **style)


def draw_random(line: Callable[..., object], runs: Iterable[Run]) -> None:
    """The random agent's mean return, if it is known and the same for all runs. line: an axes' axhline or axvline."""
    known = {RANDOM_RETURN.get((run.config.env_name, run.config.distribution_mode)) for run in runs}
    if len(known) == 1 and (level := known.pop()) is not None:
        line(level, color=GREY, lw=1, ls="--", label=f"random agent {level:g}", zorder=1)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over `window` entries that leaves out nan; nan where all are."""
    padded = np.pad(values, window // 2, constant_values=np.nan)
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * (window // 2) + 1)
    return np.ma.masked_invalid(around).mean(axis=-1).filled(np.nan)


@house_style()
def learning_curve(runs: Runs, reference: Curves | None = None) -> Figure:
    """Return of one run, or of the seeds of one experiment, against training steps, over the band of published runs."""
    runs = one_experiment(runs)
    figure, [axis] = new_figure(1, 1)
    draw_experiment(dict.fromkeys(SPLITS, axis), runs, SPLIT_COLOR)
    draw_published(axis, runs, reference or {})
    draw_random(axis.axhline, runs)
    label_axes(axis, STEPS, RETURN)
    axis.set(xlim=(0, 1.03 * max(1, *(run.steps for run in runs))), ylim=(min(0, axis.get_ylim()[0]), None))
    legend_above(figure, axis.get_legend_handles_labels()[0])
    return figure


@house_style()
def train_vs_unseen(runs: Runs) -> Figure:
    """Mean returns, 95% intervals, and the gap, in the last evaluation that all runs (seeds of one experiment) have."""
    runs = one_experiment(runs)
    figure, [axis] = new_figure(1, 1)
    last, returns = max(common_steps(runs), default=0), []
    for place, split in enumerate(SPLITS if last else ()):
        returns.append([e.returns for run in runs if len(e := run.evaluation.select(split, last))])
        mean = estimate(returns[-1])
        axis.bar(place, mean.value, width=0.5, color=SPLIT_COLOR[split], alpha=0.85)
        whisker(axis, place, mean, DARK)
        large = dict(fontsize=10, fontweight="bold", ha="center")
        note(axis, f"{mean.value:.1f}", place, np.fmax(mean.value, mean.high), up=4, **large)
    if last:
        axis.set_title(f"gap {generalization_gap(*returns)}", fontsize=9)
    draw_random(axis.axhline, runs)
    label_axes(axis, "levels that the agent plays", RETURN)
    axis.set(xlim=(-0.6, 1.6), ylim=(min(0, axis.get_ylim()[0]), 1.12 * max(1, axis.get_ylim()[1])))
    axis.set_xticks([0, 1], [SPLIT_NAME[split] for split in SPLITS])
    axis.grid(axis="x", visible=False)
    legend_above(figure, axis.get_legend_handles_labels()[0])
    return figure


@house_style()
def return_by_level(run: Runs) -> Figure:
    """Every level's mean return in the last evaluation, sorted, beside its single episodes (small dots)."""
    [run] = load_runs(run)
    figure, axes = new_figure(1, 2, sharey=True)
    for axis, split in zip(axes, SPLITS, strict=True):
        episodes, color = run.final(split), SPLIT_COLOR[split]
        seeds = np.unique(episodes.level_seed)
        levels = sorted((episodes.returns[episodes.level_seed == seed] for seed in seeds), key=np.mean)
        for place, values in enumerate(levels):
            axis.plot([place] * len(values), values, ".", color=color, alpha=0.35, ms=4, mew=0)
        axis.plot([values.mean() for values in levels], "o", color=color, ms=3 if len(levels) < 100 else 2)
        if levels:
            mean = float(episodes.returns.mean())
            axis.axhline(mean, color=DARK, lw=1, ls=":")
            note(axis, f"mean {mean:.1f}", 0, mean, right=2, up=3)
        axis.set_title(f"{len(levels)} {SPLIT_NAME[split]}", fontsize=9, color=color)
        label_axes(axis, "level, worst to best", RETURN if split == "train" else "")
        axis.locator_params(axis="x", nbins=4, integer=True)
    return figure


@house_style()
def diagnostics(run: Runs) -> Figure:
    """Small multiples of what PPO reports at each update: losses, entropy, KL, clip fraction, explained variance."""
    [run] = load_runs(run)
    panels = {
        "policy_loss": "policy loss", "value_loss": "value loss", "entropy": "entropy (nats)",
        "approx_kl": "KL to old policy (nats)", "clip_fraction": "clipped ratios (fraction)",
        "explained_variance": "explained variance",
    }  # fmt: skip
    figure, axes = new_figure(3, 2, height=5.2)
    for axis, (column, name) in zip(axes, panels.items(), strict=True):
        if column in run.metrics:
            axis.plot(run.metrics["steps"], run.metrics[column], color=SPLIT_COLOR["train"], lw=1.2)
        label_axes(axis, STEPS if axis in axes[-2:] else "", name, size=8.5)
        axis.locator_params(nbins=4)
    axes[2].axhline(np.log(15), color=GREY, lw=1, ls="--")
    note(axes[2], "log 15: uniform", run.steps, np.log(15), up=-1, ha="right", va="top", fontsize=7, color=GREY)
    axes[-1].set_ylim(top=1)
    return figure
