"""Unbiased evaluation: complete episodes, raw score, on train or unseen levels.

- Every environment plays the same number of episodes. Taking the first M to finish would favour short episodes.
- The environments are its own: training is never disturbed.
- Actions are sampled, as in training and in published results; `greedy` takes the most likely one instead.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from ppo_lib.checkpoint import atomic_write
from ppo_lib.config import PPOConfig, derive_seed
from ppo_lib.envs import make_env
from ppo_lib.rollout import Player
from ppo_lib.runs import EVALUATION_COLUMNS

MAX_ENVS = 64


class Episode(NamedTuple):
    """A finished episode: level seed, raw score, steps."""

    level_seed: int
    return_: float
    length: int


def evaluate(
    policy: nn.Module,
    config: PPOConfig,
    split: str,
    episodes: int,
    *,
    seed: int = 0,
    greedy: bool = False,
    levels: tuple[int, int] | None = None,
    between_steps: Callable[[], None] = lambda: None,
) -> list[Episode]:
    """Play at least `episodes` complete episodes, the same number in each of at most 64 environments.

    split: "train" or "unseen"; levels: (first seed, count) instead of the config's, refused if "unseen" levels
    overlap the training levels; between_steps is called before each step, and an exception that it raises ends the
    evaluation. Returns the episodes ordered by environment.
    """
    quota = math.ceil(episodes / MAX_ENVS)
    num_envs = math.ceil(episodes / quota)
    env_seed = derive_seed(config.seed, "evaluate", split, seed)
    env = make_env(config, split, num_envs=num_envs, seed=env_seed, levels=levels)
    how = dict(seed=derive_seed(env_seed, "actions"), greedy=greedy, between_steps=between_steps)
    try:
        return play_episodes(policy, env, quota, **how)
    finally:
        env.close()


def play_episodes(
    policy: nn.Module,
    env: gym.vector.VectorEnv,
    quota: int,
    *,
    seed: int = 0,
    greedy: bool = False,
    between_steps: Callable[[], None] = lambda: None,
) -> list[Episode]:
    """Play `quota` episodes in every environment of a SAME_STEP vector environment with info["episode"].

    Environments that have finished theirs keep stepping unwatched; the network no longer sees them.
    """
    player = Player(policy, env, seed=seed, greedy=greedy)
    finished: list[list[Episode]] = [[] for _ in range(env.num_envs)]
    playing = list(range(env.num_envs))
    cudnn = torch.backends.cudnn
    tuned, cudnn.benchmark = cudnn.benchmark, False  # it would tune its kernels anew for every batch size
    try:
        while playing:
            between_steps()
            step = player.step(torch.tensor(playing, device=player.device))
            for i in np.flatnonzero(step.done):
                if len(finished[i]) < quota:
                    score, length = step.info["episode"]["r"][i], step.info["episode"]["l"][i]
                    finished[i].append(Episode(int(step.level_seed[i]), float(score), int(length)))
            playing = [i for i in playing if len(finished[i]) < quota]
    finally:
        cudnn.benchmark = tuned
    return [episode for of_env in finished for episode in of_env]


def write_episodes(path: Path, steps: int, played: Mapping[str, Iterable[Episode]]) -> None:
    """Add an evaluation (split -> episodes) to an evaluation.csv, replacing an earlier one at these steps."""
    rows: list[Iterable[object]] = []
    if path.exists():
        with open(path, newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == len(EVALUATION_COLUMNS)][1:]
    rows = [row for row in rows if row[0] != str(steps) or row[1] not in played]
    rows += [
        (steps, split, e.level_seed, f"{e.return_:g}", e.length) for split, episodes in played.items() for e in episodes
    ]
    with atomic_write(path) as file:
        csv.writer(file).writerows([EVALUATION_COLUMNS, *rows])
