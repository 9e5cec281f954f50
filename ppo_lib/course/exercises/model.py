"""Exercises of notebook 02: residual block, shapes and receptive fields, and the GRU with its reset and its gates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppo_lib.course.exercises import Exercise
from ppo_lib.model import ResidualBlock, orthogonal_init


def residual(x: Tensor, block: ResidualBlock) -> Tensor:
    """model.ResidualBlock, as a function of its input [B, C, H, W] and its weights."""
    return block(x)


def shape_and_field(layers: Sequence[tuple[int, int, int]], size: int) -> tuple[int, int]:
    """Side of the output (units) and of one unit's receptive field (input pixels).

    layers: kernel, stride and padding of each, in order; size: side of the input (pixels).
    """
    return _sizes(layers, size)


def _sizes(
    layers: Sequence[tuple[int, int, int]], size: int, pads: int = 2, up: int = 0, wide: int = 1, step: str = "after"
) -> tuple[int, int]:
    field, distance = 1, 1
    for kernel, stride, padding in layers:
        size = (size + pads * padding - kernel + up * (stride - 1)) // stride + 1
        distance *= stride if step == "before" else 1
        field += (kernel - wide) * distance
        distance = {"after": distance * stride, "add": distance + stride, "last": stride}.get(step, distance)
    return size, field


def gru_step(x: Tensor, h: Tensor, gru: nn.GRU) -> Tensor:
    """One step of a GRU: input x [B, D] and memory h [B, D] -> memory [B, D]. See model.GRUCore.forward."""
    return _gru(x, h, gru)


def _gru(
    x: Tensor, h: Tensor, gru: nn.GRU, order: Sequence[int] = (0, 1, 2), mix: Callable = torch.lerp,
    candidate: Callable = lambda x, r, h, *_: torch.tanh(x + r * h),
) -> Tensor:  # fmt: skip
    inputs = F.linear(x, gru.weight_ih_l0, gru.bias_ih_l0).chunk(3, -1)
    memories = F.linear(h, gru.weight_hh_l0, gru.bias_hh_l0).chunk(3, -1)
    r, z, n = order
    reset, update = torch.sigmoid(inputs[r] + memories[r]), torch.sigmoid(inputs[z] + memories[z])
    return mix(candidate(inputs[n], reset, memories[n], h, gru), h, update)


def _reset_first(x: Tensor, r: Tensor, _: Tensor, h: Tensor, gru: nn.GRU) -> Tensor:
    """The candidate of Cho's paper, which resets the memory before the matrix."""
    return torch.tanh(x + F.linear(r * h, gru.weight_hh_l0.chunk(3)[2], gru.bias_hh_l0.chunk(3)[2]))


def start_flags(done: Tensor, done_before: Tensor) -> Tensor:
    """Whether the memory is cleared before each step, bool [T, N]; see storage.RolloutStorage.

    done: bool [T, N]; done_before: bool [N], whether the step before the first one ended an episode.
    """
    return torch.cat([done_before[None], done[:-1]])


def orthogonal_gates(gru: nn.GRU) -> None:
    """Make every gate matrix [D, D] orthogonal and every bias 0, in place; see model.orthogonal_init."""
    orthogonal_init(gru)


def _initialized(
    gru: nn.GRU, kinds: str = "weight", parts: int = 3, dim: int = 0, bias: int = 1, first: int = 3
) -> None:
    for name, parameter in gru.named_parameters():
        if "bias" in name and bias:
            nn.init.zeros_(parameter)
        elif kinds in name:
            for gate in parameter.detach().chunk(parts, dim)[:first]:
                nn.init.orthogonal_(gate)


def _gates_run(answer: Callable, size: int) -> dict[str, bool]:
    """What can be said of random weights."""
    gru, found = nn.GRU(size, size), {}
    answer(gru)
    for name, parameter in gru.named_parameters():
        gates = parameter.detach().chunk(3)
        if "bias" in name:
            found[f"{name} is 0"] = not parameter.any()
        else:
            found[f"{name}: the three gates differ"] = not torch.equal(gates[0], gates[1])
            parts = {"each gate": gates, "the stack": [parameter], "each third of the columns": parameter.chunk(3, 1)}
            for what, matrices in parts.items():
                found[f"{name}: {what} is orthogonal"] = all(map(_orthogonal, matrices))
    return found


def _orthogonal(matrix: Tensor) -> bool:
    return torch.allclose(matrix.T @ matrix, torch.eye(matrix.shape[1]), atol=1e-4)


def _gru_case(seed: int, size: int = 5) -> tuple[Tensor, Tensor, nn.GRU]:
    generator = torch.Generator().manual_seed(seed)
    gru = nn.GRU(size, size).requires_grad_(False)
    for parameter in gru.parameters():
        parameter.normal_(generator=generator)
    return torch.randn(3, size, generator=generator), torch.rand(3, size, generator=generator), gru


def _residual_case(channels: int, size: int) -> tuple[Tensor, ResidualBlock]:
    generator = torch.Generator().manual_seed(channels)
    block = ResidualBlock(channels).requires_grad_(False)
    for parameter in block.parameters():
        parameter.normal_(std=0.3, generator=generator)
    return torch.randn(2, channels, size, size, generator=generator), block


def _flags_case(seed: int, steps: int, games: int) -> tuple[Tensor, Tensor]:
    flags = torch.rand(steps + 1, games, generator=torch.Generator().manual_seed(seed)) < 0.4
    return flags[1:], flags[0]


CNN = [(3, 1, 1), (3, 2, 1), (3, 1, 1)]
EXERCISES = [
    Exercise(
        "residual", "The residual block", 1, 5, residual, lambda: [_residual_case(4, 6), _residual_case(2, 9)],
        {
            "the skip carries relu(x) instead of x: you add relu(x), or an in-place ReLU (relu_, inplace=True) has "
            "overwritten x.": lambda x, b: F.relu(x) + b.conv2(F.relu(b.conv1(F.relu(x)))),
            "the skip is missing: add x to what the convolutions return.":
                lambda x, b: b.conv2(F.relu(b.conv1(F.relu(x)))),
            "the ReLU before the first convolution is missing.": lambda x, b: x + b.conv2(F.relu(b.conv1(x))),
            "the ReLU between the two convolutions is missing.": lambda x, b: x + b.conv2(b.conv1(F.relu(x))),
            "both ReLUs are missing, so the block is linear.": lambda x, b: x + b.conv2(b.conv1(x)),
            "there is a ReLU after the sum: IMPALA's block ends with the sum, and y can be negative.":
                lambda x, b: F.relu(x + b.conv2(F.relu(b.conv1(F.relu(x))))),
            "each ReLU stands after its convolution; here it stands before.":
                lambda x, b: x + F.relu(b.conv2(F.relu(b.conv1(x)))),
            "the same convolution is used twice: first conv1, then conv2.":
                lambda x, b: x + b.conv1(F.relu(b.conv1(F.relu(x)))),
        },
    ),
    Exercise(
        "shape_and_field", "Shape and receptive field", 2, 10, shape_and_field,
        lambda: [(CNN, 64), ([(8, 4, 0), (4, 2, 0), (3, 1, 0)], 84), ([(5, 3, 2), (2, 2, 0), (3, 2, 1)], 50), ([], 9)],
        {
            "the padding is added on both sides: size + 2 * padding.": lambda *case: _sizes(*case, pads=1),
            "the padding is missing from the size.": lambda *case: _sizes(*case, pads=0),
            "the size is rounded up; a window that doesn't fit any more is dropped, so round down.":
                lambda *case: _sizes(*case, up=1),
            "the field grows by (kernel - 1) * distance: the first of the kernel's units is inside already.":
                lambda *case: _sizes(*case, wide=0),
            "the distance is multiplied by the stride before the field grows; a layer's stride acts on later layers.":
                lambda *case: _sizes(*case, step="before"),
            "the distance stays 1: each stride multiplies it.": lambda *case: _sizes(*case, step="never"),
            "the stride is added to the distance; it multiplies it.": lambda *case: _sizes(*case, step="add"),
            "the distance is the last stride alone; it is the product of all strides so far.":
                lambda *case: _sizes(*case, step="last"),
        },
    ),
    Exercise(
        "orthogonal_gates", "Orthogonal gates of a GRU", 2, 10, orthogonal_gates, lambda: [(6,)],
        {
            "the whole stack is orthogonal, but none of its three gates: split it first.":
                lambda gru: _initialized(gru, parts=1),
            "the gates are split along the columns; torch stacks them along the rows (dimension 0).":
                lambda gru: _initialized(gru, dim=1),
            "the input's weights (weight_ih_l0) keep torch's default.": lambda gru: _initialized(gru, "weight_hh"),
            "the memory's weights (weight_hh_l0) keep torch's default.": lambda gru: _initialized(gru, "weight_ih"),
            "the biases keep torch's default; set them to 0.": lambda gru: _initialized(gru, bias=0),
            "only the first gate is orthogonal; each of the three must be.": lambda gru: _initialized(gru, first=1),
        },
        _gates_run,
    ),
    Exercise(
        "gru_step", "One step of the GRU", 2, 10, gru_step, lambda: [_gru_case(0), _gru_case(1)],
        {
            "r and z are swapped: torch stacks the gates in the order r, z, n.":
                lambda *case: _gru(*case, order=(1, 0, 2)),
            "z and 1 - z are swapped: z is the part of the old memory that is kept.":
                lambda *case: _gru(*case, mix=lambda c, h, z: torch.lerp(h, c, z)),
            "the memory is the candidate alone: mix it with the old memory.":
                lambda *case: _gru(*case, mix=lambda c, h, z: c),
            "r multiplies the memory before its matrix; in torch it multiplies W_hn h + b_hn.":
                lambda *case: _gru(*case, candidate=_reset_first),
            "r multiplies the input as well; it belongs to the memory's part alone.":
                lambda *case: _gru(*case, candidate=lambda x, r, h, *_: torch.tanh(r * (x + h))),
            "the reset gate r isn't used in the candidate.":
                lambda *case: _gru(*case, candidate=lambda x, r, h, *_: torch.tanh(x + h)),
            "the candidate's tanh is missing.": lambda *case: _gru(*case, candidate=lambda x, r, h, *_: x + r * h),
            "the candidate has a sigmoid; its range is -1 to 1, so it takes a tanh.":
                lambda *case: _gru(*case, candidate=lambda x, r, h, *_: torch.sigmoid(x + r * h)),
        },
    ),
    Exercise(
        "start_flags", "Which flag clears the memory before step t", 2, 5, start_flags,
        lambda: [_flags_case(0, 8, 3), _flags_case(1, 5, 4)],
        {
            "your flags are done[t]; the end of step t clears the memory before step t + 1.": lambda d, b: d,
            "the flags are shifted in the wrong direction: step t needs done[t - 1], not done[t + 1].":
                lambda d, b: torch.cat([d[1:], b[None]]),
            "step 0 is never a start: its flag is done_before, from the step before the rollout.":
                lambda d, b: torch.cat([torch.zeros_like(b)[None], d[:-1]]),
            "step 0 is always a start: a rollout may begin in the middle of an episode; done_before says which.":
                lambda d, b: torch.cat([torch.ones_like(b)[None], d[:-1]]),
            "the last step's flag has come round to step 0, where done_before belongs.":
                lambda d, b: torch.roll(d, 1, 0),
            "there is one row too many: done's last row belongs to the next rollout's first step.":
                lambda d, b: torch.cat([b[None], d]),
        },
    ),
]  # fmt: skip
