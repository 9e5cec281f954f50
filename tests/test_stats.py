"""Averages, intervals that cover what they claim, differences, published constants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_lib import stats
from ppo_lib.config import GAMES, UserError

returns = st.lists(st.floats(-100, 100), min_size=2, max_size=60).map(np.array)


@given(returns, st.floats(-50, 50), st.floats(0.1, 10))
@settings(max_examples=60, deadline=None)
def test_interquartile_mean_moves_with_the_data(values: np.ndarray, shift: float, scale: float) -> None:
    iqm = stats.interquartile_mean(values)
    assert values.min() - 1e-9 <= iqm <= values.max() + 1e-9
    assert np.isclose(stats.interquartile_mean(values * scale + shift), iqm * scale + shift, atol=1e-6)
    assert np.isclose(stats.interquartile_mean(values[::-1]), iqm)


@given(returns)
@settings(max_examples=60, deadline=None)
def test_interquartile_mean_is_the_trimmed_mean(values: np.ndarray) -> None:
    cut = len(values) // 4
    assert np.isclose(stats.interquartile_mean(values), np.sort(values)[cut : len(values) - cut].mean())


def test_interquartile_mean_ignores_a_few_outliers() -> None:
    values = np.array([1.0, 2, 3, 4, 5, 6, 7, 1e9])
    assert stats.interquartile_mean(values) == pytest.approx(4.5)
    assert stats.interquartile_mean(np.stack([values, values])).shape == (2,)


@given(returns)
@settings(max_examples=30, deadline=None)
def test_interval_lies_within_the_data_and_repeats(values: np.ndarray) -> None:
    low, high = stats.bootstrap_ci(values, resamples=500)
    assert values.min() - 1e-9 <= low <= high <= values.max() + 1e-9
    assert (low, high) == stats.bootstrap_ci(values, resamples=500)


def test_interval_agrees_with_theory() -> None:
    values = np.random.default_rng(0).normal(5, 2, size=400)
    low, high = stats.bootstrap_ci(values)
    half = 1.96 * values.std() / np.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


@pytest.mark.parametrize("skewed", [False, True])
def test_intervals_cover_the_truth(skewed: bool) -> None:
    """Of 300 experiments about 95% must contain the true mean, also for the skewed returns of a shooter."""
    rng = np.random.default_rng(1)
    truth, hits = 8.0, 0
    for _ in range(300):
        values = rng.exponential(truth, size=64) if skewed else rng.normal(truth, 3, size=64)
        low, high = stats.bootstrap_ci(values, resamples=1000)
        hits += low <= truth <= high
    assert 0.89 <= hits / 300 <= 0.99  # exact 95% ± 3 standard errors, and 3 points for the skew


def test_intervals_of_several_runs_cover_the_next_seed() -> None:
    """Runs differ by their seed: pooling their episodes would cover far too rarely, resampling runs does not."""
    rng = np.random.default_rng(2)
    nested = pooled = 0
    for _ in range(150):
        runs = [rng.normal(rng.normal(20, 3), 5, size=100) for _ in range(10)]
        low, high = stats.bootstrap_ci(runs, resamples=500)
        nested += low <= 20 <= high
        low, high = stats.bootstrap_ci(np.concatenate(runs), resamples=500)
        pooled += low <= 20 <= high
    assert nested / 150 >= 0.85
    assert pooled / 150 <= 0.6


def test_one_run_in_a_list_is_that_run() -> None:
    values = np.arange(20.0)
    assert stats.bootstrap_ci([values]) == stats.bootstrap_ci(values)
    assert stats.estimate([values]).value == 9.5


def test_runs_of_unequal_size_count_alike() -> None:
    summary = stats.summarize([np.zeros(10), np.full(1000, 4.0)])
    assert summary.mean.value == 2.0
    assert (summary.mean.low, summary.mean.high) == (0.0, 4.0)
    assert (summary.episodes, summary.runs) == (1010, 2)


def test_the_interquartile_mean_is_over_the_scores_of_runs() -> None:
    """Agarwal et al. 2021: of the scores 1, 2, 3, 6 and 40 of five runs one is dropped at each end: (2 + 3 + 6) / 3."""
    runs = [np.array([0.0, 1, 2]), np.array([0.0, 0, 6]), np.array([3.0]), np.array([1.0, 11]), np.array([40.0, 40])]
    summary = stats.summarize(runs)
    assert summary.iqm.value == pytest.approx(11 / 3) and summary.mean.value == pytest.approx(52 / 5)
    assert 1 <= summary.iqm.low < summary.iqm.value < summary.iqm.high <= 40
    # of three runs none can be dropped: the mean, not the mean of what a quarter of each run's episodes would leave
    few = stats.summarize([np.array([0.0, 1, 2, 9]), np.array([0.0, 0, 0, 8]), np.array([1.0, 1, 1, 1])])
    assert few.iqm == few.mean and few.iqm.value == pytest.approx(2)


def test_pairs_are_resampled_together() -> None:
    """What both owe to a level cancels: the interval is that of the differences, and the value stays."""
    rng = np.random.default_rng(4)
    level = rng.normal(10, 5, 200)
    first, second = level + rng.normal(1, 1, 200), level + rng.normal(0, 1, 200)
    paired, apart = stats.difference(first, second, [True]), stats.difference(first, second)
    assert paired.value == pytest.approx(apart.value) == pytest.approx((first - second).mean())
    assert (paired.low, paired.high) == pytest.approx(stats.bootstrap_ci(first - second), abs=0.02)
    assert paired.high - paired.low < 0.3 * (apart.high - apart.low)
    other = rng.normal(10, 5, 50)  # a second seed, whose two runs played different levels
    mixed = stats.difference([first, other[:30]], [second, other[30:]], [True, False])
    assert mixed.value == pytest.approx(((first - second).mean() + other[:30].mean() - other[30:].mean()) / 2)
    assert mixed.low < mixed.value < mixed.high
    assert np.isnan(stats.difference([3.0], [1.0], [True]).low)


def test_gap() -> None:
    rng = np.random.default_rng(3)
    train, unseen = rng.normal(10, 2, 300), rng.normal(8, 2, 300)
    gap = stats.generalization_gap(train, unseen)
    assert gap.value == pytest.approx(train.mean() - unseen.mean())
    half = 1.96 * np.sqrt(train.var() / 300 + unseen.var() / 300)
    assert (gap.low, gap.high) == pytest.approx((gap.value - half, gap.value + half), abs=0.03)
    # Runs whose level differs by far more than their gap: a run's two splits must be resampled together.
    offsets = (0, 20, 40)
    paired = stats.generalization_gap([train + o for o in offsets], [unseen + o for o in offsets])
    assert paired.high - paired.low < 1.0
    with pytest.raises(UserError, match="both sides"):
        stats.generalization_gap([train, train], [unseen])


def test_single_episode_has_no_interval() -> None:
    assert np.isnan(stats.bootstrap_ci([3.0])).all()
    assert str(stats.estimate([3.0])) == "3.00"
    assert np.isnan(stats.generalization_gap([3.0], [1.0, 2.0]).low)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [[1.0], []]])
def test_no_average_of_nothing(values: list) -> None:
    with pytest.raises(UserError):
        stats.bootstrap_ci(values)


def test_normalized_score_uses_the_published_constants() -> None:
    assert set(stats.SCORE_RANGE) == set(GAMES)
    assert all(set(modes) == {"easy", "hard"} for modes in stats.SCORE_RANGE.values())
    assert stats.normalized_score([2.5, 64.0]).tolist() == [0.0, 1.0]
    assert stats.normalized_score(35.0, "starpilot", "hard") == 1.0
    # A person scored 33.15 on StarPilot easy, 0.498, and 25.15 on FruitBot, 0.786 (discourse.aicrowd.com/t/3677).
    assert stats.normalized_score(33.15) == pytest.approx(0.498, abs=5e-4)
    assert stats.normalized_score(25.15, "fruitbot") == pytest.approx(0.786, abs=5e-4)
    with pytest.raises(UserError, match="memory"):
        stats.normalized_score(1.0, "maze", "memory")
