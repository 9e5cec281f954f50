"""How much does other work on the machine slow training down? OpenMP's wait policies, in turns.

    python benchmarks/busy.py  # about 10 minutes per round on two quiet CPU cores; writes results/benchmarks/busy.json

- A thread that waits for the others can spin, which is fast but takes a core away from other work, or sleep.
- Training is measured alone, beside a process that keeps one core busy, and beside a second training.
- The table becomes the last section of results/benchmarks/README.md, which compare.py keeps (`--draw`: only this).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from ppo_lib.config import PPOConfig, preset
from ppo_lib.study.table import markdown_table

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "results" / "benchmarks"
HEADING = "## On a busy machine"
CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # unset: ppo_lib's own choice
POLICIES = {
    "spin for milliseconds, the default of libgomp": {"GOMP_SPINCOUNT": "300000"},
    "sleep at once (`OMP_WAIT_POLICY=PASSIVE`)": {"OMP_WAIT_POLICY": "PASSIVE"},
    "ppo_lib: spin for a short time": {},
}
SITUATIONS = {"alone": (1, 0), "one core busy": (1, 1), "two at once, each": (2, 0)}  # trainings, busy cores
SPIN = "while True: pass"


def main() -> None:
    """Measure, unless told only to draw, and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="that a training is measured for, at least")
    parser.add_argument("--draw", action="store_true", help="only show again what was measured")
    parser.add_argument("--train", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(preset("paper", num_steps=64), Path(options.train), options.seconds)
    if not options.draw:
        from compare import machine

        result = {"machine": machine(), "rounds": []}
        for number in range(1, options.rounds + 1):
            rates = {policy: {name: measure(variables, *what, options.seconds) for name, what in SITUATIONS.items()}
                     for policy, variables in POLICIES.items()}  # fmt: skip
            print(f"round {number}:", *rates.items(), sep="\n  ", flush=True)
            result["rounds"].append(rates)
            (OUTPUT / "busy.json").write_text(json.dumps(result, indent=2) + "\n")
    page = (OUTPUT / "README.md").read_text().partition(f"\n{HEADING}")[0]
    (OUTPUT / "README.md").write_text(f"{page}\n{section(json.loads((OUTPUT / 'busy.json').read_text()))}")
    print(f"Written: {OUTPUT / 'README.md'}")


def train(config: PPOConfig, folder: Path, seconds: float) -> None:
    """Train without end; after a warm-up and `seconds`, print the steps per second."""
    from ppo_lib.train import Trainer

    trainer, updates = Trainer(config.replace(eval_interval=-1), folder, progress=False), 0
    trainer.update()
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        trainer.update()
        updates += 1
    print(updates * config.batch_size / elapsed, flush=True)
    while True:  # the other training must not become the only one
        trainer.update()


def measure(variables: dict[str, str], trainings: int, busy: int, seconds: float) -> float:
    """Mean steps per second of trainings that run at the same time, beside processes that each keep a core busy."""
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES} | variables
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for _ in range(busy):
            stack.enter_context(process("-c", SPIN))
        command = [__file__, "--seconds", str(seconds), "--train"]
        running = [stack.enter_context(process(*command, f"{folder}/{i}", env=environment)) for i in range(trainings)]
        return float(np.mean([float(one.stdout.readline()) for one in running]))


@contextmanager
def process(*arguments: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A Python process that is killed at the end."""
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, env=env) as started:
        try:
            yield started
        finally:
            started.kill()


def section(result: dict) -> str:
    """The section of the page: medians over the rounds, and each round, in Markdown."""
    rows = []
    for policy in POLICIES:
        rates = [[one[policy][name] for one in result["rounds"]] for name in SITUATIONS]
        rows.append([policy, *(f"{np.median(r):.0f} ({', '.join(f'{rate:.0f}' for rate in r)})" for r in rates)])
    return f"""{HEADING}

`python benchmarks/busy.py` on {result["machine"]["cores"]} CPU cores: {result["machine"]["cpu"]}; the same training \
with rollouts of 64 steps.
Steps per second, medians over {len(result["rounds"])} rounds (each round), in turns: alone, beside a process that \
keeps one core busy, and each of two trainings at once.

{markdown_table(["OpenMP threads without work", *SITUATIONS], rows)}
"""


if __name__ == "__main__":
    main()
