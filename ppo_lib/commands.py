"""What each command of the command line does; __main__.py says which flags it takes.

Modules load when their command runs, so that a mistyped flag is answered at once.
"""

from __future__ import annotations

import argparse
import difflib
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ppo_lib.config import FIELD_TYPES, PPOConfig, UserError, preset

if TYPE_CHECKING:
    from ppo_lib.train import Trainer

Options = argparse.Namespace


def train(options: Options) -> int | None:
    """Train a new run, or go on with one."""
    changes = {name: getattr(options, name) for name in FIELD_TYPES if name in options}
    if options.resume:
        from ppo_lib.runs import read_config

        if options.run is None or options.preset is not None:
            raise UserError("--resume goes on with a run's own settings: give --run NAME and no --preset.")
        run_dir = _find_run(options.run, options.results)
        config = read_config(run_dir).replace(**changes)
    else:
        name = options.preset or "quick"
        config = preset(name, **changes)
        run_dir = options.results / _checked_name(options.run or f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    from ppo_lib.accel.distributed import Group
    from ppo_lib.train import Trainer

    group = Group.join()
    run_dir = group.first(run_dir)  # the clock may have ticked between two processes
    try:
        finished = _train(Trainer(config, run_dir, resume=options.resume, group=group), options)
    finally:
        group.leave()
    if not finished:
        return 130
    if group.is_first:
        print(f"Run:    {run_dir}")
        if options.finish:
            _write_film(run_dir, options, levels=4)
            _write_report([run_dir], options)
    return 0


def _train(trainer: Trainer, options: Options) -> bool:
    """Run it to the end or to Ctrl-C. Returns whether it was the end."""
    try:
        if trainer.train():
            return True
    except KeyboardInterrupt:
        pass
    finally:
        trainer.close()
    from ppo_lib.accel.distributed import launcher
    from ppo_lib.runs import results_flag

    group, name, where = trainer.group, options.run or trainer.run_dir.name, results_flag(options.results)
    if group.is_first:
        print(
            f"\nStopped and saved at {trainer.saved_steps:,} of {trainer.config.total_steps:,} steps. Go on with:\n"
            f"  {launcher(group.local_size)} train --run {name} --resume{where}"
        )
    return False


def sweep(options: Options) -> int:
    """Train a grid of runs: every config flag takes one or several values. The same command goes on after a stop."""
    from ppo_lib.study.sweep import describe, plan, sweep

    values = {name: getattr(options, name) or [True] for name in FIELD_TYPES if name in options}
    runs = plan(options.results / _checked_name(options.sweep), options.preset or "quick", values)
    if options.dry_run:
        print(describe(runs))
        return 0
    return sweep(runs, options.engine, options.jobs)


def evaluate(options: Options) -> None:
    """Play complete episodes on train and on unseen levels; they go into the run's evaluation.csv, at its steps."""
    from ppo_lib.accel.hardware import configure
    from ppo_lib.checkpoint import load_policy
    from ppo_lib.evaluate import evaluate, write_episodes
    from ppo_lib.runs import SPLITS, read_evaluation
    from ppo_lib.stats import generalization_gap, summarize

    run_dir = _find_run(options.run, options.results)
    policy, config, steps = load_policy(run_dir)
    hardware = configure(config if options.device is None else config.replace(device=options.device), config.precision)
    policy = policy.to(hardware.device)
    policy.autocast_dtype = hardware.autocast_dtype
    played = {}
    for split in reversed(SPLITS):  # first the one whose levels may be refused
        levels = tuple(options.unseen_levels) if split == "unseen" and options.unseen_levels else None
        played[split] = evaluate(
            policy, config, split, options.episodes, seed=options.seed, greedy=options.greedy, levels=levels
        )
    returns = {split: [episode.return_ for episode in played[split]] for split in SPLITS}
    for split, values in returns.items():
        summary = summarize(values)
        print(
            f"{split:>6} levels, {len(values)} episodes: mean return {summary.mean}, interquartile mean {summary.iqm}"
            + _normalised(summary.mean.value, config)
        )
    print(f"generalisation gap: {generalization_gap(returns['train'], returns['unseen'])} (train minus unseen)")
    if options.unseen_levels is None:
        path = run_dir / ("evaluation_greedy.csv" if options.greedy else "evaluation.csv")
        most = max(len(read_evaluation(path).select(split, steps)) for split in SPLITS) if path.is_file() else 0
        if min(map(len, played.values())) < most:
            print(f"Not kept: {path} has {most} episodes of this policy; {most} or more take their place.")
        else:
            write_episodes(path, steps, played)


def video(options: Options) -> None:
    """Film a run's policy on train levels beside unseen ones, or several runs' on the same unseen levels."""
    runs = [_find_run(name, options.results) for name in options.runs]
    if len(runs) == 1:
        _write_film(runs[0], options, options.levels)
    else:
        _write_film_beside(runs, options, options.levels)


def report(options: Options) -> None:
    """Write figures and a page about one run or several."""
    _write_report([_find_run(name, options.results) for name in options.runs], options)


def bench(options: Options) -> None:
    """Measure steps per second, peak memory and where the time goes on this machine."""
    from ppo_lib.accel.bench import bench

    changes = {name: getattr(options, name) for name in FIELD_TYPES if name in options}
    bench(preset(options.preset or "paper", **changes), options.output)


def _normalised(mean: float, config: PPOConfig) -> str:
    from ppo_lib.stats import normalized_score

    if config.distribution_mode not in ("easy", "hard"):  # no constants are published for the others
        return ""
    return f", normalised {normalized_score(mean, config.env_name, config.distribution_mode):.3f}"


def _write_film(run_dir: Path, options: Options, levels: int) -> None:
    from ppo_lib.checkpoint import load_policy
    from ppo_lib.runs import film_path, seen_from_here
    from ppo_lib.video import film

    policy, config, _ = load_policy(run_dir)
    path = film(policy, config, film_path(run_dir, options.results), levels=levels)
    print(f"Film:   {seen_from_here(path)}")


def _write_film_beside(run_dirs: list[Path], options: Options, levels: int) -> None:
    from ppo_lib.checkpoint import load_policy
    from ppo_lib.runs import film_path, seen_from_here
    from ppo_lib.video import film_beside

    if levels % len(run_dirs):
        raise UserError(f"--levels must be a multiple of the {len(run_dirs)} runs, not {levels}.")
    players = []
    for run_dir in run_dirs:
        policy, config, _ = load_policy(run_dir)
        players.append((f"{run_dir.name}: {config.num_levels or 'unlimited'} training levels", policy, config))
    path = film_path(run_dirs[0], options.results)
    path = path.with_name(f"{'-beside-'.join(run_dir.name for run_dir in run_dirs)}.mp4")
    path = film_beside(players, path, rows=levels // len(run_dirs))
    print(f"Film:   {seen_from_here(path)}")


def _write_report(run_dirs: list[Path], options: Options) -> None:
    from ppo_lib.runs import seen_from_here
    from ppo_lib.study.report import write_report

    page = write_report(run_dirs, results=options.results)
    print(f"Report: {seen_from_here(page)}")


def _find_run(name: str, results: Path) -> Path:
    """The folder of a run, given by name or path. Raises UserError with the nearest name."""
    for folder in (results / name, Path(name)):
        if (folder / "config.json").is_file():
            return folder if folder.name.strip(".") else folder.resolve()
    found = [path for depth in ("*", "*/*") for path in sorted(results.glob(f"{depth}/config.json"))]
    known = [str(path.parent.relative_to(results)) for path in found]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(known) or 'none yet'}."
    raise UserError(f"There is no run '{name}' in {results}; {hint}")


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[\w][\w.+-]*", name):
        raise UserError(f"A run's name is made of letters, digits, '.', '_', '+' and '-', unlike '{name}'.")
    return name
