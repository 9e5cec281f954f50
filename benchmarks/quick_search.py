"""Which settings give the best agent in the time that `make train` has? A search at equal training time.

    python benchmarks/quick_search.py speed             # steps per second of each candidate, in turns, machine quiet
    python benchmarks/quick_search.py train screen 1/2  # the first of two processes that train a stage's candidates
    python benchmarks/quick_search.py page              # README.md, from the files in results/quick-search

A candidate is BASE with a few settings changed; its name says which. It trains for as many steps as its speed allows
in the stage's time. Since the speeds were measured alone, runs may share the machine: their own clocks don't count.
`train` skips finished runs and continues stopped ones. No seed of the search is the seed of another published run.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from statistics import median

import numpy as np

from ppo_lib.config import PPOConfig, as_flag, preset
from ppo_lib.runs import SPLITS, Run, load_runs, read_rows
from ppo_lib.stats import estimate
from ppo_lib.study.groups import experiments
from ppo_lib.study.table import markdown_table
from ppo_lib.train import Trainer

FOLDER, QUICK = Path("results/quick-search"), Path("results/quick")
FULL = 600  # seconds of training in `make train`
BASE: dict[str, object] = {
    "num_envs": 64, "num_steps": 64, "num_epochs": 2, "num_minibatches": 8, "learning_rate": 5e-4, "anneal_lr": False,
    "recurrent": True, "pooling": "flatten", "gamma": 0.999, "precision": "bf16",
}  # fmt: skip
GLOROT: dict[str, object] = {"encoder_init": "glorot"}
CANDIDATES: list[dict[str, object]] = [
    {},
    {"pooling": "average"},
    {"recurrent": False},
    {"recurrent": False, "pooling": "average"},
    {"learning_rate": 1e-3},
    GLOROT,
    GLOROT | {"learning_rate": 1e-3},
    GLOROT | {"gamma": 0.99},
    GLOROT | {"num_envs": 32},
    GLOROT | {"recurrent": False},
]
STAGES = {  # name -> seconds of training, seeds, candidates, steps between evaluations, episodes of each
    "screen": (180, [101], CANDIDATES, 0, 128),
    "full": (FULL, [1, 2], [GLOROT], 100_000, 256),
}
SAME_SPEED = ("encoder_init",)  # settings that change no speed
HEADER = ("candidate", "round", "steps_per_second", "precision")
ROUNDS, STEPS = 3, 8192  # of the speed measurement: rounds in turns, at least so many steps each

PAGE = """# The search for the settings of `quick`

Which settings give the best agent in {seconds} s of training on two CPU cores, so that `make train` ends within 15
minutes with set-up, evaluation, report and video? Each candidate trains for as many steps as it manages in that time at
its own speed, which is measured alone and in turns ([speed.csv](speed.csv)). Base: {base}.
Mean return of complete episodes, with 95% bootstrap intervals over episodes (one seed) or seeds and episodes.

In the first stage one change stands out: Glorot's initial weights, with or without the GRU. The differences between the
other candidates are within what another seed changes. Not searched: three epochs, other minibatches, rollouts of 32
steps, a decaying learning rate. In the second stage seed 0 is the run of `make train`, [quick](../quick).

{tables}

Made by `python benchmarks/quick_search.py page` from the CSV files in this folder; the commands that made them are in
that file's first lines.
"""


def name_of(changes: dict[str, object]) -> str:
    """A candidate's name: what differs from BASE."""
    return "-".join(as_flag(*item)[2:].replace(" ", "_") for item in changes.items()) or "base"


def timed(changes: dict[str, object]) -> str:
    """The name of the candidate whose speed this one has."""
    return name_of({field: value for field, value in changes.items() if field not in SAME_SPEED})


def config_of(changes: dict[str, object], **more: object) -> PPOConfig:
    """A candidate's config."""
    return preset("quick", **{**BASE, **changes, **more})


def speed() -> None:
    """Measure the speed of every candidate that any stage has."""
    candidates = {timed(changes): changes for _, _, some, *_ in STAGES.values() for changes in some}
    measure({name: config_of(changes) for name, changes in candidates.items()}, FOLDER / "speed.csv")


def measure(configs: dict[str, PPOConfig], file: Path, rounds: int = ROUNDS) -> None:
    """Train each for a few updates, in turns, and write a CSV: candidate, round, steps_per_second, precision.

    Evaluations are left out. What happens only after several updates, PPG's auxiliary phase, takes place once a round.
    """
    rows = []
    for turn in range(rounds):
        for name, config in configs.items():
            updates = config.ppg_interval if config.algorithm == "ppg" else -(-STEPS // config.batch_size)
            with (
                tempfile.TemporaryDirectory() as folder,
                closing(Trainer(config.replace(eval_interval=-1), Path(folder, "run"), progress=False)) as trainer,
            ):
                trainer.update()
                start = time.perf_counter()
                for _ in range(updates):
                    trainer.update()
                speed = round(updates * config.batch_size / (time.perf_counter() - start), 1)
                rows.append([name, turn, speed, trainer.config.precision])
            print(*rows[-1], flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as opened:
        csv.writer(opened, lineterminator="\n").writerows([HEADER, *rows])


def speeds(file: Path = FOLDER / "speed.csv") -> dict[str, float]:
    """Candidate -> median of its measured steps per second."""
    found: dict[str, list[float]] = {}
    for row in read_rows(file, ("candidate", "steps_per_second")):
        found.setdefault(row["candidate"], []).append(float(row["steps_per_second"]))
    return {name: median(values) for name, values in found.items()}


def train(stage: str, share: str = "1/1") -> None:
    """Train this process's share (I/N) of a stage's runs, one after the other."""
    seconds, seeds, candidates, interval, episodes = STAGES[stage]
    mine, processes = map(int, share.split("/"))
    runs = [(changes, seed) for changes in candidates for seed in seeds]
    for changes, seed in runs[mine - 1 :: processes]:
        name, steps = f"{stage}-{name_of(changes)}-seed{seed}", round(speeds()[timed(changes)] * seconds)
        config = config_of(changes, seed=seed, total_steps=steps, eval_interval=interval, eval_episodes=episodes)
        if (FOLDER / name / "evaluation.csv").exists():
            continue
        flags = ["--resume"]
        if not (FOLDER / name / "checkpoint.pt").exists():
            flags = [
                "--preset",
                "quick",
                *(word for item in config.to_dict().items() for word in as_flag(*item).split()),
            ]
        command = [sys.executable, "-m", "ppo_lib", "train", "--results", str(FOLDER), "--run", name, *flags]
        subprocess.run(command, check=True)


def returns(runs: list[Run], split: str) -> list[np.ndarray]:
    """The returns of each run's last evaluation on a split."""
    return [run.final(split).returns for run in runs]


def page() -> None:
    """Write README.md."""
    tables = []
    for stage, (seconds, *_) in STAGES.items():
        folders = sorted(path.parent for path in FOLDER.glob(f"{stage}-*/evaluation.csv"))
        runs = load_runs([*folders, *([QUICK] if seconds == FULL else [])])
        rows = []
        for group in experiments(runs):
            name = group[0].name.removeprefix(f"{stage}-").rpartition("-seed")[0]
            seeds = " ".join(str(run.config.seed) for run in group)
            rows.append([name, group[0].steps, seeds, *(estimate(returns(group, split)) for split in SPLITS)])
        rows.sort(key=lambda row: -row[-1].value)
        table = markdown_table(["candidate", "steps", "seeds", "training levels", "unseen levels"], rows)
        tables.append(f"## {stage}: {seconds} s of training\n\n{table}")
    base = ", ".join(f"`{as_flag(*item)}`" for item in BASE.items())
    text = PAGE.format(seconds=FULL, base=base, tables="\n\n".join(tables))
    (FOLDER / "README.md").write_text(text)


if __name__ == "__main__":
    {"speed": speed, "train": train, "page": page}[sys.argv[1]](*sys.argv[2:])
