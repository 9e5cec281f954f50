"""What a run writes while it trains: metrics.csv, TensorBoard events and a progress bar.

- metrics.csv gets one row per update, written at once: a killed run keeps every finished update. Its columns are the
  metrics that Trainer and algorithm return, in their order; a new metric becomes a new column.
- What only shows (terminal, progress bar, TensorBoard) never ends a training: its first failure is reported.
- Nor does a file that can't be written for a while, as on a drive that drops or a disk that is full: see PatientWriter.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ppo_lib.checkpoint import atomic_write, uninterrupted, write_error
from ppo_lib.config import UserError
from ppo_lib.runs import read_rows

PAUSES = (1, 2, 4)  # seconds between the last tries to write a file


class Logger:
    """Writes one update at a time.

    steps: where the run stands (0 unless resumed); newer rows are removed, so that no update appears twice.
    progress: whether to show a progress bar and messages. Raises as keep_rows.
    """

    def __init__(self, run_dir: Path, total_steps: int, steps: int = 0, progress: bool = True) -> None:
        self.path, self.progress, self.shown = run_dir / "metrics.csv", progress, steps
        self.columns, self._torn = keep_rows(self.path, (), steps), False  # torn: the last row may be half written
        self._failed: set[str] = set()
        self.events: SummaryWriter = self._try("TensorBoard", SummaryWriter, str(run_dir), "", steps + 1)
        bar = partial(tqdm, total=total_steps, initial=steps, unit="step", dynamic_ncols=True, disable=not progress)
        self.bar: tqdm = self._try("The progress bar", bar)

    def update(self, metrics: Mapping[str, float]) -> None:
        """Show one update's metrics, "steps" first, and write them. Raises OSError if metrics.csv can't be written; the
        same call then tries that again."""
        if metrics["steps"] > self.shown:
            self.shown = int(metrics["steps"])
            scalars = {name: value for name, value in metrics.items() if name not in ("steps", "seconds")}
            self._try("TensorBoard", self._scalars, "train/{}", scalars, self.shown)
            self._try("The progress bar", self._advance, metrics)
        columns = list(dict.fromkeys([*self.columns, *metrics]))
        if self._torn or columns != self.columns:
            self.columns = keep_rows(self.path, columns, metrics["steps"] - 1)
        values = (metrics.get(name, "") for name in self.columns)
        with open(self.path, "a", newline="", encoding="utf-8") as file:  # anew: a drive may have dropped and come back
            self._torn = True
            csv.writer(file).writerow(value if isinstance(value, (int, str)) else f"{value:.6g}" for value in values)
        self._torn = False

    def evaluation(self, steps: int, means: Mapping[str, float]) -> None:
        """Show an evaluation's mean return on each split."""
        self._try("TensorBoard", self._scalars, "evaluation/{}_return", means, steps)
        returns = ", ".join(f"{mean:.2f} on {split} levels" for split, mean in means.items())
        self.message(f"{steps:,} steps: return {returns}")

    def message(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self.progress:
            self._try("The terminal", tqdm.write, text)

    def close(self) -> None:
        """Flush and close what shows."""
        self._try("The progress bar", lambda: self.bar.close())
        self._try("TensorBoard", lambda: self.events.close())

    def _scalars(self, tag: str, values: Mapping[str, float], steps: int) -> None:
        for name, value in values.items():
            self.events.add_scalar(tag.format(name), value, steps)

    def _advance(self, metrics: Mapping[str, float]) -> None:
        self.bar.set_postfix_str(f"return {metrics['return_mean']:.2f}")
        self.bar.update(int(metrics["steps"]) - self.bar.n)

    def _try(self, what: str, show: Callable[..., Any], *arguments: object) -> Any:
        """Call show, and never again for the same `what` if it fails, which is reported."""
        if what in self._failed:
            return None
        try:
            return show(*arguments)
        except Exception as error:  # closed terminals and pipes, full disks, widgets of another version, …
            self._failed.add(what)
            warn(f"{what} failed ({error}); training continues without it.")


def warn(sentence: str) -> None:
    """Print a line on stderr, if that is possible."""
    with suppress(OSError, ValueError):  # it may be closed
        print(sentence, file=sys.stderr, flush=True)


class PatientWriter:
    """Writes a run's files. What fails is reported and waits: each call tries it again, and finish() at last."""

    def __init__(self, run_dir: Path | str) -> None:
        self.run_dir = Path(run_dir)
        self.waiting: dict[tuple[str, int], Callable[[], None]] = {}

    def __call__(self, name: str, write: Callable[[], None], steps: int = 0) -> None:
        """Call write() for the file of this name, which replaces one that waits for the same file and steps."""
        failing = {name for name, _ in self.waiting}
        self.waiting[name, steps] = write
        for name, error in self._try().items():
            if name not in failing:
                warn(f"{error} Training continues, and this is tried again.")

    def finish(self) -> None:
        """Write what waits. Raises UserError if that fails for several seconds."""
        with uninterrupted():
            failed = self._try()
            for pause in PAUSES if failed else ():
                time.sleep(pause)
                failed = self._try()
        for error in failed.values():
            raise error

    def _try(self) -> dict[str, UserError]:
        """Write what waits, in order; returns each file's first failure."""
        failed: dict[str, UserError] = {}
        with uninterrupted():
            for (name, steps), write in [*self.waiting.items()]:
                if name not in failed:
                    try:
                        write()
                        del self.waiting[name, steps]
                    except OSError as error:
                        failed[name] = write_error(error, self.run_dir / name)
                    except UserError as error:  # of a file that is changed, and can't be read
                        failed[name] = error
        return failed


def keep_rows(path: Path, columns: Sequence[str], steps: float) -> list[str]:
    """Keep the rows of a CSV up to `steps`, add the columns that it lacks, return all columns.

    Raises UserError as read_rows, and OSError if the file can't be written.
    """
    rows = read_rows(path, ("steps",), lambda row: {**row, "steps": int(row["steps"])})
    columns = list(dict.fromkeys([*(rows[0] if rows else ()), *columns]))
    if columns:
        with atomic_write(path) as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(row for row in rows if row["steps"] <= steps)
    return columns
