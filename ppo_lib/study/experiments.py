"""Runs that repeat one experiment, grouped and summed up.

Runs that differ by nothing but seed and machine are one experiment: its intervals resample runs, then episodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppo_lib.runs import MEASURING_FIELDS, SPLITS, Run, load_runs
from ppo_lib.stats import Estimate, Summary, generalization_gap, summarize

# Fields in which the runs of one experiment may differ: chance, the machine, and what is measured.
_SIBLING_FIELDS = ("seed", "device", "precision", *MEASURING_FIELDS)
_LEVEL_FIELDS = ("num_levels", "start_level")


@dataclass(frozen=True)
class RunSummary:
    """The headline numbers of one experiment (one run or several seeds); None where nothing was measured."""

    train: Summary | None
    unseen: Summary | None
    gap: Estimate | None  # train minus unseen mean return
    steps: int  # training steps of the policies that were evaluated; the fewest, should they differ


def summarize_run(run: Run | str | Path) -> RunSummary:
    """Headline numbers of one run, from its last evaluation."""
    return summarize_experiment(load_runs(run))


def summarize_experiment(runs: Sequence[Run]) -> RunSummary:
    """Headline numbers of runs that repeat one experiment; a run that lacks a split is left out of it."""
    sets = {split: [episodes for run in runs if len(episodes := run.final(split))] for split in SPLITS}
    summaries = {
        split: summarize([e.returns for e in found], np.concatenate([e.length for e in found])) if found else None
        for split, found in sets.items()
    }
    both = [run for run in runs if all(len(run.final(split)) for split in SPLITS)]
    gap = generalization_gap(*([run.final(split).returns for run in both] for split in SPLITS)) if both else None
    steps = min((int(e.steps[0]) for found in sets.values() for e in found), default=0)
    return RunSummary(summaries["train"], summaries["unseen"], gap, steps)


def first_reached(run: Run, split: str, target: float) -> tuple[int, float] | None:
    """(steps, seconds of training) of the first evaluation with a mean return of at least `target`, if there is one."""
    episodes = run.evaluation.select(split)
    for steps in episodes.checkpoints:
        if episodes.select(split, steps).returns.mean() >= target:
            return steps, float(np.interp(steps, run.metrics["steps"], run.metrics["seconds"]))
    return None


def group_by_settings(
    runs: Iterable[Run], apart_from: Sequence[str]
) -> dict[tuple[tuple[str, object], ...], list[Run]]:
    """(field, value) pairs of the config -> the runs that have them all; the fields `apart_from` don't count."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        settings = tuple((k, v) for k, v in run.config.to_dict().items() if k not in apart_from)
        groups.setdefault(settings, []).append(run)
    return groups


def group_experiments(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Label -> runs that differ by nothing but their seed and machine.

    A lone run's label is its name; several of a sweep lose the seed in theirs. Where two folders hold different runs of
    one name, the folder stands before it.
    Runs of one seed repeat each other, on one machine to the last bit, and are no sample: they stay apart.
    """
    labels: dict[str, list[Run]] = {}
    for group in _one_of_each_seed(group_by_settings(runs, _SIBLING_FIELDS).values()):
        first, count = group[0], len(group)
        label = first.name if count == 1 else f"{first.name.removesuffix(f'-seed{first.config.seed}')} ({count} seeds)"
        labels[f"{first.path.parent.name}/{label}" if label in labels else label] = group
    return labels


def _one_of_each_seed(groups: Iterable[list[Run]]) -> Iterator[list[Run]]:
    """The groups; those that hold a seed several times, in as many parts."""
    for group in groups:
        parts: list[list[Run]] = []
        for run in group:
            part = next((p for p in parts if all(run.config.seed != other.config.seed for other in p)), None)
            if part is None:
                parts.append(part := [])
            part.append(run)
        yield from parts


def group_families(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs that differ by nothing but the training levels, their seed and machine, under what sets them apart.

    The name of a family says the settings in which it differs from the largest one, whose name is empty.
    """
    groups = group_by_settings(runs, (*_SIBLING_FIELDS, *_LEVEL_FIELDS))
    families = sorted(groups.items(), key=lambda item: -len({run.config.num_levels for run in item[1]}))
    names = [", ".join(f"{k} {v}" for k, v in key if v != dict(families[0][0])[k]) for key, _ in families]
    return dict(zip(names, (family for _, family in families), strict=True))
