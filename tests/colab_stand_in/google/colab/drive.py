"""google.colab.drive: the checks and messages of the real `mount`, on a plain folder."""

from __future__ import annotations

import os


def mount(mountpoint: str, force_remount: bool = False, timeout_ms: int = 120000, readonly: bool = False) -> None:
    """Mount Google Drive at `mountpoint`, which then holds MyDrive."""
    if " " in mountpoint:
        raise ValueError("Mountpoint must not contain a space.")
    drive = os.path.join(mountpoint, "MyDrive")
    if os.path.isdir(drive) and not force_remount:
        print(
            f"Drive already mounted at {mountpoint}; to attempt to forcibly remount, call "
            f'drive.mount("{mountpoint}", force_remount=True).'
        )
        return
    if os.path.isdir(mountpoint) and os.listdir(mountpoint) and not force_remount:
        raise ValueError("Mountpoint must not already contain files")
    if os.environ.get("STAND_IN_DRIVE") == "refuse":
        raise ValueError("mount failed")
    os.makedirs(drive)
    print(f"Mounted at {mountpoint}")
