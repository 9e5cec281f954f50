"""The command line: python -m ppo_lib train | sweep | evaluate | video | report | bench.

- Every config field is a flag of `train` with the field's name; a flag overrides the preset's value.
  In `sweep` it takes one or several values.
- Whatever a user can mend (UserError) becomes one sentence on stderr and exit code 2, without a traceback.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ppo_lib.commands import bench, evaluate, report, sweep, train, video
from ppo_lib.config import FIELD_TYPES, PRESETS, PPOConfig, UserError
from ppo_lib.files import write_error


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 2 for a mistake of the user's, 130 after Ctrl-C."""
    try:
        options = _parser().parse_args(arguments)
        return options.command(options) or 0
    except (UserError, OSError) as error:
        if isinstance(error, OSError):  # a full disk, a folder that can't be written
            error = write_error(error, Path(error.filename or "The output"))
        if os.environ.get("RANK", "0") == "0":  # of several processes under torchrun, one speaks
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


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

    def add(function: Callable, default: str | None = None) -> argparse.ArgumentParser:
        """A command. default: the name of the preset that it starts from, if it takes a config."""
        sub = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__)
        sub.set_defaults(command=function)
        if default:
            sub.add_argument("--preset", metavar="NAME", help=f"{', '.join(PRESETS)} (default: {default})")
            for field in dataclasses.fields(PPOConfig):
                _add_field(sub, field.name, field.default, several=function is sweep)
        sub.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="folder of the runs")
        return sub

    sub = add(train, "quick")
    sub.add_argument("--run", metavar="NAME", help="name of the run (default: from preset and time)")
    sub.add_argument("--resume", action="store_true", help="go on from the run's checkpoint")
    sub.add_argument("--finish", action="store_true", help="afterwards write its film and its report")
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
    sub.add_argument("--levels", type=_positive, default=4, metavar="N", help="games in the picture")
    sub = add(report)
    sub.add_argument("runs", metavar="RUN", nargs="+")
    sub = add(bench, "paper")
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
