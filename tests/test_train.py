"""The trainer on the real game: overlap, exact resume, stopping, and what a run leaves on disk."""

import copy
import csv
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from ppo_lib.checkpoint import load_checkpoint, load_policy
from ppo_lib.config import UserError
from ppo_lib.logger import METRICS
from ppo_lib.ppo import DivergedError
from ppo_lib.run_folder import RunFolder
from ppo_lib.train import Stopped, Trainer


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


@pytest.mark.parametrize("recurrent", [False, True])
def test_resume_is_bit_for_bit(tiny, trainer, tmp_path, recurrent):
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

    def act_until_the_stop(storage, half, t):
        act(storage, half, t)
        if next(steps) == 45:  # in the middle of the second rollout
            broken.stop()

    broken.collector._act = act_until_the_stop
    assert not broken.train()
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
    one.collect()  # a fresh rollout of the trained policy, no update after it
    storage = one.storage
    assert storage.done.any()
    batch = storage.batch(torch.arange(storage.num_units))
    with torch.no_grad():
        logits, value, _ = one.policy(batch.obs, batch.state, batch.reset)
    log_prob = logits.log_softmax(-1).gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(log_prob, batch.log_prob, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(value, batch.value, atol=1e-4, rtol=1e-4)


def test_bootstrap_value_leaves_the_state_alone(tiny, trainer):
    one = trainer(tiny(recurrent=True))
    one.collect()
    before = [half.state.clone() for half in one.collector.halves]
    obs = torch.from_numpy(one.collector.halves[0].obs)
    one.ppo.predict_value(obs, one.collector.halves[0].state, one.collector.halves[0].reset)
    assert all(torch.equal(a, half.state) for a, half in zip(before, one.collector.halves, strict=True))
    last = one.storage.state[-1, one.collector.halves[0].envs]
    assert not torch.equal(last, before[0])  # the state did advance with the last action


def test_rewards_in_storage_are_normalised_and_returns_in_metrics_are_raw(tiny, trainer):
    one = trainer(tiny(num_steps=128, num_minibatches=2, total_steps=1024, recurrent=False))
    rows = []
    one.train(rows.append)
    assert rows[-1]["episodes"] == one.episodes > 0
    assert rows[-1]["return_mean"] == pytest.approx(sum(r for r, _ in one.recent) / len(one.recent))
    assert all(float(r).is_integer() for r, _ in one.recent)
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
    assert set(METRICS) == {*rows[0], "seconds", "steps_per_second"}
    with open(folder / "evaluation.csv") as file:
        episodes = list(csv.DictReader(file))
    assert [(row["steps"], row["split"]) for row in episodes] == [
        (steps, split) for steps in ("128", "192") for split in ("train", "unseen") for _ in range(4)
    ]
    policy, saved, steps = load_policy(folder)
    assert saved == config and steps == 192
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
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", hold, str(tmp_path / "run" / ".train.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="Another process is training"):
            trainer(tiny(total_steps=192), resume=True)
        other.kill()  # its lock ends with it
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before
    assert trainer(tiny(total_steps=192), resume=True).train()


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


def test_a_kill_between_checkpoint_and_policy_is_mended(tiny, trainer, tmp_path):
    trainer(tiny()).train()
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


def test_several_processes_leave_an_evaluation_together(tiny, trainer):
    """What the first of them, which evaluates, tells the others: as with one process, they stop."""
    one, told = trainer(tiny(eval_episodes=400)), []
    one.group = SimpleNamespace(size=2, is_first=True, first=lambda means: told.append(means) or means)
    one.stop()
    with pytest.raises(Stopped):
        one.evaluate()
    assert told == [None]


def test_a_pause_is_no_training_time(tiny, trainer):
    one = trainer(tiny())
    one.pause()
    threading.Timer(1.5, one.resume).start()
    begin = time.monotonic()
    metrics = one.update()
    assert time.monotonic() - begin > 1.5 > metrics["seconds"] + 0.5


def test_resume_with_another_config_is_refused(tiny, trainer):
    trainer(tiny()).train()
    with pytest.raises(UserError, match=r"gamma 0.999 -> 0.9"):
        trainer(tiny(gamma=0.9), resume=True)


def test_divergence_keeps_the_last_good_checkpoint(tiny, trainer, tmp_path):
    one = trainer(tiny(total_steps=256, checkpoint_interval=64))
    optimize, calls = one.ppo.optimize, iter(range(10))

    def poisoned(storage, **options):
        if next(calls) == 2:
            storage.return_[0, 0] = float("nan")
        return optimize(storage, **options)

    one.ppo.optimize = poisoned
    with pytest.raises(DivergedError):
        one.train()
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint["steps"] == 128
    assert all(torch.isfinite(value).all() for value in checkpoint["ppo"]["policy"].values())


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
    assert one.train() and len(one.collector.halves) == 1


def test_snapshots_do_not_change_with_training(tiny, trainer):
    one = trainer(tiny())
    snapshot = one.state_dict()
    kept = copy.deepcopy(snapshot)
    one.update()
    assert_same(snapshot, kept)
