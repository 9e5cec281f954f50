"""The search for quick's settings: its candidates, speeds measured in turns, and its page."""

import csv

import pytest
import quick_search
from fake_runs import make_run

from ppo_lib.config import preset
from ppo_lib.train import Trainer

TINY = dict(num_envs=2, num_steps=16, num_minibatches=1, num_epochs=1, recurrent=False, precision="float32")


def test_a_candidate_is_named_after_its_changes_and_shares_the_speed_of_one_that_computes_the_same():
    assert quick_search.name_of({}) == "base"
    changes = {"recurrent": False, "encoder_init": "glorot"}
    assert quick_search.name_of(changes) == "no-recurrent-encoder-init_glorot"
    assert quick_search.timed(changes) == "no-recurrent" and quick_search.timed({"encoder_init": "glorot"}) == "base"
    assert quick_search.config_of(changes, seed=7) == preset("quick", **quick_search.BASE | changes, seed=7)


def test_quick_is_the_candidate_that_won():
    expected = quick_search.config_of(quick_search.GLOROT, precision="auto")
    assert preset("quick") == expected


def test_speeds_are_measured_in_turns(tmp_path, monkeypatch):
    """As many steps as asked for; PPG's auxiliary phase is measured once a round."""
    monkeypatch.setattr(quick_search, "STEPS", 64)
    updates = []

    def update(trainer):
        updates.append(trainer.config.algorithm)
        return original(trainer)

    original = Trainer.update
    monkeypatch.setattr(Trainer, "update", update)
    configs = {"PPO": preset("quick", **TINY), "PPG": preset("quick", **TINY, algorithm="ppg", ppg_interval=3)}
    quick_search.measure(configs, tmp_path / "new" / "speed.csv")
    with (tmp_path / "new" / "speed.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["candidate"], row["round"]) for row in rows] == [(n, r) for r in "012" for n in configs]
    assert updates == (["ppo"] * 3 + ["ppg"] * 4) * 3  # one of each to warm up
    assert quick_search.speeds(tmp_path / "new" / "speed.csv").keys() == configs.keys()


def test_the_median_speed_counts(tmp_path):
    path = tmp_path / "speed.csv"
    path.write_text("candidate,round,steps_per_second\na,0,100\na,1,900\na,2,300\nb,0,5\n")
    assert quick_search.speeds(path) == {"a": 300, "b": 5}


def test_the_page_ranks_each_stage_by_the_return_on_unseen_levels(tmp_path, monkeypatch):
    monkeypatch.setattr(quick_search, "FOLDER", tmp_path)
    monkeypatch.setattr(quick_search, "QUICK", tmp_path / "quick")
    make_run(tmp_path / "quick", 4.0, **quick_search.config_of(quick_search.GLOROT, seed=0).to_dict())
    for name, changes, shift, seed in (
        ("screen-base-seed101", {}, 0.0, 101),
        ("screen-recurrent_false-seed101", {"recurrent": False}, 5.0, 101),
        ("full-glorot-seed1", quick_search.GLOROT, 4.0, 1),
    ):
        make_run(tmp_path / name, shift, **quick_search.config_of(changes, seed=seed).to_dict())
    quick_search.page()
    page = (tmp_path / "README.md").read_text()
    screen, full = page.split("## screen")[1].split("## full")
    ranks = [line.split("|")[1].strip() for line in screen.splitlines() if line.startswith("| ")][1:]
    assert [rank for rank in ranks if not rank.startswith("-")] == ["recurrent_false", "base"]
    assert any("| 1 0 " in line or "| 0 1 " in line for line in full.splitlines())  # seed 0 is make train's


@pytest.mark.parametrize("stage", quick_search.STAGES)
def test_no_seed_of_the_search_is_the_default(stage):
    assert preset("quick").seed not in quick_search.STAGES[stage][1]
