"""Published results on easy StarPilot with picture backgrounds, to lay runs of the same protocol beside."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from .runs import Run

CURVES = "starpilot_easy200_openai_ppo.csv"  # in results/reference: three runs on 200 levels
TABLE = "published.csv"  # beside it: single results
CURVES_SOURCE = "openai/train-procgen"
HEADER = ["published", "num levels", "steps", "runs", "train", "unseen", "source"]
NOTE = (
    "Published: mean returns, ± the standard deviation over the runs. Those while training are of recent episodes, and "
    "lag behind the agent; their unseen levels are all levels."
)


def curves(runs: Iterable[Run], results: Path) -> Path | None:
    """The file of the published curves, where all runs follow their protocol."""
    path = results / "reference" / CURVES
    same = all(_follows_protocol(run) and run.config.num_levels == 200 for run in runs)
    return path if same and path.is_file() else None


def table(runs: Sequence[Run], results: Path) -> list[list[str]]:
    """HEADER and a row for each result on as many levels as one of the runs has; [] if none can be laid beside them.

    Of the published curves, there is a row at each number of steps nearest to one of the runs' last.
    """
    if not all(_follows_protocol(run) for run in runs):
        return []
    folder, rows = results / "reference", []
    if any(run.config.num_levels == 200 for run in runs) and (folder / CURVES).is_file():
        rows += _rows_of_curves(folder / CURVES, [run.steps for run in runs if run.config.num_levels == 200])
    levels = {str(run.config.num_levels) for run in runs}
    if (folder / TABLE).is_file():
        for row in _read(folder / TABLE):
            if row["num_levels"] in levels:
                score = [_score(row[split], row[f"{split}_sd"]) for split in ("train", "unseen")]
                known = "unlimited" if row["num_levels"] == "0" else row["num_levels"]
                steps = f"{int(row['timesteps']):,}"
                rows.append([row["algorithm"], known, steps, row["runs"] or "-", *score, row["source"]])
    return [HEADER, *rows] if rows else []


def _rows_of_curves(path: Path, steps: Iterable[int]) -> list[list[str]]:
    scores: dict[int, dict[str, list[float]]] = {}
    for row in _read(path):
        of_step = scores.setdefault(int(row["timesteps"]), {"train": [], "test": []})
        of_step[row["split"]].append(float(row["mean_episode_return"]))
    rows = []
    for near in sorted({min(scores, key=lambda known: abs(known - step)) for step in steps}):
        both = [f"{statistics.mean(r):.1f} ± {statistics.stdev(r):.1f}" for r in scores[near].values()]
        rows.append(["PPO", "200", f"{near:,}", str(len(scores[near]["train"])), *both, CURVES_SOURCE])
    return rows


def _follows_protocol(run: Run) -> bool:
    c = run.config
    found = c.env_name, c.distribution_mode, c.start_level, c.use_backgrounds, c.restrict_themes
    return found == ("starpilot", "easy", 0, True, False)


def _read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _score(mean: str, sd: str) -> str:
    return f"{mean} ± {sd}" if sd else mean or "-"
