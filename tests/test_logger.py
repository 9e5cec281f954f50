"""metrics.csv: flushed, cut at the checkpoint on resume, robust to a kill in the middle of a row."""

import csv

import pytest

from ppo_lib.config import UserError
from ppo_lib.logger import METRICS, Logger, keep_rows


def metrics(steps):
    return {name: float(steps) for name in METRICS} | {"steps": steps, "episodes": 3}


def steps_of(path):
    return [int(row["steps"]) for row in csv.DictReader(path.read_text().splitlines())]


def test_rows_are_on_disk_at_once(tmp_path):
    logger = Logger(tmp_path, 100, progress=False)
    logger.update(metrics(10))
    assert steps_of(tmp_path / "metrics.csv") == [10]  # before close
    logger.close()


def test_resume_cuts_newer_rows_and_appends(tmp_path):
    logger = Logger(tmp_path, 100, progress=False)
    for steps in (10, 20, 30):
        logger.update(metrics(steps))
    logger.close()
    logger = Logger(tmp_path, 100, steps=20, progress=False)
    logger.update(metrics(30))
    logger.close()
    assert steps_of(tmp_path / "metrics.csv") == [10, 20, 30]


def test_a_row_cut_short_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("steps,a,b\n10,1,2\n20,1\n")
    keep_rows(path, ("steps", "a", "b"), 100)
    assert path.read_text().split() == ["steps,a,b", "10,1,2"]


@pytest.mark.parametrize("content", ["steps;a\n10;1\n", "steps,a\n10.0,1\n"])
def test_a_file_that_a_spreadsheet_rewrote_is_explained(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=r"metrics\.csv is not as this project wrote it"):
        keep_rows(path, ("steps", "a"), 100)
    assert path.read_text() == content


def test_closing_does_not_hide_what_went_wrong(tmp_path):
    logger = Logger(tmp_path, 100, progress=False)
    logger.file.close()
    logger.file = open("/dev/full", "w")  # noqa: SIM115 (closed by the logger)
    logger.writer = csv.DictWriter(logger.file, METRICS)
    with pytest.raises(OSError, match="No space"):
        logger.update(metrics(10))
    logger.close()


def test_tensorboard_gets_every_metric(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = Logger(tmp_path, 100, progress=False)
    logger.update(metrics(10))
    logger.evaluation(10, {"train": 2.0, "unseen": 1.0})
    logger.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {f"train/{name}" for name in METRICS[2:]} | {"evaluation/unseen_return"} <= set(tags)
    assert events.Scalars("train/return_mean")[0].value == 10


def test_the_bar_shows_return_speed_and_time_left(tmp_path, capsys):
    logger = Logger(tmp_path, 100)
    logger.update(metrics(50))
    logger.message("a line of its own")
    logger.close()
    err = capsys.readouterr().err
    assert "return 50.00" in err and "50/100" in err and "step/s" in err
