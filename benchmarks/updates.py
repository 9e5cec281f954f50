"""How far does an update move the policy? A folder's runs on 200 levels beside the three published ones.

    python benchmarks/updates.py results/protocol-2m

writes updates.md and updates.png into the folder, from the runs' metrics.csv and from single updates that the
published runs logged (results/reference). Each update logs a figure: these are far less noisy than returns.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ppo_lib.config import UserError
from ppo_lib.drawing import GREY, STEPS, figure_png, label_axes, legend_above, new_figure, run_color, running_mean
from ppo_lib.runs import Run, load_runs
from ppo_lib.study import published
from ppo_lib.study.experiments import group_experiments

FIGURES = {
    "approx_kl": "KL divergence from the policy that acted",
    "clip_fraction": "share of samples whose ratio is clipped",
    "policy_loss": "policy loss",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder of a sweep")
    args = parser.parse_args(arguments)
    try:
        groups = load_groups(args.folder)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    theirs = published.read_diagnostics(args.folder.resolve().parent, FIGURES)
    (args.folder / "updates.md").write_text(page(groups, theirs, f"python benchmarks/updates.py {args.folder}"))
    (args.folder / "updates.png").write_bytes(figure_png(draw(groups, theirs), dpi=130))
    print(f"Written: {args.folder / 'updates.md'}")
    return 0


def load_groups(folder: Path) -> dict[str, list[Run]]:
    """Label -> the runs of an experiment of the published protocol on 200 levels. Raises UserError if there is none."""
    runs = load_runs(sorted(path.parent for path in folder.glob("*/metrics.csv")))
    alike = [run for run in runs if published.curves([run], folder.resolve().parent)]
    if not alike:
        raise UserError(f"{folder} has no run of the published protocol on 200 levels (--preset paper).")
    return group_experiments(alike)


def logged(run: Run, name: str, steps: int) -> float:
    """The figure of the update that ended at a number of steps; nan where the run has none."""
    at = run.metrics["steps"] == steps
    return float(run.metrics[name][at][0]) if at.any() else float("nan")


def page(groups: dict[str, list[Run]], theirs: published.Diagnostics, command: str) -> str:
    """The tables, in Markdown: means over runs, of several runs each in brackets."""
    lines = ["# How far an update moves the policy", "", "![the same over all updates](updates.png)", ""]
    for name, meaning in FIGURES.items():
        steps = sorted(theirs[name])
        lines += [f"`{name}`: {meaning}", ""]
        lines += ["| | " + " | ".join(f"{step:,}" for step in steps) + " |", "|---" * (1 + len(steps)) + "|"]
        rows = {"published": [theirs[name][step] for step in steps]}
        rows |= {label: [[logged(run, name, s) for run in group] for s in steps] for label, group in groups.items()}
        lines += [f"| {label} | {' | '.join(map(_cell, values))} |" for label, values in rows.items()]
        lines.append("")
    lines.append(
        "Single updates, at the end of which the games had been played for so many steps; means over an update's"
    )
    lines.append("minibatches; of several runs their mean, and each in brackets. In the figure, means over 9 updates.")
    lines.append(f"Made by `{command}`.")
    return "\n".join(lines) + "\n"


def _cell(values: list[float]) -> str:
    if np.isnan(values).any():
        return "-"
    digits = [f"{value:.4f}" for value in values]
    return f"{np.mean(values):.4f} ({', '.join(digits)})" if len(values) > 1 else digits[0]


def draw(groups: dict[str, list[Run]], theirs: published.Diagnostics) -> Figure:
    """Each figure over the steps: experiments as means over runs and 9 updates, published updates as diamonds."""
    figure, axes = new_figure(1, len(FIGURES), height=3.4)
    figure.set_figwidth(11)
    for axis, (name, meaning) in zip(axes, FIGURES.items(), strict=True):
        for index, (label, group) in enumerate(groups.items()):
            length = min(len(run.metrics["steps"]) for run in group)
            curves = [running_mean(run.metrics[name][:length], 9) for run in group]
            axis.plot(group[0].metrics["steps"][:length], np.mean(curves, axis=0), color=run_color(index), label=label)
        points = [(step, value) for step, values in theirs[name].items() for value in values]
        axis.plot(*zip(*points, strict=True), "D", ms=4, mfc="none", color=GREY, label="published, single updates")
        label_axes(axis, STEPS, meaning, size=8.5)
    legend_above(figure, axes[0].get_legend_handles_labels()[0])
    return figure


if __name__ == "__main__":
    sys.exit(main())
