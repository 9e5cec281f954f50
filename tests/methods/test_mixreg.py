"""mixreg against the formulas of its paper, step by step in Python's numbers."""

import math

import numpy as np
import pytest
import torch

from ppo_lib.config import ConfigError
from ppo_lib.methods.mixreg import Mixreg


def test_the_loss_is_ppos_on_mixtures(agent):
    ppo, storage = agent(recurrent=False, kind=Mixreg)
    batch = next(storage.minibatches(2, torch.Generator().manual_seed(1)))
    mixed = ppo.prepare(batch)
    loss, metrics = ppo.loss(mixed)
    partner = [next(j for j in range(64) if torch.equal(batch.obs[j], image)) for image in mixed.partner_obs]
    assert sorted(partner) == list(range(64)) and partner != sorted(partner)
    assert 0 <= mixed.share.min() < 0.1 and 0.9 < mixed.share.max() <= 1

    policy_loss, value_loss, entropy = [], [], []
    for i, (j, x) in enumerate(zip(partner, mixed.share.tolist(), strict=True)):
        advantage, old_value, target = (
            x * f[i].item() + (1 - x) * f[j].item() for f in (batch.advantage, batch.value, batch.return_)
        )
        larger = i if x >= 0.5 else j
        obs = x * batch.obs[i].double() + (1 - x) * batch.obs[j].double()
        with torch.no_grad():
            logits, value, _ = ppo.policy(obs.float()[None], torch.zeros(1, 0), torch.zeros(1, dtype=torch.bool))
        p, value = np.exp(logits[0].double().numpy()), value.item()
        p /= p.sum()
        ratio = p[batch.action[larger]] / math.exp(batch.log_prob[larger].item())
        policy_loss.append(-min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage))
        near = old_value + min(max(value - old_value, -0.2), 0.2)
        value_loss.append(0.5 * max((value - target) ** 2, (near - target) ** 2))
        entropy.append(-(p * np.log(p)).sum())
    expected = np.mean(policy_loss) + 0.5 * np.mean(value_loss) - 0.01 * np.mean(entropy)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert metrics["policy_loss"].item() == pytest.approx(np.mean(policy_loss), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("alpha", [0.2, 3.0])
def test_shares_follow_the_beta_distribution(agent, alpha):
    """Its mean is 1/2 and its variance 1 / (4 (2 alpha + 1))."""
    ppo, storage = agent(recurrent=False, kind=Mixreg, mixreg_alpha=alpha)
    batch = storage.batch(torch.arange(128))
    share = torch.cat([ppo.prepare(batch).share for _ in range(100)])
    assert share.mean().item() == pytest.approx(0.5, abs=0.02)
    assert share.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_a_gru_is_refused(agent):
    with pytest.raises(ConfigError, match="--no-recurrent"):
        agent(recurrent=True, kind=Mixreg)
