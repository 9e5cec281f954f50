"""Learning methods by name: PPO, and one short file for each method that builds on it.

A method subclasses PPO and overrides `prepare`, `loss` or `after_update`; it is registered by one line here. Your own
needs none: `--algorithm penalty.py:PenaltyPPO` takes the class from your file, and `:penalty_coef=2` after it sets a
class attribute.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from contextlib import suppress
from pathlib import Path

from ppo_lib.config import ConfigError, coerce, suggest
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

    FILE.py:CLASS:ATTRIBUTE=VALUE:... gives class attributes other values: numbers, words, true or false.

    Raises ConfigError, with the closest name, if there is no such algorithm, file, subclass of PPO in the file or
    attribute, or if its value has another type. What the file itself raises is passed on.
    """
    file, colon, rest = name.rpartition(".py:")
    if colon:
        kind, *settings = rest.split(":")
        return _with_settings(_class_in(Path(f"{file}.py"), kind), settings)
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


def _with_settings(kind: type[PPO], settings: list[str]) -> type[PPO]:
    """The class with other values of some class attributes: ATTRIBUTE=VALUE each."""
    known = {
        name: value for name in dir(kind)
        if not name.startswith("_") and isinstance(value := getattr(kind, name), (bool, int, float, str))
    }  # fmt: skip
    changed: dict[str, object] = {}
    for setting in settings:
        name, equals, word = setting.partition("=")
        if not equals:
            raise ConfigError(f"A setting of {kind.__name__} is ATTRIBUTE=VALUE, not '{setting}'.")
        if name not in known:
            raise ConfigError(f"{kind.__name__} has no class attribute '{name}'{suggest(name, known)}")
        value: object = word
        if not isinstance(known[name], str):
            with suppress(ValueError, SyntaxError):
                value = ast.literal_eval(word.capitalize() if word in ("true", "false") else word)
        changed[name] = coerce(name, type(known[name]), value)
    return type(kind.__name__, (kind,), {**changed, "__module__": kind.__module__}) if changed else kind
