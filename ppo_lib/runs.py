"""A run's folder read back: its settings, metrics and evaluations.

- Files may be missing, since a run may still be training. A file that is there must be as the project wrote it.
- `changed_settings` alone decides in what two runs differ: grouping, resuming and paired comparisons rest on it.
"""

from __future__ import annotations

import csv
import shlex
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppo_lib.config import PPOConfig, UserError, suggest

SPLITS = ("train", "unseen")
EVALUATION_COLUMNS = ("steps", "split", "level_seed", "return", "length")
MEASURING_FIELDS = ("eval_interval", "eval_episodes", "checkpoint_interval")  # they don't change what is learned


@dataclass(frozen=True)
class Evaluation:
    """The columns of an evaluation.csv, each [E]: one entry per episode."""

    steps: NDArray[np.int64]  # training steps of the policy that played
    split: NDArray[np.str_]  # "train" or "unseen"
    level_seed: NDArray[np.int64]
    returns: NDArray[np.float64]  # raw game score
    length: NDArray[np.int64]  # game steps

    def select(self, split: str, steps: int | None = None) -> Evaluation:
        """The episodes of one split, at one number of training steps (default: all)."""
        keep = (self.split == split) & (True if steps is None else self.steps == steps)
        return Evaluation(*(column[keep] for column in vars(self).values()))

    @property
    def checkpoints(self) -> list[int]:
        """The numbers of training steps at which the run was evaluated, ascending."""
        return [int(step) for step in np.unique(self.steps)]

    def __len__(self) -> int:
        return len(self.returns)


@dataclass(frozen=True)
class Run:
    """A run's folder in memory. Empty metrics, or an evaluation without episodes: the run has none yet."""

    path: Path
    config: PPOConfig
    metrics: dict[str, NDArray[np.float64]]  # column -> [updates]
    evaluation: Evaluation

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def steps(self) -> int:
        """Game steps that the run has trained for, according to its files."""
        return int(max([*self.metrics.get("steps", ()), *self.evaluation.steps], default=0))

    def final(self, split: str) -> Evaluation:
        """The episodes of the last evaluation on a split; without entries if there is none."""
        episodes = self.evaluation.select(split)
        return episodes.select(split, max(episodes.checkpoints, default=0))


def load_run(run_dir: str | Path) -> Run:
    """Read a run's folder. Raises UserError as read_config and read_rows."""
    path = Path(run_dir).resolve()
    return Run(path, read_config(path), read_metrics(path), read_evaluation(path / "evaluation.csv"))


Runs = Run | str | Path | Sequence[Run | str | Path]


def load_runs(runs: Runs) -> list[Run]:
    """Runs in memory, from one run or several, each given as a Run or as its folder; one given twice counts once. Warns
    if they were played on different builds of Procgen."""
    single = isinstance(runs, (Run, str, Path))
    found = (run if isinstance(run, Run) else load_run(run) for run in ([runs] if single else runs))  # type: ignore
    unique = {run.path: run for run in found}
    if len(builds := {run.config.build for run in unique.values()}) > 1:
        names = " and ".join(sorted(builds))
        warnings.warn(
            f"Some runs were played on {names}, which draw the games differently: compare with care.", stacklevel=2
        )
    return list(unique.values())


def one_experiment(runs: Runs) -> list[Run]:
    """load_runs for runs that must be seeds of one experiment; UserError if anything else differs between them."""
    found = load_runs(runs)
    if apart := {name for run in found for name in changed_settings(found[0].config, run.config)} - {"seed"}:
        raise UserError(f"These runs differ in {', '.join(sorted(apart))}: compare them with ppo_lib.study.figures.")
    return found


def changed_settings(old: PPOConfig, new: PPOConfig) -> dict[str, tuple[object, object]]:
    """What shapes learning and differs between two runs: field -> (old value, new value). Runs repeat one experiment
    if only the seed does. The device and fields that only measure don't count, nor does total_steps unless both runs
    lower the learning rate over it."""
    free = {"device", *MEASURING_FIELDS} | (set() if old.anneal_lr and new.anneal_lr else {"total_steps"})
    before, after = old.to_dict(), new.to_dict()
    pairs = {name: (before.get(name), after.get(name)) for name in {**before, **after} if name not in free}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def fixed_changes(saved: PPOConfig, wanted: PPOConfig) -> str:
    """What can't change when a run is resumed, and would: "gamma 0.999 -> 0.99, …". Precision auto goes with any."""
    changes = {name: pair for name, pair in changed_settings(saved, wanted).items() if "auto" not in pair}
    return ", ".join(f"{name} {old} -> {new}" for name, (old, new) in changes.items())


def common_steps(runs: Sequence[Run], split: str | None = None) -> list[int]:
    """The numbers of training steps at which all runs that were evaluated at all were, on a split (None: on both)."""
    splits = SPLITS if split is None else (split,)
    measured = [[run.evaluation.select(name).checkpoints for name in splits] for run in runs]
    sets = [set(steps) for of_run in measured if any(of_run) for steps in of_run]
    return sorted(set.intersection(*sets)) if sets else []


def find_run(name: str, results: Path) -> Path:
    """The folder of a run, given by name or path. Raises UserError with the nearest name."""
    for folder in (results / name, Path(name)):
        if (folder / "config.json").is_file():
            return folder if folder.name.strip(".") else folder.resolve()
    files = [*sorted(results.glob("*/config.json")), *sorted(results.glob("*/*/config.json"))]
    known = [name_in(file.parent, results) for file in files]
    raise UserError(f"There is no run '{name}' in {results}{suggest(name, known)}")


def name_in(path: Path, folder: Path = Path()) -> str:
    """The path within a folder (the current one), or in full if it lies elsewhere; what a command calls a run."""
    path, folder = path.resolve(), folder.resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def results_flag(results: Path) -> str:
    """The flag with which a command that is called from here finds runs in this folder; "" for ./results."""
    path = name_in(results)
    return "" if path == "results" else f" --results {shlex.quote(path)}"


def video_path(run_dir: Path, results: Path) -> Path:
    """Where a run's video lies: videos/ in the results folder, or beside the project's own, repeats its structure."""
    name, folder = Path(name_in(run_dir, results)), results.resolve()
    folder = folder.parent if folder == Path(__file__).resolve().parents[1] / "results" else folder
    return folder / "videos" / f"{run_dir.name if name.is_absolute() else name}.mp4"


def read_config(run_dir: str | Path) -> PPOConfig:
    """The settings of a run, from its config.json; UserError if there is none or it isn't one."""
    path = Path(run_dir) / "config.json"
    try:
        return PPOConfig.from_saved_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no {path}: give the folder of a run.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None


def read_metrics(run_dir: str | Path) -> dict[str, NDArray[np.float64]]:
    """The columns of a run's metrics.csv: name -> [updates], nan where a cell is empty; {} before the first update."""
    path = Path(run_dir) / "metrics.csv"
    rows = read_rows(path, ("steps",), lambda row: {k: float(cell) if cell else np.nan for k, cell in row.items()})
    return {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def read_evaluation(path: str | Path) -> Evaluation:
    """Read an evaluation.csv."""

    def parse(row: dict[str, str]) -> tuple[int, str, int, float, int]:
        if row["split"] not in SPLITS:
            raise ValueError(f"split must be train or unseen, not '{row['split']}'")
        return int(row["steps"]), row["split"], int(row["level_seed"]), float(row["return"]), int(float(row["length"]))

    columns = list(zip(*read_rows(Path(path), EVALUATION_COLUMNS, parse), strict=True))
    return Evaluation(*map(np.array, columns or [()] * 5, (np.int64, "<U6", np.int64, np.float64, np.int64)))


def read_rows(path: Path, columns: Sequence[str], parse: Callable[[dict[str, str]], Any] = dict) -> list[Any]:
    """Every line of a CSV, parsed, but for a last one without its end, which a killed run leaves; [] without a file.

    Raises UserError for a file that can't be read, lacks a column or has a line that parse refuses.
    """
    rows: list[Any] = []
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines(keepends=True))
        if missing := {*columns} - {*(reader.fieldnames or columns)}:
            raise ValueError(f"there is no column '{min(missing)}'")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError("too many or too few cells")
            rows.append(parse(row))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}, row {len(rows) + 1}: {error}; restore the file or remove that row.") from None
    return rows
