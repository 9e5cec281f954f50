"""Two processes that train together, started as users start them: with torchrun (gloo, on the CPU)."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ppo_lib.accel.distributed import SharedCollector, launcher, rank, share, size, trainer_class
from ppo_lib.checkpoint import load_checkpoint
from ppo_lib.config import PPOConfig, UserError
from ppo_lib.methods.drac import CroppedBatch, DrAC
from ppo_lib.methods.mixreg import Mixreg
from ppo_lib.methods.ppg import PPG
from ppo_lib.policy import ActorCritic
from ppo_lib.ppo import PPO
from ppo_lib.storage import RolloutStorage
from ppo_lib.train import Stopped, Trainer
from ppo_lib.wrappers import RewardNormalizer

ROOT = Path(__file__).resolve().parents[2]
CONFIG = PPOConfig(
    num_envs=4, num_steps=16, num_minibatches=2, num_epochs=2, sequence_length=8, total_steps=192, seed=3,
    eval_interval=64, eval_episodes=2, checkpoint_interval=64, device="cpu", precision="float32",
)  # fmt: skip


def torchrun(*arguments):
    """Run a module or script in two processes."""
    with subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", *map(str, arguments)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as launched:  # fmt: skip
        try:
            _, errors = launched.communicate(timeout=200)
        except subprocess.TimeoutExpired:
            launched.terminate()  # torchrun ends its processes; killed, it would leave them waiting for each other
            raise
    assert launched.returncode == 0, errors[-6000:]


def own(whole):
    """This rank's columns of [T, N, ...]."""
    width = whole.shape[1] // size()
    return whole[:, rank() * width : (rank() + 1) * width]


class Crops(DrAC):
    """DrAC whose crops follow from the data, so that they are the same however the data are shared."""

    def prepare(self, batch):
        return CroppedBatch(**vars(batch), shift=torch.stack([batch.action % 3 - 1, batch.action % 2], -1))


def learn(recurrent, kind=PPO):
    """Two epochs on this rank's columns (alone: all) of a rollout that is the same everywhere -> weights, metrics."""
    torch.manual_seed(0)
    steps, envs = 8, 8
    config = PPOConfig(
        num_envs=envs, num_steps=steps, recurrent=recurrent, sequence_length=4, num_minibatches=1, num_epochs=2
    )
    policy = ActorCritic(recurrent=recurrent, obs_shape=(8, 8, 3), seed=0)
    ppo = kind(policy, config, micro_batch=12)
    if size() > 1:
        share(ppo)
    whole = {
        "obs": torch.randint(0, 256, (steps, envs, 8, 8, 3), dtype=torch.uint8),
        "state": torch.randn(steps, envs, policy.state_size),
        "action": torch.randint(0, 15, (steps, envs)),
        "episode_start": torch.rand(steps, envs) < 0.2,
        "log_prob": torch.full((steps, envs), -2.7),
        **{name: torch.randn(steps, envs) for name in ("value", "advantage", "return_")},
    }
    storage = RolloutStorage(steps, envs // size(), (8, 8, 3), policy.state_size, 4 if recurrent else None)
    for name, value in whole.items():
        setattr(storage, name, own(value).contiguous())
    metrics = ppo.update(storage)
    return torch.cat([p.detach().flatten() for p in policy.parameters()]), metrics


def rewards():
    """Rewards and ends of six steps in four environments."""
    generator = np.random.default_rng(0)
    return generator.random((6, 4), np.float32), generator.random((6, 4)) < 0.3


def train(folder):
    """Train a run, and another which one rank stops -> what this rank sees of it."""
    trainer, updates = trainer_class()(CONFIG, folder / "whole", progress=False), []

    def note(metrics):
        sums = [float(p.detach().double().sum()) for p in trainer.policy.parameters()]
        moments = trainer.collector.normalizer.state_dict()
        everywhere = metrics["steps"], trainer.collector.episodes, sums, moments
        updates.append((everywhere, float(trainer.storage.obs.double().mean())))

    trainer.train(note)
    evaluated = trainer.evaluate()
    if rank() == 0:
        trainer.stop()
    with pytest.raises(Stopped):
        trainer.evaluate()
    trainer.close()
    trainer = trainer_class()(CONFIG, folder / "parts", progress=False)
    finished = trainer.train(lambda _: trainer.stop() if rank() else None)
    stopped_at = trainer.steps
    trainer.close()
    return dict(updates=updates, evaluated=evaluated, finished=finished, stopped_at=stopped_at)


def refusals(folder):
    """What is said of environments that the ranks cannot share."""
    messages = []
    for changes in (dict(num_envs=3), dict(num_envs=2, num_minibatches=4)):
        with pytest.raises(UserError) as error:
            trainer_class()(CONFIG.replace(**changes), folder / "never", progress=False)
        messages.append(str(error.value))
    return messages


def main(folder):
    """What each of torchrun's processes does."""
    dist.init_process_group("gloo")
    # one group for all trainers of this script: gloo may hang where a process joins a second one
    dist.init_process_group = dist.destroy_process_group = lambda *_, **__: None
    learned = [learn(recurrent) for recurrent in (False, True)]
    methods = dict(drac=learn(True, Crops), mixreg=learn(False, Mixreg))
    collector = SimpleNamespace(normalizer=RewardNormalizer(4, 0.9))
    scaled = SharedCollector._normalize(collector, *map(own, rewards()))
    found = dict(learned=learned, methods=methods, scaled=scaled, refused=refusals(folder), **train(folder))
    torch.save(found, folder / f"{rank()}.pt")


pytestmark = pytest.mark.xdist_group("distributed")  # they share what two ranks found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(the folder of the runs, what the two ranks found)."""
    folder = tmp_path_factory.mktemp("distributed")
    torchrun(__file__, folder)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("recurrent", [False, True])
def test_two_processes_learn_what_one_learns_from_the_union(trained, recurrent):
    weights, metrics = learn(recurrent)
    (first, first_metrics), (second, second_metrics) = (found["learned"][recurrent] for found in trained[1])
    assert torch.equal(first, second) and first_metrics == second_metrics
    torch.testing.assert_close(first, weights, atol=2e-5, rtol=1e-4)
    assert first_metrics == pytest.approx(metrics, rel=1e-3, abs=1e-5)


def test_two_processes_learn_by_drac_what_one_learns_from_the_union(trained):
    weights, metrics = learn(True, Crops)
    (first, first_metrics), (second, second_metrics) = (found["methods"]["drac"] for found in trained[1])
    assert torch.equal(first, second) and first_metrics == second_metrics
    torch.testing.assert_close(first, weights, atol=2e-5, rtol=1e-4)
    assert first_metrics == pytest.approx(metrics, rel=1e-3, abs=1e-5)


def test_two_processes_learn_the_same_by_mixreg(trained):
    """Each mixes its own part of a minibatch, with draws of its own: no single process would compute the same."""
    (first, first_metrics), (second, second_metrics) = (found["methods"]["mixreg"] for found in trained[1])
    assert torch.equal(first, second) and first_metrics == second_metrics
    assert not torch.equal(first, trained[1][0]["learned"][0][0])


def test_what_learns_after_an_update_is_refused():
    with pytest.raises(UserError, match="PPG learns after an update"):
        share(PPG(ActorCritic(recurrent=False, obs_shape=(8, 8, 3)), CONFIG.replace(recurrent=False)))


def test_rewards_are_scaled_as_one_process_would(trained):
    whole = RewardNormalizer(4, 0.9)(*rewards())
    assert np.array_equal(np.concatenate([found["scaled"] for found in trained[1]], 1), whole)


def test_all_ranks_hold_the_same_weights_after_each_update_and_play_their_own_games(trained):
    folder, (first, second) = trained
    assert [row[0] for row in first["updates"]] == [row[0] for row in second["updates"]]
    assert [round(moments["count"]) for (*_, moments), _ in first["updates"]] == [64, 128, 192]  # of all environments
    assert all(a[1] != b[1] for a, b in zip(first["updates"], second["updates"], strict=True))
    assert first["evaluated"] == second["evaluated"]
    with open(folder / "whole/evaluation.csv") as file:
        assert len(list(csv.DictReader(file))) == 3 * 2 * 2  # one rank evaluates: each episode once


def test_a_stop_and_a_resume_equal_one_go(trained):
    """One rank is stopped, and all stop after the same update; the command line resumes them."""
    folder, found = trained
    assert [(one["finished"], one["stopped_at"]) for one in found] == 2 * [(False, 128)]
    assert len(load_checkpoint(folder / "parts")["others"]) == 1
    torchrun(*launcher(2).split()[3:], "train", "--run", "parts", "--resume", "--results", folder)
    for name in ("metrics.csv", "evaluation.csv"):
        parts, whole = (list(csv.DictReader((folder / run / name).open())) for run in ("parts", "whole"))
        for row in (*parts, *whole):
            row.update(seconds="", steps_per_second="")
        assert parts == whole
    parts, whole = (load_checkpoint(folder / run)["ppo"]["policy"] for run in ("parts", "whole"))
    assert all(torch.equal(parts[name], weight) for name, weight in whole.items())


def test_one_process_does_not_resume_what_two_trained(trained):
    with pytest.raises(UserError, match=r"trained by 2 process.*--nproc_per_node=2"):
        Trainer(CONFIG, trained[0] / "whole", resume=True)


def test_environments_that_cannot_be_shared_are_refused(trained):
    for found in trained[1]:
        assert "take a multiple" in found["refused"][0] and "num_minibatches" in found["refused"][1]
    assert not (trained[0] / "never").exists()


def test_a_world_without_ranks_gets_one_sentence(monkeypatch):
    """A variable left over from elsewhere."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"RANK, LOCAL_RANK, LOCAL_WORLD_SIZE is not: start with torchrun"):
        trainer_class()(PPOConfig(), "never")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
