"""The loops in which a policy acts and games answer: collecting a rollout, and playing episodes.

- Collector: while the games of one environment run in Procgen's threads, the network acts for the next. The order of
  actions is fixed, so the overlap changes nothing but speed.
- The bootstrap value after the last step reads the GRU's state without advancing it.
- Player carries the GRU's state from step to step and zeroes it between episodes, as training does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from ppo_lib.policy import sample_actions, sampling_noise
from ppo_lib.ppo import PPO
from ppo_lib.storage import RolloutStorage
from ppo_lib.wrappers import RewardNormalizer

RETURN_WINDOW = 100  # finished episodes that return_mean and length_mean average over


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor. A copy to a GPU goes through pinned memory and is not waited for."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


@dataclass
class EnvGroup:
    """Some of the environments, stepped together, and the network's state before their next step."""

    env: gym.vector.VectorEnv
    envs: slice  # its columns in the storage
    state: Tensor  # [n, S]
    episode_start: Tensor  # bool [n]: the next observation begins an episode
    obs: np.ndarray  # uint8 [n, H, W, C]


class Collector:
    """Collects rollouts with a PPO agent and counts the episodes that end.

    envs: SAME_STEP vector environments with info["episode"], num_envs in all; they take turns.
    overlap: let the games of one run while the network acts for the next (changes nothing but speed).
    """

    def __init__(self, ppo: PPO, envs: Sequence[gym.vector.VectorEnv], overlap: bool = True) -> None:
        self.ppo, self.config, self.overlap = ppo, ppo.config, overlap
        self.groups, first = [], 0
        for env in envs:
            obs, _ = env.reset()
            start = torch.ones(env.num_envs, dtype=torch.bool, device=ppo.device)
            columns = slice(first, first := first + env.num_envs)
            self.groups.append(EnvGroup(env, columns, ppo.policy.initial_state(env.num_envs), start, obs))
        self.num_envs = first
        self.normalizer = RewardNormalizer(first, self.config.reward_gamma)
        self.episodes = 0
        self.recent: deque[tuple[float, int]] = deque(maxlen=RETURN_WINDOW)  # (return, length)

    def collect(self, storage: RolloutStorage, between_steps: Callable[[], None] = lambda: None) -> Tensor:
        """Fill the storage with T steps per environment. Returns the value of the observations after them, [N].

        between_steps is called before each step; an exception that it raises ends the rollout.
        """
        rewards = np.zeros((storage.num_steps, storage.num_envs), dtype=np.float32)
        finished: list[tuple[float, int]] = []
        for t in range(storage.num_steps):
            between_steps()
            for group in self.groups:
                if t > 0 and self.overlap:
                    self._receive(storage, group, t - 1, rewards, finished)  # meanwhile the other games run
                self._act(storage, group, t)
                if not self.overlap:
                    self._receive(storage, group, t, rewards, finished)
        if self.overlap:
            for group in self.groups:
                self._receive(storage, group, storage.num_steps - 1, rewards, finished)
        self._count(finished)
        if self.config.normalize_reward:
            rewards = self._normalize(rewards, storage.done.cpu().numpy())
        storage.reward.copy_(torch.from_numpy(rewards))
        last = (self.ppo.value(to_device(g.obs, self.ppo.device), g.state, g.episode_start) for g in self.groups)
        return torch.cat(list(last))

    def _act(self, storage: RolloutStorage, group: EnvGroup, t: int) -> None:
        """Choose the group's actions for step t, start its games on them, and store the step's inputs and outputs."""
        obs = to_device(group.obs, self.ppo.device)
        storage.add(t, group.envs, obs=obs, state=group.state, episode_start=group.episode_start)
        chosen = self.ppo.act(storage.obs[t, group.envs], group.state, group.episode_start)
        group.env.step_async(chosen.action.cpu().numpy())
        group.state = chosen.state.clone()
        storage.add(t, group.envs, action=chosen.action, log_prob=chosen.log_prob, value=chosen.value)

    def _receive(self, storage: RolloutStorage, group: EnvGroup, t: int, rewards: np.ndarray, finished: list) -> None:
        """Wait until the group's games have finished step t and store their answer."""
        group.obs, rewards[t, group.envs], terminated, truncated, info = group.env.step_wait()
        done = terminated | truncated
        group.episode_start = to_device(done, self.ppo.device)
        storage.add(t, group.envs, done=group.episode_start)
        for i in np.flatnonzero(done):
            finished.append((float(info["episode"]["r"][i]), int(info["episode"]["l"][i])))

    def _count(self, finished: list[tuple[float, int]]) -> None:
        self.episodes += len(finished)
        self.recent.extend(finished)

    def _normalize(self, reward: np.ndarray, done: np.ndarray) -> np.ndarray:
        return self.normalizer(reward, done)

    def state_dict(self) -> dict[str, object]:
        """The games, the network's states, and the statistics. (The keys are those of older checkpoints.)"""
        return {
            "episodes": self.episodes,
            "recent": list(self.recent),
            "normalizer": self.normalizer.state_dict(),
            "halves": [
                {
                    "env": group.env.get_state() if getattr(group.env.unwrapped, "can_save", True) else None,
                    "state": group.state.cpu(),
                    "reset": group.episode_start.cpu(),
                    "obs": torch.from_numpy(group.obs),
                }
                for group in self.groups
            ],
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """The inverse of state_dict; `state` itself is left alone. A step in progress is dropped."""
        self.episodes = state["episodes"]
        self.recent = deque((tuple(episode) for episode in state["recent"]), maxlen=RETURN_WINDOW)
        self.normalizer.load_state_dict(state["normalizer"])
        for group, saved in zip(self.groups, state["halves"], strict=True):
            if saved["env"] is None:  # games that can't be saved: new episodes
                group.obs, _ = group.env.reset()
                group.state = self.ppo.policy.initial_state(group.env.num_envs)
                group.episode_start = torch.ones_like(group.episode_start)
                self.normalizer.returns[group.envs] = 0
                continue
            group.env.set_state(saved["env"])
            group.state = saved["state"].to(self.ppo.device, copy=True)
            group.episode_start = saved["reset"].to(self.ppo.device, copy=True)
            group.obs = saved["obs"].numpy().copy()

    def close(self) -> None:
        """Free the games' threads."""
        for group in self.groups:
            group.env.close()


class PlayedStep(NamedTuple):
    """One step of a Player. The network's outputs have a row for each environment that was asked for, n <= N."""

    obs: np.ndarray  # uint8 [N, H, W, C], what the policy saw
    level_seed: np.ndarray  # int64 [N], the level that obs belongs to
    action: np.ndarray  # int64 [N]
    logits: Tensor  # [n, A]
    value: Tensor  # [n]
    reward: np.ndarray  # float32 [N]
    done: np.ndarray  # bool [N]
    info: dict[str, Any]  # of the end of the step


class Player:
    """A policy that plays a SAME_STEP vector environment without learning, a step per call.

    seed: of the sampled actions; greedy: take the most likely action instead of sampling.
    """

    def __init__(self, policy: nn.Module, env: gym.vector.VectorEnv, *, seed: int = 0, greedy: bool = False) -> None:
        self.policy, self.env, self.greedy = policy, env, greedy
        self.device = next(policy.parameters()).device
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.obs, info = env.reset()
        self.level_seed = info["level_seed"].copy()
        self.state = policy.initial_state(env.num_envs)
        self.episode_start = torch.ones(env.num_envs, dtype=torch.bool, device=self.device)
        self._action = torch.zeros(env.num_envs, dtype=torch.int64, device=self.device)

    @torch.no_grad()
    def step(self, playing: Tensor | None = None) -> PlayedStep:
        """Act in all environments, or in those of the indices `playing`; the others repeat their last action."""
        rows = slice(None) if playing is None else playing
        obs, level_seed = self.obs, self.level_seed
        logits, value, self.state[rows] = self.policy(
            to_device(obs, self.device)[rows], self.state[rows], self.episode_start[rows]
        )
        if self.greedy:
            self._action[rows] = logits.argmax(-1)
        else:
            self._action[rows] = sample_actions(logits, sampling_noise(*logits.shape, self.generator))
        action = self._action.cpu().numpy().copy()
        self.obs, reward, terminated, truncated, info = self.env.step(action)
        done = terminated | truncated
        self.level_seed = info["level_seed"].copy()
        self.episode_start = to_device(done, self.device)
        # detached, since a view of a parameter keeps its gradient even under no_grad
        return PlayedStep(obs, level_seed, action, logits.detach(), value.detach(), reward, done, info)
