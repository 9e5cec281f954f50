"""The command line: python -m ppo_lib train | sweep | evaluate | video | report | bench.

- Every config field is a flag of `train`, which overrides the preset; `sweep` takes one or several values of each.
- What a user can fix (UserError) becomes one sentence on stderr and exit code 2, without a traceback.
- Modules load when their command runs: --help and a mistyped flag are answered at once.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import sys
import time
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NoReturn

from ppo_lib import runs
from ppo_lib.config import PRESETS, PPOConfig, UserError, field_types, preset, suggest

FIELDS = field_types(PPOConfig)


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 2 for something that the user can fix, 130 after Ctrl-C."""
    try:
        options = _parser().parse_args(arguments)
        options.results = options.results.expanduser()  # a shell leaves the ~ of --results=~/runs alone
        options.changes = {name: getattr(options, name) for name in FIELDS if name in options}
        if getattr(options, "threads", None):
            os.environ["OMP_THREAD_LIMIT"] = str(options.threads)  # torch reads it when it is loaded
        return options.command(options) or 0
    except (UserError, OSError) as error:
        if isinstance(error, OSError):
            error = UserError(f"{error.filename or 'The output'}: {error.strerror or error}.")
        if os.environ.get("RANK", "0") == "0":  # of several processes under torchrun, one speaks
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        _say()  # flushes: what a closed pipe has not taken must not fail at exit


def _say(*lines: object) -> None:
    """Print lines; a closed pipe or terminal ends no command."""
    try:
        print(*lines, sep="\n", end="\n" if lines else "", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def train(options: Namespace) -> int:
    """Train a new run, or continue one."""
    if options.resume:
        if options.run is None or options.preset is not None:
            raise UserError("--resume continues a run with its own settings: give --run NAME and no --preset.")
        run_dir = runs.find_run(options.run, options.results)
        config = runs.read_config(run_dir).replace(**options.changes)
    else:
        name = options.preset or "quick"
        config = preset(name, **options.changes)
        run_dir = options.results / _checked_name(options.run or f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    from ppo_lib.accel.distributed import launcher, rank, trainer_class
    from ppo_lib.checkpoint import interruptible, load_checkpoint

    finished, kind = False, trainer_class()
    with interruptible(), closing(kind(config, run_dir, resume=options.resume)) as trainer, suppress(KeyboardInterrupt):
        finished = trainer.train()
    if rank() == 0 and finished:
        _say(f"Run:    {trainer.run_dir}")
        if options.finish:
            options.runs, options.levels = [str(trainer.run_dir.resolve())], 4
            try:
                video(options)
            except UserError as error:  # the report is written all the same
                print(f"No video: {error}", file=sys.stderr)
            report(options)
    elif rank() == 0:
        steps = f"{load_checkpoint(trainer.run_dir)['steps']:,} of {config.total_steps:,}"  # what is on disk
        name = shlex.quote(runs.name_in(trainer.run_dir, options.results))
        command = f"{launcher(trainer.processes)} train --run {name} --resume{runs.results_flag(options.results)}"
        _say(f"\nStopped and saved at {steps} steps. Continue with:\n  {command}")
    return 0 if finished else 130


def sweep(options: Namespace) -> int | None:
    """Train a grid of runs: every config flag takes one or several values. The same command continues after a stop."""
    from ppo_lib.study.sweep import describe, plan, sweep

    values = {name: value or [True] for name, value in options.changes.items()}
    grid = plan(options.results / _checked_name(options.sweep), options.preset or "quick", values)
    return _say(describe(grid)) if options.dry_run else sweep(grid, options.engine, options.jobs)


def evaluate(options: Namespace) -> None:
    """Play complete episodes on train and on unseen levels; they go into the run's evaluation.csv, at its steps."""
    from ppo_lib.accel.hardware import configure
    from ppo_lib.checkpoint import load_policy
    from ppo_lib.envs import procgen_build
    from ppo_lib.evaluate import evaluate, write_episodes
    from ppo_lib.stats import SCORE_RANGE, estimate, generalization_gap, normalized_score

    run_dir, levels = runs.find_run(options.run, options.results), options.unseen_levels
    policy, config, steps = load_policy(run_dir)
    procgen_build(config.build)  # no other one may add to its evaluation.csv
    hardware = configure(config.replace(device=options.device or config.device), recorded=True)
    if options.device and options.device.partition(":")[0] not in ("auto", hardware.device.type):
        raise UserError(f"There is no {options.device} on this machine: leave out --device.")
    policy, played, returns = hardware.prepare(policy), {}, {}
    for split in reversed(runs.SPLITS):  # first the one whose levels may be refused
        how = dict(seed=options.seed, greedy=options.greedy, levels=levels if split == "unseen" else None)
        played[split] = evaluate(policy, config, split, options.episodes, **how)
    for split in runs.SPLITS:
        returns[split] = [episode.return_ for episode in played[split]]
        mean, score = estimate(returns[split]), ""
        if config.distribution_mode in SCORE_RANGE[config.env_name]:
            score = f", normalised {normalized_score(mean.value, config.env_name, config.distribution_mode):.3f}"
        _say(f"{split:>6} levels, {len(returns[split])} episodes: mean return {mean}{score}")
    _say(f"generalisation gap: {generalization_gap(returns['train'], returns['unseen'])} (train minus unseen)")
    path = run_dir / ("evaluation_greedy.csv" if options.greedy else "evaluation.csv")
    kept = max(len(runs.read_evaluation(path).select(split, steps)) for split in runs.SPLITS)
    if levels is None and len(played["train"]) < kept:
        _say(f"Not kept: {path} has {kept} episodes of this policy, which only {kept} or more replace.")
    elif levels is None:
        write_episodes(path, steps, played)


def video(options: Namespace) -> None:
    """Record a run's policy on train levels beside unseen ones, or several runs' on the same unseen levels."""
    import torch

    from ppo_lib.accel import attach
    from ppo_lib.accel.hardware import cpu_threads
    from ppo_lib.checkpoint import load_policy
    from ppo_lib.video import record_comparison, record_video

    torch.set_num_threads(cpu_threads())
    run_dirs = [runs.find_run(name, options.results) for name in options.runs]
    if options.levels % len(run_dirs):
        raise UserError(f"--levels must be a multiple of the {len(run_dirs)} runs, not {options.levels}.")
    path, players = runs.video_path(run_dirs[0], options.results), []
    for run_dir in run_dirs:
        policy, config, _ = load_policy(run_dir)
        attach(policy)
        players.append((f"{run_dir.name}: {config.num_levels or 'unlimited'} training levels", policy, config))
    if len(players) == 1:
        path = record_video(policy, config, path, levels=options.levels)
    else:
        path = path.with_name(f"{'-beside-'.join(run_dir.name for run_dir in run_dirs)}.mp4")
        path = record_comparison(players, path, rows=options.levels // len(players))
    _say(f"Video:  {runs.name_in(path)}")


def report(options: Namespace) -> None:
    """Write figures and a page about one run or several."""
    from ppo_lib.study.report import write_report

    page = write_report([runs.find_run(name, options.results) for name in options.runs], results=options.results)
    _say(f"Report: {runs.name_in(page)}")


def bench(options: Namespace) -> None:
    """Measure steps per second, peak memory and where the time goes on this machine."""
    from ppo_lib.accel.bench import bench

    bench(preset(options.preset or "paper", **options.changes), options.output)


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise UserError(f"A run's name is made of letters, digits, '.', '_', '+' and '-', unlike '{name}'.")
    return name


class _Parser(ArgumentParser):
    """argparse that raises UserError instead of printing its usage and exiting."""

    def parse_known_args(self, *arguments: Any) -> tuple[Namespace, list[str]]:
        options, unknown = super().parse_known_args(*arguments)
        if unknown:
            hint = suggest(unknown[0], self._option_string_actions)
            self.error(f"{self.prog} takes no {unknown[0]}{hint if 'did you mean' in hint else '.'}")
        return options, unknown

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}{'' if message[-1] in '.?' else '.'} See {self.prog} --help.")


def _parser() -> ArgumentParser:
    parser = _Parser(prog="python -m ppo_lib", description="PPO on Procgen, and how it generalises.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="name")
    notes = dict(re.findall(r"^    (\w+): \w+ = .*?  # (.*)$", inspect.getsource(PPOConfig), re.M))

    def add(function: Callable, default: str | None = None) -> ArgumentParser:
        """A command. default: the name of the preset that it starts from, if it takes a config."""
        sub = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__)
        sub.set_defaults(command=function)
        if default:
            sub.add_argument("--preset", metavar="NAME", help=f"{', '.join(PRESETS)} (default: {default})")
            for field in FIELDS:
                note = f"{notes.get(field, '')} (default: {getattr(PPOConfig, field)})".replace("%", "%%")
                _add_field(sub, field, note, several=function is sweep)
        sub.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="folder of the runs")
        if function is not report:
            note = f"CPU threads{' of each run' * (function is sweep)}, at most (default: those of the granted cores)"
            sub.add_argument("--threads", type=_positive, metavar="N", help=note)
        return sub

    sub = add(train, "quick")
    sub.add_argument("--run", metavar="NAME", help="name of the run (default: from preset and time)")
    sub.add_argument("--resume", action="store_true", help="continue from the run's checkpoint")
    sub.add_argument("--finish", action="store_true", help="afterwards write its video and its report")
    sub = add(sweep, "quick")
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
    sub.add_argument("--levels", type=_positive, default=4, metavar="N", help="games in the image")
    add(report).add_argument("runs", metavar="RUN", nargs="+")
    add(bench, "paper").add_argument("--output", type=Path, metavar="FILE", help="also write the numbers as JSON")
    return parser


def _add_field(parser: ArgumentParser, name: str, note: str, several: bool) -> None:
    """A flag for a config field, which sets nothing unless given. several: it takes several values and sets a list."""
    flag, kind, options = f"--{name.replace('_', '-')}", FIELDS[name], dict(default=SUPPRESS, help=note)

    def parse(text: str) -> object:
        if kind is bool:
            return {"true": True, "false": False}.get(text.lower(), text)
        with suppress(ValueError):
            return text if kind is str else float(text)
        return text  # PPOConfig says what it must be

    if kind is bool and not several:
        parser.add_argument(flag, action=BooleanOptionalAction, **options)
    elif kind is bool:
        parser.add_argument(flag, type=parse, metavar="BOOL", nargs="*", **options)  # none means true
        parser.add_argument(f"--no-{flag[2:]}", dest=name, action="store_const", const=[False], **options)
    else:
        parser.add_argument(flag, type=parse, metavar=kind.__name__.upper(), nargs="+" if several else None, **options)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"a whole number of at least 1 is needed, not '{text}'")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
