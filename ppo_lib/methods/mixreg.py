"""mixreg: PPO that learns from mixtures of two steps. Source: Wang et al., 2010.10814.

Each step i of a minibatch gets a partner j, from a permutation, and a share x from Beta(alpha, alpha):

    observation, value, advantage and return:  x * (of i) + (1 - x) * (of j)
    action and its old log-probability:        of i if x >= 1/2, otherwise of j

- Advantages are normalised before they are mixed. approx_kl and clip_fraction compare the policy on a mixture with the
  old one on the unmixed observation: they start above 0.
- Feed-forward only: two sequences have no common state. Under torchrun, partners come from a process's own share.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ppo_lib.config import ConfigError, PPOConfig
from ppo_lib.policy import ActorCritic
from ppo_lib.ppo import PPO, Metrics
from ppo_lib.storage import Batch


@dataclass
class MixedBatch(Batch):
    """A minibatch whose fields are mixed, except for the observations: the loss mixes those of a micro-batch."""

    partner_obs: Tensor  # uint8 [B, H, W, C]
    share: Tensor  # of obs, float [B]


class Mixreg(PPO):
    """PPO on mixtures. Raises ConfigError for a recurrent policy."""

    def __init__(self, policy: ActorCritic, config: PPOConfig, micro_batch: int | None = None) -> None:
        if config.recurrent:
            raise ConfigError("mixreg mixes single steps, which a GRU can't learn from: add --no-recurrent.")
        super().__init__(policy, config, micro_batch)

    def prepare(self, batch: Batch) -> MixedBatch:
        """Draw partners and shares, and mix everything but the observations."""
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=self.batch_generator)))
        alpha, own = self.config.mixreg_alpha, np.arange(len(batch))
        share, partner = rng.beta(alpha, alpha, len(batch)), rng.permutation(len(batch))
        larger = torch.from_numpy(np.where(share >= 0.5, own, partner)).to(self.device)
        share = torch.from_numpy(share).float().to(self.device)
        partner = torch.from_numpy(partner).to(self.device)
        mixed = {name: getattr(batch, name) for name in ("value", "advantage", "return_")}
        mixed = {name: torch.lerp(x[partner], x, share) for name, x in mixed.items()}
        chosen = dict(action=batch.action[larger], log_prob=batch.log_prob[larger])
        return MixedBatch(**{**vars(batch), **mixed, **chosen}, partner_obs=batch.obs[partner], share=share)

    def loss(self, batch: MixedBatch) -> tuple[Tensor, Metrics]:
        """PPO's loss on the mixed observations."""
        obs = torch.lerp(batch.partner_obs.float(), batch.obs.float(), batch.share[:, None, None, None])
        return super().loss(replace(batch, obs=obs))
