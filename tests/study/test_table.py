"""The table of a sweep: printed, as CSV and as Markdown."""

import csv
import shutil
from pathlib import Path

import pytest
from fake_runs import make_run

from ppo_lib.runs import load_run
from ppo_lib.study.groups import summarize_experiment
from ppo_lib.study.table import conclude, table

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_has_a_row_per_experiment(tmp_path, capsys):
    folder = tmp_path / "results" / "s"
    runs = [
        make_run(folder / f"levels{levels}-seed{seed}", updates=4, num_levels=levels, seed=seed, total_steps=65_536)
        for seed in (1, 2) for levels in (10, 50)
    ]  # fmt: skip
    for run in runs[:2]:
        (run / "log.txt").write_text(f"python ...\n  0%|\r\r{run.name}: CPU with 2 cores, bf16 (its ...)\n 5%|")
    conclude(runs)
    out = capsys.readouterr().out
    loaded = [load_run(run) for run in runs]
    rows = table(loaded)
    assert [(row["num_levels"], row["seeds"]) for row in rows] == [(10, "1 2"), (50, "1 2")]
    for row, pair in zip(rows, (loaded[0::2], loaded[1::2]), strict=True):
        expected = summarize_experiment(pair)
        assert (row["train"], row["unseen"], row["gap"]) == (expected.train.mean, expected.unseen.mean, expected.gap)
        assert row["episodes"] == 128 and row["steps"] == 65_536
        assert row["seconds"] == 160 and row["steps_per_second"] == pytest.approx(65_536 / 160)
        assert row["machine"] == "CPU with 2 cores"
    with open(folder / "table.csv") as file:
        written = list(csv.DictReader(file))
    assert [float(row["unseen_high"]) for row in written] == pytest.approx([row["unseen"].high for row in rows], 1e-4)
    assert [row["seeds"] for row in written] == ["1 2", "1 2"]
    text = (folder / "table.md").read_text()
    assert text.strip() in out and str(rows[1]["gap"]) in text and "over seeds first" in text
    assert {"report.html", "report_levels_curve.png"} <= {path.name for path in folder.iterdir()}
    assert str(folder / "report_levels_curve.png") in out


def test_the_table_of_one_seed_and_other_fields(tmp_path):
    runs = [
        load_run(make_run(tmp_path / f"lr{rate}", learning_rate=rate, eval_interval=-1, seed=3))
        for rate in (1e-4, 1e-3)
    ]
    (tmp_path / "lr0.0001/evaluation.csv").unlink()
    runs[0] = load_run(tmp_path / "lr0.0001")
    conclude([run.path for run in runs])
    text = (tmp_path / "table.md").read_text()
    assert [row["learning_rate"] for row in table(runs)] == [1e-4, 1e-3]
    assert "intervals over seeds first, where there are several" in text and "learning rate" in text and "| -" in text
    assert table(runs[1:])[0]["num_levels"] == 50


def test_published_results_follow_the_table_of_the_published_protocol(tmp_path):
    shutil.copytree(ROOT / "results/reference", tmp_path / "reference")
    paper = dict(num_levels=200, use_backgrounds=True, restrict_themes=False)
    conclude([make_run(tmp_path / "paper" / f"s{seed}", seed=seed, **paper) for seed in (1, 2)])
    assert "| UCB-DrAC" in (tmp_path / "paper/table.md").read_text()
    conclude([make_run(tmp_path / "plain/s1", num_levels=200)])
    assert "UCB-DrAC" not in (tmp_path / "plain/table.md").read_text()


def test_how_much_is_measured_is_no_setting_of_the_experiment(tmp_path):
    """A first seed with 256 episodes of which more were played later, and a second one with 512 from the start."""
    changes = ({"eval_episodes": 256}, {"eval_episodes": 512, "eval_interval": 10**6, "checkpoint_interval": 10**6})
    runs = [load_run(make_run(tmp_path / f"s{seed}", seed=seed, **fields)) for seed, fields in enumerate(changes)]
    [row] = table(runs)
    assert row["seeds"] == "0 1" and "eval_episodes" not in row
