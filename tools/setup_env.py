"""Make the project's Python environment, or complete one that is there. `make setup` and the notebooks run this.

- Needs nothing but a Python with pip, so that it runs on a bare machine and in Colab.
- What it did is stamped into the environment: a second call finds the stamp and ends at once.
- An environment of our own gets exactly the tested versions (constraints.txt).
- One that isn't, or whose base Python has torch already, keeps its torch, numpy and ipywidgets (KEPT): pip may only
  add to them. So no constraints.txt there.
- The game's packages are installed without their dependencies: pyproject.toml says why, in [dependency-groups].
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT = ("torch", "numpy", "ipywidgets")
STAMP = "ppo_lib_setup.json"
ASK_VERSIONS = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps([".".join(map(str, sys.version_info[:3])), found]))
"""


class SetupError(Exception):
    """Something that the user can mend: one sentence that says how."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 if the environment is ready, 2 with one sentence if it isn't."""
    parser = argparse.ArgumentParser(description="Make or complete the project's Python environment.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="its folder (default: .venv)")
    parser.add_argument("--here", action="store_true", help="complete the environment of the Python that runs this")
    parser.add_argument("--extras", default=None, help="pyproject's extras, with commas (default: test; --here: none)")
    parser.add_argument("--switch", action="store_true", help="make .venv anew if it holds another Python than this")
    options = parser.parse_args(arguments)
    try:
        with open(__file__) as lock:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)  # two makes at once: the second waits and then finds all done
            if options.here:
                complete(Path(sys.executable), Path(sys.prefix), options.extras or "", own=False)
            else:
                own = make_venv(options.venv.absolute(), options.switch)
                extras = "test" if options.extras is None else options.extras
                complete(options.venv.absolute() / "bin" / "python", options.venv.absolute(), extras, own)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def make_venv(folder: Path, switch: bool) -> bool:
    """Create the environment unless it is there; returns whether it is wholly ours, so that we choose its versions.

    A base Python that has torch lends it to the environment, since torch is large and may fit that machine's GPU.
    """
    stamp = read_stamp(folder)
    made_here = "own" in stamp  # `complete` stamps an environment of the user's too, which nobody may remove
    wanted = [str(part) for part in sys.version_info[:2]]
    if folder.exists() and any(folder.iterdir()):
        try:
            present = versions(folder / "bin" / "python", [])[0].split(".")[:2]
        except (OSError, subprocess.CalledProcessError):
            present = []  # no environment, or its base Python is gone
        if not made_here:
            if not present:
                raise SetupError(f"{folder} is no Python environment: remove it, or name another folder with VENV=.")
            if switch and present != wanted:
                raise SetupError(
                    f"{folder} has Python {'.'.join(present)}, not made by this project: remove it, or PYTHON=."
                )
            return False
        if stamp.get("made") and present and (present == wanted or not switch):
            return bool(stamp["own"])
    lend = sys.prefix == sys.base_prefix and "torch" in versions(Path(sys.executable), ["torch"])[1]
    folder = folder.resolve()  # venv refuses links
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)  # a mounted disk can't be removed, only emptied
    write_stamp(folder, {"own": not lend})  # first, so that an interrupted environment is known to be ours
    command = [sys.executable, "-m", "venv", *(["--system-site-packages"] if lend else []), str(folder)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        cause = (made.stdout + made.stderr).strip().splitlines()[0]
        raise SetupError(
            f"{sys.executable} can't make an environment ({cause}): on Debian and Ubuntu "
            "'apt-get install python3-venv' mends it, or name another Python with PYTHON=."
        )
    write_stamp(folder, {"own": not lend, "made": True})
    return not lend


def complete(python: Path, folder: Path, extras: str, own: bool) -> None:
    """Install what is missing, unless the stamp says that nothing is."""
    key = fingerprint(python, extras)
    stamp = read_stamp(folder)
    if stamp.get("key") == key:
        return
    start = time.time()
    version, found = versions(python, ["torch"])
    patience = "" if found else " The first time takes minutes: torch is large."
    print(f"Setting up {folder} (Python {version}).{patience}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for command in commands(python, extras, own, Path(scratch)):
            if subprocess.run(command, cwd=ROOT, env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"}).returncode:
                raise SetupError(
                    "The set-up stopped: pip's message above has the cause. Mend it (often network or disk space), "
                    "and give the same command again."
                )
    with contextlib.suppress(OSError):  # a system's folder: the next call checks again, which costs seconds
        write_stamp(folder, {**stamp, "key": key})
    names = ["torch", "numpy", "gymnasium", *(requirement.split("==")[0] for requirement in game_packages())]
    ready = ", ".join(f"{name} {number}" for name, number in versions(python, names)[1].items())
    print(f"Ready after {time.time() - start:.0f} s: {ready}.", flush=True)


def commands(python: Path, extras: str, own: bool, scratch: Path) -> list[list[str]]:
    """The pip commands that install the project and then the game. `scratch`: a folder for a constraints file."""
    constraints = ROOT / "constraints.txt"
    if not own:
        kept = versions(python, KEPT)[1]
        constraints = scratch / "kept.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in kept.items()))
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-warn-conflicts"]
    pip.append("--no-compile")  # Python compiles what is imported when it is; all of torch would take longer
    project = f"{ROOT}[{extras}]" if extras else str(ROOT)
    return [[*pip, "-c", str(constraints), "-e", project], [*pip, "--no-deps", *game_packages()]]


def game_packages() -> list[str]:
    """The requirements of the Procgen build, for every Python: markers choose. (Python 3.10 can't read TOML itself.)"""
    group = re.search(r"^procgen = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    return re.findall(r'"(.+)"', group[1])


def versions(python: Path, names: list[str] | tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """The version of a Python and of those of its packages that are installed."""
    command = [str(python), "-c", ASK_VERSIONS, *names]
    version, found = json.loads(subprocess.run(command, capture_output=True, check=True, cwd="/").stdout)
    return version, found


def fingerprint(python: Path, extras: str) -> str:
    """Changes when what has to be installed changes: Python, folder, requirements or tested versions."""
    requirements = (ROOT / "pyproject.toml").read_text().split("[tool.")[0]
    text = "\n".join([versions(python, [])[0], extras, str(ROOT), requirements, (ROOT / "constraints.txt").read_text()])
    return hashlib.sha256(text.encode()).hexdigest()


def read_stamp(folder: Path) -> dict[str, object]:
    """What earlier calls wrote into the environment; empty if nothing readable."""
    try:
        return json.loads((folder / STAMP).read_text())
    except (OSError, ValueError):
        return {}


def write_stamp(folder: Path, stamp: dict[str, object]) -> None:
    (folder / STAMP).write_text(json.dumps(stamp) + "\n")


if __name__ == "__main__":
    sys.exit(main())
