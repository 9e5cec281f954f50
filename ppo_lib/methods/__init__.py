"""Learning methods by name: PPO, and one short file for each method that builds on it.

A method subclasses PPO and overrides `prepare`, `loss` or `after_update`; it is registered by one line here. Your own
needs none: `--algorithm penalty.py:PenaltyPPO` takes the class from your file.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

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
    """The class of an algorithm: a name in ALGORITHMS, or FILE.py:CLASS, which runs the file.

    Raises ConfigError, with the closest name, if there is no such algorithm, file or subclass of PPO in the file. What
    the file itself raises is passed on.
    """
    file, colon, kind = name.rpartition(".py:")
    if colon:
        return _class_in(Path(f"{file}.py"), kind)
    if name not in ALGORITHMS:
        raise ConfigError(f"There is no algorithm '{name}'{suggest(name, ALGORITHMS)}")
    return ALGORITHMS[name]


def _class_in(path: Path, name: str) -> type[PPO]:
    """A subclass of PPO in a file."""
    if not path.is_file():
        raise ConfigError(f"There is no file {path.absolute()} to take the algorithm {name} from.")
    spec = importlib.util.spec_from_file_location(str(path), path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    spec.loader.exec_module(module)
    own = (value for value in vars(module).values() if isinstance(value, type) and value.__module__ == spec.name)
    found = {value.__name__: value for value in own if issubclass(value, PPO)}
    if name not in found:
        raise ConfigError(f"{path} has no subclass of PPO named '{name}'{suggest(name, found)}")
    return found[name]
