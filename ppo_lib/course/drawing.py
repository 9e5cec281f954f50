"""Small drawings that the notebooks share, in the style of ppo_lib.plots: image strips, rollouts as images, tables.

- A rollout always runs to the right, with one row per environment and a black bar where an episode ended.
- Every figure in a notebook is drawn with 192 pixels per inch and shown with 96: one size of type, sharp on any screen.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from ppo_lib.plots import RUN_COLORS, Figure, house_style, label_axes, light_png, new_figure, run_color
from ppo_lib.plots import note as note
from ppo_lib.study.table import markdown_table

if TYPE_CHECKING:
    from IPython.display import Markdown

BLUE, ORANGE, GREEN, PINK, YELLOW, SKY = RUN_COLORS[:6]  # blue: right, training levels; orange: wrong, unseen levels
WHITE_TO_ORANGE = LinearSegmentedColormap.from_list("white_to_orange", ["white", ORANGE])  # no shade is near black
TIME, ENVIRONMENT = "step t", "environment n"
DPI = 192  # pixels per inch of a figure in a notebook, which is shown at half of that


def canvas(rows: int = 1, columns: int = 1, width: float = 8, height: float = 3, **options: Any) -> tuple[Figure, list]:
    """A figure of width x height inches and its axes. options: see Figure.subplots."""
    figure, axes = new_figure(rows, columns, height, **options)
    figure.set_size_inches(width, height)
    return figure, axes


def notebook_png(figure: Figure) -> tuple[str, dict[str, int]]:
    """A figure as IPython's png formatter wants it: base64, and the width and height at which it is shown (pixels)."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, bbox_inches="tight")
    image = Image.open(buffer)
    shown = {"width": image.width // 2, "height": image.height // 2}
    return base64.b64encode(light_png(image)).decode(), shown


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
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], titles: Sequence[str] = (), *, columns: int | None = None,
    colors: Sequence[str] = (), caption: str = "", size: float = 1.4
) -> Figure:  # fmt: skip
    """Images [H, W, 3] (or [H, W], drawn in grey) side by side, `columns` per row (default: all in one).

    titles: one above each image; colors: of its frame and title; caption: below all; size: width of an image (inches)
    """
    columns = min(len(images), columns or len(images))
    rows = math.ceil(len(images) / columns)
    lines = max((1 + title.count("\n") for title in titles), default=0)
    figure, axes = canvas(rows, columns, columns * size, rows * (size + 0.17 * lines) + (0.35 if caption else 0))
    for axis in axes[len(images) :]:
        axis.set_axis_off()
    for place, (image, axis) in enumerate(zip(images, axes, strict=False)):
        axis.imshow(image, interpolation="nearest", cmap="gray")
        axis.grid(False)
        axis.set(xticks=[], yticks=[])
        frame, title = (colors[place], colors[place]) if len(colors) else ("#bbbbbb", "black")
        axis.spines[:].set(visible=True, color=frame, linewidth=2.5 if len(colors) else 0.8)
        if len(titles):
            axis.set_title(titles[place], fontsize=8, color=title, pad=3)
    if caption:
        figure.supxlabel(caption, fontsize=9.5)
    return figure


@house_style()
def rollout(
    axis: Axes, values: ArrayLike, done: ArrayLike, *, name: str = "", cmap: str | Colormap = "viridis"
) -> None:  # fmt: skip
    """An array [T, N] as an image: time to the right, one row per environment, a black bar after each ended episode.

    done: bool [T, N]; name: what the colours mean, with the unit
    """
    bar = axis.figure.colorbar(_by_time(axis, values, done, cmap=cmap), ax=axis, pad=0.02, fraction=0.05)
    bar.set_label(name, fontsize=9)
    bar.ax.tick_params(labelsize=8)


def groups(axis: Axes, group: ArrayLike, done: ArrayLike, *, name: str = "") -> None:
    """Which group each step of a rollout belongs to, an int array [T, N], in colours; groups count from 0."""
    group = np.asarray(group)  # numpy's functions refuse a torch tensor
    count = int(group.max()) + 1
    colors = ListedColormap([run_color(index) for index in range(count)])
    _by_time(axis, group, done, name, cmap=colors, alpha=0.75, vmin=-0.5, vmax=count - 0.5)


def _by_time(axis: Axes, values: ArrayLike, done: ArrayLike, title: str = "", **options: Any) -> AxesImage:
    image = matrix(axis, np.asarray(values).T, TIME, ENVIRONMENT, title, aspect="auto", **options)
    for t, n in np.argwhere(np.asarray(done)):
        bar = axis.plot([t + 0.5, t + 0.5], [n - 0.5, n + 0.5], color="black", lw=2, solid_capstyle="butt")
        bar[0].set_path_effects([withStroke(linewidth=3.5, foreground="white")])  # stands out from dark colours
    return image


@house_style()
def matrix(axis: Axes, values: ArrayLike, x: str, y: str, title: str = "", **options: Any) -> AxesImage:
    """A matrix as an image, its first row on top. x, y: names of the axes; options: see matplotlib's imshow."""
    axis.grid(False)
    label_axes(axis, x, y)
    axis.set_title(title, fontsize=9.5)
    return axis.imshow(np.asarray(values), interpolation="nearest", **options)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Markdown:
    """A table for a notebook's output; floats are shown with four digits, whole numbers with thousands separators."""
    from IPython.display import Markdown

    return Markdown(markdown_table(header, rows))
