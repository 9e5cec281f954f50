"""`python -m ppo_lib bench`: steps per second, peak memory, and where the time of an update goes."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from ppo_lib.config import PPOConfig
from ppo_lib.train import Trainer

try:
    import resource
except ImportError:  # Windows
    resource = None

WHOLE = 2  # updates that are timed as a whole, between one to warm up and one that is split into its parts
PARTS = ("games", "acting", "storing", "advantages", "minibatches", "forward", "backward", "optimiser", "rest")


def bench(config: PPOConfig, output: Path | None = None) -> dict[str, object]:
    """Measure and print; write `output` (JSON) if given. Returns what it writes: rate, memory, seconds by part."""
    with tempfile.TemporaryDirectory() as folder, closing(Trainer(config, f"{folder}/run", progress=False)) as trainer:
        trainer.update()
        start = now()
        for _ in range(WHOLE):
            trainer.update()
        rate = WHOLE * config.batch_size / (now() - start)
        parts = time_parts(trainer)
    memory, whole = peak_memory_gb(), sum(parts.values())
    rollout = sum(parts[name] for name in ("games", "acting", "storing"))
    print(f"{trainer.hardware.reason}; torch {torch.__version__}")
    print(f"{rate:,.0f} steps per second; peak memory: {', '.join(f'{n} {gb:.2f} GB' for n, gb in memory.items())}")
    print(f"One update: {whole:.2f} s, of which rollout {rollout:.2f} s, learning {whole - rollout:.2f} s")
    print("\n".join(f"  {part:<12}{seconds:>9.3f} s{seconds / whole:>8.1%}" for part, seconds in parts.items()))
    result = {"config": trainer.config.to_dict(), "steps_per_second": rate, "peak_memory_gb": memory, "parts": parts}
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=2) + "\n")
    return result


def time_parts(trainer: Trainer) -> dict[str, float]:
    """Seconds of one more update by part, each without the parts that it calls."""
    parts = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def clock(part: str, caller: str) -> Iterator[None]:
        start = now()
        yield
        seconds = now() - start
        parts[part] += seconds
        parts[caller] -= seconds

    def watch(part: str, caller: str, owner: object, *methods: str) -> None:
        for method in methods:
            setattr(owner, method, clock(part, caller)(getattr(owner, method)))

    for group in trainer.collector.groups:
        watch("games", "storing", group.env, "step_async", "step_wait")
    watch("acting", "storing", trainer.ppo, "act", "value")
    watch("storing", "rest", trainer.collector, "collect")
    watch("advantages", "rest", trainer.storage, "compute_advantages")
    watch("minibatches", "optimiser", trainer.storage, "batch")
    watch("forward", "backward", trainer.ppo, "loss")
    watch("backward", "optimiser", trainer.ppo, "gradient")
    watch("optimiser", "rest", trainer.ppo, "update")
    start = now()
    trainer.update()
    parts["rest"] += now() - start
    return parts


def now() -> float:
    """Seconds on a clock that waits for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory_gb() -> dict[str, float]:
    """The most memory that this process has held so far, in GB (10^9 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit if resource else float("nan")
    gpu = {"gpu": torch.cuda.max_memory_reserved() / 1e9} if torch.cuda.is_available() else {}
    return {"process": process / 1e9, **gpu}
