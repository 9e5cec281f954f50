"""The IMPALA block in bf16 on CPUs, by C functions (impala.c) that are compiled when they are first needed.

- torch's convolutions come close to what the processor can do, but each of a block's 16 passes reads and writes
  activations in memory. Here an image goes through the whole block in the cache.
- CPUs with matrix units (AMX) convolve faster by torch; there only the pooling is done here.
- Values and gradients agree with torch's up to bf16's rounding, of which there is less here (tests/test_kernels.py).
- All of it needs AVX512-BF16 and a C compiler; without, torch does the work.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

SOURCE = Path(__file__).with_name("impala.c")
CPU = Path("/proc/cpuinfo")
FLAGS = ("-O3", "-march=x86-64-v4", "-mavx512bf16", "-fopenmp", "-fPIC")
RGB = 3
INPUTS, OUTPUTS = (RGB, 16, 32), (16, 32)  # channels that the functions are compiled for
LANES = 16  # as in impala.c


def runs_block(x: Tensor, channels: int) -> bool:
    """Whether impala_block takes x [B, C, H, W] to so many channels here, and faster than torch."""
    fits = x.shape[1] in INPUTS and channels in OUTPUTS
    asks_too_much = x.shape[1] == RGB and x.requires_grad  # no gradient is computed for the image itself
    return fits and not asks_too_much and _runs(x) and "amx_bf16" not in features()


def impala_block(x: Tensor, *parameters: Tensor) -> Tensor:
    """Conv, max-pool, two residual blocks: bf16 [B, C, H, W] -> bf16 [B, C', (H + 1) // 2, (W + 1) // 2].

    parameters: weight [C', C or C', 3, 3] and bias [C'] of the five convolutions, in their order, in float32.
    """
    return _Block.apply(x, *parameters)


class MaxPool(nn.Module):
    """The maximum of each 3x3 window, two pixels apart. [B, C, H, W] -> [B, C, (H + 1) // 2, (W + 1) // 2]."""

    def forward(self, x: Tensor) -> Tensor:
        if _runs(x) and x.shape[1] % LANES == 0:
            return _MaxPool.apply(x)
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


def _runs(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and library() is not None


@lru_cache(maxsize=1)
def features() -> frozenset[str]:
    """What the processor can do, in Linux's words; empty elsewhere."""
    try:
        lines = CPU.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split() for line in lines if line.startswith("flags")), ()))


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None where they can't be had. Compiled in some 2 seconds, once on a machine."""
    if "avx512_bf16" not in features():
        return None
    try:
        name = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
        target = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "ppo_lib", f"impala-{name}.so")
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                compiled, linked = Path(folder, "impala.o"), Path(folder, "impala.so")
                _cc(*FLAGS, "-c", "-o", str(compiled), str(SOURCE))
                # linked without -fopenmp: torch has loaded its own OpenMP, whose threads are shared
                _cc("-shared", "-o", str(linked), str(compiled))
                linked.replace(target)  # whole or not at all, whoever else compiles it now
        return ctypes.CDLL(str(target))
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None


def _cc(*arguments: str) -> None:
    subprocess.run(["cc", *arguments], check=True, capture_output=True, timeout=120)


class _Block(torch.autograd.Function):
    """Calls impala.c's block_forward and block_backward."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, *parameters: Tensor) -> Tensor:
        x, weights, biases = _innermost(x), [_innermost(w) for w in parameters[::2]], parameters[1::2]
        y = _empty(_pooled(x.shape, len(biases[0])))
        kept = [torch.empty_like(y, dtype=torch.uint8), *(torch.empty_like(y) for _ in range(4))]
        if not any(ctx.needs_input_grad):
            kept = []
        ctx.save_for_backward(x, *weights, *kept)
        _call("block_forward", x, _addresses(weights), _addresses(biases), y, _keep(kept), shape=(*x.shape, y.shape[1]))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        weights, kept, dy = saved[:5], saved[5:], _innermost(dy)
        dx = _empty(x.shape) if ctx.needs_input_grad[0] else None
        c = dy.shape[1]
        inputs = [4 if w.shape[1] == RGB else w.shape[1] for w in weights]
        sums = [torch.zeros(torch.get_num_threads(), 9 * i * c + c) for i in inputs]
        _call("block_backward", x, _addresses(weights), dy, _keep(kept), dx, _addresses(sums), shape=(*x.shape, c))
        gradients = [dx]
        for weight, i, total in zip(weights, inputs, (s.sum(0) for s in sums), strict=True):
            blocks = total[:-c].view(c // LANES, 3, 3, i, LANES)[..., : weight.shape[1], :]
            gradients += [blocks.permute(0, 4, 3, 1, 2).reshape(weight.shape), total[-c:]]
        return tuple(gradients)


class _MaxPool(torch.autograd.Function):
    """Calls impala.c's pool_forward and pool_backward."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        x, ctx.shape = _innermost(x), x.shape
        y = _empty(_pooled(x.shape, x.shape[1]))
        place = torch.empty_like(y, dtype=torch.uint8)
        _call("pool_forward", x, y, place, shape=ctx.shape)
        ctx.save_for_backward(place)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> Tensor:
        dx = _empty(ctx.shape)
        _call("pool_backward", _innermost(dy), *ctx.saved_tensors, dx, shape=ctx.shape)
        return dx


def _pooled(shape: tuple[int, ...], channels: int) -> tuple[int, ...]:
    n, _, h, w = shape
    return n, channels, (h + 1) // 2, (w + 1) // 2


def _innermost(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _empty(shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)


class _Kept(ctypes.Structure):
    """The struct `kept` of impala.c."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("place", "x0", "x1", "hidden0", "hidden1")]


def _keep(tensors: list[Tensor]) -> object:
    return ctypes.byref(_Kept(*(tensor.data_ptr() for tensor in tensors))) if tensors else None


def _addresses(tensors: list[Tensor] | tuple[Tensor, ...]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _call(name: str, *arguments: object, shape: tuple[int, ...]) -> None:
    """shape: [B, C, H, W] of the input, and for a block C' behind it."""
    n, c, h, w, *more = shape
    pointers = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments]
    sizes = map(ctypes.c_long, (n, h, w, c, *more))
    getattr(library(), name)(*pointers, *sizes, torch.get_num_threads())
