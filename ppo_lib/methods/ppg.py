"""PPG: PPO in which the value trains the shared features in phases of their own. Source: Cobbe et al., 2009.04416.

This is the paper's variant with a single network (section 3.6). Its authors' code trains the features by one more head.

- Policy phase: PPO's updates, but the value's gradient ends at the last shared layer, so that it trains its head only.
- Auxiliary phase, after every ppg_interval updates: ppg_epochs passes over all steps since the last one, on
      1/2 mean (V(s) - return)^2 + ppg_coef * mean KL(pi_old(.|s) || pi(.|s)),
  whose gradient reaches all weights. pi_old is the policy before the phase.
- The paper takes one pass over a rollout (--num-epochs 1). Sizes of minibatches, Adam and clipping are PPO's.
- Rollouts wait for their phase in main memory, and in checkpoints; both sizes are stated when training starts.
"""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from ppo_lib.config import ConfigError, PPOConfig
from ppo_lib.policy import ActorCritic
from ppo_lib.ppo import PPO, Metrics
from ppo_lib.storage import Batch, RolloutStorage

STEP_BYTES = 64 * 64 * 3 + 25  # of a stored step without a recurrent state


@dataclass
class AuxiliaryBatch(Batch):
    """A minibatch of the auxiliary phase."""

    logits: Tensor  # of the policy before the phase, [..., A]


class Rollouts(OrderedDict):
    """Tensors that never change: a copy shares them. On disk it is a plain OrderedDict."""

    def __deepcopy__(self, memo: dict) -> Rollouts:
        return self

    def __reduce__(self) -> tuple:
        return OrderedDict, (), None, None, iter(self.items())


class PPG(PPO):
    """PPO with an auxiliary phase. Raises ConfigError if its rollouts exceed this machine's memory."""

    def __init__(self, policy: ActorCritic, config: PPOConfig, micro_batch: int | None = None) -> None:
        super().__init__(policy, config, micro_batch)
        self.rollouts: list[dict[str, Tensor]] = []  # since the last phase, fields of Batch [T, N, ...] on the CPU
        rollout = config.batch_size * (STEP_BYTES + 4 * policy.state_size) / 1e9
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
        size, most = config.ppg_interval * rollout, int(memory / rollout / 2)
        if 2 * size > memory:
            raise ConfigError(
                f"ppg keeps {config.ppg_interval} rollouts of {rollout:.2f} GB and copies them: this machine has "
                f"{memory:.1f} GB of memory; set ppg_interval to {most} or less, or make rollouts smaller."
            )
        self.note = f", PPG keeps up to {size:.1f} GB of rollouts in memory and checkpoint, and copies them at times"

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """PPO's loss with a value that trains its head only, or the loss of the auxiliary phase."""
        if not isinstance(batch, AuxiliaryBatch):
            with self.policy.critic.register_forward_pre_hook(lambda _, features: (features[0].detach(),)):
                return super().loss(batch)
        logits, value, _ = self.policy(batch.obs, batch.state, batch.episode_start)
        log_p, log_q = batch.logits.log_softmax(-1), logits.log_softmax(-1)
        kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean()  # torch's order: KL(p || q)
        value_loss = 0.5 * (value - batch.return_).square().mean()
        metrics = {"auxiliary_value_loss": value_loss.detach(), "auxiliary_kl": kl.detach()}
        return value_loss + self.config.ppg_coef * kl, metrics

    def after_update(self, storage: RolloutStorage) -> dict[str, float]:
        """Keep the rollout; when there are ppg_interval of them, learn from all and forget them."""
        names = [field.name for field in fields(Batch)]
        self.rollouts.append({name: getattr(storage, name).to("cpu", copy=True) for name in names})
        if len(self.rollouts) < self.config.ppg_interval:
            return {}
        whole = copy.copy(storage)  # one after another they are one long rollout
        whole.num_steps = len(self.rollouts) * storage.num_steps
        for name in names:
            setattr(whole, name, torch.cat([rollout[name] for rollout in self.rollouts]))
        metrics = self.mean_metrics(self._auxiliary_phase(whole))
        del metrics["grad_norm"]
        self.rollouts = []
        return metrics

    def _auxiliary_phase(self, whole: RolloutStorage) -> list[Metrics]:
        def load(units: Tensor) -> Batch:
            return Batch(**{name: x.to(self.device) for name, x in vars(whole.batch(units)).items()})

        units, before, rows = torch.arange(whole.num_units), [], []
        for some in map(load, units.split(max(1, self.micro_batch // (whole.sequence_length or 1)))):
            self.between_steps()
            with torch.no_grad():
                before.append(self.policy(some.obs, some.state, some.episode_start)[0])
        logits = torch.cat(before, -2)  # of each unit, [U, A] or [L, U, A]
        for _ in range(self.config.ppg_epochs):
            order = torch.randperm(len(units), generator=self.batch_generator)
            for some in order.chunk(len(self.rollouts) * self.config.num_minibatches):
                own = logits.index_select(-2, some.to(self.device))
                rows.append(self.gradient_step(AuxiliaryBatch(**vars(load(some)), logits=own)))
        return rows

    def state_dict(self) -> dict[str, object]:
        """See PPO; and the rollouts."""
        return {**super().state_dict(), "rollouts": Rollouts(enumerate(self.rollouts))}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """See PPO; and the rollouts."""
        super().load_state_dict(state)
        self.rollouts = list(state["rollouts"].values())
