"""Published results beside runs of their protocol, read off where all seeds were evaluated."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from fake_runs import make_run

from ppo_lib import stats
from ppo_lib.config import UserError
from ppo_lib.runs import load_run
from ppo_lib.study import published

RESULTS = Path(__file__).resolve().parents[2] / "results"
PAPER = dict(num_levels=200, use_backgrounds=True, restrict_themes=False, total_steps=1_000_000, num_envs=512)


def test_published_results_stand_beside_runs_of_their_protocol(tmp_path: Path) -> None:
    runs = [load_run(make_run(tmp_path / "easy", updates=8, **PAPER))]
    header, *rows = published.table(runs, RESULTS)
    assert header == published.HEADER and {row[1] for row in rows} == {"200"}
    assert ["PPO", "200", "25,000,000", "10", "-", "26.8 ± 1.5", "PLR, arXiv 2010.03934, table 2"] in rows
    other = load_run(make_run(tmp_path / "other", **{**PAPER, "distribution_mode": "hard"}))
    assert published.table([*runs, other], RESULTS) == [] and published.tables(runs, tmp_path) == []
    assert published.curves(runs, RESULTS).keys() == {"train", "unseen"} and published.curves([other], RESULTS) == {}
    unlimited = load_run(make_run(tmp_path / "unlimited", **{**PAPER, "num_levels": 0}))
    assert {row[1] for row in published.table([unlimited], RESULTS)[1:]} == {"unlimited"}


def test_published_curves_are_read_off_where_all_seeds_were_evaluated(tmp_path: Path, monkeypatch) -> None:
    """Two seeds were evaluated at 262,144 and 524,288 steps, a third at 524,288 and 1,048,576."""
    runs = [load_run(make_run(tmp_path / f"s{seed}", updates=4, seed=seed, shift=seed, **PAPER)) for seed in (0, 1)]
    runs += [load_run(make_run(tmp_path / "s2", updates=8, seed=2, shift=2, **PAPER))]
    runs += [load_run(make_run(tmp_path / "ten", updates=8, **{**PAPER, "num_levels": 10}))]
    header, row = published.comparison(runs, RESULTS)
    assert header == published.COMPARED and row[:3] == ["s0 (3 seeds)", "3", "524,288"]
    with open(RESULTS / "reference" / published.CURVES, newline="") as file:
        points = {(r["split"], r["run"], r["timesteps"]): float(r["mean_episode_return"]) for r in csv.DictReader(file)}
    for split, ours, theirs in (("train", *row[3:5]), ("test", *row[5:])):
        known = []
        for name in "012":
            before, after = (points[split, name, str(steps)] for steps in (500_000, 1_000_000))
            known.append(before + (after - before) * 24_288 / 500_000)
        assert theirs == f"{np.mean(known):.2f} ({', '.join(f'{mean:.2f}' for mean in known)})"
        returns = [run.evaluation.select("unseen" if split == "test" else split, 524_288).returns for run in runs[:3]]
        assert ours == f"{stats.estimate(returns)} ({', '.join(f'{r.mean():.2f}' for r in returns)})"
    short = load_run(make_run(tmp_path / "short", updates=1, **PAPER))
    assert published.comparison([short], RESULTS) == []  # before the curves begin
    assert published.comparison(runs[3:], RESULTS) == []
    alone = published.comparison(runs[2:3], RESULTS)
    assert [row[2] for row in alone[1:]] == ["524,288", "1,048,576"] and "(" not in alone[1][3]
    monkeypatch.setattr(published, "_MOST_ROWS", 1)
    assert published.comparison(runs[2:3], RESULTS) == [header, alone[-1]]


def test_a_file_without_curves_is_refused(tmp_path: Path) -> None:
    for content in ("steps,return\n1,2\n", "split,run,timesteps,mean_episode_return\ntrain,0,1,many\n"):
        (tmp_path / "curves.csv").write_text(content)
        with pytest.raises(UserError, match=r"curves\.csv"):
            published.read_curves(tmp_path / "curves.csv")
