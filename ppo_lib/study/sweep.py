"""A sweep: a grid of runs over any config fields, in results/NAME/, that goes on after whatever stops it.

- The same command starts it, goes on with it, adds to it (more seeds, more steps) and shows it once it is complete.
- A run's folder is named after what its config changes in the preset, so that its name doesn't depend on the grid.
- The seed varies slowest: a whole curve of one seed is there first, then the next seed's.
- Each run is a process of its own (sweep_run.py); an engine places them (engines.py). A run that fails stops no other.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, wait
from pathlib import Path

from tqdm import tqdm

from ppo_lib.config import FIELD_TYPES, PPOConfig, UserError, preset
from ppo_lib.runs import MEASURING_FIELDS, load_run
from ppo_lib.signals import interruptible
from ppo_lib.study.engines import ENGINES, Futures
from ppo_lib.study.sweep_run import LOG, RunFailed, SweepRun

# A run's name says these only where they vary: they change the machine or how much is done, not what is learned.
_UNNAMED_FIELDS = ("total_steps", "device", "precision", *MEASURING_FIELDS)


def plan(folder: Path, preset_name: str, values: Mapping[str, Sequence[object]]) -> list[SweepRun]:
    """The runs of a grid: every combination of the values of each config field, the rest from the preset.

    Raises UserError if there is nothing to combine, a combination is no valid config, or a run's folder holds
    something that it can't go on from. Writes nothing.
    """
    if not values:
        raise UserError("A sweep needs config fields with values, such as --num-levels 10 50 200 --seed 1 2.")
    for name, several in values.items():
        if not several:
            raise UserError(f"The sweep has no value for {name}: give one or several.")
    if (folder / "config.json").exists():
        raise UserError(f"{folder} is the folder of a run; give the sweep another name with --sweep.")
    base = preset(preset_name)
    fields = sorted(values, key=lambda name: name != "seed")  # sorting is stable: the seed first, the rest as given
    changes = [dict(zip(fields, cell, strict=True)) for cell in itertools.product(*(values[name] for name in fields))]
    runs = []
    for config in (preset(preset_name, **change) for change in changes):
        runs.append(SweepRun((folder / run_name(config, base, varied_fields(values))).resolve(), config))
    names = [run.name for run in runs]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise UserError(f"The grid has the run {double} twice: give each value of a field once.")
    for run in runs:
        run.check()
    return runs


def varied_fields(values: Mapping[str, Sequence[object]]) -> list[str]:
    """The fields with several values, in the order of the config."""
    return [name for name in FIELD_TYPES if len(values.get(name, ())) > 1]


def run_name(config: PPOConfig, base: PPOConfig, varied: Sequence[str] = ()) -> str:
    """Levels, then what differs from the preset `base`, then the seed: levels200-recurrent-seed1, unlimited-seed1."""
    parts = [f"levels{config.num_levels}" if config.num_levels else "unlimited"]
    for name, value in config.to_dict().items():
        if name in ("num_levels", "seed") or value == getattr(base, name):
            continue
        if name in _UNNAMED_FIELDS and name not in varied:
            continue
        if isinstance(value, bool):
            parts.append(name if value else f"no_{name}")
        else:
            parts.append(value.replace(":", "") if isinstance(value, str) else f"{name.removeprefix('num_')}{value}")
    return "-".join([*parts, f"seed{config.seed}"])


def describe(runs: Sequence[SweepRun]) -> str:
    """The runs in their order and how far each is, a line each, and the sum."""
    width = max(len(run.name) for run in runs)
    lines = []
    for run in runs:
        state = "complete" if run.complete else f"{run.trained:,} of" if run.trained else "new,"
        whole = "" if state == "complete" else f" {run.config.last_step:,} steps"
        lines.append(f"{run.name:<{width}}  {state}{whole}")
    steps = sum(run.config.last_step for run in runs)
    return "\n".join([*lines, f"{len(runs)} runs in {runs[0].run_dir.parent}, {steps:,} steps"])


def sweep(runs: Sequence[SweepRun], engine: str = "local", jobs: int = 1) -> int:
    """Bring all runs to their end, then print one table and write it, the figures and the report beside the runs.

    These hold every complete run of the folder, also those of earlier commands with another grid.
    engine: local or ray; jobs: runs at a time on each GPU (or on the CPU).
    Returns 0, 1 if a run failed, or 130 after Ctrl-C or SIGTERM (every run has saved then).
    """
    todo = [run for run in runs if not run.complete]
    if len(todo) < len(runs):
        print(f"{len(runs) - len(todo)} of {len(runs)} runs are complete already.")
    failures: dict[SweepRun, str] = {}
    if todo:
        try:
            with interruptible(), ENGINES[engine](todo, jobs) as futures:
                failures = _watch(futures, runs)
        except KeyboardInterrupt:
            complete = sum(run.complete for run in runs)
            print(f"\nStopped and saved; {complete} of {len(runs)} runs are complete. The same command goes on.")
            return 130
    for run, cause in failures.items():
        print(f"FAILED {run.name}: {cause} (log: {run.run_dir / LOG})", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {len(runs)} runs failed. The same command tries them again.", file=sys.stderr)
    finished = [run for run in runs if run not in failures]
    if finished:
        from ppo_lib.study.table import conclude

        everything = [*finished, *_runs_of_other_grids(runs)]
        everything.sort(key=lambda run: run.config.num_levels or math.inf)  # stable: the rest as given
        conclude([run.run_dir for run in everything])
    return 1 if failures else 0


def _runs_of_other_grids(runs: Sequence[SweepRun]) -> list[SweepRun]:
    """The complete runs that lie beside these and aren't among them, by name; one that can't be read is named."""
    folders = {path.parent.resolve() for path in runs[0].run_dir.parent.glob("*/config.json")}
    others = []
    for folder in sorted(folders - {run.run_dir for run in runs}):
        try:
            run = SweepRun(folder, load_run(folder).config)
            if run.complete:
                others.append(run)
        except UserError as error:  # it must not hide what this sweep has to say
            print(f"Left out of the table: {folder.name} ({error})", file=sys.stderr)
    return others


def _watch(futures: Futures, runs: Sequence[SweepRun]) -> dict[SweepRun, str]:
    """Show the progress over the whole grid until all futures are done. Returns run -> cause of those that failed."""
    failures = {}
    steps = {run: run.trained for run in runs}
    with tqdm(
        total=sum(run.config.last_step for run in runs), initial=sum(steps.values()), unit="step", unit_scale=True,
        smoothing=0, dynamic_ncols=True, mininterval=1 if sys.stderr.isatty() else 60,
    ) as bar:  # fmt: skip
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, timeout=1)
            for future in done:
                run = futures[future]
                try:
                    future.result()
                    bar.write(f"{run.name}: complete", file=sys.stderr)
                except (Exception, CancelledError) as error:
                    failures[run] = _cause(error)
                    bar.write(f"{run.name}: FAILED, {failures[run]}", file=sys.stderr)
            now = {run: run.trained for run in futures.values()}
            moving = [run.name for run, count in now.items() if 0 < count < run.config.last_step]
            steps.update(now)
            bar.set_postfix_str(f"{len(runs) - len(waiting) - len(failures)}/{len(runs)} runs {' '.join(moving)[:60]}",
                                refresh=False)  # fmt: skip
            bar.update(sum(steps.values()) - bar.n)
    return failures


def _cause(error: BaseException) -> str:
    """One line on why a run failed; Ray wraps the exception of a task."""
    error = getattr(error, "cause", None) or error
    if isinstance(error, RunFailed):
        return str(error)
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no more is known'}"
