"""Small drawings that the notebooks share: image strips, rollouts as images, tables.

- Figures have the style of ppo_lib.plots, sized for a notebook page.
- A rollout always runs to the right, with one row per environment and a black bar where an episode ended.
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

from ppo_lib import plots
from ppo_lib.plots import RUN_COLORS, house_style, label_axes
from ppo_lib.study.table import markdown_table

if TYPE_CHECKING:
    from IPython.display import Markdown

BLUE, ORANGE, GREEN, PINK, YELLOW, SKY = RUN_COLORS[:6]  # blue: right, training levels; orange: wrong, unseen levels
TIME, ENVIRONMENT = "step t", "environment n"
note = plots.note


def canvas(
    rows: int = 1, columns: int = 1, width: float = 8, height: float = 3, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of width x height inches, 90 pixels per inch, and its axes. options: see Figure.subplots."""
    figure, axes = plots.new_figure(rows, columns, height, **options)
    figure.set(size_inches=(width, height), dpi=90)
    return figure, axes


@house_style()
def finish(axis: Axes, x: str, y: str, *, title: str = "", legend: bool = False, **options: Any) -> None:
    """Name both axes, with the unit in brackets; options: see matplotlib's Axes.set, such as ylim and xscale."""
    axis.set(**options)
    label_axes(axis, x, y)
    axis.set_title(title, fontsize=9.5)
    if legend:
        axis.legend()


@house_style()
def strip(
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    titles: Sequence[str] = (),
    *,
    columns: int | None = None,
    colors: Sequence[str] = (),
    caption: str = "",
    size: float = 1.4,
) -> Figure:
    """Images [H, W, 3] (or [H, W], drawn in grey) side by side, `columns` per row (default: all in one).

    titles: one above each image; colors: of its frame and title; caption: below all; size: width of an image (inches)
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


@house_style()
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
    """An array [T, N] as an image: time to the right, one row per environment, a black bar after each ended episode.

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
    limits = {"vmin": -0.5, "vmax": len(colors) - 0.5}
    axis.imshow(group.T, aspect="auto", interpolation="nearest", cmap=ListedColormap(colors), alpha=0.75, **limits)
    if done is not None:
        mark_ends(axis, done)
    _time_by_environment(axis)
    axis.set_title(name, fontsize=9.5)


def mark_ends(axis: Axes, done: ArrayLike, color: str = "black") -> None:
    """A bar on the right edge of every step that ended an episode. done: bool [T, N]."""
    for t, n in np.argwhere(np.asarray(done)):
        axis.plot([t + 0.5, t + 0.5], [n - 0.5, n + 0.5], color=color, lw=2, solid_capstyle="butt")


def matrix(axis: Axes, values: ArrayLike, x: str, y: str, title: str = "", **options: Any) -> None:
    """A matrix as an image, its first row on top. x, y: names of the axes; options: see matplotlib's imshow."""
    axis.imshow(np.asarray(values), **{"interpolation": "nearest", "cmap": "viridis", **options})
    axis.grid(False)
    label_axes(axis, x, y)
    axis.set_title(title, fontsize=9.5)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Markdown:
    """A table for a notebook's output; floats are shown with four digits, whole numbers with thousands separators."""
    from IPython.display import Markdown

    return Markdown(markdown_table(header, rows))


def _time_by_environment(axis: Axes) -> None:
    axis.grid(False)
    label_axes(axis, TIME, ENVIRONMENT)
    axis.xaxis.set_major_formatter("{x:.0f}")
