"""A run's folder while it is trained: what there is to go on from, and that one trainer alone has it."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from ppo_lib.accel.distributed import launcher
from ppo_lib.checkpoint import goes_on, load_checkpoint
from ppo_lib.config import PPOConfig, UserError
from ppo_lib.files import lock, replacing, write_error
from ppo_lib.logger import Logger, keep_rows
from ppo_lib.runs import EVALUATION_COLUMNS, fixed_changes


class RunFolder:
    """The folder of a run with these settings.

    resume: it goes on from what is there, else there must be no run; processes: that train together.
    """

    def __init__(self, run_dir: Path, config: PPOConfig, resume: bool, processes: int = 1) -> None:
        self.run_dir, self.config, self.resume, self.processes = run_dir, config, resume, processes
        self._lock: TextIO | None = None

    def find_checkpoint(self) -> dict[str, object] | None:
        """The checkpoint to go on from, or None for a run that begins.

        Raises UserError if it doesn't fit the config or the number of processes, or a run is in the way.
        """
        if not self.resume:
            self._refuse_existing()
            return None
        if not goes_on(self.run_dir):
            return None
        checkpoint = load_checkpoint(self.run_dir)
        if changes := fixed_changes(PPOConfig.from_dict(checkpoint["config"]), self.config):
            raise UserError(
                f"The run {self.run_dir} was started with another config ({changes}); resume it without these "
                "changes, or start a new run with another --run name."
            )
        processes = 1 + len(checkpoint.get("others", ()))
        if processes != self.processes:
            raise UserError(
                f"The run {self.run_dir} was trained by {processes} process{'es' * (processes > 1)}, not "
                f"{self.processes}; go on with {launcher(processes)} train."
            )
        if self.config.last_step < checkpoint["steps"]:
            raise UserError(
                f"The run {self.run_dir} has trained for {checkpoint['steps']:,} steps already, more than the "
                f"{self.config.last_step:,} asked for: give more --total-steps, or leave them out."
            )
        return checkpoint

    def claim(self, steps: int, progress: bool) -> Logger:
        """Make the folder, keep others out, and open the logs of a run that goes on from `steps`.

        progress: see Logger. Raises UserError if another process trains the run or the folder can't be written.
        """
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self._lock = self._lock_out_others()
            if not self.resume:
                self._refuse_existing()  # another process may have been faster
            with replacing(self.run_dir / "config.json") as file:
                file.write(self.config.to_json())
            keep_rows(self.run_dir / "evaluation.csv", EVALUATION_COLUMNS, steps)
            return Logger(self.run_dir, self.config.last_step, steps, progress)
        except OSError as error:
            raise write_error(error, self.run_dir) from None

    def release(self) -> None:
        """Let others train the run."""
        if self._lock is not None:
            self._lock.close()

    def _refuse_existing(self) -> None:
        if (self.run_dir / "config.json").exists():
            raise UserError(f"The run {self.run_dir} exists; go on with --resume, or choose another name with --run.")

    def _lock_out_others(self) -> TextIO:
        """Until release() or this process's end."""
        file = open(self.run_dir / ".train.lock", "w")  # noqa: SIM115 (closed by release)
        if not lock(file):
            raise UserError(
                f"Another process is training {self.run_dir}: stop it first, or choose another name with --run."
            )
        return file
