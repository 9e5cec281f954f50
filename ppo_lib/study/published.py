"""Published results on easy StarPilot with picture backgrounds, for comparison with runs of the same protocol."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ppo_lib.runs import SPLITS, Run, common_steps, read_rows
from ppo_lib.stats import Array, estimate
from ppo_lib.study.groups import group_experiments

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
Curves = dict[str, list[tuple[Array, Array]]]  # split -> (steps, mean returns) of each run
Diagnostics = dict[str, dict[int, list[float]]]  # metric -> steps -> the value of each run


def curves(runs: Iterable[Run], results: Path) -> Curves:
    """The published curves, where they are on disk and all runs follow their protocol; else {}."""
    same = all(_follows_protocol(run) and run.config.num_levels == 200 for run in runs)
    return read_curves(results / "reference" / CURVES) if same else {}


def read_curves(path: str | Path) -> Curves:
    """Published curves from a CSV, {} without it. Raises UserError as read_rows."""
    points: dict[str, dict[str, list[tuple[float, float]]]] = {}

    def add(row: dict[str, str]) -> None:
        of_split = points.setdefault("unseen" if row["split"] == "test" else row["split"], {})
        of_split.setdefault(row["run"], []).append((float(row["timesteps"]), float(row["mean_episode_return"])))

    read_rows(Path(path), ("split", "run", "timesteps", "mean_episode_return"), add)
    return {split: [tuple(np.array(sorted(p)).T) for p in runs.values()] for split, runs in points.items()}


def read_diagnostics(results: Path, metrics: Iterable[str]) -> Diagnostics:
    """What single updates of the published runs logged, of columns of DIAGNOSTICS."""
    found: Diagnostics = {name: {} for name in metrics}
    for row in read_rows(results / "reference" / DIAGNOSTICS, ("timesteps", *found)):
        for name, by_step in found.items():
            by_step.setdefault(int(row["timesteps"]), []).append(float(row[name]))
    return found


def returns_at(curves: Sequence[tuple[Array, Array]], steps: float) -> list[float]:
    """The return of each run at a number of steps, interpolated between the two points beside it."""
    return [float(np.interp(steps, *curve)) for curve in curves]


def tables(runs: Sequence[Run], results: Path) -> list[tuple[list[list[str]], str]]:
    """The tables that belong beside these runs, each with a note; the first row of a table is its header."""
    both = (comparison(runs, results), COMPARED_NOTE), (table(runs, results), NOTE)
    return [(rows, note) for rows, note in both if rows]


def comparison(runs: Sequence[Run], results: Path) -> list[list[str]]:
    """COMPARED and a row for each evaluation that all seeds of an experiment on 200 levels have, with the published
    returns at these steps. Of many evaluations some are left out, never the last. [] if there is nothing to compare.
    """
    ours = [run for run in runs if run.config.num_levels == 200 and _follows_protocol(run)]
    theirs, rows = curves(ours, results), []
    first = max((steps[0] for split in theirs.values() for steps, _ in split), default=0)
    for name, group in group_experiments(ours if theirs else ()).items():
        common = [step for step in reversed(common_steps(group)) if step >= first]
        for step in reversed(common[:: len(common) // _MOST_ROWS + 1]):
            rows.append([name, str(sum(len(run.evaluation) > 0 for run in group)), f"{step:,}"])
            for split in SPLITS:
                returns = [e.returns for run in group if len(e := run.evaluation.select(split, step))]
                known = returns_at(theirs[split], step)
                single = _in_brackets([r.mean() for r in returns]) if len(returns) > 1 else ""
                rows[-1] += [f"{estimate(returns)}{single}", f"{np.mean(known):.2f}{_in_brackets(known)}"]
    return [COMPARED, *rows] if rows else []


def table(runs: Sequence[Run], results: Path) -> list[list[str]]:
    """HEADER and a row for each result on as many levels as one of the runs has; [] if there is nothing to compare."""
    levels, rows = {str(run.config.num_levels) for run in runs}, []
    for row in read_rows(results / "reference" / TABLE, ()) if all(map(_follows_protocol, runs)) else ():
        if row["num_levels"] in levels:
            score = [f"{row[s]} ± {sd}" if (sd := row[f"{s}_sd"]) else row[s] or "-" for s in SPLITS]
            count = "unlimited" if row["num_levels"] == "0" else row["num_levels"]
            steps = f"{int(row['timesteps']):,}"
            rows.append([row["algorithm"], count, steps, row["runs"] or "-", *score, row["source"]])
    return [HEADER, *rows] if rows else []


def _follows_protocol(run: Run) -> bool:
    c = run.config
    found = c.env_name, c.distribution_mode, c.start_level, c.use_backgrounds, c.restrict_themes
    return found == ("starpilot", "easy", 0, True, False)


def _in_brackets(means: Sequence[float]) -> str:
    return f" ({', '.join(f'{mean:.2f}' for mean in means)})"
