"""Learning methods by name: PPO, and one short file for each method that builds on it.

A method subclasses PPO and overrides `prepare`, `loss` or `after_update`; it is registered by one line here.
"""

from __future__ import annotations

from ppo_lib.config import ConfigError, suggest
from ppo_lib.methods.drac import DrAC
from ppo_lib.methods.mixreg import Mixreg
from ppo_lib.methods.ppg import PPG
from ppo_lib.ppo import PPO

ALGORITHMS: dict[str, type[PPO]] = {
    "ppo": PPO,
    "mixreg": Mixreg,
    "drac": DrAC,
    "ppg": PPG,
}


def algorithm_class(name: str) -> type[PPO]:
    """The class of an algorithm. Raises ConfigError with the closest name if there is none."""
    if name not in ALGORITHMS:
        raise ConfigError(f"There is no algorithm '{name}'{suggest(name, ALGORITHMS)}")
    return ALGORITHMS[name]
