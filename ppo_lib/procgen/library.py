"""The C interface of the Procgen games, the same for every build of them.

- `procgen`, `procgen-mirror` and `procgen-gym` ship one C++ library with the same `libenv_*` functions; it is loaded
  straight with ctypes. Their Python packages are never imported, so old gym, gym3 and cffi need not be installed
  (`pip install --no-deps` is enough), print no notices, and no build needs a case of its own.
- Two revisions of the interface exist (1: both `procgen`s, 3: `procgen-gym`). They differ in the order of one struct
  and in how options are passed, and in nothing else that is used here.
- The C++ code ends the whole process on a bad option or state, so vector_env.py and game_options.py check everything
  before it gets here.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import struct
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppo_lib.config import UserError

LIBRARY_NAMES = ("libenv.so", "libenv.dylib", "env.dll")  # Linux, macOS, Windows
STATE_LIMIT = 2**20  # bytes; the largest game state that Procgen's own code allows for
STATE_END = struct.pack("<I", 0xCAFECAFE)  # Procgen's mark at the end of a saved game
OBS_SHAPE = (64, 64, 3)
FRAME_SHAPE = (512, 512, 3)
UINT8, INT32 = 1, 2  # codes of the element types in option lists
INFO_SPACE = 3  # code of the info tensors


class ProcgenBuild(NamedTuple):
    """Which build of Procgen is used: pip's name of it, the module that holds it, and its version."""

    package: str
    module: str
    version: str


def procgen_build() -> ProcgenBuild:
    """The build of Procgen in this Python. Raises UserError naming the package to install if there is none."""
    return _find_build()[0]


def package_for_python(version: tuple[int, int] | None = None) -> str:
    """The pip package that has Procgen for a Python version (major, minor); by default the running one."""
    version = version or sys.version_info[:2]
    if version >= (3, 13):
        return "procgen-gym"
    return "procgen-mirror" if version >= (3, 11) else "procgen"


def _find_build() -> tuple[ProcgenBuild, Path]:
    """The build and its data folder. The module is located but not imported."""
    for module, packages in (("procgen", ("procgen", "procgen-mirror")), ("procgen_gym", ("procgen-gym",))):
        spec = importlib.util.find_spec(module)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            data = Path(folder) / "data"
            if any((data / "prebuilt" / name).exists() for name in LIBRARY_NAMES):
                for package in packages:
                    try:
                        return ProcgenBuild(package, module, importlib.metadata.version(package)), data
                    except importlib.metadata.PackageNotFoundError:
                        continue
                return ProcgenBuild(packages[0], module, "unknown"), data
    raise UserError(
        f"The Procgen games are not installed: run `pip install --no-deps {package_for_python()}`, "
        f"the build for Python {sys.version_info[0]}.{sys.version_info[1]}."
    )


def looks_like_state(state: object, env_name: str) -> bool:
    """Whether `state` has the frame of a whole saved game: format 0, the game's name, and the mark at its end.

    The C++ code ends the process if these are wrong.
    """
    name = env_name.encode()
    start = struct.pack("<ii", 0, len(name)) + name
    return isinstance(state, bytes) and state.startswith(start) and state.endswith(STATE_END)


class _Option(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char * 128),
        ("dtype", ctypes.c_int),
        ("count", ctypes.c_int),
        ("data", ctypes.c_void_p),
    ]


class _Options(ctypes.Structure):
    _fields_ = [("items", ctypes.POINTER(_Option)), ("count", ctypes.c_int)]


_Pointers = ctypes.POINTER(ctypes.c_void_p)


class _Buffers1(ctypes.Structure):
    _fields_ = [
        ("ob", _Pointers),
        ("rew", ctypes.c_void_p),
        ("first", ctypes.c_void_p),
        ("info", _Pointers),
        ("ac", _Pointers),
    ]


class _Buffers3(ctypes.Structure):
    _fields_ = [
        ("ob", _Pointers),
        ("ac", _Pointers),
        ("info", _Pointers),
        ("rew", ctypes.c_void_p),
        ("first", ctypes.c_void_p),
    ]


class Games:
    """N games in C++ and the arrays that they read and write.

    `act()` starts a step and returns at once when there are threads; `wait()` ends it. Between the two, `obs`,
    `reward`, `done` and the level arrays are being written; after `wait()` they are valid until the next `act()`.
    """

    def __init__(self, num: int, options: dict[str, bool | int | str], render: bool) -> None:
        """Start `num` games; `options` are Procgen's own, all of the right type and range."""
        build, data = _find_build()
        path = next(data / "prebuilt" / name for name in LIBRARY_NAMES if (data / "prebuilt" / name).exists())
        try:
            self._lib = ctypes.CDLL(str(path), mode=_load_mode(build.module))
        except OSError as error:
            raise UserError(
                f"{build.package} can't be loaded ({error}); on Debian, Ubuntu and Colab "
                "`apt-get install libgl1 libglib2.0-0` brings the system libraries that it needs."
            ) from None
        by_value = _declare(self._lib) < 3
        self.obs = np.zeros((num, *OBS_SHAPE), np.uint8)
        self.frames = np.zeros((num, *FRAME_SHAPE), np.uint8) if render else None
        self.actions = np.zeros(num, np.int32)
        self.reward = np.zeros(num, np.float32)
        self.done = np.zeros(num, np.bool_)  # this step ended an episode; obs belongs to the next one
        self.ended_level = np.zeros(num, np.int32)
        self.level_complete = np.zeros(num, np.bool_)
        self.level = np.zeros(num, np.int32)

        resources = f"{data / 'assets'}{os.sep}"
        items, keep = _option_list({**options, "render_human": render, "resource_root": resources})
        packed = _Options(items, len(items))
        self._state_buffer: ctypes.Array[ctypes.c_char] | None = None
        self._handle = ctypes.c_void_p(self._lib.libenv_make(num, packed if by_value else ctypes.byref(packed)))
        info = [self.ended_level, self.level_complete, self.level, *([self.frames] if render else [])]
        found = self._lib.libenv_get_tensortypes(self._handle, INFO_SPACE, None)
        if found != len(info):
            raise UserError(f"{build.package} {build.version} is not a Procgen that is known here; install 0.10.7.")
        buffers = (_Buffers1 if by_value else _Buffers3)(
            ob=_row_pointers([self.obs]),
            ac=_row_pointers([self.actions]),
            info=_row_pointers(info),
            rew=self.reward.ctypes.data,
            first=self.done.ctypes.data,
        )
        self._lib.libenv_set_buffers(self._handle, ctypes.byref(buffers))  # starts the first reset; copies the pointers
        self.wait()
        del keep  # option values must live until libenv_make has read them

    def act(self) -> None:
        """Start a step with `self.actions` (-1 forces a new episode)."""
        self._lib.libenv_act(self._handle)

    def wait(self) -> None:
        """Wait until the step is done and the arrays are filled. The GIL is free meanwhile."""
        self._lib.libenv_observe(self._handle)

    def get_state(self) -> list[bytes]:
        """Everything that determines how each game goes on, about 30 kB a game."""
        if self._state_buffer is None:
            self._state_buffer = ctypes.create_string_buffer(STATE_LIMIT)
        buffer, states = self._state_buffer, []
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
        handle, self._handle = self._handle, None
        if handle:
            self._lib.libenv_close(handle)


def _load_mode(module: str) -> int:
    """How to open the library: as each build's own loader does, since that is what its users have tried."""
    deep = getattr(os, "RTLD_DEEPBIND", 0) if module == "procgen" else 0
    return getattr(os, "RTLD_NOW", 0) | getattr(os, "RTLD_LOCAL", 0) | deep


def _declare(lib: ctypes.CDLL) -> int:
    """Give the C functions their types; returns the revision of the interface (1 or 3)."""
    handle, whole = ctypes.c_void_p, ctypes.c_int
    revision = lib.libenv_version()
    options = _Options if revision < 3 else ctypes.POINTER(_Options)
    for name, result, arguments in (
        ("libenv_make", handle, [whole, options]),
        ("libenv_get_tensortypes", whole, [handle, whole, ctypes.c_void_p]),
        ("libenv_set_buffers", None, [handle, ctypes.c_void_p]),
        ("libenv_act", None, [handle]),
        ("libenv_observe", None, [handle]),
        ("libenv_close", None, [handle]),
        ("get_state", whole, [handle, whole, ctypes.c_char_p, whole]),
        ("set_state", None, [handle, whole, ctypes.c_char_p, whole]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return revision


def _option_list(options: dict[str, bool | int | str]) -> tuple[ctypes.Array[_Option], list[np.ndarray]]:
    """The options as a C array, and the numpy arrays that hold their values."""
    items, keep = (_Option * len(options))(), []
    for item, (name, value) in zip(items, options.items(), strict=True):
        if isinstance(value, str):
            code, array = UINT8, np.frombuffer(value.encode(), np.uint8)
        elif isinstance(value, bool):
            code, array = UINT8, np.array([value], np.uint8)
        else:
            code, array = INT32, np.array([value], np.int32)
        item.name, item.dtype, item.count, item.data = name.encode(), code, array.size, array.ctypes.data
        keep.append(array)
    return items, keep


def _row_pointers(arrays: list[np.ndarray]) -> ctypes.Array[ctypes.c_void_p]:
    """The address of each game's row in each array, array after array."""
    rows = [array.ctypes.data + index * array.strides[0] for array in arrays for index in range(len(array))]
    return (ctypes.c_void_p * len(rows))(*rows)
