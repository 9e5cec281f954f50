"""What a run writes while it trains: metrics.csv, TensorBoard events and a progress bar.

- metrics.csv gets one row per update, flushed at once: a killed run keeps every finished update. Its columns are the
  metrics that Trainer and algorithm return, in their order; a new metric becomes a new column.
- What only shows (terminal, progress bar, TensorBoard) never ends a training: its first failure is reported.
"""

from __future__ import annotations

import contextlib
import csv
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ppo_lib.checkpoint import atomic_write
from ppo_lib.runs import read_rows


class Logger:
    """Writes one update at a time.

    steps: where the run stands (0 unless resumed); newer rows are removed, so that no update appears twice.
    progress: whether to show a progress bar and messages. Raises as keep_rows.
    """

    def __init__(self, run_dir: Path, total_steps: int, steps: int = 0, progress: bool = True) -> None:
        self.path, self.progress = run_dir / "metrics.csv", progress
        self._failed: set[str] = set()
        self._open((), steps)
        self.events: SummaryWriter = self._try("TensorBoard", SummaryWriter, str(run_dir), "", steps + 1)
        bar = partial(tqdm, total=total_steps, initial=steps, unit="step", dynamic_ncols=True, disable=not progress)
        self.bar: tqdm = self._try("The progress bar", bar)

    def update(self, metrics: Mapping[str, float]) -> None:
        """Write one update's metrics, "steps" first, everywhere. Raises OSError if metrics.csv can't be written."""
        if new := [name for name in metrics if name not in self.columns]:
            self.file.close()
            self._open([*self.columns, *new], math.inf)
        values = (metrics.get(name, "") for name in self.columns)
        csv.writer(self.file).writerow(value if isinstance(value, (int, str)) else f"{value:.6g}" for value in values)
        self.file.flush()
        shown = {name: value for name, value in metrics.items() if name not in ("steps", "seconds")}
        self._try("TensorBoard", self._scalars, "train/{}", shown, metrics["steps"])
        self._try("The progress bar", self._advance, metrics)

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
        """Flush and close everything. What can't be written any more (a full disk) was reported by update."""
        self._try("The progress bar", lambda: self.bar.close())
        self._try("TensorBoard", lambda: self.events.close())
        with contextlib.suppress(OSError):
            self.file.close()

    def _open(self, columns: Sequence[str], steps: float) -> None:
        self.columns = keep_rows(self.path, columns, steps)
        self.file = open(self.path, "a", newline="", encoding="utf-8")  # noqa: SIM115 (closed by close)

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
            with contextlib.suppress(OSError, ValueError):
                print(f"{what} failed ({error}); training continues without it.", file=sys.stderr, flush=True)


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
