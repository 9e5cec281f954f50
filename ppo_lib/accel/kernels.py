"""The IMPALA block on CPUs, by C functions (impala.c) that are compiled when they are first needed.

- torch's convolutions come close to what the processor can do, but each of a block's 16 passes reads and writes
  activations in memory. Here an image goes through the whole block in the cache.
- Values and gradients agree with torch's up to rounding, of which there is less here (tests/test_kernels.py).
- float32 needs AVX2, bf16 AVX512-BF16, both a C compiler; without, torch does the work. CPUs with matrix units (AMX)
  convolve in bf16 by torch, too, and only the pooling is done here.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import stat
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
COMPILER = "cc"
FLAGS = ("-O3", "-fopenmp", "-fPIC")
AVX2, AVX512 = {"avx2", "fma", "bmi2"}, {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
RGB = 3
INPUTS, OUTPUTS = (RGB, 16, 32), (16, 32)  # channels that the functions are compiled for
LANES = 16  # channels of an image are a multiple of it


def impala_block(x: Tensor, *parameters: Tensor) -> Tensor:
    """Conv, max-pool, two residual blocks: [B, C, H, W] -> [B, C', (H + 1) // 2, (W + 1) // 2], of x's type.

    parameters: weight [C', C or C', 3, 3] and bias [C'] of the five convolutions, in their order, in float32.
    """
    if torch.is_grad_enabled():
        return _Block.apply(x, *parameters)
    return _forward(_innermost(x), [_innermost(w) for w in parameters[::2]], parameters[1::2])


def max_pool(x: Tensor) -> Tensor:
    """The maximum of each 3x3 window, two pixels apart. [B, C, H, W] -> [B, C, (H + 1) // 2, (W + 1) // 2].

    C must be a multiple of LANES.
    """
    return _MaxPool.apply(x)


def torch_convolves(dtype: torch.dtype) -> bool:
    """Whether the processor has matrix units for this type, which torch's convolutions use."""
    return dtype == torch.bfloat16 and "amx_bf16" in features()


@lru_cache(maxsize=1)
def features() -> frozenset[str]:
    """What the processor can do, in Linux's words; empty elsewhere."""
    try:
        lines = CPU.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split() for line in lines if line.startswith("flags")), ()))


def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The functions for this type, or None where `load` finds none."""
    return load(dtype)[0]


@lru_cache
def load(dtype: torch.dtype) -> tuple[ctypes.CDLL | None, str]:
    """The functions for this type, or None and why. Compiled in some 2 seconds, once on a machine."""
    flags = _flags(dtype)
    if flags is None:
        return None, f"no C kernels: the processor has no {'AVX512-BF16' if dtype == torch.bfloat16 else 'AVX2'}"
    if shutil.which(COMPILER) is None:
        return None, f"no C kernels: there is no C compiler ({COMPILER})"
    name = hashlib.sha256(SOURCE.read_bytes() + " ".join(flags).encode()).hexdigest()[:16]
    problem = ""
    for folder in _cache_folders():
        try:
            return ctypes.CDLL(str(_compile(folder / f"impala-{name}.so", flags))), ""
        except subprocess.SubprocessError as error:
            return None, f"no C kernels: the compiler failed ({error})"
        except OSError as error:
            problem = f"no C kernels: no folder can keep them ({error})"
    return None, problem


def _cache_folders() -> list[Path]:
    """Where the compiled functions may be kept: the user's cache, or a folder of the user's below /tmp."""
    folders = [Path(tempfile.gettempdir(), f"ppo_lib-{os.getuid()}")]
    with contextlib.suppress(RuntimeError):  # there may be no home
        folders.insert(0, Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "ppo_lib"))
    return folders


def _compile(target: Path, flags: Sequence[str]) -> Path:
    """Compile impala.c unless it has been. Raises OSError if the folder can't be used."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    owner = target.parent.stat()
    if owner.st_uid != os.getuid() or owner.st_mode & stat.S_IWOTH:  # others could put their own code there
        raise PermissionError(f"{target.parent} belongs to another user or is writable by all")
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            compiled, linked = Path(folder, "impala.o"), Path(folder, "impala.so")
            _cc(*flags, "-c", "-o", str(compiled), str(SOURCE))
            # linked without -fopenmp: torch has loaded its own OpenMP, whose threads are shared
            _cc("-shared", "-o", str(linked), str(compiled))
            linked.replace(target)  # whole or not at all, whoever else compiles it now
    return target


def _flags(dtype: torch.dtype) -> tuple[str, ...] | None:
    """The compiler's options for this type on this processor; None if it is too old for it."""
    if dtype == torch.bfloat16 and features() >= AVX512 | {"avx512_bf16"}:
        return *FLAGS, "-march=x86-64-v4", "-mavx512bf16", "-DBF16"
    if dtype == torch.float32 and features() >= AVX2:
        return *FLAGS, "-march=x86-64-v4" if features() >= AVX512 else "-march=x86-64-v3"
    return None


def _cc(*arguments: str) -> None:
    subprocess.run([COMPILER, *arguments], check=True, capture_output=True, timeout=120)


class _Block(torch.autograd.Function):
    """Calls impala.c's block_forward and block_backward."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, *parameters: Tensor) -> Tensor:
        x, weights, biases = _innermost(x), [_innermost(w) for w in parameters[::2]], parameters[1::2]
        shape = _pooled(x.shape, len(biases[0]))
        kept = [_empty(shape, torch.uint8), *(_empty(shape, x.dtype) for _ in range(4))]
        ctx.save_for_backward(x, *weights, *kept)
        return _forward(x, weights, biases, kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        weights, kept, dy = saved[:5], saved[5:], _innermost(dy)
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dw, db = [torch.empty_like(w) for w in weights], [torch.empty(len(w)) for w in weights]
        found = dx, _addresses(dw), _addresses(db)
        _call("block_backward", x, _addresses(weights), dy, _keep(kept), *found, shape=(*x.shape, dy.shape[1]))
        return dx, *(gradient for pair in zip(dw, db, strict=True) for gradient in pair)


class _MaxPool(torch.autograd.Function):
    """Calls impala.c's pool_forward and pool_backward."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        x, ctx.shape = _innermost(x), x.shape
        y = _empty(_pooled(x.shape, x.shape[1]), x.dtype)
        place = torch.empty_like(y, dtype=torch.uint8)
        _call("pool_forward", x, y, place, shape=ctx.shape)
        ctx.save_for_backward(place)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> Tensor:
        dx = _empty(ctx.shape, dy.dtype)
        _call("pool_backward", _innermost(dy), *ctx.saved_tensors, dx, shape=ctx.shape)
        return dx


def _forward(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], kept: Sequence[Tensor] = ()) -> Tensor:
    """The block's output. kept: room for what the backward pass needs, or nothing."""
    y = _empty(_pooled(x.shape, len(biases[0])), x.dtype)
    _call("block_forward", x, _addresses(weights), _addresses(biases), y, _keep(kept), shape=(*x.shape, y.shape[1]))
    return y


def _pooled(shape: tuple[int, ...], channels: int) -> tuple[int, ...]:
    n, _, h, w = shape
    return n, channels, (h + 1) // 2, (w + 1) // 2


def _innermost(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)


class _Kept(ctypes.Structure):
    """The struct `kept` of impala.c."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("place", "x0", "x1", "hidden0", "hidden1")]


def _keep(tensors: Sequence[Tensor]) -> object:
    return ctypes.byref(_Kept(*(tensor.data_ptr() for tensor in tensors))) if tensors else None


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _call(name: str, x: Tensor, *arguments: object, shape: tuple[int, ...]) -> None:
    """shape: [B, C, H, W] of the input, and for a block C' behind it."""
    n, c, h, w, *more = shape
    pointers = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in (x, *arguments)]
    sizes = map(ctypes.c_long, (n, h, w, c, *more))
    getattr(library(x.dtype), name)(*pointers, *sizes, torch.get_num_threads())
