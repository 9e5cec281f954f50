"""ProcgenVectorEnv: one vectorised gymnasium environment over every build of Procgen.

- SAME_STEP autoreset: at the step that ends an episode the reward belongs to the old episode and the observation to
  the new one. Procgen resets inside that step and never shows the last picture, so there is no `final_obs`.
- Procgen doesn't tell a time-out (1,000 steps at most) from an end, so `truncated` is always False.
- `step_async` returns at once and the games play in C++ threads; `step_wait` collects. The GIL is free meanwhile.
- Every array that is handed out is a copy of its own: it never changes afterwards.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ppo_lib.config import GAMES, LEVEL_LIMIT, UserError
from ppo_lib.procgen.library import OBS_SHAPE, Games, looks_like_state
from ppo_lib.procgen.options import choose_levels, default_threads, need, whole

NUM_ACTIONS = 15


class ProcgenVectorEnv(VectorEnv):
    """`num_envs` games of one kind, stepped together.

    Observations are uint8 [N, 64, 64, 3] (RGB), actions whole numbers 0 to 14 [N], rewards float32 [N].
    info holds "level_seed" int64 [N], the level that each observation belongs to; at steps that end episodes also
    "final_level_seed" int64 [N] and "level_complete" bool [N] of the ended episodes, both valid where
    "_final_level_seed" / "_level_complete" bool [N] is True.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": ["rgb_array"],
        "render_fps": 15,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

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
            distribution_mode: difficulty: easy, hard, extreme (4 games), memory (6), or exploration (8): that is one
                hard level that is difficult to explore, whatever num_levels and start_level say.
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
        need(env_name in GAMES, f"There is no Procgen game {env_name!r}; choose one of: {', '.join(GAMES)}.")
        need(render_mode in (None, "rgb_array"), f"render_mode must be 'rgb_array' or None, not {render_mode!r}.")
        self.num_envs = whole("num_envs", num_envs, 1, 2**16)
        threads = default_threads(self.num_envs) if num_threads is None else num_threads
        difficulty, levels = choose_levels(env_name, distribution_mode, num_levels, start_level)
        self.env_name = env_name
        self.render_mode = render_mode
        self.single_observation_space = gymnasium.spaces.Box(0, 255, OBS_SHAPE, np.uint8)
        self.single_action_space = gymnasium.spaces.Discrete(NUM_ACTIONS)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._options: dict[str, bool | int | str] = {
            "env_name": env_name,
            "num_levels": levels[1],
            "start_level": levels[0],
            "distribution_mode": difficulty,
            "num_actions": NUM_ACTIONS,
            "num_threads": whole("num_threads", threads, 0, 1024),
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
            need(
                theirs.get(name) == mine[name],
                f"The saved games have {name}={theirs.get(name)!r} but this environment has {mine[name]!r}; "
                "make it with the same settings.",
            )
        saved = state["games"]
        need(
            len(saved) == self.num_envs and all(looks_like_state(game, self.env_name) for game in saved),
            "The saved games are damaged; go on from an older checkpoint.",
        )
        games.set_state(saved)
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
        """End the threads of an environment that was forgotten."""
        if getattr(self, "_games", None) is not None:
            self.close()

    def _start(self, seed: int) -> None:
        """(Re)create the games so that they play the sequence of levels of this seed."""
        seed = whole("seed", seed, 0, LEVEL_LIMIT - 1)
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
