"""What does one setting change? Runs that differ from a base in one setting, compared with it seed by seed.

    python -m ppo_lib sweep --sweep defaults --preset paper --total-steps 300000 --seed 1 2 3 --anneal-lr false true
    python benchmarks/paired.py results/defaults anneal_lr=false

writes README.md and paired.png into the folder, from the runs' CSVs alone. A setting that can only differ together with
another one (`--sequence-length` with `--recurrent`) is compared with the runs that have the other one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppo_lib import plots
from ppo_lib.config import UserError, as_flag
from ppo_lib.runs import SPLITS, Run, changed_settings, common_steps, load_runs
from ppo_lib.stats import Estimate
from ppo_lib.study.groups import common_metric, experiments, paired_difference, paired_returns, summarize_experiment
from ppo_lib.study.report import time_to
from ppo_lib.study.table import markdown_table

PAGE = """# {title}

Runs that differ in one setting, seed by seed. Base: {settings}; {steps:,} steps.
{episodes} complete episodes per run and split; raw scores with 95% bootstrap intervals over seeds (in pairs) and
episodes (in pairs where both runs played the same levels). With few seeds such an interval is too narrow.

![return while training, and the differences at the end](paired.png)

{means}

{differences}

{times}

Minutes: training time on the run's machine, evaluations excluded.
steps/s: median over all updates, on the machine and with the code used for each run.
Made by `{command}` from the CSV files in this folder.
"""


@dataclass(frozen=True)
class Group:
    """The complete runs of one setting, one for each seed."""

    runs: list[Run]
    changed: tuple[tuple[str, object], ...] = ()  # the settings that lead to it from the base, one after the other
    against: Group | None = None  # what it is compared with: the group without the last of these

    @property
    def name(self) -> str:
        """All that differs from the base, as one types it."""
        return " ".join(as_flag(*setting) for setting in self.changed) or "base"


def main(folder: Path, base: str = "") -> None:
    """Write the page and the figure. Raises UserError if there is nothing to compare."""
    groups = load_groups(folder, base)
    (folder / "paired.png").write_bytes(plots.figure_png(draw(groups), dpi=100))
    (folder / "README.md").write_text(page(groups, f"python benchmarks/paired.py {folder} {base}".strip()))
    print(f"Written: {folder / 'README.md'}")


def load_groups(folder: Path, wish: str = "") -> list[Group]:
    """The base, then each group that one setting after the other leads to from it.

    The base is the group from which most others differ in one setting, among those that fit the wish ("field=value").
    Raises UserError if no group fits it or there is no pair.
    """
    found = load_runs([path.parent for path in sorted(folder.glob("*/evaluation.csv"))])
    complete = [run for run in found if run.steps >= run.config.total_steps and run.steps in common_steps([run])]
    groups = [Group(runs) for runs in experiments(complete)]
    field, _, value = wish.partition("=")
    bases = [g for g in groups if not wish or str(getattr(g.runs[0].config, field, "")).lower() == value.lower()]
    chain = sorted(bases, key=lambda base: -len(_near(base, groups)))[:1]
    for other in chain:  # which grows on the way
        known = [group.runs for group in chain]
        chain += [group for group in _near(other, groups) if group.runs not in known]
    if len(chain) < 2:
        raise UserError(f"{folder} has no two complete runs of a seed that differ in one setting: run the sweep first.")
    return chain


def _near(base: Group, groups: Sequence[Group]) -> list[Group]:
    """The groups that differ from a base in one setting and share a seed with it; unlimited levels come last."""
    near = []
    for group in groups:
        found = changed_settings(base.runs[0].config, group.runs[0].config)
        found.pop("seed", None)
        if len(found) == 1 and {r.config.seed for r in base.runs} & {r.config.seed for r in group.runs}:
            [(field, (_, value))] = found.items()
            near.append(Group(group.runs, (*base.changed, (field, value)), base))
    return sorted(near, key=lambda g: (g.changed[-1][0], g.changed[-1] == ("num_levels", 0), g.changed[-1][1]))


def page(groups: Sequence[Group], command: str) -> str:
    """The tables, in Markdown."""
    run, changed = groups[0].runs[0], {field for group in groups for field, _ in group.changed}
    shown = {"num_levels", "recurrent", "num_epochs", "total_steps"} | changed
    settings = ", ".join(f"`{as_flag(*item)}`" for item in run.config.to_dict().items() if item[0] in shown)
    means, differences, times = [], [], []
    for group in groups:
        summary, seeds = summarize_experiment(group.runs), " ".join(sorted(str(r.config.seed) for r in group.runs))
        speeds = np.concatenate([r.metrics.get("steps_per_second", [np.nan]) for r in group.runs])
        speed = f"{np.median(speeds):.0f}"  # a pause of the machine doesn't move the median
        means.append([f"`{group.name}`", seeds, summary.train.mean, summary.unseen.mean, speed])
        times += [[f"`{group.name}`", r.config.seed, time_to(r, 5), time_to(r, 8)] for r in group.runs]
    for group in groups[1:]:
        differences.append([f"`{as_flag(*group.changed[-1])}`", f"`{group.against.name}`"])
        for split in SPLITS:
            pairs = paired_returns(group.runs, group.against.runs, split).values()
            by_seed = ", ".join(f"{ours.mean() - theirs.mean():+.2f}" for ours, theirs, _ in pairs)
            differences[-1] += [paired_difference(group.runs, group.against.runs, split), by_seed]
    splits = ["training levels", "by seed", "unseen levels", "by seed"]
    return PAGE.format(
        title=" · ".join(sorted(changed)), settings=settings, steps=run.steps, episodes=len(run.final("unseen")),
        means=markdown_table(["setting", "seeds", "training levels", "unseen levels", "steps/s"], means),
        differences=markdown_table(["setting", "compared with", *splits], differences),
        times=markdown_table(["setting", "seed", "unseen return first at 5 or more", "at 8 or more"], times)
        if any(row[2:] != ["-", "-"] for row in times) else "No run reached a return of 5 on unseen levels.",
        command=command,
    )  # fmt: skip


def draw(groups: Sequence[Group]) -> Figure:
    """Return while training, each seed and their mean (left); differences at the end (right)."""
    figure, (left, right) = plots.new_figure(1, 2, height=3 + 0.3 * (len(groups) - 1))
    for index, group in enumerate(groups):
        steps, curves = common_metric(group.runs, "return_mean")
        left.plot(steps, curves.T, color=plots.run_color(index), lw=0.6, alpha=0.4)
        left.plot(steps, curves.mean(axis=0), color=plots.run_color(index), lw=1.5, label=group.name)
    for place, group in enumerate(groups[1:]):
        for split, shift in zip(SPLITS, (-0.12, 0.12), strict=True):
            found = paired_difference(group.runs, group.against.runs, split)
            style = dict(color=plots.SPLIT_COLOR[split], label=None if place else plots.SPLIT_NAME[split])
            draw_difference(right, found, place + shift, ms=4, **style)
    right.axvline(0, color=plots.GREY, lw=1, ls="--")
    plots.label_axes(left, plots.STEPS, plots.RETURN)
    plots.label_axes(right, "difference of the return", "")
    names = ["\nwith ".join(as_flag(*setting) for setting in reversed(group.changed)) for group in groups[1:]]
    right.set_yticks(range(len(names)), names, fontsize=7)
    right.set_ylim(len(names) - 0.5, -0.5)
    plots.legend_above(figure, [*left.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]])
    return figure


def draw_difference(axis: Axes, found: Estimate, height: float, **style: object) -> None:
    """A difference and its interval as a horizontal line. style: see Axes.errorbar."""
    error = [[found.value - found.low], [found.high - found.value]]
    axis.errorbar(found.value, height, xerr=error, fmt="o", capsize=3, **style)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
