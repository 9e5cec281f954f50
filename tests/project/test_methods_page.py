"""The page of methods pairs them with PPO at equal steps and at equal training time."""

import shutil
from pathlib import Path

import methods
import pytest
from fake_runs import make_run

from ppo_lib.config import UserError, preset

UPDATES = 12
LENGTH = preset("paper").batch_size * UPDATES
SPEED = """candidate,round,steps_per_second
PPO,0,800
PPO,1,700
PPO,2,810
average pooling,0,800
DrAC,0,400
"""


@pytest.fixture
def folder(tmp_path):
    """PPO with three seeds, average pooling with two that score 3 more, DrAC with one; half a run of mixreg."""
    made = {"levels/levels200": ({}, 0.0, (0, 1, 2)), "methods/pool": ({"pooling": "average"}, 3.0, (0, 1))}
    made |= {"methods/drac": ({"algorithm": "drac"}, 0.0, (0,)), "methods/mix": ({"algorithm": "mixreg"}, 0.0, (0,))}
    for name, (changes, shift, seeds) in made.items():
        for seed in seeds:
            config = preset("paper", seed=seed, total_steps=LENGTH, **changes)
            make_run(tmp_path / f"{name}-seed{seed}", shift, UPDATES // (1 + ("mix" in name)), **config.to_dict())
    (tmp_path / "methods" / "speed.csv").write_text(SPEED)
    shutil.copytree(Path(__file__).parents[2] / "results" / "reference", tmp_path / "reference")
    return tmp_path / "methods"


def test_complete_runs_are_paired_with_ppo(folder):
    base, pool, drac = methods.load_groups(folder)
    assert [g.name for g in (base, pool, drac)] == ["PPO", "average pooling", "DrAC"]
    assert [run.config.seed for run in pool.runs] == [0, 1]
    means = [[run.final("unseen").returns.mean() for run in runs] for runs in (pool.runs, base.runs[:2])]
    assert pool.difference("unseen").value == pytest.approx(sum(means[0]) / 2 - sum(means[1]) / 2)


def test_equal_time_pairs_the_last_evaluations_that_came_equally_late(folder):
    base, pool, drac = methods.load_groups(folder)
    assert pool.equal_time == (LENGTH, LENGTH)
    assert drac.equal_time == (LENGTH // 2, LENGTH)  # at half the speed
    ours, theirs = drac.runs[0].evaluation, base.runs[0].evaluation
    expected = ours.select("train", LENGTH // 2).returns.mean() - theirs.select("train", LENGTH).returns.mean()
    assert drac.difference("train", drac.equal_time).value == pytest.approx(expected)
    (folder / "speed.csv").write_text(SPEED.replace("DrAC,0,400", "DrAC,0,600"))
    with pytest.raises(UserError, match="No evaluation of DrAC came as late as one of PPO"):
        _ = methods.load_groups(folder)[2].equal_time


def test_the_page_says_what_is_there_and_what_is_missing(folder, monkeypatch):
    monkeypatch.setattr(methods, "FOLDER", folder)
    methods.main()
    page = (folder / "README.md").read_text()
    assert (folder / "methods.png").read_bytes()[:4] == b"\x89PNG"
    _, pool, drac = methods.load_groups(folder)
    assert "With average pooling (2 seeds) the return on unseen levels is higher than PPO's at equal steps" in page
    assert str(pool.difference("unseen")) in page and str(drac.difference("unseen", drac.equal_time)) in page
    assert "Not trained yet: mixreg; weight decay; PPG; average pooling with seeds other than 0 and 1;" in page


def test_without_runs_it_says_how_to_train_one(folder):
    for config in folder.glob("*/config.json"):
        config.write_text(preset("paper", num_levels=7).to_json())
    with pytest.raises(UserError, match="no complete run of a method"):
        methods.load_groups(folder)


def test_the_commands_are_sweeps_that_the_command_line_accepts(capsys):
    from ppo_lib.__main__ import main

    methods.commands()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(methods.METHODS) - 1
    for line in lines:
        main([*line.split()[3:], "--dry-run"])
