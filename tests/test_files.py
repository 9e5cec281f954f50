"""Files are replaced whole or left alone; locks, and their absence."""

import errno
import fcntl
import subprocess
import sys

import pytest

from ppo_lib import files


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_a_file_is_replaced_when_it_is_whole(tmp_path, mode):
    path, text = tmp_path / "a.csv", {"w": "é\r\n", "wb": "é\r\n".encode()}[mode]
    path.write_text("old")
    with files.replacing(path, mode, keep=tmp_path / "b.csv") as file:
        file.write(text)
        assert path.read_text() == "old"
    assert path.read_bytes() == "é\r\n".encode() and (tmp_path / "b.csv").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), files.replacing(path) as file:
        file.write("new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_lock_is_held_until_its_process_ends(tmp_path):
    hold = "import sys; from ppo_lib.files import lock; f = open(sys.argv[1], 'w'); print(lock(f), flush=True); input()"
    command = [sys.executable, "-c", hold, str(tmp_path / "lock")]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other,
        open(tmp_path / "lock", "w") as file,
    ):
        assert other.stdout.readline() == b"True\n"
        assert not files.lock(file)
        other.kill()
        assert files.lock(file, wait=True)


def test_a_file_system_without_locks_has_none(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "lockf", unknown)
    with open(tmp_path / "lock", "w") as file:
        assert files.lock(file) and files.lock(file, wait=True)


def test_a_full_disk_is_named(tmp_path):
    assert "disk is full" in str(files.write_error(OSError(errno.ENOSPC, "No space left on device"), tmp_path))
    assert "Read-only file system" in str(files.write_error(OSError(errno.EROFS, "Read-only file system"), tmp_path))
