"""Train the runs of the exercise "Four sick runs" (notebook 05): a healthy one, and four with one bad setting each.

    taskset -c 0 nice -n 10 python benchmarks/sick_runs.py   # about six minutes per run on one busy core

A run keeps its settings and its log, config.json and metrics.csv in results/sick-runs/NAME. One that is there already
is left alone. To solve the exercise, look at metrics.csv only: config.json names the bad setting.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import torch

from ppo_lib.config import preset
from ppo_lib.train import Trainer

FOLDER = Path("results/sick-runs")
BASE: dict[str, object] = {  # small rollouts and many gradient steps: faults show after few game steps
    "num_envs": 32, "num_steps": 64, "total_steps": 40_960, "num_epochs": 3, "num_minibatches": 8, "recurrent": False,
    "learning_rate": 1e-3, "device": "cpu", "precision": "bf16", "eval_interval": -1,
}  # fmt: skip
CHANGES: dict[str, dict[str, object]] = {
    "healthy": {},
    "A": {"entropy_coef": 1.0},
    "B": {"learning_rate": 0.01},
    "C": {"value_coef": 0.0},
    "D": {"clip_range": 0.99},
}


def main(names: list[str]) -> None:
    """Train the runs of these names (default: all) that are not there yet, one after the other, on one core."""
    torch.set_num_threads(1)
    for name in names or CHANGES:
        run_dir = FOLDER / name
        if run_dir.exists() and not (run_dir / "checkpoint.pt").exists():
            continue
        with closing(Trainer(preset("quick", **BASE | CHANGES[name]), run_dir, resume=True)) as trainer:
            trainer.train()
        for file in run_dir.iterdir():
            if file.name not in ("config.json", "metrics.csv"):
                file.unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
