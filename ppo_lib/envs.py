"""make_env: the games of a run, on its training levels or on levels that it never trains on.

- Training and unseen levels are disjoint by construction (PPOConfig.unseen_levels); levels that overlap are refused.
- Each split has a seed of its own, so evaluation never touches the training games.
"""

from __future__ import annotations

from ppo_lib.config import PPOConfig, UserError, derive_seed
from ppo_lib.procgen.env import NUM_ACTIONS, ProcgenVectorEnv
from ppo_lib.procgen.library import procgen_build
from ppo_lib.wrappers import EpisodeStatistics

__all__ = ["NUM_ACTIONS", "ProcgenVectorEnv", "make_env", "procgen_build"]


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
    if split not in ("train", "unseen"):
        raise UserError(f"split must be 'train' or 'unseen', not {split!r}.")
    first, count = levels or (config.train_levels if split == "train" else config.unseen_levels)
    train_first, train_count = config.train_levels
    if split == "unseen" and first < train_first + train_count and train_first < first + count:
        raise UserError(
            f"Levels {first} to {first + count - 1} overlap the training levels {train_first} to "
            f"{train_first + train_count - 1}, so they are not unseen; start at {train_first + train_count} or above."
        )
    env = ProcgenVectorEnv(
        config,
        (first, count),
        num_envs=num_envs,
        seed=derive_seed(config.seed, split) if seed is None else seed,
        num_threads=num_threads,
        render=render,
    )
    return EpisodeStatistics(env)
