"""The IMPALA block on CPUs, by C functions (impala.c) that are compiled when they are first needed.

- torch's convolutions come close to what the processor can do, but each of a block's 16 passes reads and writes
  activations in memory. Here an image goes through the whole block in the cache.
- Values and gradients agree with torch's up to rounding, of which there is less here (tests/accel/test_kernels.py).
- In bf16 on CPUs with matrix units (AMX), torch's convolutions are faster: there, only the pooling is done in C.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

SOURCE = Path(__file__).with_name("impala.c")
CPU = Path("/proc/cpuinfo")
FLAGS = ("-O3", "-fopenmp", "-fPIC")
AVX512 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
NEEDS = {torch.float32: {"avx2", "fma", "bmi2"}, torch.bfloat16: AVX512 | {"avx512_bf16"}}  # of the processor, by type
RGB, LANES = 3, 16  # channels of an image are three or a multiple of LANES
INNERMOST = torch.channels_last  # the order in memory of all images here
INPUTS, OUTPUTS = (RGB, 16, 32), (16, 32)  # channels that block_forward is compiled for


def convolves(dtype: torch.dtype, outputs: int, inputs: int) -> bool:
    """Whether Block computes with these channels, and faster than torch, which has AMX for bf16 where that is."""
    return outputs in OUTPUTS and inputs in INPUTS and not (dtype == torch.bfloat16 and "amx_bf16" in features())


@lru_cache(maxsize=1)
def features() -> frozenset[str]:
    """What the processor can do, in Linux's words; empty elsewhere."""
    lines = CPU.read_text().splitlines() if CPU.exists() else []
    return frozenset(next((line.split() for line in lines if line.startswith("flags")), ()))


@lru_cache
def load(dtype: torch.dtype) -> tuple[ctypes.CDLL | None, str]:
    """The functions for this type, or None and why not. Compiled in some 2 seconds, once on a machine."""
    if not features():
        return None, "no C kernels: they need Linux and an x86-64 processor"
    if missing := NEEDS.get(dtype, {f"functions for {dtype}"}) - features():
        return None, f"no C kernels: this processor lacks {', '.join(sorted(missing))}"
    flags = [*FLAGS, "-march=x86-64-v4" if features() >= AVX512 else "-march=x86-64-v3"]
    if dtype == torch.bfloat16:
        flags += "-mavx512bf16", "-DBF16"
    name = hashlib.sha256(SOURCE.read_bytes() + " ".join(flags).encode()).hexdigest()[:16]
    problem, cache = "", Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "ppo_lib")
    for folder in (cache, Path(tempfile.gettempdir(), f"ppo_lib-{os.getuid()}")):
        try:
            return ctypes.CDLL(str(_compile(folder.expanduser() / f"impala-{name}.so", flags))), ""
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: there is no home
            problem = f"no C kernels: {error}"
    return None, problem


def _compile(target: Path, flags: Sequence[str]) -> Path:
    """Compile impala.c unless it has been."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = target.parent.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o002:  # others could have put their own code there
        raise PermissionError(f"{target.parent} is another user's, or writable by all")
    if not target.exists():
        if shutil.which("cc") is None:
            raise OSError("there is no C compiler (cc)")
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            compiled, linked = Path(folder, "impala.o"), Path(folder, "impala.so")
            # linked without -fopenmp: torch has loaded its own OpenMP, whose threads are shared
            for how in ((*flags, "-c", "-o", compiled, SOURCE), ("-shared", "-o", linked, compiled)):
                subprocess.run(["cc", *map(str, how)], check=True, capture_output=True, timeout=120)
            linked.replace(target)  # atomic, since another process may compile it now, too
    return target


class Block(torch.autograd.Function):
    """Conv, max-pool, two residual blocks: [B, C, H, W] -> [B, C', (H + 1) // 2, (W + 1) // 2], of x's type.

    parameters: weight [C', C or C', 3, 3] and bias [C'] of the five convolutions, in their order, in float32. keep: for
    a backward pass; it computes no gradient for RGB images. Calls impala.c's block_forward and block_backward.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, keep: bool, x: Tensor, *parameters: Tensor) -> Tensor:
        x, *weights = (tensor.contiguous(memory_format=INNERMOST) for tensor in (x, *parameters[::2]))
        biases = [bias.contiguous() for bias in parameters[1::2]]
        y, *kept = (_pooled(x, len(biases[0]), dtype) for dtype in (x.dtype, *keep * [torch.uint8, *4 * [x.dtype]]))
        _call("block_forward", (*x.shape, y.shape[1]), x, weights, biases, y, kept)  # kept: the C struct of that name
        ctx.save_for_backward(x, *weights, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        weights, kept, dy = saved[:5], saved[5:], dy.contiguous(memory_format=INNERMOST)
        dx = torch.empty_like(x) if ctx.needs_input_grad[1] else None
        dw, db = [torch.empty_like(w) for w in weights], [torch.empty(len(w)) for w in weights]
        _call("block_backward", (*x.shape, dy.shape[1]), x, weights, dy, kept, dx, dw, db)
        return None, dx, *(gradient for pair in zip(dw, db, strict=True) for gradient in pair)


class MaxPool(torch.autograd.Function):
    """The maximum of each 3x3 window, two pixels apart: [B, C, H, W] -> [B, C, H/2, W/2]. C: a multiple of LANES."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        x, ctx.shape = x.contiguous(memory_format=INNERMOST), x.shape
        y, place = _pooled(x, x.shape[1]), _pooled(x, x.shape[1], torch.uint8)
        _call("pool_forward", ctx.shape, x, y, place)
        ctx.save_for_backward(place)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> Tensor:
        dx = torch.empty(ctx.shape, dtype=dy.dtype, memory_format=INNERMOST)
        _call("pool_backward", ctx.shape, dy.contiguous(memory_format=INNERMOST), *ctx.saved_tensors, dx)
        return dx


def _pooled(x: Tensor, channels: int, dtype: torch.dtype | None = None) -> Tensor:
    """Room for what a pooling of x leaves."""
    shape = len(x), channels, (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2
    return torch.empty(shape, dtype=dtype or x.dtype, memory_format=INNERMOST)


def _call(name: str, shape: tuple[int, ...], *arguments: Tensor | list[Tensor] | None) -> None:
    """Call a C function on tensors and lists of tensors. shape: of its input [B, C, H, W], and for a block C'."""
    pointers: list[object] = [None] * len(arguments)  # for None and empty lists
    for i, a in enumerate(arguments):
        if isinstance(a, Tensor):
            pointers[i] = ctypes.c_void_p(a.data_ptr())
        elif a:
            pointers[i] = (ctypes.c_void_p * len(a))(*(tensor.data_ptr() for tensor in a))
    n, c, h, w, *more = shape
    sizes = map(ctypes.c_long, (n, h, w, c, *more))
    getattr(load(arguments[0].dtype)[0], name)(*pointers, *sizes, torch.get_num_threads())
