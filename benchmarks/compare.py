"""ppo_lib beside Stable-Baselines3 and a plain textbook PPO, on the same work and machine, in turns.

    python benchmarks/compare.py                # about 40 minutes on two CPU cores; writes results/benchmarks/

- Timings on shared machines drift: each round runs every contender once, and ratios are taken within a round.
- Then `python -m ppo_lib bench` splits an update of the presets `paper` and `course` into its parts.
- compare.json and bench_*.json hold the figures; README.md and the two pictures show them. `--draw` makes these again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ppo_lib.accel.bench import machine
from ppo_lib.accel.hardware import configure
from ppo_lib.config import preset
from ppo_lib.drawing import figure_png

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "results" / "benchmarks"
CONTENDERS = {  # name -> what it is called, arguments of contender.py
    "ppo_lib": ("ppo_lib", ("ppo_lib",)),
    "recurrent": ("ppo_lib, with GRU", ("ppo_lib", "--recurrent")),
    "float32": ("ppo_lib, float32", ("ppo_lib", "--precision", "float32")),
    "textbook": ("textbook", ("textbook",)),
    "sb3": ("Stable-Baselines3", ("sb3",)),
}
PRESETS = ("paper", "course")  # whose updates are split into parts
OURS, OTHERS, FLOOR = "#0072B2", "#999999", "#E69F00"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--draw", action="store_true", help="only draw again what was measured")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if not options.draw:
        measure(options.rounds, options.output)
    show(options.output)


def measure(rounds: int, output: Path) -> None:
    """Run every contender once a round, then split the updates; what is measured is written after each round."""
    result = {"machine": machine(configure(preset("paper"))), "rounds": []}
    for number in range(1, rounds + 1):
        result["rounds"].append({name: run(arguments) for name, (_, arguments) in CONTENDERS.items()})
        shown = ", ".join(f"{name} {row['steps_per_second']:.0f} steps/s" for name, row in result["rounds"][-1].items())
        print(f"round {number}: {shown}", flush=True)
        (output / "compare.json").write_text(json.dumps(result, indent=2) + "\n")
    for name in PRESETS:
        path = output / f"bench_{name}.json"
        subprocess.run([sys.executable, "-m", "ppo_lib", "bench", "--preset", name, "--output", path], check=True)


def run(arguments: tuple[str, ...]) -> dict[str, object]:
    """Run one contender in a process of its own."""
    command = [sys.executable, str(ROOT / "benchmarks" / "contender.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def show(output: Path) -> None:
    """Write the page and the pictures from what was measured."""
    result = json.loads((output / "compare.json").read_text())
    benches = {name: json.loads((output / f"bench_{name}.json").read_text()) for name in PRESETS}
    (output / "compare.png").write_bytes(figure_png(draw(result), dpi=100))
    (output / "split.png").write_bytes(figure_png(draw_split(benches), dpi=100))
    (output / "README.md").write_text(page(result, benches))
    print(f"Written: {output / 'README.md'}")


def summarise(rounds: list[dict[str, dict]]) -> dict[str, dict[str, object]]:
    """Medians over rounds; ratios to Stable-Baselines3 round by round."""
    summary = {}
    for name in CONTENDERS:
        rates = [row[name]["steps_per_second"] for row in rounds]
        summary[name] = {
            "steps_per_second": float(np.median(rates)),
            "peak_memory_gb": max(row[name]["peak_memory_gb"]["process"] for row in rounds),
            "times_sb3": ratios(rounds, name, "sb3"),
        }
    return summary


def ratios(rounds: list[dict[str, dict]], name: str, other: str) -> list[float]:
    """How many times as fast as the other, in each round."""
    return [row[name]["steps_per_second"] / row[other]["steps_per_second"] for row in rounds]


def page(result: dict, benches: dict[str, dict]) -> str:
    """Both tables, in Markdown."""
    m, rounds = result["machine"], result["rounds"]
    place = m["gpu"] or f"{m['cores']} CPU cores"
    lines = [
        "# Speed",
        "",
        f"`python benchmarks/compare.py` on {place}: {m['cpu']}, {', '.join(m['bf16_instructions']) or 'no bf16'}; "
        f"torch {m['torch']}, Python {m['python']}, {m['procgen']}.",
        "",
        "StarPilot, 64 environments x 256 steps, 3 epochs of 8 minibatches, the same network and the same games. "
        f"Medians over {len(rounds)} round{'s' * (len(rounds) > 1)}; in each, every contender ran once, in a process "
        "of its own.",
        "",
        "![steps per second](compare.png)",
        "",
        "| contender | steps/s | peak memory (GB) | times Stable-Baselines3, round by round |",
        "|---|---:|---:|---|",
    ]
    for name, row in summarise(rounds).items():
        times = ", ".join(f"{ratio:.2f}" for ratio in row["times_sb3"])
        lines.append(
            f"| {CONTENDERS[name][0]} | {row['steps_per_second']:.0f} | {row['peak_memory_gb']:.2f} | {times} |"
        )
    cost = ", ".join(f"{ratio:.2f}" for ratio in ratios(rounds, "ppo_lib", "recurrent"))
    lines += [
        "",
        f"With a GRU an update costs {cost} times as much as without, round by round.",
        "",
        "- textbook: ppo_lib in float32, NCHW, one game step after the other, whole minibatches, plain malloc.",
        "- Stable-Baselines3: its own PPO, storage and optimiser, with its default settings for speed.",
        "",
        "Both run the network by torch's layers.",
        "",
        "## Where an update's time goes",
        "",
        "Each part is timed alone; its floor is the time of its unavoidable work at the rates measured on the spot.",
        "",
        "![seconds of an update by part](split.png)",
    ]
    for name, bench in benches.items():
        whole, rates = bench["seconds_per_update"]["whole"], bench["rates"]
        lines += [
            "",
            f"`{name}`: {bench['steps_per_second']:,.0f} steps/s, {bench['peak_memory_gb']['process']:.2f} GB; "
            f"{bench['machine']['hardware']}. The game alone {rates['game_steps_per_second']:,.0f} steps/s, matrix "
            f"products {rates['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s, memory "
            f"{rates['memory_bytes_per_second'] / 1e9:.1f} GB/s.",
            "",
            "| part | seconds an update | share | times its floor |",
            "|---|---:|---:|---:|",
        ]
        for part, row in bench["parts"].items():
            floor = f"{row['seconds'] / row['floor_seconds']:.1f}" if row["floor_seconds"] else ""
            lines.append(f"| {part} | {row['seconds']:.3f} | {row['seconds'] / whole:.1%} | {floor} |")
    return "\n".join(lines) + "\n"


def draw(result: dict) -> Figure:
    """Steps per second of each contender: medians as bars, rounds as dots."""
    rounds, summary = result["rounds"], summarise(result["rounds"])
    figure = Figure(figsize=(7, 3), layout="constrained")
    axis = figure.subplots()
    for place, (name, row) in enumerate(summary.items()):
        found = [r[name]["steps_per_second"] for r in rounds]
        axis.barh(place, row["steps_per_second"], color=OURS if CONTENDERS[name][1][0] == "ppo_lib" else OTHERS)
        axis.plot(found, [place] * len(found), "k.")
        text = f" {row['steps_per_second']:.0f}   ({np.median(row['times_sb3']):.1f} x, {row['peak_memory_gb']:.1f} GB)"
        axis.annotate(text, (max(found), place), va="center")
    axis.set_yticks(range(len(summary)), [CONTENDERS[name][0] for name in summary])
    axis.invert_yaxis()
    axis.set_xlabel("steps per second (in brackets: times Stable-Baselines3, peak memory)")
    axis.set_xlim(0, 1.4 * max(row["steps_per_second"] for row in summary.values()))
    place = result["machine"]
    axis.set_title(f"{place['gpu'] or place['cpu']}, {place['hardware'].split(',')[0]}", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def draw_split(benches: dict[str, dict]) -> Figure:
    """Seconds of each part of an update, and their floors."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    for axis, (name, bench) in zip(figure.subplots(1, len(benches), sharey=True), benches.items(), strict=True):
        parts = bench["parts"]
        places = range(len(parts))
        axis.barh(places, [row["seconds"] for row in parts.values()], color=OURS, label="measured")
        axis.barh(places, [row["floor_seconds"] for row in parts.values()], height=0.35, color=FLOOR, label="floor")
        axis.set_yticks(places, list(parts))
        axis.set_xlabel(f"seconds an update, {name}")
        axis.spines[["top", "right"]].set_visible(False)
    axis.invert_yaxis()
    axis.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
