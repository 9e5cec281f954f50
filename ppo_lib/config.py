"""One frozen dataclass holds every setting of a run.

- Every field is a command-line flag of the same name and a key of `config.json`; its unit stands beside it.
- A config that exists is valid: all checks run on creation and explain themselves in one sentence.
- All randomness derives from `config.seed` through `derive_seed`, so one number determines a whole run.
- A method with settings of its own subclasses PPOConfig and adds fields; everything here works on the subclass.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import typing
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, make_dataclass
from functools import lru_cache

import numpy as np

GAMES = (
    "bigfish", "bossfight", "caveflyer", "chaser", "climber", "coinrun", "dodgeball", "fruitbot",
    "heist", "jumper", "leaper", "maze", "miner", "ninja", "plunder", "starpilot",
)  # fmt: skip
DISTRIBUTION_MODES = {  # difficulty -> the games that have it
    "easy": GAMES, "hard": GAMES, "extreme": ("chaser", "dodgeball", "leaper", "starpilot"),
    "memory": ("caveflyer", "dodgeball", "heist", "jumper", "maze", "miner"),
}  # fmt: skip
LEVEL_LIMIT = 2**31 - 1  # Procgen draws level seeds below this number
UNSEEN_RESERVE = 2**24  # levels at the top that "unlimited" training (num_levels=0) never plays
# What the code did before a field existed: the value of that field in older config.json and checkpoint files.
ABSENT: dict[str, object] = {
    "encoder_init": "orthogonal", "algorithm": "ppo", "pooling": "flatten", "weight_decay": 0.0,
    "build": "procgen", "mixreg_alpha": 0.2, "drac_coef": 0.1, "ppg_interval": 32, "ppg_epochs": 6, "ppg_coef": 1.0,
}  # fmt: skip


class UserError(Exception):
    """A problem that the user can fix: one sentence that says what to do. The command line prints only that."""


class ConfigError(UserError, ValueError):
    """A setting that is unknown, out of range or in conflict with another one."""


@dataclass(frozen=True)
class PPOConfig:
    """All settings of a run. Sizes: T = num_steps, N = num_envs.

    Raises ConfigError, which says what to change, if a value is out of range or two values conflict.
    """

    # the game
    env_name: str = "starpilot"  # one of the 16 Procgen games
    num_levels: int = 50  # training levels; 0 = unlimited
    start_level: int = 0  # seed of the first training level
    distribution_mode: str = "easy"  # difficulty: easy, hard; some games have extreme or memory
    use_backgrounds: bool = False  # draw picture backgrounds (False: black)
    restrict_themes: bool = True  # one set of sprites for all levels
    seed: int = 0  # of everything random in the run
    # the rollout
    num_envs: int = 64  # N, games played in parallel
    num_steps: int = 256  # T, steps per game between two updates
    total_steps: int = 180_000  # game steps of all environments together
    # learning
    algorithm: str = "ppo"  # ppo, mixreg, drac, ppg, or FILE.py:CLASS[:ATTRIBUTE=VALUE...] for your own
    num_epochs: int = 3  # passes over each rollout
    num_minibatches: int = 8  # gradient steps per pass
    learning_rate: float = 5e-4  # Adam's step size
    anneal_lr: bool = False  # lower the learning rate linearly to 0 over total_steps
    gamma: float = 0.999  # discount per step
    gae_lambda: float = 0.95  # 0 = one-step TD error, 1 = Monte-Carlo return
    clip_range: float = 0.2  # epsilon of the clipped ratio
    clip_value_loss: bool = True  # also clip the change of the value by clip_range
    value_coef: float = 0.5  # weight of the value loss
    entropy_coef: float = 0.01  # weight of the entropy bonus
    max_grad_norm: float = 0.5  # gradients are scaled down to this norm
    weight_decay: float = 0.0  # L2 penalty: Adam adds weight_decay * weight to each gradient
    normalize_reward: bool = True  # divide rewards by the running std of the discounted return
    reward_gamma: float = 0.99  # discount of that return: 0.99 in published runs, independent of gamma
    # methods other than PPO
    mixreg_alpha: float = 0.2  # mixreg: shares are drawn from Beta(alpha, alpha)
    drac_coef: float = 0.1  # drac: weight of the two regularisation terms
    ppg_interval: int = 32  # ppg: updates between two auxiliary phases
    ppg_epochs: int = 6  # ppg: passes over the stored rollouts in an auxiliary phase
    ppg_coef: float = 1.0  # ppg: weight of the KL divergence to the policy before the phase
    # the network
    recurrent: bool = True  # a GRU between encoder and heads
    sequence_length: int = 32  # steps that the GRU is unrolled over in training
    width_scale: int = 1  # multiplies the encoder's channels (16, 32, 32)
    pooling: str = "flatten"  # what follows the convolutions: flatten, or average over the image (Impoola)
    encoder_init: str = "orthogonal"  # initial weights: orthogonal and small, or glorot as in the published runs
    # the machine
    build: str = "auto"  # of Procgen: procgen (three packages that draw alike), envpool, or auto: the installed one
    device: str = "auto"  # auto, cpu, cuda or cuda:INDEX
    precision: str = "auto"  # auto, float32, bf16 or fp16 (of the encoder; the rest is float32)
    # what is measured and kept
    eval_interval: int = 0  # steps between evaluations; 0 = only at the end, -1 = never
    eval_episodes: int = 256  # episodes per split (train and unseen levels)
    checkpoint_interval: int = 100_000  # steps between checkpoints (the end of a run always saves one)

    def __post_init__(self) -> None:
        for name, kind in field_types(type(self)).items():
            object.__setattr__(self, name, coerce(name, kind, getattr(self, name)))
        _check(self)

    @property
    def batch_size(self) -> int:
        """Steps in one rollout: T * N."""
        return self.num_steps * self.num_envs

    @property
    def minibatch_size(self) -> int:
        """Steps in one gradient step."""
        return self.batch_size // self.num_minibatches

    @property
    def num_updates(self) -> int:
        """Rollouts in the run: the fewest that reach total_steps."""
        return math.ceil(self.total_steps / self.batch_size)

    @property
    def last_step(self) -> int:
        """Steps at the end of the run: total_steps, rounded up to whole rollouts."""
        return self.num_updates * self.batch_size

    @property
    def train_levels(self) -> tuple[int, int]:
        """(first seed, number of seeds) of the training levels."""
        if self.num_levels == 0:
            return 0, LEVEL_LIMIT - UNSEEN_RESERVE
        return self.start_level, self.num_levels

    @property
    def unseen_levels(self) -> tuple[int, int]:
        """(first seed, number of seeds) of the levels after the last training level: never played in training."""
        start, count = self.train_levels
        return start + count, LEVEL_LIMIT - start - count

    def replace(self, **changes: object) -> PPOConfig:
        """A copy with some fields changed; unknown names raise ConfigError."""
        return self.from_dict({**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, object]:
        """Field names and values, ready for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """The config as indented JSON, one field per line."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> PPOConfig:
        """Build a config; names that are not fields raise ConfigError with the closest field."""
        for name in values:
            if name not in field_types(cls):
                raise ConfigError(f"There is no config field '{name}'{suggest(name, field_types(cls))}")
        return cls(**values)  # type: ignore[arg-type]

    @classmethod
    def from_saved(cls, values: dict[str, object]) -> PPOConfig:
        """Build the config of an existing run from its saved fields.

        Fields that the file lacks get the behaviour from before they existed (ABSENT), or raise ConfigError if every
        run has saved them. Fields that this class lacks belong to a subclass of it: the result has them too.
        """
        known = field_types(cls)
        if lost := [name for name in known if name not in values and name not in ABSENT]:
            raise ConfigError(f"The saved config lacks {', '.join(lost)}: restore the file.")
        if extra := [(name, type(value), value) for name, value in values.items() if name not in known]:
            cls = make_dataclass(cls.__name__, extra, bases=(cls,), frozen=True)
        return cls(**{**{name: ABSENT[name] for name in known if name in ABSENT}, **values})

    @classmethod
    def from_saved_json(cls, text: str) -> PPOConfig:
        """from_saved of a config.json's text; text that is not a JSON object raises ConfigError."""
        try:
            values = dict(**json.loads(text))
        except (json.JSONDecodeError, TypeError) as error:
            raise ConfigError(f"The config is not a JSON object ({error}); restore config.json from its run.") from None
        return cls.from_saved(values)


@lru_cache
def field_types(cls: type[PPOConfig]) -> dict[str, type]:
    """Field name -> type, of PPOConfig or a subclass, in order."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


# What each preset changes. Those of `quick` won the search of results/quick-search for the best agent in ten minutes.
PRESETS: dict[str, dict[str, object]] = {
    "quick": {"num_steps": 64, "total_steps": 435_000, "num_epochs": 2, "encoder_init": "glorot"},
    "course": {"total_steps": 20_000_000, "eval_interval": 1_000_000},
    "paper": {
        "num_levels": 200, "use_backgrounds": True, "restrict_themes": False, "total_steps": 25_000_000,
        "recurrent": False, "eval_interval": 1_000_000,
    },
}  # fmt: skip


def preset(name: str, **changes: object) -> PPOConfig:
    """The config of a preset, with some fields changed. Unknown names raise ConfigError."""
    if name not in PRESETS:
        raise ConfigError(f"There is no preset '{name}'{suggest(name, PRESETS)}")
    return PPOConfig.from_dict({**PRESETS[name], **changes})


def as_flag(name: str, value: object) -> str:
    """A field as the command line takes it: --recurrent, --no-recurrent, --num-levels 50."""
    flag = name.replace("_", "-")
    return (f"--{flag}" if value else f"--no-{flag}") if isinstance(value, bool) else f"--{flag} {value}"


def derive_seed(seed: int, *path: str | int) -> int:
    """A seed in [0, 2^31 - 1) for one generator, independent for each path such as ("train", 3)."""
    words = [zlib.crc32(str(part).encode()) for part in path]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1)[0]) % LEVEL_LIMIT


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the closest known one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; choose one of: {', '.join(known) or 'none yet'}."


def coerce(name: str, kind: type, value: object) -> object:
    """Accept what means the same in the field's type (1e6 for an int, numpy scalars); refuse the rest."""
    value = value.item() if isinstance(value, np.generic) else value
    if (kind is float and type(value) is int) or (kind is int and isinstance(value, float) and value.is_integer()):
        return kind(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
        raise ConfigError(f"{name} must be {words.get(kind, kind)}, not {value!r}.")
    return value


_TINY = math.ulp(0.0)  # the least number above 0
_RANGES: dict[str, tuple[float, float]] = {  # field -> lowest and highest value
    **dict.fromkeys(("num_levels", "start_level", "seed"), (0, LEVEL_LIMIT - 1)),
    **dict.fromkeys(("num_envs", "num_steps", "num_epochs", "num_minibatches"), (1, 2**13)),
    **dict.fromkeys(("sequence_length", "width_scale", "eval_episodes", "ppg_interval", "ppg_epochs"), (1, 2**16)),
    **dict.fromkeys(("total_steps", "checkpoint_interval"), (1, 10**15)),
    **dict.fromkeys(("gamma", "gae_lambda", "reward_gamma", "weight_decay"), (0, 1)),
    **dict.fromkeys(("value_coef", "entropy_coef", "drac_coef", "ppg_coef"), (0, 10)),
    "eval_interval": (-1, 10**15), "learning_rate": (_TINY, 1), "clip_range": (_TINY, 0.999),
    "max_grad_norm": (_TINY, 1e9), "mixreg_alpha": (_TINY, 1e6),
}  # fmt: skip
_CHOICES = {
    "env_name": GAMES, "distribution_mode": DISTRIBUTION_MODES,
    "pooling": ("flatten", "average"), "encoder_init": ("orthogonal", "glorot"),
    "precision": ("auto", "float32", "bf16", "fp16"),
    "build": ("auto", "procgen", "envpool"),
}  # fmt: skip


def _check(c: PPOConfig) -> None:
    """Raise ConfigError for the first setting that cannot work."""

    def need(condition: bool, sentence: str) -> None:
        if not condition:
            raise ConfigError(sentence)

    for name, choices in _CHOICES.items():
        value = getattr(c, name)
        need(value in choices, f"There is no {name} '{value}'{suggest(value, choices)}")
    modes = [mode for mode, games in DISTRIBUTION_MODES.items() if c.env_name in games]
    others = f"choose one of: {', '.join(modes)}"
    need(c.distribution_mode in modes, f"{c.env_name} has no {c.distribution_mode} mode; {others}.")
    for name, (low, high) in _RANGES.items():
        value, above = getattr(c, name), "above 0" if low == _TINY else f"at least {low:,}"
        need(low <= value <= high, f"{name} must be {above} and at most {high:,}, not {value}.")
    end, device = c.start_level + c.num_levels, re.fullmatch(r"auto|cpu|cuda(:\d+)?", c.device)
    need(end < LEVEL_LIMIT, f"start_level + num_levels must stay below {LEVEL_LIMIT}, so that unseen levels remain.")
    need(end == 0 or c.num_levels > 0, "Unlimited levels (num_levels=0) have no first one: leave start_level at 0.")
    need(device is not None, f"device must be auto, cpu, cuda or cuda:INDEX, not '{c.device}'.")
    units, unit = c.batch_size, "steps"
    if c.recurrent:
        length, steps = c.sequence_length, c.num_steps
        near = _divisor_near(steps, length)
        need(near == length, f"sequence_length {length} does not divide num_steps {steps}; try {near}.")
        units, unit = units // length, f"sequences of {length} steps"
    near, rollout = _divisor_near(units, c.num_minibatches), f"({c.num_envs} envs x {c.num_steps} steps)"
    problem = f"num_minibatches {c.num_minibatches} does not divide the {units} {unit} of a rollout {rollout}"
    need(near == c.num_minibatches, f"{problem}; try {near}.")


def _divisor_near(whole: int, wish: int) -> int:
    """The divisor of `whole` nearest to `wish`."""
    divisors = (d for low in range(1, math.isqrt(whole) + 1) if whole % low == 0 for d in (low, whole // low))
    return min(divisors, key=lambda d: abs(d - wish))
