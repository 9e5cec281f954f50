"""Set-up of the notebooks: report this machine, choose where runs go, and the check and budget that cells use.

- Imports only the standard library until `setup` runs: a Python without the packages can load it and say what to do.
- In Colab the game is installed by tools/setup_env.py, which never replaces torch, numpy or ipywidgets.
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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds ppo_lib
DRIVE = Path("/content/drive")  # where Colab mounts it
NEEDED = ("numpy", "torch", "gymnasium", "matplotlib", "ipywidgets", "imageio", "imageio_ffmpeg", "jinja2", "filelock",
          "tensorboard", "tqdm")  # fmt: skip


@dataclass(frozen=True)
class Project:
    """The folders of the project and the device of its runs."""

    root: Path  # the repository
    results: Path  # one folder per run
    device: torch.device  # cuda if torch can use a GPU, else cpu


def setup() -> Project:
    """Print what this machine has and what to do about the rest; in Colab, install the game first.

    Raises ModuleNotFoundError, RuntimeError or UserError, with the remedy, if a package or the game is missing.
    """
    if in_colab():
        install_game()
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise ModuleNotFoundError(f"This Python lacks {', '.join(missing)}: run `make lab` or choose the .venv kernel.")
    import torch
    from IPython import get_ipython

    from ppo_lib.accel.hardware import cpu_threads
    from ppo_lib.course.drawing import Figure, notebook_png
    from ppo_lib.envs import procgen_build

    build = procgen_build()
    torch.set_num_threads(cpu_threads())  # with more than OMP_THREAD_LIMIT, torch's convolutions never return
    if shell := get_ipython():
        shell.display_formatter.formatters["image/png"].for_type(Figure, notebook_png)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = "none: all runs on the CPU"
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        gpu = f"{torch.cuda.get_device_name(device)}, {memory / 2**30:.0f} GB"
    elif in_colab():
        gpu = "none. Everything works, training slowly: Runtime > Change runtime type > T4 GPU, then run all again"
    elif shutil.which("nvidia-smi"):
        gpu = "none that this torch can use: see pytorch.org/get-started for the build that fits its driver"
    print(f"Python   {platform.python_version()}{' in Colab' if in_colab() else ''}")
    print(f"torch    {torch.__version__}")
    print(f"GPU      {gpu}")
    print(f"Procgen  {build.package} {build.version}")
    print(f"Project  {ROOT}")
    if smoke():
        print("PPO_SMOKE=1: every run is shortened, to show only that it works.")
    return Project(ROOT, ROOT / "results", device)


def install_game() -> None:
    """Install the game in this Python unless it is there. Raises RuntimeError with pip's output if that fails."""
    if any(importlib.util.find_spec(name) for name in ("procgen", "procgen_gym")):
        return
    print("Installing the game: half a minute, once per machine.", flush=True)
    command = [sys.executable, str(ROOT / "tools" / "setup_env.py"), "--here"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"Installing the game failed; run this cell again. Output:\n{done.stdout}{done.stderr}")
    importlib.invalidate_caches()


def use_drive(folder: str = "DeepLearningPPO") -> Path:
    """The folder for runs on Google Drive, `MyDrive/<folder>/results`, so that they outlive the Colab machine.

    Outside Colab: the project's results folder. Raises UserError if the permission that it asks for is refused.
    """
    if not in_colab():
        print("Not in Colab: runs stay in the project's results folder.")
        return ROOT / "results"
    from google.colab import drive

    from ppo_lib.config import UserError

    try:
        drive.mount(str(DRIVE))
    except Exception as error:  # Colab raises several types, depending on how permission failed
        remedy = "run this cell again and allow it, or skip it and download the run before Colab ends"
        raise UserError(f"Google Drive could not be mounted ({error}): {remedy}.") from None
    results = DRIVE / "MyDrive" / folder / "results"
    results.mkdir(parents=True, exist_ok=True)
    print(f"Runs are kept in {results}.")
    return results


def in_colab() -> bool:
    """Whether this is a Google Colab notebook: its kernel loads google.colab at the start."""
    return "google.colab" in sys.modules


def smoke() -> bool:
    """Whether PPO_SMOKE=1 asks for the shortest runs that still use every cell."""
    return os.environ.get("PPO_SMOKE") == "1"


def budget(full: Any, smoke: Any) -> Any:
    """`full`, or `smoke` under PPO_SMOKE=1: shortens the runs of a notebook without a branch."""
    return smoke if os.environ.get("PPO_SMOKE") == "1" else full


def check(condition: object, claim: str, hint: str = "") -> None:
    """Print a green tick and the claim if the condition is true; else raise AssertionError with claim and hint."""
    if not condition:
        raise AssertionError(f"Expected, but not true: {claim}. {hint}".rstrip())
    print(f"\033[32m✓\033[0m {claim}")
