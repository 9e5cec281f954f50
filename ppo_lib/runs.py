"""What a run left on disk, read back.

Reading is forgiving about what is missing (a run may still be training) and strict about what is wrong.
"""

from __future__ import annotations

import csv
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ppo_lib.config import PPOConfig, UserError

SPLITS = ("train", "unseen")
EVALUATION_COLUMNS = ("steps", "split", "level_seed", "return", "length")
MEASURING_FIELDS = ("eval_interval", "eval_episodes", "checkpoint_interval")  # they don't touch what is learned


@dataclass(frozen=True)
class Evaluation:
    """The columns of an evaluation.csv, each [E]: one entry an episode."""

    steps: NDArray[np.int64]  # training steps of the policy that played
    split: NDArray[np.str_]  # "train" or "unseen"
    level_seed: NDArray[np.int64]
    returns: NDArray[np.float64]  # raw game score
    length: NDArray[np.int64]  # game steps

    def select(self, split: str, steps: int | None = None) -> Evaluation:
        """The episodes of one split, at one number of training steps (default: all)."""
        keep = self.split == split
        if steps is not None:
            keep &= self.steps == steps
        return Evaluation(
            self.steps[keep], self.split[keep], self.level_seed[keep], self.returns[keep], self.length[keep]
        )

    @property
    def checkpoints(self) -> list[int]:
        """The numbers of training steps at which the run was evaluated, ascending."""
        return [int(step) for step in np.unique(self.steps)]

    def __len__(self) -> int:
        return len(self.returns)


@dataclass(frozen=True)
class Run:
    """A run folder in memory. Empty metrics or an evaluation without episodes mean: not there yet."""

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
        """Game steps that the run has trained for, as far as its files say."""
        seen = [*self.metrics.get("steps", ()), *self.evaluation.steps]
        return int(max(seen, default=0))

    def final(self, split: str) -> Evaluation:
        """The episodes of the last evaluation on a split; without entries if there is none."""
        episodes = self.evaluation.select(split)
        return episodes.select(split, max(episodes.checkpoints, default=0))


def load_run(run_dir: str | Path) -> Run:
    """Read a run folder. Raises UserError for a folder without config.json and for files that aren't what they say."""
    path = Path(run_dir).resolve()
    config = read_config(path)
    metrics = read_metrics(path) if (path / "metrics.csv").is_file() else {}
    return Run(path, config, metrics, read_evaluation(path) if (path / "evaluation.csv").is_file() else _no_episodes())


Runs = Run | str | Path | Sequence[Run | str | Path]


def load_runs(runs: Runs) -> list[Run]:
    """Runs in memory, from one run or several, each given as a Run or as its folder; one given twice counts once."""
    single = isinstance(runs, (Run, str, Path))
    found = (run if isinstance(run, Run) else load_run(run) for run in ([runs] if single else runs))  # type: ignore
    return list({run.path: run for run in found}.values())


def fixed_changes(saved: PPOConfig, wanted: PPOConfig) -> str:
    """What differs and can't on the way, as it changes what is learned: "gamma 0.999 -> 0.99, …"."""
    free = {"device", *MEASURING_FIELDS}
    if not saved.anneal_lr:  # over total_steps
        free.add("total_steps")
    old, new = saved.to_dict(), wanted.to_dict()
    return ", ".join(
        f"{name} {old[name]} -> {new[name]}" for name in new if new[name] != old[name] and name not in free
    )


def name_in(run_dir: Path, results: Path) -> str:
    """What the command line calls a run: its path in the results folder, or in full if it lies elsewhere."""
    path, results = run_dir.resolve(), results.resolve()
    return path.relative_to(results).as_posix() if path.is_relative_to(results) else str(path)


def seen_from_here(path: Path) -> Path:
    """The path as seen from the current folder, or in full if it lies elsewhere."""
    path, here = path.resolve(), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def results_flag(results: Path) -> str:
    """What tells the command line, called from here, that runs lie in this folder: nothing if it is ./results."""
    path = seen_from_here(results)
    return "" if path == Path("results") else f" --results {shlex.quote(str(path))}"


def film_path(run_dir: Path, results: Path) -> Path:
    """Where a run's film lies: videos/ beside the results folder repeats its structure."""
    name, results = name_in(run_dir, results), results.resolve()
    return results.parent / "videos" / f"{run_dir.name if Path(name).is_absolute() else name}.mp4"


def read_evaluation(path: str | Path) -> Evaluation:
    """Read evaluation.csv (or that of a run folder). A last line cut off by a crash is left out; an absent file, other
    columns or anything else that is no episode raise UserError."""
    path = _file(path, "evaluation.csv", "run `python -m ppo_lib evaluate` first")
    return _episodes(_read_rows(path, EVALUATION_COLUMNS, _parse_episode))


def read_metrics(path: str | Path) -> dict[str, NDArray[np.float64]]:
    """Columns of metrics.csv (or that of a run folder): name -> [updates], nan where a cell is empty."""
    path = _file(path, "metrics.csv", "train the run first")
    header: list[str] = []

    def parse(row: dict[str, str]) -> list[float]:
        header[:] = row
        return [float(cell) if cell else float("nan") for cell in row.values()]

    rows = _read_rows(path, ("steps",), parse)
    return {name: np.array([row[i] for row in rows]) for i, name in enumerate(header)}


def read_config(run_dir: str | Path) -> PPOConfig:
    """The settings of a run, from its config.json; UserError if there is none or it can't be read."""
    path = _file(run_dir, "config.json", "give the folder of a run")
    try:
        return PPOConfig.from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text: restore it.") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _episodes(rows: Sequence[Sequence]) -> Evaluation:
    """Columns out of rows in the order of EVALUATION_COLUMNS."""
    kinds = (np.int64, "<U6", np.int64, np.float64, np.int64)
    columns = zip(*rows, strict=True) if rows else ((),) * len(kinds)
    return Evaluation(*(np.array(column, dtype=kind) for column, kind in zip(columns, kinds, strict=True)))


def _no_episodes() -> Evaluation:
    """An evaluation that hasn't happened."""
    return _episodes([])


def _file(path: str | Path, name: str, remedy: str) -> Path:
    """`path`, or the file `name` inside it; UserError with the remedy if it isn't there."""
    path = Path(path)
    path = path / name if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"There is no {path}: {remedy}.")
    return path


def _read_rows(path: Path, columns: Sequence[str], parse: Callable[[dict[str, str]], list]) -> list[list]:
    """Parse every line of a CSV but a last one without its end: a run was killed while writing it."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    reader = csv.DictReader(lines)
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{path} has no column '{missing[0]}': it is not a file of this project or was cut off.")
    rows = []
    for row in reader:
        if reader.line_num == len(lines) and not text.endswith("\n"):
            break  # even a cell that looks whole may lack digits
        try:
            if None in row or None in row.values():
                raise ValueError("too many or too few cells")
            rows.append(parse(row))
        except ValueError as error:
            raise UserError(f"{path}, line {reader.line_num}: {error}; remove that line.") from None
    return rows


def _parse_episode(row: dict[str, str]) -> list:
    """One line of evaluation.csv in the order of EVALUATION_COLUMNS."""
    if row["split"] not in SPLITS:
        raise ValueError(f"split must be train or unseen, not '{row['split']}'")
    return [int(row["steps"]), row["split"], int(row["level_seed"]), float(row["return"]), int(float(row["length"]))]
