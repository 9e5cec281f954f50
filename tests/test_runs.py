"""Run folders: read back, cut-off files, grouping of seeds, headline numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from fake_runs import make_run

from ppo_lib import runs
from ppo_lib.config import UserError
from ppo_lib.study import experiments

HEAD = "steps,split,level_seed,return,length\n"


def test_read_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.csv"
    path.write_text(HEAD + "100,train,3,2.0,50\n200,train,4,5.0,60\n200,unseen,77,1.0,40\n")
    data = runs.read_evaluation(tmp_path)
    assert data.checkpoints == [100, 200]
    assert data.select("train").returns.tolist() == [2.0, 5.0]
    assert data.select("train", 200).level_seed.tolist() == [4]
    assert len(data.select("unseen", 200)) == 1

    path.write_text(HEAD + "100,train,3,2.0,50\n200,tra")  # killed while writing
    assert len(runs.read_evaluation(path)) == 1
    path.write_text(HEAD + "100,train,3,2.0,50\n200,train,4,5.0,6")  # it may have been 60
    assert len(runs.read_evaluation(path)) == 1
    path.write_text(HEAD)
    assert len(runs.read_evaluation(path)) == 0
    for bad in ("steps,split\n1,train\n", HEAD + "x,train,3,2.0,50\n100,train,3,2.0,50\n", HEAD + "1,test,3,2.0,5\n"):
        path.write_text(bad)
        with pytest.raises(UserError):
            runs.read_evaluation(path)
    with pytest.raises(UserError, match="evaluate"):
        runs.read_evaluation(tmp_path / "absent")


def test_read_metrics(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("steps,return_mean,extra\n10,,1\n20,1.5,2\n30,2.")
    metrics = runs.read_metrics(tmp_path)
    assert metrics["steps"].tolist() == [10, 20]
    assert math.isnan(metrics["return_mean"][0]) and metrics["return_mean"][1] == 1.5


def test_summary_rests_on_the_last_evaluation(tmp_path: Path) -> None:
    run = runs.load_run(make_run(tmp_path / "a"))
    summary = experiments.summarize_run(run)
    expected = {split: run.evaluation.select(split, run.steps) for split in runs.SPLITS}
    assert summary.train.mean.value == pytest.approx(expected["train"].returns.mean())
    assert summary.gap.value == pytest.approx(expected["train"].returns.mean() - expected["unseen"].returns.mean())
    assert summary.train.length == pytest.approx(expected["train"].length.mean())
    assert (summary.steps, summary.train.episodes) == (run.config.batch_size * 12, 64)


def test_summary_of_an_unfinished_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    (folder / "evaluation.csv").unlink()
    (folder / "metrics.csv").unlink()
    summary = experiments.summarize_run(folder)
    assert summary == experiments.RunSummary(None, None, None, 0)
    assert runs.load_run(folder).steps == 0
    with pytest.raises(UserError, match="folder of a run"):
        runs.load_run(tmp_path)


def test_seeds_are_grouped_and_other_settings_are_not(tmp_path: Path) -> None:
    made = [
        runs.load_run(make_run(tmp_path / "a", seed=0)),
        runs.load_run(make_run(tmp_path / "b", 30.0, seed=1, device="cpu")),
        runs.load_run(make_run(tmp_path / "c", num_levels=200)),
    ]
    groups = experiments.group_experiments(made)
    assert [[run.name for run in group] for group in groups.values()] == [["a", "b"], ["c"]]
    summary = experiments.summarize_experiment(groups["a (2 seeds)"])
    single = experiments.summarize_run(made[0])
    other = experiments.summarize_run(made[1])
    assert summary.train.mean.value == pytest.approx((single.train.mean.value + other.train.mean.value) / 2)
    assert summary.train.mean.high - summary.train.mean.low > single.train.mean.high - single.train.mean.low
    assert (summary.unseen.runs, summary.unseen.episodes) == (2, 128)


def test_a_run_given_twice_counts_once_and_its_repetition_is_no_second_seed(tmp_path: Path) -> None:
    first, again = make_run(tmp_path / "a"), make_run(tmp_path / "again")
    other = make_run(tmp_path / "b", seed=1)
    assert [run.name for run in runs.load_runs([first, other, first])] == ["a", "b"]
    groups = experiments.group_experiments(runs.load_runs([first, again, other]))
    assert {label: [run.name for run in group] for label, group in groups.items()} == {
        "a (2 seeds)": ["a", "b"],
        "again": ["again"],
    }


def test_seeds_of_a_sweep_are_named_without_a_seed(tmp_path: Path) -> None:
    made = [runs.load_run(make_run(tmp_path / f"levels10-seed{seed}", num_levels=10, seed=seed)) for seed in (3, 4)]
    assert list(experiments.group_experiments(made)) == ["levels10 (2 seeds)"]
    assert list(experiments.group_experiments(made[:1])) == ["levels10-seed3"]


def test_names_and_films_of_runs(tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert runs.name_in(results / "quick", results) == "quick"
    assert runs.name_in(results / "s" / "a", results) == "s/a"
    assert runs.name_in(tmp_path / "a", results) == str(tmp_path / "a")
    assert runs.film_path(results / "s" / "a", results) == tmp_path / "videos" / "s" / "a.mp4"
    assert runs.film_path(tmp_path / "a", results) == tmp_path / "videos" / "a.mp4"


def test_a_config_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for content in (b"{", b"\xff\xfe", b"[]", b'{"gama": 1}'):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(UserError, match=str(tmp_path / "config.json")):
            runs.read_config(tmp_path)


def test_families_differ_in_more_than_levels_and_chance(tmp_path: Path) -> None:
    settings = {
        "a": {},
        "b": {"num_levels": 200, "seed": 7},
        "c": {"num_levels": 200, "recurrent": False, "gamma": 0.9},
    }
    made = [runs.load_run(make_run(tmp_path / name, **changes)) for name, changes in settings.items()]
    families = experiments.group_families([made[2], *made[:2]])
    assert families == {"": made[:2], "gamma 0.9, recurrent False": made[2:]}
    assert experiments.group_families([]) == {}


def test_runs_of_one_name_in_two_folders_are_kept_apart(tmp_path: Path) -> None:
    made = [
        runs.load_run(make_run(tmp_path / folder / "a", gamma=gamma)) for folder, gamma in (("x", 0.9), ("y", 0.99))
    ]
    groups = experiments.group_experiments(made)
    assert list(groups) == ["a", "y/a"] and list(groups.values()) == [[made[0]], [made[1]]]
