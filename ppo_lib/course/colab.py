"""The notebooks' ground: what this machine has, where runs go, and the checks and budgets that cells use.

- Imports only the standard library until `setup` runs: a Python that lacks everything can load it and is told so.
- In Colab the game's package is installed by tools/setup_env.py, which never replaces torch, numpy or ipywidgets.
- Each thing that is missing is named with its remedy in one sentence; nothing is retried or hidden.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
DRIVE = Path("/content/drive")  # where Colab mounts it
NEEDED = ("numpy", "torch", "gymnasium", "matplotlib", "ipywidgets", "imageio_ffmpeg", "tensorboard", "tqdm")


@dataclass(frozen=True)
class Project:
    """Where the project lies, where its runs go, and what they run on."""

    root: Path  # the repository's folder
    results: Path  # one folder a run
    videos: Path  # films
    device: torch.device  # cuda if this machine has a usable GPU, else cpu


def setup(project: str | Path | None = None) -> Project:
    """Print what this machine has and what to do about the rest; in Colab, install the game first.

    project: the repository's folder (default: the one that this package lies in).
    Raises ModuleNotFoundError or UserError with the remedy if a package or the game is missing.
    """
    root = Path(project or Path(__file__).parents[2]).resolve()
    if in_colab():
        _complete(root)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"This Python lacks {', '.join(missing)}: run `make lab` in {root}, or choose the kernel of its .venv."
        )
    import torch

    from ppo_lib.envs import procgen_build

    build = procgen_build()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"Python   {platform.python_version()}{' in Colab' if in_colab() else ''}")
    print(f"torch    {torch.__version__}")
    print(f"GPU      {_gpu(device)}")
    print(f"Procgen  {build.package} {build.version}")
    print(f"Project  {root}")
    if smoke():
        print("PPO_SMOKE=1: every run is shortened to show only that it works.")
    return Project(root, root / "results", root / "videos", device)


def use_drive(folder: str = "DeepLearningPPO") -> Path:
    """The folder for runs on Google Drive, `MyDrive/<folder>/results`, so that they outlive the Colab machine.

    Asks for permission on first use. Outside Colab there is no Drive: the project's own results folder is returned.
    Raises UserError if permission is refused.
    """
    if not in_colab():
        print("Not in Colab: runs stay in the project's results folder.")
        return Path(__file__).resolve().parents[2] / "results"
    from google.colab import drive

    from ppo_lib.config import UserError

    try:
        drive.mount(str(DRIVE))
    except Exception as error:  # Colab raises several types, by the way in which permission failed
        raise UserError(
            f"Google Drive could not be mounted ({error}): run this cell again and allow it, or leave it out and "
            "download the run before Colab ends."
        ) from None
    results = DRIVE / "MyDrive" / folder / "results"
    results.mkdir(parents=True, exist_ok=True)
    print(f"Runs are kept in {results}.")
    return results


def in_colab() -> bool:
    """Whether this is a notebook of Google Colab: its kernel loads google.colab at the start."""
    return "google.colab" in sys.modules


def smoke() -> bool:
    """Whether PPO_SMOKE=1 asks for the shortest runs that still use every cell."""
    return os.environ.get("PPO_SMOKE") == "1"


def budget(full: T, smoke: T) -> T:
    """`full`, or `smoke` under PPO_SMOKE=1: notebooks shorten their runs with it, without a branch."""
    return smoke if os.environ.get("PPO_SMOKE") == "1" else full


def check(condition: object, claim: str, hint: str = "") -> None:
    """Print a green tick and the claim if it holds; otherwise AssertionError with the claim and where to look.

    condition: anything with a truth value. claim: what should be so, such as "my advantages equal ppo_lib's".
    hint: what a failure usually means.
    """
    if not bool(condition):
        raise AssertionError(f"This should be so, but isn't: {claim}. {hint}".rstrip())
    print(f"\033[32m✓\033[0m {claim}")


def _gpu(device: torch.device) -> str:
    """The GPU's name, or what to do about its absence."""
    import torch

    if device.type == "cuda":
        size = torch.cuda.get_device_properties(device).total_memory / 2**30
        return f"{torch.cuda.get_device_name(device)}, {size:.0f} GB"
    if in_colab():
        return "none. Everything works, training slowly: Runtime > Change runtime type > T4 GPU, then run all again"
    if shutil.which("nvidia-smi"):
        return "none that this torch can use: see pytorch.org/get-started for the build that fits its driver"
    return "none: all runs on the CPU"


def _complete(root: Path) -> None:
    """Install what Colab lacks, unless the game is there."""
    if any(importlib.util.find_spec(name) for name in ("procgen", "procgen_gym")):
        return
    command = [sys.executable, str(root / "tools" / "setup_env.py"), "--here"]
    print("Installing the game: half a minute, once a machine.", flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"The game could not be installed; run this cell again. The cause:\n{done.stdout}{done.stderr}"
        )
    importlib.invalidate_caches()
