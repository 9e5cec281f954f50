"""Two processes that train together, started as users start them: with torchrun (gloo, on the CPU)."""

import csv
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ppo_lib.accel.distributed import DistributedTrainer, Group, share, trainer_class
from ppo_lib.checkpoint import load_checkpoint
from ppo_lib.config import PPOConfig, UserError
from ppo_lib.policy import ActorCritic
from ppo_lib.ppo import PPO
from ppo_lib.storage import RolloutStorage
from ppo_lib.train import Stopped
from ppo_lib.wrappers import RewardNormalizer

ROOT = Path(__file__).resolve().parents[2]
TINY = shlex.split(
    "--preset quick --num-envs 4 --num-steps 16 --num-minibatches 2 --num-epochs 2 --sequence-length 8 --seed 3 "
    "--eval-interval -1 --checkpoint-interval 64 --device cpu --precision float32"
)


def torchrun(*arguments, processes=2, check=True):
    """Run a module or script in several processes; returns the finished launcher."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone",
               *map(str, arguments)]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def train(results, *arguments, **options):
    return torchrun("-m", "--", "ppo_lib", "train", *arguments, "--results", results, **options)


def rows(run_dir):
    with open(run_dir / "metrics.csv") as file:
        return [{k: v for k, v in row.items() if "second" not in k} for row in csv.DictReader(file)]


def learn(recurrent, group=None):
    """Two epochs on this rank's columns (default: all) of a rollout that is the same everywhere -> weights, metrics."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    steps, envs, length = 8, 8, 4 if recurrent else None
    config = PPOConfig(
        num_envs=envs, num_steps=steps, recurrent=recurrent, sequence_length=4, num_minibatches=1, num_epochs=2
    )
    policy = ActorCritic(recurrent=recurrent, obs_shape=(8, 8, 3), seed=0)
    ppo = PPO(policy, config, micro_batch=12)
    rank, size = (group.rank, group.size) if group else (0, 1)
    if group:
        share(ppo, group)
    whole = {
        "obs": torch.randint(0, 256, (steps, envs, 8, 8, 3), dtype=torch.uint8),
        "state": torch.randn(steps, envs, policy.state_size),
        "action": torch.randint(0, 15, (steps, envs)),
        "episode_start": torch.rand(steps, envs) < 0.2,
        "log_prob": torch.full((steps, envs), -2.7),
        **{name: torch.randn(steps, envs) for name in ("value", "advantage", "return_")},
    }
    width = envs // size
    storage = RolloutStorage(steps, width, (8, 8, 3), policy.state_size, length)
    for name, value in whole.items():
        setattr(storage, name, value[:, rank * width : (rank + 1) * width].contiguous())
    metrics = ppo.update(storage)
    return torch.cat([p.detach().flatten() for p in policy.parameters()]), metrics


LEARN = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_distributed import learn
from ppo_lib.accel.distributed import Group
group = Group.join()
torch.save([learn(recurrent, group) for recurrent in (False, True)], {folder!r} + f"/{{group.rank}}.pt")
torch.distributed.destroy_process_group()
"""


def test_two_processes_learn_what_one_learns_from_the_union(tmp_path):
    script = tmp_path / "learn.py"
    script.write_text(LEARN.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    torchrun(script)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for i, recurrent in enumerate((False, True)):
        weights, metrics = learn(recurrent)
        (first, first_metrics), (second, second_metrics) = ranks[0][i], ranks[1][i]
        assert torch.equal(first, second) and first_metrics == second_metrics
        torch.testing.assert_close(first, weights, atol=2e-5, rtol=1e-4)
        assert first_metrics == pytest.approx(metrics, rel=1e-3, abs=1e-5)


UPDATES = """
import json, sys
from pathlib import Path
from ppo_lib.config import PPOConfig
from ppo_lib.accel.distributed import trainer_class
folder = Path(sys.argv[1])
config = PPOConfig(num_envs=4, num_steps=16, num_minibatches=2, num_epochs=2, sequence_length=8, total_steps=192,
                   eval_interval=64, eval_episodes=2, device="cpu", precision="float32")
trainer, sums = trainer_class()(config, folder / "run", progress=False), []
def note(metrics):
    parameters = list(trainer.policy.parameters())
    sums.append([metrics["steps"], trainer.collector.episodes, [float(p.double().sum()) for p in parameters],
                 trainer.collector.normalizer.state_dict(), float(trainer.storage.obs.double().mean())])
trainer.train(note)
trainer.close()
(folder / f"{trainer.group.rank}.json").write_text(json.dumps(sums))
"""


def test_all_ranks_hold_the_same_weights_after_each_update_and_play_their_own_games(tmp_path):
    script = tmp_path / "updates.py"
    script.write_text(UPDATES)
    torchrun(script, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert [row[:4] for row in first] == [row[:4] for row in second] and len(first) == 3
    assert [round(row[3]["count"]) for row in first] == [64, 128, 192]  # rewards are scaled by all environments
    assert all(a[4] != b[4] for a, b in zip(first, second, strict=True))
    with open(tmp_path / "run" / "evaluation.csv") as file:
        assert len(list(csv.DictReader(file))) == 3 * 2 * 2  # one rank evaluates: each episode once


def test_stop_and_resume_equal_one_go(tmp_path):
    train(tmp_path, *TINY, "--run", "whole", "--total-steps", "256")
    train(tmp_path, *TINY, "--run", "parts", "--total-steps", "128")
    assert len(load_checkpoint(tmp_path / "parts")["others"]) == 1
    train(tmp_path, "--run", "parts", "--resume", "--total-steps", "256")
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    parts, whole = (load_checkpoint(tmp_path / name) for name in ("parts", "whole"))
    for name, weight in whole["ppo"]["policy"].items():
        assert torch.equal(parts["ppo"]["policy"][name], weight)

    refused = train(tmp_path, "--run", "whole", "--resume", "--total-steps", "512", processes=1, check=False)
    assert "was trained by 2 processes" in refused.stderr and "--nproc_per_node=2" in refused.stderr


def test_environments_that_cannot_be_shared_are_refused():
    with pytest.raises(UserError, match="multiple"):
        Group(0, 3).shard(PPOConfig(num_envs=64))
    with pytest.raises(UserError, match="num_minibatches"):
        Group(0, 64).shard(PPOConfig(num_envs=64, num_minibatches=512, num_steps=256, recurrent=False, num_epochs=1))


def test_a_rank_gets_its_own_columns_of_the_normalised_rewards():
    """They are cut out of what one process with all environments would have."""
    import numpy as np

    generator = np.random.default_rng(0)
    reward, done = generator.random((6, 4), np.float32), generator.random((6, 4)) < 0.3
    whole = RewardNormalizer(4, 0.9)(reward, done)
    for rank in range(2):
        part = Group(rank, 2).columns(RewardNormalizer(4, 0.9)(reward, done))
        assert np.array_equal(part, whole[:, 2 * rank : 2 * rank + 2])


def test_all_ranks_leave_a_stopped_evaluation_together():
    """The first one evaluates; when it is stopped the others learn of it, and all stop."""
    one, told = object.__new__(DistributedTrainer), []
    one.group = SimpleNamespace(rank=1, first=lambda means: told.append(means))
    with pytest.raises(Stopped):
        one.evaluate()
    assert told == [None]


def test_a_world_without_ranks_gets_one_sentence(monkeypatch):
    """A variable left over from elsewhere."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"RANK, LOCAL_RANK, LOCAL_WORLD_SIZE is not: start with torchrun"):
        trainer_class()(PPOConfig(), "never")
