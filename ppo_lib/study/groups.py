"""Runs that repeat one experiment, grouped and summarised; differences between experiments.

- Runs repeat one experiment if they differ in the seed alone (runs.changed_settings).
- Seeds are averaged at the same number of training steps: the largest at which all of them were evaluated.
- Experiments are compared seed by seed and, within a seed, level by level where both played the same levels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ppo_lib.config import UserError
from ppo_lib.runs import SPLITS, Run, changed_settings, common_steps, load_runs
from ppo_lib.stats import Estimate, Summary, difference, generalization_gap, summarize


@dataclass(frozen=True)
class RunSummary:
    """The headline numbers of one experiment (one run or several seeds); None where nothing was measured."""

    train: Summary | None
    unseen: Summary | None
    gap: Estimate | None  # train minus unseen mean return
    steps: int  # training steps of the policies that were evaluated, the same for all seeds; 0 if there are none


def summarize_run(run: Run | str | Path) -> RunSummary:
    """Headline numbers of one run, from its last evaluation on both splits."""
    return summarize_experiment(load_runs(run))


def summarize_experiment(runs: Sequence[Run]) -> RunSummary:
    """Headline numbers of the seeds of one experiment, from the last evaluation that all of them have on both splits.

    A run that was never evaluated is left out.
    """
    steps = max(common_steps(runs), default=0)
    if not steps:
        return RunSummary(None, None, None, 0)
    found = {split: [e for run in runs if len(e := run.evaluation.select(split, steps))] for split in SPLITS}
    train, unseen = (summarize([e.returns for e in f], np.concatenate([e.length for e in f])) for f in found.values())
    gap = generalization_gap(*([e.returns for e in episodes] for episodes in found.values()))
    return RunSummary(train, unseen, gap, steps)


def first_reached(run: Run, split: str, target: float) -> tuple[int, float] | None:
    """(steps, seconds of training) of the first evaluation with a mean return of at least `target`, if there is one;
    seconds are nan without metrics.csv."""
    episodes = run.evaluation.select(split)
    for steps in episodes.checkpoints:
        if episodes.select(split, steps).returns.mean() >= target:
            return steps, seconds_at(run, steps)
    return None


def seconds_at(run: Run, steps: int) -> float:
    """Seconds of training until a number of steps; nan where metrics.csv doesn't say."""
    if not {"steps", "seconds"} <= run.metrics.keys():
        return float("nan")
    return float(np.interp(steps, run.metrics["steps"], run.metrics["seconds"]))


def common_metric(runs: Sequence[Run], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A column of metrics.csv at the steps that all runs have: (steps [U], values [runs, U])."""
    columns = [dict(zip(run.metrics.get("steps", ()), run.metrics.get(name, ()), strict=False)) for run in runs]
    steps = sorted(set.intersection(*map(set, columns))) if columns else []
    return np.array(steps), np.array([[column[step] for step in steps] for column in columns])


def experiments(runs: Iterable[Run]) -> list[list[Run]]:
    """The runs by experiment, in the order in which they come.

    Raises UserError for two runs of one experiment and one seed: a copy is no second sample.
    """
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if changed_settings(group[0].config, run.config).keys() <= {"seed"}:
                for twin in (other for other in group if other.config.seed == run.config.seed):
                    raise UserError(
                        f"{twin.path} and {run.path} have the same settings and the same seed {run.config.seed}: they "
                        "are one sample, not two. Leave one of them out."
                    )
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def group_experiments(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Label -> the runs of one experiment. Raises UserError as `experiments`.

    The label of a lone run is its name, that of several runs their first one's without its seed. Where two labels would
    be the same, the folders above tell them apart.
    """
    groups = experiments(runs)
    names = [_names(group) for group in groups]
    while double := [name for name, count in Counter(found[0] for found in names).items() if count > 1]:
        for found in names:
            if found[0] in double:
                del found[0]
    return {found[0]: group for found, group in zip(names, groups, strict=True)}


def group_families(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs that differ in nothing but the training levels and the seed, under what sets such a family apart.

    The name of a family gives the settings in which it differs from the one with the most numbers of levels, whose name
    is empty. Raises UserError as `experiments`.
    """
    families: list[list[Run]] = []
    for group in experiments(runs):
        family = next((family for family in families if not _apart_from_levels(family, group)), None)
        if family is None:
            families.append(family := [])
        family += group
    families.sort(key=lambda family: -len({run.config.num_levels for run in family}))
    return {", ".join(f"{k} {v}" for k, v in _apart_from_levels(families[0], f).items()): f for f in families}


def paired_difference(runs: Sequence[Run], others: Sequence[Run], split: str) -> Estimate:
    """Mean return of one experiment minus that of another on a split, with its 95% interval.

    Rests on the seeds that both have, in the last evaluation that all of these runs have on both splits. Seeds are
    resampled in pairs, and so are the episodes of a seed where both runs played the same levels.
    Raises UserError if they share no seed or no number of steps.
    """
    returns = paired_returns(runs, others, split)
    return difference(*([pair[side] for pair in returns.values()] for side in (0, 1, 2)))


def paired_returns(
    runs: Sequence[Run], others: Sequence[Run], split: str
) -> dict[int, tuple[NDArray[np.float64], NDArray[np.float64], bool]]:
    """Seed -> what paired_difference compares: the returns of either run, and whether they belong to the same levels
    in the same order."""
    by_seed = [{run.config.seed: run for run in side} for side in (runs, others)]
    pairs = {seed: (by_seed[0][seed], by_seed[1][seed]) for seed in sorted(by_seed[0].keys() & by_seed[1].keys())}
    if not pairs:
        raise UserError("A comparison seed by seed needs runs of the same seed in both experiments.")
    steps = max(common_steps([run for pair in pairs.values() for run in pair]), default=0)
    found = {}
    for seed, pair in pairs.items():
        ours, theirs = (run.evaluation.select(split, steps) for run in pair)
        if not len(ours) or not len(theirs):
            raise UserError(f"{pair[0].path} and {pair[1].path} were not evaluated at the same number of steps.")
        by_level = [episodes.returns[np.argsort(episodes.level_seed, kind="stable")] for episodes in (ours, theirs)]
        same = np.array_equal(np.sort(ours.level_seed), np.sort(theirs.level_seed))
        found[seed] = (*(by_level if same else (ours.returns, theirs.returns)), same)
    return found


def _apart_from_levels(runs: Sequence[Run], others: Sequence[Run]) -> dict[str, object]:
    """The settings of the others that differ from the first ones', apart from the training levels and the seed."""
    changes = changed_settings(runs[0].config, others[0].config)
    return {name: new for name, (_, new) in changes.items() if name not in ("num_levels", "start_level", "seed")}


def _names(group: Sequence[Run]) -> list[str]:
    """The possible labels of an experiment, shortest first; no other experiment has the last one."""
    path, seeds = group[0].path, f" ({len(group)} seeds)" if len(group) > 1 else ""
    name = path.name.removesuffix(f"-seed{group[0].config.seed}") if seeds else path.name
    inside = ["/".join((*path.parts[-n:-1], name)) for n in range(1, len(path.parts))]
    return [label + seeds for label in (*inside, str(path))]
