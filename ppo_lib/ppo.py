"""Proximal policy optimisation: a pure loss function, and PPO, which acts and learns with it.

- `ppo_loss` is the clipped objective of the paper (1707.06347, equations 7 and 9), free of any state.
- Gradients of micro-batches are averaged, not summed: their size changes speed and memory, never the result.
- Diagnostics are means over all minibatches of all epochs, gathered on the device and read once an update.
- Learning rate, clip range and entropy coefficient are plain attributes: a notebook may move them while it trains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ppo_lib.accel.distributed import ALONE, Group
from ppo_lib.accel.graphs import Graphed
from ppo_lib.accel.hardware import Hardware
from ppo_lib.config import PPOConfig, UserError, derive_seed
from ppo_lib.policy import ActorCritic, sample_actions, sampling_noise
from ppo_lib.storage import Batch, RolloutStorage

DIAGNOSTICS = (
    "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm", "explained_variance",
)  # fmt: skip


class DivergedError(UserError):
    """A loss or gradient that is not finite: the weights are lost, the last checkpoint is not."""


class Prediction(NamedTuple):
    """What the network says about one step: action int64 [N], log_prob, value [N], state [N, S], logits [N, A]."""

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


def ppo_loss(
    logits: Tensor, value: Tensor, batch: Batch, coefficients: Coefficients
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's loss on a (micro-)batch whose advantages are normalised already.

    logits: [..., A] and value: [...] of the network now; batch: what it was when the actions were taken, [...].
    Returns the loss (scalar: policy + value_coef * value - entropy_coef * entropy) and diagnostics (scalars):
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
        diagnostics = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "approx_kl": (ratio - 1 - log_ratio).mean(),
            "clip_fraction": ((ratio - 1).abs() > c.clip_range).float().mean(),
        }
    return loss, {name: figure.detach() for name, figure in diagnostics.items()}


def explained_variance(value: Tensor, return_: Tensor) -> Tensor:
    """1 - Var[return - value] / Var[return]: 1 is perfect, 0 is no better than a constant. Any shape; scalar."""
    return 1 - (return_ - value).var(correction=0) / return_.var(correction=0).clamp(min=1e-8)


class PPO:
    """Acts with a policy (`predict`) and improves it on a rollout (`optimize`).

    group: the processes that learn together; each calls optimize with its own part of the rollout.
    """

    def __init__(self, policy: ActorCritic, config: PPOConfig, hardware: Hardware, group: Group = ALONE) -> None:
        self.policy, self.config, self.hardware, self.group = policy, config, hardware, group
        self.learning_rate = config.learning_rate
        self.coefficients = Coefficients(
            config.clip_range, config.clip_value_loss, config.value_coef, config.entropy_coef
        )
        self.network = self.group.parallel(policy)
        self.optimizer = torch.optim.Adam(policy.parameters(), lr=config.learning_rate, eps=1e-5, fused=True)
        action_seed, batch_seed = (derive_seed(config.seed, use, *group.path) for use in ("actions", "minibatches"))
        self.action_generator = torch.Generator(hardware.device).manual_seed(action_seed)
        self.batch_generator = torch.Generator().manual_seed(batch_seed)
        self.scaler = torch.amp.GradScaler(hardware.device.type, enabled=hardware.dtype == torch.float16)
        self._act = Graphed(self._sample, hardware.cuda_graphs)
        self._learn = Graphed(
            self._gradients, hardware.cuda_graphs and self.group.size == 1, lambda: astuple(self.coefficients)
        )

    @torch.no_grad()
    def predict(self, obs: Tensor, state: Tensor, reset: Tensor) -> Prediction:
        """Sample an action for each environment. obs uint8 [N, H, W, C], state [N, S], reset bool [N].

        On a GPU the next call overwrites the results: copy what is to last.
        """
        noise = sampling_noise(len(obs), self.policy.num_actions, self.action_generator)
        return Prediction(*self._act(obs, state, reset, noise))

    def _sample(self, obs: Tensor, state: Tensor, reset: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        logits, value, state = self.policy(obs, state, reset)
        action = sample_actions(logits, noise)
        log_prob = logits.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
        return action, log_prob, value, state, logits

    @torch.no_grad()
    def predict_value(self, obs: Tensor, state: Tensor, reset: Tensor) -> Tensor:
        """Values [N] of observations, without a step: the caller's state stays as it is. Shapes as in predict."""
        return self.policy(obs, state, reset)[1]

    def optimize(self, storage: RolloutStorage, between_steps: Callable[[], None] = lambda: None) -> dict[str, float]:
        """num_epochs passes of num_minibatches gradient steps over a rollout with advantages.

        between_steps is called before each gradient step; what it raises ends the update.

        Returns the diagnostics of `ppo_loss`, grad_norm (before clipping) and explained_variance.
        Raises DivergedError if any of them is not finite.
        """
        rows = []
        for _ in range(self.config.num_epochs):
            for batch in storage.minibatches(self.config.num_minibatches, self.batch_generator):
                between_steps()
                rows.append(self._gradient_step(batch))
        value, return_ = self.group.concat(storage.value), self.group.concat(storage.return_)
        table = torch.stack(rows)
        means = table.nanmean(0) if self.scaler.is_enabled() else table.mean(0)
        means = torch.cat([means, explained_variance(value, return_).unsqueeze(0)])
        figures = dict(zip(DIAGNOSTICS, means.tolist(), strict=True))
        _check_finite(figures)
        return figures

    def _gradient_step(self, batch: Batch) -> Tensor:
        """One Adam step on a minibatch, whose gradient is the mean over its micro-batches. Returns diagnostics [6]."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        batch.advantage = self.group.columns(normalize_advantage(self.group.concat(batch.advantage)))
        steps_per_unit = batch.action.numel() // len(batch.state)
        units = max(1, self.hardware.micro_batch // steps_per_unit)
        if units >= len(batch.state):
            diagnostics, *gradients = self._learn(*vars(batch).values())
            for parameter, gradient in zip(self.policy.parameters(), gradients, strict=True):
                parameter.grad = gradient
        else:
            diagnostics = self._accumulate(batch, units)
        diagnostics = self.group.mean(diagnostics)
        self.scaler.unscale_(self.optimizer)
        grad_norm = nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
        if self.scaler.is_enabled():  # where the scaled gradient overflows, the step is left out and the scale halved
            grad_norm = grad_norm.where(grad_norm.isfinite(), torch.nan)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return torch.cat([diagnostics, grad_norm.unsqueeze(0)])

    def _gradients(self, *fields: Tensor) -> tuple[Tensor, ...]:
        """The fields of a Batch -> diagnostics [5] and the gradient of each parameter."""
        batch = Batch(*fields)
        diagnostics = self._accumulate(batch, len(batch.state))
        return diagnostics, *(parameter.grad for parameter in self.policy.parameters())

    def _accumulate(self, batch: Batch, units: int) -> Tensor:
        """Leave the minibatch's gradient in the parameters, `units` steps or sequences at a time -> diagnostics [5]."""
        self.optimizer.zero_grad(set_to_none=True)
        total, done = 0, 0
        for micro in batch.split(units):
            share, done = micro.action.numel() / batch.action.numel(), done + len(micro.state)
            with self.group.averaging(self.network, last=done == len(batch.state)):
                logits, value, _ = self.network(micro.obs, micro.state, micro.reset)
                loss, diagnostics = ppo_loss(logits, value, micro, self.coefficients)
                self.scaler.scale(loss * share).backward()
            total = total + share * torch.stack(list(diagnostics.values()))
        return total

    def state_dict(self) -> dict[str, object]:
        """Everything that learning goes on from: weights, Adam's moments, generators, loss scale, live settings."""
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
        """The inverse of state_dict. On another kind of device the draws of actions can't go on; they start anew."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if len(state["action_generator"]) == len(self.action_generator.get_state()):
            self.action_generator.set_state(state["action_generator"].cpu())
        self.batch_generator.set_state(state["batch_generator"].cpu())
        self.learning_rate = state["learning_rate"]
        self.coefficients.clip_range = state["clip_range"]
        self.coefficients.entropy_coef = state["entropy_coef"]


def _check_finite(figures: dict[str, float]) -> None:
    bad = [name for name, figure in figures.items() if not torch.isfinite(torch.tensor(figure))]
    if bad:
        raise DivergedError(
            f"Training diverged: {', '.join(bad)} became {figures[bad[0]]}. The last checkpoint is kept; "
            "start a new run with a lower --learning-rate or --max-grad-norm, or with --precision float32."
        )
