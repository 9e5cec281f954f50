"""The exercises of notebook 04: the terms of PPO's loss, the gradient step, and three broken runs to explain.

- log_prob, ratio, advantage, value and return_ are [B], logits [B, A]; each term is one number per step, [B].
- The broken runs are those of results/broken-ppo, made by benchmarks/broken_ppo.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ppo_lib.course.exercises import Exercise


def clipped_surrogate(ratio: Tensor, advantage: Tensor, epsilon: float) -> Tensor:
    """min(r A, clip(r, 1 - epsilon, 1 + epsilon) A), as in ppo.ppo_loss."""
    return torch.min(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage)


def clipped_value_loss(value: Tensor, old_value: Tensor, return_: Tensor, epsilon: float) -> Tensor:
    """Half the larger of the squared errors of the value and of the clipped value, as in ppo.ppo_loss."""
    near = old_value + (value - old_value).clamp(-epsilon, epsilon)
    return 0.5 * torch.max((value - return_).square(), (near - return_).square())


def entropy(logits: Tensor) -> Tensor:
    """-sum_a p log p in nats, [B]."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def kl_estimates(log_prob: Tensor, old_log_prob: Tensor) -> tuple[Tensor, Tensor]:
    """k1 = -log r and k3 = r - 1 - log r of KL(old || new), from actions of the old policy."""
    log_ratio = log_prob - old_log_prob
    return -log_ratio, log_ratio.exp() - 1 - log_ratio


def gradient_step(policy: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, max_norm: float) -> Tensor:
    """One step along the gradient, whose norm is limited to max_norm. Returns the norm before that."""
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(policy.parameters(), max_norm)
    optimizer.step()
    return norm


def wrong_step(zero: bool = True, clip: Callable = nn.utils.clip_grad_norm_, move: bool = True) -> Callable:
    """gradient_step without zero_grad, with another clip, or without the step."""

    def step(policy: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, max_norm: float) -> Tensor:
        if zero:
            optimizer.zero_grad()
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in policy.parameters()]).norm()
        clip(policy.parameters(), max_norm)
        if move:
            optimizer.step()
        return norm

    return step


def to_the_limit(parameters: list[Tensor], max_norm: float) -> None:
    """Scale every gradient to max_norm, small ones too, which is wrong."""
    gradients = [p.grad for p in parameters]
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    for gradient in gradients:
        gradient *= max_norm / norm


def each_alone(parameters: list[Tensor], max_norm: float) -> None:
    """Limit the norm of each tensor, which is wrong."""
    for parameter in parameters:
        nn.utils.clip_grad_norm_([parameter], max_norm)


def three_steps(answer: Callable, max_norm: float) -> dict[str, object]:
    """Three steps of a linear model, with gradients below and above max_norm: the norms and the weights."""
    policy = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    norms = [float(answer(policy, optimizer, scale * policy(torch.randn(4, 3)).square().mean(), max_norm).detach())
             for scale in (0.1, 3.0, 1.0)]  # fmt: skip
    return {"weights": [p.detach() for p in policy.parameters()], "norms": norms}


def numbers(count: int) -> list[Tensor]:
    """Some random vectors [32]."""
    return list(torch.randn(count, 32, generator=torch.Generator().manual_seed(0)))


CAUSES = {  # what a broken PPO may do -> what that shows
    "old log-probabilities computed anew before every gradient step": (
        "keeps every ratio at 1, so the logged KL and the clip fraction are exactly 0 however far the policy moves"
    ),
    "advantages in another order than the actions": (
        "leaves ratios and critic in order, but credits each action with the outcome of another: nothing is learned"
    ),
    "GRU state cleared one step early in training": (
        "gives training another memory than the rollout had: the KL before the first gradient step is not 0"
    ),
    "entropy bonus with the wrong sign": (
        "moves the ratios as any update does: KL and clip fraction are above 0 while the entropy falls"
    ),
    "value loss left out": "leaves the critic at its first guess: the value loss does not fall",
    "learning rate ten times too high": (
        "moves the policy far in each update: KL and clip fraction are several times those of the healthy run"
    ),
}
BROKEN = dict(zip("abc", CAUSES, strict=False))
SEEN = {
    "a": "the entropy falls to 0, and the KL and the clip fraction are 0 in every single update",
    "b": "the KL before the first gradient step is 0, the ratios stay closer to 1 than in the healthy run, and the "
    "return stays at guessing",
    "c": "the KL before the first gradient step, kl_before, is above 0 in every update, and in the healthy run it is 0",
}


def broken_runs() -> dict[str, str]:
    """The cause of each broken run: "a" to "c" -> one of CAUSES."""
    return dict(BROKEN)


def diagnosis(answer: Callable[[], dict[str, str]]) -> list[str]:
    """The causes that an answer names, up to the first wrong one. Raises ValueError for a run without a known cause."""
    named, found = answer(), []
    for run, cause in BROKEN.items():
        if (given := named.get(run)) not in CAUSES:
            raise ValueError(f"run {run} needs one of the six causes, not {given!r}")
        found.append(given)
        if given != cause:
            break
    return found


def misread() -> dict[str, Callable[[], dict[str, str]]]:
    """A sentence and a wrong diagnosis for each run and each cause that isn't its own."""
    return {
        f"run {run} isn't '{cause}': that {sign}. In run {run} {SEEN[run]}.": partial(dict, BROKEN | {run: cause})
        for run, right in BROKEN.items()
        for cause, sign in CAUSES.items()
        if cause != right
    }


EXERCISES = [
    Exercise(
        name="clipped_surrogate",
        title="Clipped surrogate",
        difficulty=1,
        minutes=5,
        solution=clipped_surrogate,
        cases=lambda: [(numbers(1)[0].exp(), numbers(2)[1], epsilon) for epsilon in (0.2, 0.3)],
        mistakes={
            "This is the larger of the two terms: PPO takes the smaller one, the pessimistic bound.": (
                lambda r, a, e: torch.max(r * a, r.clamp(1 - e, 1 + e) * a)
            ),
            "This is the clipped term alone: a ratio that moved the wrong way then has no gradient to come back.": (
                lambda r, a, e: r.clamp(1 - e, 1 + e) * a
            ),
            "The ratio is near 1, not near 0: clip it to 1 - epsilon and 1 + epsilon.": (
                lambda r, a, e: torch.min(r * a, r.clamp(-e, e) * a)
            ),
            "Clip the ratio, not its product with the advantage.": (
                lambda r, a, e: torch.min(r * a, (r * a).clamp(1 - e, 1 + e))
            ),
            "This is the loss: the objective is maximised, without the minus sign (the loss adds it later).": (
                lambda r, a, e: -clipped_surrogate(r, a, e)
            ),
            "Nothing is clipped: this is the plain surrogate, ratio times advantage.": lambda r, a, e: r * a,
            "The objective is one number per step: leave the mean to the loss.": (
                lambda r, a, e: clipped_surrogate(r, a, e).mean()
            ),
        },
    ),
    Exercise(
        name="clipped_value_loss",
        title="Clipped value loss",
        difficulty=2,
        minutes=10,
        solution=clipped_value_loss,
        cases=lambda: [(*numbers(3), 0.2)],
        mistakes={
            "This is the smaller error: a loss is pessimistic with the larger one, torch.max.": (
                lambda v, old, r, e: 0.5 * torch.min((v - r) ** 2, (old + (v - old).clamp(-e, e) - r) ** 2)
            ),
            "The factor 1/2 is missing.": lambda v, old, r, e: 2 * clipped_value_loss(v, old, r, e),
            "This is the clipped error alone: take the larger of it and of the plain error.": (
                lambda v, old, r, e: 0.5 * (old + (v - old).clamp(-e, e) - r) ** 2
            ),
            "Clip the change of the value, value - old_value, and not the value itself.": (
                lambda v, old, r, e: clipped_value_loss(v, 0 * old, r, e)
            ),
            "The change is clipped, but not added to the old value again.": (
                lambda v, old, r, e: 0.5 * torch.max((v - r) ** 2, ((v - old).clamp(-e, e) - r) ** 2)
            ),
            "This is the plain squared error: the other error, of the clipped value, is missing.": (
                lambda v, old, r, e: 0.5 * (v - r) ** 2
            ),
            "The loss is one number per step here: leave the mean to the total loss.": (
                lambda v, old, r, e: clipped_value_loss(v, old, r, e).mean()
            ),
        },
    ),
    Exercise(
        name="entropy",
        title="Entropy",
        difficulty=1,
        minutes=5,
        solution=entropy,
        cases=lambda: [(numbers(1)[0].view(8, 4),), (torch.tensor([[200.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),)],
        mistakes={
            "The sign: log p is negative, so the entropy, -sum p log p, is positive.": lambda z: -entropy(z),
            "Sum over the actions, don't average.": lambda z: entropy(z) / z.shape[-1],
            "The entropy is one number per step: sum over the actions only.": lambda z: entropy(z).sum(),
            "The entropy is one number per step: leave the mean over steps to the loss.": lambda z: entropy(z).mean(),
            "Entropy is in nats here: use the natural logarithm.": lambda z: entropy(z) / torch.tensor(2.0).log(),
            "Weight each log p with its probability p.": lambda z: -z.log_softmax(-1).sum(-1),
            "Where a probability is rounded to 0, log(softmax(z)) gives 0 times infinity: use log_softmax.": (
                lambda z: -(z.softmax(-1) * z.softmax(-1).log()).sum(-1)
            ),
            "softmax runs over the wrong axis: the actions are the last one.": (
                lambda z: -(z.softmax(0) * z.log_softmax(0)).sum(-1)
            ),
        },
    ),
    Exercise(
        name="kl_estimates",
        title="Two KL estimators",
        difficulty=2,
        minutes=10,
        solution=kl_estimates,
        cases=lambda: [tuple(numbers(2))],
        mistakes={
            "The ratio is the wrong way round: new over old, log_prob - old_log_prob.": (
                lambda new, old: kl_estimates(old, new)
            ),
            "k1 has the wrong sign: KL(old || new) is the mean of log old - log new.": (
                lambda new, old: (new - old, kl_estimates(new, old)[1])
            ),
            "k3 needs minus the log ratio: r - 1 - log r is never negative.": (
                lambda new, old: (old - new, (new - old).exp() - 1 + (new - old))
            ),
            "k3 uses the inverse ratio: r is new over old in both places.": (
                lambda new, old: (old - new, (old - new).exp() - 1 - (old - new))
            ),
            "k3 lacks the -1: it is 0 where nothing has changed (r = 1).": (
                lambda new, old: (old - new, (new - old).exp() - (new - old))
            ),
            "The second is half the squared log ratio (k2): k3 is r - 1 - log r.": (
                lambda new, old: (old - new, (new - old).square() / 2)
            ),
            "Each estimate is one number per step: leave the mean to the caller.": (
                lambda new, old: tuple(k.mean() for k in kl_estimates(new, old))
            ),
        },
    ),
    Exercise(
        name="gradient_step",
        title="Gradient step with clipping",
        difficulty=2,
        minutes=10,
        solution=gradient_step,
        cases=lambda: [(0.5,)],
        run=three_steps,
        mistakes={
            "Gradients of earlier steps are added: call optimizer.zero_grad() before backward().": wrong_step(
                zero=False
            ),
            "The gradient isn't clipped when the step is taken: clip_grad_norm_ comes between backward() and step().": (
                wrong_step(clip=lambda parameters, max_norm: None)
            ),
            "Nothing moves: optimizer.step() is missing.": wrong_step(move=False),
            "Small gradients are scaled up: the norm is limited, not set.": (
                wrong_step(clip=lambda p, n: to_the_limit(list(p), n))
            ),
            "Each tensor is clipped alone: the limit holds for the norm of all of them together.": (
                wrong_step(clip=lambda p, n: each_alone(list(p), n))
            ),
            "This limits each entry (clip_grad_value_): limit the norm, with clip_grad_norm_.": (
                wrong_step(clip=nn.utils.clip_grad_value_)
            ),
        },
    ),
    Exercise(
        name="broken_runs",
        title="Three broken PPOs",
        difficulty=3,
        minutes=20,
        solution=broken_runs,
        cases=lambda: [()],
        run=diagnosis,
        mistakes=misread(),
    ),
]
