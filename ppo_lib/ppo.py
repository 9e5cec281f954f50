"""Proximal policy optimisation: a pure loss function, and PPO, which acts and learns with it.

- `ppo_loss` is the clipped objective of the paper (1707.06347, equations 7 and 9), free of any state.
- A new method subclasses PPO and overrides `prepare`, `loss` or `after_update`; what metrics these return are logged.
- Gradients of micro-batches are averaged, not summed: their size changes speed and memory, never the result.
- Metrics are means over all minibatches of all epochs, gathered on the device and read once per update.
- Learning rate, clip range and entropy coefficient are plain attributes: a notebook may change them during training.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ppo_lib.config import PPOConfig, UserError, derive_seed
from ppo_lib.policy import ActorCritic, sample_actions, sampling_noise
from ppo_lib.storage import Batch, RolloutStorage

Metrics = dict[str, Tensor]
FINITE = ("policy_loss", "value_loss", "entropy", "approx_kl", "grad_norm")  # otherwise training has diverged


class DivergedError(UserError):
    """A loss or gradient is not finite: the weights are lost, the last checkpoint is not."""


class Action(NamedTuple):
    """The network's answer to one step: action int64 [N], log_prob, value [N], state [N, S], logits [N, A]."""

    action: Tensor
    log_prob: Tensor
    value: Tensor
    state: Tensor
    logits: Tensor


@dataclass
class Coefficients:
    """The weights and clips inside the loss (1707.06347, equation 9)."""

    clip_range: float = 0.2
    clip_value_loss: bool = True
    value_coef: float = 0.5
    entropy_coef: float = 0.01


def normalize_advantage(advantage: Tensor) -> Tensor:
    """Zero mean and unit standard deviation over the minibatch, any shape."""
    return (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)


def ppo_loss(logits: Tensor, value: Tensor, batch: Batch, coefficients: Coefficients) -> tuple[Tensor, Metrics]:
    """PPO's loss on a (micro-)batch whose advantages are already normalised.

    logits: [..., A] and value: [...] of the current network; batch: the rollout's, [...].
    Returns the loss (scalar: policy + value_coef * value - entropy_coef * entropy) and metrics (scalars):
    policy_loss, value_loss, entropy, approx_kl (k3 estimator), clip_fraction.
    """
    c = coefficients
    log_probs = logits.log_softmax(-1)
    log_ratio = log_probs.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1) - batch.log_prob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - c.clip_range, 1 + c.clip_range)
    policy_loss = -torch.min(ratio * batch.advantage, clipped * batch.advantage).mean()

    value_error = (value - batch.return_).square()
    if c.clip_value_loss:
        near = batch.value + (value - batch.value).clamp(-c.clip_range, c.clip_range)
        value_error = torch.max(value_error, (near - batch.return_).square())
    value_loss = 0.5 * value_error.mean()

    entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
    loss = policy_loss + c.value_coef * value_loss - c.entropy_coef * entropy
    with torch.no_grad():
        metrics = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "approx_kl": (ratio - 1 - log_ratio).mean(),
            "clip_fraction": ((ratio - 1).abs() > c.clip_range).float().mean(),
        }
    return loss, {name: value.detach() for name, value in metrics.items()}


def explained_variance(value: Tensor, return_: Tensor) -> Tensor:
    """1 - Var[return - value] / Var[return]: 1 is perfect, 0 no better than a constant. Any shape; scalar.

    nan where the returns are constant (up to rounding), since there is nothing to explain.
    """
    variance = return_.var(correction=0)
    explained = 1 - (return_ - value).var(correction=0) / variance
    return explained.where(variance > 1e-10 * return_.square().mean(), torch.nan)


class PPO:
    """Acts with a policy (`act`) and improves it on a rollout (`update`).

    policy: an ActorCritic, or a module with its interface; its device and autocast_dtype decide how PPO computes.
    micro_batch: steps per forward and backward pass; default: a whole minibatch.
    """

    note = ""  # what a method says when training starts, such as the memory that it needs

    def __init__(self, policy: ActorCritic, config: PPOConfig, micro_batch: int | None = None) -> None:
        self.policy, self.config, self.micro_batch = policy, config, micro_batch or config.minibatch_size
        self.device = next(policy.parameters()).device
        self.learning_rate = config.learning_rate
        self.coefficients = Coefficients(
            config.clip_range, config.clip_value_loss, config.value_coef, config.entropy_coef
        )
        self.optimizer = torch.optim.Adam(
            policy.parameters(), config.learning_rate, eps=1e-5, weight_decay=config.weight_decay, fused=True
        )
        self.between_steps: Callable[[], None] = lambda: None
        self.action_generator = torch.Generator(self.device).manual_seed(derive_seed(config.seed, "actions"))
        self.batch_generator = torch.Generator().manual_seed(derive_seed(config.seed, "minibatches"))
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=getattr(policy, "autocast_dtype", None) == torch.float16
        )

    @torch.no_grad()
    def act(self, obs: Tensor, state: Tensor, episode_start: Tensor) -> Action:
        """Sample an action per environment. obs uint8 [N, H, W, C], state [N, S], episode_start bool [N].

        On a GPU the next call overwrites the results: copy what has to last.
        """
        noise = sampling_noise(len(obs), self.policy.num_actions, self.action_generator)
        return Action(*self._sample(obs, state, episode_start, noise))

    def _sample(self, obs: Tensor, state: Tensor, episode_start: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        logits, value, state = self.policy(obs, state, episode_start)
        action = sample_actions(logits, noise)
        log_prob = logits.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
        return action, log_prob, value, state, logits

    @torch.no_grad()
    def value(self, obs: Tensor, state: Tensor, episode_start: Tensor) -> Tensor:
        """Values [N] of observations. The caller's state does not advance. Shapes as in act."""
        return self.policy(obs, state, episode_start)[1]

    def prepare(self, batch: Batch) -> Batch:
        """Override it to change a minibatch, whose advantages are normalised, or to add fields, before it is split.

        Random numbers are drawn here, from batch_generator: a resume repeats them, and CUDA graphs don't record them.
        """
        return batch

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss of a (micro-)batch (scalar) and metrics (scalars). Override it for another objective."""
        logits, value, _ = self.policy(batch.obs, batch.state, batch.episode_start)
        return ppo_loss(logits, value, batch, self.coefficients)

    def after_update(self, storage: RolloutStorage) -> dict[str, float]:
        """Override it for what follows the gradient steps on a rollout; returns metrics to log.

        Further steps are taken by gradient_step, their metrics averaged by mean_metrics.
        """
        return {}

    def update(self, storage: RolloutStorage, between_steps: Callable[[], None] = lambda: None) -> dict[str, float]:
        """num_epochs passes of num_minibatches gradient steps over a rollout with advantages.

        between_steps is called before each gradient step; an exception that it raises ends the update.
        Returns the metrics of `loss`, explained_variance, grad_norm (before clipping) and those of `after_update`.
        Raises DivergedError if the loss or gradient is not finite.
        """
        self.between_steps = between_steps
        rows: list[Metrics] = []
        for _ in range(self.config.num_epochs):
            for batch in storage.minibatches(self.config.num_minibatches, self.batch_generator):
                rows.append(self.gradient_step(batch))
        metrics = self.mean_metrics(rows)
        grad_norm = metrics.pop("grad_norm")
        metrics |= {"explained_variance": float(self.explained_variance(storage)), "grad_norm": grad_norm}
        return metrics | self.after_update(storage)

    def mean_metrics(self, rows: list[Metrics]) -> dict[str, float]:
        """The means over gradient steps. Raises DivergedError if the loss or gradient is not finite."""
        table = torch.stack([torch.stack(list(row.values())) for row in rows])
        means = table.nanmean(0) if self.scaler.is_enabled() else table.mean(0)
        metrics = dict(zip(rows[0], means.tolist(), strict=True))
        if bad := [name for name in FINITE if name in metrics and not math.isfinite(metrics[name])]:
            raise DivergedError(
                f"Training diverged: {', '.join(bad)} became {metrics[bad[0]]}. The last checkpoint is kept; "
                "start a new run with a lower --learning-rate or --max-grad-norm, or with --precision float32."
            )
        return metrics

    def gradient_step(self, batch: Batch) -> Metrics:
        """One Adam step on a minibatch. Returns the metrics of its loss and grad_norm."""
        self.between_steps()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        batch.advantage = self.normalize_advantage(batch.advantage)
        metrics = self.gradient(self.prepare(batch))
        self.scaler.unscale_(self.optimizer)
        grad_norm = nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
        if self.scaler.is_enabled():  # where the scaled gradient overflows, the step is skipped and the scale halved
            grad_norm = grad_norm.where(grad_norm.isfinite(), torch.nan)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {**metrics, "grad_norm": grad_norm}

    def gradient(self, batch: Batch) -> Metrics:
        """Leave the gradient of a minibatch, the mean over its micro-batches, in the parameters. Returns metrics."""
        self.optimizer.zero_grad(set_to_none=True)
        units = max(1, self.micro_batch // (batch.action.numel() // len(batch)))
        total: Metrics = {}
        for micro in batch.split(units):
            share = micro.action.numel() / batch.action.numel()
            loss, metrics = self.loss(micro)
            self.scaler.scale(loss * share).backward()
            for name, value in metrics.items():
                total[name] = total.get(name, 0) + share * value.detach()
        return total

    normalize_advantage = staticmethod(normalize_advantage)

    def explained_variance(self, storage: RolloutStorage) -> Tensor:
        """How much of the rollout's returns the values predicted, scalar."""
        return explained_variance(storage.value, storage.return_)

    def state_dict(self) -> dict[str, object]:
        """All that learning depends on: weights, Adam's moments, generators, loss scale, live settings."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "action_generator": self.action_generator.get_state(),
            "batch_generator": self.batch_generator.get_state(),
            "learning_rate": self.learning_rate,
            "clip_range": self.coefficients.clip_range,
            "entropy_coef": self.coefficients.entropy_coef,
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """The inverse of state_dict; `state` itself is left alone.

        On another kind of device the action generator cannot continue and starts anew.
        """
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # torch would keep the caller's tensors
        if state["scaler"]:  # empty if it was saved by a run without loss scaling
            self.scaler.load_state_dict(state["scaler"])
        if len(state["action_generator"]) == len(self.action_generator.get_state()):
            self.action_generator.set_state(state["action_generator"].cpu())
        self.batch_generator.set_state(state["batch_generator"].cpu())
        self.learning_rate = state["learning_rate"]
        self.coefficients.clip_range = state["clip_range"]
        self.coefficients.entropy_coef = state["entropy_coef"]
