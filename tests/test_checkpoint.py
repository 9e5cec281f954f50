"""Checkpoints: atomic, previous one kept, safe to load, and clear about what is wrong."""

import contextlib
import errno
import io
import os
import pickle

import pytest
import torch

from ppo_lib import files
from ppo_lib.checkpoint import (
    CHECKPOINT,
    POLICY,
    PREVIOUS,
    CheckpointError,
    has_checkpoint,
    load_checkpoint,
    load_policy,
    save_checkpoint,
    save_policy,
)
from ppo_lib.config import PPOConfig, UserError
from ppo_lib.policy import ActorCritic


@pytest.fixture
def run(tmp_path):
    """A folder with two checkpoints, at 100 and 200 steps."""
    save_checkpoint(tmp_path, {"steps": 100, "x": torch.arange(3)})
    save_checkpoint(tmp_path, {"steps": 200, "x": torch.arange(4), "bytes": b"\x00\xff", "seconds": 1.5})
    return tmp_path


def test_round_trip_and_previous(run):
    state = load_checkpoint(run)
    assert state["steps"] == 200 and state["bytes"] == b"\x00\xff" and torch.equal(state["x"], torch.arange(4))
    os.replace(run / PREVIOUS, run / CHECKPOINT)
    assert load_checkpoint(run)["steps"] == 100
    assert not list(run.glob("*.tmp"))


def ruin(path, how):
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("steps,return\n")
    elif how == "newer":
        torch.save({**torch.load(path, weights_only=True), "format": 99}, path)
    elif how == "foreign":
        torch.save({"weights": torch.zeros(2)}, path)
    elif how == "no dict":
        torch.save([1, 2], path)


@pytest.mark.parametrize("how", ["truncated", "empty", "text", "newer", "foreign", "no dict"])
def test_a_ruined_checkpoint_is_explained_and_the_previous_one_offered(run, how):
    ruin(run / CHECKPOINT, how)
    with pytest.raises(CheckpointError, match=r"100 steps, is whole.*mv .*previous") as caught:
        load_checkpoint(run)
    assert "\n" not in str(caught.value)


def test_a_kill_between_the_renames_of_a_save_leaves_the_previous_one(run):
    (run / CHECKPOINT).unlink()
    assert has_checkpoint(run) and load_checkpoint(run)["steps"] == 100
    (run / PREVIOUS).unlink()
    assert not has_checkpoint(run)
    with pytest.raises(CheckpointError, match=r"no checkpoint\.pt"):
        load_checkpoint(run)


def test_without_a_whole_previous_one_nothing_is_promised(run):
    ruin(run / CHECKPOINT, "truncated")
    ruin(run / PREVIOUS, "empty")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(run)
    assert "mv " not in str(caught.value)


def test_a_policy_is_no_checkpoint(run):
    policy = ActorCritic(recurrent=False)
    save_policy(run, policy.state_dict(), PPOConfig(recurrent=False), 10)
    os.replace(run / POLICY, run / CHECKPOINT)
    (run / PREVIOUS).unlink()
    with pytest.raises(CheckpointError, match="is a policy, not a checkpoint"):
        load_checkpoint(run)


def test_a_file_from_a_stranger_runs_no_code(tmp_path):
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    torch.save({"format": 1, "kind": "checkpoint", "steps": Bomb()}, tmp_path / CHECKPOINT)
    (tmp_path / POLICY).write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError):
        load_policy(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize("recurrent", [False, True])
def test_policy_is_small_and_gives_the_same_values(tmp_path, recurrent):
    policy = ActorCritic(recurrent=recurrent, seed=0)
    config = PPOConfig(recurrent=recurrent)
    path = save_policy(tmp_path, policy.state_dict(), config, 123)
    assert path.stat().st_size < 2.5e6
    for source in (tmp_path, str(path)):
        loaded, saved, steps = load_policy(source)
        assert saved == config and steps == 123
    obs = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    args = (obs, policy.initial_state(4), torch.zeros(4, dtype=torch.bool))
    torch.testing.assert_close(loaded(*args)[1], policy(*args)[1], atol=5e-3, rtol=5e-3)


def test_recurrent_with_feed_forward_policy_is_refused(tmp_path):
    save_policy(tmp_path, ActorCritic(recurrent=False).state_dict(), PPOConfig(recurrent=False), 1)
    with pytest.raises(CheckpointError, match="recurrent=False"):
        load_policy(tmp_path, PPOConfig(recurrent=True))


def test_weights_at_odds_with_their_config_are_explained(tmp_path):
    save_policy(tmp_path, ActorCritic(recurrent=False).state_dict(), PPOConfig(recurrent=True), 1)
    with pytest.raises(CheckpointError, match="don't fit"):
        load_policy(tmp_path)


def test_a_full_disk_keeps_both_checkpoints(run, monkeypatch):
    before = {path.name: path.read_bytes() for path in run.iterdir()}

    class FullDisk(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "open", lambda path, mode, **_: FullDisk(path, "w"), raising=False)
    with pytest.raises(UserError, match="disk is full"):
        save_checkpoint(run, {"steps": 300})
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_crash_at_any_moment_leaves_a_whole_checkpoint(run, monkeypatch):
    """Stop the save at its first, second, … file operation: what is left always loads or offers the previous one."""
    for moment in range(3):
        calls = iter(range(10))
        replace = os.replace

        def crash(*args, moment=moment, calls=calls, replace=replace):
            if next(calls) == moment:
                raise KeyboardInterrupt
            return replace(*args)

        monkeypatch.setattr(files.os, "replace", crash)
        with contextlib.suppress(KeyboardInterrupt):
            save_checkpoint(run, {"steps": 300 + moment})
        monkeypatch.setattr(files.os, "replace", replace)
        try:
            assert load_checkpoint(run)["steps"] >= 200
        except CheckpointError as error:
            assert "is whole" in str(error)
            os.replace(run / PREVIOUS, run / CHECKPOINT)
