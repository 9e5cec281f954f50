"""Published results on easy StarPilot with picture backgrounds, to lay runs of the same protocol beside."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ppo_lib.config import UserError
from ppo_lib.runs import SPLITS, Run
from ppo_lib.stats import estimate
from ppo_lib.study.experiments import group_experiments

CURVES = "starpilot_easy200_openai_ppo.csv"  # in results/reference: three runs of openai/train-procgen on 200 levels
DIAGNOSTICS = "starpilot_easy200_openai_ppo_diagnostics.csv"  # beside it: what single updates of theirs logged
TABLE = "published.csv"  # single results
HEADER = ["published", "num levels", "steps", "runs", "train", "unseen", "source"]
NOTE = "Published: mean returns, ± the standard deviation over the runs; their unseen levels are all levels."
COMPARED = ["200 levels", "seeds", "steps", "train", "published", "unseen", "published"]
COMPARED_NOTE = (
    "Published: three runs of openai/train-procgen, read off at these steps; means of recent episodes while training, "
    "which lag behind the agent; their unseen levels are all levels. In brackets the single runs."
)
_MOST_ROWS = 12  # of an experiment

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps, mean returns
Diagnostics = dict[str, dict[int, list[float]]]  # figure -> steps -> the value of each run


def curves(runs: Iterable[Run], results: Path) -> Path | None:
    """The file of the published curves, where all runs follow their protocol."""
    path = results / "reference" / CURVES
    same = all(_follows_protocol(run) and run.config.num_levels == 200 for run in runs)
    return path if same and path.is_file() else None


def read_curves(path: str | Path) -> dict[str, list[Curve]]:
    """Split -> the curve of each run. Raises UserError if the file holds no such curves."""
    points: dict[str, dict[str, list[tuple[float, float]]]] = {}
    try:
        for row in _read(Path(path)):
            split = {"test": "unseen"}.get(row["split"], row["split"])
            point = float(row["timesteps"]), float(row["mean_episode_return"])
            points.setdefault(split, {}).setdefault(row["run"], []).append(point)
    except (OSError, KeyError, ValueError):
        raise UserError(f"{path} is no curve of published runs (split, run, timesteps, mean_episode_return).") from None
    return {split: [tuple(np.array(sorted(p)).T) for p in runs.values()] for split, runs in points.items()}


def read_diagnostics(results: Path, figures: Iterable[str]) -> Diagnostics:
    """What single updates of the published runs logged, of columns of DIAGNOSTICS."""
    found: Diagnostics = {name: {} for name in figures}
    for row in _read(results / "reference" / DIAGNOSTICS):
        for name, by_step in found.items():
            by_step.setdefault(int(row["timesteps"]), []).append(float(row[name]))
    return found


def returns_at(curves: Sequence[Curve], steps: float) -> list[float]:
    """The return of each run at a number of steps, on the line between the two points beside it."""
    return [float(np.interp(steps, *curve)) for curve in curves]


def tables(runs: Sequence[Run], results: Path) -> list[tuple[list[list[str]], str]]:
    """The tables that can be laid beside the runs, each with what is to be said of it."""
    both = (comparison(runs, results), COMPARED_NOTE), (table(runs, results), NOTE)
    return [(rows, note) for rows, note in both if rows]


def comparison(runs: Sequence[Run], results: Path) -> list[list[str]]:
    """COMPARED and a row for each evaluation of runs on 200 levels that all seeds have, beside the published curves.

    Of many evaluations, some are left out, never the last. [] if no run can be laid beside the curves.
    """
    ours = [run for run in runs if run.config.num_levels == 200 and _follows_protocol(run)]
    path, rows = curves(ours, results), []
    if not ours or path is None:
        return []
    theirs = read_curves(path)
    first = max(steps[0] for split in SPLITS for steps, _ in theirs[split])
    for name, group in group_experiments(ours).items():
        measured = [set(run.evaluation.select(split).checkpoints) for run in group for split in SPLITS]
        common = sorted((step for step in set.intersection(*measured) if step >= first), reverse=True)
        for step in reversed(common[:: len(common) // _MOST_ROWS + 1]):
            rows.append([name, str(len(group)), f"{step:,}"])
            for split in SPLITS:
                returns = [run.evaluation.select(split, step).returns for run in group]
                known = returns_at(theirs[split], step)
                single = _in_brackets([r.mean() for r in returns]) if len(group) > 1 else ""
                rows[-1] += [f"{estimate(returns)}{single}", f"{np.mean(known):.2f}{_in_brackets(known)}"]
    return [COMPARED, *rows] if rows else []


def table(runs: Sequence[Run], results: Path) -> list[list[str]]:
    """HEADER and a row for each result on as many levels as one of the runs has; [] if none can be laid beside them."""
    path, rows = results / "reference" / TABLE, []
    if not path.is_file() or not all(_follows_protocol(run) for run in runs):
        return []
    levels = {str(run.config.num_levels) for run in runs}
    for row in _read(path):
        if row["num_levels"] in levels:
            score = [_score(row[split], row[f"{split}_sd"]) for split in ("train", "unseen")]
            known = "unlimited" if row["num_levels"] == "0" else row["num_levels"]
            steps = f"{int(row['timesteps']):,}"
            rows.append([row["algorithm"], known, steps, row["runs"] or "-", *score, row["source"]])
    return [HEADER, *rows] if rows else []


def _follows_protocol(run: Run) -> bool:
    c = run.config
    found = c.env_name, c.distribution_mode, c.start_level, c.use_backgrounds, c.restrict_themes
    return found == ("starpilot", "easy", 0, True, False)


def _read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _score(mean: str, sd: str) -> str:
    return f"{mean} ± {sd}" if sd else mean or "-"


def _in_brackets(means: Sequence[float]) -> str:
    return f" ({', '.join(f'{mean:.2f}' for mean in means)})"
