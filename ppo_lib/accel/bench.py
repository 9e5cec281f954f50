"""`python -m ppo_lib bench`: steps per second, peak memory, and where the time of an update goes."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch

from ppo_lib.config import PPOConfig
from ppo_lib.train import Trainer

WHOLE = 2  # updates that are timed as a whole, between one to warm up and one with a clock around each part
PARTS = ("games", "acting", "storing", "advantages", "minibatches", "forward", "backward", "optimiser", "rest")


def bench(config: PPOConfig, output: Path | None = None) -> dict[str, object]:
    """Measure and print; write `output` (JSON) if given. Returns what it writes: rate, memory, seconds by part."""
    spent, parts = [], dict.fromkeys(PARTS, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder) / "bench", progress=False)
        try:
            for update in range(1 + WHOLE + 1):
                if update > WHOLE:
                    time_parts(trainer, parts)
                start = now()
                trainer.update()
                spent.append(now() - start)
        finally:
            trainer.close()
    _, *whole, timed = spent
    parts["rest"] += timed
    rollout = sum(parts[name] for name in ("games", "acting", "storing"))
    rate, memory = WHOLE * config.batch_size / sum(whole), peak_memory_gb()
    print(f"{trainer.hardware.reason}; torch {torch.__version__}")
    print(f"{rate:,.0f} steps per second; peak memory: {', '.join(f'{n} {gb:.2f} GB' for n, gb in memory.items())}")
    print(f"One update: {timed:.2f} s, of which rollout {rollout:.2f} s, learning {timed - rollout:.2f} s")
    print("\n".join(f"  {part:<12}{seconds:>9.3f} s{seconds / timed:>8.1%}" for part, seconds in parts.items()))
    result = {"config": trainer.config.to_dict(), "steps_per_second": rate, "peak_memory_gb": memory, "parts": parts}
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=2) + "\n")
    return result


def time_parts(trainer: Trainer, parts: dict[str, float]) -> None:
    """From now on, add to `parts` the seconds of an update's parts, each without the parts that it calls."""

    def add(part: str, caller: str, owner: object, method: str) -> None:
        call = getattr(owner, method)

        def timed(*arguments: object, **options: object) -> object:
            start = now()
            result = call(*arguments, **options)
            seconds = now() - start
            parts[part] += seconds
            parts[caller] -= seconds
            return result

        setattr(owner, method, timed)

    for group in trainer.collector.groups:
        add("games", "storing", group.env, "step_async")
        add("games", "storing", group.env, "step_wait")
    add("acting", "storing", trainer.ppo, "act")
    add("acting", "storing", trainer.ppo, "value")
    add("storing", "rest", trainer.collector, "collect")
    add("advantages", "rest", trainer.storage, "compute_advantages")
    add("minibatches", "optimiser", trainer.storage, "batch")
    add("forward", "backward", trainer.ppo, "loss")
    add("backward", "optimiser", trainer.ppo, "gradient")
    add("optimiser", "rest", trainer.ppo, "update")


def now() -> float:
    """Seconds on a clock that waits for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory_gb() -> dict[str, float]:
    """The most memory that this process has held so far, in GB (10^9 bytes)."""
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    gpu = {"gpu": torch.cuda.max_memory_reserved() / 1e9} if torch.cuda.is_available() else {}
    return {"process": process / 1e9, **gpu}
