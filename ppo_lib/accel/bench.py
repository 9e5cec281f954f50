"""`python -m ppo_lib bench`: steps per second, peak memory, and where the time of an update goes.

- Whole updates are timed as training runs them; each part is then timed alone, with the same calls on the same data.
- Beside each part stands its floor: the time it would take if nothing but its unavoidable work were left. The rates
  behind the floors (matrix products, memory, the game alone) are measured on the spot.
- Nothing is written into results/ unless asked for, and the run it times is thrown away.
"""

from __future__ import annotations

import copy
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ppo_lib.accel.hardware import Hardware, synchronize, usable_cores
from ppo_lib.config import PPOConfig
from ppo_lib.envs import make_env, procgen_build
from ppo_lib.evaluate import MAX_ENVS
from ppo_lib.policy import ActorCritic
from ppo_lib.ppo import PPO, normalize_advantage, ppo_loss
from ppo_lib.runs import SPLITS
from ppo_lib.train import Trainer

UPDATES = 2  # whole updates that are timed, after one to warm up
EPISODE_STEPS = 400  # of a trained agent, whose evaluation is reckoned with


def bench(config: PPOConfig, output: Path | None = None) -> dict[str, object]:
    """Measure, print, and write `output` (JSON) if given.

    config: what to measure. Returns what it writes: machine, config, steps_per_second, peak_memory_gb, parts (seconds
    an update, with floors) and rates.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder) / "bench", progress=False)
        try:
            result = _measure(trainer)
        finally:
            trainer.close()
    _show(result)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=2) + "\n")
        print(f"Written: {output}")
    return result


def machine(hardware: Hardware) -> dict[str, object]:
    """What the figures were measured on."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    flags = next((line for line in _lines("/proc/cpuinfo") if line.startswith("flags")), "")
    return {
        "cpu": cpu,
        "cores": usable_cores(),
        "bf16_instructions": [name for name in ("avx512_bf16", "amx_bf16") if name in flags],
        "gpu": torch.cuda.get_device_name(hardware.device) if hardware.device.type == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "procgen": procgen_build().package,
        "hardware": hardware.reason,
        "precision": hardware.precision,
        "micro_batch": hardware.micro_batch,
    }


def peak_memory_gb(device: torch.device) -> dict[str, float]:
    """The most memory that this process has held so far, in GB (10^9 bytes)."""
    import resource  # exists on Unix alone

    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)}
    if device.type == "cuda":
        peak["gpu"] = torch.cuda.max_memory_reserved(device)
    return {name: size / 1e9 for name, size in peak.items()}


def _measure(trainer: Trainer) -> dict[str, object]:
    config, hardware, ppo, storage = trainer.config, trainer.hardware, trainer.ppo, trainer.storage
    device = hardware.device
    metrics = trainer.update()
    whole, rollout, learning = [], [], []
    for _ in range(UPDATES):
        start = _clock(device)
        last_value = trainer.collect()
        rollout.append(_clock(device) - start)
        storage.estimate(last_value, config.gamma, config.gae_lambda)
        middle = _clock(device)
        ppo.optimize(storage)
        learning.append(_clock(device) - middle)
        whole.append(_clock(device) - start)
    memory = peak_memory_gb(device)

    steps, epochs = config.batch_size, config.num_epochs
    rates = {
        "game_steps_per_second": _game_rate(config),
        "matmul_flops_per_second": _matmul_rate(device, hardware.dtype),
        "memory_bytes_per_second": _memory_rate(device),
    }
    forward_flops, backward_flops = _flops(trainer.policy, storage.obs[0])
    half = trainer.collector.halves[-1]
    obs = storage.obs[0, half.envs]
    batches = list(storage.minibatches(config.num_minibatches, torch.Generator().manual_seed(0)))
    forward, backward = _passes(ppo, batches[0], hardware)
    minibatches = epochs * config.num_minibatches
    parts = {  # seconds an update, floor
        "game": (steps / rates["game_steps_per_second"],) * 2,
        "acting": (
            config.num_steps
            * len(trainer.collector.halves)
            * _time(lambda: ppo.predict(obs, half.state, half.reset), device),
            steps * forward_flops / rates["matmul_flops_per_second"],
        ),
        "advantages": (
            _time(lambda: storage.estimate(last_value, config.gamma, config.gae_lambda), device),
            5 * storage.reward.nbytes / rates["memory_bytes_per_second"],
        ),
        "copies": (
            epochs * _time(lambda: [0 for _ in storage.minibatches(config.num_minibatches)], device, repeats=2),
            epochs * 2 * storage.obs.nbytes / rates["memory_bytes_per_second"],
        ),
        "forward": (minibatches * forward, epochs * steps * forward_flops / rates["matmul_flops_per_second"]),
        "backward": (minibatches * backward, epochs * steps * backward_flops / rates["matmul_flops_per_second"]),
        "optimiser": (
            minibatches * _time(lambda: _optimiser_step(ppo), device),
            minibatches * 7 * 4 * _size(trainer.policy) / rates["memory_bytes_per_second"],
        ),
        **{name: (seconds, 0.0) for name, seconds in _between_updates(trainer, metrics).items()},
    }
    update = float(np.median(whole))
    return {
        "machine": machine(hardware),
        "config": config.to_dict(),
        "steps_per_second": steps / update,
        "seconds_per_update": {
            "whole": update,
            "rollout": float(np.median(rollout)),
            "learning": float(np.median(learning)),
        },
        "peak_memory_gb": memory,
        "parts": {name: {"seconds": seconds, "floor_seconds": floor} for name, (seconds, floor) in parts.items()},
        "rates": rates,
    }


def _between_updates(trainer: Trainer, metrics: dict[str, float]) -> dict[str, float]:
    """Seconds an update that logging, checkpoints and evaluations take, spread over the updates between them."""
    config, device = trainer.config, trainer.hardware.device
    trainer._boundary = trainer.state_dict()  # what save writes
    obs = torch.zeros(MAX_ENVS, *trainer.storage.obs.shape[2:], dtype=torch.uint8, device=device)
    state, reset = trainer.policy.initial_state(MAX_ENVS), torch.zeros(MAX_ENVS, dtype=torch.bool, device=device)
    with torch.no_grad():
        step = _time(lambda: trainer.policy(obs, state, reset), device)
    interval = config.eval_interval or trainer.config.last_step
    evaluations = 0.0 if interval < 0 else config.batch_size / interval
    return {
        "logging": _time(lambda: (trainer.logger.update(metrics), trainer.state_dict()), device),
        "checkpoints": _time(trainer.save, device) * config.batch_size / config.checkpoint_interval,
        "evaluations": step * len(SPLITS) * config.eval_episodes * EPISODE_STEPS / MAX_ENVS * evaluations,
    }


def _passes(ppo: PPO, batch: object, hardware: Hardware) -> tuple[float, float]:
    """Seconds of the forward and of the backward passes of one minibatch, in its micro-batches."""
    batch.advantage = normalize_advantage(batch.advantage)
    units = max(1, hardware.micro_batch // (batch.action.numel() // len(batch.state)))
    best = [float("inf")] * 2
    for _ in range(3):
        spent = [0.0, 0.0]
        for micro in batch.split(units):
            start = _clock(hardware.device)
            logits, value, _ = ppo.policy(micro.obs, micro.state, micro.reset)
            loss, _ = ppo_loss(logits, value, micro, ppo.coefficients)
            middle = _clock(hardware.device)
            loss.backward()
            spent[0] += middle - start
            spent[1] += _clock(hardware.device) - middle
        best = [min(pair) for pair in zip(best, spent, strict=True)]
    return best[0], best[1]


def _optimiser_step(ppo: PPO) -> None:
    torch.nn.utils.clip_grad_norm_(ppo.policy.parameters(), 1e9)
    ppo.optimizer.step()


def _flops(policy: ActorCritic, obs: torch.Tensor) -> tuple[float, float]:
    """Floating-point operations a step: forward, and backward."""
    n, policy = len(obs), copy.deepcopy(policy)
    policy.encoder.by_torch()  # the counter knows torch's operations
    state, reset = policy.initial_state(n), torch.zeros(n, dtype=torch.bool, device=obs.device)
    with FlopCounterMode(display=False) as forward:
        logits, value, _ = policy(obs, state, reset)
    with FlopCounterMode(display=False) as backward:
        (logits.sum() + value.sum()).backward()
    return forward.get_total_flops() / n, backward.get_total_flops() / n


def _game_rate(config: PPOConfig, steps: int = 200) -> float:
    """Steps per second of all the games together, with random actions and no network."""
    env = make_env(config)
    actions = np.random.default_rng(0).integers(0, 15, (steps, config.num_envs))
    env.reset()
    start = time.perf_counter()
    for action in actions:
        env.step(action)
    rate = steps * config.num_envs / (time.perf_counter() - start)
    env.close()
    return rate


def _matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """Floating-point operations per second of a large matrix product."""
    a = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / _time(lambda: a @ a, device, repeats=10)


def _memory_rate(device: torch.device, size: int = 2**28) -> float:
    """Bytes read and written per second by a large copy."""
    a = torch.zeros(size, dtype=torch.uint8, device=device)
    b = torch.ones_like(a)
    return 2 * size / _time(lambda: b.copy_(a), device)


def _time(function: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Seconds a call: the best of several."""
    function()
    best = float("inf")
    for _ in range(repeats):
        start = _clock(device)
        function()
        best = min(best, _clock(device) - start)
    return best


def _clock(device: torch.device) -> float:
    synchronize(device)
    return time.perf_counter()


def _size(policy: ActorCritic) -> int:
    return sum(parameter.numel() for parameter in policy.parameters())


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _show(result: dict) -> None:
    whole = result["seconds_per_update"]
    print(f"{result['machine']['cpu']}; {result['machine']['hardware']}; torch {result['machine']['torch']}")
    print(
        f"{result['steps_per_second']:,.0f} steps per second "
        f"({whole['whole']:.2f} s an update: rollout {whole['rollout']:.2f} s, learning {whole['learning']:.2f} s)"
    )
    print("peak memory: " + ", ".join(f"{name} {size:.2f} GB" for name, size in result["peak_memory_gb"].items()))
    print(f"\n{'part, timed alone':<22}{'s/update':>10}{'share':>8}{'floor s':>10}{'x floor':>9}")
    for name, part in result["parts"].items():
        seconds, floor = part["seconds"], part["floor_seconds"]
        times = f"{seconds / floor:>9.1f}" if floor else f"{'':>9}"
        print(f"{name:<22}{seconds:>10.3f}{seconds / whole['whole']:>8.1%}{floor:>10.3f}{times}")
    rates = result["rates"]
    print(
        f"\nmeasured here: game alone {rates['game_steps_per_second']:,.0f} steps/s, "
        f"matrix products {rates['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s, "
        f"memory {rates['memory_bytes_per_second'] / 1e9:.1f} GB/s"
    )
