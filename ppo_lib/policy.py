"""ActorCritic: encoder -> (GRU) -> categorical policy and value.

- One forward for a single step [N, ...] and for sequences [L, B, ...]; a feed-forward policy has a state of width 0,
  so nothing downstream asks whether there is a GRU.
- Heads start small (gain 0.01 for the policy: almost uniform actions; gain 1 for the value).
- Orthogonal matrices are drawn on the CPU from a seed of their own: the same start on every machine.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ppo_lib.model import ENCODER_GAIN, FEATURES, GRUCore, ImpalaEncoder, glorot_init, orthogonal_init


def sampling_noise(n: int, num_actions: int, generator: torch.Generator) -> Tensor:
    """Exponential noise [n, A] for sample_actions, on the generator's device."""
    return torch.empty(n, num_actions, device=generator.device).exponential_(generator=generator)


def sample_actions(logits: Tensor, noise: Tensor) -> Tensor:
    """Draw from softmax(logits [N, A]) -> int64 [N], without a copy to the host.

    With exponential noise E_i, argmax p_i / E_i is distributed as p (the exponential race).
    """
    return (logits.softmax(-1) / noise).argmax(-1)


class ActorCritic(nn.Module):
    """The agent's network. Parameters for 15 actions: 626,256 feed-forward, 1,021,008 with the GRU.

    Attributes: state_size, the width of the recurrent state (256, or 0 without a GRU); num_actions;
    autocast_dtype, in which the encoder computes (None: float32, as all else does).
    """

    def __init__(
        self,
        num_actions: int = 15,
        recurrent: bool = True,
        width_scale: int = 1,
        obs_shape: tuple[int, int, int] = (64, 64, 3),
        seed: int | None = None,
        encoder_init: str = "orthogonal",
    ) -> None:
        super().__init__()
        self.num_actions = num_actions
        self.state_size = FEATURES if recurrent else 0
        self.autocast_dtype: torch.dtype | None = None
        with torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.manual_seed(seed)
            self.encoder = ImpalaEncoder(obs_shape, width_scale)
            self.core = GRUCore(FEATURES) if recurrent else None
            self.actor = nn.Linear(FEATURES, num_actions)
            self.critic = nn.Linear(FEATURES, 1)
            orthogonal_init(self)
            orthogonal_init(self.encoder, ENCODER_GAIN)
            orthogonal_init(self.actor, gain=0.01)
            orthogonal_init(self.critic, gain=1.0)
            if encoder_init == "glorot":  # last, so that the rest begins as it does with the other
                glorot_init(self.encoder)

    def initial_state(self, n: int) -> Tensor:
        """The state at an episode's start: zeros [n, state_size]."""
        return torch.zeros(n, self.state_size, device=self.actor.weight.device)

    def encode(self, obs: Tensor) -> Tensor:
        """uint8 [B, H, W, C] -> float32 [B, D], in the encoder's precision on the way."""
        kind = obs.device.type
        with torch.autocast(kind, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            features = self.encoder(obs)
        return features.float()

    def forward(self, obs: Tensor, state: Tensor, reset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step, or a sequence of L steps.

        obs: uint8 [N, H, W, C] or [L, B, H, W, C]; state: [N, S] or [B, S], before the first step;
        reset: bool [N] or [L, B], True where an episode begins: the state is zeroed before that step.
        Returns logits [..., A], value [...], state after the last step [N, S] or [B, S].
        """
        features = self.encode(obs.flatten(0, -4)).unflatten(0, obs.shape[:-3])
        if self.core is not None:
            if features.dim() == 2:
                outputs, state = self.core(features.unsqueeze(0), state, reset.unsqueeze(0))
                features = outputs.squeeze(0)
            else:
                features, state = self.core(features, state, reset)
        return self.actor(features), self.critic(features).squeeze(-1), state
