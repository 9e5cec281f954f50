"""ppo_lib beside Stable-Baselines3 and a plain textbook PPO, on the same work and machine, in turns.

    python benchmarks/compare.py                # writes results/benchmarks/compare.json and compare.png

Timings on shared machines drift: each round runs every contender once, and ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ppo_lib.bench import machine
from ppo_lib.config import preset
from ppo_lib.speed import configure

ROOT = Path(__file__).resolve().parent.parent
CONTENDERS = ("ppo_lib", "ppo_lib float32", "textbook", "sb3")
LABELS = {
    "ppo_lib": "ppo_lib",
    "ppo_lib float32": "ppo_lib, float32",
    "textbook": "textbook",
    "sb3": "Stable-Baselines3",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "benchmarks")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rounds = []
    for number in range(options.rounds):
        rounds.append({name: run(name) for name in CONTENDERS})
        shown = ", ".join(f"{name} {row['steps_per_second']:.0f} steps/s" for name, row in rounds[-1].items())
        print(f"round {number + 1}: {shown}", flush=True)
        result = {"machine": machine(configure(preset("paper"))), "rounds": rounds, "summary": summarise(rounds)}
        (options.output / "compare.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(result).savefig(options.output / "compare.png", dpi=100)
    for name, row in result["summary"].items():
        print(f"{LABELS[name]:<20}{row['steps_per_second']:>8.0f} steps/s {row['peak_memory_gb']:>6.2f} GB "
              f"{row['times_sb3']:>6.2f} x Stable-Baselines3 {row['times_sb3_range']}")  # fmt: skip


def run(name: str) -> dict[str, object]:
    """Run one contender in a process of its own."""
    kind, _, precision = name.partition(" ")
    command = [sys.executable, str(ROOT / "benchmarks" / "contender.py"), kind]
    command += ["--precision", precision] if precision else []
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def environment() -> dict[str, str]:
    """This process's environment, with the project importable."""
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


def summarise(rounds: list[dict[str, dict]]) -> dict[str, dict[str, object]]:
    """Medians over rounds; ratios to Stable-Baselines3 pair by pair."""
    summary = {}
    for name in CONTENDERS:
        rates = [row[name]["steps_per_second"] for row in rounds]
        ratios = [row[name]["steps_per_second"] / row["sb3"]["steps_per_second"] for row in rounds]
        summary[name] = {
            "steps_per_second": float(np.median(rates)),
            "peak_memory_gb": max(row[name]["peak_memory_gb"]["process"] for row in rounds),
            "times_sb3": float(np.median(ratios)),
            "times_sb3_range": [round(min(ratios), 2), round(max(ratios), 2)],
        }
    return summary


def draw(result: dict) -> Figure:
    """Steps per second of each contender: medians as bars, rounds as dots."""
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axis = figure.subplots()
    for i, name in enumerate(reversed(CONTENDERS)):
        row = result["summary"][name]
        axis.barh(i, row["steps_per_second"], color="#0072B2" if name.startswith("ppo_lib") else "#999999")
        axis.plot([r[name]["steps_per_second"] for r in result["rounds"]], [i] * len(result["rounds"]), "k.")
        axis.annotate(
            f" {row['steps_per_second']:.0f}   ({row['times_sb3']:.1f} x SB3, {row['peak_memory_gb']:.1f} GB)",
            (max(r[name]["steps_per_second"] for r in result["rounds"]), i), va="center",
        )  # fmt: skip
    axis.set_yticks(range(len(CONTENDERS)), [LABELS[name] for name in reversed(CONTENDERS)])
    axis.set_xlabel("steps per second, higher is better")
    axis.set_xlim(0, 1.45 * max(row["steps_per_second"] for row in result["summary"].values()))
    axis.set_title(f"{result['machine']['cpu']}, {result['machine']['hardware'].split(',')[0]}", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
