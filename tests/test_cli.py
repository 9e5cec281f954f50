"""The command line as a user meets it: whole runs on the real game, real kills, and every mistake explained.

Most commands run in the tests' own process; a process of its own has what is killed or prints into a pipe.
"""

import csv
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ppo_lib import evaluate as evaluation
from ppo_lib import video
from ppo_lib.__main__ import FIELDS, main
from ppo_lib.checkpoint import load_checkpoint, load_policy
from ppo_lib.ppo import PPO

ROOT = Path(__file__).resolve().parent.parent
TINY = shlex.split(
    "--num-envs 4 --num-steps 16 --num-minibatches 2 --num-epochs 1 --sequence-length 8 --eval-episodes 2 "
    "--checkpoint-interval 64 --device cpu --precision float32"
)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""}


pytestmark = pytest.mark.xdist_group("cli")  # they share a trained run


def start(folder, *arguments, **options):
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder, env=ENVIRONMENT, text=True) | options
    return subprocess.Popen([sys.executable, "-m", "ppo_lib", *map(str, arguments)], **options)


def finish(process):
    try:
        process.out, process.err = process.communicate(timeout=300)
    finally:
        process.kill()
    return process


@pytest.fixture(scope="module", autouse=True)
def _small():
    """Videos of a second."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("record_video", "record_comparison"):
            patch.setattr(video, name, partial(getattr(video, name), max_seconds=1))
        yield


@pytest.fixture
def here(monkeypatch, capsys):
    """Run a command in this process, in a folder."""

    def call(folder, *arguments):
        monkeypatch.chdir(folder)
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=code, out=out, err=err)

    return call


@pytest.fixture
def refused(here):
    """Expect exit code 2 with one sentence, and a folder that stays as it was."""

    def check(folder, *arguments, words):
        before = snapshot(folder)
        process = here(folder, *arguments)
        assert process.returncode == 2 and process.out == ""
        assert process.err.startswith("error: ") and process.err.count("\n") == 1, process.err
        assert re.search(words, process.err), process.err
        assert snapshot(folder) == before

    return check


def until(condition):
    """Wait for something to become true."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def snapshot(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def rows(path):
    with open(path) as file:
        return [{k: v for k, v in row.items() if "second" not in k} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder in which one tiny run was trained and evaluated by one command."""
    folder = tmp_path_factory.mktemp("project")
    process = finish(start(folder, "train", "--run", "first", "--total-steps", 128, *TINY))
    assert process.returncode == 0, process.err
    shown = process.err + process.out
    assert not re.search(r"(?i)warning|deprecat|gym has been unmaintained|traceback", shown), shown  # our words alone
    return folder


def test_train_finish_leaves_everything_and_says_where(project, here):
    out = here(project, "train", "--run", "first", "--resume", "--finish").out
    report, film = re.search(r"Report: (.*)", out)[1], re.search(r"Video: +(.*)", out)[1]
    assert (report, film) == ("results/first/report.html", "results/videos/first.mp4")
    assert (project / report).stat().st_size > 10_000 and 1000 < (project / film).stat().st_size < 1_000_000
    assert not (project / "videos").exists()  # with --results /out in a container, it would be lost
    folder = project / "results" / "first"
    assert [int(row["steps"]) for row in rows(folder / "metrics.csv")] == [64, 128]
    assert {row["split"] for row in rows(folder / "evaluation.csv")} == {"train", "unseen"}
    assert (folder / "policy.pt").stat().st_size < 2.5e6
    assert json.loads((folder / "config.json").read_text())["num_envs"] == 4
    assert any(folder.glob("events.out.tfevents*")) and any(folder.glob("*.png"))


@pytest.mark.parametrize(
    ("ruin", "cause"),
    [
        (lambda path, patch: patch.setenv("IMAGEIO_FFMPEG_EXE", "/absent/ffmpeg"), "/absent/ffmpeg can't write H.264"),
        (lambda path, patch: path.write_text(""), "File exists: .*videos"),
    ],
    ids=["no ffmpeg", "no folder"],
)
def test_a_report_is_made_without_a_video_whose_failure_is_told_by_its_cause(project, here, monkeypatch, ruin, cause):
    folder = project / "elsewhere"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(project / "results" / "first", folder / "first")
    ruin(folder / "videos", monkeypatch)
    done = here(project, "train", "--run", "first", "--resume", "--finish", "--results", folder)
    assert done.returncode == 0 and re.search(f"^No video: .*{cause}", done.err, re.M), done.err
    assert "another folder" not in done.err and (folder / "first" / "report.html").stat().st_size > 10_000


def test_a_new_run_gets_a_name_of_its_own(project, here):
    process = here(project, "train", "--total-steps", 64, "--eval-interval", -1, *TINY)
    assert process.returncode == 0, process.err
    assert re.search(r"Run: +results/quick-\d{8}-\d{6}", process.out)


def test_evaluate_adds_episodes_and_prints_intervals(project, here):
    folder = project / "results" / "first"
    process = here(project, "evaluate", "first", "--episodes", 3)
    assert process.returncode == 0, process.err
    assert re.search(r"unseen levels, 3 episodes: mean return .*\[.*\], normalised", process.out)
    assert "gap" in process.out and "IQM" not in process.out  # of a single run, it would be the mean
    found = rows(folder / "evaluation.csv")
    assert len(found) == 6 and {row["steps"] for row in found} == {"128"}
    process = here(project, "evaluate", "first", "--episodes", 2, "--greedy")
    assert process.returncode == 0 and len(rows(folder / "evaluation_greedy.csv")) == 4
    assert len(rows(folder / "evaluation.csv")) == 6
    process = here(project, "evaluate", "first", "--episodes", 2)
    assert "Not kept" in process.out and "3 episodes" in process.out and rows(folder / "evaluation.csv") == found


def test_an_evaluation_takes_the_place_of_one_of_its_size(project, monkeypatch, capsys):
    """Three episodes on at most two environments are played as four, by equal shares."""
    monkeypatch.setattr(evaluation, "MAX_ENVS", 2)
    shutil.copytree(project / "results" / "first", project / "results" / "again")
    (project / "results" / "again" / "evaluation.csv").unlink()
    for _ in range(2):
        assert main(["evaluate", "again", "--episodes", "3", "--results", str(project / "results")]) == 0
        assert "Not kept" not in capsys.readouterr().out
        assert len(rows(project / "results" / "again" / "evaluation.csv")) == 8


def test_a_file_that_cannot_be_written_is_one_sentence(project, here):
    folder = project / "results" / "first"
    (folder / "evaluation.tmp").mkdir()
    process = here(project, "evaluate", "first", "--episodes", 3)
    (folder / "evaluation.tmp").rmdir()
    assert process.returncode == 2 and process.err.count("\n") == 1 and "evaluation.tmp: Is a directory" in process.err
    assert "mean return" in process.out  # what was played is printed all the same


def test_a_video_of_several_runs(project, here):
    shutil.copytree(project / "results" / "first", project / "results" / "copy")
    process = here(project, "video", "first", "copy", "--levels", 2)
    assert process.returncode == 0, process.err
    assert (project / "results" / "videos" / "first-beside-copy.mp4").is_file()


def test_runs_of_a_sweep_keep_their_name_in_commands_and_videos(project, here):
    """From anywhere: the first command is given in the run's own folder."""
    shutil.copytree(project / "results" / "first", project / "results" / "s" / "first")
    process = here(project / "results" / "s" / "first", "video", ".", "--levels", 2, "--results", project / "results")
    assert process.returncode == 0 and (project / "results" / "videos" / "s" / "first.mp4").is_file(), process.err
    process = here(project, "report", "s/first")
    assert process.returncode == 0, process.err
    page = (project / "results" / "s" / "first" / "report.html").read_text()
    assert "<video" in page and "python -m ppo_lib evaluate s/first\n" in page


def test_sigkill_and_resume_equals_one_go(tmp_path, here):
    flags = [*TINY, "--eval-interval", 128, "--total-steps", 384]
    folder = tmp_path / "results" / "killed"
    process = start(tmp_path, "train", "--run", "killed", *flags)
    until((folder / "checkpoint.pt").exists)
    process.kill()
    finish(process)
    assert process.returncode == -signal.SIGKILL and load_checkpoint(folder)["steps"] < 384

    assert here(tmp_path, "train", "--run", "killed", "--resume").returncode == 0
    assert here(tmp_path, "train", "--run", "whole", *flags).returncode == 0
    for name in ("metrics.csv", "evaluation.csv"):
        assert rows(folder / name) == rows(tmp_path / "results" / "whole" / name)
    one, other = (load_checkpoint(tmp_path / "results" / name)["ppo"]["policy"] for name in ("killed", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_interrupt_saves_and_says_how_to_resume(tmp_path, here):
    """In a folder with a space, and with a second signal at once. (Once all is saved, one may end the process.)"""
    process = start(tmp_path, "train", "--run", "long", "--results", "my runs", "--total-steps", 1_000_000, *TINY)
    metrics = tmp_path / "my runs" / "long" / "metrics.csv"
    until(lambda: metrics.exists() and metrics.read_text().count("\n") > 2)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGHUP)
    finish(process)
    assert process.returncode == 130 and "Traceback" not in process.err, process.err
    command = shlex.split(process.out.partition("Continue with:")[2])
    assert command == shlex.split("python -m ppo_lib train --run long --resume --results 'my runs'")
    steps = load_checkpoint(metrics.parent)["steps"]
    assert f"saved at {steps:,} of 1,000,000" in process.out
    more = here(tmp_path, *command[3:], "--total-steps", steps + 64, "--eval-interval", -1)
    assert more.returncode == 0, more.err


@pytest.mark.parametrize("place", [os.pipe, pty.openpty], ids=["pipe", "terminal"])
def test_a_closed_pipe_or_terminal_ends_no_training(tmp_path, place):
    """As with `train ... | head -1` or a window that was closed: everything is saved."""
    reader, writer = place()
    os.close(reader)
    with open(writer, "wb", 0) as closed:
        streams = dict(stdout=closed) if place is os.pipe else dict(stdout=closed, stderr=closed)
        process = finish(start(tmp_path, "train", "--run", "piped", "--total-steps", 64, *TINY, **streams))
    assert process.returncode == 0, process.err
    if place is os.pipe:
        assert "Traceback" not in process.err and process.err.count("The terminal failed") == 1, process.err
    assert load_policy(tmp_path / "results" / "piped")[2] == 64
    assert len(rows(tmp_path / "results" / "piped" / "evaluation.csv")) == 4


def test_a_home_folder_is_found(project, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(project))
    assert main(["report", "first", "--results=~/results"]) == 0
    assert "report.html" in capsys.readouterr().out and not (Path.cwd() / "~").exists()


def test_help_explains_every_field_and_loads_no_torch():
    code = (
        "import sys; from ppo_lib.__main__ import FIELDS, main\n"
        "try: main(['train', '--help'])\n"
        "finally: print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, text=True, capture_output=True)
    words = " ".join(shown.stdout.split())
    assert words.endswith("False") and "--num-levels INT training levels; 0 = unlimited (default: 50)" in words
    for name in FIELDS:
        assert re.search(rf"--{name.replace('_', '-')}\b[^(]*(?: \([^(]*)* \(default: ", words), name


def test_a_finished_run_can_be_prolonged(project, here):
    shutil.copytree(project / "results" / "first", project / "results" / "short")
    process = here(project, "train", "--run", "short", "--resume", "--total-steps", 192, "--eval-interval", -1)
    assert process.returncode == 0, process.err
    assert [int(row["steps"]) for row in rows(project / "results/short/metrics.csv")] == [64, 128, 192]
    assert json.loads((project / "results/short/config.json").read_text())["total_steps"] == 192


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train --env-name starpilo", "did you mean 'starpilot'"),
        ("train --preset papper", "did you mean 'paper'"),
        ("train --gama 0.9", "did you mean '--gamma'"),
        ("train --gamma 1.5", "at most 1"),
        ("train --num-envs many", "num_envs must be a whole number, not 'many'"),
        ("train --num-minibatches 7", "(doesn't|does not) divide.*try 8"),
        ("train --sequence-length 30", "(doesn't|does not) divide.*try 32"),
        ("train --run ../elsewhere", "name is made of letters"),
        ("train --run first", "exists.*--resume"),
        ("train --run first --resume --gamma 0.9", "gamma 0.999 -> 0.9"),
        ("train --run first --resume --no-recurrent", "recurrent True -> False"),
        ("train --resume", "give --run NAME"),
        ("train --run frist --resume", "did you mean 'first'"),
        ("train --results first.txt/results", r"could not be written \(Not a directory\); choose another folder"),
        ("train --precision fp16 --device cpu", "fp16 needs a GPU"),
        ("train --run first --resume --total-steps 64", "128 steps already"),
        ("evaluate nowhere", "There is no run 'nowhere'"),
        ("evaluate first --precision float32", "evaluate takes no --precision"),
        ("report broken", "broken/config.json: The config is not a JSON object"),
        ("evaluate first --episodes 0", "at least 1"),
        ("evaluate first --unseen-levels 40 20", "overlap"),
        ("video first --levels 3", "must be even"),
        ("video first first --levels 3", "multiple of the 2 runs"),
        ("report nowhere", "There is no run 'nowhere'"),
        (
            "sweep --sweep s --env-name starpilot coinrun --distribution-mode extreme --dry-run",
            "coinrun has no extreme mode",
        ),
        ("fly first", "invalid choice"),
        ("", "COMMAND"),
    ],
)
def test_mistakes_get_one_sentence_and_change_nothing(project, refused, arguments, words):
    (project / "first.txt").touch()
    (project / "results" / "broken").mkdir(exist_ok=True)
    (project / "results" / "broken" / "config.json").write_text("{")
    refused(project, *arguments.split(), words=words)


def test_the_exit_code_reaches_the_shell(tmp_path):
    process = finish(start(tmp_path, "train", "--gama", 0.9))
    assert process.returncode == 2 and process.err.count("\n") == 1 and process.out == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU whose absence is tested")
def test_cuda_without_a_gpu(project, refused):
    refused(project, "train", "--device", "cuda", words="no CUDA GPU.*--device cpu")


def test_a_ruined_checkpoint_offers_the_previous_one(project, refused):
    shutil.copytree(project / "results" / "first", project / "results" / "ruined")
    path = project / "results" / "ruined" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:5000])
    refused(project, "train", "--run", "ruined", "--resume", words="steps, is intact.*`mv .*previous")
    assert load_policy(path.parent)[2] == 128  # the policy is a file of its own


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_delays_a_save_and_a_folder_that_stays_closed_keeps_the_last_one(project, here, monkeypatch):
    folder = project / "results" / "full"
    shutil.copytree(project / "results" / "first", folder)
    (folder / "checkpoint.tmp").symlink_to("/dev/full")  # until the first try has failed
    command = ["train", "--run", "full", "--resume", "--eval-interval", -1, "--total-steps"]
    process = here(project, *command, 192)
    assert process.returncode == 0 and process.err.count("The disk is full: ") == 1, process.err
    assert load_checkpoint(folder)["steps"] == 192
    (folder / "checkpoint.tmp").mkdir()
    monkeypatch.setattr("ppo_lib.logger.PAUSES", ())
    process = here(project, *command, 256)
    assert process.returncode == 2 and "error: results/full/checkpoint.pt could not be written" in process.err
    assert "Traceback" not in process.err and load_checkpoint(folder)["steps"] == 192
    (folder / "checkpoint.tmp").rmdir()
    assert here(project, *command, 256).returncode == 0 and load_checkpoint(folder)["steps"] == 256


def test_a_diverging_run_stops_with_the_cause_and_resumes(tmp_path, here, monkeypatch):
    loss, command = PPO.loss, ["train", "--run", "wild", "--total-steps", 64, "--eval-interval", -1, *TINY]
    with monkeypatch.context() as patch:
        patch.setattr(PPO, "loss", lambda self, batch: (loss(self, batch)[0] * float("inf"), loss(self, batch)[1]))
        process = here(tmp_path, *command)
    assert process.returncode == 2 and "diverged" in process.err and "lower --learning-rate" in process.err
    assert here(tmp_path, "train", "--run", "wild", "--resume").returncode == 0


@pytest.mark.parametrize("network", ["--recurrent", "--no-recurrent"])
def test_the_largest_learning_rate_trains_on_or_ends_in_that_sentence(tmp_path, here, network):
    process = here(tmp_path, "train", "--run", "wild", "--total-steps", 256, "--learning-rate", 1, network, *TINY)
    told = re.search("^error: Training diverged: .* lower --learning-rate", process.err, re.M)
    assert process.returncode == (2 if told else 0) and "Traceback" not in process.err, process.err
