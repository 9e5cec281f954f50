"""Honest numbers from episodes: averages, intervals, the generalisation gap, normalised scores.

- Episodes are the sample. With several runs, runs are resampled first and episodes inside them second, so that the
  interval covers another seed of the same experiment and not only more episodes of the same policies.
- Intervals are percentile bootstraps: no assumption of normality, and they stay inside the range of the data.
- Every bootstrap is seeded: the same episodes give the same interval in the report, the plot and the notebook.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppo_lib.config import UserError

Runs = Sequence[NDArray[np.float64]]
Statistic = Callable[..., NDArray[np.float64]]  # statistic(values [..., n], axis=-1) -> [...]

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
    """What a set of episodes says: averages with 95% intervals, and how many episodes and runs they rest on."""

    mean: Estimate
    iqm: Estimate
    std: float  # of single episodes, over all runs
    episodes: int
    runs: int
    length: float = float("nan")  # mean steps an episode


def interquartile_mean(values: ArrayLike, axis: int = -1) -> NDArray[np.float64]:
    """Mean of the middle half: floor(n / 4) values are dropped at each end (Agarwal et al. 2021, arXiv 2108.13264).

    It moves less than the mean with a few lucky episodes and wastes less data than the median.
    """
    ordered = np.moveaxis(np.asarray(values, dtype=np.float64), axis, -1)
    n = ordered.shape[-1]
    cut = n // 4
    if cut:  # a partition puts the middle half in place without sorting it
        ordered = np.partition(ordered, (cut, n - cut - 1), axis=-1)
    return ordered[..., cut : n - cut].mean(axis=-1)


def bootstrap_ci(
    values: ArrayLike | Runs,
    statistic: Statistic = np.mean,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic (Efron & Tibshirani 1993, section 13.3).

    values     [n] episodes of one run, or a list of such arrays: one for each run (runs are then resampled first)
    statistic  takes values [..., n] and axis=-1, such as np.mean, np.median, interquartile_mean
    Returns (low, high); (nan, nan) for a single episode, which says nothing about its spread.
    With few runs (under about 10) the interval is still too narrow: three seeds can't show how bad a fourth may be.
    """
    runs = _as_runs(values)
    if sum(map(len, runs)) == 1:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    samples = _resample(runs, _choose_runs(len(runs), resamples, rng), statistic, rng)
    return _percentiles(samples, confidence)


def estimate(values: ArrayLike | Runs, statistic: Statistic = np.mean, **bootstrap: float) -> Estimate:
    """The statistic (its mean over runs, where there are several) with its bootstrap interval."""
    runs = _as_runs(values)
    value = float(np.mean([statistic(run, axis=-1) for run in runs]))
    return Estimate(value, *bootstrap_ci(runs, statistic, **bootstrap))  # type: ignore[arg-type]


def generalization_gap(
    train: ArrayLike | Runs,
    unseen: ArrayLike | Runs,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Mean return on training levels minus mean return on unseen levels, with its bootstrap interval.

    Both are [n] episodes, or lists with one array a run in the same order: a resampled run brings both its splits.
    An interval that contains 0 means that these episodes don't show a gap.
    """
    train_runs, unseen_runs = _as_runs(train), _as_runs(unseen)
    if len(train_runs) != len(unseen_runs):
        raise UserError(
            f"The gap needs both splits of every run: got {len(train_runs)} train and {len(unseen_runs)} unseen sets."
        )
    value = float(np.mean([run.mean() for run in train_runs]) - np.mean([run.mean() for run in unseen_runs]))
    if min(sum(map(len, train_runs)), sum(map(len, unseen_runs))) == 1:
        return Estimate(value, float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    choice = _choose_runs(len(train_runs), resamples, rng)
    samples = _resample(train_runs, choice, np.mean, rng) - _resample(unseen_runs, choice, np.mean, rng)
    return Estimate(value, *_percentiles(samples, confidence))


def normalized_score(
    returns: ArrayLike, env_name: str = "starpilot", distribution_mode: str = "easy"
) -> NDArray[np.float64]:
    """(return - R_min) / (R_max - R_min) with the constants of the Procgen paper (arXiv 1912.01588, appendix C).

    Any shape. Not clipped: an agent that plays worse than R_min scores below 0.
    """
    try:
        low, high = SCORE_RANGE[env_name][distribution_mode]
    except KeyError:
        raise UserError(
            f"No normalised score is published for {env_name} {distribution_mode}: use a Procgen game, easy or hard."
        ) from None
    return (np.asarray(returns, dtype=np.float64) - low) / (high - low)


def summarize(values: ArrayLike | Runs, lengths: ArrayLike | None = None, resamples: int = 10_000) -> Summary:
    """Mean and interquartile mean with 95% intervals, of [n] returns or of a list with one array a run."""
    runs = _as_runs(values)
    everything = np.concatenate(runs)
    return Summary(
        mean=estimate(runs, np.mean, resamples=resamples),
        iqm=estimate(runs, interquartile_mean, resamples=resamples),
        std=float(everything.std(ddof=1)) if len(everything) > 1 else 0.0,
        episodes=len(everything),
        runs=len(runs),
        length=float(np.mean(lengths)) if lengths is not None and np.size(lengths) else float("nan"),
    )


def _as_runs(values: ArrayLike | Runs) -> list[NDArray[np.float64]]:
    """One float array [n] for each run; refuses what has no average."""
    several = isinstance(values, (list, tuple)) and len(values) > 0 and np.ndim(values[0]) == 1
    runs = [np.asarray(run, dtype=np.float64) for run in (values if several else [values])]  # type: ignore[union-attr]
    if any(run.ndim != 1 or run.size == 0 for run in runs):
        raise UserError("There are no episodes to average: evaluate the run first.")
    if not all(np.isfinite(run).all() for run in runs):
        raise UserError("Some returns are not finite numbers: evaluate the run again.")
    return runs


def _choose_runs(runs: int, resamples: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """[resamples, runs] indices of runs, drawn with replacement."""
    return rng.integers(runs, size=(resamples, runs))


def _resample(
    runs: Runs, choice: NDArray[np.int64], statistic: Statistic, rng: np.random.Generator
) -> NDArray[np.float64]:
    """[resamples]: the mean over the chosen runs of the statistic of their resampled episodes."""
    samples = np.empty(choice.shape)
    for index, run in enumerate(runs):
        places = np.flatnonzero(choice == index)
        step = max(1, _CHUNK // len(run))
        for start in range(0, len(places), step):
            part = places[start : start + step]
            episodes = run[rng.integers(len(run), size=(len(part), len(run)), dtype=np.int32)]
            samples.flat[part] = statistic(episodes, axis=-1)
    return samples.mean(axis=1)


def _percentiles(samples: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """The interval that holds the middle `confidence` of the samples."""
    if not 0 < confidence < 1:
        raise UserError(f"confidence must be between 0 and 1, not {confidence}.")
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
