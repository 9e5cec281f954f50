"""Making environments: make_env for a run's train and unseen levels, and gymnasium ids for everybody else.

- Train and unseen levels are disjoint by construction (PPOConfig.unseen_levels); levels that overlap are refused.
- Each split has a seed of its own, so evaluation never touches the training games.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np

from ppo_lib.config import LEVEL_LIMIT, PPOConfig, derive_seed
from ppo_lib.procgen.env import NUM_ACTIONS, ProcgenVectorEnv
from ppo_lib.procgen.library import ProcgenBuild, procgen_build
from ppo_lib.procgen.options import need
from ppo_lib.wrappers import EpisodeStatistics

__all__ = ["NUM_ACTIONS", "ProcgenBuild", "ProcgenEnv", "ProcgenVectorEnv", "make_env", "procgen_build", "register"]

# The games' names as their authors spell them (Cobbe et al. 2020, arXiv 1912.01588).
TITLES = (
    "BigFish", "BossFight", "CaveFlyer", "Chaser", "Climber", "CoinRun", "Dodgeball", "FruitBot",
    "Heist", "Jumper", "Leaper", "Maze", "Miner", "Ninja", "Plunder", "StarPilot",
)  # fmt: skip


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
    need(split in ("train", "unseen"), f"split must be 'train' or 'unseen', not {split!r}.")
    first, count = levels or (config.train_levels if split == "train" else config.unseen_levels)
    need(
        first >= 0 and count >= 1 and first + count <= LEVEL_LIMIT,
        f"levels must be (first seed, number) with at least one level, all seeds from 0 to {LEVEL_LIMIT - 1}.",
    )
    train_first, train_count = config.train_levels
    need(
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
    ids = {f"ppo_lib/{title}-v0": title.lower() for title in TITLES}
    for name, game in ids.items():
        if name not in gymnasium.registry:
            gymnasium.register(
                name,
                entry_point="ppo_lib.envs:ProcgenEnv",
                vector_entry_point="ppo_lib.envs:ProcgenVectorEnv",
                kwargs={"env_name": game},
            )
    return list(ids)


class ProcgenEnv(gymnasium.Env):
    """One game as a plain gymnasium.Env, for gymnasium.make. Options as in ProcgenVectorEnv.

    At an episode's end the observation is already the next episode's first, which reset() then returns again.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 15}

    def __init__(self, env_name: str = "starpilot", *, render_mode: str | None = None, **options: Any) -> None:
        """Start the game."""
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


def _first(info: dict[str, Any]) -> dict[str, Any]:
    """The info of game 0 in plain Python values, without masks."""
    return {name: value[0].item() for name, value in info.items() if not name.startswith("_")}
