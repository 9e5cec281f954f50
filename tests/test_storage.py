"""GAE and the rollout storage."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_lib.storage import RolloutStorage, gae


def brute_force(reward, value, done, last_value, gamma, lam):
    """The definition: a sum of discounted TD errors up to the episode's end (GAE, equation 16)."""
    steps, envs = reward.shape
    values = np.concatenate([value, last_value[None]])
    advantage = np.zeros_like(reward)
    for n in range(envs):
        for t in range(steps):
            weight = 1.0
            for k in range(t, steps):
                ends = done[k, n]
                delta = reward[k, n] + (0 if ends else gamma * values[k + 1, n]) - values[k, n]
                advantage[t, n] += weight * delta
                if ends:
                    break
                weight *= gamma * lam
    return advantage


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 3), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**31))
def test_gae_equals_brute_force(steps, envs, gamma, lam, seed):
    rng = np.random.default_rng(seed)
    reward, value = rng.normal(size=(2, steps, envs))
    done, last_value = rng.random((steps, envs)) < 0.3, rng.normal(size=envs)
    tensors = [torch.from_numpy(a) for a in (reward, value, done, last_value)]
    advantage, return_ = gae(*tensors, gamma, lam)
    np.testing.assert_allclose(advantage, brute_force(reward, value, done, last_value, gamma, lam), atol=1e-10)
    np.testing.assert_allclose(return_, advantage.numpy() + value)


def test_gae_closed_form():
    """Constant reward 1 and value 0, no end: sum of (gamma lambda)^k is a geometric series."""
    steps, gamma, lam = 20, 0.9, 0.8
    zeros = torch.zeros(steps, 1, dtype=torch.float64)
    advantage, _ = gae(zeros + 1, zeros, zeros.bool(), zeros[0], gamma, lam)
    x = gamma * lam
    expected = [(1 - x ** (steps - t)) / (1 - x) for t in range(steps)]
    np.testing.assert_allclose(advantage[:, 0], expected)


def test_lambda_one_is_the_monte_carlo_return():
    reward, value = torch.rand(6, 1), torch.rand(6, 1)
    done = torch.tensor([[False], [False], [True], [False], [False], [True]])
    _, return_ = gae(reward, value, done, torch.tensor([99.0]), 1.0, 1.0)
    expected = torch.stack([reward[t : 3 if t < 3 else 6].sum() for t in range(6)])
    torch.testing.assert_close(return_[:, 0], expected)


def filled(sequence_length, steps=12, envs=4, state_size=2):
    """A storage whose fields tell which step and environment they belong to."""
    storage = RolloutStorage(steps, envs, (1, 1, 2), state_size, sequence_length)
    for t in range(steps):
        for first, last in ((0, envs // 2), (envs // 2, envs)):
            env = torch.arange(first, last)
            label = (100 * t + env).float()
            storage.add(
                t, slice(first, last), obs=torch.stack([torch.full_like(env, t), env], 1).view(-1, 1, 1, 2),
                state=label.unsqueeze(1).expand(-1, state_size), action=env, log_prob=label, value=label,
                episode_start=torch.full_like(env, t % 5 == 0, dtype=torch.bool),
                done=torch.zeros_like(env, dtype=torch.bool),
            )  # fmt: skip
    storage.advantage, storage.return_ = storage.value.clone(), storage.value.clone()
    return storage


def labels(batch):
    return batch.obs[..., 0, 0, 0] * 100.0 + batch.obs[..., 0, 0, 1]


@pytest.mark.parametrize("sequence_length", [None, 3, 12])
def test_an_epoch_visits_every_step_once_with_all_fields_together(sequence_length):
    storage = filled(sequence_length)
    batches = list(storage.minibatches(2, torch.Generator().manual_seed(0)))
    assert sorted(torch.cat([labels(b).flatten() for b in batches]).tolist()) == sorted(
        storage.value.flatten().tolist()
    )
    for batch in batches:
        for field in (batch.log_prob, batch.value, batch.advantage, batch.return_):
            assert torch.equal(field, labels(batch))
        assert torch.equal(batch.action, labels(batch).long() % 100)
        assert torch.equal(batch.episode_start, labels(batch) // 100 % 5 == 0)


def test_sequences_are_consecutive_and_carry_the_state_of_their_first_step():
    for batch in filled(3).minibatches(4, torch.Generator().manual_seed(1)):
        found = labels(batch)
        assert found.shape == (3, 4)
        assert (found.diff(dim=0) == 100).all()
        assert torch.equal(batch.state[:, 0], found[0])


def test_order_is_shuffled_and_comes_from_the_generator():
    storage = filled(None)
    orders = [
        torch.cat([labels(b) for b in storage.minibatches(2, torch.Generator().manual_seed(s))]) for s in (0, 0, 1)
    ]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])


@pytest.mark.parametrize("sequence_length", [None, 4])
def test_micro_batches_are_the_minibatch_in_pieces(sequence_length):
    batch = next(filled(sequence_length).minibatches(1, torch.Generator().manual_seed(0)))
    pieces = list(batch.split(5))
    axis = 0 if sequence_length is None else 1
    assert torch.equal(torch.cat([labels(p) for p in pieces], axis), labels(batch))
    assert torch.equal(torch.cat([p.state for p in pieces]), batch.state)
    assert max(len(p.state) for p in pieces) == 5


def test_what_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="divide"):
        RolloutStorage(10, 2, sequence_length=3)
    with pytest.raises(ValueError, match="divide"):
        next(filled(None).minibatches(7))


def test_observations_stay_bytes():
    storage = RolloutStorage(256, 64)
    assert storage.obs.dtype == torch.uint8
    assert storage.obs.nbytes == 256 * 64 * 64 * 64 * 3
