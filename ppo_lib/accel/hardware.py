"""How a run uses the machine: device, precision, threads, allocator and micro-batch size.

- `precision=auto` on a CPU times the encoder in float32 and bf16; config.json keeps what was chosen.
- On Linux, glibc returns each big activation to the system and faults its pages in again at the next use. Raising
  two `mallopt` thresholds keeps them: 100 times fewer page faults, a fifth faster. Huge pages add a few percent.
- Micro-batches keep activations small on CPUs; on GPUs a minibatch goes through in one piece.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from ppo_lib.accel import attach, kernels
from ppo_lib.config import PPOConfig, UserError
from ppo_lib.model import ImpalaEncoder
from ppo_lib.procgen.env import usable_cores

CPU_MICRO_BATCH = 256  # steps, with activations of 1 MB each in bf16, or a quarter by impala.c
BLOCK, HUGE_PAGE = 1 << 29, 1 << 21  # bytes; three blocks hold what the preset `paper` needs
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CGROUPS = Path("/sys/fs/cgroup")
NO_GPU = "There is no CUDA GPU for torch: use --device cpu, or in Colab Runtime > Change runtime type > T4 GPU."


@dataclass
class Hardware:
    """Where and how a run computes."""

    device: torch.device
    precision: str  # of the encoder, as in the config: float32, bf16 or fp16
    micro_batch: int  # steps in one forward and backward pass
    reason: str  # one sentence on why; `prepare` adds what runs in C
    cuda_graphs: bool  # whether graphs.py can record on this device

    def prepare(self, policy: nn.Module) -> nn.Module:
        """Move a policy to the device, set its `autocast_dtype` if it has one, attach the CPU kernels; return it."""
        policy.to(self.device)
        dtype = DTYPES[self.precision]
        if hasattr(policy, "autocast_dtype"):
            policy.autocast_dtype = None if dtype == torch.float32 else dtype
        if self.device.type == "cpu":
            note = attach(policy, dtype) or kernels.load(dtype)[1]
            self.reason += f", {note}" * (note not in self.reason)
        return policy


def configure(config: PPOConfig, recorded: bool = False, local_rank: int = 0, local_size: int = 1) -> Hardware:
    """Choose device and precision, and set up allocator and threads for this process.

    recorded: the config is that of an existing run. A device or precision that this machine lacks is then replaced by
    one that it has, and `reason` says so; otherwise UserError is raised.
    local_rank, local_size: this process among those on this machine that train together and share its GPUs and cores.
    """
    device, reason = _pick_device(config.device, recorded, local_rank, local_size)
    precision, lacking, instead = config.precision, "fp16", "float32"
    if on_gpu := device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
        lacking, instead = ("", "bf16") if torch.cuda.is_bf16_supported(including_emulation=False) else ("bf16", "fp16")
    else:
        prepare_memory()
        torch.set_num_threads(cpu_threads(local_size))
    if precision == "auto":
        precision, why = (instead, "its fastest training format") if on_gpu else _faster_on_cpu()
        reason += f", {precision} ({why})"
    elif precision == lacking:
        if not recorded:
            raise UserError(f"{lacking} needs {'another' if on_gpu else 'a'} GPU; use --precision {instead} or auto.")
        precision, reason = instead, f"{reason}, {instead} (the run's {lacking} is not available here)"
    reason += ", TF32 for float32 products" * (on_gpu and torch.cuda.get_device_capability(device) >= (8, 0))
    return Hardware(device, precision, config.minibatch_size if on_gpu else CPU_MICRO_BATCH, reason, on_gpu)


@lru_cache(maxsize=1)
def prepare_memory() -> None:
    """Make glibc keep big freed blocks for reuse (mallopt 3), in huge pages (madvise 2); without glibc do nothing."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
    libc.mallopt(-1, (1 << 31) - 1)
    malloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(("malloc", libc))
    blocks = [malloc(BLOCK) for _ in range(3)]  # the heap grows: address space, of which only what is used costs
    for block in filter(None, blocks):
        first = ctypes.c_void_p(-(-block // HUGE_PAGE) * HUGE_PAGE)
        libc.madvise(first, ctypes.c_size_t(BLOCK - HUGE_PAGE), 14)  # MADV_HUGEPAGE of mman.h
        libc.free(ctypes.c_void_p(block))


def _pick_device(wish: str, recorded: bool, local_rank: int, local_size: int) -> tuple[torch.device, str]:
    """The device, and its name with a note if the config of an existing run names another."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    best = "cuda" if count else "cpu"
    note = " (a GPU is there: --device cuda uses it)" if recorded and count and wish == "cpu" else ""
    wish = best if wish == "auto" else wish
    if wish != "cpu" and (torch.device(wish).index or 0) >= count:
        if not recorded:
            raise UserError(f"There is no {wish}; this machine has cuda:0 to cuda:{count - 1}." if count else NO_GPU)
        wish, note = best, f" (the run's {wish} is not available here)"
    if wish == "cpu":
        used, cores = cpu_threads(local_size), usable_cores()
        return torch.device(wish), f"CPU with {f'{used} of ' * (used < cores)}{cores} core{'s' * (cores > 1)}{note}"
    device = torch.device(wish if local_size == 1 else f"cuda:{local_rank % count}")
    return device, torch.cuda.get_device_name(device) + note


def cpu_threads(processes: int = 1) -> int:
    """Threads for each of several processes: its share of the cores granted to all, or fewer if the user says so.

    The user says so with OMP_THREAD_LIMIT, which `--threads` sets, or OMP_NUM_THREADS.
    """
    granted = [usable_cores() / processes]
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # of a cgroup v2 or v1: a container
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            quota, period = map(float, " ".join((CGROUPS / file).read_text() for file in files).split())
            granted += [quota / period / processes] if quota > 0 else []
    for name in ["OMP_THREAD_LIMIT", *["OMP_NUM_THREADS"] * (processes == 1)]:  # torchrun sets this to 1 for several
        wish = os.environ.get(name, "").split(",")[0]
        granted += [int(wish)] if wish.isdecimal() else []
    return max(1, int(min(granted)))


def _faster_on_cpu() -> tuple[str, str]:
    """Time both precisions in turns, first on few images: emulated bf16 is slow. It must win by a tenth."""
    encoders = {"float32": ImpalaEncoder(), "bf16": ImpalaEncoder()}
    for precision, encoder in encoders.items():
        attach(encoder, DTYPES[precision])
    for images in (4, 64):
        best = dict.fromkeys(encoders, float("inf"))
        for precision, encoder in 3 * list(encoders.items()):
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                features = encoder(torch.zeros(images, 64, 64, 3, dtype=torch.uint8))
            features.float().sum().backward()
            best[precision] = min(best[precision], time.perf_counter() - start)
        if (ratio := best["float32"] / best["bf16"]) < 0.5:
            break
    return "bf16" if ratio > 1.1 else "float32", f"bf16 measured at {ratio:.2f}x the speed of float32"
