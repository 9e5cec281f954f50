"""Runs that repeat one experiment, grouped and summarised; differences between experiments.

- Runs repeat one experiment if they differ in the seed alone (runs.changed_settings).
- Seeds are averaged at the same number of training steps: the largest at which all of them were evaluated.
- Experiments are compared seed by seed and, within a seed, level by level where both played the same levels.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ppo_lib.config import UserError
from ppo_lib.runs import SPLITS, Run, Runs, changed_settings, common_steps, load_runs
from ppo_lib.stats import Array, Estimate, Summary, difference, generalization_gap, summarize

Pairs = dict[int, tuple[Array, Array, bool]]


@dataclass(frozen=True)
class RunSummary:
    """The headline numbers of one experiment (one run or several seeds); None where nothing was measured."""

    train: Summary | None
    unseen: Summary | None
    gap: Estimate | None  # train minus unseen mean return
    steps: int  # training steps of the policies that were evaluated, the same for all seeds; 0 if there are none


def summarize_experiment(runs: Runs) -> RunSummary:
    """Headline numbers of one run, or of the seeds of one experiment, from the last evaluation that all of them have on
    both splits. A run that was never evaluated is left out."""
    runs = load_runs(runs)
    steps = max(common_steps(runs), default=0)
    if not steps:
        return RunSummary(None, None, None, 0)
    played = [[e for run in runs if len(e := run.evaluation.select(split, steps))] for split in SPLITS]
    returns = [[e.returns for e in of_split] for of_split in played]
    lengths = [np.concatenate([e.length for e in of_split]) for of_split in played]
    return RunSummary(*map(summarize, returns, lengths), generalization_gap(*returns), steps)


def seconds_at(run: Run, steps: int) -> float:
    """Seconds of training until a number of steps; nan where metrics.csv doesn't say."""
    return float(np.interp(steps, run.metrics["steps"], run.metrics["seconds"])) if "seconds" in run.metrics else np.nan


def common_metric(runs: Sequence[Run], name: str) -> tuple[Array, Array]:
    """A column of metrics.csv at the steps that all runs have: (steps [U], values [runs, U])."""
    columns = [dict(zip(run.metrics.get("steps", ()), run.metrics.get(name, ()), strict=False)) for run in runs]
    steps = sorted(set.intersection(*map(set, columns))) if columns else []
    return np.array(steps), np.array([[column[step] for step in steps] for column in columns])


def experiments(runs: Iterable[Run]) -> list[list[Run]]:
    """The runs by experiment, in the order in which they come.

    Raises UserError for two runs of one experiment and one seed: a copy is no second sample.
    """
    groups = _alike(runs, {"seed"})
    for one, twin in (pair for group in groups for pair in itertools.combinations(group, 2)):
        if one.config.seed == twin.config.seed:
            raise UserError(
                f"{one.path} and {twin.path} have the same settings and the same seed {one.config.seed}: they are one "
                "sample, not two. Leave one of them out."
            )
    return groups


def group_experiments(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Label -> the runs of one experiment. Raises UserError as `experiments`.

    The label of a lone run is its name, that of several runs their first one's without its seed. Where two labels would
    be the same, the folders above tell them apart.
    """
    groups = experiments(runs)
    names = [_names(group) for group in groups]
    while double := [name for name, count in Counter(found[0] for found in names).items() if count > 1]:
        names = [found[1:] if found[0] in double else found for found in names]
    return {found[0]: group for found, group in zip(names, groups, strict=True)}


def group_families(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs that differ in nothing but the training levels and the seed, under what sets such a family apart.

    The name of a family gives the settings in which it differs from the one with the most numbers of levels, whose name
    is empty. Raises UserError as `experiments`.
    """
    free = {"num_levels", "start_level", "seed"}
    families = _alike((run for group in experiments(runs) for run in group), free)
    families.sort(key=lambda family: -len({run.config.num_levels for run in family}))
    apart = [changed_settings(families[0][0].config, family[0].config) for family in families]
    names = [", ".join(f"{name} {new}" for name, (_, new) in c.items() if name not in free) for c in apart]
    return dict(zip(names, families, strict=True))


def paired_difference(runs: Sequence[Run], others: Sequence[Run], split: str, steps: Sequence[int] = ()) -> Estimate:
    """Mean return of one experiment minus that of another on a split, with its 95% interval.

    Rests on the seeds that both have, after these steps of the one and the other; by default in the last evaluation
    that all of these runs have on both splits. Seeds are resampled in pairs, and so are the episodes of a seed where
    both runs played the same levels. Raises UserError if they share no seed or no number of steps.
    """
    returns = paired_returns(runs, others, split, steps)
    return difference(*([pair[side] for pair in returns.values()] for side in (0, 1, 2)))


def paired_returns(runs: Sequence[Run], others: Sequence[Run], split: str, steps: Sequence[int] = ()) -> Pairs:
    """Seed -> what paired_difference compares: the returns of either run, and whether they are level by level."""
    load_runs([*runs, *others])  # warns if their builds differ
    mine, theirs = ({run.config.seed: run for run in side} for side in (runs, others))
    pairs = {seed: (mine[seed], theirs[seed]) for seed in sorted(mine.keys() & theirs.keys())}
    if not pairs:
        raise UserError("A comparison seed by seed needs runs of the same seed in both experiments.")
    last = max(common_steps([run for pair in pairs.values() for run in pair]), default=0)
    found = {}
    for seed, pair in pairs.items():
        played = [run.evaluation.select(split, at) for run, at in zip(pair, steps or (last, last), strict=True)]
        if not all(map(len, played)):
            raise UserError(f"{pair[0].path} and {pair[1].path} were not evaluated at the same number of steps.")
        same = np.array_equal(*(np.sort(episodes.level_seed) for episodes in played))
        by_level = [e.returns[np.argsort(e.level_seed, kind="stable")] if same else e.returns for e in played]
        found[seed] = (*by_level, same)
    return found


def _alike(runs: Iterable[Run], free: Collection[str]) -> list[list[Run]]:
    """The runs in groups that differ in nothing but the free settings."""
    groups: list[list[Run]] = []
    for run in runs:
        near = (group for group in groups if changed_settings(group[0].config, run.config).keys() <= free)
        if group := next(near, None):
            group.append(run)
        else:
            groups.append([run])
    return groups


def _names(group: Sequence[Run]) -> list[str]:
    """The possible labels of an experiment, shortest first; no other experiment has the last one."""
    path, seeds = group[0].path, f" ({len(group)} seeds)" if len(group) > 1 else ""
    name = path.name.removesuffix(f"-seed{group[0].config.seed}") if seeds else path.name
    inside = ["/".join((*path.parts[-n:-1], name)) for n in range(1, len(path.parts))]
    return [label + seeds for label in (*inside, str(path))]
