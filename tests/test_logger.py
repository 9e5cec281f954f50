"""metrics.csv: flushed, cut at the checkpoint on resume, open to new metrics; what only shows ends no training."""

import csv
import errno
import os
import sys

import pytest

from ppo_lib.config import UserError
from ppo_lib.logger import Logger, keep_rows

METRICS = (
    "steps", "seconds", "episodes", "return_mean", "length_mean", "policy_loss", "value_loss", "entropy",
    "approx_kl", "clip_fraction", "explained_variance", "grad_norm", "learning_rate", "clip_range",
    "entropy_coef", "steps_per_second",
)  # fmt: skip


def metrics(steps):
    return {name: float(steps) for name in METRICS} | {"steps": steps, "episodes": 3}


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def steps_of(path):
    return [int(row["steps"]) for row in rows(path)]


def test_rows_are_on_disk_at_once(tmp_path):
    logger = Logger(tmp_path, 100, progress=False)
    logger.update(metrics(10))
    assert steps_of(tmp_path / "metrics.csv") == [10]  # before close
    logger.update({**metrics(20), "return_mean": float("nan"), "entropy": 1 / 3})
    logger.close()
    values = "20,20,3,nan,20,20,20,0.333333,20,20,20,20,20,20,20,20"
    assert (tmp_path / "metrics.csv").read_bytes().decode().split("\r\n")[::2] == [",".join(METRICS), values]


def test_resume_cuts_newer_rows_and_appends(tmp_path):
    logger = Logger(tmp_path, 100, progress=False)
    for steps in (10, 20, 30):
        logger.update(metrics(steps))
    logger.close()
    before = (tmp_path / "metrics.csv").read_bytes()
    logger = Logger(tmp_path, 100, steps=20, progress=False)
    logger.update(metrics(30))
    logger.close()
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_a_new_metric_becomes_a_column_and_survives_a_resume(tmp_path):
    path = tmp_path / "metrics.csv"
    logger = Logger(tmp_path, 100, progress=False)
    logger.update(metrics(10))
    logger.update({**metrics(20), "consistency": 0.5})
    logger.update(metrics(30))
    logger.close()
    assert [row["consistency"] for row in rows(path)] == ["", "0.5", ""]
    assert list(rows(path)[0]) == [*METRICS, "consistency"]
    for steps in (10, 0):  # at 0, every row goes
        logger = Logger(tmp_path, 100, steps=steps, progress=False)
        logger.update({**metrics(20), "auxiliary_loss": 2.0})
        logger.close()
        assert [(row["consistency"], row["auxiliary_loss"]) for row in rows(path)][-1] == ("", "2")
        assert steps_of(path) == ([10, 20] if steps else [20])


def test_a_row_cut_short_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("steps,a,b\n10,1,2\n20,1")
    assert keep_rows(path, (), 100) == ["steps", "a", "b"]
    assert path.read_text().split() == ["steps,a,b", "10,1,2"]


@pytest.mark.parametrize("content", ["steps;a\n10;1\n", "steps,a\n10.0,1\n"])
def test_a_file_that_a_spreadsheet_rewrote_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=r"metrics\.csv.*restore"):
        Logger(tmp_path, 100, steps=20, progress=False)
    assert path.read_text() == content


def test_closing_does_not_hide_what_went_wrong(tmp_path):
    logger = Logger(tmp_path, 100, progress=False)
    logger.update(metrics(10))
    logger.file.close()
    logger.file = open("/dev/full", "w")  # noqa: SIM115 (closed by the logger)
    with pytest.raises(OSError, match="No space"):
        logger.update(metrics(20))
    logger.close()


def test_tensorboard_gets_every_metric(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = Logger(tmp_path, 100, progress=False)
    logger.update({**metrics(10), "consistency": 0.5})
    logger.evaluation(10, {"train": 2.0, "unseen": 1.0})
    logger.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = {f"train/{name}" for name in METRICS[2:]} | {"train/consistency"}
    assert set(events.Tags()["scalars"]) == tags | {"evaluation/train_return", "evaluation/unseen_return"}
    assert events.Scalars("train/return_mean")[0].value == 10


def test_the_bar_shows_return_speed_and_time_left(tmp_path, capsys):
    logger = Logger(tmp_path, 100)
    logger.update(metrics(50))
    logger.message("a line of its own")
    logger.close()
    out, err = capsys.readouterr()
    assert "return 50.00" in err and "50/100" in err and "step/s" in err and out == "a line of its own\n"


def fail(*_, **__):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("what", ["TensorBoard", "The progress bar", "The terminal"])
def test_what_only_shows_fails_once_and_the_rows_go_on(tmp_path, capsys, monkeypatch, what):
    logger = Logger(tmp_path, 100)
    owner, method = {
        "TensorBoard": (logger.events, "add_scalar"), "The progress bar": (logger.bar, "update"),
        "The terminal": (type(logger.bar), "write"),
    }[what]  # fmt: skip
    monkeypatch.setattr(owner, method, fail)
    for steps in (10, 20):
        logger.update(metrics(steps))
        logger.evaluation(steps, {"train": 2.0})
    logger.close()
    err = capsys.readouterr().err
    assert err.count("training continues") == 1 and f"{what} failed ([Errno 5] Input/output error)" in err
    assert steps_of(tmp_path / "metrics.csv") == [10, 20]


def test_a_logger_without_any_place_to_show(tmp_path, monkeypatch):
    """Not even the report of the failure can be written; nor can TensorBoard's folder be made."""
    monkeypatch.setattr("ppo_lib.logger.SummaryWriter", fail)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        monkeypatch.setattr(sys, "stderr", closed)
        logger = Logger(tmp_path, 100)
        logger.message("lost")
        logger.update(metrics(10))
        logger.evaluation(10, {"train": 2.0})
        logger.close()
        monkeypatch.undo()
        with pytest.raises(BrokenPipeError):
            closed.close()
    assert steps_of(tmp_path / "metrics.csv") == [10]
