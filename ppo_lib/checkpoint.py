"""A run's folder on disk: atomic saves, safe loads, who may write.

- A save is atomic: a crash at any moment leaves the last or the previous checkpoint intact. Stop signals wait for it.
- Files load with `weights_only=True` (tensors, numbers, strings; never code), after their checksums are verified.
- `policy.pt` holds weights rounded to float16 (a relative change of at most 2^-11), so that it stays under 2.5 MB.
"""

from __future__ import annotations

import errno
import io
import os
import shlex
import signal
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, NoReturn

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from ppo_lib.config import PPOConfig, UserError
from ppo_lib.policy import make_policy
from ppo_lib.runs import fixed_changes, load_run, read_config

FORMAT = 1  # raise when an older reader would misread the file
CHECKPOINT, PREVIOUS, POLICY = "checkpoint.pt", "checkpoint.previous.pt", "policy.pt"
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # Ctrl-C, kill, a lost terminal, SLURM's warning


class CheckpointError(UserError):
    """A file that can't be loaded, and what to do about it."""


@contextmanager
def atomic_write(path: Path, mode: str = "w", keep: Path | None = None) -> Iterator[IO]:
    """A file to write that replaces `path`, synced to disk, when the block ends; an error leaves the old file.

    mode: "w" (UTF-8, line ends as written) or "wb"; keep: where the old file moves, if it is to be kept.
    """
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, mode, **({"encoding": "utf-8", "newline": ""} if mode == "w" else {})) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # there after an error alone
            temporary.unlink()


def write_error(error: OSError, path: Path) -> UserError:
    """One sentence about a failed write: its cause, and a remedy where the cause has one."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"The disk is full: {path} could not be written. Free some space; what was saved is kept.")
    closed = isinstance(error, (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError))
    remedy = "; choose another folder with --results" if closed or error.errno == errno.EROFS else ""
    return UserError(f"{path} could not be written ({error.strerror or error}){remedy}.")


def interruptible(stop: Callable[[], None] | None = None) -> AbstractContextManager[None]:
    """Treat every stop signal in a with block like Ctrl-C: raise KeyboardInterrupt. With `stop`, call that instead.

    Ignored signals (nohup) stay ignored. Only the main thread gets signals; in another one this does nothing.
    """
    return _handling(signal.default_int_handler if stop is None else lambda *_: stop())


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let stop signals wait until the block has ended: for saving."""
    arrived: list[int] = []
    with _handling(lambda number, _: arrived.append(number)):
        yield
    if arrived:
        signal.raise_signal(arrived[0])


@contextmanager
def _handling(handler: Callable[..., object]) -> Iterator[None]:
    in_main = threading.current_thread() is threading.main_thread()
    with ExitStack() as restore:
        for number in (getattr(signal, name) for name in STOP_SIGNALS if in_main and hasattr(signal, name)):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                restore.callback(signal.signal, number, signal.signal(number, handler))
        yield


def save_checkpoint(run_dir: Path, state: dict[str, object]) -> None:
    """Write run_dir/checkpoint.pt; the one before it becomes checkpoint.previous.pt. OSError if it fails."""
    _write(run_dir / CHECKPOINT, "checkpoint", state, keep=run_dir / PREVIOUS)


def has_checkpoint(run_dir: Path) -> bool:
    """Whether there is a checkpoint to resume from."""
    return any((run_dir / name).exists() for name in (CHECKPOINT, PREVIOUS))


def can_resume(run_dir: Path) -> bool:
    """Whether there is a checkpoint to resume from; False for no run yet, and one stopped before its first checkpoint.

    Raises UserError for a run that was further and has lost its checkpoint: it must not start again.
    """
    begun = (run_dir / "config.json").is_file()
    if not begun or has_checkpoint(run_dir):
        return begun
    run = load_run(run_dir)
    saved = min(run.config.checkpoint_interval, run.config.last_step) + run.config.batch_size  # at the latest
    if (run_dir / POLICY).exists() or len(run.evaluation) or run.steps >= saved:
        remedy = "remove the folder to train it again, or choose another name"
        raise UserError(f"The run {run_dir} has no checkpoint to resume from (git keeps none): {remedy}.")
    return False


def load_checkpoint(run_dir: Path) -> dict[str, object]:
    """Read run_dir/checkpoint.pt, or the previous one if a kill during a save has left only that.

    Raises CheckpointError, which offers the previous one if that is intact.
    """
    path, previous = run_dir / CHECKPOINT, run_dir / PREVIOUS
    try:
        return _read(path if path.exists() or not previous.exists() else previous, "checkpoint")
    except CheckpointError as error:
        sentence = str(error)
        with suppress(CheckpointError):
            steps, move = _read(previous, "checkpoint")["steps"], shlex.join(["mv", str(previous), str(path)])
            sentence += f" The previous checkpoint, at {steps:,} steps, is intact: resume from it after `{move}`."
        raise CheckpointError(sentence) from None


def save_policy(run_dir: Path, weights: dict[str, Tensor], config: PPOConfig, steps: int) -> None:
    """Write run_dir/policy.pt: a policy's state_dict in float16, config, and the steps it was trained for.
    Raises OSError if it fails."""
    halves = {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}
    halves = {name: w.detach().cpu().contiguous() for name, w in halves.items()}
    _write(run_dir / POLICY, "policy", {"config": config.to_dict(), "steps": steps, "policy": halves})


def load_policy(path: Path | str, policy: nn.Module | None = None) -> tuple[nn.Module, PPOConfig, int]:
    """Read a policy from a run's folder or file -> (policy on the CPU in float32 and eval mode, its config, steps).

    policy: the module that takes the weights (default: make_policy(config)). CheckpointError if they don't fit it.
    """
    content = _read(Path(path, POLICY) if Path(path).is_dir() else Path(path), "policy")
    config = PPOConfig.from_saved(content["config"])
    network = make_policy(config) if policy is None else policy
    try:
        network.load_state_dict(content["policy"])
    except RuntimeError:
        hint = ": if it was trained with another module, use load_policy(path, policy=module)" * (policy is None)
        raise CheckpointError(f"The weights in {path} don't fit {type(network).__name__}{hint}.") from None
    return network.eval(), config, content["steps"]


def _write(path: Path, kind: str, content: dict[str, object], keep: Path | None = None) -> None:
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "kind": kind, **content}, buffer)
    with uninterrupted(), atomic_write(path, "wb", keep) as file:
        file.write(buffer.getbuffer())


def _read(path: Path, kind: str) -> dict[str, object]:
    if not path.exists():
        raise CheckpointError(f"There is no {path.name} in {path.parent}; train this run, or choose another one.")
    data = io.BytesIO(path.read_bytes())
    try:
        with zipfile.ZipFile(data) as archive:
            if archive.testzip() is not None:  # torch.load doesn't look at the checksums
                raise ValueError
        data.seek(0)
        content = torch.load(data, map_location="cpu", weights_only=True)
        found, version = content["kind"], content["format"]
    except Exception:  # damaged bytes raise anything: BadZipFile, IndexError, UnpicklingError, …
        raise CheckpointError(f"{path} is damaged or was not written by this project: it can't be read.") from None
    if found != kind or version > FORMAT:
        raise CheckpointError(f"{path} is a {found} of format {version}, not a {kind} of format {FORMAT} or older.")
    return content


class RunFolder:
    """The folder of a run. resume: continue the run in it, otherwise there must be none; processes: that train it."""

    def __init__(self, run_dir: Path, config: PPOConfig, resume: bool, processes: int = 1) -> None:
        self.run_dir, self.config, self.resume, self.processes = run_dir, config, resume, processes
        # no soft lock as fallback: that of a machine that disappeared would stay for ever
        self.lock = FileLock(self.run_dir / ".train.lock", thread_local=False, fallback_to_soft=False)

    def find_checkpoint(self) -> dict[str, object] | None:
        """The checkpoint to resume from, None for a run that begins. UserError if it does not fit the settings."""
        self._refuse_existing()
        if not self.resume or not can_resume(self.run_dir):
            return None
        checkpoint, wanted = load_checkpoint(self.run_dir), self.config
        saved = type(wanted).from_saved({**checkpoint["config"], "precision": checkpoint["precision"]})
        if wanted.precision == read_config(self.run_dir).precision:  # as chosen when the run moved to other hardware
            saved = saved.replace(precision=wanted.precision)
        if changes := fixed_changes(saved, wanted):
            remedy = "resume it without these changes, or start a new run with another --run name"
            self._refuse(f"was started with another config ({changes}); {remedy}")
        if self.processes != (processes := 1 + len(checkpoint.get("others", ()))):
            how = f"torchrun --nproc_per_node={processes}" if processes > 1 else "python, without torchrun"
            self._refuse(f"was trained by {processes} process(es), not {self.processes}: resume it with {how}")
        if wanted.last_step < (steps := checkpoint["steps"]):
            remedy = f"more than the {wanted.last_step:,} asked for: give more --total-steps, or leave them out"
            self._refuse(f"has trained for {steps:,} steps already, {remedy}")
        return checkpoint

    def claim(self, config: PPOConfig) -> None:
        """Make the folder, keep other trainers out, and write config.json (config: as resolved). Raises UserError."""
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            try:
                self.lock.acquire(timeout=0)
            except Timeout:
                raise UserError(f"Another process or Trainer is training {self.run_dir}: stop it first.") from None
            except (OSError, NotImplementedError):
                pass  # a file system without locks, such as a mounted Drive
            self._refuse_existing()  # another process may have been faster
            with atomic_write(self.run_dir / "config.json") as file:
                file.write(config.to_json())
        except OSError as error:
            raise write_error(error, self.run_dir) from None

    def release(self) -> None:
        """Let others train the run."""
        self.lock.release()

    def _refuse_existing(self) -> None:
        if not self.resume and (self.run_dir / "config.json").exists():
            self._refuse("exists; continue with --resume, or choose another name with --run")

    def _refuse(self, sentence: str) -> NoReturn:
        raise UserError(f"The run {self.run_dir} {sentence}.")
