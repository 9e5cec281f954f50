"""What a run writes while it trains: metrics.csv, TensorBoard events and a progress bar.

- metrics.csv gets one row an update, flushed at once: a killed run keeps every finished update.
- Resuming cuts off rows that are newer than the checkpoint, so that no update appears twice.
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ppo_lib.config import UserError
from ppo_lib.files import replacing

METRICS = (
    "steps", "seconds", "episodes", "return_mean", "length_mean", "policy_loss", "value_loss", "entropy",
    "approx_kl", "clip_fraction", "explained_variance", "grad_norm", "learning_rate", "clip_range",
    "entropy_coef", "steps_per_second",
)  # fmt: skip


class Logger:
    """Writes one update at a time. steps: where the run stands (0 unless resumed); newer rows are cut off."""

    def __init__(self, run_dir: Path, total_steps: int, steps: int = 0, progress: bool = True) -> None:
        self.path = run_dir / "metrics.csv"
        keep_rows(self.path, METRICS, steps)
        self.file = open(self.path, "a", newline="")  # noqa: SIM115 (closed by close)
        self.writer = csv.DictWriter(self.file, METRICS)
        self.events = SummaryWriter(str(run_dir), purge_step=steps + 1)
        self.bar = tqdm(total=total_steps, initial=steps, unit="step", disable=not progress, dynamic_ncols=True)

    def update(self, metrics: Mapping[str, float]) -> None:
        """Write one update's metrics (all of METRICS) everywhere."""
        self.writer.writerow({name: _short(metrics[name]) for name in METRICS})
        self.file.flush()
        for name in METRICS[2:]:
            self.events.add_scalar(f"train/{name}", metrics[name], metrics["steps"])
        self.bar.set_postfix_str(f"return {metrics['return_mean']:.2f}")
        self.bar.update(int(metrics["steps"]) - self.bar.n)

    def evaluation(self, steps: int, means: Mapping[str, float]) -> None:
        """Show an evaluation's mean return on each split."""
        for split, mean in means.items():
            self.events.add_scalar(f"evaluation/{split}_return", mean, steps)
        figures = ", ".join(f"{mean:.2f} on {split} levels" for split, mean in means.items())
        self.message(f"{steps:,} steps: return {figures}")

    def message(self, text: str) -> None:
        """Print a line above the progress bar."""
        if not self.bar.disable:
            self.bar.write(text)

    def close(self) -> None:
        """Flush and close everything. What can't be written any more (a full disk) was reported by update."""
        self.bar.close()
        for file in (self.events, self.file):
            with contextlib.suppress(OSError):
                file.close()


class NoLogger:
    """A Logger that writes nothing, for all processes but the first."""

    def update(self, metrics: Mapping[str, float]) -> None:
        """See Logger.update."""

    def evaluation(self, steps: int, means: Mapping[str, float]) -> None:
        """See Logger.evaluation."""

    def message(self, text: str) -> None:
        """See Logger.message."""

    def close(self) -> None:
        """See Logger.close."""


def keep_rows(path: Path, columns: tuple[str, ...], steps: int) -> None:
    """Keep the header and the rows up to `steps` (first column); write the header if there is no file.

    Raises UserError for a file that something else has rewritten.
    """
    rows: list[dict[str, str]] = []
    if path.exists():
        try:
            with open(path, newline="", encoding="utf-8") as file:
                # a row that a kill cut short has too few fields
                rows = [row for row in csv.DictReader(file) if None not in row.values() and int(row["steps"]) <= steps]
        except (KeyError, ValueError):
            raise UserError(
                f"{path} is not as this project wrote it (a spreadsheet's doing?): restore it, or remove it to go on "
                "without its rows."
            ) from None
    with replacing(path) as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)


def _short(figure: float) -> str:
    return str(figure) if isinstance(figure, int) else f"{figure:.6g}"
