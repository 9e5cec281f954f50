"""A run's folder read back: its settings, metrics and evaluations.

- Files may be missing, since a run may still be training. A file that is there must be as the project wrote it.
- `changed_settings` alone decides in what two runs differ: grouping, resuming and paired comparisons rest on it.
"""

from __future__ import annotations

import csv
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppo_lib.config import ConfigError, PPOConfig, UserError, suggest

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
    """Read a run's folder. Raises UserError for a folder without config.json and for files that can't be read."""
    path = Path(run_dir).resolve()
    config = read_config(path)
    metrics = read_metrics(path) if (path / "metrics.csv").is_file() else {}
    return Run(path, config, metrics, read_evaluation(path) if (path / "evaluation.csv").is_file() else _episodes([]))


Runs = Run | str | Path | Sequence[Run | str | Path]


def load_runs(runs: Runs) -> list[Run]:
    """Runs in memory, from one run or several, each given as a Run or as its folder; one given twice counts once."""
    single = isinstance(runs, (Run, str, Path))
    found = (run if isinstance(run, Run) else load_run(run) for run in ([runs] if single else runs))  # type: ignore
    return list({run.path: run for run in found}.values())


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


def one_experiment(runs: Runs) -> list[Run]:
    """load_runs for runs that must be seeds of one experiment; UserError if anything else differs between them."""
    first, *others = found = load_runs(runs)
    for run in others:
        if apart := sorted(changed_settings(first.config, run.config).keys() - {"seed"}):
            raise UserError(
                f"{first.name} and {run.name} differ in {', '.join(apart)}: compare them with ppo_lib.study.figures."
            )
    return found


def find_run(name: str, results: Path) -> Path:
    """The folder of a run, given by name or path. Raises UserError with the nearest name."""
    for folder in (results / name, Path(name)):
        if (folder / "config.json").is_file():
            return folder if folder.name.strip(".") else folder.resolve()
    found = [path.parent for depth in ("*", "*/*") for path in sorted(results.glob(f"{depth}/config.json"))]
    known = [path.relative_to(results).as_posix() for path in found]
    raise UserError(f"There is no run '{name}' in {results}{suggest(name, known)}")


def name_in(path: Path, folder: Path) -> str:
    """The path within a folder, or in full if it lies elsewhere: what the command line calls a run in the results."""
    path, folder = path.resolve(), folder.resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def seen_from_here(path: Path) -> Path:
    """The path as seen from the current folder, or in full if it lies elsewhere."""
    return Path(name_in(path, Path.cwd()))


def results_flag(results: Path) -> str:
    """The flag with which a command that is called from here finds runs in this folder; "" for ./results."""
    path = name_in(results, Path.cwd())
    return "" if path == "results" else f" --results {shlex.quote(path)}"


def video_path(run_dir: Path, results: Path) -> Path:
    """Where a run's video lies: videos/ beside the results folder repeats its structure."""
    name = name_in(run_dir, results)
    return results.resolve().parent / "videos" / f"{run_dir.name if Path(name).is_absolute() else name}.mp4"


def read_config(run_dir: str | Path) -> PPOConfig:
    """The settings of a run, from its config.json; UserError if there is none or it can't be read."""
    path = _file(run_dir, "config.json")
    try:
        return PPOConfig.from_saved_json(_text(path, "give the folder of a run"))
    except ConfigError as error:
        raise UserError(f"{path}: {error}") from None


def read_evaluation(path: str | Path) -> Evaluation:
    """Read evaluation.csv (or that of a run's folder). Raises UserError as read_rows."""
    return _episodes(read_rows(_file(path, "evaluation.csv"), EVALUATION_COLUMNS, _parse_episode))


def read_metrics(path: str | Path) -> dict[str, NDArray[np.float64]]:
    """Columns of metrics.csv (or that of a run's folder): name -> [updates], nan where a cell is empty; {} before the
    first update. Raises UserError as read_rows."""
    path = _file(path, "metrics.csv")
    rows = read_rows(path, ("steps",), lambda row: {k: float(cell) if cell else np.nan for k, cell in row.items()})
    return {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def read_rows(path: Path, columns: Sequence[str], parse: Callable[[dict[str, str]], Any] = dict) -> list[Any]:
    """Every line of a CSV, parsed, but for a last one without its end, which a killed run leaves.

    Raises UserError for a file that is absent, can't be read, lacks a column or has a line that parse refuses.
    """
    lines = _text(path, "train or evaluate the run first").splitlines(keepends=True)
    reader = csv.DictReader(lines if not lines or lines[-1].endswith("\n") else lines[:-1])
    if missing := {*columns} - {*(reader.fieldnames or columns)}:
        raise UserError(f"{path} has no column '{min(missing)}': another program has rewritten it; restore it.")
    rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError("too many or too few cells")
            rows.append(parse(row))
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; restore the file or remove that line.") from None
    return rows


def _file(path: str | Path, name: str) -> Path:
    """`path`, or the file `name` inside it."""
    return Path(path) / name if Path(path).is_dir() else Path(path)


def _text(path: Path, remedy: str = "restore it") -> str:
    """A file's text. Raises UserError if it can't be read, with the remedy if there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"There is no {path}: {remedy}.") from None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file: restore it.") from None


def _parse_episode(row: dict[str, str]) -> tuple[int, str, int, float, int]:
    """One line of evaluation.csv in the order of EVALUATION_COLUMNS."""
    if row["split"] not in SPLITS:
        raise ValueError(f"split must be train or unseen, not '{row['split']}'")
    return int(row["steps"]), row["split"], int(row["level_seed"]), float(row["return"]), int(float(row["length"]))


def _episodes(rows: Sequence[tuple[int, str, int, float, int]]) -> Evaluation:
    """Columns out of rows in the order of EVALUATION_COLUMNS."""
    columns = zip(*rows, strict=True) if rows else [()] * len(EVALUATION_COLUMNS)
    kinds = (np.int64, "<U6", np.int64, np.float64, np.int64)
    return Evaluation(*map(np.array, columns, kinds))
