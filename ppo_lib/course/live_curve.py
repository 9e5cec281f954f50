"""What the training panel shows of a run: its curve with every change of a live setting marked, and its figures.

- Changes are found in metrics.csv, so they are still marked when the run is opened again later.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppo_lib.course.widget_parts import LIVE_FIELDS
from ppo_lib.drawing import RETURN, STEPS, format_steps, label_axes, new_figure
from ppo_lib.plots import learning_curve
from ppo_lib.runs import Run, load_run
from ppo_lib.train import Trainer

SHORT = {"learning_rate": "lr", "clip_range": "clip", "entropy_coef": "entropy"}


def live_curve(run_dir: Path, now: dict[str, float] | None = None) -> Figure:
    """The learning curve of a run's folder with every change of LIVE_FIELDS marked; empty axes if there is no run.

    now: the values in use, where they may be newer than the last finished update.
    """
    if not (run_dir / "config.json").is_file():
        figure, [axis] = new_figure(1, 1)
        label_axes(axis, STEPS, RETURN)
        axis.set_title(f"{run_dir.name}: not started", fontsize=9, loc="left")
        return figure
    run = load_run(run_dir)
    figure = learning_curve(run)
    axis = figure.axes[0]
    axis.set_title(f"{run.name}: {run.steps:,} of {run.config.total_steps:,} steps", fontsize=9, loc="left")
    mark_changes(axis, run, now or {})
    return figure


def mark_changes(axis: Axes, run: Run, now: dict[str, float]) -> list[tuple[int, str]]:
    """Draw a line at each change of LIVE_FIELDS; returns (steps, text) of each."""
    marks: dict[int, list[str]] = {}
    steps = [0, *run.metrics.get("steps", ())]
    for name in LIVE_FIELDS:
        if name == "learning_rate" and run.config.anneal_lr:
            continue
        values = [getattr(run.config, name), *run.metrics.get(name, ())]
        values.append(now.get(name, values[-1]))
        for i, (old, new) in enumerate(pairwise(values)):
            if not np.isclose(old, new, rtol=1e-4, atol=0):
                marks.setdefault(int(steps[i]), []).append(f"{SHORT[name]} {old:.3g} → {new:.3g}")
    for place, texts in marks.items():
        axis.axvline(place, color="#CC79A7", lw=1.2, ls="-.")
        axis.annotate("\n".join(texts), (place, 1), (3, -3), xycoords=("data", "axes fraction"), rotation=90,
                      textcoords="offset points", va="top", fontsize=7, color="#8f3f6d")  # fmt: skip
    return [(place, text) for place, texts in sorted(marks.items()) for text in texts]


def live_values(trainer: Trainer) -> dict[str, float]:
    """What the trainer works with now."""
    ppo = trainer.ppo
    return {name: getattr(ppo if name == "learning_rate" else ppo.coefficients, name) for name in LIVE_FIELDS}


def progress_line(trainer: Trainer, speed: float) -> str:
    """How far the training is, in words."""
    parts = [f"{trainer.steps:,} of {trainer.config.last_step:,} steps", f"{trainer.episodes:,} episodes"]
    if recent := trainer.recent:
        parts.append(f"return {np.mean([r for r, _ in recent]):.2f} (mean of the last {len(recent)})")
    if speed:
        minutes = (trainer.config.last_step - trainer.steps) / speed / 60
        left = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h"
        parts.append(f"{format_steps(speed)} steps/s, {left} left")
    return ", ".join(parts)
