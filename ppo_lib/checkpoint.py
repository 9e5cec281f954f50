"""Checkpoints and policies on disk.

- A save is atomic: a crash at any moment leaves the last or the previous checkpoint whole.
- Files load with `weights_only=True`: tensors, numbers and strings, never code.
- `policy.pt` holds weights rounded to float16 (a relative change of at most 2^-11), so that it stays under 2.5 MB.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from ppo_lib.config import PPOConfig, UserError
from ppo_lib.files import replacing, write_error
from ppo_lib.policy import ActorCritic
from ppo_lib.runs import load_run

FORMAT = 1  # raise when an older reader would misread the file
CHECKPOINT, PREVIOUS, POLICY = "checkpoint.pt", "checkpoint.previous.pt", "policy.pt"


class CheckpointError(UserError):
    """A file that can't be loaded, and what to do about it."""


def save_checkpoint(run_dir: Path, state: dict[str, object]) -> Path:
    """Write run_dir/checkpoint.pt; the one before it becomes checkpoint.previous.pt.

    Raises UserError (disk full, folder not writable); then both older files are still there.
    """
    path = run_dir / CHECKPOINT
    return _write(path, {"format": FORMAT, "kind": "checkpoint", **state}, keep=run_dir / PREVIOUS)


def has_checkpoint(run_dir: Path) -> bool:
    """Whether there is something to go on from."""
    return any((run_dir / name).exists() for name in (CHECKPOINT, PREVIOUS))


def goes_on(run_dir: Path) -> bool:
    """Whether there is something to go on from; False for no run yet, and one stopped before its first checkpoint.

    Raises UserError for a run that has got further than that and has lost its checkpoint: it must not begin anew.
    """
    if not (run_dir / "config.json").is_file():
        return False
    if has_checkpoint(run_dir):
        return True
    run = load_run(run_dir)
    first = min(run.config.checkpoint_interval, run.config.last_step) + run.config.batch_size
    kept = (run_dir / POLICY).exists() or run.config.last_step in run.evaluation.checkpoints
    if kept or run.steps >= first:
        raise UserError(
            f"The run {run_dir} has no checkpoint to go on from (git keeps none): remove the folder to train it "
            "again, or choose another name."
        )
    return False


def load_checkpoint(run_dir: Path) -> dict[str, object]:
    """Read run_dir/checkpoint.pt, or the previous one if a kill during a save has left that alone.

    Raises CheckpointError, which offers the previous one if that is whole.
    """
    path, previous = run_dir / CHECKPOINT, run_dir / PREVIOUS
    if previous.exists() and not path.exists():
        return _read(previous, "checkpoint")
    try:
        return _read(path, "checkpoint")
    except CheckpointError as error:
        try:
            steps = _read(previous, "checkpoint")["steps"]
        except CheckpointError:
            raise error from None
        raise CheckpointError(
            f"{error} The previous checkpoint, at {steps:,} steps, is whole: go on from it after "
            f"`mv {previous} {path}`."
        ) from None


def save_policy(run_dir: Path, weights: dict[str, Tensor], config: PPOConfig, steps: int) -> Path:
    """Write run_dir/policy.pt: a policy's state_dict in float16, config, and the steps it was trained for."""
    weights = {name: value.detach().cpu().half().contiguous() for name, value in weights.items()}
    content = {"format": FORMAT, "kind": "policy", "config": config.to_dict(), "steps": steps, "policy": weights}
    return _write(run_dir / POLICY, content)


def load_policy(path: Path | str, config: PPOConfig | None = None) -> tuple[ActorCritic, PPOConfig, int]:
    """Read a policy from a run's folder or file -> (policy on the CPU in float32, its config, steps).

    config: what the caller expects; a recurrent policy where a feed-forward one is expected (or the other way
    round, or another width) raises CheckpointError.
    """
    path = Path(path)
    content = _read(path / POLICY if path.is_dir() else path, "policy")
    saved = PPOConfig.from_dict(content["config"])
    for name in ("recurrent", "width_scale"):
        if config is not None and getattr(config, name) != getattr(saved, name):
            raise CheckpointError(
                f"{path} was trained with {name}={getattr(saved, name)}, but {name}={getattr(config, name)} is asked "
                f"for; use the same setting or another run."
            )
    policy = ActorCritic(recurrent=saved.recurrent, width_scale=saved.width_scale)
    try:
        policy.load_state_dict(content["policy"])
    except RuntimeError:
        raise CheckpointError(f"The weights in {path} don't fit its own config: the file was changed.") from None
    return policy.eval(), saved, content["steps"]


def _write(path: Path, content: dict[str, object], keep: Path | None = None) -> Path:
    """Serialise in memory, then write."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        with replacing(path, "wb", keep) as file:
            file.write(buffer.getbuffer())
    except OSError as error:
        raise write_error(error, path) from None
    return path


def _read(path: Path, kind: str) -> dict[str, object]:
    if not path.exists():
        raise CheckpointError(
            f"There is no {path.name} in {path.parent}; train this run, or start one of another name."
        )
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty: it was cut off while being copied or written.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever bytes make torch's unpickler stumble over: IndexError, UnpicklingError, …
        raise CheckpointError(f"{path} is damaged or is no file of this project: it can't be read.") from None
    if not isinstance(content, dict) or content.get("kind") not in ("checkpoint", "policy"):
        raise CheckpointError(f"{path} is no file of this project.")
    if content["kind"] != kind:
        raise CheckpointError(f"{path} is a {content['kind']}, not a {kind}.")
    if content["format"] > FORMAT:
        raise CheckpointError(
            f"{path} has format {content['format']}, newer than this version of ppo_lib reads ({FORMAT}): update it."
        )
    return content
