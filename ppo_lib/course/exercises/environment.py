"""Exercises of notebook 01: level seeds, episodes, reward normalisation, and which episodes count."""

from __future__ import annotations

from typing import Any

import numpy as np

from ppo_lib.course.exercises import Exercise

Array = np.ndarray


def level_split(seeds: Array, start_level: int, num_levels: int) -> tuple[Array, Array]:
    """Level seeds [M] -> is_train, is_unseen, bool [M] each; see PPOConfig.train_levels and unseen_levels."""
    end = start_level + num_levels
    return (seeds >= start_level) & (seeds < end), seeds >= end


def episode_returns(reward: Array, done: Array) -> tuple[Array, Array]:
    """Rewards and done flags [T, N] -> returns, lengths of the finished episodes [M], ordered by their last step."""
    return _episodes(reward, done)


def _episodes(reward: Array, done: Array, late: int = 0, short: int = 0, tail: int = 0, clear: str = "") -> Any:
    """As episode_returns, with one mistake. clear: which counts restart where an episode ends."""
    total, steps = np.zeros(done.shape[1]), np.zeros(done.shape[1], int)
    returns, lengths = [], []
    for t, ended in enumerate(done):
        total += 0 if late else reward[t]
        steps += 1
        counted = np.ones_like(ended) if tail and t == len(done) - 1 else ended
        returns += list(total[counted])
        lengths += list(steps[counted] - short)
        again = {"": ended, "never": np.zeros_like(ended), "all": np.full_like(ended, ended.any())}[clear]
        total[again], steps[again] = 0, 0
        total += reward[t] if late else 0
    return np.array(returns), np.array(lengths)


def normalizer_step(running: Array, reward: Array, done: Array, seen: Array, gamma: float) -> tuple[Array, ...]:
    """One step of wrappers.RewardNormalizer with the plain variance of all R so far.

    running: R [N] before the step; reward, done: [N]; seen: all earlier R [M].
    Returns normalised rewards [N], R [N] for the next step, all R [M + N].
    """
    return _normalize(running, reward, done, seen, gamma)


def _normalize(
    running: Array, reward: Array, done: Array, seen: Array, gamma: float, centre: int = 0, power: float = 0.5,
    epsilon: float = 1e-8, clip: float = 10, what: str = "reward", order: str = "after", discount: float = 1,
) -> tuple[Array, ...]:  # fmt: skip
    keep = np.where(done, 0, 1)
    running = gamma * running * (keep if order == "before" else 1) + reward * discount
    seen = np.append(seen, running)
    value = (running if what == "R" else reward) - centre * np.mean(running)
    normalized = np.clip(value / (np.var(seen) + epsilon) ** power, -clip, clip)
    return normalized, running * (keep if order == "after" else 1), seen


def equal_quota(game: Array, quota: int) -> Array:
    """Which finished episodes count, bool [M]: the first `quota` of each game. See evaluate.play_episodes.

    game: int [M], the game of each finished episode, in the order in which they ended.
    """
    return _earlier(game) < quota


def _earlier(game: Array) -> Array:
    """How many episodes of the same game ended before each, int [M]."""
    return np.array([np.sum(game[:i] == g) for i, g in enumerate(game)])


def _arrays(answer: Any, *case: Any) -> Any:
    """Lists of numbers count as arrays."""
    result = answer(*case)
    return tuple(np.asarray(part, float) for part in result) if isinstance(result, (tuple, list)) else result


def _rollout(seed: int, steps: int = 30, games: int = 3) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 4, (steps, games)).astype(float), rng.random((steps, games)) < 0.15


def _normalizer_cases() -> list[tuple]:
    rng = np.random.default_rng(2)
    common, rare = rng.random(3) + 1, np.array([0.0, 9.0, 0.0])
    ended = np.array([False, True, False])
    return [
        (rng.random(3), common, ended, rng.random(30) * 4, 0.9),
        (np.zeros(3), rare, ~ended, np.full(300, 0.01), 0.99),  # large beside all R so far: clipped
        (np.zeros(3), np.zeros(3), ended, np.zeros(3), 0.99),  # no reward yet: divided by sqrt(epsilon)
    ]


LEVELS = np.arange(0, 40)
EXERCISES = [
    Exercise(
        "level_split", "Training and unseen level seeds", 1, 5, level_split,
        lambda: [(LEVELS, 10, 20), (LEVELS, 0, 5), (LEVELS[::-1].copy(), 30, 1)],
        {
            "level start_level + num_levels counts as a training level; it is the first unseen one.":
                lambda s, a, n: ((s >= a) & (s <= a + n), s > a + n),
            "level start_level + num_levels is in neither set; unseen levels begin with it.":
                lambda s, a, n: ((s >= a) & (s < a + n), s > a + n),
            "level start_level is missing from training; the block begins with it.":
                lambda s, a, n: ((s > a) & (s < a + n), s >= a + n),
            "num_levels is a number of levels, not the last one: the block ends at start_level + num_levels - 1.":
                lambda s, a, n: ((s >= a) & (s < n), s >= n),
            "levels below start_level count as unseen; here unseen levels lie above the training block.":
                lambda s, a, n: ((s >= a) & (s < a + n), (s < a) | (s >= a + n)),
            "levels below start_level count as training levels; the block begins with start_level.":
                lambda s, a, n: (s < a + n, s >= a + n),
        },
    ),
    Exercise(
        "episode_returns", "Returns and lengths of episodes", 2, 15, episode_returns,
        lambda: [_rollout(0), _rollout(1, games=1), _rollout(2, steps=50, games=4)],
        {
            "the reward of an episode's last step goes to the next episode; at a step with done it belongs to the "
            "episode that ends.": lambda r, d: _episodes(r, d, late=1),
            "the step that ends an episode is one of its steps: your lengths are one too short.":
                lambda r, d: _episodes(r, d, short=1),
            "the sums are never set back to 0, so episodes contain all earlier ones of their game.":
                lambda r, d: _episodes(r, d, clear="never"),
            "when one game's episode ends you set back the sums of all games.":
                lambda r, d: _episodes(r, d, clear="all"),
            "episodes that are still running at the end count as finished; their returns would be too small.":
                lambda r, d: _episodes(r, d, tail=1),
        },
        _arrays,
    ),
    Exercise(
        "normalizer_step", "One step of reward normalisation", 2, 10, normalizer_step, _normalizer_cases,
        {
            "R is set to 0 before this step's reward is added; the episode that ends still includes this step.":
                lambda *case: _normalize(*case, order="before"),
            "R isn't set to 0 where an episode ended.": lambda *case: _normalize(*case, order="never"),
            "you subtract a mean, so a reward of 0 doesn't stay 0.": lambda *case: _normalize(*case, centre=1),
            "you divide by the variance; the formula divides by its square root.":
                lambda *case: _normalize(*case, power=1),
            "you normalise R; R is only for the variance, and the reward is divided.":
                lambda *case: _normalize(*case, what="R"),
            "the discount also multiplies this step's reward; it belongs to the older R alone.":
                lambda *case: _normalize(*case, discount=case[-1]),
            "the result isn't clipped to [-10, 10].": lambda *case: _normalize(*case, clip=np.inf),
            "with a variance of 0 you divide by 0: add 1e-8 to the variance.":
                lambda *case: _normalize(*case, epsilon=0),
        },
        _arrays,
    ),
    Exercise(
        "equal_quota", "Which episodes count", 2, 10, equal_quota,
        lambda: [(np.array([2, 0, 2, 2, 1, 0, 1, 2, 0]), 1), (np.array([1, 1, 1, 0, 1, 0, 0, 0]), 2)],
        {
            "these are the first episodes to end, whatever the game: fast games get more of them than slow ones.":
                lambda g, q: np.arange(len(g)) < q * len(set(g)),
            "each game gets one episode too many: with a quota of 1 only its first counts.":
                lambda g, q: _earlier(g) <= q,
            "you keep the last episodes of each game; the first `quota` count.":
                lambda g, q: _earlier(g[::-1])[::-1] < q,
            "only the first episode of each game counts; the quota may be larger than 1.":
                lambda g, q: _earlier(g) < 1,
            "each game's episode number `quota` counts, but not the earlier ones.":
                lambda g, q: _earlier(g) == q - 1,
        },
    ),
]  # fmt: skip
