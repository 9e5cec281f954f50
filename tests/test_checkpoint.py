"""A run's folder on disk: atomic saves, damage noticed, nothing executed, one trainer at a time, signals that wait."""

import contextlib
import errno
import io
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import _unix
from torch import nn

from ppo_lib import checkpoint
from ppo_lib.checkpoint import (
    CHECKPOINT,
    POLICY,
    PREVIOUS,
    CheckpointError,
    RunFolder,
    atomic_write,
    can_resume,
    has_checkpoint,
    interruptible,
    load_checkpoint,
    load_policy,
    save_checkpoint,
    save_policy,
    uninterrupted,
    write_error,
)
from ppo_lib.config import PPOConfig, UserError
from ppo_lib.policy import ActorCritic

ROOT = Path(__file__).resolve().parent.parent


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
    with pytest.raises(CheckpointError, match=r"100 steps, is intact.*mv .*previous") as caught:
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
    with pytest.raises(CheckpointError, match="is a policy of format 1, not a checkpoint"):
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
    save_policy(tmp_path, policy.state_dict(), config, 123)
    path = tmp_path / POLICY
    assert path.stat().st_size < 2.5e6
    for source in (tmp_path, str(path)):
        loaded, saved, steps = load_policy(source)
        assert saved == config and steps == 123
    obs = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    args = (obs, policy.initial_state(4), torch.zeros(4, dtype=torch.bool))
    torch.testing.assert_close(loaded(*args)[1], policy(*args)[1], atol=5e-3, rtol=5e-3)


def test_weights_of_another_module_ask_for_that_module(tmp_path):
    save_policy(tmp_path, ActorCritic(recurrent=False).state_dict(), PPOConfig(recurrent=True), 1)
    with pytest.raises(CheckpointError, match=r"don't fit ActorCritic: .*load_policy\(path, policy=module\)"):
        load_policy(tmp_path)


class Counted(nn.Linear):
    """A module of another kind, with a buffer of whole numbers."""

    def __init__(self):
        super().__init__(3, 2)
        self.register_buffer("count", torch.tensor(0))


def test_another_module_loads_its_own_weights(tmp_path):
    module = Counted()
    module.count += 70_001  # float16 would make it infinite
    save_policy(tmp_path, module.state_dict(), PPOConfig(), 5)
    loaded, _, steps = load_policy(tmp_path, policy=Counted())
    assert steps == 5 and loaded.count == 70_001 and not loaded.training
    torch.testing.assert_close(loaded.weight, module.weight, atol=1e-3, rtol=1e-3)
    with pytest.raises(CheckpointError, match="don't fit Linear"):
        load_policy(tmp_path, policy=nn.Linear(3, 2))


def test_policies_and_checkpoints_of_earlier_versions_load():
    paths = sorted((ROOT / "results").glob("levels/*/policy.pt"))
    assert len(paths) > 3
    for path in paths:
        policy, config, steps = load_policy(path)
        assert steps == config.last_step and not policy.training


@pytest.mark.parametrize("name", [CHECKPOINT, POLICY])
def test_flipped_bits_are_noticed(run, name):
    """Wherever they are in the file: what loads is what was saved."""
    config = PPOConfig(recurrent=False)
    save_policy(run, ActorCritic(recurrent=False, seed=1).state_dict(), config, 10)
    save_checkpoint(run, {"steps": 300, "x": torch.randn(50_000)})
    load = {CHECKPOINT: load_checkpoint, POLICY: lambda folder: load_policy(folder)[0].state_dict()}[name]
    path, saved, drawn, noticed = run / name, load(run), random.Random(0), 0
    good = path.read_bytes()
    for _ in range(40):
        data = bytearray(good)
        for _ in range(drawn.choice([1, 8, 64])):
            data[drawn.randrange(len(data))] ^= 1 << drawn.randrange(8)
        path.write_bytes(data)
        try:
            loaded = load(run)
        except CheckpointError:
            noticed += 1
        else:  # in the padding between two tensors
            assert loaded.keys() == saved.keys()
            assert all(
                torch.equal(torch.as_tensor(a), torch.as_tensor(saved[key]))
                for key, a in loaded.items()
                if not isinstance(a, str)
            )
    assert noticed > 35


def test_a_full_disk_keeps_both_checkpoints(run, monkeypatch):
    before = {path.name: path.read_bytes() for path in run.iterdir()}

    class FullDisk(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "open", lambda path, mode, **_: FullDisk(path, "w"), raising=False)
    with pytest.raises(OSError, match="No space left"):
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

        monkeypatch.setattr(checkpoint.os, "replace", crash)
        with contextlib.suppress(KeyboardInterrupt):
            save_checkpoint(run, {"steps": 300 + moment})
        monkeypatch.setattr(checkpoint.os, "replace", replace)
        try:
            assert load_checkpoint(run)["steps"] >= 200
        except CheckpointError as error:
            assert "is intact" in str(error)
            os.replace(run / PREVIOUS, run / CHECKPOINT)


# --- any file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_a_file_is_replaced_when_it_is_complete(tmp_path, mode):
    path, text = tmp_path / "a.csv", {"w": "é\r\n", "wb": "é\r\n".encode()}[mode]
    path.write_text("old")
    with atomic_write(path, mode, keep=tmp_path / "b.csv") as file:
        file.write(text)
        assert path.read_text() == "old"
    assert path.read_bytes() == "é\r\n".encode() and (tmp_path / "b.csv").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ZeroDivisionError), atomic_write(path, mode) as file:
        file.write(text)
        raise ZeroDivisionError
    assert path.read_bytes() == "é\r\n".encode() and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "Read-only file system.*another folder with --results"),
        (errno.ENOTCONN, r"not connected\)\.$"),  # a Drive that has dropped: another folder would not help
        (errno.EPIPE, r"Broken pipe\)\.$"),
    ],
)
def test_a_failed_write_is_told_by_its_cause(tmp_path, number, words):
    with pytest.raises(UserError, match=words):
        raise write_error(OSError(number, os.strerror(number)), tmp_path)


# --- who may write ---------------------------------------------------------------------------------------------------


def begun(tmp_path, config, **state):
    """A run's folder with a checkpoint at 64 steps."""
    folder = RunFolder(tmp_path / "run", config, resume=False)
    folder.claim(config)
    state = {"config": config.to_dict(), "precision": config.precision, "steps": 64, **state}
    save_checkpoint(folder.run_dir, state)
    folder.release()
    return folder.run_dir


def test_one_trainer_at_a_time(tiny, tmp_path):
    """Also within one process, as two cells of a notebook; the end of a process frees the folder."""
    run_dir = begun(tmp_path, tiny())
    folders = [RunFolder(run_dir, tiny(), resume=True) for _ in range(2)]
    folders[0].claim(tiny())
    with pytest.raises(UserError, match="Another process or Trainer is training"):
        folders[1].claim(tiny())
    folders[0].release()
    hold = (
        "import sys; from pathlib import Path; from ppo_lib.checkpoint import RunFolder; "
        "from ppo_lib.config import PPOConfig\n"
        "folder = RunFolder(Path(sys.argv[1]), PPOConfig(), True); folder.claim(PPOConfig())\n"
        "print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", hold, str(run_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="Another process"):
            folders[1].claim(tiny())
        other.kill()
    folders[1].claim(tiny())
    folders[1].release()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_keeps_nobody_out(tiny, tmp_path, monkeypatch, number):
    def missing(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(_unix.fcntl, "flock", missing)
    for resume in (False, True):
        folder = RunFolder(tmp_path / "run", tiny(), resume=resume)
        folder.claim(tiny())
        folder.release()


def test_a_run_is_neither_overwritten_nor_mixed(tiny, tmp_path):
    run_dir = begun(tmp_path, tiny(), others=())
    for config, resume, processes, words in (
        (tiny(), False, 1, "exists; continue with --resume"),
        (tiny(gamma=0.9), True, 1, "gamma 0.999 -> 0.9"),
        (tiny(precision="bf16"), True, 1, "precision float32 -> bf16"),
        (tiny(), True, 2, "trained by 1 process.*without torchrun"),
    ):
        with pytest.raises(UserError, match=words):
            RunFolder(run_dir, config, resume, processes).find_checkpoint()
    with pytest.raises(UserError, match="exists"):
        RunFolder(run_dir, tiny(), resume=False).claim(tiny())
    for config in (tiny(), tiny(precision="auto"), tiny(device="auto", total_steps=256)):
        assert RunFolder(run_dir, config, resume=True).find_checkpoint()["steps"] == 64
    save_checkpoint(run_dir, {"config": tiny().to_dict(), "precision": "float32", "steps": 192})
    with pytest.raises(UserError, match="192 steps already, more than the 128"):
        RunFolder(run_dir, tiny(), resume=True).find_checkpoint()


def test_a_run_that_moved_to_other_hardware_resumes_before_its_next_save(tiny, tmp_path):
    """Begun in fp16 on a GPU, resumed in float32 on a CPU, and killed at once."""
    run_dir = begun(tmp_path, tiny(), precision="fp16")
    assert RunFolder(run_dir, tiny(), resume=True).find_checkpoint()["precision"] == "fp16"
    with pytest.raises(UserError, match="precision fp16 -> bf16"):
        RunFolder(run_dir, tiny(precision="bf16"), resume=True).find_checkpoint()


def test_a_run_that_lost_its_checkpoint_does_not_start_again(tiny, tmp_path):
    run_dir = begun(tmp_path, tiny())
    assert can_resume(run_dir) and not can_resume(tmp_path)
    (run_dir / CHECKPOINT).unlink()
    assert not can_resume(run_dir)  # stopped before its first checkpoint
    (run_dir / POLICY).touch()
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        can_resume(run_dir)


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def kind(request):
    """A signal that stops a training, with Python's own handler also where the tests run under nohup."""
    own = signal.default_int_handler if request.param == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(request.param, own)
    yield request.param
    signal.signal(request.param, before)


def test_every_stop_signal_is_a_keyboard_interrupt(kind):
    before = signal.getsignal(kind)
    with pytest.raises(KeyboardInterrupt), interruptible():
        os.kill(os.getpid(), kind)
        time.sleep(5)
    called = []
    with interruptible(lambda: called.append(kind)):
        os.kill(os.getpid(), kind)
    assert called == [kind] and signal.getsignal(kind) == before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_wait_for_the_end_of_a_save(run, monkeypatch, kind):
    """Ctrl-C again while the checkpoint is being written: it is on disk all the same."""
    sync = os.fsync

    def interrupted_sync(file):
        for _ in range(2):
            os.kill(os.getpid(), kind)
        time.sleep(0.01)
        sync(file)

    monkeypatch.setattr(checkpoint.os, "fsync", interrupted_sync)
    with pytest.raises(KeyboardInterrupt), interruptible(), uninterrupted():
        save_checkpoint(run, {"steps": 300})
        save_checkpoint(run, {"steps": 400})
    assert load_checkpoint(run)["steps"] == 400
