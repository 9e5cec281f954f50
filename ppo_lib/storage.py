"""The rollout of T steps of N environments, its advantages, and minibatches.

- Observations stay uint8: the 200 MB of 256 x 64 frames would be 800 MB in float32.
- Every field at index t belongs to step t: the network saw obs[t], state[t] and episode_start[t] and took action[t];
  the game answered with reward[t] and done[t]. done[t] ends the episode of step t, so episode_start[t + 1] = done[t].
- A minibatch is a list of unit indices: single steps, or for a GRU sequences with the state stored at their start.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor


def gae(
    reward: Tensor, value: Tensor, done: Tensor, last_value: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (1506.02438, equation 16), cut at episode ends.

    reward, value, done: [T, N]; last_value: [N], the value of the observation after the last step.
    Returns advantage and return (advantage + value), both [T, N].
    """
    keep = gamma * (~done).to(value.dtype)  # neither value nor advantage crosses the end of an episode
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
    """Some units of a rollout. Leading axes are [B] for steps, [L, B] for sequences; state is [B, S].

    A method that needs more adds fields in a subclass, in any order; each has the leading axes of action.
    """

    obs: Tensor
    action: Tensor
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    return_: Tensor
    episode_start: Tensor
    state: Tensor

    def __len__(self) -> int:
        """B, the number of steps or sequences."""
        return len(self.state)

    def split(self, units: int) -> Iterator[Batch]:
        """Consecutive micro-batches of at most `units` steps or sequences each."""
        axis = self.action.dim() - 1
        pieces = {f.name: getattr(self, f.name).split(units, 0 if f.name == "state" else axis) for f in fields(self)}
        for values in zip(*pieces.values(), strict=True):
            yield type(self)(**dict(zip(pieces, values, strict=True)))


class RolloutStorage:
    """Tensors [T, N, ...] of one rollout on one device.

    sequence_length: None for single steps in shuffled order, else L: sequences of L consecutive steps of one
    environment, which may contain episode ends. L must divide T.
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
            raise ValueError(f"sequence_length {sequence_length} does not divide num_steps {num_steps}")
        steps = (num_steps, num_envs)
        self.num_steps, self.num_envs, self.sequence_length = num_steps, num_envs, sequence_length
        self.obs = torch.zeros(*steps, *obs_shape, dtype=torch.uint8, device=device)
        self.state = torch.zeros(*steps, state_size, device=device)
        self.action = torch.zeros(steps, dtype=torch.int64, device=device)
        self.episode_start = torch.zeros(steps, dtype=torch.bool, device=device)
        self.done = torch.zeros(steps, dtype=torch.bool, device=device)
        self.log_prob, self.value, self.reward, self.advantage, self.return_ = (
            torch.zeros(steps, device=device) for _ in range(5)
        )

    def add(self, t: int, envs: slice, **values: Tensor) -> None:
        """Write fields of step t for a slice of the environments, each [n, ...]."""
        for name, value in values.items():
            getattr(self, name)[t, envs] = value

    def compute_advantages(self, last_value: Tensor, gamma: float, gae_lambda: float) -> None:
        """Fill advantage and return_ from reward, value and done. last_value: [N]."""
        self.advantage, self.return_ = gae(self.reward, self.value, self.done, last_value, gamma, gae_lambda)

    @property
    def num_units(self) -> int:
        """Number of steps or sequences to shuffle."""
        return self.num_steps * self.num_envs // (self.sequence_length or 1)

    def minibatches(self, count: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """One epoch: every unit once, in shuffled order, in `count` batches of equal size.

        Raises ValueError if count does not divide the number of units.
        """
        if self.num_units % count:
            raise ValueError(f"{count} minibatches do not divide {self.num_units} units")
        order = torch.randperm(self.num_units, generator=generator).to(self.obs.device)
        yield from (self.batch(units) for units in order.chunk(count))

    def batch(self, units: Tensor) -> Batch:
        """A copy of the steps or sequences with these indices.

        Unit u is environment u % N, at step u // N, or from step L * (u // N) on.
        """
        length = self.sequence_length or 1
        env, start = units % self.num_envs, units // self.num_envs * length
        step = start if self.sequence_length is None else start + torch.arange(length, device=units.device)[:, None]
        names = [f.name for f in fields(Batch) if f.name != "state"]
        return Batch(**{name: getattr(self, name)[step, env] for name in names}, state=self.state[start, env])
