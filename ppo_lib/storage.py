"""The rollout: what T steps of N environments leave behind, advantages, and minibatches.

- Observations stay uint8 (200 MB for 256 x 64 frames would be 800 MB in float32); they are cut, never copied whole.
- Each field at index t belongs to step t: the network saw obs[t], state[t] and reset[t], took action[t], and the
  game answered with reward[t] and done[t]. done[t] ends the episode of step t, so reset[t + 1] = done[t].
- A minibatch is a list of unit indices: single steps, or for a GRU sequences with the state stored at their start.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


def gae(
    reward: Tensor, value: Tensor, done: Tensor, last_value: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (1506.02438, equation 16), cut at episode ends.

    reward, value, done: [T, N]; last_value: [N], the value of the observation after the last step.
    Returns advantage and return (advantage + value), both [T, N].
    """
    keep = gamma * (~done).to(value.dtype)  # no value and no advantage flows back across an episode's end
    next_value = torch.cat([value[1:], last_value.unsqueeze(0)])
    delta = reward + keep * next_value - value
    advantage = torch.empty_like(value)
    running = torch.zeros_like(last_value)
    for t in reversed(range(len(reward))):
        running = delta[t] + gae_lambda * keep[t] * running
        advantage[t] = running
    return advantage, advantage + value


@dataclass
class Batch:
    """Some units of a rollout. Leading axes are [B] for steps, [L, B] for sequences; state is [B, S]."""

    obs: Tensor
    action: Tensor
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    return_: Tensor
    reset: Tensor
    state: Tensor

    def split(self, units: int) -> Iterator[Batch]:
        """Consecutive pieces of at most `units` steps or sequences each."""
        axis = self.action.dim() - 1
        pieces = [field.split(units, dim=axis) for field in vars(self).values() if field is not self.state]
        yield from (Batch(*parts) for parts in zip(*pieces, self.state.split(units), strict=True))


class RolloutStorage:
    """Tensors [T, N, ...] of one rollout on one device.

    sequence_length: None for single steps in shuffled order, else L: sequences of L consecutive steps of one
    environment, episode ends inside included. L must divide T.
    """

    def __init__(
        self,
        num_steps: int,
        num_envs: int,
        obs_shape: tuple[int, ...] = (64, 64, 3),
        state_size: int = 0,
        sequence_length: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if sequence_length is not None and num_steps % sequence_length:
            raise ValueError(f"sequence_length {sequence_length} doesn't divide num_steps {num_steps}")
        steps = (num_steps, num_envs)
        self.num_steps, self.num_envs, self.sequence_length = num_steps, num_envs, sequence_length
        self.obs = torch.zeros(*steps, *obs_shape, dtype=torch.uint8, device=device)
        self.state = torch.zeros(*steps, state_size, device=device)
        self.action = torch.zeros(steps, dtype=torch.int64, device=device)
        self.reset = torch.zeros(steps, dtype=torch.bool, device=device)
        self.done = torch.zeros(steps, dtype=torch.bool, device=device)
        self.log_prob, self.value, self.reward, self.advantage, self.return_ = (
            torch.zeros(steps, device=device) for _ in range(5)
        )

    def add(self, t: int, envs: slice, **fields: Tensor) -> None:
        """Write fields of step t for a slice of the environments, each [n, ...]."""
        for name, value in fields.items():
            getattr(self, name)[t, envs] = value

    def estimate(self, last_value: Tensor, gamma: float, gae_lambda: float) -> None:
        """Fill advantage and return_ from reward, value and done. last_value: [N]."""
        self.advantage, self.return_ = gae(self.reward, self.value, self.done, last_value, gamma, gae_lambda)

    @property
    def num_units(self) -> int:
        """How many steps or sequences there are to shuffle."""
        return self.num_steps * self.num_envs // (self.sequence_length or 1)

    def minibatches(self, count: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """One epoch: every unit once, in shuffled order, in `count` batches of equal size.

        Raises ValueError if count doesn't divide the number of units.
        """
        if self.num_units % count:
            raise ValueError(f"{count} minibatches don't divide {self.num_units} units")
        order = torch.randperm(self.num_units, generator=generator).to(self.obs.device)
        yield from (self.batch(units) for units in order.chunk(count))

    def batch(self, units: Tensor) -> Batch:
        """The steps or sequences with these indices, copied together.

        Unit u is environment u % N, at step u // N or from step L * (u // N) on.
        """
        length = self.sequence_length or 1
        env, start = units % self.num_envs, units // self.num_envs * length
        step = start if self.sequence_length is None else start + torch.arange(length, device=units.device)[:, None]
        names = ("obs", "action", "log_prob", "value", "advantage", "return_", "reset")
        return Batch(*(getattr(self, name)[step, env] for name in names), state=self.state[start, env])
