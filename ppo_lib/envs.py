"""One vectorised gymnasium environment over every build of Procgen.

- SAME_STEP autoreset: at the step that ends an episode the reward belongs to the old episode and the observation to
  the new one. Procgen resets inside that step and never shows the last picture, so there is no `final_obs`.
- Procgen doesn't tell a time-out (1,000 steps at most) from an end, so `truncated` is always False.
- `step_async` returns at once and the games play in C++ threads; `step_wait` collects. The GIL is free meanwhile.
- Every array that is handed out is a copy of its own: it never changes afterwards.
"""

from __future__ import annotations

import operator
import os
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ppo_lib.config import GAMES, LEVEL_LIMIT, PPOConfig, UserError, derive_seed
from ppo_lib.libenv import OBS_SHAPE, Games, ProcgenBuild, procgen_build
from ppo_lib.wrappers import EpisodeStatistics

__all__ = ["NUM_ACTIONS", "ProcgenBuild", "ProcgenEnv", "ProcgenVectorEnv", "make_env", "procgen_build", "register"]

NUM_ACTIONS = 15
MAX_THREADS = 16  # more only wait for one another's lock
DIFFICULTIES = {"easy": 0, "hard": 1, "extreme": 2, "memory": 10}  # codes of distribution_mode in the C++ games
# The C++ games abort the process when they don't have the mode that is asked for.
ONLY_IN = {
    "extreme": ("chaser", "dodgeball", "leaper", "starpilot"),
    "memory": ("caveflyer", "dodgeball", "heist", "jumper", "maze", "miner"),
}


class ProcgenVectorEnv(VectorEnv):
    """`num_envs` games of one kind, stepped together.

    Observations are uint8 [N, 64, 64, 3] (RGB), actions whole numbers 0 to 14 [N], rewards float32 [N].
    info holds "level_seed" int64 [N], the level that each observation belongs to; at steps that end episodes also
    "final_level_seed" int64 [N] and "level_complete" bool [N] of the ended episodes, both valid where
    "_final_level_seed" / "_level_complete" bool [N] is True.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15, "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        env_name: str = "starpilot",
        num_envs: int = 1,
        *,
        num_levels: int = 0,
        start_level: int = 0,
        distribution_mode: str = "easy",
        use_backgrounds: bool = True,
        restrict_themes: bool = False,
        seed: int = 0,
        num_threads: int | None = None,
        render_mode: str | None = None,
        center_agent: bool = True,
        use_generated_assets: bool = False,
        use_monochrome_assets: bool = False,
        paint_vel_info: bool = False,
        use_sequential_levels: bool = False,
    ) -> None:
        """Start the games.

        Args:
            env_name: one of the 16 games, see config.GAMES.
            num_envs: N, games side by side.
            num_levels: levels to draw from; 0 = all 2^31 - 1 (start_level is then ignored).
            start_level: seed of the first level.
            distribution_mode: difficulty: easy, hard, extreme (4 games), memory (6 games).
            use_backgrounds: draw picture backgrounds.
            restrict_themes: one set of sprites for all levels.
            seed: of the sequence of levels, 0 to 2^31 - 2. Same seed and actions: same games, whatever num_threads.
            num_threads: game threads; 0 = play in the calling thread; None = one for each CPU, at most 16 and N.
            render_mode: "rgb_array" draws 512x512 frames at every step (slow); None doesn't.
            center_agent: keep the agent in the middle, where the game has a camera.
            use_generated_assets: random shapes in place of drawn sprites.
            use_monochrome_assets: plain rectangles in place of drawn sprites.
            paint_vel_info: paint the agent's velocity into the top left corner.
            use_sequential_levels: go on to level seed + 997 after a completed level, within the same episode; those
                levels lie outside num_levels.

        Raises UserError if a value is out of range, the game lacks the difficulty, or Procgen is missing.
        """
        _need(env_name in GAMES, f"There is no Procgen game {env_name!r}; choose one of: {', '.join(GAMES)}.")
        _need(distribution_mode in DIFFICULTIES, f"distribution_mode must be one of {', '.join(DIFFICULTIES)}.")
        having = ONLY_IN.get(distribution_mode, GAMES)
        _need(env_name in having, f"{env_name} has no {distribution_mode} mode; only {', '.join(having)} do.")
        _need(render_mode in (None, "rgb_array"), f"render_mode must be 'rgb_array' or None, not {render_mode!r}.")
        self.num_envs = _whole("num_envs", num_envs, 1, 2**16)
        threads = _default_threads(self.num_envs) if num_threads is None else num_threads
        num_levels = _whole("num_levels", num_levels, 0, LEVEL_LIMIT)
        start_level = _whole("start_level", start_level, 0, LEVEL_LIMIT - num_levels)
        self.env_name = env_name
        self.render_mode = render_mode
        self.single_observation_space = gymnasium.spaces.Box(0, 255, OBS_SHAPE, np.uint8)
        self.single_action_space = gymnasium.spaces.Discrete(NUM_ACTIONS)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._options: dict[str, bool | int | str] = {
            "env_name": env_name,
            "num_levels": num_levels,
            "start_level": start_level,
            "distribution_mode": DIFFICULTIES[distribution_mode],
            "num_actions": NUM_ACTIONS,
            "num_threads": _whole("num_threads", threads, 0, 1024),
            "use_backgrounds": bool(use_backgrounds),
            "restrict_themes": bool(restrict_themes),
            "center_agent": bool(center_agent),
            "use_generated_assets": bool(use_generated_assets),
            "use_monochrome_assets": bool(use_monochrome_assets),
            "paint_vel_info": bool(paint_vel_info),
            "use_sequential_levels": bool(use_sequential_levels),
        }
        self._games: Games | None = None
        self._start(seed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin a new episode in every game; returns obs [N, 64, 64, 3] and info.

        With `seed` the games restart from it, as if the environment had been made with it. Without, an episode that
        has neither been returned by a reset nor stepped is used as it is; others are given up and the next level is
        drawn. A step that is under way is dropped.
        """
        games = self._alive()
        if options and "reset_mask" in options:
            raise UserError("Procgen's games are stepped together, so some of them can't be reset alone.")
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
        super().reset(seed=seed)  # only keeps np_random for gymnasium; the games have their own generators
        return games.obs.copy(), self._info(np.zeros(self.num_envs, np.bool_))

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """step_async and step_wait in one."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: np.ndarray) -> None:
        """Start a step with actions [N] and return at once; the games play while the caller goes on.

        Raises UserError if the actions have another shape or are no whole numbers from 0 to 14.
        """
        games = self._alive()
        self._not_pending("step_async")
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise UserError(
                f"Actions must be whole numbers of shape ({self.num_envs},), not {actions.dtype} of {actions.shape}."
            )
        if actions.min() < 0 or actions.max() >= NUM_ACTIONS:
            raise UserError(f"Actions must be from 0 to {NUM_ACTIONS - 1}, not {actions.min()} to {actions.max()}.")
        games.actions[:] = actions
        games.act()
        self._pending = True

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Wait for the step's end; returns obs, reward, terminated, truncated, info (see the class)."""
        games = self._alive()
        if not self._pending:
            raise NoAsyncCallError("step_wait() needs a step_async(actions) before it.", "step")
        games.wait()
        self._pending = False
        done = games.done.copy()
        self._fresh = bool(done.all())
        return games.obs.copy(), games.reward.copy(), done, np.zeros_like(done), self._info(done)

    def observe(self) -> tuple[np.ndarray, dict[str, Any]]:
        """The current obs [N, 64, 64, 3] and info without a step, as after set_state."""
        games = self._alive()
        self._not_pending("observe")
        return games.obs.copy(), self._info(np.zeros(self.num_envs, np.bool_))

    def get_state(self) -> dict[str, Any]:
        """All that determines how the games go on: plain bytes and numbers, about 30 kB a game."""
        games = self._alive()
        self._not_pending("get_state")
        return {"options": self._identity(), "games": games.get_state(), "fresh": self._fresh}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where get_state was called, in this or another environment of the same game and size.

        `observe()` then returns the observation that was current. Raises UserError if the state is of other options.
        """
        games = self._alive()
        self._not_pending("set_state")
        mine, theirs = self._identity(), dict(state["options"])
        for name in mine:
            _need(
                theirs.get(name) == mine[name],
                f"The saved games have {name}={theirs.get(name)!r} but this environment has {mine[name]!r}; "
                "make it with the same settings.",
            )
        games.set_state(state["games"])
        self._fresh = bool(state["fresh"])

    def render(self) -> tuple[np.ndarray, ...]:
        """N uint8 frames [512, 512, 3] of the current step; needs render_mode="rgb_array"."""
        games = self._alive()
        if games.frames is None:
            raise UserError('Frames are drawn only if the environment is made with render_mode="rgb_array".')
        return tuple(frame.copy() for frame in games.frames)

    def close_extras(self, **kwargs: Any) -> None:
        """End the games and their threads (close() calls this once)."""
        games, self._games = self._games, None
        if games is not None:
            games.close()

    def __del__(self) -> None:
        if getattr(self, "_games", None) is not None:
            self.close()

    def _start(self, seed: int) -> None:
        """(Re)create the games so that they play the sequence of levels of this seed."""
        seed = _whole("seed", seed, 0, LEVEL_LIMIT - 1)
        self.close_extras()
        self._games = Games(self.num_envs, {**self._options, "rand_seed": seed}, self.render_mode is not None)
        self._pending = False  # a step_async awaits its step_wait
        self._fresh = True  # every game is at the start of an episode that nobody has seen

    def _info(self, done: np.ndarray) -> dict[str, Any]:
        """The info dict in gymnasium's form: a value [N] and a mask [N] for each key."""
        games = self._alive()
        info: dict[str, Any] = {
            "level_seed": games.level.astype(np.int64),
            "_level_seed": np.ones(self.num_envs, np.bool_),
        }
        if done.any():
            info["final_level_seed"] = np.where(done, games.ended_level, 0).astype(np.int64)
            info["_final_level_seed"] = done.copy()
            info["level_complete"] = games.level_complete & done
            info["_level_complete"] = done.copy()
        return info

    def _identity(self) -> dict[str, Any]:
        """What a saved state must have in common with the environment that it is loaded into."""
        kept = {name: value for name, value in self._options.items() if name != "num_threads"}
        return {**kept, "num_envs": self.num_envs}

    def _alive(self) -> Games:
        if self._games is None:
            raise ClosedEnvironmentError("This environment is closed; make a new one.")
        return self._games

    def _not_pending(self, call: str) -> None:
        if self._pending:
            raise AlreadyPendingCallError(f"{call}() must wait for step_wait(): a step is under way.", "step")


class ProcgenEnv(gymnasium.Env):
    """One game as a plain gymnasium.Env, for gymnasium.make. Options as in ProcgenVectorEnv.

    At an episode's end the observation is already the next episode's first, which reset() then returns again.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}

    def __init__(self, env_name: str = "starpilot", *, render_mode: str | None = None, **options: Any) -> None:
        self._games = ProcgenVectorEnv(env_name, 1, num_threads=0, render_mode=render_mode, **options)
        self.render_mode = render_mode
        self.observation_space = self._games.single_observation_space
        self.action_space = self._games.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """A new episode: obs [64, 64, 3] and {"level_seed": int}."""
        super().reset(seed=seed)
        obs, info = self._games.reset(seed=seed, options=options)
        return obs[0], _first(info)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step of the game."""
        obs, reward, terminated, truncated, info = self._games.step(np.array([action]))
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first(info)

    def render(self) -> np.ndarray:
        """The current frame, uint8 [512, 512, 3]."""
        return self._games.render()[0]

    def close(self) -> None:
        """End the game."""
        self._games.close()


def make_env(
    config: PPOConfig,
    split: str = "train",
    *,
    num_envs: int | None = None,
    seed: int | None = None,
    levels: tuple[int, int] | None = None,
    num_threads: int | None = None,
    render: bool = False,
) -> EpisodeStatistics:
    """The games of a run, with episode returns and lengths in info.

    Args:
        config: game, difficulty, look, and which levels are for training.
        split: "train" plays config.train_levels, "unseen" config.unseen_levels, which are disjoint from them.
        num_envs: N; default config.num_envs.
        seed: of the sequence of levels; default derived from config.seed and split.
        levels: (first seed, number) to play instead; with "unseen" they must not overlap the training levels.
        num_threads: see ProcgenVectorEnv.
        render: draw 512x512 frames for render().

    Raises UserError if split is unknown, levels are out of range or overlap, or Procgen is missing.
    """
    _need(split in ("train", "unseen"), f"split must be 'train' or 'unseen', not {split!r}.")
    first, count = levels or (config.train_levels if split == "train" else config.unseen_levels)
    _need(
        first >= 0 and count >= 1 and first + count <= LEVEL_LIMIT,
        f"levels must be (first seed, number) with at least one level, all seeds from 0 to {LEVEL_LIMIT - 1}.",
    )
    train_first, train_count = config.train_levels
    _need(
        split == "train" or first >= train_first + train_count or first + count <= train_first,
        f"Levels {first} to {first + count - 1} overlap the training levels {train_first} to "
        f"{train_first + train_count - 1}, so they are not unseen; start at {train_first + train_count} or above.",
    )
    env = ProcgenVectorEnv(
        config.env_name,
        config.num_envs if num_envs is None else num_envs,
        num_levels=count,
        start_level=first,
        distribution_mode=config.distribution_mode,
        use_backgrounds=config.use_backgrounds,
        restrict_themes=config.restrict_themes,
        seed=derive_seed(config.seed, split) if seed is None else seed,
        num_threads=num_threads,
        render_mode="rgb_array" if render else None,
    )
    return EpisodeStatistics(env)


def register() -> list[str]:
    """Register every game with gymnasium as "ppo_lib/Game-v0", for make and make_vec; returns the ids."""
    ids = {game: f"ppo_lib/{'StarPilot' if game == 'starpilot' else game.capitalize()}-v0" for game in GAMES}
    for game, name in ids.items():
        if name not in gymnasium.registry:
            gymnasium.register(
                name,
                entry_point="ppo_lib.envs:ProcgenEnv",
                vector_entry_point="ppo_lib.envs:ProcgenVectorEnv",
                kwargs={"env_name": game},
            )
    return list(ids.values())


def _default_threads(num_envs: int) -> int:
    """One thread for each CPU that this process may use, but no more than there is work for."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, num_envs, MAX_THREADS)


def _need(condition: bool, sentence: str) -> None:
    if not condition:
        raise UserError(sentence)


def _whole(name: str, value: object, low: int, high: int) -> int:
    """`value` as an int if it is a whole number from low to high, else UserError."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = low - 1
    _need(low <= number <= high, f"{name} must be a whole number from {low} to {high}, not {value!r}.")
    return number


def _first(info: dict[str, Any]) -> dict[str, Any]:
    """The info of game 0 in plain Python values, without masks."""
    return {name: value[0].item() for name, value in info.items() if not name.startswith("_")}
