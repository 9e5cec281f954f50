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
        seed: of the sequence of levels; default derived from config.seed and split. The same seed and actions give
            the same games, whatever num_threads.
        levels: (first seed, number) to play instead; with "unseen" they must not overlap the training levels.
        num_threads: game threads; 0 = play in the calling thread; default one per core, at most 16, N and --threads.
        render: draw 512x512 frames for render() at every step (slow).

    Raises UserError if a value is out of range, levels overlap, or Procgen is missing.
    """
    splits = {"train": config.train_levels, "unseen": config.unseen_levels}
    if split not in splits:
        raise UserError(f"split must be 'train' or 'unseen', not {split!r}.")
    first, count = levels or splits[split]
    train_first, train_count = config.train_levels
    if split == "unseen" and first < train_first + train_count and train_first < first + count:
        raise UserError(
            f"Levels {first} to {first + count - 1} overlap the training levels {train_first} to "
            f"{train_first + train_count - 1}, so they are not unseen; start at {train_first + train_count} or above."
        )
    num_envs = config.num_envs if num_envs is None else num_envs
    seed = derive_seed(config.seed, split) if seed is None else seed
    return EpisodeStatistics(ProcgenVectorEnv(config, (first, count), num_envs, seed, num_threads, render))
