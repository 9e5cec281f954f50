"""The trainer on the real game: overlap, exact resume, stopping, and what a run leaves on disk."""

import copy
import csv
import errno
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ppo_lib import checkpoint
from ppo_lib.checkpoint import RunFolder, load_checkpoint, load_policy
from ppo_lib.config import PPOConfig, UserError, field_types
from ppo_lib.ppo import DivergedError
from ppo_lib.runs import load_run
from ppo_lib.train import Trainer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def trainer(tmp_path):
    """Make trainers that are closed after the test."""
    made = []

    def make(config, name="run", **options):
        made.append(Trainer(config, tmp_path / name, progress=False, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])


def metrics(folder):
    """Rows of metrics.csv without the clock's columns."""
    with open(folder / "metrics.csv") as file:
        return [{k: v for k, v in row.items() if "second" not in k} for row in csv.DictReader(file)]


@pytest.mark.parametrize(("recurrent", "threads"), [(False, 1), (True, 2)])
def test_resume_is_bit_for_bit(tiny, trainer, tmp_path, monkeypatch, recurrent, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    config = tiny(recurrent=recurrent, total_steps=256, anneal_lr=True)
    whole = trainer(config, "whole")
    assert whole.train()

    first = trainer(config, "halves")
    seen = []

    def stop_after_two(row):
        seen.append(row)
        if len(seen) == 2:
            first.stop()

    assert not first.train(stop_after_two)
    assert first.steps == 128
    first.close()
    second = trainer(config, "halves", resume=True)
    assert second.steps == 128 and second.train()

    assert torch.equal(weights(second), weights(whole))
    assert metrics(tmp_path / "halves") == metrics(tmp_path / "whole")
    states = [load_checkpoint(tmp_path / name) for name in ("halves", "whole")]
    for state in states:
        state["seconds"] = 0
    assert_same(*states)


def assert_same(a, b):
    """Deep equality, tensors bit by bit."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def test_a_stop_inside_an_update_repeats_that_update(tiny, trainer, tmp_path):
    config = tiny(recurrent=True, total_steps=192)
    whole = trainer(config, "whole")
    whole.train()

    broken = trainer(config, "broken")
    steps = iter(range(1000))
    act = broken.collector._act

    def act_until_the_stop(storage, group, t):
        act(storage, group, t)
        if next(steps) == 45:  # in the middle of the second rollout
            broken.stop()

    broken.collector._act = act_until_the_stop
    assert not broken.train()
    broken.close()
    again = trainer(config, "broken", resume=True)
    assert again.steps == 64
    again.train()
    assert torch.equal(weights(again), weights(whole))


@pytest.mark.parametrize("recurrent", [False, True])
def test_overlapped_stepping_changes_nothing(tiny, trainer, recurrent):
    config = tiny(recurrent=recurrent)
    results = []
    for overlap in (True, False):
        one = trainer(config, f"overlap-{overlap}", overlap=overlap)
        rows = []
        one.train(lambda row, rows=rows: rows.append({k: v for k, v in row.items() if "second" not in k}))
        results.append((weights(one), rows, one.storage.obs.clone(), one.storage.reward.clone()))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else str(a) == str(b)


@pytest.mark.parametrize("recurrent", [False, True])
def test_recomputed_log_probabilities_equal_the_stored_ones_on_the_game(tiny, trainer, recurrent):
    one = trainer(tiny(recurrent=recurrent, num_steps=64, total_steps=256))
    one.train()
    one.collector.collect(one.storage)  # a fresh rollout of the trained policy, no update after it
    storage = one.storage
    assert storage.done.any()
    batch = storage.batch(torch.arange(storage.num_units))
    with torch.no_grad():
        logits, value, _ = one.policy(batch.obs, batch.state, batch.episode_start)
    log_prob = logits.log_softmax(-1).gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(log_prob, batch.log_prob, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(value, batch.value, atol=1e-4, rtol=1e-4)


def test_bootstrap_value_leaves_the_state_alone(tiny, trainer):
    one = trainer(tiny(recurrent=True))
    one.collector.collect(one.storage)
    groups = one.collector.groups
    before = [group.state.clone() for group in groups]
    one.ppo.value(torch.from_numpy(groups[0].obs), groups[0].state, groups[0].episode_start)
    assert all(torch.equal(a, group.state) for a, group in zip(before, groups, strict=True))
    last = one.storage.state[-1, groups[0].envs]
    assert not torch.equal(last, before[0])  # the state did advance with the last action


def test_rewards_in_storage_are_normalised_and_returns_in_metrics_are_raw(tiny, trainer):
    one = trainer(tiny(num_steps=128, num_minibatches=2, total_steps=1024, recurrent=False))
    rows = []
    one.train(rows.append)
    assert rows[-1]["episodes"] == one.collector.episodes > 0
    assert rows[-1]["return_mean"] == pytest.approx(sum(r for r, _ in one.collector.recent) / len(one.collector.recent))
    assert all(float(r).is_integer() for r, _ in one.collector.recent)
    assert not torch.equal(one.storage.reward, one.storage.reward.round())


def test_what_a_run_leaves_on_disk(tiny, trainer, tmp_path):
    config = tiny(total_steps=192, eval_interval=128, eval_episodes=4)
    one = trainer(config)
    one.train()
    folder = tmp_path / "run"
    assert {"config.json", "metrics.csv", "evaluation.csv", "checkpoint.pt", "policy.pt"} <= {
        path.name for path in folder.iterdir()
    }
    assert any(path.name.startswith("events.out.tfevents") for path in folder.iterdir())
    rows = metrics(folder)
    assert [int(row["steps"]) for row in rows] == [64, 128, 192]
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    assert header == (
        "steps,seconds,episodes,return_mean,length_mean,policy_loss,value_loss,entropy,approx_kl,clip_fraction,"
        "explained_variance,grad_norm,learning_rate,clip_range,entropy_coef,steps_per_second"
    )
    with open(folder / "evaluation.csv") as file:
        episodes = list(csv.DictReader(file))
    assert [(row["steps"], row["split"]) for row in episodes] == [
        (steps, split) for steps in ("128", "192") for split in ("train", "unseen") for _ in range(4)
    ]
    policy, saved, steps = load_policy(folder)
    assert saved == one.config and steps == 192
    for mine, theirs in zip(policy.parameters(), one.policy.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)


def test_evaluation_leaves_training_untouched(tiny, trainer):
    plain, measured = trainer(tiny(), "plain"), trainer(tiny(eval_interval=64), "measured")
    plain.train()
    measured.train()
    assert torch.equal(weights(plain), weights(measured))


def test_a_run_that_exists_is_not_overwritten(tiny, trainer, tmp_path):
    trainer(tiny()).train()
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(UserError, match=r"exists.*--resume"):
        trainer(tiny())
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_two_processes_do_not_train_one_run(tiny, trainer, tmp_path):
    first = trainer(tiny())
    first.train()
    first.close()
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    hold = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); input()"
    command = [sys.executable, "-c", hold, str(tmp_path / "run" / ".train.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="is training"):
            trainer(tiny(total_steps=192), resume=True)
        other.kill()  # its lock ends with it
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before
    assert trainer(tiny(total_steps=192), resume=True).train()


def test_two_trainers_in_one_process_do_not_train_one_run(tiny, trainer, tmp_path):
    one = trainer(tiny(total_steps=256))
    one.train(lambda row: one.stop())
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    with pytest.raises(UserError, match="is training"):
        trainer(tiny(total_steps=256), resume=True)
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before
    one.close()
    assert trainer(tiny(total_steps=256), resume=True).train()


def test_a_run_that_another_process_has_just_begun_is_left_alone(tiny, trainer, tmp_path, monkeypatch):
    """Both looked before either wrote."""
    look = RunFolder.find_checkpoint

    def look_and_be_overtaken(self):
        found = look(self)
        self.run_dir.mkdir()
        (self.run_dir / "config.json").write_text("the other's")
        return found

    monkeypatch.setattr(RunFolder, "find_checkpoint", look_and_be_overtaken)
    with pytest.raises(UserError, match="exists"):
        trainer(tiny())
    assert (tmp_path / "run" / "config.json").read_text() == "the other's"


def test_a_kill_between_checkpoint_and_policy_is_repaired(tiny, trainer, tmp_path):
    first = trainer(tiny())
    first.train()
    first.close()
    (tmp_path / "run" / "policy.pt").unlink()
    assert trainer(tiny(), resume=True).train()
    assert load_policy(tmp_path / "run")[2] == 128


def test_a_run_is_not_cut_short(tiny, trainer):
    trainer(tiny()).train()
    with pytest.raises(UserError, match="128 steps already, more than the 64"):
        trainer(tiny(total_steps=64), resume=True)


def test_an_interrupt_before_the_first_update_finds_where_the_run_stands(tiny, trainer):
    assert trainer(tiny()).saved_steps == 0


def test_a_run_killed_before_its_first_checkpoint_starts_again(tiny, trainer, tmp_path):
    trainer(tiny(), "whole").train()
    killed = trainer(tiny(), "killed")
    killed.update()
    killed.close()
    again = trainer(tiny(), "killed", resume=True)
    assert again.steps == 0 and again.train()
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


def test_a_run_without_its_checkpoint_is_kept(tiny, trainer, tmp_path):
    """As committed runs are: their results are there and perhaps their policy, what a resume needs is not."""
    trainer(tiny(total_steps=256)).train()
    for kept in (("policy.pt",), ()):
        for path in (tmp_path / "run").glob("*.pt"):
            if path.name not in kept:
                path.unlink()
        with pytest.raises(UserError, match=r"no checkpoint.*another name"):
            trainer(tiny(total_steps=512), resume=True)
        assert len(metrics(tmp_path / "run")) == 4


def test_an_evaluation_at_the_end_is_kept(tiny, trainer, tmp_path):
    """Of a run that is shorter than the time to its first checkpoint."""
    trainer(tiny(total_steps=64, eval_interval=0)).train()
    before = (tmp_path / "run" / "evaluation.csv").read_bytes()
    for path in (tmp_path / "run").glob("*.pt"):
        path.unlink()
    with pytest.raises(UserError, match=r"no checkpoint"):
        trainer(tiny(total_steps=64, eval_interval=0), resume=True)
    assert (tmp_path / "run" / "evaluation.csv").read_bytes() == before


def test_a_pause_is_no_training_time(tiny, trainer):
    one = trainer(tiny())
    one.pause()
    threading.Timer(3, one.resume).start()
    begin = time.monotonic()
    metrics = one.update()
    elapsed = time.monotonic() - begin
    assert elapsed > 3 and elapsed - metrics["seconds"] > 2  # the pause, less what was done before it was noticed


def test_resume_with_another_config_is_refused(tiny, trainer):
    trainer(tiny()).train()
    with pytest.raises(UserError, match=r"gamma 0.999 -> 0.9"):
        trainer(tiny(gamma=0.9), resume=True)


def test_divergence_keeps_the_last_good_checkpoint_which_resumes(tiny, trainer, tmp_path):
    """A loss made infinite once; after it the trainer stands at its last complete update, too."""
    config = tiny(total_steps=256, checkpoint_interval=128)
    trainer(config, "whole").train()
    one = trainer(config)
    loss = one.ppo.loss

    def infinite(batch):
        value, row = loss(batch)
        return (value * math.inf if one.steps == 192 else value), row

    one.ppo.loss = infinite
    with pytest.raises(DivergedError, match=r"diverged: .*The last checkpoint is kept; start a new run with a lower"):
        one.train()
    assert one.steps == 192 and torch.isfinite(weights(one)).all()
    one.close()
    assert load_checkpoint(tmp_path / "run")["steps"] == 128 == load_policy(tmp_path / "run")[2]
    again = trainer(config, resume=True)
    assert again.train()
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_pause_holds_and_stop_ends_from_another_thread(tiny, trainer):
    one = trainer(tiny(total_steps=1_000_000))
    first_update, outcome = threading.Event(), []
    thread = threading.Thread(target=lambda: outcome.append(one.train(lambda row: first_update.set())))
    thread.start()
    assert first_update.wait(60)
    one.pause()
    assert one.paused
    threading.Event().wait(0.5)
    steps = one.steps
    threading.Event().wait(0.5)
    assert one.steps == steps
    one.stop()
    thread.join(60)
    assert outcome == [False] and not thread.is_alive()


def test_learning_rate_is_annealed(tiny, trainer, tmp_path):
    trainer(tiny(total_steps=256, anneal_lr=True, learning_rate=4e-4)).train()
    rates = [float(row["learning_rate"]) for row in metrics(tmp_path / "run")]
    assert rates == pytest.approx([4e-4, 3e-4, 2e-4, 1e-4])


def test_single_environment(tiny, trainer):
    one = trainer(tiny(num_envs=1, num_steps=32, total_steps=64))
    assert one.train() and len(one.collector.groups) == 1


def test_snapshots_do_not_change_with_training(tiny, trainer):
    one = trainer(tiny())
    snapshot = one.state_dict()
    kept = copy.deepcopy(snapshot)
    one.update()
    assert_same(snapshot, kept)


# --- stopping, and continuing in the same process ------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["rollout", "gradient step", "logging"])
def test_train_continues_after_an_interrupt_as_if_there_had_been_none(tiny, trainer, tmp_path, moment):
    """An interrupt may come while games are being stepped, or between two gradient steps of an update."""
    config = tiny(recurrent=True, total_steps=256)
    whole = trainer(config, "whole")
    whole.train()
    broken = trainer(config, "broken")
    steps = iter(range(1000))

    def interrupt_at(when, function):
        def call(*arguments):
            result = function(*arguments)
            if next(steps) == when:
                raise KeyboardInterrupt
            return result

        return call

    if moment == "rollout":  # after step_async, before step_wait
        broken.collector._act = interrupt_at(45, broken.collector._act)
    elif moment == "gradient step":
        broken.ppo.gradient_step = interrupt_at(5, broken.ppo.gradient_step)
    else:  # a real signal while the row is written
        log = broken.logger.update
        broken.logger.update = lambda row: (log(row), row["steps"] == 64 and signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    assert broken.steps == 64
    assert broken.train()
    assert torch.equal(weights(broken), weights(whole))
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")


def test_train_continues_after_a_stop(tiny, trainer):
    config = tiny(total_steps=192)
    whole, stopped = trainer(config, "whole"), trainer(config, "stopped")
    whole.train()
    assert not stopped.train(lambda row: stopped.stop() if row["steps"] == 64 else None)
    assert stopped.train()
    assert torch.equal(weights(stopped), weights(whole))


def test_a_trainers_state_can_be_loaded_many_times(tiny, trainer):
    one = trainer(tiny())
    one.update()
    state = one.state_dict()
    kept, results = copy.deepcopy(state), []
    for _ in range(3):
        one.load_state_dict(state)
        assert list(one.collector.recent) == [tuple(e) for e in state["recent"]]
        one.update()
        results.append(weights(one))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert_same(state, kept)


def test_an_evaluation_that_a_kill_prevented_is_made_up(tiny, trainer, tmp_path):
    """The checkpoint is saved first: what is trained must not depend on the length of an evaluation."""
    config = tiny(total_steps=192, eval_interval=64, eval_episodes=2)
    trainer(config, "whole").train()
    for killed_at in (128, 192):
        name = f"killed-{killed_at}"
        killed = trainer(config, name)

        def fail(killed=killed, killed_at=killed_at):
            if killed.steps == killed_at:
                raise MemoryError  # stands for a kill: nothing is saved after it
            return Trainer.evaluate(killed)

        killed.evaluate = fail
        with pytest.raises(MemoryError):
            killed.train()
        killed.close()
        assert load_checkpoint(tmp_path / name)["steps"] == killed_at == load_policy(tmp_path / name)[2]
        trainer(config, name, resume=True).train()
        for file in ("evaluation.csv", "metrics.csv"):
            read = metrics(tmp_path / name) if file == "metrics.csv" else (tmp_path / name / file).read_text()
            wanted = metrics(tmp_path / "whole") if file == "metrics.csv" else (tmp_path / "whole" / file).read_text()
            assert read == wanted


# --- kills ------------------------------------------------------------------------------------------------------------

# updates of 16 steps that are all saved, and a game with short episodes
QUICK = dict(
    env_name="dodgeball", num_envs=2, num_steps=8, num_minibatches=1, num_epochs=1, recurrent=True, pooling="average",
    eval_episodes=1, checkpoint_interval=16,
)  # fmt: skip
KILLS = """
import json, os, random, signal, statistics, sys, time
from collections import Counter, defaultdict
from pathlib import Path
import torch
import torch._dynamo  # which the first optimizer imports: once for all processes, as are the games' images below
from ppo_lib.config import PPOConfig
from ppo_lib.envs import make_env
from ppo_lib.train import Trainer

config, folder, drawn = PPOConfig.from_saved_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), random.Random(0)
make_env(config, num_envs=1, num_threads=0).close()
lengths, late = defaultdict(list), Counter()  # of each phase: its seconds, and the kills that came after its end

class Watched(Trainer):
    def phase(self, letter):
        os.write(tell, letter)
        os.read(permit, 1)

for letter, name in {b"u": "update", b"s": "save", b"e": "evaluate"}.items():
    def method(self, letter=letter, inner=getattr(Trainer, name)):
        self.phase(letter)
        return inner(self)
    setattr(Watched, name, method)

def train(name, fatal=None):
    # -> the phases of a process that trains, and its end. A kill comes within the first phase of the kind fatal.
    global tell, permit
    (told, tell), (permit, allow) = os.pipe(), os.pipe()
    if not (child := os.fork()):
        try:
            Watched(config, folder / name, resume=True, progress=False).train()
            os._exit(0)
        finally:
            os._exit(1)
    os.close(tell), os.close(permit)
    seen, begun = [], 0
    while letter := os.read(told, 1).decode():
        if seen:
            lengths[seen[-1]].append(time.monotonic() - begun)
        seen, begun = [*seen, letter], time.monotonic()
        os.write(allow, b"!")
        if letter == fatal:
            time.sleep(drawn.random() * statistics.median(lengths[fatal]) / 2 ** late[fatal])
            os.kill(child, signal.SIGKILL)
            break
    seen += os.read(told, 1).decode()
    os.close(told), os.close(allow)
    late[fatal] += seen[-1] != fatal
    return "".join(seen), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

ends = [train("whole"), *(train("killed", "use"[i % 3]) for i in range(20))]
print(json.dumps([*ends, train("killed")]))
"""


@pytest.mark.slow
def test_a_run_killed_twenty_times_equals_an_uncut_one_bit_for_bit(tiny, tmp_path):
    """SIGKILL at random instants of updates, saves and evaluations."""
    config = tiny(**QUICK, total_steps=352, eval_interval=32, anneal_lr=True)
    (tmp_path / "config.json").write_text(config.to_json())
    command = [sys.executable, "-c", KILLS, str(tmp_path / "config.json"), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    (_, whole), *kills, (_, last) = json.loads(done.stdout)
    assert (whole, last) == (0, 0) and [end for _, end in kills] == [-signal.SIGKILL] * 20, kills
    phases = "".join(seen[-1] for seen, _ in kills)
    assert min(phases.count(phase) for phase in "use") >= 3, phases
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    for name in ("config.json", "evaluation.csv"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()
    states = [load_checkpoint(tmp_path / name) for name in ("killed", "whole")]
    assert_same(*({**state, "seconds": 0} for state in states))


# --- disks that fail --------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(monkeypatch):
    """Lets writes of run files fail: disk.fails(number of the write) -> errno or None. disk.pauses: seconds waited."""
    state, sync = SimpleNamespace(fails=lambda write: None, writes=0, pauses=[]), os.fsync

    def fail():
        state.writes += 1
        if number := state.fails(state.writes):
            raise OSError(number, os.strerror(number))

    def open_row(*arguments, **options):
        fail()
        return open(*arguments, **options)

    monkeypatch.setattr(checkpoint.os, "fsync", lambda file: (fail(), sync(file)))
    monkeypatch.setattr("ppo_lib.logger.open", open_row, raising=False)
    monkeypatch.setattr("ppo_lib.logger.time", SimpleNamespace(sleep=state.pauses.append))
    return state


def contents(folder):
    """What a run leaves, without the clock's columns."""
    return metrics(folder), (folder / "evaluation.csv").read_text(), load_checkpoint(folder)["steps"]


def test_writes_that_fail_now_and_then_change_nothing(tiny, trainer, tmp_path, disk, capsys):
    """As on a mounted drive that drops: checkpoint, policy, metrics and evaluation, each failing at some time."""
    config = tiny(**QUICK, total_steps=64, eval_interval=32)
    trainer(config, "whole").train()
    before = disk.writes
    broken = trainer(config, "broken")
    disk.fails = lambda write: errno.ENOTCONN if (write - before) % 4 < 2 else None
    assert broken.train()
    err = capsys.readouterr().err
    for name in ("checkpoint.pt", "policy.pt", "metrics.csv", "evaluation.csv"):
        assert f"{name} could not be written (Transport endpoint is not connected). Training continues" in err
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    assert load_policy(tmp_path / "broken")[2] == 64


@pytest.mark.parametrize("stopped", [False, True])
def test_a_disk_that_stays_full_is_one_sentence_at_the_end(tiny, trainer, tmp_path, disk, capsys, stopped):
    """The state of the last update stays in memory: with some space, the same trainer writes all of it."""
    config = tiny(**QUICK, total_steps=64, eval_interval=32)
    trainer(config, "whole").train()
    broken = trainer(config, "broken")
    disk.fails = lambda write: errno.ENOSPC if broken.steps > 16 else None
    with pytest.raises(UserError, match=r"disk is full: .* could not be written. Free some space"):
        broken.train(lambda row: broken.stop() if stopped and row["steps"] == 32 else None)
    assert broken.steps == (32 if stopped else 64) and disk.pauses == [1, 2, 4]
    assert load_checkpoint(tmp_path / "broken")["steps"] == 16
    assert capsys.readouterr().err.count("metrics.csv could not be written") == 1
    disk.fails = lambda write: None
    assert broken.train()
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


# --- what a run records --------------------------------------------------------------------------------------------


def test_config_json_says_which_device_and_precision_were_chosen(tiny, trainer, tmp_path):
    one = trainer(tiny(precision="auto", device="auto"))
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["precision"] == one.hardware.precision in ("float32", "bf16", "fp16")
    assert saved["device"] == one.hardware.device.type and set(saved) == set(field_types(PPOConfig))
    one.train()
    one.close()
    again = trainer(tiny(precision="auto", total_steps=192), resume=True)  # auto accepts what the run has
    assert again.config.precision == one.config.precision


# --- extension points ----------------------------------------------------------------------------------------------

METHOD = """
from dataclasses import dataclass

from ppo_lib.config import PPOConfig
from ppo_lib.ppo import PPO


@dataclass(frozen=True)
class Config(PPOConfig):
    logit_coef: float = 0.1  # weight of the penalty


class LogitPenalty(PPO):
    \"\"\"PPO with a penalty on large logits.\"\"\"

    def loss(self, batch):
        loss, metrics = super().loss(batch)
        logits, _, _ = self.policy(batch.obs, batch.state, batch.episode_start)
        penalty = logits.square().mean()
        return loss + self.config.logit_coef * penalty, {**metrics, "logit_penalty": penalty}
"""


@pytest.fixture
def method(tmp_path, monkeypatch):
    """A method in a file outside the package, as a researcher writes it."""
    (tmp_path / "my_method.py").write_text(METHOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_method", raising=False)
    return importlib.import_module("my_method")


def test_a_method_of_ones_own_trains_logs_and_resumes(tiny, trainer, tmp_path, method):
    config = method.Config(**{**tiny(total_steps=256).to_dict(), "logit_coef": 0.5})
    plain, whole = trainer(tiny(total_steps=256), "plain"), trainer(config, "whole", algorithm=method.LogitPenalty)
    plain.train()
    whole.train()
    assert not torch.equal(weights(plain), weights(whole))

    rows = metrics(tmp_path / "whole")
    assert all(float(row["logit_penalty"]) > 0 for row in rows) and list(rows[0]).index("logit_penalty") == 9
    whole.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "whole"))
    events.Reload()
    assert len(events.Scalars("train/logit_penalty")) == 4

    code = (
        "import os, signal, sys; from pathlib import Path; from ppo_lib.train import Trainer; import my_method\n"
        "config = my_method.Config.from_saved_json(Path(sys.argv[1]).read_text())\n"
        "trainer = Trainer(config, sys.argv[2], progress=False, algorithm=my_method.LogitPenalty)\n"
        "trainer.train(lambda row: os.kill(os.getpid(), signal.SIGKILL) if row['steps'] == 192 else None)\n"
    )
    (tmp_path / "c.json").write_text(config.to_json())
    command = [sys.executable, "-c", code, str(tmp_path / "c.json"), str(tmp_path / "killed")]
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    assert subprocess.run(command, env={**os.environ, "PYTHONPATH": path}).returncode == -signal.SIGKILL
    with pytest.raises(UserError, match="trained with LogitPenalty: resume it with that, not with PPO"):
        trainer(config, "killed", resume=True)
    again = trainer(config, "killed", resume=True, algorithm=method.LogitPenalty)
    assert again.steps == 192
    again.train()
    assert torch.equal(weights(again), weights(whole))
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert load_run(tmp_path / "killed").config.to_dict() == again.config.to_dict()  # field of its own and all


class Wide(nn.Module):
    """Another policy with ActorCritic's interface: a linear layer and its heads."""

    def __init__(self):
        super().__init__()
        self.num_actions, self.state_size = 15, 0
        self.body, self.heads = nn.Linear(64 * 64 * 3, 8), nn.Linear(8, 16)

    def initial_state(self, n):
        return torch.zeros(n, 0)

    def forward(self, obs, state, episode_start):
        out = self.heads(self.body(obs.flatten(-3).float() / 255).relu())
        return out[..., :15], out[..., 15], state


def test_another_policy_module_trains_and_loads(tiny, trainer, tmp_path):
    torch.manual_seed(0)
    config = tiny(recurrent=False, eval_interval=0, eval_episodes=2)
    one = trainer(config, policy=Wide())
    before = weights(one)
    one.train()
    assert not torch.equal(before, weights(one))
    loaded, _, steps = load_policy(tmp_path / "run", policy=Wide())
    assert steps == 128
    for mine, theirs in zip(loaded.parameters(), one.policy.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)
    with pytest.raises(UserError, match="policy="):
        load_policy(tmp_path / "run")


@pytest.mark.parametrize("edit", ["average pooling", "no residual branch", "hook"])
def test_an_edited_network_trains_as_it_is_written(tiny, trainer, edit):
    """On CPUs the blocks run in C only while they are what the C code computes."""
    from ppo_lib.policy import make_policy

    config = tiny(recurrent=False)

    policy = make_policy(config)
    for block in policy.encoder.blocks:
        if edit == "average pooling":
            block.pool = nn.AvgPool2d(3, stride=2, padding=1)
        elif edit == "no residual branch":
            block.residual1 = nn.Identity()
        else:
            block.residual1.conv1.register_forward_hook(lambda module, inputs, output: output * 0.5)
    as_written = copy.deepcopy(policy)
    one = trainer(config, "run", policy=policy)
    obs = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    arguments = (obs, torch.zeros(4, 0), torch.zeros(4, dtype=torch.bool))
    for written, computed in zip(as_written(*arguments)[:2], one.policy(*arguments)[:2], strict=True):
        assert torch.equal(written, computed)
    plain = trainer(config, "plain")
    assert not torch.allclose(one.policy(*arguments)[1], plain.policy(*arguments)[1], atol=1e-4)
    one.update()


def test_an_unknown_algorithm_gets_one_sentence(tiny, trainer):
    with pytest.raises(UserError, match="no algorithm 'pp0'; did you mean 'ppo'"):
        trainer(tiny(algorithm="pp0"))
