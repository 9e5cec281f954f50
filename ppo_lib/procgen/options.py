"""What the Procgen games accept, checked before C++ sees it: there a bad option ends the whole process."""

from __future__ import annotations

import operator
import os

from ppo_lib.config import GAMES, LEVEL_LIMIT, UserError

MAX_THREADS = 16  # more only wait for one another's lock
# Codes of distribution_mode in the C++ games; "exploration" is one chosen hard level.
DIFFICULTIES = {"easy": 0, "hard": 1, "extreme": 2, "memory": 10, "exploration": 1}
EXPLORATION_LEVELS = {
    "caveflyer": 1259048185,
    "climber": 1561126160,
    "coinrun": 1949448038,
    "heist": 876640971,
    "jumper": 1434825276,
    "leaper": 1318677581,
    "maze": 158988835,
    "ninja": 1123500215,
}
# The games that have a difficulty which not all of them have.
ONLY_IN = {
    "extreme": ("chaser", "dodgeball", "leaper", "starpilot"),
    "memory": ("caveflyer", "dodgeball", "heist", "jumper", "maze", "miner"),
    "exploration": tuple(EXPLORATION_LEVELS),
}


def choose_levels(env_name: str, mode: str, num_levels: object, start_level: object) -> tuple[int, tuple[int, int]]:
    """The code of a difficulty and (first seed, number) of the levels; number 0 = unlimited.

    Raises UserError if the game lacks the difficulty or the levels are out of range.
    """
    need(mode in DIFFICULTIES, f"distribution_mode must be one of {', '.join(DIFFICULTIES)}, not {mode!r}.")
    having = ONLY_IN.get(mode, GAMES)
    need(env_name in having, f"{env_name} has no {mode} mode; only {', '.join(having)} do.")
    if mode == "exploration":
        return DIFFICULTIES[mode], (EXPLORATION_LEVELS[env_name], 1)
    count = whole("num_levels", num_levels, 0, LEVEL_LIMIT)
    return DIFFICULTIES[mode], (whole("start_level", start_level, 0, LEVEL_LIMIT - count), count)


def default_threads(num_envs: int) -> int:
    """One thread for each CPU that this process may use, but no more than there is work for."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, num_envs, MAX_THREADS)


def need(condition: bool, sentence: str) -> None:
    """Raise UserError with the sentence unless the condition holds."""
    if not condition:
        raise UserError(sentence)


def whole(name: str, value: object, low: int, high: int) -> int:
    """`value` as an int if it is a whole number from low to high, else UserError."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = low - 1
    need(low <= number <= high, f"{name} must be a whole number from {low} to {high}, not {value!r}.")
    return number
