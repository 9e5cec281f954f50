"""The command line: python -m ppo_lib train | sweep | evaluate | video | report | bench.

- Every config field is a flag of `train` with the field's name; a flag overrides the preset's value.
  In `sweep` it takes one or several values.
- Whatever a user can mend (UserError) becomes one sentence on stderr and exit code 2, without a traceback.
- Modules load when their command runs, so that a mistyped flag is answered at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .config import FIELD_TYPES, PRESETS, PPOConfig, UserError, preset

if TYPE_CHECKING:
    from .train import Trainer

Options = argparse.Namespace


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 2 for a mistake of the user's, 130 after Ctrl-C."""
    try:
        options = _parser().parse_args(arguments)
        return options.command(options) or 0
    except (UserError, OSError) as error:
        if isinstance(error, OSError):  # a full disk, a folder that can't be written
            from .files import write_error

            error = write_error(error, Path(error.filename or "The output"))
        if os.environ.get("RANK", "0") == "0":  # of several processes under torchrun, one speaks
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def train(options: Options) -> int | None:
    """Train a new run, or go on with one."""
    changes = {name: getattr(options, name) for name in FIELD_TYPES if name in options}
    if options.resume:
        from .runs import read_config

        if options.run is None or options.preset is not None:
            raise UserError("--resume goes on with a run's own settings: give --run NAME and no --preset.")
        run_dir = _find_run(options.run, options.results)
        config = read_config(run_dir).replace(**changes)
    else:
        name = options.preset or "quick"
        config = preset(name, **changes)
        run_dir = options.results / _checked_name(options.run or f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    from .distributed import Group
    from .train import Trainer

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
    from .distributed import launcher

    group, run_dir = trainer.group, trainer.run_dir
    if group.is_first:
        print(
            f"\nStopped and saved at {trainer.saved_steps:,} of {trainer.config.total_steps:,} steps. Go on with:\n"
            f"  {launcher(group.local_size)} train --run {options.run or run_dir.name} --resume{_results_flag(options)}"
        )
    return False


def sweep(options: Options) -> int:
    """Train a grid of runs: every config flag takes one or several values. The same command goes on after a stop."""
    from .sweep import describe, plan, sweep

    values = {name: getattr(options, name) or [True] for name in FIELD_TYPES if name in options}
    runs = plan(options.results / _checked_name(options.sweep), options.preset or "quick", values)
    if options.dry_run:
        print(describe(runs))
        return 0
    return sweep(runs, options.engine, options.jobs)


def evaluate(options: Options) -> None:
    """Play complete episodes on train and on unseen levels; they go into the run's evaluation.csv, at its steps."""
    from .checkpoint import load_policy
    from .evaluate import evaluate, write_episodes
    from .runs import SPLITS, read_evaluation
    from .speed import configure
    from .stats import generalization_gap, summarize

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
        if options.episodes < most:
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
    from .bench import bench

    changes = {name: getattr(options, name) for name in FIELD_TYPES if name in options}
    bench(preset(options.preset or "paper", **changes), options.output)


def _normalised(mean: float, config: PPOConfig) -> str:
    from .stats import normalized_score

    if config.distribution_mode not in ("easy", "hard"):  # no constants are published for the others
        return ""
    return f", normalised {normalized_score(mean, config.env_name, config.distribution_mode):.3f}"


def _write_film(run_dir: Path, options: Options, levels: int) -> None:
    from .checkpoint import load_policy
    from .runs import film_path
    from .video import film

    policy, config, _ = load_policy(run_dir)
    print(f"Film:   {film(policy, config, film_path(run_dir, options.results), levels=levels)}")


def _write_film_beside(run_dirs: list[Path], options: Options, levels: int) -> None:
    from .checkpoint import load_policy
    from .runs import film_path
    from .video import film_beside

    if levels % len(run_dirs):
        raise UserError(f"--levels must be a multiple of the {len(run_dirs)} runs, not {levels}.")
    players = []
    for run_dir in run_dirs:
        policy, config, _ = load_policy(run_dir)
        players.append((f"{run_dir.name}: {config.num_levels or 'unlimited'} training levels", policy, config))
    path = film_path(run_dirs[0], options.results)
    path = path.with_name(f"{'-beside-'.join(run_dir.name for run_dir in run_dirs)}.mp4")
    print(f"Film:   {film_beside(players, path, rows=levels // len(run_dirs))}")


def _write_report(run_dirs: list[Path], options: Options) -> None:
    from .report import write_report

    page = write_report(run_dirs, results=options.results)
    print(f"Report: {page.relative_to(Path.cwd()) if page.is_relative_to(Path.cwd()) else page}")


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


def _results_flag(options: Options) -> str:
    return "" if options.results == Path("results") else f" --results {options.results}"


class _Parser(argparse.ArgumentParser):
    """argparse that raises UserError in place of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--?[\w-]+)", message)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            for action in self._actions:
                if isinstance(action, argparse._SubParsersAction):
                    flags += [f for sub in action.choices.values() for a in sub._actions for f in a.option_strings]
            close = difflib.get_close_matches(unknown[1], flags, n=1)
            if unknown[1] in flags:
                message = f"{unknown[1]} is a flag of another command."
            else:
                message = f"There is no flag {unknown[1]}" + (f"; did you mean {close[0]}?" if close else ".")
        raise UserError(f"{message.rstrip('.?')}{message[len(message.rstrip('.?')) :] or '.'} See {self.prog} --help.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m ppo_lib", description="PPO on Procgen, and how it generalises.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="name")

    def add(function, *flags: str, takes_config: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__)
        sub.set_defaults(command=function)
        if takes_config:
            sub.add_argument("--preset", metavar="NAME", help=f"{', '.join(PRESETS)} (default: {flags[0]})")
            for field in dataclasses.fields(PPOConfig):
                _add_field(sub, field.name, field.default, several=function is sweep)
        sub.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="folder of the runs")
        return sub

    sub = add(train, "quick", takes_config=True)
    sub.add_argument("--run", metavar="NAME", help="name of the run (default: from preset and time)")
    sub.add_argument("--resume", action="store_true", help="go on from the run's checkpoint")
    sub.add_argument("--finish", action="store_true", help="afterwards write its film and its report")
    sub = add(sweep, "quick", takes_config=True)
    sub.add_argument("--sweep", metavar="NAME", required=True, help="folder of the runs in results/")
    sub.add_argument("--engine", choices=("local", "ray"), default="local", help="this machine, or a Ray cluster")
    sub.add_argument("--jobs", type=_positive, default=1, metavar="N", help="runs at a time on each GPU, or on the CPU")
    sub.add_argument("--dry-run", action="store_true", help="list the runs and how far they are, and start nothing")
    sub = add(evaluate)
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("--episodes", type=_positive, default=256, metavar="N", help="complete episodes on each split")
    sub.add_argument("--greedy", action="store_true", help="take the likeliest action instead of sampling")
    sub.add_argument("--seed", type=int, default=0, help="of levels and actions")
    sub.add_argument("--device", help="auto, cpu or cuda (default: the run's)")
    sub.add_argument("--unseen-levels", type=int, nargs=2, metavar=("FIRST", "COUNT"), help="play these; only printed")
    sub = add(video)
    sub.add_argument("runs", metavar="RUN", nargs="+", help="several: a column each, on levels that none trained on")
    sub.add_argument("--levels", type=_positive, default=4, metavar="N", help="games in the picture")
    sub = add(report)
    sub.add_argument("runs", metavar="RUN", nargs="+")
    sub = add(bench, "paper", takes_config=True)
    sub.add_argument("--output", type=Path, metavar="FILE", help="also write the figures as JSON")
    return parser


def _add_field(parser: argparse.ArgumentParser, name: str, default: object, several: bool = False) -> None:
    """A flag for a config field; it sets nothing unless given. PPOConfig checks the value's range.

    several: it takes one or several values and sets a list; a bool's are true and false, and none means true.
    """
    flag, kind = f"--{name.replace('_', '-')}", FIELD_TYPES[name]
    if kind is bool and not several:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS)
        return

    def parse(text: str) -> object:
        if kind is bool:
            if text.lower() not in ("true", "false"):
                raise UserError(f"{flag} must be true or false, not '{text}'.")
            return text.lower() == "true"
        try:
            return float(text) if kind is int and re.fullmatch(r"\d+(\.\d+)?e\d+", text) else kind(text)
        except ValueError:
            words = "a whole number" if kind is int else "a number"
            raise UserError(f"{flag} must be {words}, not '{text}'.") from None

    parser.add_argument(flag, type=parse, default=argparse.SUPPRESS, metavar=kind.__name__.upper(), help=f"{default}",
                        nargs=("*" if kind is bool else "+") if several else None)  # fmt: skip
    if kind is bool:
        parser.add_argument(f"--no-{flag[2:]}", dest=name, action="store_const", const=[False],
                            default=argparse.SUPPRESS, help="false")  # fmt: skip


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise UserError(f"A whole number of at least 1 is needed there, not '{text}'.")
    return number


if __name__ == "__main__":
    sys.exit(main())
