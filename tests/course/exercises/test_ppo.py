"""The exercises of notebook 04: mistakes written as a student would write them each get their own sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ppo_lib.course.exercises import examine, find
from ppo_lib.course.exercises.ppo import EXERCISES

ROOT = Path(__file__).resolve().parents[3]


def test_every_solution_passes_and_no_two_mistakes_are_the_same():
    for exercise in EXERCISES:
        assert examine(exercise, exercise.solution) == ("solved", "")
        for sentence, wrong in exercise.mistakes.items():
            assert examine(exercise, wrong) == ("wrong", sentence)


def surrogate_by_cases(ratio, advantage, epsilon):
    limit = torch.where(advantage > 0, 1 + epsilon, 1 - epsilon)
    return torch.where(advantage > 0, torch.min(ratio, limit), torch.max(ratio, limit)) * advantage


def surrogate_maximum(ratio, advantage, epsilon):
    clipped = torch.clamp(ratio, 1 - epsilon, 1 + epsilon)
    return torch.maximum(ratio * advantage, clipped * advantage)


def surrogate_of_the_clip_alone(ratio, advantage, epsilon):
    return torch.clamp(ratio, 1 - epsilon, 1 + epsilon) * advantage


def surrogate_as_a_loss(ratio, advantage, epsilon):
    return -torch.min(ratio * advantage, torch.clamp(ratio, 1 - epsilon, 1 + epsilon) * advantage)


def surrogate_averaged(ratio, advantage, epsilon):
    return torch.min(ratio * advantage, torch.clamp(ratio, 1 - epsilon, 1 + epsilon) * advantage).mean()


def value_loss_by_cases(value, old_value, return_, epsilon):
    near = torch.max(torch.min(value, old_value + epsilon), old_value - epsilon)
    plain, clipped = (value - return_) ** 2, (near - return_) ** 2
    return torch.where(plain > clipped, plain, clipped) / 2


def value_loss_minimum(value, old_value, return_, epsilon):
    near = old_value + torch.clamp(value - old_value, -epsilon, epsilon)
    return 0.5 * torch.min((value - return_) ** 2, (near - return_) ** 2)


def value_loss_without_half(value, old_value, return_, epsilon):
    near = old_value + torch.clamp(value - old_value, -epsilon, epsilon)
    return torch.max((value - return_) ** 2, (near - return_) ** 2)


def value_loss_near_zero(value, old_value, return_, epsilon):
    return 0.5 * torch.max((value - return_) ** 2, (value.clamp(-epsilon, epsilon) - return_) ** 2)


def value_loss_without_old(value, old_value, return_, epsilon):
    return 0.5 * torch.max((value - return_) ** 2, ((value - old_value).clamp(-epsilon, epsilon) - return_) ** 2)


def entropy_by_distribution(logits):
    return torch.distributions.Categorical(logits=logits).entropy()


def entropy_negative(logits):
    log_p = torch.log_softmax(logits, dim=-1)
    return (log_p.exp() * log_p).sum(-1)


def entropy_that_underflows(logits):
    p = torch.softmax(logits, dim=-1)
    return -(p * p.log()).sum(-1)


def entropy_of_all_steps(logits):
    log_p = torch.log_softmax(logits, dim=-1)
    return -(log_p.exp() * log_p).sum()


def kl_by_hand(log_prob, old_log_prob):
    ratio = torch.exp(log_prob) / torch.exp(old_log_prob)
    return old_log_prob - log_prob, (ratio - 1) - torch.log(ratio)


def kl_the_other_way(log_prob, old_log_prob):
    log_ratio = old_log_prob - log_prob
    return -log_ratio, log_ratio.exp() - 1 - log_ratio


def kl_with_a_sign(log_prob, old_log_prob):
    log_ratio = log_prob - old_log_prob
    return log_ratio, log_ratio.exp() - 1 - log_ratio


def kl_second(log_prob, old_log_prob):
    log_ratio = log_prob - old_log_prob
    return -log_ratio, 0.5 * log_ratio**2


def step_by_hand(policy, optimizer, loss, max_norm):
    for p in policy.parameters():
        p.grad = None
    loss.backward()
    norm = torch.stack([p.grad.square().sum() for p in policy.parameters()]).sum().sqrt()
    if norm > max_norm:
        for p in policy.parameters():
            p.grad *= max_norm / norm
    optimizer.step()
    return norm


def step_that_accumulates(policy, optimizer, loss, max_norm):
    loss.backward()
    norm = nn.utils.clip_grad_norm_(policy.parameters(), max_norm)
    optimizer.step()
    return norm


def step_clipped_late(policy, optimizer, loss, max_norm):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return nn.utils.clip_grad_norm_(policy.parameters(), max_norm)


def step_with_clipped_entries(policy, optimizer, loss, max_norm):
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.get_total_norm([p.grad for p in policy.parameters()])
    nn.utils.clip_grad_value_(policy.parameters(), max_norm)
    optimizer.step()
    return norm


def step_without_a_step(policy, optimizer, loss, max_norm):
    optimizer.zero_grad()
    loss.backward()
    return nn.utils.clip_grad_norm_(policy.parameters(), max_norm)


def runs_with_a_slip():
    return {
        "a": "old log-probabilities computed anew before every gradient step",
        "b": "GRU state cleared one step early in training",
        "c": "advantages in another order than the actions",
    }


def runs_without_c():
    return {
        "a": "old log-probabilities computed anew before every gradient step",
        "b": "advantages in another order than the actions",
    }


def runs_all_of_one_kind():
    return dict.fromkeys("abc", "learning rate ten times too high")


@pytest.mark.parametrize(
    ("name", "answer", "sentence"),
    [
        ("clipped_surrogate", surrogate_by_cases, ""),
        ("clipped_surrogate", surrogate_maximum, "This is the larger of the two terms"),
        ("clipped_surrogate", surrogate_of_the_clip_alone, "This is the clipped term alone"),
        ("clipped_surrogate", surrogate_as_a_loss, "This is the loss"),
        ("clipped_surrogate", surrogate_averaged, "The objective is one number per step"),
        ("clipped_value_loss", value_loss_by_cases, ""),
        ("clipped_value_loss", value_loss_minimum, "This is the smaller error"),
        ("clipped_value_loss", value_loss_without_half, "The factor 1/2 is missing"),
        ("clipped_value_loss", value_loss_near_zero, "Clip the change of the value"),
        ("clipped_value_loss", value_loss_without_old, "The change is clipped, but not added"),
        ("entropy", entropy_by_distribution, ""),
        ("entropy", entropy_negative, "The sign"),
        ("entropy", entropy_that_underflows, "Where a probability is rounded to 0"),
        ("entropy", entropy_of_all_steps, "The entropy is one number per step: sum over the actions only"),
        ("kl_estimates", kl_by_hand, ""),
        ("kl_estimates", kl_the_other_way, "The ratio is the wrong way round"),
        ("kl_estimates", kl_with_a_sign, "k1 has the wrong sign"),
        ("kl_estimates", kl_second, "The second is half the squared log ratio"),
        ("gradient_step", step_by_hand, ""),
        ("gradient_step", step_that_accumulates, "Gradients of earlier steps are added"),
        ("gradient_step", step_clipped_late, "The gradient isn't clipped when the step is taken"),
        ("gradient_step", step_with_clipped_entries, "This limits each entry"),
        ("gradient_step", step_without_a_step, "Nothing moves"),
        ("broken_runs", runs_with_a_slip, "run b isn't 'GRU state cleared one step early in training': that gives"),
        ("broken_runs", runs_without_c, "ValueError (run c needs one of the six causes, not None)"),
        ("broken_runs", runs_all_of_one_kind, "run a isn't 'learning rate ten times too high': that moves"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_mistake_gets_its_own_sentence(name, answer, sentence):
    status, found = examine(find(name), answer)
    assert found.startswith(sentence) and status == ("wrong" if sentence else "solved")


def test_the_broken_runs_show_what_the_explanations_say():
    """In the committed files: each is far worse than the healthy run, and its cause can be read off."""
    healthy, a, b, c = (
        np.genfromtxt(ROOT / "results" / "broken-ppo" / f"{name}.csv", delimiter=",", names=True)
        for name in ("healthy", "a", "b", "c")
    )
    last = {id(run): run["return_mean"][-5:].mean() for run in (healthy, a, b, c)}
    assert last[id(healthy)] > 0.95 and max(last[id(run)] for run in (a, b, c)) < 0.8
    assert not a["approx_kl"].any() and not a["clip_fraction"].any() and a["entropy"][-5:].mean() < 0.05
    assert (healthy["kl_before"] < 1e-6).all() and (b["kl_before"] < 1e-6).all() and (c["kl_before"][1:] > 1e-4).all()
    assert b["clip_fraction"].mean() < healthy["clip_fraction"].mean() and last[id(b)] < 0.35
