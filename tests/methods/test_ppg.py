"""PPG: what trains what in its two phases, what it keeps, and for how long."""

import copy
import os
from collections import OrderedDict

import pytest
import torch

from ppo_lib.checkpoint import load_checkpoint, save_checkpoint
from ppo_lib.config import ConfigError
from ppo_lib.methods.ppg import PPG, AuxiliaryBatch
from ppo_lib.ppo import PPO


class Stop(Exception):
    """Stands for a stop between two gradient steps."""


def parts(ppo):
    """The gradient of the shared layers, and of the value's head."""
    grads = {name: p.grad.clone() for name, p in ppo.policy.named_parameters()}
    return {n: g for n, g in grads.items() if "critic" not in n}, {n: g for n, g in grads.items() if "critic" in n}


def clone(storage):
    return copy.deepcopy(storage)


@pytest.mark.parametrize("recurrent", [False, True])
def test_in_the_policy_phase_the_value_trains_its_head_only(agent, recurrent):
    gradients = []
    for kind, value_coef in ((PPG, 0.5), (PPO, 0.0), (PPO, 0.5)):
        ppo, storage = agent(recurrent, kind=kind, value_coef=value_coef)
        ppo.gradient(next(storage.minibatches(2, torch.Generator().manual_seed(1))))
        gradients.append(parts(ppo))
    (shared, head), (without_value, _), (with_value, expected_head) = gradients
    torch.testing.assert_close(head, expected_head)
    torch.testing.assert_close(shared, without_value)
    assert any((shared[name] - with_value[name]).norm() > 0.1 * shared[name].norm() for name in shared)


@pytest.mark.parametrize("recurrent", [False, True])
def test_the_auxiliary_loss(agent, recurrent):
    ppo, storage = agent(recurrent, kind=PPG, ppg_coef=3.0)
    batch = next(storage.minibatches(2, torch.Generator().manual_seed(1)))
    before = torch.randn(*batch.action.shape, 15)
    loss, metrics = ppo.loss(AuxiliaryBatch(**vars(batch), logits=before))
    with torch.no_grad():
        logits, value, _ = ppo.policy(batch.obs, batch.state, batch.episode_start)
    p, q = before.double().softmax(-1), logits.double().softmax(-1)
    kl = (p * (p / q).log()).sum(-1).mean().item()
    value_loss = (value - batch.return_).double().pow(2).mean().item() / 2
    assert metrics["auxiliary_kl"].item() == pytest.approx(kl, rel=1e-4)
    assert metrics["auxiliary_value_loss"].item() == pytest.approx(value_loss, rel=1e-4)
    assert loss.item() == pytest.approx(value_loss + 3 * kl, rel=1e-4)
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for name, p in ppo.policy.named_parameters() if "bias" not in name)


@pytest.mark.parametrize("recurrent", [False, True])
def test_every_interval_it_learns_from_each_stored_step_as_often_as_asked(agent, recurrent):
    ppo, storage = agent(recurrent, kind=PPG, num_epochs=1, ppg_interval=3, ppg_epochs=2)
    seen, returns, gradient = [], [], ppo.gradient

    def watched(batch):
        if isinstance(batch, AuxiliaryBatch):
            seen.append(batch)
        return gradient(batch)

    ppo.gradient = watched
    for update in range(1, 8):
        storage.return_, storage.value = storage.return_ + 1, torch.full_like(storage.value, update)
        returns.append(storage.return_.flatten())
        metrics = ppo.update(storage)
        assert ("auxiliary_kl" in metrics) == (update % 3 == 0) and metrics["grad_norm"] > 0
        assert len(ppo.rollouts) == update % 3
        if update % 3 == 0:
            assert len(seen) == 2 * 3 * 2 and {len(batch) for batch in seen} == {64 // (8 if recurrent else 1)}
            learned = torch.cat([batch.return_.flatten() for batch in seen]).sort().values
            assert torch.equal(learned, torch.cat(2 * returns).sort().values)
            assert all(len(batch.value.unique()) == 3 for batch in seen)  # minibatches mix rollouts
            assert metrics["auxiliary_kl"] > 0
            seen.clear()
            returns.clear()


@pytest.mark.parametrize("recurrent", [False, True])
def test_the_policy_before_the_phase_is_that_of_each_step(agent, recurrent):
    ppo, storage = agent(recurrent, kind=PPG, micro_batch=24, num_epochs=1, ppg_interval=2, ppg_epochs=1)
    ppo.update(storage)
    kept, gradient_step = copy.deepcopy(ppo.policy), ppo.gradient_step
    differences = []

    def watched(batch):
        if isinstance(batch, AuxiliaryBatch):
            logits, _, _ = kept(batch.obs, batch.state, batch.episode_start)
            differences.append((logits - batch.logits).abs().max())
        else:
            result = gradient_step(batch)
            kept.load_state_dict(ppo.policy.state_dict())  # as it is before the phase
            return result
        return gradient_step(batch)

    ppo.gradient_step = watched
    ppo.update(storage)
    assert len(differences) == 4 and max(differences) < 1e-5


def test_a_resume_in_the_middle_of_an_interval_is_bit_for_bit(agent, tmp_path):
    """Through a file, with the rollouts in it; the file holds plain tensors."""
    ppo, storage = agent(recurrent=True, kind=PPG, ppg_interval=3, ppg_epochs=2)
    ppo.update(clone(storage))
    ppo.update(clone(storage))
    state = copy.deepcopy(ppo.state_dict())
    assert state["rollouts"][0]["obs"] is ppo.rollouts[0]["obs"]  # they never change, so that no copy is needed
    save_checkpoint(tmp_path, {"ppo": state})
    metrics = ppo.update(clone(storage))
    other, _ = agent(recurrent=True, kind=PPG, ppg_interval=3, ppg_epochs=2)
    loaded = load_checkpoint(tmp_path)["ppo"]
    assert type(loaded["rollouts"]) is OrderedDict and len(loaded["rollouts"]) == 2
    other.load_state_dict(loaded)
    assert other.update(clone(storage)) == metrics and "auxiliary_kl" in metrics
    assert all(torch.equal(a, b) for a, b in zip(ppo.policy.parameters(), other.policy.parameters(), strict=True))
    other.load_state_dict(state)  # which the update has not changed
    assert other.update(clone(storage)) == metrics and len(state["rollouts"]) == 2


def test_a_stop_inside_the_phase_repeats_the_update(agent):
    ppo, storage = agent(recurrent=False, kind=PPG, num_epochs=1, ppg_interval=2, ppg_epochs=2)
    ppo.update(clone(storage))
    state = copy.deepcopy(ppo.state_dict())
    metrics, calls = ppo.update(clone(storage)), iter(range(100))
    weights = [p.detach().clone() for p in ppo.policy.parameters()]
    ppo.load_state_dict(state)

    def stop():
        if next(calls) == 6:
            raise Stop

    with pytest.raises(Stop):
        ppo.update(clone(storage), between_steps=stop)
    ppo.load_state_dict(state)
    assert ppo.update(clone(storage)) == metrics
    assert all(torch.equal(a, b) for a, b in zip(weights, ppo.policy.parameters(), strict=True))


@pytest.mark.parametrize("recurrent", [False, True])
def test_the_stated_memory_is_what_the_rollouts_take(agent, recurrent):
    ppo, storage = agent(recurrent, kind=PPG, ppg_interval=100)
    storage.obs = torch.zeros(16, 8, 64, 64, 3, dtype=torch.uint8)
    ppo.after_update(storage)
    taken = sum(tensor.nbytes for tensor in ppo.rollouts[0].values())
    assert f"{100 * taken / 1e9:.1f} GB" in ppo.note and "0.2 GB" in ppo.note


def test_more_than_the_machines_memory_is_refused_with_what_fits(agent, monkeypatch):
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 8 * 10**9 // 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    paper = dict(recurrent=False, kind=PPG, steps=2)
    with pytest.raises(ConfigError, match=r"32 rollouts of 0\.20 GB.*8\.0 GB of memory; set ppg_interval to 19 or"):
        agent(**paper, num_envs=64, num_steps=256)
    agent(**paper, num_envs=64, num_steps=256, ppg_interval=19)
