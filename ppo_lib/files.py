"""Files that are there whole or as they were before, whatever happens while they are written; locks."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ppo_lib.config import UserError


@contextmanager
def replacing(path: Path, mode: str = "w", keep: Path | None = None) -> Iterator[IO]:
    """A file to write (UTF-8, line ends as they come; or mode "wb") that takes path's place when the block ends well.

    It is on the disk before it does. What was there before moves to `keep`, if given. An error in the block leaves it.
    """
    temporary = path.with_suffix(".tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with open(temporary, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def lock(file: IO, wait: bool = False) -> bool:
    """Lock an open file until it is closed or this process ends; False if another process has it (wait: until then).

    On a file system without locks, such as a mounted Drive, nobody ever has it.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True


def write_error(error: OSError, path: Path) -> UserError:
    """One sentence for a write that failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"The disk is full: {path} could not be written. Free some space; what was saved is kept.")
    return UserError(f"{path} could not be written ({error.strerror}); with --results choose a folder that can.")
