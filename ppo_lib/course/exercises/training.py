"""Exercises of notebook 05: a config within a memory budget, and the diagnosis of four sick runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from ppo_lib.course.exercises import Exercise

FRAME = 64 * 64 * 3  # bytes of an observation


def envs_within(budget: int, parameters: int, sample_bytes: int, num_steps: int, num_minibatches: int) -> int:
    """The most environments whose training fits in `budget` bytes, as a multiple of num_minibatches.

    In memory are the rollout's observations (uint8 [T, N, 64, 64, 3]), sample_bytes of activations for each step of one
    minibatch, and four float32 numbers per parameter: the weight, its gradient, and Adam's two moments.
    """
    per_env = num_steps * (FRAME + sample_bytes / num_minibatches)
    most = int((budget - 16 * parameters) // per_env)
    return most - most % num_minibatches


def _envs(
    budget: int, parameters: int, sample_bytes: int, num_steps: int, num_minibatches: int, *,
    frame: int = FRAME, copies: int = 16, share: bool = True, multiple: int = -1
) -> int:  # fmt: skip
    """envs_within with one mistake. multiple: -1 rounds down to a multiple of num_minibatches, 1 up, 0 not at all."""
    per_env = num_steps * (frame + sample_bytes / (num_minibatches if share else 1))
    most = int((budget - copies * parameters) // per_env)
    return most + (multiple * (multiple * -most % num_minibatches) if multiple else 0)


CAUSES = (
    "learning rate too high", "learning rate too low", "entropy bonus too strong", "entropy bonus missing",
    "value function not trained", "clip range too wide", "too many epochs",
)  # fmt: skip
SICK = dict(zip("ABCD", (CAUSES[2], CAUSES[0], CAUSES[4], CAUSES[5]), strict=True))
_SIGN = dict(zip(CAUSES, (
    "makes the KL jump at once, to hundreds of times the healthy run's, and leaves a critic that explains nothing",
    "leaves everything as it was: the KL is near 0, and so is the explained variance",
    "holds the entropy at its maximum, log 15, so that the policy hardly moves",
    "lets the entropy fall faster than in the healthy run, all else alike",
    "keeps the explained variance at or below 0, while the policy moves, even further than in the healthy run",
    "gives a large KL with hardly any clipped ratio",
    "gives a large KL and many clipped ratios, while the critic learns at least as well as in the healthy run",
), strict=True))  # fmt: skip
_SEEN = {
    "A": "the entropy stays at log 15 with a small KL, while the critic learns as in the healthy run",
    "B": "the KL of the first update is hundreds of times the healthy run's, and the critic explains nothing",
    "C": "the explained variance stays at or below 0, while the policy moves further than in the healthy run",
    "D": "the KL is far above the healthy run's, with fewer clipped ratios",
}


def sick_runs() -> dict[str, str]:
    """The cause of each sick run: "A" to "D" -> one of CAUSES."""
    return dict(SICK)


def _diagnosis(answer: Callable[[], Mapping[str, str]]) -> list[str]:
    """The causes that an answer names, up to the first wrong one. Raises ValueError for a run without a known cause."""
    named, found = answer(), []
    for run, cause in SICK.items():
        if named.get(run) not in CAUSES:
            raise ValueError(f"run {run} needs one of the causes in CAUSES, not {named.get(run)!r}")
        found.append(named[run])
        if found[-1] != cause:
            break
    return found


def _misread() -> dict[str, Callable[[], dict[str, str]]]:
    """A sentence and a wrong diagnosis for each run and each cause that isn't its own."""
    wrong = {}
    for place, (run, right) in enumerate(SICK.items()):
        for cause in CAUSES:
            if cause != right:
                good = f"{' and '.join('ABCD'[:place])} {'are' if place > 1 else 'is'} right. " if place else ""
                sentence = f"{good}Run {run} isn't '{cause}': that {_SIGN[cause]}. In run {run} {_SEEN[run]}."
                wrong[sentence] = partial(dict, SICK | {run: cause})
    return wrong


EXERCISES = [
    Exercise(
        "envs_within",
        "A config within a memory budget",
        difficulty=2,
        minutes=10,
        solution=envs_within,
        cases=lambda: [(2**30, 626_256, 1_400_000, 256, 8), (2**33, 30_000_000, 1_000_000, 64, 4),
                       (2**31, 100_000_000, 50_000, 128, 16), (2**28, 1_021_008, 20_000, 32, 4)],
        mistakes={
            "the storage keeps observations as uint8, one byte per value; you count four (float32).": partial(
                _envs, frame=4 * FRAME
            ),
            "an observation has three channels: 64 x 64 x 3 bytes.": partial(_envs, frame=64 * 64),
            "the activations of the minibatch are missing: they need most of the memory.": (
                lambda b, p, s, t, m: _envs(b, p, 0, t, m)
            ),
            "you count activations for the whole rollout; only one minibatch at a time is in the network.": partial(
                _envs, share=False
            ),
            "there are four float32 numbers per parameter, 16 bytes: you count one of the four.": partial(
                _envs, copies=4
            ),
            "each of the four numbers per parameter is a float32, which takes four bytes.": partial(_envs, copies=1),
            "weights, gradients and Adam's moments are missing.": partial(_envs, copies=0),
            "round down to a multiple of num_minibatches, so that all minibatches are equally large.": partial(
                _envs, multiple=0
            ),
            "you round up to a multiple of num_minibatches, which exceeds the budget: round down.": partial(
                _envs, multiple=1
            ),
        },
    ),
    Exercise(
        "sick_runs",
        "Four sick runs",
        difficulty=3,
        minutes=15,
        solution=sick_runs,
        cases=lambda: [()],
        run=_diagnosis,
        mistakes=_misread(),
    ),
]  # fmt: skip
