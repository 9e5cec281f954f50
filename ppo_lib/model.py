"""The IMPALA encoder and the GRU core, in plain torch: what is written is what runs.

- ReLUs are never in place: a residual skip must carry x, not relu(x).
- Orthogonal initialisation reaches every convolution, every linear layer and each of the GRU's gate matrices.
- The GRU zeroes its state *before* a step that begins an episode: `episode_start[t]` is `done[t - 1]`.
- The encoder may run in reduced precision (autocast); the GRU and everything after it are float32.
- On CPUs, `ppo_lib.accel.attach` can compute unchanged blocks in C. An edited block computes what is written.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMPALA_CHANNELS = (16, 32, 32)
FEATURES = 256  # D: width of the encoder's output and of the GRU's state
# The textbook gain under ReLUs, sqrt(2), doubles the variance in each of the six residual blocks: initial values near
# 10 and a slow start. 1/sqrt(3) gives weights the size of torch's own initialisation. Glorot's, which the published
# runs use, are almost twice as large; results/protocol-2m/updates.md shows the effect.
ENCODER_GAIN = 3**-0.5


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3, same size. [B, C, H, W] -> [B, C, H, W]. IMPALA (1802.01561), figure 3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class ImpalaBlock(nn.Module):
    """Conv, max-pool (halves H and W, rounding up), two residual blocks. [B, C, H, W] -> [B, C', H/2, W/2]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.residual1 = ResidualBlock(out_channels)
        self.residual2 = ResidualBlock(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.residual2(self.residual1(self.pool(self.conv(x))))


class ImpalaEncoder(nn.Module):
    """uint8 images [B, H, W, C] -> features [B, D]. Three IMPALA blocks, ReLU, flatten or average, linear, ReLU.

    width_scale multiplies the channels (16, 32, 32). Source: IMPALA, 1802.01561, figure 3, the large network.
    pooling "average" takes each channel's mean over the image: 8,192 weights in the linear layer instead of 524,288.
    Source: Impoola, 2503.05546, section 4.
    """

    def __init__(
        self, obs_shape: tuple[int, int, int] = (64, 64, 3), width_scale: int = 1, pooling: str = "flatten"
    ) -> None:
        super().__init__()
        height, width, channels = obs_shape
        blocks = []
        for out_channels in (width_scale * c for c in IMPALA_CHANNELS):
            blocks.append(ImpalaBlock(channels, out_channels))
            height, width, channels = (height + 1) // 2, (width + 1) // 2, out_channels
        self.blocks = nn.Sequential(*blocks)
        self.pooling = pooling
        self.linear = nn.Linear(channels * (height * width if pooling == "flatten" else 1), FEATURES)
        # With channels innermost, convolutions are about twice as fast on CPUs and use tensor cores on GPUs.
        self.to(memory_format=torch.channels_last)

    def forward(self, obs: Tensor) -> Tensor:
        # HWC bytes viewed as CHW are channels_last already: the permutation copies nothing.
        dtype = torch.get_autocast_dtype(obs.device.type) if torch.is_autocast_enabled(obs.device.type) else None
        x = obs.permute(0, 3, 1, 2).to(dtype or self.linear.weight.dtype) / 255
        x = F.relu(self.blocks(x))
        return F.relu(self.linear(x.flatten(1) if self.pooling == "flatten" else x.mean((2, 3))))


class GRUCore(nn.Module):
    """A GRU whose state is zeroed where episodes begin. Source: Cho et al., 1406.1078, in torch's gate order r, z, n.

    The weights live in an `nn.GRU`; without episode starts the output equals that module's (tested). The loop runs
    over time only: all inputs are projected at once, which leaves one small matrix product per step.
    """

    def __init__(self, size: int = FEATURES) -> None:
        super().__init__()
        self.gru = nn.GRU(size, size)

    def forward(self, x: Tensor, state: Tensor, episode_start: Tensor) -> tuple[Tensor, Tensor]:
        """x [L, B, D], state [B, D] before step 0, episode_start bool [L, B] -> outputs [L, B, D], state [B, D]."""
        gru = self.gru
        projected = F.linear(x, gru.weight_ih_l0, gru.bias_ih_l0)
        keep = (~episode_start).to(x.dtype).unsqueeze(-1)
        outputs = []
        for inputs, keep_t in zip(projected.unbind(0), keep.unbind(0), strict=True):
            state = state * keep_t
            in_r, in_z, in_n = inputs.chunk(3, -1)
            rec_r, rec_z, rec_n = F.linear(state, gru.weight_hh_l0, gru.bias_hh_l0).chunk(3, -1)
            update = torch.sigmoid(in_z + rec_z)
            candidate = torch.tanh(in_n + torch.sigmoid(in_r + rec_r) * rec_n)
            state = torch.lerp(candidate, state, update)  # (1 - z) * n + z * h
            outputs.append(state)
        return torch.stack(outputs), state


def glorot_init(module: nn.Module) -> None:
    """Uniform weights of variance 2 / (fan_in + fan_out) and zero biases in every conv and linear layer below `module`.

    TensorFlow's default, and therefore the initialisation of openai/baselines and of the published runs.
    Source: Glorot and Bengio 2010, equation 16.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


def orthogonal_init(module: nn.Module, gain: float = 1.0) -> None:
    """Orthogonal weights and zero biases in every conv, linear and GRU below `module` (Saxe et al., 1312.6120).

    A GRU stacks three gate matrices [D, D]; each becomes orthogonal on its own, with gain 1.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            # through a contiguous matrix: torch's function rejects channels_last weights
            layer.weight.detach().copy_(nn.init.orthogonal_(torch.empty(layer.weight.shape), gain))
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.GRU):
            for name, parameter in layer.named_parameters():
                if "bias" in name:
                    nn.init.zeros_(parameter)
                else:
                    for gate in parameter.detach().chunk(3):
                        nn.init.orthogonal_(gate)
