"""What does one setting change? Runs that differ from a base in one setting, compared with it seed by seed.

    python -m ppo_lib sweep --sweep defaults --preset paper --total-steps 300000 --eval-interval 0 \\
        --seed 1 2 3 --anneal-lr false true                    # an hour on two CPU cores
    python benchmarks/paired.py results/defaults --base anneal_lr=false

writes README.md and paired.png into the folder, from the runs' CSVs alone. A setting that can only differ together with
another one (`--sequence-length` with `--recurrent`) is compared with the runs that have the other one.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ppo_lib.config import UserError, as_flag
from ppo_lib.drawing import (
    GREY,
    RETURN,
    SPLIT_COLOR,
    SPLIT_NAME,
    STEPS,
    figure_png,
    format_steps,
    label_axes,
    legend_above,
    new_figure,
    run_color,
)
from ppo_lib.runs import MEASURING_FIELDS, SPLITS, Run, load_runs
from ppo_lib.stats import Estimate, estimate, generalization_gap
from ppo_lib.study.experiments import first_reached, group_by_settings

FREE = ("seed", "device", *MEASURING_FIELDS)  # in which runs of a group differ


@dataclass(frozen=True)
class Group:
    """The complete runs of one setting, by seed."""

    settings: dict[str, object]  # the config without FREE
    runs: dict[int, Run]
    against: Group | None = None  # what it is compared with; None: it is the base itself

    def says(self, field: str, value: str) -> bool:
        """Whether `field=value`, as typed, holds here."""
        return str(self.settings.get(field)).lower() == value.lower()

    def changes(self, other: Group) -> dict[str, object]:
        """The settings that differ from the other's."""
        return {name: value for name, value in self.settings.items() if value != other.settings[name]}

    def is_near(self, other: Group) -> bool:
        """Whether one setting differs, and a seed is shared."""
        return len(self.changes(other)) == 1 and bool(self.runs.keys() & other.runs.keys())

    @property
    def change(self) -> str:
        """What differs from the group that it is compared with, as one types it."""
        return as_flag(*next(iter(self.changes(self.against).items())))

    @property
    def name(self) -> str:
        """All that differs from the base."""
        if self.against is None:
            return "base"
        return self.change if self.against.against is None else f"{self.against.name} {self.change}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, or 2 if there is nothing to compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder of a sweep, such as results/defaults")
    parser.add_argument("--base", metavar="FIELD=VALUE", default="", help="the setting to compare with")
    options = parser.parse_args(arguments)
    try:
        base, variants = load_groups(options.folder, options.base)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    (options.folder / "paired.png").write_bytes(figure_png(draw(base, variants), dpi=100))
    command = " ".join(
        ["python benchmarks/paired.py", str(options.folder), *(["--base", options.base] * bool(options.base))]
    )
    (options.folder / "README.md").write_text(page(base, variants, command), encoding="utf-8")
    print(f"Written: {options.folder / 'README.md'}")
    return 0


def load_groups(folder: Path, wish: str = "") -> tuple[Group, list[Group]]:
    """The base, and each group that one setting after the other leads to from it, with the group it's compared with.

    The base is the group from which most others differ in one setting, among those that fit the wish ("field=value").
    Raises UserError if no group fits it or there is no pair.
    """
    found = load_runs([path.parent for path in sorted(folder.glob("*/evaluation.csv"))])
    complete = [run for run in found if run.steps >= run.config.total_steps and _evaluated_at_end(run)]
    groups = [
        Group(dict(settings), {run.config.seed: run for run in runs})
        for settings, runs in group_by_settings(complete, FREE).items()
    ]
    field, _, value = wish.partition("=")
    bases = [group for group in groups if not wish or group.says(field, value)]
    base = max(bases, key=lambda base: sum(group.is_near(base) for group in groups), default=None)
    found = [base] if base else []
    for other in found:  # which grows on the way
        known = [group.settings for group in found]
        near = [group for group in groups if group.is_near(other) and group.settings not in known]
        near.sort(key=lambda group: _rank(*next(iter(group.changes(other).items()))))
        found += [replace(group, against=other) for group in near]
    if len(found) < 2:
        raise UserError(
            f"{folder} holds no two complete runs of one seed that differ in one setting: run the sweep first."
        )
    return base, found[1:]


def _rank(field: str, value: object) -> tuple[str, object]:
    """By field and value, where unlimited levels (0) come last."""
    return field, math.inf if field == "num_levels" and value == 0 else value


def _evaluated_at_end(run: Run) -> bool:
    return all(set(run.final(split).steps) == {run.steps} for split in SPLITS)


def pairs(variant: Group, split: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns at the end of its runs and of those it is compared with, for the seeds that both have, in their order."""
    seeds = sorted(variant.runs.keys() & variant.against.runs.keys())
    return tuple([group.runs[seed].final(split).returns for seed in seeds] for group in (variant, variant.against))


def difference(variant: Group, split: str) -> Estimate:
    """What the change adds at the end; seeds are resampled in pairs, episodes within each run."""
    return generalization_gap(*pairs(variant, split))


def speed(group: Group) -> float:
    """Steps per second: the median of all updates, which a pause of the machine doesn't move."""
    return float(np.median(np.concatenate([run.metrics["steps_per_second"] for run in group.runs.values()])))


def page(base: Group, variants: list[Group], command: str) -> str:
    """The tables, in Markdown; they end with the command that made them."""
    run = next(iter(base.runs.values()))
    known = {"num_levels", "recurrent", "num_epochs", "total_steps"} | {f for v in variants for f in v.changes(base)}
    lines = [
        "# " + " · ".join(sorted({field for v in variants for field in v.changes(base)})),
        "",
        "Runs that differ in one setting, seed by seed. Base: "
        + ", ".join(f"`{as_flag(field, base.settings[field])}`" for field in base.settings if field in known)
        + f"; {run.steps:,} steps. {len(run.final('unseen'))} complete episodes a run and split; raw scores with 95% "
        "bootstrap intervals over seeds (in pairs) and episodes. Of few seeds such an interval is too narrow.",
        "",
        "![return while training, and the differences at the end](paired.png)",
        "",
        "| setting | seeds | training levels | unseen levels | steps/s |",
        "|---|---|---|---|---:|",
    ]
    for group in (base, *variants):
        means = [str(estimate([run.final(split).returns for run in group.runs.values()])) for split in SPLITS]
        seeds = " ".join(map(str, sorted(group.runs)))
        lines.append(f"| {_typed(group.name)} | {seeds} | {' | '.join(means)} | {speed(group):.0f} |")
    lines += [
        "",
        "| setting | compared with | training levels | by seed | unseen levels | by seed |",
        "|---|---|---|---|---|---|",
    ]
    for variant in variants:
        cells = []
        for split in SPLITS:
            by_seed = (a.mean() - b.mean() for a, b in zip(*pairs(variant, split), strict=True))
            cells += [str(difference(variant, split)), ", ".join(f"{value:+.2f}" for value in by_seed)]
        lines.append(f"| {_typed(variant.change)} | {_typed(variant.against.name)} | {' | '.join(cells)} |")
    lines += ["", *reached((base, *variants))]
    lines.append(
        f"Made by `{command}` from the CSVs beside it. steps/s: the median over all updates, on the machine and by the"
    )
    lines.append("code of the day of the runs.")
    return "\n".join(lines) + "\n"


def _typed(name: str) -> str:
    return f"`{name}`" if name.startswith("--") else name


def reached(groups: tuple[Group, ...], targets: tuple[float, ...] = (5, 8)) -> list[str]:
    """A table of when each run's mean on unseen levels was first at or above the targets; nothing if none was."""
    rows = []
    for group in groups:
        for seed, run in sorted(group.runs.items()):
            times = [first_reached(run, "unseen", target) for target in targets]
            cells = [f"{format_steps(time[0])} steps, {time[1] / 60:.0f} min" if time else "not" for time in times]
            rows.append((any(times), f"| {_typed(group.name)} | {seed} | {' | '.join(cells)} |"))
    if not any(found for found, _ in rows):
        return []
    header = [f"unseen return first at {target:g} or more" for target in targets]
    rule = "|---" * (2 + len(targets)) + "|"
    note = "Minutes of training on the run's machine, without evaluations, where a run was evaluated."
    return [f"| setting | seed | {' | '.join(header)} |", rule, *(row for _, row in rows), "", note, ""]


def draw(base: Group, variants: list[Group]) -> Figure:
    """Return while training, each seed and their mean (left); differences at the end (right)."""
    figure, axes = new_figure(1, 2, height=3 + 0.3 * len(variants))
    for index, group in enumerate((base, *variants)):
        logs = [run.metrics for run in group.runs.values()]
        updates = min(len(log["steps"]) for log in logs)
        steps, curves = logs[0]["steps"][:updates], [log["return_mean"][:updates] for log in logs]
        for curve in curves:
            axes[0].plot(steps, curve, color=run_color(index), lw=0.6, alpha=0.4)
        axes[0].plot(steps, np.mean(curves, axis=0), color=run_color(index), lw=1.5, label=group.name)
    for place, variant in enumerate(variants):
        for split, shift in zip(SPLITS, (-0.12, 0.12), strict=True):
            found = difference(variant, split)
            error = [[found.value - found.low], [found.high - found.value]]
            label = None if place else SPLIT_NAME[split]
            axes[1].errorbar(
                found.value, place + shift, xerr=error, fmt="o", ms=4, capsize=3, color=SPLIT_COLOR[split], label=label
            )
    axes[1].axvline(0, color=GREY, lw=1, ls="--")
    label_axes(axes[0], STEPS, RETURN)
    label_axes(axes[1], "difference of the return", "")
    with_what = [v.change if v.against is base else f"{v.change}\nwith {v.against.name}" for v in variants]
    axes[1].set_yticks(range(len(variants)), with_what, fontsize=7)
    axes[1].set_ylim(len(variants) - 0.5, -0.5)
    legend_above(figure, [*axes[0].get_legend_handles_labels()[0], *axes[1].get_legend_handles_labels()[0]])
    return figure


if __name__ == "__main__":
    sys.exit(main())
