"""Tiny tasks whose best return is known, with the interface of the real games.

- `bandit`: one look, one choice. `grid`: walk to a goal; credit must travel back in time. `memory`: a cue is seen
  once and asked for later; without memory the best policy guesses.
- uint8 images, SAME_STEP autoreset, step_async/step_wait, exact state, as ProcgenVectorEnv has them: storage, PPO and
  `evaluate.play` run on them unchanged.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ppo_lib.config import UserError
from ppo_lib.wrappers import EpisodeStatistics

TASKS = ("bandit", "grid", "memory")
SIZE = 8  # height and width of the image, and of the grid
NUM_ACTIONS = 4  # up, right, down, left; or quadrant 0 to 3
MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])
GOAL = 14  # the cell (row 1, column 6) that `grid` ends at
STEP_COST = 0.02
STEP_LIMIT = 40  # an episode of `grid` ends after so many steps
DARK_STEPS = 3  # of `memory`, between the cue and the question


def optimal_return(task: str) -> float:
    """The mean return of the best policy: what a working algorithm must reach."""
    if task != "grid":
        return 1.0
    return float(np.delete(optimal_value(gamma=1.0).ravel(), GOAL).mean())


def optimal_value(gamma: float) -> np.ndarray:
    """The best discounted return from each cell of `grid`, [8, 8] (nan at the goal): d steps at 0.02, then 1."""
    row, column = np.divmod(np.arange(SIZE**2), SIZE)
    distance = np.abs(row - GOAL // SIZE) + np.abs(column - GOAL % SIZE)
    value = [gamma ** (d - 1) - STEP_COST * sum(gamma**k for k in range(d)) if d else np.nan for d in distance]
    return np.array(value).reshape(SIZE, SIZE)


class ToyEnv(VectorEnv):
    """N copies of a task. Observations uint8 [N, 8, 8, 3], actions 0 to 3 [N], rewards float32 [N].

    bandit: one quadrant is lit; naming it earns 1; episodes of one step.
    grid: walk from a random cell (green) to the goal (red): each step costs 0.02, the goal pays 1; 40 steps at most.
    memory: a quadrant is lit in the first frame, then three dark ones follow; at the white frame the quadrant is asked.
    info holds "level_seed" int64 [N]: the quadrant, or the cell that the walk began in.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": ["rgb_array"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(self, task: str, num_envs: int, seed: int = 0) -> None:
        """Start N episodes. Raises UserError for an unknown task."""
        if task not in TASKS:
            raise UserError(f"There is no toy task {task!r}; choose one of: {', '.join(TASKS)}.")
        self.task, self.num_envs, self.render_mode = task, num_envs, "rgb_array"
        self.single_observation_space = spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.single_action_space = spaces.Discrete(NUM_ACTIONS)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.rng = np.random.default_rng(seed)
        self.clock = np.zeros(num_envs, np.int64)  # steps since the episode began
        self.level = np.zeros(num_envs, np.int64)  # the quadrant, or the first cell
        self.place = np.zeros(num_envs, np.int64)  # the agent's cell in `grid`
        self.actions = np.zeros(num_envs, np.int64)
        self._begin(np.ones(num_envs, np.bool_))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin a new episode in every copy; with seed, restart from it."""
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self._begin(np.ones(self.num_envs, np.bool_))
        return self.observe()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """step_async and step_wait in one."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions [N] for step_wait."""
        self.actions = np.asarray(actions, np.int64)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Play the step: obs (of the next episode where one ended), reward, terminated, truncated, info."""
        self.clock += 1
        if self.task == "grid":
            cell = np.stack(np.divmod(self.place, SIZE), axis=1) + MOVES[self.actions]
            row, column = cell.clip(0, SIZE - 1).T
            self.place = row * SIZE + column
            arrived = self.place == GOAL
            reward, done = arrived - STEP_COST, arrived | (self.clock == STEP_LIMIT)
        else:
            done = self.clock == (1 if self.task == "bandit" else DARK_STEPS + 2)
            reward = done & (self.actions == self.level)
        self._begin(done)
        obs, info = self.observe()
        return obs, reward.astype(np.float32), done, np.zeros_like(done), info

    def observe(self) -> tuple[np.ndarray, dict[str, Any]]:
        """The current obs [N, 8, 8, 3] and info without a step."""
        return self._draw(), {"level_seed": self.level.copy(), "_level_seed": np.ones(self.num_envs, np.bool_)}

    def get_state(self) -> dict[str, Any]:
        """All that determines how the copies go on, as plain numbers and lists."""
        state = {name: getattr(self, name).tolist() for name in ("clock", "level", "place")}
        return {**state, "rng": self.rng.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where get_state was called."""
        for name in ("clock", "level", "place"):
            setattr(self, name, np.array(state[name], np.int64))
        self.rng.bit_generator.state = state["rng"]

    def render(self) -> tuple[np.ndarray, ...]:
        """N frames [512, 512, 3]: the observation, enlarged."""
        return tuple(self._draw().repeat(64, axis=1).repeat(64, axis=2))

    def _begin(self, which: np.ndarray) -> None:
        """Start a new episode in the copies of the mask [N]."""
        count = int(which.sum())
        self.clock[which] = 0
        if self.task == "grid":
            self.level[which] = (GOAL + self.rng.integers(1, SIZE**2, size=count)) % SIZE**2  # any cell but the goal
            self.place[which] = self.level[which]
        else:
            self.level[which] = self.rng.integers(NUM_ACTIONS, size=count)

    def _draw(self) -> np.ndarray:
        """uint8 [N, 8, 8, 3]."""
        obs = np.zeros((self.num_envs, SIZE, SIZE, 3), np.uint8)
        env = np.arange(self.num_envs)
        if self.task == "grid":
            obs[env, self.place // SIZE, self.place % SIZE, 1] = 255
            obs[:, GOAL // SIZE, GOAL % SIZE, 0] = 255
            return obs
        lit = obs.reshape(self.num_envs, 2, SIZE // 2, 2, SIZE // 2, 3)  # a view: quadrant row, y, quadrant column, x
        seen = env[self.clock == 0]
        lit[seen, self.level[seen] // 2, :, self.level[seen] % 2, :, 0] = 255
        if self.task == "memory":
            obs[self.clock == DARK_STEPS + 1] = 255
        return obs


def make_env(task: str, num_envs: int, seed: int = 0) -> EpisodeStatistics:
    """A ToyEnv with episode returns and lengths in info, as envs.make_env gives a game."""
    return EpisodeStatistics(ToyEnv(task, num_envs, seed))
