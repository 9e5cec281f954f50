"""How a run uses the machine: device, precision, allocator, threads and micro-batch size.

- `auto` measures: the encoder's forward and backward pass in float32 and in bf16, and takes bf16 if it is clearly
  faster. A resumed run keeps what it began with, so that it goes on bit for bit.
- On Linux, glibc returns each big activation to the system and faults its pages in again at the next use. Raising
  two `mallopt` thresholds keeps them: 100 times fewer page faults, a fifth faster. Huge pages give some percent more.
- Micro-batches keep activations small on CPUs; on GPUs a minibatch goes through in one piece.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from ppo_lib.accel import kernels
from ppo_lib.accel.distributed import ALONE, Group
from ppo_lib.config import PPOConfig, UserError
from ppo_lib.model import ImpalaEncoder

CPU_MICRO_BATCH = 256  # steps, with activations of 1 MB each in bf16, or a quarter by impala.c
BLOCK, HUGE_PAGE = 1 << 29, 1 << 21  # bytes; three blocks hold what `paper` needs
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Hardware:
    """Where and how a run computes."""

    device: torch.device
    dtype: torch.dtype  # of the encoder
    micro_batch: int  # steps in one forward and backward pass
    reason: str  # one sentence on why
    cuda_graphs: bool = False  # acting and gradients are recorded (graphs.py)

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """For ActorCritic.autocast_dtype: None means plain float32."""
        return None if self.dtype == torch.float32 else self.dtype

    @property
    def precision(self) -> str:
        """The precision's name in the config: float32, bf16 or fp16."""
        return next(name for name, dtype in DTYPES.items() if dtype == self.dtype)


def configure(config: PPOConfig, precision: str | None = None, group: Group = ALONE) -> Hardware:
    """Choose device and precision, and set up allocator and threads for this process.

    precision: of a run that exists, in place of the config's; begun in fp16, it goes on in float32 on a CPU.
    Processes of a group on one machine share its GPUs and cores.
    Raises UserError if a GPU or a precision is asked for that isn't there.
    """
    device, reason = _pick_device(config.device, group)
    if precision == "fp16" and device.type == "cpu":
        precision, reason = "float32", f"{reason}, float32 (fp16, in which it began, needs a GPU)"
    precision = precision or config.precision
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        if precision == "auto":
            precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
            reason += f", {precision} (its fastest training format)"
        return Hardware(device, DTYPES[precision], config.minibatch_size, reason, cuda_graphs=True)
    prepare_memory()
    torch.set_num_threads(max(1, usable_cores() // group.local_size))
    if precision == "auto":
        precision, why = group.first(_faster_on_cpu())
        reason += f", {precision} ({why})"
    if precision == "fp16":
        raise UserError("fp16 needs a GPU; use --precision bf16, float32 or auto on a CPU.")
    dtype = DTYPES[precision]
    if config.width_scale == 1 and kernels.library(dtype) is not None:
        reason += ", pooling in C" if kernels.torch_convolves(dtype) else ", IMPALA blocks in C"
    return Hardware(device, dtype, CPU_MICRO_BATCH, reason)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=1)
def prepare_memory() -> None:
    """Make glibc keep big freed blocks for reuse (mallopt 3), in huge pages (madvise 2); without glibc do nothing."""
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt, malloc, free, madvise = libc.mallopt, libc.malloc, libc.free, libc.madvise
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, (1 << 31) - 1)
    malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    blocks = [malloc(BLOCK) for _ in range(3)]  # the heap grows: address space, of which only what is used costs
    for block in filter(None, blocks):
        first = -(-block // HUGE_PAGE) * HUGE_PAGE
        madvise(first, (block + BLOCK - first) // HUGE_PAGE * HUGE_PAGE, 14)  # MADV_HUGEPAGE of mman.h
    for block in blocks:
        free(block)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it (before reading a clock)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A tensor of the array's content. The copy to a GPU goes through pinned memory and is not waited for."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _pick_device(wish: str, group: Group) -> tuple[torch.device, str]:
    available = torch.cuda.is_available()
    if wish == "auto":
        wish = "cuda" if available else "cpu"
    if wish == "cuda" and available and group.size > 1:
        wish = f"cuda:{group.local_rank % torch.cuda.device_count()}"
    device = torch.device(wish)
    if device.type == "cpu":
        return device, f"CPU with {usable_cores()} cores"
    if not available:
        raise UserError(
            "There is no CUDA GPU that torch can use; use --device cpu, or in Colab choose "
            "Runtime > Change runtime type > T4 GPU."
        )
    if (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"There is no {wish}; this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}.")
    return device, torch.cuda.get_device_name(device)


def _faster_on_cpu() -> tuple[str, str]:
    """Time both precisions in turns; bf16 must win by a tenth."""
    encoder = ImpalaEncoder()
    obs = torch.zeros(64, 64, 64, 3, dtype=torch.uint8)
    best = {"float32": float("inf"), "bf16": float("inf")}
    for _ in range(4):
        for precision in best:
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                features = encoder(obs)
            features.float().sum().backward()
            best[precision] = min(best[precision], time.perf_counter() - start)
    ratio = best["float32"] / best["bf16"]
    return ("bf16" if ratio > 1.1 else "float32"), f"bf16 measured {ratio:.2f} times as fast as float32"
