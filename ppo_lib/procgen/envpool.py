"""The Procgen games of envpool, where no other build exists: Macs with Apple silicon, Linux on ARM, Python 3.14.

- The same C++ games: a level's rewards and ends are those of the other builds. Backgrounds are drawn differently, and
  so are the edges of sprites, if less in StarPilot than elsewhere. A seed gives another sequence of levels.
- envpool returns the last observation of an episode and begins the next episode at the next call. Here that call is
  made within the same step, for the ended games alone: no game is stepped twice, and no reward is lost.
- It can't save games. A run resumes with new episodes.
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from ppo_lib.config import UserError, derive_seed
from ppo_lib.procgen.library import FRAME_SHAPE, OBS_SHAPE

MODES = {0: "Easy", 1: "Hard", 2: "Extreme", 10: "Memory"}  # distribution_mode in the names of envpool's tasks
NO_LIMIT = 2**30  # steps; the games end episodes at their own limits


class EnvPoolGames:
    """N games of envpool with the arrays and calls of `library.Games`."""

    def __init__(self, num: int, options: dict[str, bool | int | str], render: bool) -> None:
        """Start `num` games; `options` are Procgen's own, all of the right type and range."""
        import envpool  # takes a second

        own = {name: options[name] for name in ("use_backgrounds", "restrict_themes", "center_agent")}
        own |= {"num_levels": options["num_levels"], "start_level": options["start_level"]}
        own |= (
            {"render_mode": "rgb_array", "render_width": FRAME_SHAPE[1], "render_height": FRAME_SHAPE[0]}
            if render
            else {}
        )
        self._pool = envpool.make(
            f"{str(options['env_name']).capitalize()}{MODES[options['distribution_mode']]}-v0",
            env_type="gymnasium",
            num_envs=num,
            seed=[derive_seed(options["rand_seed"], i) for i in range(num)],
            num_threads=max(1, options["num_threads"]),  # 0 would be one per core
            max_episode_steps=NO_LIMIT,
            channel_first=False,
            **own,
        )
        self._all = np.arange(num, dtype=np.int32)
        self.obs = np.zeros((num, *OBS_SHAPE), np.uint8)
        self.frames = np.zeros((num, *FRAME_SHAPE), np.uint8) if render else None
        self.actions = np.zeros(num, np.int32)
        self.reward = np.zeros(num, np.float32)
        self.done = np.zeros(num, np.bool_)
        self.level_complete = np.zeros(num, np.bool_)
        self.level, self.ended_level = np.zeros(num, np.int32), np.zeros(num, np.int32)
        self._stepping = False
        self._begin(self._all)
        self._draw()

    def act(self) -> None:
        """Start a step with `self.actions` (-1 in all of them: new episodes)."""
        self._stepping = self.actions[0] >= 0
        if self._stepping:
            self._pool.send(self.actions, self._all)
        else:
            self._begin(self._all)

    def wait(self) -> None:
        """Wait until the step is done, begin new episodes in the games that ended, and fill the arrays."""
        if self._stepping:
            obs, reward, terminated, truncated, info = self._pool.recv()
            order, self._stepping = info["env_id"], False
            self.obs[order], self.reward[order], self.done[order] = obs, reward, terminated | truncated
            self.level_complete[order] = info["prev_level_complete"]
            self.ended_level[:] = self.level
            if self.done.any():
                self._begin(self._all[self.done])
        self._draw()

    def get_state(self) -> NoReturn:
        """Raise UserError: envpool can't save its games."""
        raise UserError("envpool can't save its games: install another build of Procgen, where there is one.")

    def set_state(self, states: list[bytes]) -> NoReturn:
        """Raise UserError, as get_state."""
        self.get_state()

    def close(self) -> None:
        """End the games and their threads. The games can't be used afterwards."""
        self._pool = None

    def _begin(self, games: np.ndarray) -> None:
        """Begin a new episode in the games of these indices."""
        obs, info = self._pool.reset(games)
        order = info["env_id"]
        self.obs[order], self.level[order] = obs, info["level_seed"]

    def _draw(self) -> None:
        if self.frames is not None:
            self.frames[:] = self._pool.render(self._all)
