"""The loss against hand calculation, and PPO's gradient step."""

import copy
import dataclasses
import math

import pytest
import torch

from ppo_lib.config import PPOConfig
from ppo_lib.policy import ActorCritic
from ppo_lib.ppo import (
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
    n, fields = len(log_prob), dict(action=action, log_prob=log_prob, value=value, advantage=advantage, return_=return_)
    unused = dict(obs=torch.zeros(n, 1), episode_start=torch.zeros(n, dtype=torch.bool), state=torch.zeros(n, 0))
    return Batch(**{name: torch.tensor(values) for name, values in fields.items()}, **unused)


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
    _, metrics = ppo_loss(logits_for(old * ratio), torch.zeros(1), batch, Coefficients())
    assert metrics["policy_loss"].item() == pytest.approx(-objective, rel=1e-5)
    assert metrics["clip_fraction"].item() == float(abs(ratio - 1) > 0.2)
    assert metrics["approx_kl"].item() == pytest.approx(ratio - 1 - math.log(ratio), rel=1e-4)


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
    _, metrics = ppo_loss(logits_for(0.5), torch.tensor([value]), batch, Coefficients(clip_value_loss=clip))
    assert metrics["value_loss"].item() == pytest.approx(expected)


def test_entropy_and_the_sum_of_the_parts():
    batch = batch_of([math.log(0.5)], [1.0], value=[0.0], return_=[1.0])
    loss, metrics = ppo_loss(logits_for(0.5), torch.zeros(1), batch, Coefficients(0.2, False, 0.7, 0.3))
    assert metrics["entropy"].item() == pytest.approx(math.log(2))
    assert loss.item() == pytest.approx(-1.0 + 0.7 * 0.5 - 0.3 * math.log(2))


def test_normalize_advantage():
    advantage = normalize_advantage(torch.randn(4, 8) * 5 + 3)
    assert advantage.mean().abs() < 1e-6 and (advantage.std(correction=0) - 1).abs() < 1e-5
    assert torch.equal(normalize_advantage(torch.full((5,), 2.0)), torch.zeros(5))


def test_explained_variance():
    return_ = torch.randn(100)
    assert explained_variance(return_, return_).item() == 1
    assert explained_variance(torch.zeros(100), return_).item() == pytest.approx(0, abs=1e-6)


def test_explained_variance_of_constant_returns_is_nan():
    """There is nothing to explain; a quotient of rounding errors would be any number (once: -907,186)."""
    for constant in (0.0, 3.3, -1e3):
        assert explained_variance(torch.randn(100), torch.full((100,), constant)).isnan()
    rounded = torch.full((1000,), 0.1).cumsum(0) - torch.arange(1, 1001) * 0.1 + 1  # 1, up to rounding
    assert explained_variance(torch.randn(1000), rounded).isnan()


def agent_with_rollout(recurrent, micro_batch=10_000, steps=16, envs=8, kind=PPO, **changes):
    """A PPO on random images, acting with itself through a rollout with episode ends."""
    torch.manual_seed(0)
    sizes = dict(num_envs=envs, num_steps=steps, sequence_length=8, num_minibatches=2)
    config = PPOConfig(recurrent=recurrent, **{**sizes, **changes})
    policy = ActorCritic(recurrent=recurrent, obs_shape=OBS, seed=0)
    # heads as large as they grow in training, so that mistakes show
    with torch.no_grad():
        policy.actor.weight.mul_(100)
    ppo = kind(policy, config, micro_batch)
    storage = RolloutStorage(steps, envs, OBS, policy.state_size, 8 if recurrent else None)
    state, start = policy.initial_state(envs), torch.ones(envs, dtype=torch.bool)
    everyone = slice(0, envs)
    for t in range(steps):
        obs = torch.randint(0, 256, (envs, *OBS), dtype=torch.uint8)
        chosen = ppo.act(obs, state, start)
        done = torch.rand(envs) < 0.2
        storage.add(t, everyone, obs=obs, state=state, episode_start=start, action=chosen.action, done=done,
                    log_prob=chosen.log_prob, value=chosen.value, reward=torch.randn(envs))  # fmt: skip
        state, start = chosen.state, done
    storage.compute_advantages(torch.randn(envs), 0.99, 0.95)
    return ppo, storage


@pytest.mark.parametrize("recurrent", [False, True])
def test_recomputed_log_probabilities_equal_the_stored_ones(recurrent):
    ppo, storage = agent_with_rollout(recurrent)
    assert storage.episode_start[1:].any() and storage.action.unique().numel() > 3
    for batch in storage.minibatches(2, torch.Generator().manual_seed(0)):
        logits, value, _ = ppo.policy(batch.obs, batch.state, batch.episode_start)
        log_prob = logits.log_softmax(-1).gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(log_prob, batch.log_prob, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(value, batch.value, atol=1e-5, rtol=1e-5)


def test_the_identity_catches_an_episode_start_that_is_off_by_one():
    ppo, storage = agent_with_rollout(recurrent=True)
    batch = next(storage.minibatches(1))
    wrong = torch.cat([batch.episode_start[1:], batch.episode_start[:1]])  # done[t] in place of done[t - 1]
    logits, _, _ = ppo.policy(batch.obs, batch.state, wrong)
    log_prob = logits.log_softmax(-1).gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
    assert (log_prob - batch.log_prob).abs().max() > 0.01


@pytest.mark.parametrize("recurrent", [False, True])
def test_micro_batches_change_nothing(recurrent):
    """Same gradient in float32 whether a minibatch goes through in one piece, in equal or in unequal pieces."""
    weights = []
    for micro_batch in (10_000, 16, 24):
        ppo, storage = agent_with_rollout(recurrent, micro_batch)
        metrics = ppo.update(storage)
        weights.append((torch.cat([p.detach().flatten() for p in ppo.policy.parameters()]), metrics))
    for other, metrics in weights[1:]:
        torch.testing.assert_close(other, weights[0][0], atol=2e-5, rtol=1e-4)
        assert metrics == pytest.approx(weights[0][1], rel=1e-3, abs=1e-5)


def test_firstgradient_step_starts_at_ratio_one():
    ppo, storage = agent_with_rollout(recurrent=True)
    row = ppo.gradient_step(next(storage.minibatches(2)))
    assert row["approx_kl"].abs() < 1e-6 and row["clip_fraction"] == 0


def test_gradients_are_clipped():
    ppo, storage = agent_with_rollout(recurrent=False)
    storage.return_ += 1000
    row = ppo.gradient_step(next(storage.minibatches(2)))
    norm = torch.stack([p.grad.norm() for p in ppo.policy.parameters()]).norm()
    assert row["grad_norm"] > 1 and norm.item() == pytest.approx(0.5, rel=1e-3)


def test_an_overflow_of_the_scaled_gradient_leaves_a_step_out():
    """fp16: the loss scale starts too high and is halved until the gradient fits; training goes on."""
    ppo, storage = agent_with_rollout(recurrent=False)
    ppo.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, growth_interval=1000)
    before = [p.detach().clone() for p in ppo.policy.parameters()]
    storage.return_ += 1e3
    first = ppo.gradient_step(next(storage.minibatches(2)))
    assert first["grad_norm"].isnan()
    assert all(torch.equal(a, b) for a, b in zip(before, ppo.policy.parameters(), strict=True))
    for _ in range(40):
        last = ppo.gradient_step(next(storage.minibatches(2)))
    assert all(value.isfinite() for value in last.values()) and ppo.scaler.get_scale() < 2.0**126
    assert not any(torch.equal(a, b) for a, b in zip(before, ppo.policy.parameters(), strict=True))
    assert all(p.isfinite().all() for p in ppo.policy.parameters())


def test_a_loss_that_is_not_finite_stops_with_the_cause():
    ppo, storage = agent_with_rollout(recurrent=False)
    storage.return_[0, 0] = float("nan")
    with pytest.raises(DivergedError, match=r"value_loss.*last checkpoint is kept"):
        ppo.update(storage)


def test_state_dict_restores_all_that_learning_depends_on():
    ppo, storage = agent_with_rollout(recurrent=True)
    ppo.update(storage)
    ppo.learning_rate, ppo.coefficients.clip_range = 1e-4, 0.1
    other, _ = agent_with_rollout(recurrent=True)
    other.load_state_dict(copy.deepcopy(ppo.state_dict()))
    assert ppo.update(storage) == other.update(storage)
    assert all(torch.equal(a, b) for a, b in zip(ppo.policy.parameters(), other.policy.parameters(), strict=True))


def test_loading_a_state_leaves_it_alone():
    """One state, loaded three times, gives three equal updates."""
    ppo, storage = agent_with_rollout(recurrent=True)
    ppo.update(storage)
    state = copy.deepcopy(ppo.state_dict())
    kept, weights = copy.deepcopy(state), []
    for _ in range(3):
        other, _ = agent_with_rollout(recurrent=True)
        other.load_state_dict(state)
        other.update(storage)
        weights.append(torch.cat([p.detach().flatten() for p in other.policy.parameters()]))
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])
    moments = zip(kept["optimizer"]["state"].values(), state["optimizer"]["state"].values(), strict=True)
    assert all(torch.equal(a["exp_avg"], b["exp_avg"]) and torch.equal(a["step"], b["step"]) for a, b in moments)


def test_a_state_without_loss_scale_loads_into_fp16_training():
    """A run begun in bf16 or float32 may continue on a GPU that has only fp16."""
    ppo, _ = agent_with_rollout(recurrent=False)
    other, _ = agent_with_rollout(recurrent=False)
    other.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    other.load_state_dict(ppo.state_dict())
    assert other.scaler.get_scale() == 8.0


def test_a_batch_with_more_fields_splits_by_name():
    @dataclasses.dataclass
    class More(Batch):
        weight: torch.Tensor

    ppo, storage = agent_with_rollout(recurrent=True)
    batch = next(storage.minibatches(1))
    more = More(**vars(batch), weight=batch.action * 2)
    for micro in more.split(3):
        assert torch.equal(micro.weight, micro.action * 2) and micro.state.shape == (len(micro), ppo.policy.state_size)


def test_metrics_of_another_loss_are_averaged_and_returned():
    class Mine(PPO):
        def loss(self, batch):
            loss, metrics = super().loss(batch)
            return loss, {**metrics, "mean_action": batch.action.float().mean()}

        def after_update(self, storage):
            return {"auxiliary": 1.5}

    ppo, storage = agent_with_rollout(recurrent=False)
    mine = Mine(ppo.policy, ppo.config, micro_batch=24)
    metrics = mine.update(storage)
    assert metrics["mean_action"] == pytest.approx(storage.action.float().mean().item())
    assert metrics["auxiliary"] == 1.5


def test_a_method_prepares_each_minibatch_once_after_its_advantages_are_normalised():
    class Doubled(PPO):
        def prepare(self, batch):
            prepared.append(batch.advantage)
            return dataclasses.replace(batch, advantage=2 * batch.advantage)

        def loss(self, batch):
            learned.append(batch.advantage)
            return super().loss(batch)

    prepared, learned = [], []
    ppo, storage = agent_with_rollout(recurrent=False, micro_batch=16, kind=Doubled)
    ppo.update(storage)
    assert len(prepared) == 3 * 2 and len(learned) == 4 * len(prepared)
    assert all(abs(advantage.mean()) < 1e-6 for advantage in prepared)
    assert torch.equal(torch.cat(learned), 2 * torch.cat(prepared))


def test_a_method_that_takes_further_steps_can_be_stopped_and_is_watched():
    class Further(PPO):
        def after_update(self, storage):
            storage.return_ = storage.return_ + self.shift
            metrics = self.mean_metrics([self.gradient_step(storage.batch(torch.arange(8))) for _ in range(3)])
            return {"further_value_loss": metrics["value_loss"]}

    ppo, storage = agent_with_rollout(recurrent=False, kind=Further)
    ppo.shift, calls = 100, []
    metrics = ppo.update(storage, between_steps=lambda: calls.append(1))
    assert len(calls) == 3 * 2 + 3 and metrics["further_value_loss"] > 1000 > metrics["value_loss"]
    ppo.shift = math.nan
    with pytest.raises(DivergedError, match="value_loss"):
        ppo.update(storage)


def test_weight_decay_is_an_l2_penalty_in_adams_gradient():
    """Not AdamW's: the first step of Adam is (almost) the sign of gradient + weight_decay * weight."""
    decay, (ppo, storage) = 0.3, agent_with_rollout(recurrent=False, weight_decay=0.3)
    plain, _ = agent_with_rollout(recurrent=False)
    batch = next(storage.minibatches(2, torch.Generator().manual_seed(0)))
    before = [p.detach().double() for p in ppo.policy.parameters()]
    for each in (ppo, plain):
        each.gradient_step(copy.copy(batch))
    rate, moved = ppo.config.learning_rate, 0.0
    for old, new, other in zip(before, ppo.policy.parameters(), plain.policy.parameters(), strict=True):
        assert torch.equal(new.grad, other.grad)  # the penalty comes after clipping
        penalised = new.grad.double() + decay * old
        mean, square = 0.1 * penalised / (1 - 0.9), 0.001 * penalised.square() / (1 - 0.999)
        expected = old - rate * mean / (square.sqrt() + 1e-5)
        torch.testing.assert_close(new.detach().double(), expected, atol=1e-6, rtol=1e-5)
        moved = max(moved, (new - other).abs().max().item())
    assert moved > rate  # without the penalty, weights would be elsewhere
