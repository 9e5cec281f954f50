"""Unbiased evaluation: complete episodes, raw score, on train or unseen levels.

- Every environment plays the same number of episodes. Taking the first M to finish of many would favour short ones.
- Fresh environments of its own; the GRU's state is carried from step to step and zeroed between episodes.
- Actions are sampled, as in training and in published results; `greedy` takes the likeliest instead.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import torch

from ppo_lib.accel.hardware import to_device
from ppo_lib.config import PPOConfig, derive_seed
from ppo_lib.envs import make_env
from ppo_lib.files import replacing
from ppo_lib.policy import ActorCritic, sample_actions, sampling_noise
from ppo_lib.runs import EVALUATION_COLUMNS

MAX_ENVS = 64


class Episode(NamedTuple):
    """A finished episode: level seed, raw score, steps."""

    level_seed: int
    return_: float
    length: int


def evaluate(
    policy: ActorCritic,
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
    overlap the training levels; between_steps is called before each step, and what it raises ends the evaluation.
    Returns the episodes ordered by environment.
    """
    quota = math.ceil(episodes / MAX_ENVS)
    num_envs = math.ceil(episodes / quota)
    env_seed = derive_seed(config.seed, "evaluate", split, seed)
    env = make_env(config, split, num_envs=num_envs, seed=env_seed, levels=levels)
    try:
        return play(
            policy, env, quota, seed=derive_seed(env_seed, "actions"), greedy=greedy, between_steps=between_steps
        )
    finally:
        env.close()


@torch.no_grad()
def play(
    policy: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    env: gym.vector.VectorEnv,
    quota: int,
    *,
    seed: int = 0,
    greedy: bool = False,
    between_steps: Callable[[], None] = lambda: None,
) -> list[Episode]:
    """Play `quota` episodes in every environment of a SAME_STEP vector environment with info["episode"]."""
    device = next(policy.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    finished: list[list[Episode]] = [[] for _ in range(env.num_envs)]
    obs, info = env.reset()
    level_seed = info["level_seed"].copy()
    action = torch.zeros(env.num_envs, dtype=torch.int64, device=device)
    state = policy.initial_state(env.num_envs)
    reset = torch.ones(env.num_envs, dtype=torch.bool, device=device)
    playing = torch.arange(env.num_envs, device=device)
    while len(playing):
        between_steps()
        # environments that are through keep stepping, unwatched: the network is spared them
        logits, _, state[playing] = policy(to_device(obs, device)[playing], state[playing], reset[playing])
        action[playing] = (
            logits.argmax(-1) if greedy else sample_actions(logits, sampling_noise(*logits.shape, generator))
        )
        obs, _, terminated, truncated, info = env.step(action.cpu().numpy())
        reset = to_device(terminated | truncated, device)
        for i in reset.nonzero().flatten().tolist():
            if len(finished[i]) < quota:
                returns, lengths = info["episode"]["r"], info["episode"]["l"]
                finished[i].append(Episode(int(level_seed[i]), float(returns[i]), int(lengths[i])))
        level_seed = info["level_seed"].copy()
        playing = torch.tensor([i for i in playing.tolist() if len(finished[i]) < quota], device=device)
    return [episode for of_env in finished for episode in of_env]


def write_episodes(path: Path, steps: int, played: Mapping[str, Iterable[Episode]]) -> None:
    """Add an evaluation (split -> episodes) to an evaluation.csv, in place of an earlier one at these steps."""
    rows: list[Iterable[object]] = []
    if path.exists():
        with open(path, newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == len(EVALUATION_COLUMNS)][1:]
    rows = [row for row in rows if row[0] != str(steps) or row[1] not in played]
    rows += [
        (steps, split, e.level_seed, f"{e.return_:g}", e.length) for split, episodes in played.items() for e in episodes
    ]
    with replacing(path) as file:
        csv.writer(file).writerows([EVALUATION_COLUMNS, *rows])
