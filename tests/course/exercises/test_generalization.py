"""The exercises of notebook 06: right answers in several forms, and the mistakes as a student would write them."""

from __future__ import annotations

import numpy as np
import pytest
from exercise_answers import each_gets_its_sentence


def bootstrap(mean_axis=1, tails=(0.025, 0.975), replace=True):
    """A bootstrap as students write it, in one go."""

    def bootstrap_interval(values, rng, resamples=3000):
        if replace:
            indices = rng.integers(len(values), size=(resamples, len(values)))
        else:
            indices = np.array([rng.permutation(len(values)) for _ in range(resamples)])
        means = values[indices].mean(axis=mean_axis)
        return tuple(np.quantile(means, tails))

    return bootstrap_interval


def bootstrap_in_a_loop(values, rng, resamples=3000):
    means = []
    for _ in range(resamples):
        means.append(rng.choice(values, len(values)).mean())
    return np.percentile(means, 2.5), np.percentile(means, 97.5)


def bootstrap_of_its_own(values, rng, resamples=3000):
    own = np.random.default_rng(123)
    return np.quantile(own.choice(values, (resamples, len(values))).mean(1), [0.025, 0.975])


def normal_interval(values, rng):
    error = values.std(ddof=1)
    return values.mean() - 1.96 * error, values.mean() + 1.96 * error


def of_single_returns(values, rng, resamples=3000):
    drawn = values[rng.integers(len(values), size=(resamples, len(values)))]
    return np.quantile(drawn, 0.025), np.quantile(drawn, 0.975)


def quantiles_of_the_data(values, rng):
    low, high = np.quantile(values, [0.025, 0.975])
    return low, high


def high_before_low(values, rng):
    low, high = bootstrap_in_a_loop(values, rng)
    return high, low


def paired(first, second, rng):
    levels = rng.integers(len(first), size=(3000, len(first)))
    return tuple(np.quantile(first[levels].mean(1) - second[levels].mean(1), [0.025, 0.975]))


def unpaired(first, second, rng):
    n = len(first)
    ours = first[rng.integers(n, size=(3000, n))].mean(1)
    theirs = second[rng.integers(n, size=(3000, n))].mean(1)
    return np.quantile(ours - theirs, [0.025, 0.975])


def ends_subtracted(first, second, rng):
    a, b = bootstrap()(first, rng), bootstrap()(second, rng)
    return a[0] - b[0], a[1] - b[1]


def worst_case(first, second, rng):
    a, b = bootstrap()(first, rng), bootstrap()(second, rng)
    return a[0] - b[1], a[1] - b[0]


def second_minus_first(first, second, rng):
    return bootstrap()(second - first, rng)


def without_means(first, second, rng):
    return np.quantile(first - second, [0.025, 0.975])


def sorted_first(first, second, rng):
    return bootstrap()(np.array(sorted(first)) - np.array(sorted(second)), rng)


def seeds(sides=2.0, ddof=1, z=1.96, half=1.0, rounding=np.ceil, square=True):
    """The number of seeds by the formula, with one thing wrong."""

    def seeds_needed(scores, half_width):
        ratio = z * np.std(scores, ddof=ddof) / (half_width * half)
        return int(rounding(sides * (ratio**2 if square else ratio)))

    return seeds_needed


ANSWERS = [
    ("bootstrap_interval", bootstrap(), ""),
    ("bootstrap_interval", bootstrap_in_a_loop, ""),
    ("bootstrap_interval", bootstrap_of_its_own, ""),
    ("bootstrap_interval", of_single_returns, "take the mean of each resample"),
    ("bootstrap_interval", quantiles_of_the_data, "nothing was resampled"),
    ("bootstrap_interval", bootstrap(replace=False), "without replacement"),
    ("bootstrap_interval", bootstrap(mean_axis=0), "wrong axis"),
    ("bootstrap_interval", bootstrap(tails=(0.05, 0.95)), "90% interval"),
    ("bootstrap_interval", normal_interval, "1.96 standard deviations"),
    ("bootstrap_interval", lambda v, rng: (v.mean() - 2 * v.std(ddof=1), v.mean() + 2 * v.std(ddof=1)), "± 2 standard"),
    ("bootstrap_interval", high_before_low, "exchanged"),
    ("paired_interval", paired, ""),
    ("paired_interval", lambda a, b, rng: bootstrap_in_a_loop(a - b, rng), ""),
    ("paired_interval", unpaired, "apart"),
    ("paired_interval", ends_subtracted, "ends of two intervals"),
    ("paired_interval", worst_case, "extreme at once"),
    ("paired_interval", second_minus_first, "sign is reversed"),
    ("paired_interval", without_means, "single differences"),
    ("paired_interval", sorted_first, "sorts the returns"),
    ("seeds_needed", seeds(), ""),
    ("seeds_needed", seeds(sides=1), "both settings vary"),
    ("seeds_needed", seeds(sides=4), "don't add up"),
    ("seeds_needed", seeds(ddof=0), "ddof=1"),
    ("seeds_needed", seeds(sides=1, square=False), "grows with the square of"),
    ("seeds_needed", seeds(sides=2**0.5, square=False), "inside the square"),
    ("seeds_needed", seeds(half=0.5), "from end to end"),
    ("seeds_needed", seeds(rounding=np.floor), "round up"),
    ("seeds_needed", seeds(z=1.0), "1.96"),
]  # fmt: skip


@pytest.mark.parametrize("name", ["bootstrap_interval", "paired_interval", "seeds_needed"])
def test_each_answer_gets_its_sentence(name):
    """Right answers are solved, wrong ones named, and every sentence of the package is shown."""
    each_gets_its_sentence(name, [(answer, words) for of, answer, words in ANSWERS if of == name])
