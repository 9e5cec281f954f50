"""How far does an update move the policy? A folder's runs on 200 levels beside the three published ones.

    python benchmarks/updates.py results/protocol-2m

writes updates.md and updates.png into the folder, from the runs' metrics.csv and from single updates that the
published runs logged (results/reference). These metrics are far less noisy than returns.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ppo_lib import plots
from ppo_lib.config import UserError
from ppo_lib.runs import Run, load_runs
from ppo_lib.study import published
from ppo_lib.study.groups import common_metric, group_experiments
from ppo_lib.study.table import markdown_table

METRICS = {
    "approx_kl": "KL divergence from the rollout policy",
    "clip_fraction": "fraction of samples whose ratio is clipped",
    "policy_loss": "policy loss",
}
NOTE = """Single updates, each column at the number of game steps at its end. Values are means over an update's
minibatches; for several runs the mean, with each run in brackets. The figure shows means over 9 updates.
The estimators of the KL divergence differ: ours is the mean of r - 1 - log r, with r the ratio of the new to the old
probability; the published runs (openai/baselines) logged half the mean of (log r)². They agree for small updates.
"""


def main(folder: Path) -> None:
    """Write the tables and the figure. Raises UserError if no run follows the published protocol on 200 levels."""
    results = folder.resolve().parent
    runs = load_runs(sorted(path.parent for path in folder.glob("*/metrics.csv")))
    groups = group_experiments(run for run in runs if published.curves([run], results))
    if not groups:
        raise UserError(f"{folder} has no run of the published protocol on 200 levels (--preset paper).")
    theirs = published.read_diagnostics(results, METRICS)
    (folder / "updates.md").write_text(f"{page(groups, theirs)}Made by `python benchmarks/updates.py {folder}`.\n")
    (folder / "updates.png").write_bytes(plots.figure_png(draw(groups, theirs), dpi=130))
    print(f"Written: {folder / 'updates.md'}")


def page(groups: dict[str, list[Run]], theirs: published.Diagnostics) -> str:
    """The tables, in Markdown: means over runs, of several runs each in brackets."""
    parts = ["# How far an update moves the policy", "![the same metrics over all updates](updates.png)"]
    for name, meaning in METRICS.items():
        rows = [["published", *map(_cell, theirs[name].values())]]
        for label, group in groups.items():
            at, values = common_metric(group, name)
            rows.append([label, *(_cell(values[:, at == step].ravel()) for step in theirs[name])])
        parts += [f"`{name}`: {meaning}", markdown_table(["", *(f"{step:,}" for step in theirs[name])], rows)]
    return "\n\n".join([*parts, NOTE])


def _cell(values: np.ndarray | list[float]) -> str:
    if not len(values) or np.isnan(values).any():
        return "-"
    return f"{np.mean(values):.4f}" + (f" ({', '.join(f'{v:.4f}' for v in values)})" if len(values) > 1 else "")


def draw(groups: dict[str, list[Run]], theirs: published.Diagnostics) -> Figure:
    """Each metric over the steps: experiments as means over runs and 9 updates, published updates as diamonds."""
    figure, axes = plots.new_figure(1, len(METRICS), height=3.4)
    figure.set_figwidth(11)
    for axis, (name, meaning) in zip(axes, METRICS.items(), strict=True):
        for index, (label, group) in enumerate(groups.items()):
            steps, values = common_metric(group, name)
            smooth = np.mean([plots.running_mean(curve, 9) for curve in values], axis=0)
            axis.plot(steps, smooth, color=plots.run_color(index), label=label)
        points = [(step, value) for step, values in theirs[name].items() for value in values]
        axis.plot(*zip(*points, strict=True), "D", ms=4, mfc="none", color=plots.GREY, label="published updates")
        plots.label_axes(axis, plots.STEPS, meaning, size=8.5)
    plots.legend_above(figure, axes[0].get_legend_handles_labels()[0])
    return figure


if __name__ == "__main__":
    main(Path(sys.argv[1]))
