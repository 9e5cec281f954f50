"""Averages of episodes and their intervals: mean, interquartile mean, differences, normalised scores.

- A run's score is the mean return of its episodes. With several runs, runs are resampled first and episodes inside
  them second: the interval then covers another seed of the experiment and not only more episodes of these policies.
- Intervals are percentile bootstraps: they don't assume normality and stay inside the range of the data.
- Every bootstrap is seeded: the same episodes give the same interval in the report, the plot and the notebook.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppo_lib.config import UserError

Array = NDArray[np.float64]
Runs = Sequence[Array]

_CHUNK = 4_000_000  # resampled values held at once (32 MB)

# (R_min, R_max) of each game, easy then hard: Cobbe et al. 2020, arXiv 1912.01588, appendix C. R_min is about what an
# agent that can't see scores, R_max the highest possible or a well-trained agent's return.
SCORE_RANGE: dict[str, dict[str, tuple[float, float]]] = {
    "bigfish": {"easy": (1, 40), "hard": (0, 40)},
    "bossfight": {"easy": (0.5, 13), "hard": (0.5, 13)},
    "caveflyer": {"easy": (3.5, 12), "hard": (2, 13.4)},
    "chaser": {"easy": (0.5, 13), "hard": (0.5, 14.2)},
    "climber": {"easy": (2, 12.6), "hard": (1, 12.6)},
    "coinrun": {"easy": (5, 10), "hard": (5, 10)},
    "dodgeball": {"easy": (1.5, 19), "hard": (1.5, 19)},
    "fruitbot": {"easy": (-1.5, 32.4), "hard": (-0.5, 27.2)},
    "heist": {"easy": (3.5, 10), "hard": (2, 10)},
    "jumper": {"easy": (3, 10), "hard": (1, 10)},
    "leaper": {"easy": (3, 10), "hard": (1.5, 10)},
    "maze": {"easy": (5, 10), "hard": (4, 10)},
    "miner": {"easy": (1.5, 13), "hard": (1.5, 20)},
    "ninja": {"easy": (3.5, 10), "hard": (2, 10)},
    "plunder": {"easy": (4.5, 30), "hard": (3, 30)},
    "starpilot": {"easy": (2.5, 64), "hard": (1.5, 35)},
}

# Mean return of uniformly random actions: 1.57 +- 0.06 on 200 levels and 1.52 +- 0.06 on all levels, measured.
RANDOM_RETURN: dict[tuple[str, str], float] = {("starpilot", "easy"): 1.5}


@dataclass(frozen=True)
class Estimate:
    """A number and its confidence interval, in the unit of the number; low and high are nan for a single episode."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f}" if np.isnan(self.low) else f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Summary:
    """Averages of the episodes of one or several runs, with 95% intervals."""

    mean: Estimate  # of the runs' scores
    iqm: Estimate  # interquartile mean of the runs' scores; of fewer than four runs it is their mean
    std: float  # of single episodes, over all runs
    episodes: int
    runs: int
    length: float  # mean steps per episode; nan if not known


def interquartile_mean(values: ArrayLike) -> Array:
    """Mean of the middle half along the last axis: floor(n / 4) values are dropped at each end. Of the scores of runs,
    it is the average that Agarwal et al. 2021 (arXiv 2108.13264) recommend: less moved by outliers than the mean, less
    wasteful than the median."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = ordered.shape[-1]
    return ordered[..., n // 4 : n - n // 4].mean(axis=-1)


def bootstrap_ci(values: ArrayLike | Runs, resamples: int = 10_000) -> tuple[float, float]:
    """The 95% interval of `estimate`: (low, high)."""
    return astuple(estimate(values, resamples))[1:]


def estimate(values: ArrayLike | Runs, resamples: int = 10_000) -> Estimate:
    """The mean, of the runs' scores where there are several, with its 95% percentile bootstrap interval
    (Efron & Tibshirani 1993, section 13.3).

    values: [n] episodes of one run, or a list of such arrays, one for each run (runs are then resampled first).
    A single episode has no interval: it says nothing about its spread. With few runs (under about 10) the interval is
    still too narrow: three seeds can't show how bad a fourth may be.
    """
    return summarize(values, resamples=resamples).mean


def summarize(values: ArrayLike | Runs, lengths: ArrayLike = np.nan, resamples: int = 10_000) -> Summary:
    """Mean and interquartile mean with 95% intervals, of values as in `estimate`. lengths: steps of the episodes."""
    runs = _as_runs(values)
    scores, rng = np.array([run.mean() for run in runs]), np.random.default_rng(0)
    samples = _resample(runs, rng.integers(len(runs), size=(resamples, len(runs))), rng)
    everything = np.concatenate(runs)
    return Summary(
        mean=_interval(scores.mean(), samples.mean(axis=1), everything.size),
        iqm=_interval(interquartile_mean(scores), interquartile_mean(samples), everything.size),
        std=float(everything.std(ddof=min(1, everything.size - 1))),
        episodes=everything.size,
        runs=len(runs),
        length=float(np.mean(lengths)),
    )


def difference(first: ArrayLike | Runs, second: ArrayLike | Runs, paired: Sequence[bool] = ()) -> Estimate:
    """Mean of the first minus mean of the second, with its 95% bootstrap interval.

    Both are [n] episodes, or lists with one array per run in the same order: a resampled run brings both its arrays.
    paired: for each run, whether its arrays hold episodes of the same levels in the same order (default: none does).
    Such pairs are resampled together, so that what both owe to a level cancels.
    """
    sides = ours, theirs = _as_runs(first), _as_runs(second)
    if len(ours) != len(theirs):
        raise UserError(f"A difference needs both sides of every run: there are {len(ours)} and {len(theirs)}.")
    value = np.mean([a.mean() - b.mean() for a, b in zip(ours, theirs, strict=True)])
    fewer = min(sum(map(len, side)) for side in sides)
    for i in np.flatnonzero(paired):
        ours[i], theirs[i] = ours[i] - theirs[i], np.zeros(1)
    rng = np.random.default_rng(0)
    choice = rng.integers(len(ours), size=(10_000, len(ours)))
    samples = _resample(ours, choice, rng) - _resample(theirs, choice, rng)
    return _interval(value, samples.mean(axis=1), fewer)


def generalization_gap(train: ArrayLike | Runs, unseen: ArrayLike | Runs) -> Estimate:
    """Mean return on training levels minus that on unseen levels, see `difference`. An interval that contains 0 means
    that these episodes don't show a gap."""
    return difference(train, unseen)


def normalized_score(returns: ArrayLike, env_name: str = "starpilot", distribution_mode: str = "easy") -> Array:
    """(return - R_min) / (R_max - R_min) with the constants of the Procgen paper (arXiv 1912.01588, appendix C).

    Any shape. Not clipped: an agent that plays worse than R_min scores below 0.
    """
    try:
        low, high = SCORE_RANGE[env_name][distribution_mode]
    except KeyError:
        raise UserError(f"No normalised score is published for {env_name} {distribution_mode}.") from None
    return (np.asarray(returns, dtype=np.float64) - low) / (high - low)


def _as_runs(values: ArrayLike | Runs) -> list[Array]:
    """One float array [n] for each run; refuses what has no average."""
    several = isinstance(values, (list, tuple)) and len(values) > 0 and np.ndim(values[0]) == 1
    runs = [np.asarray(run, dtype=np.float64) for run in (values if several else [values])]  # type: ignore[union-attr]
    if not all(run.ndim == 1 and run.size and np.isfinite(run).all() for run in runs):
        raise UserError("An average needs episodes, and finite returns: evaluate the run first, or again.")
    return runs


def _resample(runs: Runs, choice: NDArray[np.int64], rng: np.random.Generator) -> Array:
    """[resamples, runs]: the scores of the chosen runs, each from its resampled episodes."""
    samples = np.empty(choice.shape)
    for index, run in enumerate(runs):
        places = np.flatnonzero(choice == index)
        step = max(1, _CHUNK // len(run))
        for part in np.split(places, range(step, len(places), step)):
            samples.flat[part] = run[rng.integers(len(run), size=(len(part), len(run)), dtype=np.int32)].mean(axis=1)
    return samples


def _interval(value: float, samples: Array, episodes: int) -> Estimate:
    """A value and the range that holds the middle 95% of its resamples; no range for a single episode."""
    low, high = np.quantile(samples, (0.025, 0.975)) if episodes > 1 else (np.nan, np.nan)
    return Estimate(float(value), float(low), float(high))
