"""Vector wrappers: episode statistics and reward normalisation.

- Statistics are of raw game score, so EpisodeStatistics wraps the game directly, below any reward change.
- RewardNormalizer follows OpenAI's baselines as used for Procgen (Cobbe et al. 2020, arXiv 1912.01588): rewards are
  divided by the running standard deviation of the discounted return, and not centred.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper

from ppo_lib.config import UserError

Step = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]


class EpisodeStatistics(VectorWrapper):
    """Adds the raw return and the length of each finished episode.

    At steps that end episodes, info["episode"] = {"r": float32 [N], "l": int64 [N]}, valid where
    info["_episode"] bool [N] is True and 0 elsewhere. `env`: the game itself, with SAME_STEP autoreset.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self.returns = np.zeros(env.num_envs)  # of the running episodes; float64, so that long sums stay exact
        self.lengths = np.zeros(env.num_envs, np.int64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Reset the games and the statistics of unfinished episodes."""
        self.returns[:], self.lengths[:] = 0, 0
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: np.ndarray) -> Step:
        """step_async and step_wait in one."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: np.ndarray) -> None:
        """Start a step, see ProcgenVectorEnv.step_async."""
        self.env.step_async(actions)  # type: ignore[attr-defined]

    def step_wait(self) -> Step:
        """Wait for the pending step and count it."""
        step = _, reward, terminated, truncated, info = self.env.step_wait()  # type: ignore[attr-defined]
        self.returns += reward
        self.lengths += 1
        done = terminated | truncated
        if done.any():
            returns, lengths = np.where(done, self.returns, 0), np.where(done, self.lengths, 0)
            info["episode"] = {"r": returns.astype(np.float32), "l": lengths}
            info["_episode"] = done.copy()
            self.returns[done], self.lengths[done] = 0, 0
        return step

    def get_state(self) -> dict[str, Any]:
        """The state of the games and the running counts."""
        env = self.env.get_state()  # type: ignore[attr-defined]
        return {"env": env, "returns": self.returns.tolist(), "lengths": self.lengths.tolist()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue exactly from where get_state was called; a pending step is dropped."""
        self.env.set_state(state["env"])  # type: ignore[attr-defined]
        self.returns[:], self.lengths[:] = state["returns"], state["lengths"]


class RewardNormalizer:
    """Divides rewards by the running standard deviation of the discounted return.

    At each time step: R <- gamma R + r for every environment; the N new values of R are merged into the running mean
    and variance; the result is r / sqrt(variance + epsilon), clipped to [-clip, clip]; R <- 0 where the episode ended.
    gamma is PPOConfig.reward_gamma.
    """

    def __init__(self, num_envs: int, gamma: float, clip: float = 10.0, epsilon: float = 1e-8) -> None:
        self.gamma, self.clip, self.epsilon = gamma, clip, epsilon
        self.returns = np.zeros(num_envs)  # R of the running episodes
        self.mean, self.var, self.count = 0.0, 1.0, 1e-4  # a weak prior keeps the first steps finite

    def __call__(self, reward: np.ndarray, done: np.ndarray) -> np.ndarray:
        """Rewards [N] or [T, N] with done of the same shape -> normalised rewards, float32, same shape."""
        reward, done, size = np.asarray(reward), np.asarray(done, np.bool_), len(self.returns)
        if reward.shape != done.shape or reward.ndim not in (1, 2) or reward.shape[-1] != size:
            raise UserError(f"reward and done must both be [{size}] or [T, {size}], not {reward.shape}, {done.shape}.")
        if reward.ndim == 2:
            return np.stack([self(r, d) for r, d in zip(reward, done, strict=True)])
        self.returns = self.returns * self.gamma + reward
        # merge N values into the running moments (Chan, Golub and LeVeque 1979, parallel variance)
        mean, var, total = float(self.returns.mean()), float(self.returns.var()), self.count + size
        delta = mean - self.mean
        squares = self.var * self.count + var * size + delta**2 * self.count * size / total
        self.mean += delta * size / total
        self.var, self.count = squares / total, total
        self.returns[done] = 0
        return np.clip(reward / math.sqrt(self.var + self.epsilon), -self.clip, self.clip).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """The running statistics as plain floats and lists."""
        return {"returns": self.returns.tolist(), "mean": self.mean, "var": self.var, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly from where state_dict was called, with as many environments."""
        self.returns[:] = state["returns"]
        self.mean, self.var, self.count = state["mean"], state["var"], state["count"]


class NormalizeReward(VectorWrapper):
    """RewardNormalizer as a wrapper. Put it above EpisodeStatistics, which reports raw score; not for evaluation."""

    def __init__(self, env: VectorEnv, gamma: float, clip: float = 10.0) -> None:
        super().__init__(env)
        self.normalizer = RewardNormalizer(env.num_envs, gamma, clip)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Reset the games and the returns of the running episodes; the running variance stays."""
        self.normalizer.returns[:] = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: np.ndarray) -> Step:
        """One step with its reward normalised."""
        obs, reward, terminated, truncated, info = self.env.step(actions)
        return obs, self.normalizer(reward, terminated | truncated), terminated, truncated, info
