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

from ppo_lib import published, stats
from ppo_lib.config import UserError, preset
from ppo_lib.encode import write_video
from ppo_lib.experiments import summarize_run
from ppo_lib.report import command_of, write_report
from ppo_lib.runs import load_run

ROOT = Path(__file__).resolve().parent.parent
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


def test_published_results_stand_beside_runs_of_their_protocol(tmp_path: Path) -> None:
    results = ROOT / "results"
    paper = dict(num_levels=200, use_backgrounds=True, restrict_themes=False, total_steps=1_000_000, num_envs=512)
    runs = [load_run(make_run(tmp_path / "easy", updates=8, **paper))]
    header, ours, *others = published.table(runs, results)
    with open(REFERENCE, newline="") as file:
        rows = list(csv.DictReader(file))
    for split, cell in (("train", ours[4]), ("test", ours[5])):
        found = [float(r["mean_episode_return"]) for r in rows if (r["split"], r["timesteps"]) == (split, "1000000")]
        assert cell == f"{np.mean(found):.1f} ± {np.std(found, ddof=1):.1f}" and len(found) == 3
    assert header == published.HEADER and ours[:4] == ["PPO", "200", "1,000,000", "3"]
    assert ["PPO", "200", "25,000,000", "10", "-", "26.8 ± 1.5", "PLR, arXiv 2010.03934, table 2"] in others
    assert {row[1] for row in others} == {"200"}
    page = Tags(write_report(runs, tmp_path / "page.html", results=results)).text
    assert ours[4] in page and "mixreg" in page
    other = load_run(make_run(tmp_path / "other", **{**paper, "distribution_mode": "hard"}))
    assert published.table([*runs, other], results) == [] and published.table(runs, tmp_path) == []
    unlimited = load_run(make_run(tmp_path / "unlimited", **{**paper, "num_levels": 0}))
    assert {row[1] for row in published.table([unlimited], results)[1:]} == {"unlimited"}


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
