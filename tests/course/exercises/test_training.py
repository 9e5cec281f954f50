"""The exercises of notebook 05: right answers, the mistakes as a student would write them, and what the runs show."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from exercise_answers import each_gets_its_sentence

from ppo_lib.course.exercises import examine, find
from ppo_lib.course.exercises.training import CAUSES, SICK, envs_within
from ppo_lib.policy import make_policy
from ppo_lib.runs import changed_settings, load_run
from ppo_lib.storage import RolloutStorage

RUNS = Path(__file__).resolve().parents[3] / "results" / "sick-runs"
RIGHT = {"A": "entropy bonus too strong", "B": "learning rate too high", "C": "value function not trained",
         "D": "clip range too wide"}  # fmt: skip


def by_trial(budget, parameters, sample_bytes, num_steps, num_minibatches):
    """Add environments while they fit."""
    envs = 0
    while True:
        envs += num_minibatches
        steps = envs * num_steps
        if steps * 64 * 64 * 3 + steps / num_minibatches * sample_bytes + 4 * 4 * parameters > budget:
            return envs - num_minibatches


def float_rollout(budget, parameters, sample_bytes, num_steps, num_minibatches):
    per_env = num_steps * (64 * 64 * 3 * 4 + sample_bytes / num_minibatches)
    return int((budget - parameters * 16) / per_env) // num_minibatches * num_minibatches


def grey_frames(budget, parameters, sample_bytes, num_steps, num_minibatches):
    per_env = num_steps * (64 * 64 + sample_bytes / num_minibatches)
    return int((budget - parameters * 16) / per_env) // num_minibatches * num_minibatches


def no_activations(budget, parameters, sample_bytes, num_steps, num_minibatches):
    return (budget - parameters * 16) // (num_steps * 64 * 64 * 3) // num_minibatches * num_minibatches


def all_activations(budget, parameters, sample_bytes, num_steps, num_minibatches):
    per_env = num_steps * (64 * 64 * 3 + sample_bytes)
    return (budget - parameters * 16) // per_env // num_minibatches * num_minibatches


def with_bytes_per_parameter(count):
    def envs(budget, parameters, sample_bytes, num_steps, num_minibatches):
        per_env = num_steps * (64 * 64 * 3 + sample_bytes / num_minibatches)
        return int((budget - parameters * count) / per_env) // num_minibatches * num_minibatches

    return envs


def any_number(budget, parameters, sample_bytes, num_steps, num_minibatches):
    return math.floor((budget - 16 * parameters) / (num_steps * (64 * 64 * 3 + sample_bytes / num_minibatches)))


def rounded_up(budget, parameters, sample_bytes, num_steps, num_minibatches):
    envs = any_number(budget, parameters, sample_bytes, num_steps, num_minibatches)
    return math.ceil(envs / num_minibatches) * num_minibatches


ANSWERS = [
    (by_trial, ""),
    (float_rollout, "uint8"),
    (grey_frames, "three channels"),
    (no_activations, "activations of the minibatch are missing"),
    (all_activations, "only one minibatch at a time"),
    (with_bytes_per_parameter(4), "one of the four"),
    (with_bytes_per_parameter(1), "four bytes"),
    (with_bytes_per_parameter(0), "Adam's moments are missing"),
    (any_number, "equally large"),
    (rounded_up, "exceeds the budget"),
]


def test_each_budget_gets_its_sentence():
    """The right answer is solved, wrong ones are named, and every sentence of the package is shown."""
    each_gets_its_sentence("envs_within", ANSWERS)


def test_the_budget_counts_what_the_storage_keeps(tiny):
    """Observations and parameters of a real network and rollout fill a budget to less than one environment."""
    config = tiny()
    network = make_policy(config)
    parameters = sum(weight.numel() for weight in network.parameters())
    storage = RolloutStorage(config.num_steps, 6, state_size=network.state_size)
    assert envs_within(storage.obs.nbytes + 16 * parameters, parameters, 0, config.num_steps, 2) == 6


@pytest.mark.parametrize("place", range(4), ids=list("ABCD"))
def test_each_wrong_diagnosis_is_explained(place):
    """The sentence is about the first wrong run, whatever follows, and says which runs before it are right."""
    run, exercise = "ABCD"[place], find("sick_runs")
    for cause in {*CAUSES} - {RIGHT[run]}:
        answer = RIGHT | dict.fromkeys("ABCD"[place:], CAUSES[1]) | {run: cause}
        status, sentence = examine(exercise, lambda answer=answer: answer)
        start, _, rest = sentence.partition("Run ")
        assert status == "wrong" and rest.startswith(f"{run} isn't '{cause}'"), sentence
        assert start == {0: "", 1: "A is right. "}.get(place, f"{' and '.join('ABCD'[:place])} are right. ")


def test_the_diagnosis():
    """Right, incomplete and misspelt ones."""
    exercise = find("sick_runs")
    assert examine(exercise, lambda: RIGHT) == ("solved", "") and RIGHT == SICK
    for wrong in ({}, RIGHT | {"C": "no critic"}):
        assert "needs one of the causes" in examine(exercise, lambda wrong=wrong: wrong)[1]


def test_the_runs_show_what_the_sentences_say():
    """The committed logs, averaged from the third update on, and their settings."""
    runs = {name: load_run(RUNS / name) for name in ("healthy", *SICK)}
    names = ("approx_kl", "clip_fraction", "entropy", "explained_variance")
    kl, clipped, entropy, explained = (
        {run: log.metrics[name][2:].mean() for run, log in runs.items()} for name in names
    )
    assert entropy["A"] > 0.995 * np.log(15) and kl["A"] < 0.4 * kl["healthy"]
    assert explained["A"] > 0.5 * explained["healthy"] > 0.02
    first = {run: log.metrics["approx_kl"][0] for run, log in runs.items()}
    assert first["B"] > 100 * first["healthy"] and abs(explained["B"]) < 0.02
    assert explained["C"] < 0.3 * explained["healthy"] and kl["C"] > 0.5 * kl["healthy"]
    assert kl["D"] > 3 * kl["healthy"] and clipped["D"] < clipped["healthy"]
    fields = {run: set(changed_settings(runs["healthy"].config, runs[run].config)) for run in SICK}
    assert fields == {"A": {"entropy_coef"}, "B": {"learning_rate"}, "C": {"value_coef"}, "D": {"clip_range"}}
