"""DrAC against the formulas of its paper, and its crop against padding and cutting."""

import copy

import numpy as np
import pytest
import torch

from ppo_lib.methods.drac import CroppedBatch, DrAC, crop
from ppo_lib.ppo import PPO


@pytest.mark.parametrize("shape", [(4, 64, 64, 3), (2, 3, 8, 6, 1)])
def test_a_crop_is_a_cut_of_the_padded_image(shape):
    obs = torch.randint(0, 256, shape, dtype=torch.uint8)
    shift = torch.randint(-12, 13, (*shape[:-3], 2))
    found = crop(obs, shift)
    assert found.shape == obs.shape and found.dtype == torch.uint8
    for index in np.ndindex(shape[:-3]):
        padded = np.pad(obs[index].numpy(), ((12, 12), (12, 12), (0, 0)), mode="edge")
        down, right = 12 + shift[index].numpy()
        cut = padded[down : down + shape[-3], right : right + shape[-2]]
        np.testing.assert_array_equal(found[index].numpy(), cut)


def test_crops_are_drawn_from_all_places_and_are_one_per_sequence(agent):
    ppo, storage = agent(recurrent=True, kind=DrAC, steps=64)
    storage.obs = torch.zeros(64, 8, 64, 64, 3, dtype=torch.uint8)
    shift = torch.cat([ppo.prepare(storage.batch(torch.arange(64))).shift for _ in range(30)], 1)
    assert shift.shape == (8, 30 * 64, 2)
    assert torch.equal(shift, shift[:1].expand_as(shift))
    assert set(shift[..., 0].unique().tolist()) == set(shift[..., 1].unique().tolist()) == set(range(-12, 13))
    counts = shift[0].flatten().add(12).bincount()
    assert counts.min() > 90 and counts.max() < 230  # 154 each on average


@pytest.mark.parametrize("recurrent", [False, True])
def test_the_added_terms_pull_the_output_on_the_crop_to_that_on_the_image(agent, gradient, recurrent):
    """Value and gradient, against a frozen copy of the network that gives the constants."""
    ppo, storage = agent(recurrent, kind=DrAC, drac_coef=0.7)
    with torch.no_grad():
        for head in (ppo.policy.actor, ppo.policy.critic):
            head.weight.mul_(100)  # as in a network that has learned something
    batch = next(storage.minibatches(2, torch.Generator().manual_seed(1)))
    cropped = ppo.prepare(batch)
    assert isinstance(cropped, CroppedBatch) and cropped.shift.abs().max() == 1  # 12 of 64 pixels are 1 of 8
    found, (loss, metrics) = gradient(ppo, cropped), ppo.loss(cropped)

    plain, frozen = PPO(ppo.policy, ppo.config), copy.deepcopy(ppo.policy)
    expected, (plain_loss, _) = gradient(plain, batch), plain.loss(batch)
    with torch.no_grad():
        logits, value, _ = frozen(batch.obs, batch.state, batch.episode_start)
    new_logits, new_value, _ = ppo.policy(crop(batch.obs, cropped.shift), batch.state, batch.episode_start)
    p, q = logits.double().softmax(-1), new_logits.double().softmax(-1)
    kl = (p * (p / q).log()).sum(-1).mean()
    squares = (value - new_value).double().pow(2).mean()
    assert metrics["crop_kl"].item() == pytest.approx(kl.item(), rel=1e-3) and kl > 1e-3
    assert metrics["crop_value_loss"].item() == pytest.approx(squares.item(), rel=1e-3) and squares > 1e-3
    assert loss.item() == pytest.approx((plain_loss + 0.7 * (kl + squares)).item(), rel=1e-5)
    ppo.policy.zero_grad()
    (0.7 * (kl + squares)).backward()
    pull = torch.cat([p.grad.flatten() for p in ppo.policy.parameters()])
    assert (found - expected - pull).norm() < 1e-3 * pull.norm()
