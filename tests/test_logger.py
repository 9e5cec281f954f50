"""metrics.csv: flushed, cut at the checkpoint on resume, open to new metrics; what only shows ends no training."""

import contextlib
import csv
import errno
import os
import resource
import sys

import pytest

from ppo_lib.config import UserError
from ppo_lib.logger import Logger, PatientWriter, keep_rows

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


class FailingFile:
    """A file of a drive that drops while it is written: half of what is written arrives."""

    def __init__(self, path, *options, **more):
        self.file = open(path, *options, **more)  # noqa: SIM115 (closed by __exit__)

    def __enter__(self):
        return self

    def write(self, text):
        self.file.write(text[: len(text) // 2])
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    def __exit__(self, *_):
        self.file.close()


def test_a_row_that_was_half_written_is_written_again(tmp_path, capsys, monkeypatch):
    """Once, and what shows an update is not shown again."""
    logger = Logger(tmp_path, 100)
    logger.update(metrics(10))
    shown = []
    monkeypatch.setattr(logger.events, "add_scalar", lambda *values: shown.append(values))
    with monkeypatch.context() as patch:
        patch.setattr("ppo_lib.logger.open", FailingFile, raising=False)
        for _ in range(2):
            with pytest.raises(OSError, match="not connected"):
                logger.update(metrics(20))
    assert (tmp_path / "metrics.csv").read_bytes()[-1:] != b"\n"
    logger.update(metrics(20))
    logger.update(metrics(30))
    logger.close()
    assert steps_of(tmp_path / "metrics.csv") == [10, 20, 30] and len(set(shown)) == len(shown)


def test_a_row_that_arrived_although_its_write_failed_is_there_once(tmp_path, monkeypatch):
    logger = Logger(tmp_path, 100, progress=False)

    class FailsToClose(FailingFile):
        def write(self, text):
            self.file.write(text)

        def __exit__(self, *_):
            self.file.close()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    logger.update(metrics(10))
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr("ppo_lib.logger.open", FailsToClose, raising=False)
        logger.update(metrics(20))
    assert steps_of(tmp_path / "metrics.csv") == [10, 20]
    logger.update(metrics(20))
    assert steps_of(tmp_path / "metrics.csv") == [10, 20]


# --- writes that fail for a while -------------------------------------------------------------------------------------


class Drive:
    """Writes "name: text" into a list, except while it is down."""

    def __init__(self):
        self.down, self.written = True, []

    def write(self, text):
        if self.down:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        self.written.append(text)


def test_what_can_not_be_written_waits_in_order_and_is_reported_once(tmp_path, capsys):
    drive, write = Drive(), PatientWriter(tmp_path)
    write("other.pt", lambda: None)
    for steps in (10, 20):
        write("metrics.csv", lambda steps=steps: drive.write(f"row {steps}"), steps)
        write("checkpoint.pt", lambda steps=steps: drive.write(f"state {steps}"))
    sentence = r"%s could not be written (Transport endpoint is not connected). Training continues, and this is tried"
    err = capsys.readouterr().err
    assert all(err.count(sentence % (tmp_path / name)) == 1 for name in ("metrics.csv", "checkpoint.pt"))
    assert err.count("\n") == 2
    drive.down = False
    write("metrics.csv", lambda: drive.write("row 30"), 30)
    assert drive.written == ["row 10", "state 20", "row 20", "row 30"]  # the newest state alone
    drive.down = True
    write("metrics.csv", lambda: drive.write("row 40"), 40)
    assert capsys.readouterr().err.count("metrics.csv could not be written") == 1  # a new failure


def test_a_file_that_was_damaged_meanwhile_waits_for_its_repair(tmp_path, capsys):
    logger, write = Logger(tmp_path, 100, progress=False), PatientWriter(tmp_path)
    logger.update(metrics(10))
    rows_before = (tmp_path / "metrics.csv").read_text()
    (tmp_path / "metrics.csv").write_text(rows_before.replace(",", ";"))
    write("metrics.csv", lambda: logger.update({**metrics(20), "consistency": 0.5}), 20)
    assert "there is no column 'steps'; restore the file" in capsys.readouterr().err
    (tmp_path / "metrics.csv").write_text(rows_before)
    write.finish()
    assert steps_of(tmp_path / "metrics.csv") == [10, 20]


def test_the_last_tries_are_patient_and_end_in_one_sentence(tmp_path, monkeypatch):
    drive, write, pauses = Drive(), PatientWriter(tmp_path), []
    write("metrics.csv", lambda: drive.write("row 10"), 10)
    monkeypatch.setattr("ppo_lib.logger.time.sleep", pauses.append)
    with pytest.raises(UserError, match=r"metrics\.csv could not be written \(Transport endpoint"):
        write.finish()
    assert pauses == [1, 2, 4]

    def come_back(seconds):
        drive.down = False

    monkeypatch.setattr("ppo_lib.logger.time.sleep", come_back)
    write.finish()
    assert drive.written == ["row 10"]
    write.finish()
    assert drive.written == ["row 10"]


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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_events_that_find_no_room_are_reported_once(tmp_path, capsys):
    """TensorBoard writes in a thread of its own, here to a real file that may not grow."""
    logger, limits = Logger(tmp_path, 100, progress=False), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        for steps in range(10, 100, 10):
            logger.update(metrics(steps))
            with contextlib.suppress(OSError):
                logger.events.flush()
        logger.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert capsys.readouterr().err.count("TensorBoard failed ([Errno 27] File too large); training continues") == 1
    assert steps_of(tmp_path / "metrics.csv") == list(range(10, 100, 10))


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
