"""Tiny tasks with a known best return, and a loop that trains PPO on them in seconds.

- The tasks have the interface of the games: uint8 images, SAME_STEP autoreset, step_async and step_wait.
- The network is ActorCritic with a linear layer instead of the IMPALA encoder.
"""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor, nn

from ppo_lib.config import PPOConfig, UserError, derive_seed, suggest
from ppo_lib.model import GRUCore, orthogonal_init
from ppo_lib.policy import ActorCritic
from ppo_lib.ppo import PPO
from ppo_lib.rollout import Collector
from ppo_lib.storage import RolloutStorage
from ppo_lib.wrappers import EpisodeStatistics, Step

TASKS = {"bandit": 1, "grid": 40, "memory": 5}  # the steps after which an episode ends at the latest
SIZE = 8  # height and width of the image, and of the grid
MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])  # of the four actions, which also name the quadrants
GOAL = 14  # the cell of `grid` (row 1, column 6) that ends an episode
STEP_COST = 0.02
FEATURES = 64  # width of the network
CELL = np.eye(SIZE**2).reshape(-1, SIZE, SIZE)  # images of one lit cell
QUADRANT = np.kron(np.eye(4).reshape(4, 2, 2), np.ones((SIZE // 2, SIZE // 2)))  # images of one lit quadrant


class ToyEnv(VectorEnv):
    """N copies of a task, stepped in two halves: obs uint8 [N, 8, 8, 3], actions 0 to 3 [N], rewards float32 [N].

    bandit: one quadrant is lit; naming it pays 1; one step per episode.
    grid: walk from a random cell (green) to the goal (red): each step costs 0.02, the goal pays 1; at most 40 steps.
    memory: the first frame lights a quadrant, three dark frames follow; at the white frame, naming the quadrant pays 1.
    info["level_seed"], int64 [N]: the quadrant, or the first cell. Raises UserError for an unknown task.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, task: str, num_envs: int, seed: int = 0) -> None:
        if task not in TASKS:
            raise UserError(f"There is no toy task '{task}'{suggest(task, TASKS)}")
        self.task, self.num_envs = task, num_envs
        # steps since the episode began; the quadrant, or the first cell; the agent's cell in `grid`
        self.clock, self.level, self.place = np.zeros((3, num_envs), np.int64)
        self.reset(seed=seed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin a new episode in every copy; with seed, restart from it."""
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self._begin(np.ones(self.num_envs, np.bool_))
        return self.observe()

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions [N] for step_wait."""
        self.actions = np.asarray(actions, np.int64)

    def step_wait(self) -> Step:
        """Play the step. Returns obs (of the next episode where one ended), reward, terminated, truncated, info."""
        self.clock += 1
        done = self.clock == TASKS[self.task]
        if self.task == "grid":
            cell = np.stack(np.divmod(self.place, SIZE), axis=1) + MOVES[self.actions]
            self.place = cell.clip(0, SIZE - 1) @ (SIZE, 1)
            arrived = self.place == GOAL
            reward, done = arrived - STEP_COST, arrived | done
        else:
            reward = done & (self.actions == self.level)
        self._begin(done)
        obs, info = self.observe()
        return obs, reward.astype(np.float32), done, np.zeros_like(done), info

    def observe(self) -> tuple[np.ndarray, dict[str, Any]]:
        """The current obs [N, 8, 8, 3] and info, without a step."""
        obs = np.zeros((self.num_envs, SIZE, SIZE, 3), np.uint8)
        if self.task == "grid":
            obs[..., 0], obs[..., 1] = 255 * CELL[GOAL], 255 * CELL[self.place]
        else:
            first = self.clock == 0
            obs[first, ..., 0] = 255 * QUADRANT[self.level[first]]
        if self.task == "memory":
            obs[self.clock == TASKS["memory"] - 1] = 255
        return obs, {"level_seed": self.level.copy(), "_level_seed": np.ones(self.num_envs, np.bool_)}

    def _begin(self, envs: np.ndarray) -> None:
        """Start a new episode in the copies where the mask [N] is True."""
        self.clock[envs] = 0
        if self.task == "grid":  # anywhere but on the goal
            self.place[envs] = (GOAL + self.rng.integers(1, SIZE**2, size=envs.sum())) % SIZE**2
            self.level[envs] = self.place[envs]
        else:
            self.level[envs] = self.rng.integers(len(MOVES), size=envs.sum())


def make_env(task: str, num_envs: int, seed: int = 0) -> EpisodeStatistics:
    """A ToyEnv with episode returns and lengths in info, as envs.make_env gives a game."""
    return EpisodeStatistics(ToyEnv(task, num_envs, seed))


def optimal_return(task: str) -> float:
    """The mean return of the best policy."""
    return float(np.nanmean(optimal_value(gamma=1.0))) if task == "grid" else 1.0


def optimal_value(gamma: float) -> np.ndarray:
    """The best discounted return from each cell of `grid`, [8, 8] (nan at the goal): d steps at 0.02 each, then 1."""
    row, column = np.divmod(np.arange(SIZE**2), SIZE)
    distance = np.abs(row - GOAL // SIZE) + np.abs(column - GOAL % SIZE)
    value = [gamma ** (d - 1) - STEP_COST * sum(gamma**k for k in range(d)) if d else np.nan for d in distance]
    return np.array(value).reshape(SIZE, SIZE)


@torch.no_grad()
def grid_map(policy: ActorCritic) -> tuple[np.ndarray, np.ndarray]:
    """A feed-forward policy's value of each cell of `grid` and its most likely action there; see optimal_value."""
    env = ToyEnv("grid", SIZE**2)
    env.place = np.arange(SIZE**2)
    obs = torch.from_numpy(env.observe()[0])
    logits, value, _ = policy(obs, policy.initial_state(SIZE**2), torch.ones(SIZE**2, dtype=torch.bool))
    return value.reshape(SIZE, SIZE).numpy(), logits.argmax(-1).reshape(SIZE, SIZE).numpy()


class TinyEncoder(nn.Linear):
    """uint8 images [B, 8, 8, 3] -> features [B, FEATURES]: one linear layer and a ReLU."""

    def forward(self, obs: Tensor) -> Tensor:
        return super().forward(obs.flatten(1).float() / 255).relu()


def tiny_policy(config: PPOConfig) -> ActorCritic:
    """An ActorCritic for the toy tasks whose encoder, GRU and heads are replaced by small ones."""
    policy = ActorCritic(len(MOVES), config.recurrent, obs_shape=(SIZE, SIZE, 3))
    policy.state_size = FEATURES if config.recurrent else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "weights"))
        policy.encoder = TinyEncoder(SIZE * SIZE * 3, FEATURES)
        policy.core = GRUCore(FEATURES) if config.recurrent else None
        policy.actor, policy.critic = nn.Linear(FEATURES, len(MOVES)), nn.Linear(FEATURES, 1)
        orthogonal_init(policy)
        orthogonal_init(policy.actor, gain=0.01)
        orthogonal_init(policy.critic, gain=1.0)
    return policy


def toy_config(**changes: object) -> PPOConfig:
    """Settings that fit the toy tasks; any field can be changed."""
    fields = dict(num_envs=32, num_steps=40, total_steps=40_000, num_epochs=4, learning_rate=2e-3, gamma=0.98,
                  num_minibatches=4, recurrent=False, sequence_length=20, normalize_reward=False)  # fmt: skip
    return PPOConfig.from_dict({**fields, **changes})


def train(task: str, config: PPOConfig, ppo: PPO | None = None) -> tuple[ActorCritic, dict[str, np.ndarray]]:
    """Train PPO on a toy task (1707.06347, algorithm 1), on the CPU. ppo: default PPO with `tiny_policy`.

    Returns the policy and columns [updates]: "steps", "return_mean" (the mean raw return of the episodes that ended in
    the update) and the metrics of PPO.update.
    """
    ppo = ppo or PPO(tiny_policy(config), config)
    collector = Collector(ppo, [make_env(task, config.num_envs, derive_seed(config.seed, "train"))])
    length = config.sequence_length if config.recurrent else None
    storage = RolloutStorage(config.num_steps, config.num_envs, (SIZE, SIZE, 3), ppo.policy.state_size, length)
    rows = []
    for update in range(1, config.num_updates + 1):
        collector.recent = deque()  # every episode of this update, not only the last 100
        storage.compute_advantages(collector.collect(storage), config.gamma, config.gae_lambda)
        metrics = ppo.update(storage)
        return_mean = np.mean([r for r, _ in collector.recent] or [np.nan])
        rows.append({"steps": update * config.batch_size, "return_mean": return_mean, **metrics})
    return ppo.policy, {name: np.array([row[name] for row in rows]) for name in rows[0]}
