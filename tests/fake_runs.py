"""A run folder made of random numbers, for tests of what reads one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ppo_lib.config import PPOConfig

METRICS = (
    "steps", "seconds", "episodes", "return_mean", "length_mean", "policy_loss", "value_loss", "entropy", "approx_kl",
    "clip_fraction", "explained_variance", "grad_norm", "learning_rate", "steps_per_second",
)  # fmt: skip


def make_run(folder: Path, shift: float = 0.0, updates: int = 12, **changes: object) -> Path:
    """Write config.json, metrics.csv and an evaluation.csv of 64 episodes a split, at half time and at the end."""
    folder.mkdir(parents=True)
    config = PPOConfig.from_dict(changes)
    (folder / "config.json").write_text(config.to_json())
    rng = np.random.default_rng(config.seed)
    with (folder / "metrics.csv").open("w") as file:
        file.write(",".join(METRICS) + "\n")
        for update in range(1, updates + 1):
            done = update / updates
            noise = rng.random()
            row = [
                update * config.batch_size, 40 * update, 150 * update, "" if update == 1 else 1.5 + 8 * done + noise,
                90 + 80 * done, -0.01 * noise, 0.3 - 0.1 * noise, 2.7 - 0.6 * done, 0.006 + 0.004 * noise,
                0.1 * noise, 0.7 * done, 0.3, 5e-4, 400,
            ]  # fmt: skip
            file.write(",".join(map(str, row)) + "\n")
    with (folder / "evaluation.csv").open("w") as file:
        file.write("steps,split,level_seed,return,length\n")
        for steps in (updates // 2 * config.batch_size, updates * config.batch_size):
            for split, mean, levels in (("train", 7.0, 20), ("unseen", 5.0, 10**6)):
                for value in rng.gamma(1.2, (mean + shift) / 1.2, 64):
                    level = rng.integers(levels) + (config.unseen_levels[0] if split == "unseen" else 0)
                    file.write(f"{steps},{split},{level},{value:.0f},{int(80 + 10 * value)}\n")
    return folder
