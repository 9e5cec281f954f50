"""PPO on tiny tasks in seconds: does the algorithm learn at all, and what does each of its parts do?

- `train` is the Trainer's algorithm without overlap, files and logs: all of PPO in one screen.
- The network is ActorCritic with a linear layer in place of the IMPALA encoder, a small fraction of its work.
- The tasks, whose best returns are known, stand in toy_tasks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ppo_lib.accel.hardware import Hardware
from ppo_lib.config import PPOConfig, derive_seed
from ppo_lib.course.toy_tasks import GOAL, NUM_ACTIONS, SIZE, TASKS, ToyEnv, make_env, optimal_return, optimal_value
from ppo_lib.model import GRUCore, orthogonal_init
from ppo_lib.policy import ActorCritic
from ppo_lib.ppo import PPO
from ppo_lib.storage import RolloutStorage
from ppo_lib.wrappers import RewardNormalizer

__all__ = ["GOAL", "SIZE", "TASKS", "Player", "ToyEnv", "grid_map", "make_env", "make_ppo", "optimal_return",
           "optimal_value", "tiny_policy", "toy_config", "train"]  # fmt: skip


class TinyEncoder(nn.Module):
    """uint8 images [B, 8, 8, 3] -> features [B, D]: one linear layer and a ReLU."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(SIZE * SIZE * 3, features)

    def forward(self, obs: Tensor) -> Tensor:
        return self.linear(obs.flatten(1).float() / 255).relu()


def tiny_policy(recurrent: bool = False, seed: int = 0, features: int = 64) -> ActorCritic:
    """An ActorCritic for the toy tasks, with the parts that cost time made small (features D)."""
    policy = ActorCritic(NUM_ACTIONS, recurrent, obs_shape=(SIZE, SIZE, 3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy.encoder = TinyEncoder(features)
        policy.core = GRUCore(features) if recurrent else None
        policy.actor, policy.critic = nn.Linear(features, NUM_ACTIONS), nn.Linear(features, 1)
        orthogonal_init(policy)
        orthogonal_init(policy.actor, gain=0.01)
        orthogonal_init(policy.critic, gain=1.0)
    policy.state_size = features if recurrent else 0
    return policy


def toy_config(**changes: object) -> PPOConfig:
    """Settings that fit the toy tasks; change any field."""
    settings = {
        "num_envs": 32, "num_steps": 40, "total_steps": 40_000, "num_epochs": 4, "num_minibatches": 4,
        "learning_rate": 2e-3, "gamma": 0.98, "recurrent": False, "sequence_length": 20, "normalize_reward": False,
    }  # fmt: skip
    return PPOConfig.from_dict({**settings, **changes})


@torch.no_grad()
def grid_map(policy: ActorCritic) -> tuple[np.ndarray, np.ndarray]:
    """What a feed-forward policy takes each cell of `grid` to be worth, and its likeliest action there, both [8, 8].

    Compare the values with optimal_value.
    """
    env = ToyEnv("grid", SIZE**2)
    env.place = np.arange(SIZE**2)
    obs = torch.from_numpy(env.observe()[0])
    logits, value, _ = policy(obs, policy.initial_state(SIZE**2), torch.ones(SIZE**2, dtype=torch.bool))
    return value.reshape(SIZE, SIZE).numpy(), logits.argmax(-1).reshape(SIZE, SIZE).numpy()


class Player:
    """Plays a toy task with a PPO agent and keeps the rollouts."""

    def __init__(self, task: str, ppo: PPO, reward_scale: float = 1.0, reward_noise: float = 0.0) -> None:
        """The agent learns from rewards times reward_scale, plus normal noise of that std; raw returns are reported."""
        config, policy, n = ppo.config, ppo.policy, ppo.config.num_envs
        self.ppo, self.config, self.reward_scale = ppo, config, reward_scale
        self.reward_noise, self.rng = reward_noise, np.random.default_rng(derive_seed(config.seed, "noise"))
        self.env = make_env(task, n, derive_seed(config.seed, "train"))
        self.normalizer = RewardNormalizer(n, config.reward_gamma)
        length = config.sequence_length if config.recurrent else None
        self.storage = RolloutStorage(config.num_steps, n, (SIZE, SIZE, 3), policy.state_size, length)
        self.obs = torch.from_numpy(self.env.reset()[0])
        self.state, self.reset = policy.initial_state(n), torch.ones(n, dtype=torch.bool)

    def collect(self) -> tuple[RolloutStorage, list[float]]:
        """T steps of every environment: the storage with its advantages, and the returns of the episodes that ended."""
        config, storage, everyone, returns = self.config, self.storage, slice(None), []
        for t in range(config.num_steps):
            storage.add(t, everyone, obs=self.obs, state=self.state, reset=self.reset)
            action, log_prob, value, self.state, _ = self.ppo.predict(self.obs, self.state, self.reset)
            obs, reward, terminated, truncated, info = self.env.step(action.numpy())
            done = terminated | truncated
            if done.any():
                returns.extend(info["episode"]["r"][done].tolist())
            noise = self.reward_noise * self.rng.standard_normal(config.num_envs)
            reward = (reward * self.reward_scale + noise).astype(np.float32)
            if config.normalize_reward:
                reward = self.normalizer(reward, done)
            self.obs, self.reset = torch.from_numpy(obs), torch.from_numpy(done)
            storage.add(t, everyone, action=action, log_prob=log_prob, value=value,
                        reward=torch.from_numpy(reward), done=self.reset)  # fmt: skip
        storage.estimate(self.ppo.predict_value(self.obs, self.state, self.reset), config.gamma, config.gae_lambda)
        return storage, returns


def make_ppo(config: PPOConfig, policy: ActorCritic | None = None) -> PPO:
    """PPO on the CPU in float32, for a policy (default: `tiny_policy`) of the toy tasks."""
    policy = policy or tiny_policy(config.recurrent, derive_seed(config.seed, "weights"))
    return PPO(policy, config, Hardware(torch.device("cpu"), torch.float32, config.minibatch_size, "a toy task"))


def train(
    task: str,
    config: PPOConfig,
    prepare: Callable[[PPO], None] = lambda ppo: None,
    *,
    policy: ActorCritic | None = None,
    reward_scale: float = 1.0,
    reward_noise: float = 0.0,
) -> tuple[ActorCritic, dict[str, np.ndarray]]:
    """Train PPO on a toy task, on the CPU.

    prepare: gets the PPO object before the first update, to change what it likes; policy: default `tiny_policy`, or
    any ActorCritic with obs_shape (8, 8, 3) and 4 actions; reward_scale, reward_noise: see Player.
    Returns the policy and a column for each diagnostic of PPO.optimize, beside "steps" and "return_mean": the mean
    return of the episodes that ended in the update; each [updates].
    """
    ppo = make_ppo(config, policy)
    prepare(ppo)
    player, rows = Player(task, ppo, reward_scale, reward_noise), []
    for update in range(config.num_updates):
        storage, returns = player.collect()
        diagnostics = ppo.optimize(storage)
        mean = float(np.mean(returns)) if returns else float("nan")
        rows.append({"steps": (update + 1) * config.batch_size, "return_mean": mean, **diagnostics})
    return ppo.policy, {name: np.array([row[name] for row in rows]) for name in rows[0]}
