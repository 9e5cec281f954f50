"""ProcgenVectorEnv: one vectorised gymnasium environment for all builds of Procgen.

- SAME_STEP autoreset: at the step that ends an episode the reward belongs to the old episode and the observation to
  the new one. Procgen resets within that step and never shows the last observation, so there is no `final_obs`.
- `step_async` returns at once and the games play in C++ threads; `step_wait` collects. The GIL is free meanwhile.
- Every returned array is a copy that never changes afterwards.
- What PPOConfig does not check is checked here: a bad option makes the C++ code exit the process.
"""

from __future__ import annotations

import os
import warnings
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ppo_lib.config import LEVEL_LIMIT, PPOConfig, UserError
from ppo_lib.procgen.envpool import EnvPoolGames
from ppo_lib.procgen.library import OBS_SHAPE, Games, looks_like_state, procgen_build

NUM_ACTIONS = 15
MAX_THREADS = 16  # more threads only wait for each other's lock
DIFFICULTIES = {"easy": 0, "hard": 1, "extreme": 2, "memory": 10}  # codes of distribution_mode in the C++ games


class ProcgenVectorEnv(VectorEnv):
    """`num_envs` instances of one game, stepped together; `make_env` documents the arguments.

    Observations are uint8 [N, 64, 64, 3] (RGB), actions integers from 0 to 14 [N], rewards float32 [N].
    info holds "level_seed" int64 [N], the level that each observation belongs to; at steps that end episodes also
    "final_level_seed" int64 [N] and "level_complete" bool [N] of the ended episodes, both valid where
    "_final_level_seed" / "_level_complete" bool [N] is True.

    `truncated` is always False. Games other than StarPilot can reach their step limit (1,000 steps at most); Procgen
    does not report it, and published baselines treat it as the end of the episode, so we do, too.
    Raises UserError if a value is out of range or Procgen is missing.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.SAME_STEP}
    _games: Games | EnvPoolGames | None = None  # None: closed
    _pending = False  # whether a step_async awaits its step_wait

    def __init__(
        self, config: PPOConfig, levels: tuple[int, int], num_envs: int, seed: int, threads: int | None, render: bool
    ) -> None:
        try:
            self._build = procgen_build(config.build)
        except UserError:
            self._build = procgen_build()
            told = f"{config.build} is not installed: {self._build.package} plays, which draws differently."
            warnings.warn(told, stacklevel=2)
        self.num_envs = _integer("num_envs", num_envs, 1, 2**16)
        limit = os.environ.get("OMP_THREAD_LIMIT", "")  # `--threads` sets it
        most = min(usable_cores(), self.num_envs, MAX_THREADS, int(limit) if limit.isdecimal() else MAX_THREADS)
        self._threads = _integer("num_threads", most if threads is None else threads, 0, 1024)
        count = _integer("the number of levels", levels[1], 1, LEVEL_LIMIT)
        self._options = {
            "env_name": config.env_name,
            "num_levels": count,
            "start_level": _integer("the first level", levels[0], 0, LEVEL_LIMIT - count),
            "distribution_mode": DIFFICULTIES[config.distribution_mode],
            "num_actions": NUM_ACTIONS,
            "use_backgrounds": config.use_backgrounds,
            "restrict_themes": config.restrict_themes,
            "center_agent": True,  # as in the published benchmark; not the C++ default
        }
        self._identity = {**self._options, "num_envs": self.num_envs}  # what saved games must have in common with these
        self.render_mode = "rgb_array" if render else None
        self.single_observation_space = gymnasium.spaces.Box(0, 255, OBS_SHAPE, np.uint8)
        self.single_action_space = gymnasium.spaces.Discrete(NUM_ACTIONS)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._start(seed)

    def _start(self, seed: int) -> None:
        """(Re)create the games with the sequence of levels of this seed."""
        seed = _integer("seed", seed, 0, LEVEL_LIMIT - 1)
        self.close_extras()
        options = {**self._options, "num_threads": self._threads, "rand_seed": seed}
        kind = Games if self.can_save else EnvPoolGames
        self._games = kind(self.num_envs, options, self.render_mode is not None)
        self._fresh = True  # every game is at the start of an episode that has not been returned yet

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin a new episode in every game; returns obs [N, 64, 64, 3] and info.

        With `seed` the games restart as if the environment had been made with it. Without, episodes that nobody has
        seen yet are used as they are; others are abandoned. A pending step is dropped.
        """
        games = self._alive()
        if self._pending:
            self.step_wait()
        if seed is not None:
            self._start(seed)
            games = self._alive()
        elif not self._fresh:
            games.actions[:] = -1
            games.act()
            games.wait()
        self._fresh = False
        return games.obs.copy(), self._info(games)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """step_async and step_wait in one."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: np.ndarray) -> None:
        """Start a step with actions [N] and return at once; the games play while the caller continues.

        Raises UserError if the actions have another shape or are not integers from 0 to 14.
        """
        games, actions = self._alive(idle_for="step_async"), np.asarray(actions)
        integers = actions.shape == (self.num_envs,) and actions.dtype.kind in "iu"
        if not integers or actions.min() < 0 or actions.max() >= NUM_ACTIONS:
            wanted, found = f"{self.num_envs} integers from 0 to {NUM_ACTIONS - 1}", np.unique(actions).tolist()
            raise UserError(f"Actions must be {wanted}, not {actions.dtype} {list(actions.shape)} of {found}.")
        games.actions[:] = actions
        games.act()
        self._pending = True

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Wait for the pending step; returns obs, reward, terminated, truncated, info (see the class)."""
        games = self._alive()
        if not self._pending:
            raise NoAsyncCallError("step_wait() needs a step_async(actions) before it.", "step")
        games.wait()
        self._pending = False
        done = games.done.copy()
        self._fresh = bool(done.all())
        return games.obs.copy(), games.reward.copy(), done, np.zeros_like(done), self._info(games, done)

    @property
    def can_save(self) -> bool:
        """Whether get_state and set_state work: envpool can't save its games, and they raise UserError."""
        return self._build.kind == "procgen"

    def get_state(self) -> dict[str, Any]:
        """Everything that determines how the games continue: plain bytes and numbers, about 30 kB per game."""
        games = self._alive(idle_for="get_state")
        return {"options": self._identity, "games": games.get_state(), "fresh": self._fresh}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue exactly from where get_state was called, in this or another environment of the same game and size.

        A pending step is dropped. Raises UserError if the state is damaged or comes from other options; the games
        then stay as they are.
        """
        games, saved = self._alive(), state["games"]
        if other := dict(self._identity.items() - state["options"].items()):
            raise UserError(f"The saved games do not have {other}: make the environment with the same settings.")
        if len(saved) != self.num_envs or not all(looks_like_state(game, self._options["env_name"]) for game in saved):
            raise UserError("The saved games are damaged; continue from an older checkpoint.")
        if self._pending:
            self.step_wait()
        games.set_state(saved)
        self._fresh = bool(state["fresh"])

    def render(self) -> tuple[np.ndarray, ...]:
        """N uint8 frames [512, 512, 3] of the current step; needs render=True."""
        frames = self._alive().frames
        if frames is None:
            raise UserError("Frames are drawn only if the environment is made with render=True.")
        return tuple(frames.copy())

    def close_extras(self, **kwargs: Any) -> None:
        """End the games and their threads (close() calls this once)."""
        if self._games is not None:
            self._games.close()
            self._games = None

    def _info(self, games: Games | EnvPoolGames, done: np.ndarray | None = None) -> dict[str, Any]:
        """The info dict in gymnasium's form: a value [N] and a mask [N] for each key."""
        info = {"level_seed": games.level.astype(np.int64), "_level_seed": np.ones(self.num_envs, np.bool_)}
        if done is not None and done.any():
            ended = np.where(done, games.ended_level, 0).astype(np.int64)
            info |= {"final_level_seed": ended, "_final_level_seed": done.copy()}
            info |= {"level_complete": games.level_complete & done, "_level_complete": done.copy()}
        return info

    def _alive(self, idle_for: str = "") -> Games | EnvPoolGames:
        """The games, unless they are closed or, with the name of a call that needs them idle, a step is pending."""
        if self._games is None:
            raise ClosedEnvironmentError("This environment is closed; make a new one.")
        if idle_for and self._pending:
            raise AlreadyPendingCallError(f"{idle_for}() must wait for step_wait(): a step is pending.", "step")
        return self._games


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _integer(name: str, value: object, low: int, high: int) -> int:
    """`value` as an int if it is an integer from low to high, else UserError."""
    if not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise UserError(f"{name} must be a whole number from {low} to {high}, not {value!r}.")
    return int(value)
