"""Collecting a rollout: the games and the network in turns.

- Two halves of the environments take turns: while one half's games run in Procgen's threads, the network acts for
  the other. The order of actions is fixed, so the overlap changes speed alone.
- The bootstrap value after the last step reads the state without advancing it.
- Of several processes each plays its own environments; rewards are normalised by the statistics of all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from ppo_lib.accel.distributed import Group
from ppo_lib.accel.hardware import to_device
from ppo_lib.config import PPOConfig, derive_seed
from ppo_lib.envs import make_env
from ppo_lib.ppo import PPO
from ppo_lib.storage import RolloutStorage
from ppo_lib.wrappers import RewardNormalizer

RETURN_WINDOW = 100  # finished episodes that return_mean and length_mean average over


@dataclass
class Half:
    """One half of the environments and what its network state is before the next step."""

    env: gym.vector.VectorEnv
    envs: slice  # its columns in the storage
    state: Tensor  # [n, S]
    reset: Tensor  # bool [n]: the next observation begins an episode
    obs: np.ndarray  # uint8 [n, H, W, C]


class Collector:
    """Plays a config's training environments and keeps count of their episodes.

    overlap: step one half of the games while the network acts for the other (changes nothing but speed).
    """

    def __init__(self, config: PPOConfig, ppo: PPO, group: Group, overlap: bool = True) -> None:
        self.config, self.ppo, self.group, self.overlap = config, ppo, group, overlap
        self.device = ppo.hardware.device
        self.normalizer = RewardNormalizer(config.num_envs, config.reward_gamma)
        self.halves = self._make_halves(config.num_envs // group.size)
        self.episodes = 0
        self.recent: deque[tuple[float, int]] = deque(maxlen=RETURN_WINDOW)  # (return, length)

    def collect(self, storage: RolloutStorage, between_steps: Callable[[], None] = lambda: None) -> Tensor:
        """Fill the storage with T steps of every environment. Returns the value of the observations after them, [N].

        between_steps is called before each step; what it raises ends the rollout.
        """
        rewards = np.zeros((storage.num_steps, storage.num_envs), dtype=np.float32)
        finished: list[tuple[float, int]] = []
        for t in range(storage.num_steps):
            between_steps()
            for half in self.halves:
                if t > 0 and self.overlap:
                    self._receive(storage, half, t - 1, rewards, finished)  # the other half's games run on meanwhile
                self._act(storage, half, t)
                if not self.overlap:
                    self._receive(storage, half, t, rewards, finished)
        if self.overlap:
            for half in self.halves:
                self._receive(storage, half, storage.num_steps - 1, rewards, finished)
        for episodes in self.group.all(finished):
            self.episodes += len(episodes)
            self.recent.extend(episodes)
        reward = torch.from_numpy(rewards)
        if self.config.normalize_reward:
            everyones, done = self.group.concat(reward), self.group.concat(storage.done.byte().cpu())
            reward = self.group.columns(torch.from_numpy(self.normalizer(everyones.numpy(), done.numpy())))
        storage.reward.copy_(reward)
        return torch.cat([self.ppo.predict_value(to_device(h.obs, self.device), h.state, h.reset) for h in self.halves])

    def _act(self, storage: RolloutStorage, half: Half, t: int) -> None:
        """Choose the half's actions for step t, start its games on them, and store what was known before the step."""
        storage.add(t, half.envs, obs=to_device(half.obs, self.device), state=half.state, reset=half.reset)
        prediction = self.ppo.predict(storage.obs[t, half.envs], half.state, half.reset)
        half.env.step_async(prediction.action.cpu().numpy())
        half.state = prediction.state.clone()
        storage.add(t, half.envs, action=prediction.action, log_prob=prediction.log_prob, value=prediction.value)

    def _receive(self, storage: RolloutStorage, half: Half, t: int, rewards: np.ndarray, finished: list) -> None:
        """Wait for the half's games to finish step t and store how they answered."""
        half.obs, rewards[t, half.envs], terminated, truncated, info = half.env.step_wait()
        done = terminated | truncated
        half.reset = to_device(done, self.device)
        storage.add(t, half.envs, done=half.reset)
        for i in np.flatnonzero(done):
            finished.append((float(info["episode"]["r"][i]), int(info["episode"]["l"][i])))

    def state_dict(self) -> dict[str, object]:
        """This process's games and network states, and the counts of all."""
        return {
            "episodes": self.episodes,
            "recent": list(self.recent),
            "normalizer": self.normalizer.state_dict(),
            "halves": [
                {
                    "env": half.env.get_state(),
                    "state": half.state.cpu(),
                    "reset": half.reset.cpu(),
                    "obs": torch.from_numpy(half.obs),
                }
                for half in self.halves
            ],
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """The inverse of state_dict."""
        self.episodes = state["episodes"]
        self.recent.extend(tuple(episode) for episode in state["recent"])
        self.normalizer.load_state_dict(state["normalizer"])
        for half, saved in zip(self.halves, state["halves"], strict=True):
            half.env.set_state(saved["env"])
            half.state, half.reset = saved["state"].to(self.device), saved["reset"].to(self.device)
            half.obs = saved["obs"].numpy()

    def close(self) -> None:
        """Free the games' threads."""
        for half in self.halves:
            half.env.close()

    def _make_halves(self, n: int) -> list[Half]:
        halves = []
        for i, (first, last) in enumerate([(0, n // 2), (n // 2, n)] if n > 1 else [(0, 1)]):
            env_seed = derive_seed(self.config.seed, "train", i, *self.group.path)
            env = make_env(self.config, num_envs=last - first, seed=env_seed)
            obs, _ = env.reset()
            reset = torch.ones(last - first, dtype=torch.bool, device=self.device)
            halves.append(Half(env, slice(first, last), self.ppo.policy.initial_state(last - first), reset, obs))
        return halves
