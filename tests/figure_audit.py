"""Loaded into the kernels of notebook tests: writes down every drawn figure that lacks the name of an axis.

An axis needs a name where it shows numbers: on an axes with data, ticks whose labels aren't words. The name may be
the figure's common label, or that of another axes in the same row or column.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure


def install() -> None:
    """Check each figure when it is drawn; faults go into the file that FIGURE_AUDIT names."""
    log, draw = Path(os.environ["FIGURE_AUDIT"]), FigureCanvasBase.print_figure

    def print_figure(self: FigureCanvasBase, *arguments: Any, **options: Any) -> Any:
        faults = unnamed(self.figure)
        if faults:
            with log.open("a") as file:
                file.write(f"{faults}\n")
        return draw(self, *arguments, **options)

    FigureCanvasBase.print_figure = print_figure


def unnamed(figure: Figure) -> list[str]:
    """The axes with numbers but no name: their title or place and which axis it is."""
    faults = []
    for index, axes in enumerate(figure.axes):
        if not (axes.axison and axes.get_visible() and axes.has_data()):
            continue
        for letter, common, edge in (("x", figure._supxlabel, "x0"), ("y", figure._supylabel, "y0")):
            axis = getattr(axes, f"{letter}axis")
            shown = (
                any(number(label.get_text()) for label in axis.get_ticklabels())
                and axis.get_tick_params()["labelleft" if letter == "y" else "labelbottom"]
            )
            if shown and not common and not any(named(other, letter) for other in beside(figure, axes, edge)):
                faults.append(f"{letter} axis of {axes.get_title() or f'axes {index}'!r}")
    return faults


def number(label: str) -> bool:
    """Whether a tick's label is a number, as 0.5, 10k or matplotlib's 10^3, and not words ("50 levels")."""
    return bool(re.search(r"\d", label)) and not re.search("[a-z]{2}", re.sub(r"\\[a-z]+", "", label), re.IGNORECASE)


def named(axes: Axes, letter: str) -> bool:
    """Whether this axes has a label there."""
    return bool(getattr(axes, f"get_{letter}label")())


def beside(figure: Figure, axes: Axes, edge: str) -> list[Axes]:
    """The axes in the same column (edge x0) or row (edge y0), this one included."""
    place = getattr(axes.get_position(), edge)
    return [other for other in figure.axes if abs(getattr(other.get_position(), edge) - place) < 0.02]
