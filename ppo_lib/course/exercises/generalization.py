"""Exercises of notebook 06: a bootstrap interval, the interval of a paired difference, the number of seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppo_lib.course.exercises import Exercise

Array = NDArray[np.float64]
RESAMPLES = 3_000


def bootstrap_interval(values: Array, rng: np.random.Generator, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 95% percentile bootstrap interval (low, high) of the mean of values [n]."""
    low, high = np.quantile(_means(values, rng, resamples), [0.025, 0.975])
    return float(low), float(high)


def paired_interval(first: Array, second: Array, rng: np.random.Generator) -> tuple[float, float]:
    """The 95% bootstrap interval of mean(first - second); first, second: [n], of the same levels in the same order."""
    return bootstrap_interval(first - second, rng)


def seeds_needed(scores: Array, half_width: float) -> int:
    """The fewest seeds per setting with which the difference of two settings has a 95% interval (1.96 standard errors
    on either side) of at most +- half_width. scores: [k], one for each seed of one setting; both vary alike."""
    return _seeds(scores, half_width)


def _means(values: Array, rng: np.random.Generator, resamples: int = RESAMPLES, axis: int = 1) -> Array:
    return values[rng.integers(len(values), size=(resamples, len(values)))].mean(axis=axis)


def _quantiles(samples: Array, tail: float = 0.025) -> tuple[float, float]:
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def _interval(answer: Callable, *case: Any) -> Any:
    """Apply an answer to arrays and a generator. An interval that other random draws explain counts as the solution's:
    they move an end by about 1% of the width, the mildest mistake moves it by 8%."""
    given = answer(*case, np.random.default_rng(1))
    low, high = expected = bootstrap_interval(
        np.subtract(*case) if len(case) == 2 else case[0], np.random.default_rng(1)
    )
    near = np.shape(given) == (2,) and np.allclose(given, expected, rtol=0, atol=0.05 * (high - low))
    return expected if near else tuple(given) if isinstance(given, np.ndarray) and given.ndim else given


def _seeds(scores: Array, half_width: float, sides: int = 2, ddof: int = 1, power: int = 2, up: bool = True) -> int:
    seeds = sides * (1.96 * np.std(scores, ddof=ddof) / half_width) ** power
    return math.ceil(seeds) if up else math.floor(seeds)


def _returns() -> list[tuple[Array]]:
    return [(np.random.default_rng(6).gamma(1.0, 5.0, 30).round(),)]


def _pairs() -> list[tuple[Array, Array]]:
    rng = np.random.default_rng(7)
    level = rng.gamma(2.0, 4.0, 30)  # what both agents owe to the level
    return [(level + rng.normal(2.0, 1.5, 30), level + rng.normal(0.0, 1.5, 30))]


EXERCISES = [
    Exercise(
        "bootstrap_interval",
        "A bootstrap interval",
        difficulty=1,
        minutes=10,
        solution=bootstrap_interval,
        cases=_returns,
        run=_interval,
        mistakes={
            "this interval holds 95% of the single returns: take the mean of each resample first.": lambda v, rng: (
                _quantiles(v[rng.integers(len(v), size=(RESAMPLES, len(v)))])
            ),
            "these are the quantiles of the returns that you have: nothing was resampled.": lambda v, rng: _quantiles(
                v
            ),
            "you draw without replacement: each resample is the same n returns, and its mean never varies.": (
                lambda v, rng: (v.mean(), v.mean())
            ),
            "the mean is taken over the wrong axis: average the n returns of each resample (axis 1).": lambda v, rng: (
                _quantiles(_means(v, rng, axis=0))
            ),
            "this is a 90% interval: 5% lie outside on each side. Cut off 2.5% on each side.": lambda v, rng: (
                _quantiles(_means(v, rng), 0.05)
            ),
            "this is mean ± 1.96 standard deviations of single returns; a mean of n returns varies less.": (
                lambda v, rng: (v.mean() - 1.96 * v.std(ddof=1), v.mean() + 1.96 * v.std(ddof=1))
            ),
            "this is mean ± 2 standard deviations of single returns; a mean of n returns varies less.": (
                lambda v, rng: (v.mean() - 2 * v.std(ddof=1), v.mean() + 2 * v.std(ddof=1))
            ),
            "low and high are exchanged.": lambda v, rng: bootstrap_interval(v, rng)[::-1],
        },
    ),
    Exercise(
        "paired_interval",
        "The interval of a paired difference",
        difficulty=2,
        minutes=10,
        solution=paired_interval,
        cases=_pairs,
        run=_interval,
        mistakes={
            "you resample the two agents apart, so what both owe to a level doesn't cancel: resample pairs.": (
                lambda a, b, rng: _quantiles(_means(a, rng) - _means(b, rng))
            ),
            "you subtract the ends of two intervals; the interval of a difference comes from resampled differences.": (
                lambda a, b, rng: tuple(np.subtract(bootstrap_interval(a, rng), bootstrap_interval(b, rng)).tolist())
            ),
            "low of one minus high of the other is too wide: both would have to be extreme at once. Resample pairs.": (
                lambda a, b, rng: tuple(
                    np.subtract(bootstrap_interval(a, rng), bootstrap_interval(b, rng)[::-1]).tolist()
                )
            ),
            "the sign is reversed: the difference is first minus second.": (
                lambda a, b, rng: bootstrap_interval(b - a, rng)
            ),
            "this holds 95% of the single differences: take the mean of each resample first.": (
                lambda a, b, rng: _quantiles(a - b)
            ),
            "this sorts the returns: pair them by level, in the order in which they come.": (
                lambda a, b, rng: bootstrap_interval(np.sort(a) - np.sort(b), rng)
            ),
        },
    ),
    Exercise(
        "seeds_needed",
        "How many seeds for half a point?",
        difficulty=2,
        minutes=10,
        solution=seeds_needed,
        cases=lambda: [(np.array(s), d) for s in ([4.0, 5.2, 7.0], [9.1, 9.9, 10.2, 12.0]) for d in (0.3, 0.5, 1.5)],
        mistakes={
            "both settings vary: the variance of a difference is the sum of two variances.": (
                lambda s, d: _seeds(s, d, sides=1)
            ),
            "standard deviations don't add up, variances do: the difference has √2 times the error, not twice.": (
                lambda s, d: _seeds(s, d, sides=4)
            ),
            "of k scores the standard deviation divides by k - 1 (ddof=1): np.std's default is too small.": (
                lambda s, d: _seeds(s, d, ddof=0)
            ),
            "the error falls with √n, so n grows with the square of error / half_width.": (
                lambda s, d: _seeds(s, d, sides=1, power=1)
            ),
            "the error falls with √n, so n grows with the square; √2 is inside the square, too.": (
                lambda s, d: math.ceil(1.96 * np.std(s, ddof=1) * math.sqrt(2) / d)
            ),
            "half_width is the distance from the difference to one end, not from end to end.": (
                lambda s, d: _seeds(s, d / 2)
            ),
            "round up: with fewer seeds the interval is wider than asked.": lambda s, d: _seeds(s, d, up=False),
            "you leave out 1.96: a 95% interval reaches that many standard errors to each side.": (
                lambda s, d: _seeds(s, 1.96 * d)
            ),
        },
    ),
]
