"""Run folders read back: cut-off and rewritten files, what counts as a difference between two runs, names."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from fake_runs import make_run

from ppo_lib import runs
from ppo_lib.config import PPOConfig, UserError

ROOT = Path(__file__).resolve().parents[1]
HEAD = "steps,split,level_seed,return,length\n"


def test_read_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.csv"
    path.write_text(HEAD + "100,train,3,2.0,50\n200,train,4,5.0,60\n200,unseen,77,1.0,40\n")
    data = runs.read_evaluation(path)
    assert data.checkpoints == [100, 200]
    assert data.select("train").returns.tolist() == [2.0, 5.0]
    assert data.select("train", 200).level_seed.tolist() == [4]
    assert len(data.select("unseen", 200)) == 1

    path.write_text(HEAD + "100,train,3,2.0,50\n200,tra")  # killed while writing
    assert len(runs.read_evaluation(path)) == 1
    path.write_text(HEAD + "100,train,3,2.0,50\n200,train,4,5.0,6")  # it may have been 60
    assert len(runs.read_evaluation(path)) == 1
    for begun in (HEAD, HEAD[:9], ""):
        path.write_text(begun)
        assert len(runs.read_evaluation(path)) == 0
    assert len(runs.read_evaluation(tmp_path / "absent.csv")) == 0


def test_read_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("steps,return_mean,extra\n10,,1\n20,1.5,2\n30,2.")
    metrics = runs.read_metrics(tmp_path)
    assert metrics["steps"].tolist() == [10, 20] and metrics["extra"].tolist() == [1, 2]
    assert math.isnan(metrics["return_mean"][0]) and metrics["return_mean"][1] == 1.5
    for begun in ("", "steps,ret", "steps,return_mean\n"):  # a run in its first update
        path.write_text(begun)
        assert runs.read_metrics(tmp_path) == {}


@pytest.mark.parametrize(
    "content",
    [
        "steps,split\n1,train\n",
        HEAD.replace(",", ";") + "100;train;3;2,0;50\n",  # a spreadsheet of a country with decimal commas
        HEAD + "x,train,3,2.0,50\n100,train,3,2.0,50\n",
        HEAD + "1,test,3,2.0,5\n",
        HEAD + "100,train,3,2,0,50\n",
        HEAD + "1.2e5,train,3,2.0,50\n",
        HEAD + '100,train,3,"2.0"x\r,50\n',
    ],
)
def test_rewritten_files_are_refused_in_a_sentence(tmp_path: Path, content: str) -> None:
    make_run(tmp_path / "a")
    (tmp_path / "a" / "evaluation.csv").write_text(content, newline="")
    with pytest.raises(UserError, match=r"evaluation\.csv.*restore"):
        runs.load_run(tmp_path / "a")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    (folder / "metrics.csv").write_bytes(b"steps\n\xff\xfe\n")
    with pytest.raises(UserError, match=r"metrics\.csv, row 1: .*decode byte.*restore"):
        runs.load_run(folder)
    for content in (b"{", b"\xff\xfe", b"[]", b'{"gamma": 1}'):
        (folder / "config.json").write_bytes(content)
        with pytest.raises(UserError, match=str(folder / "config.json")):
            runs.read_config(folder)
    with pytest.raises(UserError, match="folder of a run"):
        runs.load_run(tmp_path)


def test_the_cause_of_a_failed_read_is_named(tmp_path: Path, monkeypatch) -> None:
    folder = make_run(tmp_path / "a")

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UserError, match=r"config\.json: .*Permission denied"):
        runs.load_run(folder)


def test_a_run_given_twice_counts_once(tmp_path: Path) -> None:
    first, other = make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1)
    assert [run.name for run in runs.load_runs([first, other, tmp_path / "." / "a"])] == ["a", "b"]


def test_what_counts_as_a_difference(tmp_path: Path) -> None:
    base = PPOConfig()
    for same in (
        {"device": "cpu"},
        {"eval_interval": 9, "eval_episodes": 9, "checkpoint_interval": 9},
        {"total_steps": 9},
    ):
        assert runs.changed_settings(base, base.replace(**same)) == {}
    assert runs.changed_settings(base, base.replace(precision="bf16")) == {"precision": ("auto", "bf16")}
    assert runs.changed_settings(base, base.replace(seed=2)) == {"seed": (0, 2)}
    decayed = base.replace(anneal_lr=True)
    assert list(runs.changed_settings(base, decayed.replace(total_steps=9))) == ["anneal_lr"]
    assert list(runs.changed_settings(decayed, decayed.replace(total_steps=9))) == ["total_steps"]

    @dataclasses.dataclass(frozen=True)
    class Mine(PPOConfig):
        extra: float = 1.0

    assert runs.changed_settings(base, Mine()) == {"extra": (None, 1.0)}
    assert runs.changed_settings(Mine(), Mine(extra=2.0)) == {"extra": (1.0, 2.0)}


def test_what_cannot_change_when_a_run_is_resumed() -> None:
    saved = PPOConfig(precision="bf16", device="cpu")
    assert runs.fixed_changes(saved, saved.replace(precision="auto", device="auto", total_steps=10**6)) == ""
    assert runs.fixed_changes(saved, saved.replace(precision="float32")) == "precision bf16 -> float32"
    assert runs.fixed_changes(saved, saved.replace(gamma=0.9, seed=3)) == "seed 0 -> 3, gamma 0.999 -> 0.9"


def test_common_steps(tmp_path: Path) -> None:
    """One run was evaluated after 2 and 4 updates, one after 4 and 8, one never."""
    made = [runs.load_run(make_run(tmp_path / str(n), updates=n, seed=n)) for n in (4, 8)]
    step = made[0].config.batch_size
    assert runs.common_steps(made[:1]) == [2 * step, 4 * step] and runs.common_steps(made) == [4 * step]
    (tmp_path / "4" / "evaluation.csv").write_text(HEAD)
    assert runs.common_steps([made[1], runs.load_run(tmp_path / "4")]) == [4 * step, 8 * step]
    (tmp_path / "4" / "evaluation.csv").write_text(f"{HEAD}{4 * step},train,3,2.0,50\n")
    half = runs.load_run(tmp_path / "4")
    assert runs.common_steps([made[1], half]) == [] and runs.common_steps([made[1], half], "train") == [4 * step]
    assert runs.common_steps([]) == []


def test_names_and_videos_of_runs(tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert runs.name_in(results / "quick", results) == "quick"
    assert runs.name_in(results / "s" / "a", results) == "s/a"
    assert runs.name_in(tmp_path / "a", results) == str(tmp_path / "a")
    assert runs.video_path(results / "s" / "a", results) == results / "videos" / "s" / "a.mp4"
    assert runs.video_path(tmp_path / "a", results) == results / "videos" / "a.mp4"
    assert runs.video_path(ROOT / "results" / "quick", ROOT / "results") == ROOT / "videos" / "quick.mp4"


def test_a_run_is_found_by_name_or_path(tmp_path: Path, monkeypatch) -> None:
    results = tmp_path / "results"
    made = [make_run(results / name, updates=2) for name in ("quick", "sweep/levels10-seed0")]
    assert runs.find_run("quick", results) == made[0] and runs.find_run("sweep/levels10-seed0", results) == made[1]
    monkeypatch.chdir(made[1])
    assert runs.find_run(".", results) == made[1]
    with pytest.raises(UserError, match=r"no run 'quik' in .*did you mean 'quick'"):
        runs.find_run("quik", results)
    with pytest.raises(UserError, match="quick, sweep/levels10-seed0"):
        runs.find_run("xyz", results)
    with pytest.raises(UserError, match="none yet"):
        runs.find_run("xyz", tmp_path / "empty")


def test_committed_runs_hold_every_field() -> None:
    """So that a later change of a default can't change what they mean."""
    listed = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    found = [ROOT / name for name in listed if name.endswith("/config.json")] or [
        *(ROOT / "results").rglob("config.json")
    ]
    assert found
    for path in found:
        assert list(json.loads(path.read_text())) == list(PPOConfig().to_dict()), path


def test_reading_runs_imports_neither_torch_nor_matplotlib() -> None:
    code = "import sys, ppo_lib.runs, ppo_lib.stats; print({'torch', 'matplotlib', 'pandas'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "set()\n"
