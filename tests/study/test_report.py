"""The report: right numbers, self-contained, and made from whatever a run has."""

from __future__ import annotations

import errno
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fake_runs import make_run

from ppo_lib import stats
from ppo_lib.config import UserError, preset
from ppo_lib.runs import load_run
from ppo_lib.study import published
from ppo_lib.study import report as module
from ppo_lib.study.groups import summarize_experiment
from ppo_lib.study.report import command_of, write_report
from ppo_lib.video import write_video

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


@pytest.fixture(autouse=True)
def quick_figures(request, monkeypatch) -> None:
    """Figures are made, but only one test pays for their pixels: elsewhere a file says how much is drawn on them."""
    if request.function is not test_report_of_a_run:
        png = lambda figure: b"\x89PNG %s" % repr([len(axis.get_children()) for axis in figure.axes]).encode()  # noqa: E731
        monkeypatch.setattr(module, "figure_png", png)


def check_self_contained(page: Path) -> None:
    for _, attributes in Tags(page).tags:
        for name in ("src", "href", "poster", "srcset"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.search(r"https?://|url\(|@import", page.read_text(encoding="utf-8"))


def test_report_of_a_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "results" / "quick")
    frames = (np.full((64, 96, 3), 8 * i, np.uint8) for i in range(20))
    write_video(frames, tmp_path / "results" / "videos" / "quick.mp4")
    page = write_report(folder)
    assert page == folder / "report.html"
    for name in ("learning_curve", "train_vs_unseen", "return_by_level", "diagnostics"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    check_self_contained(page)
    tags = Tags(page)
    assert tags.count("video") == 1
    assert tags.count("img") == 5  # four figures and the video's still picture
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
    assert f"{(unseen.mean() - 2.5) / 61.5:.2f}" in text
    assert "random agent1.5" in text


@pytest.mark.parametrize("place", ["run", "sweep/run"])
def test_video_and_published_curves_are_found(tmp_path: Path, place: str, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    paper = dict(num_levels=200, use_backgrounds=True, restrict_themes=False)
    folder = make_run(tmp_path / "results" / place, updates=20, **paper)
    results = tmp_path / "results"
    assert Tags(write_report(folder, results=results)).count("video") == 0
    alone = (folder / "learning_curve.png").read_bytes()
    write_video((np.full((64, 96, 3), i, np.uint8) for i in range(5)), results / "videos" / f"{place}.mp4")
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
    paper = dict(num_levels=200, use_backgrounds=True, restrict_themes=False, total_steps=1_000_000, num_envs=512)
    runs = [load_run(make_run(tmp_path / f"s{seed}", updates=8, seed=seed, **paper)) for seed in (0, 1)]
    text = Tags(write_report(runs, tmp_path / "page.html", results=ROOT / "results")).text
    for rows, note in published.tables(runs, ROOT / "results"):
        assert note in text and all(cell in text for row in rows for cell in row)
    assert "mixreg" in text and "s0 (2 seeds)" in text


def test_the_interquartile_mean_is_that_of_four_runs_or_more(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"s{seed}", float(seed), seed=seed) for seed in range(4)]
    summary = summarize_experiment([load_run(folder) for folder in folders])
    tile = f"middle half of the runs{summary.unseen.iqm.value:.2f}"
    assert tile in Tags(write_report(folders)).text and summary.unseen.iqm.value != summary.unseen.mean.value
    assert "middle half" not in Tags(write_report(folders[:3])).text


def test_when_a_return_was_reached(tmp_path: Path) -> None:
    good = make_run(tmp_path / "good", shift=4)  # evaluated after 6 and 12 updates of 40 seconds
    make_run(tmp_path / "bad", shift=-4, num_levels=9)
    assert "until unseen levels give" not in Tags(write_report(tmp_path / "bad")).text
    text = Tags(write_report([good, tmp_path / "bad"])).text
    assert re.search(r"5 or more8 or more\s*good98.3k steps, 4 min", text), text
    (good / "metrics.csv").unlink()  # then the steps are known, the minutes are not
    assert re.search(r"8 or more\s*good98.3k steps(?!,)", Tags(write_report(good)).text)
    assert "until unseen levels give" not in Tags(write_report(make_run(tmp_path / "maze", 4, env_name="maze"))).text


HEADS = {"metrics.csv": "steps,seconds,return_mean\n", "evaluation.csv": "steps,split,level_seed,return,length\n"}


@pytest.mark.parametrize("evaluation", ["there", "head", "absent"])
@pytest.mark.parametrize("metrics", ["there", "head", "absent"])
def test_report_of_an_unfinished_run(tmp_path: Path, metrics: str, evaluation: str) -> None:
    """Whatever a run doesn't have yet, alone and beside a complete run."""
    folder = make_run(tmp_path / "new", 4.0)
    for name, state in (("metrics.csv", metrics), ("evaluation.csv", evaluation)):
        if state == "absent":
            (folder / name).unlink()
        elif state != "there":
            (folder / name).write_text(HEADS[name])
    tags = Tags(write_report(folder))
    assert ("Not evaluated yet" in tags.text) == (evaluation != "there") and "No video yet" in tags.text
    expected = {("there", "there"): 4, ("there", ""): 2, ("", "there"): 3, ("", ""): 0}
    assert tags.count("img") == expected[tuple(state * (state == "there") for state in (metrics, evaluation))]
    other = make_run(tmp_path / "other", num_levels=200)
    assert str(summarize_experiment(other).gap) in Tags(write_report([folder, other])).text


def test_report_of_a_run_with_one_split_or_seeds_without_common_steps(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    path = folder / "evaluation.csv"
    path.write_text("".join(line for line in path.open() if ",unseen," not in line))
    assert "share no number of steps at which every run played both splits" in Tags(write_report(folder)).text
    seeds = [make_run(tmp_path / f"s{n}", updates=n, seed=n) for n in (4, 12)]  # evaluated at 2 and 4, at 6 and 12
    assert "share no number of steps" in Tags(write_report(seeds)).text


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
    assert re.search(r"from all\s+seeds from a run's last training level on", text)
    assert re.search(r"from all\s+seeds from 50 on", Tags(write_report(folders[:2])).text)
    assert (tmp_path / "report_levels_curve.png").exists()
    other = write_report(folders, tmp_path / "sub" / "compare.html")
    assert other.exists() and str(summarize_experiment(folders[2]).unseen.mean) in Tags(other).text


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


@pytest.mark.parametrize(("code", "cause"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "Permission denied")])
def test_the_cause_of_a_failed_write_is_named(tmp_path: Path, monkeypatch, code: int, cause: str) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, "Permission denied")

    folder = make_run(tmp_path / "a", updates=2)
    monkeypatch.setattr(module, "atomic_write", refuse)
    with pytest.raises(UserError, match=cause):
        write_report(folder)


def test_command_repeats_the_run(tmp_path: Path) -> None:
    config = preset("paper", seed=3, total_steps=1_000_000, normalize_reward=False)
    words = shlex.split(command_of(config, "mine"))
    assert words[3:8] == ["train", "--preset", "paper", "--run", "mine"]
    assert set(words[8:]) == {"--seed", "3", "--total-steps", "1000000", "--no-normalize-reward"}
    assert command_of(preset("quick"), "x") == "python -m ppo_lib train --preset quick --run x"
    assert command_of(load_run(make_run(tmp_path / "r", **preset("quick").to_dict())).config, "r").endswith("--run r")
