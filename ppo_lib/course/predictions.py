"""A student's predictions, asked for before a cell runs and shown beside its result, and the file that keeps progress.

Progress is one JSON file beside the notebooks (on Drive, if the project lies there); PPO_PROGRESS names another file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets as w
from IPython.display import display

from ppo_lib.checkpoint import atomic_write
from ppo_lib.course.colab import ROOT

WIDE = {"layout": {"width": "40em", "max_width": "100%"}}


def progress_file() -> Path:
    """Where progress is kept."""
    return Path(os.environ.get("PPO_PROGRESS") or ROOT / "notebooks" / ".progress.json")


def kept(section: str) -> dict[str, Any]:
    """A section of the progress file, "solved" or "predictions"; empty if there is none."""
    try:
        return dict(json.loads(progress_file().read_text(encoding="utf-8"))[section])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def keep(section: str, name: str, value: Any) -> dict[str, Any]:
    """Add to a section of the progress file and return the section; says so if the file can't be written."""
    sections = {one: kept(one) for one in ("solved", "predictions")}
    sections[section][name] = value
    try:
        with atomic_write(progress_file()) as file:
            json.dump(sections, file, indent=1, sort_keys=True)
    except OSError as error:
        print(f"Progress isn't kept: {progress_file()} could not be written ({error.strerror}).")
    return sections[section]


class _Prediction(w.VBox):
    def __repr__(self) -> str:
        return "[An entry for your prediction: run this cell to use it]"


def predict(name: str, question: str, options: Sequence[str] | None = None) -> None:
    """Ask for a prediction, a number or one of the options, and keep it. name: such as "mean_score"."""
    before = kept("predictions").get(name)
    if options is None:
        entry = w.Text(
            f"{before:g}" if isinstance(before, float) else "", placeholder="a number", continuous_update=False
        )
    else:
        entry = w.RadioButtons(options=options, value=before if before in options else None, **WIDE)
    answer = w.Label()

    def save(change: dict[str, Any]) -> None:
        try:
            value = float(change["new"]) if options is None else change["new"]
        except ValueError:
            answer.value = f"'{change['new']}' is no number: write it like 0.5 or 1200."
            return
        keep("predictions", name, value)
        answer.value = "Kept. Run the next cells to see what comes out."

    entry.observe(save, "value")
    display(_Prediction([w.HTML(question, **WIDE), entry, answer]))


def reveal(name: str, value: Any) -> None:
    """Print what came out, and the student's prediction beside it."""
    guess = kept("predictions").get(name)
    shown, guess = (f"{x:.4g}" if isinstance(x, float) else x for x in (value, guess))
    beside = "" if guess is None else f" (you predicted {guess})"
    print(f"{name.replace('_', ' ').capitalize()}: {shown}{beside}")
