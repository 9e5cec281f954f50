"""The C interface of the Procgen games, the same for all of their builds but envpool (envpool.py).

- `procgen`, `procgen-mirror` and `procgen-gym` ship one C++ library, which ctypes loads directly. Their Python packages
  are never imported, so their dependencies (old gym, gym3, cffi) are not needed: `pip install --no-deps` is enough.
- Its two revisions (1: both `procgen`s, 3: `procgen-gym`) differ in the order of one struct and in passing options.
- A bad option or damaged state makes the C++ code exit the process: env.py checks both first.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import struct
import sys
from ctypes import c_char, c_int, c_void_p
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppo_lib.config import UserError

PACKAGES = {  # and the folders of their C++ libraries; the first one that is installed is used
    "procgen": "procgen/data/prebuilt",
    "procgen-mirror": "procgen/data/prebuilt",
    "procgen-gym": "procgen_gym/data/prebuilt",
    "envpool": "envpool/procgen",
}
LIBRARY_NAMES = ("libenv.so", "libenv.dylib", "env.dll", "procgen_envpool.so", "procgen_envpool.pyd")
STATE_LIMIT = 2**20  # bytes; the largest game state that Procgen's own code allows
STATE_END = struct.pack("<I", 0xCAFECAFE)  # Procgen's mark at the end of a saved game
OBS_SHAPE = (64, 64, 3)
FRAME_SHAPE = (512, 512, 3)
TYPE_CODES = {"uint8": 1, "int32": 2}  # of the values of options
INFO_SPACE = 3  # code of the info tensors


class ProcgenBuild(NamedTuple):
    """An installed build of Procgen: its pip package, version and C++ library."""

    package: str
    version: str
    library: Path

    @property
    def kind(self) -> str:
        """Builds of one kind play and draw alike, see PPOConfig.build."""
        return "envpool" if self.package == "envpool" else "procgen"


def procgen_build(kind: str = "auto") -> ProcgenBuild:
    """The build of this kind (PPOConfig.build) in this Python. Raises UserError naming the package to install if there
    is none."""
    for package, folder in PACKAGES.items():
        for found in importlib.metadata.distributions(name=package):
            for name in LIBRARY_NAMES:
                build = ProcgenBuild(package, found.version, Path(str(found.locate_file(f"{folder}/{name}"))))
                if kind in ("auto", build.kind) and build.library.exists():
                    return build
    package = "envpool" if kind == "envpool" else package_here()
    if kind == "procgen" and package == "envpool":
        raise UserError("The build procgen does not exist for this machine and Python, only envpool does.")
    remedy = f"--no-deps {package}`" if package != "envpool" else f"{package}` in Python 3.12 to 3.14"
    games = "Procgen games of envpool" if kind == "envpool" else "Procgen games"
    raise UserError(f"The {games} are not installed: run `pip install {remedy}.")


def package_here() -> str:
    """The package that has the games for this machine and Python, as the markers in pyproject.toml choose."""
    python, system = sys.version_info[:2], sys.platform if platform.machine() in ("x86_64", "AMD64") else "other"
    if python < (3, 11) and system != "other":
        return "procgen"
    if python in ((3, 11), (3, 12)) and system == "linux":
        return "procgen-mirror"
    return "procgen-gym" if python == (3, 13) and system in ("linux", "win32") else "envpool"


def looks_like_state(state: object, env_name: str) -> bool:
    """Whether `state` is framed as a complete saved game: format 0, the game's name, and the mark at its end."""
    start = struct.pack("<ii", 0, len(env_name)) + env_name.encode()
    return isinstance(state, bytes) and state.startswith(start) and state.endswith(STATE_END)


class Games:
    """N games in C++ and the arrays that they read and write.

    `act()` starts a step and returns at once if the games have threads; `wait()` ends it. Between the two, `obs`,
    `reward`, `done` and the level arrays are being written; after `wait()` they are valid until the next `act()`.
    """

    _handle: c_void_p | None = None

    def __init__(self, num: int, options: dict[str, bool | int | str], render: bool) -> None:
        """Start `num` games; `options` are Procgen's own, all of the right type and range."""
        build = procgen_build("procgen")
        try:
            self._lib = ctypes.CDLL(str(build.library))  # not RTLD_DEEPBIND, as in gym3: it ignores a preloaded malloc
        except OSError as error:
            remedy = "on Debian, Ubuntu and Colab `apt-get install libgl1 libglib2.0-0` installs the libraries it needs"
            raise UserError(f"{build.package} can't be loaded ({error}); {remedy}.") from None
        first_revision = self._lib.libenv_version() < 3
        self.obs = np.zeros((num, *OBS_SHAPE), np.uint8)
        self.frames = np.zeros((num, *FRAME_SHAPE), np.uint8) if render else None
        self.actions = np.zeros(num, np.int32)
        self.reward = np.zeros(num, np.float32)
        self.done = np.zeros(num, np.bool_)  # this step ended an episode; obs belongs to the next one
        self.level_complete = np.zeros(num, np.bool_)
        self.level, self.ended_level = np.zeros(num, np.int32), np.zeros(num, np.int32)

        assets = f"{build.library.parents[1] / 'assets'}{os.sep}"
        given = {name: _array(v) for name, v in {**options, "render_human": render, "resource_root": assets}.items()}
        items = [_Option(name.encode(), TYPE_CODES[a.dtype.name], a.size, a.ctypes.data) for name, a in given.items()]
        packed = _Options((_Option * len(items))(*items), len(items))
        self._lib.libenv_make.restype = c_void_p
        self._handle = c_void_p(self._lib.libenv_make(num, packed if first_revision else ctypes.byref(packed)))
        info = [self.ended_level, self.level_complete, self.level, *([self.frames] if render else [])]
        if self._lib.libenv_get_tensortypes(self._handle, INFO_SPACE, None) != len(info):
            raise UserError(f"{build.package} {build.version} is not a known version of Procgen; install 0.10.7.")
        buffers = {"ob": _rows(self.obs), "ac": _rows(self.actions), "info": _rows(*info)}
        buffers |= {"rew": self.reward, "first": self.done}
        order = ("ob", "rew", "first", "info", "ac") if first_revision else ("ob", "ac", "info", "rew", "first")
        addresses = (c_void_p * len(order))(*(buffers[name].ctypes.data for name in order))
        self._lib.libenv_set_buffers(self._handle, addresses)  # starts the first reset; copies all addresses
        self.wait()

    def act(self) -> None:
        """Start a step with `self.actions` (-1 forces a new episode)."""
        self._lib.libenv_act(self._handle)

    def wait(self) -> None:
        """Wait until the step is done and the arrays are filled. The GIL is free meanwhile."""
        self._lib.libenv_observe(self._handle)

    def get_state(self) -> list[bytes]:
        """Everything that determines how each game continues, about 30 kB per game."""
        buffer, states = ctypes.create_string_buffer(STATE_LIMIT), []
        for index in range(len(self.actions)):
            size = self._lib.get_state(self._handle, index, buffer, STATE_LIMIT)
            states.append(ctypes.string_at(buffer, size))
        return states

    def set_state(self, states: list[bytes]) -> None:
        """Put each game into a state from get_state of the same game and options, and fill the arrays from it."""
        for index, state in enumerate(states):
            self._lib.set_state(self._handle, index, state, len(state))
        self.wait()

    def close(self) -> None:
        """End the games and join their threads. The games can't be used afterwards."""
        if self._handle:
            self._lib.libenv_close(self._handle)
            self._handle = None

    __del__ = close  # also of games that were forgotten


class _Option(ctypes.Structure):
    _fields_ = [("name", c_char * 128), ("dtype", c_int), ("count", c_int), ("data", c_void_p)]


class _Options(ctypes.Structure):
    _fields_ = [("items", ctypes.POINTER(_Option)), ("count", c_int)]


def _array(value: bool | int | str) -> np.ndarray:
    """An option's value as the C++ code reads it."""
    if isinstance(value, str):
        return np.frombuffer(value.encode(), np.uint8)
    return np.array([value], np.uint8 if isinstance(value, bool) else np.int32)


def _rows(*arrays: np.ndarray) -> np.ndarray:
    """The address of each game's row in each array, array after array."""
    return np.concatenate([a.ctypes.data + a.strides[0] * np.arange(len(a), dtype=np.int64) for a in arrays])
