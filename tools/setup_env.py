"""Make the project's Python environment, or complete an existing one. `make setup` and the notebooks run this.

- `python tools/setup_env.py train` (or test, lab) then does what `make train` does, also where there is no make.
- Needs nothing but a Python with pip, so that it runs on a bare machine and in Colab.
- A stamp in the environment says what was installed: a second call finds it and ends at once.
- An environment of our own gets exactly the tested versions (constraints.txt). Another one, or one whose base Python
  has torch already, keeps its torch, numpy and ipywidgets (KEPT): pip only adds to them, without constraints.txt.
- The game's packages are installed without their dependencies: pyproject.toml says why, in [dependency-groups].
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import badges

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

ROOT = Path(__file__).resolve().parent.parent
KEPT = ("torch", "numpy", "ipywidgets")
STAMP = "ppo_lib_setup.json"
SHARED_OUT = ["-n", "logical", "--maxprocesses", "4", "--dist", "loadgroup", "--no-loadscope-reorder"]
COMMANDS = {  # what follows `python`, as in the Makefile
    "setup": [],
    "train": [["-m", "ppo_lib", "train", "--preset", "quick", "--finish"]],
    "test": [
        ["-m", "ruff", "check", "."],
        ["-m", "ruff", "format", "--check", "."],
        ["-m", "pytest", "-q", *SHARED_OUT],
    ],
    "lab": [["-m", "jupyterlab", "notebooks/"]],
}
ASK_VERSIONS = """import importlib.metadata, json, platform
found = reversed(list(importlib.metadata.distributions()))  # of two that have one name, Python imports the first
print(json.dumps([platform.python_version(), {d.name.lower(): d.version for d in found if d.name}]))"""


class SetupError(Exception):
    """A problem that the user can fix: one sentence that says how."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; its exit code, or 2 with one sentence if the environment could not be made."""
    about = "Make or complete the project's Python environment, and use it."
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    parser.add_argument("command", nargs="?", choices=COMMANDS, default="setup", help="what to do in it")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="its folder (default: .venv)")
    parser.add_argument("--here", action="store_true", help="complete the environment of the Python that runs this")
    parser.add_argument("--switch", action="store_true", help="make .venv anew if it holds another Python than this")
    options, more = parser.parse_known_args(arguments)  # more: for the command
    if more and not COMMANDS[options.command]:
        parser.error(f"there is no {more[0]}")
    here, folder = options.here, Path(sys.prefix) if options.here else options.venv.absolute()
    try:
        with open(__file__) as lock:
            with contextlib.suppress(OSError, AttributeError):  # a file system or a system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)  # of two makes at once, the second waits and then finds all done
            own = not here and make_venv(folder, options.switch)
            python = Path(sys.executable) if here else python_in(folder)
            complete(python, folder, "" if here else "test", own)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 2
    if not here and not badges.repository() and badges.origin():
        badges.main([])  # a clone from GitHub knows where its notebooks open in Colab
    steps = COMMANDS[options.command]
    for step in steps:
        if code := subprocess.run([str(python), *step, *(more if step is steps[-1] else ())], cwd=ROOT).returncode:
            return code
    return 0


def python_in(folder: Path) -> Path:
    """The Python of an environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_venv(folder: Path, switch: bool) -> bool:
    """Create the environment if it is missing; returns whether it is entirely ours, so that we choose its versions.

    A base Python that has torch lends it to the environment, since torch is large and may fit that machine's GPU.
    """
    stamp, wanted, present = read_stamp(folder), sys.version_info[:2], None
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no environment, or its base Python is gone
        present = tuple(map(int, versions(python_in(folder))[0].split(".")[:2]))
    fits = present == wanted or not switch
    if "own" not in stamp and folder.exists() and any(folder.iterdir()):  # not made here: never removed
        if not present:
            raise SetupError(f"{folder} is no Python environment: remove it, or name another folder with VENV=.")
        if not fits:
            raise SetupError(f"{folder} has Python {present[0]}.{present[1]} and isn't ours: remove it, or PYTHON=.")
        return False
    if stamp.get("made") and present and fits:
        return bool(stamp["own"])
    own = sys.prefix != sys.base_prefix or "torch" not in versions(Path(sys.executable))[1]
    folder = folder.resolve()  # venv refuses links
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)  # a mounted disk can't be removed, only emptied
    write_stamp(folder, {"own": own})  # first, so that an interrupted environment is known to be ours
    command = [sys.executable, "-m", "venv", *([] if own else ["--system-site-packages"]), str(folder)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        cause = (made.stdout + made.stderr).strip().splitlines()[0]
        remedy = "on Debian and Ubuntu 'apt-get install python3-venv' fixes it, or name another Python with PYTHON="
        raise SetupError(f"{sys.executable} can't make an environment ({cause}): {remedy}.")
    write_stamp(folder, {"own": own, "made": True})
    return own


def complete(python: Path, folder: Path, extras: str, own: bool) -> None:
    """Install what is missing, unless the stamp says that nothing is."""
    stamp, key = read_stamp(folder), fingerprint(python, extras)
    if stamp.get("key") == key:
        return
    print(f"Setting up {folder}. The first time takes minutes, since torch is large.", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for command in commands(python, extras, own, Path(scratch)):
            if subprocess.run(command, cwd=ROOT, env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"}).returncode:
                raise SetupError("The set-up stopped: pip's message above says why. Fix it and repeat the command.")
    with contextlib.suppress(OSError):  # a system's folder: the next call checks again, which takes seconds
        write_stamp(folder, {**stamp, "key": key})
    print("Ready.", flush=True)


def commands(python: Path, extras: str, own: bool, scratch: Path) -> list[list[str]]:
    """The pip commands that install the project and then the game. `scratch`: a folder for a constraints file."""
    constraints = ROOT / "constraints.txt"
    if not own:
        constraints, found = scratch / "kept.txt", versions(python)[1]
        constraints.write_text("".join(f"{name}=={found[name]}\n" for name in KEPT if name in found))
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-warn-conflicts"]
    pip.append("--no-compile")  # Python compiles what is imported when it is; compiling all of torch would take longer
    project = f"{ROOT}[{extras}]" if extras else str(ROOT)
    return [[*pip, "-c", str(constraints), "-e", project], [*pip, "--no-deps", *game_packages()]]


def game_packages() -> list[str]:
    """The requirements of the Procgen build, for every Python: markers choose. (Python 3.10 can't read TOML itself.)"""
    group = re.search(r"^procgen = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    return re.findall(r'"(.+)"', group[1])


def versions(python: Path) -> tuple[str, dict[str, str]]:
    """The version of a Python and those of its packages."""
    done = subprocess.run([str(python), "-c", ASK_VERSIONS], capture_output=True, check=True, cwd="/")
    return tuple(json.loads(done.stdout))


def fingerprint(python: Path, extras: str) -> str:
    """Changes when what has to be installed changes: Python, folder, requirements or tested versions."""
    requirements = (ROOT / "pyproject.toml").read_text().split("[tool.")[0]
    parts = [versions(python)[0], extras, str(ROOT), requirements, (ROOT / "constraints.txt").read_text()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read_stamp(folder: Path) -> dict[str, object]:
    """What earlier calls wrote into the environment; empty if there is nothing readable."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((folder / STAMP).read_text())
    return {}


def write_stamp(folder: Path, stamp: dict[str, object]) -> None:
    (folder / STAMP).write_text(json.dumps(stamp) + "\n")


if __name__ == "__main__":
    sys.exit(main())
