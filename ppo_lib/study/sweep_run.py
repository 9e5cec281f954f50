"""One run of a sweep: its state on disk, and the process that brings it to its end.

- The folder is the only memory: new, started, trained to some step, complete. So any kill can be followed by the same
  command, and a retry on another machine goes on where the first try stopped.
- The process (`python -m ppo_lib.study.sweep_run`) is the ordinary train command behind a lock. Should the
  sweep die, the kernel tells it to save and stop (Linux); a next sweep waits for the lock until it has.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ppo_lib.config import PPOConfig, UserError, as_flag
from ppo_lib.files import lock
from ppo_lib.runs import SPLITS, fixed_changes, read_config, read_evaluation

LOG = "log.txt"
_PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that a process gets when its parent dies
_TIME_TO_SAVE = 60  # seconds between asking a run to stop and killing it


class RunFailed(Exception):
    """A run that ended before its end; the message is the cause."""


class RunKilled(RunFailed):
    """A run ended by a signal, not by a mistake of its own: trying again may help."""


@dataclass(frozen=True)
class SweepRun:
    """A run to be made: its folder (absolute, so that it means the same in every process) and settings."""

    run_dir: Path
    config: PPOConfig

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.run_dir.name

    @property
    def trained(self) -> int:
        """Steps trained so far, at most last_step: the last whole row of metrics.csv."""
        try:
            lines = (self.run_dir / "metrics.csv").read_text(encoding="utf-8").split("\n")[1:-1]
        except OSError:
            return 0
        steps = lines[-1].partition(",")[0] if lines else ""
        return min(int(steps), self.config.last_step) if steps.isdecimal() else 0

    @property
    def policy_steps(self) -> int:
        """Steps that policy.pt was trained for; 0 without one that can be read."""
        from ppo_lib.checkpoint import POLICY, CheckpointError, load_policy  # torch: only for runs that have a policy

        if not (self.run_dir / POLICY).is_file():
            return 0
        try:
            return load_policy(self.run_dir)[2]
        except CheckpointError:
            return 0

    @property
    def evaluated(self) -> bool:
        """Whether the evaluation at the last step is on disk, or none is wanted."""
        if self.config.eval_interval < 0:
            return True
        if not (self.run_dir / "evaluation.csv").is_file():
            return False
        played = read_evaluation(self.run_dir)
        return all(len(played.select(split, self.config.last_step)) >= self.config.eval_episodes for split in SPLITS)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do: evaluated at the last step, and that policy kept.

        Where neither policy nor checkpoint was kept (git may hold the CSVs alone), an evaluation is enough.
        """
        end = self.config.last_step
        if not self.evaluated:
            return False
        steps = self.policy_steps
        if steps or self.config.eval_interval < 0 or self.trained < end:
            return steps == end
        from ppo_lib.checkpoint import has_checkpoint  # torch: only for runs that have got this far

        return not has_checkpoint(self.run_dir)

    def check(self) -> None:
        """Raise UserError if the folder holds what this run can't go on from: nothing may be overwritten."""
        if not (self.run_dir / "config.json").is_file():
            return
        if changes := fixed_changes(read_config(self.run_dir), self.config):
            raise UserError(
                f"The run {self.run_dir} was made with another config ({changes}); give the sweep another name with "
                "--sweep, or remove that run."
            )
        from ppo_lib.checkpoint import goes_on

        steps, end = self.policy_steps, self.config.last_step
        if steps > end:
            raise UserError(
                f"The run {self.run_dir} has trained for {steps:,} steps already, more than the {end:,} asked for; "
                "give the sweep another name with --sweep, or more --total-steps."
            )
        if steps != end and not self.complete:
            goes_on(self.run_dir)

    def arguments(self) -> list[str] | None:
        """The command that goes on with the run (what follows `python -m ppo_lib`), or None if it is complete."""
        if self.complete:
            return None
        where = [self.name, "--results", str(self.run_dir.parent)]
        end = self.config.last_step
        if self.policy_steps == end:  # trained, with fewer evaluation episodes than are wanted now
            wanted = ["--episodes", str(self.config.eval_episodes), "--seed", str(end)]
            return ["evaluate", *where, *wanted, "--device", self.config.device]
        flags = [word for field in self.config.to_dict().items() for word in as_flag(*field).split()]
        begun = (self.run_dir / "config.json").is_file()
        return ["train", "--run", *where, *(["--resume"] if begun else []), *flags]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Wait until no other process works in the folder. The lock ends with its process, however that ends."""
        with open(self.run_dir / ".lock", "w") as file:
            if not lock(file):
                print("Waiting: another process is at work in this folder.", flush=True)
                lock(file, wait=True)
            yield


def start(run: SweepRun, gpu: str | None = None) -> subprocess.Popen[bytes]:
    """Start a run's process; its output is added to log.txt. gpu: the only one it sees (None: as this process)."""
    run.run_dir.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "30"}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    command = [
        sys.executable,
        "-m",
        "ppo_lib.study.sweep_run",
        str(os.getpid()),
        str(run.run_dir),
        run.config.to_json(),
    ]
    with open(run.run_dir / LOG, "ab") as log:
        # a session of its own: Ctrl-C reaches the sweep alone, which passes it on once
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log,
                                stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip


def finish(run: SweepRun, process: subprocess.Popen[bytes]) -> None:
    """Wait for a run's process. Raises RunKilled or RunFailed with the cause unless the run is complete."""
    try:
        code = process.wait()
    except BaseException:
        stop(process)
        raise
    if code in (130, -signal.SIGTERM):
        raise RunKilled("it was told to stop")
    if code < 0:
        hint = " (often: the machine is out of memory)" if code == -signal.SIGKILL else ""
        raise RunKilled(f"killed by {signal.Signals(-code).name}{hint}")
    if code > 0:
        raise RunFailed(_cause(run))
    if not run.complete:
        raise RunFailed("it ended without its last evaluation")


def stop(*processes: subprocess.Popen[bytes]) -> None:
    """Ask runs to save and stop, once (a second signal would cut the saving short), and wait until they have."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(_TIME_TO_SAVE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_on_ray(run: SweepRun) -> None:
    """A Ray task: start the run where Ray has placed the task and wait for its end. Raises as finish."""
    finish(run, start(run))


def main(parent: str, run_dir: str, config: str) -> int:
    """The process of one run: bring it to its end. Returns the exit code of the train command."""
    _stop_with_parent(int(parent))
    run = SweepRun(Path(run_dir), PPOConfig.from_json(config))
    with run.lock():
        arguments = run.arguments()
        if arguments is None:
            return 0
        print(f"python -m ppo_lib {shlex.join(arguments)}", flush=True)
        from ppo_lib.__main__ import main as command_line

        return command_line(arguments)


def _stop_with_parent(parent: int) -> None:
    """Get SIGTERM (which saves the run) when the sweep's process dies. Linux only; elsewhere the run just goes on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:
        sys.exit("The sweep is gone.")


def _cause(run: SweepRun) -> str:
    """The last thing that the run's process said, without its progress bar."""
    with open(run.run_dir / LOG, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in re.split(r"[\r\n]", file.read()) if line.strip()]
    said = [line for line in lines if not re.search(r"\d+%\|", line)]
    return said[-1].removeprefix("error: ")[:300] if said else "it said nothing"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
