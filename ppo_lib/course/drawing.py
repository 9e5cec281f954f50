"""Small drawings that the notebooks share: image strips, rollouts as pictures, tables.

- Figures are matplotlib Figures in the style of `drawing`, sized for a notebook page; nothing touches pyplot.
- A rollout is always drawn the same way: time runs to the right, one row an environment, a black bar where an episode
  ended. What is learned to read once is read everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from ppo_lib.drawing import RUN_COLORS, label_axes, new_figure

if TYPE_CHECKING:
    from IPython.display import Markdown

BLUE, ORANGE, GREEN, PINK, YELLOW, SKY = RUN_COLORS[:6]  # blue: right, training levels; orange: wrong, unseen levels
DPI = 90  # pixels an inch: an 8 inch figure is 720 pixels wide
TIME = "step t"
ENVIRONMENT = "environment n"


def canvas(
    rows: int = 1, columns: int = 1, width: float = 8, height: float = 3, **options: bool
) -> tuple[Figure, list[Axes]]:
    """A figure of width x height inches and its axes in reading order. options: see matplotlib's subplots."""
    figure, axes = new_figure(rows, columns, height, **options)
    figure.set_size_inches(width, height)
    figure.set_dpi(DPI)
    for axis in axes:
        axis.set_prop_cycle(color=RUN_COLORS)
    return figure, axes


def finish(axis: Axes, x: str, y: str, *, title: str = "", legend: bool = False, **options: Any) -> None:
    """Name both axes, with the unit in brackets; options: see matplotlib's Axes.set, such as ylim and xscale."""
    axis.set(**options)
    label_axes(axis, x, y)
    axis.set_title(title, fontsize=9.5)
    if legend:
        axis.legend(frameon=False, fontsize=8)


def note(axis: Axes, text: str, x: float, y: float, *, right: float = 0, up: float = 0, **options: Any) -> None:
    """A small text beside the point (x, y) of the axes, moved by `right` and `up` points."""
    axis.annotate(text, (x, y), (right, up), textcoords="offset points", **{"fontsize": 8, **options})


def strip(
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    titles: Sequence[str] = (),
    *,
    columns: int | None = None,
    colors: Sequence[str] = (),
    caption: str = "",
    size: float = 1.4,
) -> Figure:
    """Images [H, W, 3] (or [H, W], drawn in grey) side by side, `columns` a row (default: all in one).

    titles: one above each image; colors: of each image's frame and title; caption: below all of them;
    size: width of one image in inches.
    """
    columns = min(len(images), columns or len(images))
    rows = math.ceil(len(images) / columns)
    lines = 1 + max((title.count("\n") for title in titles), default=0) if titles else 0
    figure, axes = canvas(rows, columns, columns * size, rows * (size + 0.17 * lines) + (0.35 if caption else 0))
    for place, axis in enumerate(axes):
        axis.grid(False)
        axis.set(xticks=[], yticks=[])
        if place >= len(images):
            axis.set_axis_off()
            continue
        color = colors[place] if len(colors) else "#bbbbbb"
        axis.imshow(images[place], interpolation="nearest", cmap="gray")
        axis.spines[:].set(visible=True, color=color, linewidth=2.5 if len(colors) else 0.8)
        if len(titles):
            axis.set_title(titles[place], fontsize=8, color=color if len(colors) else "black", pad=3)
    if caption:
        figure.supxlabel(caption, fontsize=9.5)
    return figure


def rollout(
    axis: Axes,
    values: ArrayLike,
    done: ArrayLike | None = None,
    *,
    name: str = "",
    cmap: str = "viridis",
    centered: bool = False,
    bar: bool = True,
) -> None:
    """An array [T, N] as a picture: time to the right, one row an environment, a black bar after each ended episode.

    name: what the colours mean, with the unit; centered: make the colour range symmetric about 0.
    """
    values = np.asarray(values, dtype=np.float64)
    largest = float(np.abs(values).max()) or 1.0
    limits = {"vmin": -largest, "vmax": largest} if centered else {}
    image = axis.imshow(values.T, aspect="auto", interpolation="nearest", cmap=cmap, **limits)
    if done is not None:
        mark_ends(axis, done)
    _time_by_environment(axis)
    if bar:
        colorbar = axis.figure.colorbar(image, ax=axis, pad=0.02, fraction=0.05)
        colorbar.set_label(name, fontsize=9)
        colorbar.ax.tick_params(labelsize=8)
    elif name:
        axis.set_title(name, fontsize=9.5)


def groups(axis: Axes, group: ArrayLike, done: ArrayLike | None = None, *, name: str = "") -> None:
    """Which group each step of a rollout belongs to, an int array [T, N], in colours; groups count from 0."""
    group = np.asarray(group)
    colors = [RUN_COLORS[index % len(RUN_COLORS)] for index in range(int(group.max()) + 1)]
    axis.imshow(group.T, aspect="auto", interpolation="nearest", cmap=ListedColormap(colors), alpha=0.75,
                vmin=-0.5, vmax=len(colors) - 0.5)  # fmt: skip
    if done is not None:
        mark_ends(axis, done)
    _time_by_environment(axis)
    axis.set_title(name, fontsize=9.5)


def mark_ends(axis: Axes, done: ArrayLike, color: str = "black") -> None:
    """A bar on the right edge of every step that ended an episode. done: bool [T, N]."""
    for t, n in np.argwhere(np.asarray(done)):
        axis.plot([t + 0.5, t + 0.5], [n - 0.5, n + 0.5], color=color, lw=2, solid_capstyle="butt")


def matrix(axis: Axes, values: ArrayLike, x: str, y: str, title: str = "", **options: Any) -> None:
    """A matrix as a picture, its first row on top. x, y: names of the axes; options: see matplotlib's imshow."""
    axis.imshow(np.asarray(values), **{"interpolation": "nearest", "cmap": "viridis", **options})
    axis.grid(False)
    label_axes(axis, x, y)
    axis.set_title(title, fontsize=9.5)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Markdown:
    """A table for a notebook's output; floats are shown with four digits, whole numbers with thousands separators."""
    from IPython.display import Markdown

    lines = [header, ["---:" if _number(value) else ":---" for value in rows[0]], *rows]
    return Markdown("\n".join("| " + " | ".join(map(_text, line)) + " |" for line in lines))


def _time_by_environment(axis: Axes) -> None:
    axis.grid(False)
    label_axes(axis, TIME, ENVIRONMENT)
    axis.xaxis.set_major_formatter("{x:.0f}")


def _number(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _text(value: object) -> str:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value)
