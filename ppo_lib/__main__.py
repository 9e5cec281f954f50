"""The command line: python -m ppo_lib train|evaluate|video|report|bench.

- Every config field is a flag of `train` with the field's name; a flag overrides the preset's value.
- A UserError becomes one sentence on stderr and exit code 2.
- Modules load when their command runs: a mistyped flag is answered at once.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from .config import FIELD_TYPES, PRESETS, PPOConfig, UserError, preset


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 2 for a UserError, 130 after Ctrl-C."""
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    try:
        return command(options) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def train(options: dict) -> int:
    """Train a run, new or resumed."""
    fields = {name: options[name] for name in FIELD_TYPES if name in options}
    run_dir = Path(options["results"]) / (options["run"] or f"{options['preset'] or 'quick'}-{time.strftime('%Y%m%d-%H%M%S')}")
    config = preset(options["preset"] or "quick", **fields)
    from .train import Trainer

    trainer = Trainer(config, run_dir, resume=options["resume"])
    try:
        trainer.train()
    except KeyboardInterrupt:
        return 130
    finally:
        trainer.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ppo_lib")
    commands = parser.add_subparsers(required=True)
    sub = commands.add_parser("train")
    sub.set_defaults(command=train)
    sub.add_argument("--preset")
    sub.add_argument("--run")
    sub.add_argument("--resume", action="store_true")
    sub.add_argument("--results", default="results")
    for name, kind in FIELD_TYPES.items():
        flag = "--" + name.replace("_", "-")
        if kind is bool:
            sub.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS)
        else:
            sub.add_argument(flag, type=kind, default=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
