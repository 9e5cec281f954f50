"""ActorCritic: encoder -> (GRU) -> categorical policy and value.

- One forward serves single steps [N, ...] and sequences [L, B, ...]. A feed-forward policy has a state of width 0, so
  nothing downstream asks whether there is a GRU.
- The heads start small: gain 0.01 for the policy (near-uniform actions), gain 1 for the value.
- `make_policy(config)` is the one place that builds the network of a run. Initial weights are drawn on the CPU from a
  seed of their own: every machine starts from the same network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ppo_lib.config import PPOConfig, derive_seed
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

    With average pooling: 110,160 and 504,912.

    Attributes: num_actions; state_size, the width of the recurrent state (256, or 0 without a GRU); autocast_dtype,
    the precision of the encoder (None: float32, like everything else).
    """

    def __init__(
        self,
        num_actions: int = 15,
        recurrent: bool = True,
        width_scale: int = 1,
        obs_shape: tuple[int, int, int] = (64, 64, 3),
        seed: int | None = None,
        encoder_init: str = "orthogonal",
        pooling: str = "flatten",
    ) -> None:
        super().__init__()
        self.num_actions = num_actions
        self.state_size = FEATURES if recurrent else 0
        self.autocast_dtype: torch.dtype | None = None
        with torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.manual_seed(seed)
            self.encoder = ImpalaEncoder(obs_shape, width_scale, pooling)
            self.core = GRUCore(FEATURES) if recurrent else None
            self.actor = nn.Linear(FEATURES, num_actions)
            self.critic = nn.Linear(FEATURES, 1)
            orthogonal_init(self)
            orthogonal_init(self.encoder, ENCODER_GAIN)
            orthogonal_init(self.actor, gain=0.01)
            orthogonal_init(self.critic, gain=1.0)
            if encoder_init == "glorot":  # last, so that the heads and the GRU start the same with either
                glorot_init(self.encoder)

    def initial_state(self, n: int) -> Tensor:
        """The state at the start of an episode: zeros [n, state_size]."""
        return torch.zeros(n, self.state_size, device=self.actor.weight.device)

    def encode(self, obs: Tensor) -> Tensor:
        """uint8 [B, H, W, C] -> float32 [B, D]; the encoder computes in autocast_dtype."""
        kind = obs.device.type
        with torch.autocast(kind, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            features = self.encoder(obs)
        return features.float()

    def forward(self, obs: Tensor, state: Tensor, episode_start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step, or a sequence of L steps.

        obs: uint8 [N, H, W, C] or [L, B, H, W, C]; state: [N, S] or [B, S], before the first step;
        episode_start: bool [N] or [L, B], True where an episode begins: the state is zeroed before that step.
        Returns logits [..., A], value [...], state after the last step [N, S] or [B, S].
        """
        features = self.encode(obs.flatten(0, -4)).unflatten(0, obs.shape[:-3])
        if self.core is not None:
            if features.dim() == 2:
                outputs, state = self.core(features.unsqueeze(0), state, episode_start.unsqueeze(0))
                features = outputs.squeeze(0)
            else:
                features, state = self.core(features, state, episode_start)
        return self.actor(features), self.critic(features).squeeze(-1), state


def make_policy(config: PPOConfig) -> ActorCritic:
    """The untrained network of a run, on the CPU in float32. A new encoder or head is chosen here by a config field."""
    return ActorCritic(
        recurrent=config.recurrent,
        width_scale=config.width_scale,
        seed=derive_seed(config.seed, "weights"),
        encoder_init=config.encoder_init,
        pooling=config.pooling,
    )
