"""Progress of exercises is kept in a file of the test."""

import pytest


@pytest.fixture(autouse=True)
def progress_path(monkeypatch, tmp_path):
    """The progress file of this test, which isn't there yet."""
    path = tmp_path / "progress.json"
    monkeypatch.setenv("PPO_PROGRESS", str(path))
    return path
