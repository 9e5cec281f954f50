"""ppo_lib beside Stable-Baselines3 and a plain textbook PPO, on the same work and machine, in turns.

    python benchmarks/compare.py                # about 40 minutes on two CPU cores; writes results/benchmarks/

- Timings on shared machines drift: each round runs every contender once, and ratios are taken within a round.
- Then `python -m ppo_lib bench` splits an update of the presets `paper` and `course` into its parts.
- compare.json and bench_*.json hold the measurements; README.md and compare.png show them (`--draw` makes only these).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from ppo_lib.accel.bench import PARTS
from ppo_lib.accel.hardware import configure
from ppo_lib.config import preset
from ppo_lib.plots import GREY, figure_png, new_figure, run_color
from ppo_lib.procgen.env import usable_cores
from ppo_lib.procgen.library import procgen_build
from ppo_lib.study.table import markdown_table

ROOT = Path(__file__).resolve().parent.parent
CONTENDERS = {  # name -> its label, arguments of contender.py
    "ppo_lib": ("ppo_lib", ("ppo_lib",)),
    "recurrent": ("ppo_lib, with GRU", ("ppo_lib", "--recurrent")),
    "float32": ("ppo_lib, float32", ("ppo_lib", "--precision", "float32")),
    "textbook": ("textbook", ("textbook",)),
    "sb3": ("Stable-Baselines3", ("sb3",)),
}
PRESETS = ("paper", "course")  # whose updates are split into parts


def main() -> None:
    """Measure, unless told only to draw, and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "benchmarks")
    parser.add_argument("--draw", action="store_true", help="only show again what was measured")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if not options.draw:
        measure(options.rounds, options.output)
    show(options.output)


def measure(rounds: int, output: Path) -> None:
    """Run every contender once per round, then split the updates; the file is written after each round."""
    result = {"machine": machine(), "rounds": []}
    for number in range(1, rounds + 1):
        result["rounds"].append({name: run(arguments) for name, (_, arguments) in CONTENDERS.items()})
        print(f"round {number}:", {name: round(row["steps_per_second"]) for name, row in result["rounds"][-1].items()})
        (output / "compare.json").write_text(json.dumps(result, indent=2) + "\n")
    for name in PRESETS:
        path = output / f"bench_{name}.json"
        subprocess.run([sys.executable, "-m", "ppo_lib", "bench", "--preset", name, "--output", path], check=True)


def run(arguments: tuple[str, ...]) -> dict[str, object]:
    """Run one contender in a process of its own; what it prints last is its measurement."""
    command = [sys.executable, str(ROOT / "benchmarks" / "contender.py"), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict[str, object]:
    """What is measured on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return {
        "cpu": next((line.split(": ")[1] for line in info.splitlines() if "model name" in line), platform.processor()),
        "cores": usable_cores(),
        "bf16_instructions": [name for name in ("avx512_bf16", "amx_bf16") if name in info],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "procgen": procgen_build().package,
        "hardware": configure(preset("paper")).reason,
    }


def show(output: Path) -> None:
    """Write the page and the figure from what was measured."""
    result = json.loads((output / "compare.json").read_text())
    benches = {name: json.loads((output / f"bench_{name}.json").read_text()) for name in PRESETS}
    (output / "compare.png").write_bytes(figure_png(draw(result)))
    target = output / "README.md"
    _, *busy = target.read_text().partition("\n## On a busy machine") if target.exists() else [""]  # busy.py's section
    target.write_text(page(result, benches) + "".join(busy))
    print(f"Written: {target}")


def summarize(rounds: list[dict[str, dict]]) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Of each contender: the steps per second in each round, and the most memory that its process held, GB."""
    rates = {name: np.array([row[name]["steps_per_second"] for row in rounds]) for name in CONTENDERS}
    return rates, {name: max(row[name]["peak_memory_gb"]["process"] for row in rounds) for name in CONTENDERS}


def page(result: dict, benches: dict[str, dict]) -> str:
    """Both tables, in Markdown."""
    m, (rates, memory) = result["machine"], summarize(result["rounds"])

    def ratios(name: str, other: str) -> str:
        return ", ".join(f"{ratio:.2f}" for ratio in rates[name] / rates[other])

    header = ("contender", "steps/s", "peak memory (GB)", "speed relative to Stable-Baselines3, round by round")
    rows = [(label, round(np.median(rates[name])), round(memory[name], 2), ratios(name, "sb3"))
            for name, (label, _) in CONTENDERS.items()]  # fmt: skip
    columns, speed = [("part", *PARTS)], ""
    for name, bench in benches.items():
        seconds = [bench["parts"][part] for part in PARTS]
        columns.append((f"`{name}` (s)", *(round(own, 3) for own in seconds)))
        columns.append(("share", *(f"{own / sum(seconds):.1%}" for own in seconds)))
        speed += f"`{name}`: {bench['steps_per_second']:,.0f} steps/s, {bench['peak_memory_gb']['process']:.2f} GB. "
    parts, *split = zip(*columns, strict=True)
    return f"""# Speed

`python benchmarks/compare.py` on {m["gpu"] or f"{m['cores']} CPU cores"}: {m["cpu"]}, \
{", ".join(m["bf16_instructions"]) or "no bf16"}; torch {m["torch"]}, Python {m["python"]}, {m["procgen"]}.

StarPilot, 64 environments x 256 steps, 3 epochs of 8 minibatches, the same network and the same games. Rounds: \
{len(result["rounds"])}; in each, every contender ran once, in a process of its own. Steps per second are medians.

![steps per second](compare.png)

{markdown_table(header, rows)}

Without the GRU the speed is {ratios("ppo_lib", "recurrent")} times that with it, round by round.

- textbook: ppo_lib in float32, NCHW, one game step after the other, whole minibatches, default malloc.
- Stable-Baselines3: its own PPO, storage and optimiser, with its default settings for speed.

Both run the network with torch's layers.

## Where the time of an update goes

{speed}{m["hardware"]}.

{markdown_table(parts, split)}
"""


def draw(result: dict) -> Figure:
    """Steps per second of each contender: medians as bars, rounds as dots."""
    place, (rates, memory) = result["machine"], summarize(result["rounds"])
    figure, [axis] = new_figure(1, 1, height=2.6)
    for y, (name, (_, arguments)) in enumerate(CONTENDERS.items()):
        found, ratio = rates[name], np.median(rates[name] / rates["sb3"])
        axis.barh(y, np.median(found), color=run_color(0) if arguments[0] == "ppo_lib" else GREY)
        axis.plot(found, [y] * len(found), "k.")
        text = f" {np.median(found):.0f} ({ratio:.1f}x, {memory[name]:.1f} GB)"
        axis.annotate(text, (max(found), y), va="center", fontsize=8)
    axis.set_yticks(range(len(CONTENDERS)), [label for label, _ in CONTENDERS.values()])
    axis.invert_yaxis()
    axis.set_xlabel("steps per second (relative to Stable-Baselines3, peak memory)", fontsize=8.5)
    axis.set_xlim(0, 1.45 * max(map(max, rates.values())))
    axis.set_title(f"{place['gpu'] or place['cpu']}, {place['hardware'].split(',')[0]}", fontsize=9.5)
    return figure


if __name__ == "__main__":
    main()
