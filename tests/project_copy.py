"""A copy of the project for tests that run it elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_COPIED = (".git", ".venv*", "*cache*", ".hypothesis", "*.egg-info", "build", "checkpoint*", "events.out.*")


def copy_project(target: Path) -> Path:
    """Copy the project as it is now, without git, environments and checkpoints; returns its folder."""
    return Path(shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*NOT_COPIED)))
