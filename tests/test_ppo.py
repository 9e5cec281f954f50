"""The loss against hand calculation, and PPO's gradient step."""

import copy
import math

import pytest
import torch

from ppo_lib.accel.hardware import Hardware
from ppo_lib.config import PPOConfig
from ppo_lib.policy import ActorCritic
from ppo_lib.ppo import (
    DIAGNOSTICS,
    PPO,
    Coefficients,
    DivergedError,
    explained_variance,
    normalize_advantage,
    ppo_loss,
)  # fmt: skip
from ppo_lib.storage import Batch, RolloutStorage

OBS = (8, 8, 3)


def batch_of(log_prob, advantage, value=(0.0,), return_=(0.0,), action=(0,)):
    tensors = [torch.tensor(x) for x in (action, log_prob, value, advantage, return_)]
    n = len(log_prob)
    return Batch(torch.zeros(n, 1), *tensors, reset=torch.zeros(n, dtype=torch.bool), state=torch.zeros(n, 0))


def logits_for(probability):
    """Logits of two actions whose first one has this probability."""
    return torch.tensor([[math.log(probability), math.log(1 - probability)]])


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective"),
    [
        (1.1, 2.0, 2.2),  # inside the clip range: plain ratio * advantage
        (1.5, 2.0, 2.4),  # a good action that became too likely: cut at 1.2
        (0.5, 2.0, 1.0),  # a good action that became unlikely: not cut, so that it can recover
        (0.5, -2.0, -1.6),  # a bad action that became too unlikely: cut at 0.8
        (1.5, -2.0, -3.0),  # a bad action that became likelier: not cut
    ],
)
def test_clipped_surrogate(ratio, advantage, objective):
    """1707.06347, figure 1 and equation 7."""
    old = 0.4
    batch = batch_of([math.log(old)], [advantage])
    _, figures = ppo_loss(logits_for(old * ratio), torch.zeros(1), batch, Coefficients())
    assert figures["policy_loss"].item() == pytest.approx(-objective, rel=1e-5)
    assert figures["clip_fraction"].item() == float(abs(ratio - 1) > 0.2)
    assert figures["approx_kl"].item() == pytest.approx(ratio - 1 - math.log(ratio), rel=1e-4)


def test_clipped_surrogate_stops_the_gradient():
    logits = logits_for(0.6).requires_grad_()
    batch = batch_of([math.log(0.4)], [1.0])
    loss, _ = ppo_loss(logits, torch.zeros(1), batch, Coefficients(entropy_coef=0.0))
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize(
    ("clip", "value", "expected"),
    [(False, 1.0, 0.5 * 1.0), (True, 1.0, 0.5 * 1.8**2), (True, 0.1, 0.5 * 1.9**2), (True, -1.0, 0.5 * 3.0**2)],
)
def test_value_loss(clip, value, expected):
    batch = batch_of([0.0], [0.0], value=[0.0], return_=[2.0])
    _, figures = ppo_loss(logits_for(0.5), torch.tensor([value]), batch, Coefficients(clip_value_loss=clip))
    assert figures["value_loss"].item() == pytest.approx(expected)


def test_entropy_and_the_sum_of_the_parts():
    batch = batch_of([math.log(0.5)], [1.0], value=[0.0], return_=[1.0])
    loss, figures = ppo_loss(logits_for(0.5), torch.zeros(1), batch, Coefficients(0.2, False, 0.7, 0.3))
    assert figures["entropy"].item() == pytest.approx(math.log(2))
    assert loss.item() == pytest.approx(-1.0 + 0.7 * 0.5 - 0.3 * math.log(2))


def test_normalize_advantage():
    advantage = normalize_advantage(torch.randn(4, 8) * 5 + 3)
    assert advantage.mean().abs() < 1e-6 and (advantage.std(correction=0) - 1).abs() < 1e-5
    assert torch.equal(normalize_advantage(torch.full((5,), 2.0)), torch.zeros(5))


def test_explained_variance():
    return_ = torch.randn(100)
    assert explained_variance(return_, return_).item() == 1
    assert explained_variance(torch.zeros(100), return_).item() == pytest.approx(0, abs=1e-6)


def agent_with_rollout(recurrent, micro_batch=10_000, steps=16, envs=8):
    """A PPO on random images, acting with itself through a rollout with episode ends."""
    torch.manual_seed(0)
    config = PPOConfig(num_envs=envs, num_steps=steps, recurrent=recurrent, sequence_length=8, num_minibatches=2)
    policy = ActorCritic(recurrent=recurrent, obs_shape=OBS, seed=0)
    # heads as large as they grow in training, so that mistakes show
    with torch.no_grad():
        policy.actor.weight.mul_(100)
    ppo = PPO(policy, config, Hardware(torch.device("cpu"), torch.float32, micro_batch, ""))
    storage = RolloutStorage(steps, envs, OBS, policy.state_size, 8 if recurrent else None)
    state, reset = policy.initial_state(envs), torch.ones(envs, dtype=torch.bool)
    everyone = slice(0, envs)
    for t in range(steps):
        obs = torch.randint(0, 256, (envs, *OBS), dtype=torch.uint8)
        prediction = ppo.predict(obs, state, reset)
        done = torch.rand(envs) < 0.2
        storage.add(t, everyone, obs=obs, state=state, reset=reset, action=prediction.action, done=done,
                    log_prob=prediction.log_prob, value=prediction.value, reward=torch.randn(envs))  # fmt: skip
        state, reset = prediction.state, done
    storage.estimate(torch.randn(envs), 0.99, 0.95)
    return ppo, storage


@pytest.mark.parametrize("recurrent", [False, True])
def test_recomputed_log_probabilities_equal_the_stored_ones(recurrent):
    ppo, storage = agent_with_rollout(recurrent)
    assert storage.reset[1:].any() and storage.action.unique().numel() > 3
    for batch in storage.minibatches(2, torch.Generator().manual_seed(0)):
        logits, value, _ = ppo.policy(batch.obs, batch.state, batch.reset)
        log_prob = logits.log_softmax(-1).gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(log_prob, batch.log_prob, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(value, batch.value, atol=1e-5, rtol=1e-5)


def test_the_identity_catches_a_reset_that_is_off_by_one():
    ppo, storage = agent_with_rollout(recurrent=True)
    batch = next(storage.minibatches(1))
    wrong = torch.cat([batch.reset[1:], batch.reset[:1]])  # done[t] in place of done[t - 1]
    logits, _, _ = ppo.policy(batch.obs, batch.state, wrong)
    log_prob = logits.log_softmax(-1).gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
    assert (log_prob - batch.log_prob).abs().max() > 0.01


@pytest.mark.parametrize("recurrent", [False, True])
def test_micro_batches_change_nothing(recurrent):
    """Same gradient in float32 whether a minibatch goes through in one piece, in equal or in unequal pieces."""
    weights = []
    for micro_batch in (10_000, 16, 24):
        ppo, storage = agent_with_rollout(recurrent, micro_batch)
        figures = ppo.optimize(storage)
        weights.append((torch.cat([p.detach().flatten() for p in ppo.policy.parameters()]), figures))
    for other, figures in weights[1:]:
        torch.testing.assert_close(other, weights[0][0], atol=2e-5, rtol=1e-4)
        assert figures == pytest.approx(weights[0][1], rel=1e-3, abs=1e-5)


def test_first_gradient_step_starts_at_ratio_one():
    ppo, storage = agent_with_rollout(recurrent=True)
    row = dict(zip(DIAGNOSTICS, ppo._gradient_step(next(storage.minibatches(2))), strict=False))
    assert row["approx_kl"].abs() < 1e-6 and row["clip_fraction"] == 0


def test_gradients_are_clipped():
    ppo, storage = agent_with_rollout(recurrent=False)
    storage.return_ += 1000
    row = dict(zip(DIAGNOSTICS, ppo._gradient_step(next(storage.minibatches(2))), strict=False))
    norm = torch.stack([p.grad.norm() for p in ppo.policy.parameters()]).norm()
    assert row["grad_norm"] > 1 and norm.item() == pytest.approx(0.5, rel=1e-3)


def test_an_overflow_of_the_scaled_gradient_leaves_a_step_out():
    """fp16: the loss scale starts too high and is halved until the gradient fits; training goes on."""
    ppo, storage = agent_with_rollout(recurrent=False)
    ppo.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, growth_interval=1000)
    before = [p.detach().clone() for p in ppo.policy.parameters()]
    storage.return_ += 1e3
    first = ppo._gradient_step(next(storage.minibatches(2)))
    assert first[DIAGNOSTICS.index("grad_norm")].isnan()
    assert all(torch.equal(a, b) for a, b in zip(before, ppo.policy.parameters(), strict=True))
    for _ in range(40):
        last = ppo._gradient_step(next(storage.minibatches(2)))
    assert last.isfinite().all() and ppo.scaler.get_scale() < 2.0**126
    assert not any(torch.equal(a, b) for a, b in zip(before, ppo.policy.parameters(), strict=True))
    assert all(p.isfinite().all() for p in ppo.policy.parameters())


def test_a_loss_that_is_not_finite_stops_with_the_cause():
    ppo, storage = agent_with_rollout(recurrent=False)
    storage.return_[0, 0] = float("nan")
    with pytest.raises(DivergedError, match=r"value_loss.*last checkpoint is kept"):
        ppo.optimize(storage)


def test_state_dict_restores_what_learning_goes_on_from():
    ppo, storage = agent_with_rollout(recurrent=True)
    ppo.optimize(storage)
    ppo.learning_rate, ppo.coefficients.clip_range = 1e-4, 0.1
    other, _ = agent_with_rollout(recurrent=True)
    other.load_state_dict(copy.deepcopy(ppo.state_dict()))
    assert ppo.optimize(storage) == other.optimize(storage)
    assert all(torch.equal(a, b) for a, b in zip(ppo.policy.parameters(), other.policy.parameters(), strict=True))
