"""The report: right numbers, self-contained, and made from whatever a run has."""

from __future__ import annotations

import csv
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fake_runs import make_run

from ppo_lib import stats
from ppo_lib.config import UserError, preset
from ppo_lib.encode import write_video
from ppo_lib.runs import load_run
from ppo_lib.study import published
from ppo_lib.study.experiments import summarize_run
from ppo_lib.study.report import command_of, write_report

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "results" / "reference" / "starpilot_easy200_openai_ppo.csv"


class Tags(HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def check_self_contained(page: Path) -> None:
    for _, attributes in Tags(page).tags:
        for name in ("src", "href", "poster", "srcset"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.search(r"https?://|url\(|@import", page.read_text(encoding="utf-8"))


def test_report_of_a_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "results" / "quick")
    frames = (np.full((64, 96, 3), 8 * i, np.uint8) for i in range(20))
    write_video(frames, tmp_path / "videos" / "quick.mp4")
    page = write_report(folder)
    assert page == folder / "report.html"
    for name in ("learning_curve", "train_vs_unseen", "return_by_level", "diagnostics"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    check_self_contained(page)
    tags = Tags(page)
    assert tags.count("video") == 1
    assert tags.count("img") == 5  # four figures and the film's still picture
    assert all(attributes.get("alt") for tag, attributes in tags.tags if tag == "img")
    assert any(attributes.get("name") == "viewport" for tag, attributes in tags.tags if tag == "meta")
    assert page.stat().st_size < 2_000_000


def test_numbers_are_those_of_the_csv(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "quick")
    text = Tags(write_report(folder)).text
    # genfromtxt adds an underscore to names that are Python's own words
    rows = np.genfromtxt(folder / "evaluation.csv", delimiter=",", names=True, dtype=None, encoding="utf-8")
    last = rows[rows["steps"] == rows["steps"].max()]
    train, unseen = (last["return_"][last["split"] == split].astype(float) for split in ("train", "unseen"))
    for returns in (train, unseen):
        low, high = stats.bootstrap_ci(returns)
        assert f"{returns.mean():.2f}95%: {low:.2f} to {high:.2f}" in text  # tile
        assert f"{returns.mean():.2f} [{low:.2f}, {high:.2f}]" in text  # table
    assert str(stats.generalization_gap(train, unseen)) in text
    assert f"{stats.interquartile_mean(unseen):.2f}" in text
    assert f"{(unseen.mean() - 2.5) / 61.5:.2f}" in text
    assert "random agent1.5" in text


@pytest.mark.parametrize("place", ["run", "sweep/run"])
def test_film_and_published_curves_are_found(tmp_path: Path, place: str, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    paper = dict(num_levels=200, use_backgrounds=True, restrict_themes=False)
    folder = make_run(tmp_path / "results" / place, updates=20, **paper)
    results = tmp_path / "results"
    assert Tags(write_report(folder, results=results)).count("video") == 0
    alone = (folder / "learning_curve.png").read_bytes()
    write_video((np.full((64, 96, 3), i, np.uint8) for i in range(5)), tmp_path / "videos" / f"{place}.mp4")
    (tmp_path / "results" / "reference").mkdir()
    (tmp_path / "results" / "reference" / REFERENCE.name).write_bytes(REFERENCE.read_bytes())
    tags = Tags(write_report(folder, results=results))
    assert tags.count("video") == 1 and f"ppo_lib evaluate {place}\n" in tags.text
    assert tags.text.count("--results") == (place != "run")  # train alone takes a sweep's folder
    assert place == "run" or re.search("train --preset [^\n]* --results results/sweep\n", tags.text)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = Tags(write_report(folder, results=results)).text
    assert f"--results {folder.parent}\n" in text and f"ppo_lib video {place} --results {results}" in text
    assert (folder / "learning_curve.png").read_bytes() != alone


PAPER = dict(num_levels=200, use_backgrounds=True, restrict_themes=False, total_steps=1_000_000, num_envs=512)


def test_published_results_stand_beside_runs_of_their_protocol(tmp_path: Path) -> None:
    results = ROOT / "results"
    runs = [load_run(make_run(tmp_path / "easy", updates=8, **PAPER))]
    header, *rows = published.table(runs, results)
    assert header == published.HEADER and {row[1] for row in rows} == {"200"}
    assert ["PPO", "200", "25,000,000", "10", "-", "26.8 ± 1.5", "PLR, arXiv 2010.03934, table 2"] in rows
    assert "mixreg" in Tags(write_report(runs, tmp_path / "page.html", results=results)).text
    other = load_run(make_run(tmp_path / "other", **{**PAPER, "distribution_mode": "hard"}))
    assert published.table([*runs, other], results) == [] and published.tables(runs, tmp_path) == []
    unlimited = load_run(make_run(tmp_path / "unlimited", **{**PAPER, "num_levels": 0}))
    assert {row[1] for row in published.table([unlimited], results)[1:]} == {"unlimited"}


def test_published_curves_are_read_off_where_all_seeds_were_evaluated(tmp_path: Path, monkeypatch) -> None:
    """Two seeds were evaluated at 262,144 and 524,288 steps, a third at 524,288 and 1,048,576."""
    runs = [load_run(make_run(tmp_path / f"s{seed}", updates=4, seed=seed, shift=seed, **PAPER)) for seed in (0, 1)]
    runs += [load_run(make_run(tmp_path / "s2", updates=8, seed=2, shift=2, **PAPER))]
    runs += [load_run(make_run(tmp_path / "ten", updates=8, **{**PAPER, "num_levels": 10}))]
    header, row = published.comparison(runs, ROOT / "results")
    assert header == published.COMPARED and row[:3] == ["s0 (3 seeds)", "3", "524,288"]
    with open(REFERENCE, newline="") as file:
        points = {(r["split"], r["run"], r["timesteps"]): float(r["mean_episode_return"]) for r in csv.DictReader(file)}
    for split, ours, theirs in (("train", *row[3:5]), ("test", *row[5:])):
        known = []
        for name in "012":
            before, after = (points[split, name, str(steps)] for steps in (500_000, 1_000_000))
            known.append(before + (after - before) * 24_288 / 500_000)
        assert theirs == f"{np.mean(known):.2f} ({', '.join(f'{mean:.2f}' for mean in known)})"
        returns = [run.evaluation.select("unseen" if split == "test" else split, 524_288).returns for run in runs[:3]]
        assert ours == f"{stats.estimate(returns)} ({', '.join(f'{r.mean():.2f}' for r in returns)})"
    page = Tags(write_report(runs, tmp_path / "page.html", results=ROOT / "results")).text
    assert row[3] in page and row[4] in page
    short = load_run(make_run(tmp_path / "short", updates=1, **PAPER))
    assert published.comparison([short], ROOT / "results") == []  # before the curves begin
    assert published.comparison(runs[3:], ROOT / "results") == []
    alone = published.comparison(runs[2:3], ROOT / "results")
    assert [row[2] for row in alone[1:]] == ["524,288", "1,048,576"] and "(" not in alone[1][3]
    monkeypatch.setattr(published, "_MOST_ROWS", 1)
    assert published.comparison(runs[2:3], ROOT / "results") == [header, alone[-1]]


def test_when_a_return_was_reached(tmp_path: Path) -> None:
    good = make_run(tmp_path / "good", shift=4)  # evaluated after 6 and 12 updates of 40 seconds
    make_run(tmp_path / "bad", shift=-4)
    assert "until unseen levels give" not in Tags(write_report(tmp_path / "bad")).text
    text = Tags(write_report([good, tmp_path / "bad"])).text
    assert re.search(r"5 or more8 or more\s*good98.3k steps, 4 minutes", text), text


def test_report_of_an_unfinished_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "new")
    (folder / "evaluation.csv").unlink()
    tags = Tags(write_report(folder))
    assert "Not evaluated yet" in tags.text and "No film yet" in tags.text
    assert tags.count("img") == 2
    (folder / "metrics.csv").unlink()
    assert Tags(write_report(folder)).count("img") == 0


def test_report_of_several_runs(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / "a", seed=0),
        make_run(tmp_path / "b", seed=1),
        make_run(tmp_path / "c", num_levels=200),
    ]
    page = write_report(folders)
    assert page == tmp_path / "report.html"
    check_self_contained(page)
    text = Tags(page).text
    assert "a (2 seeds)" in text and "c" in text
    assert "from all seeds from a run's last training level on" in text
    assert "from all seeds from 50 on" in Tags(write_report(folders[:2])).text
    assert (tmp_path / "report_levels_curve.png").exists()
    other = write_report(folders, tmp_path / "sub" / "compare.html")
    assert other.exists() and str(summarize_run(folders[2]).unseen.mean) in Tags(other).text


def test_a_game_without_published_score(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "maze", env_name="maze", distribution_mode="memory")
    text = Tags(write_report(folder)).text
    assert "0 to 1" not in text and "random agent" not in text


def test_names_are_escaped(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "<script>alert(1)<"))
    assert Tags(page).count("script") == 0


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="folder of a run"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="needs a run"):
        write_report([])


def test_command_repeats_the_run(tmp_path: Path) -> None:
    config = preset("paper", seed=3, total_steps=1_000_000, normalize_reward=False)
    words = shlex.split(command_of(config, "mine"))
    assert words[3:8] == ["train", "--preset", "paper", "--run", "mine"]
    assert set(words[8:]) == {"--seed", "3", "--total-steps", "1000000", "--no-normalize-reward"}
    assert command_of(preset("quick"), "x") == "python -m ppo_lib train --preset quick --run x"
    assert command_of(load_run(make_run(tmp_path / "r")).config, "r").endswith("--run r")
