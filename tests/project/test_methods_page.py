"""The page of methods pairs them with PPO at equal steps and at equal training time."""

import ast
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import methods
import pytest
from fake_runs import make_run

from ppo_lib.__main__ import FIELDS, _parser, main
from ppo_lib.config import UserError, preset
from ppo_lib.runs import changed_settings, read_config

ROOT = Path(__file__).resolve().parents[2]

UPDATES = 12
LENGTH = preset("paper").batch_size * UPDATES
SPEED = """candidate,round,steps_per_second,precision
PPO,0,800,bf16
PPO,1,700,bf16
PPO,2,810,bf16
average pooling,0,800,bf16
DrAC,0,400,bf16
mixreg,0,750,bf16
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
    shutil.copytree(ROOT / "results" / "reference", tmp_path / "reference")
    return tmp_path / "methods"


def test_runs_are_paired_with_ppo_at_the_last_steps_that_they_share(folder):
    base, pool, drac, mix = methods.load_groups(folder)
    assert [g.name for g in (base, pool, drac, mix)] == ["PPO", "average pooling", "DrAC", "mixreg"]
    assert [run.config.seed for run in pool.runs] == [run.config.seed for run in pool.base] == [0, 1]
    assert (pool.steps[-1], mix.steps[-1]) == (LENGTH, LENGTH // 2)
    half = [run.evaluation.select("unseen", LENGTH // 2).returns.mean() for run in (mix.runs[0], base.runs[0])]
    assert mix.difference("unseen").value == pytest.approx(half[0] - half[1])
    means = [[run.final("unseen").returns.mean() for run in runs] for runs in (pool.runs, base.runs[:2])]
    assert pool.difference("unseen").value == pytest.approx(sum(means[0]) / 2 - sum(means[1]) / 2)


def test_equal_time_pairs_the_last_evaluations_that_came_equally_late(folder):
    _, pool, drac, _ = methods.load_groups(folder)
    assert pool.equal_time == (LENGTH, LENGTH)
    assert drac.equal_time == (LENGTH // 2, LENGTH)  # at half the speed
    ours, theirs = drac.runs[0].evaluation, drac.base[0].evaluation
    expected = ours.select("train", LENGTH // 2).returns.mean() - theirs.select("train", LENGTH).returns.mean()
    assert drac.difference("train", drac.equal_time).value == pytest.approx(expected)
    (folder / "speed.csv").write_text(SPEED.replace("DrAC,0,400", "DrAC,0,600"))
    assert methods.load_groups(folder)[2].equal_time is None


def test_the_page_says_what_is_there_and_what_is_missing(folder, monkeypatch):
    monkeypatch.setattr(methods, "FOLDER", folder)
    methods.main()
    page = (folder / "README.md").read_text()
    assert (folder / "methods.png").read_bytes()[:4] == b"\x89PNG"
    _, pool, drac, _ = methods.load_groups(folder)
    assert f"With average pooling (2 seeds, {LENGTH:,} steps) the return on unseen levels is higher than PPO's" in page
    assert str(pool.difference("unseen")) in page and str(drac.difference("unseen", drac.equal_time)) in page
    missing = "weight decay; PPG; average pooling with seed 2; DrAC with seeds 1 and 2; mixreg with seeds 1 and 2;"
    assert f"Not trained yet: {missing}" in page and "Speed not measured" not in page
    assert f"mixreg beyond {LENGTH // 2:,} of {LENGTH:,} steps" in page and "different precisions" not in page


def test_runs_of_another_precision_count_and_the_page_says_so(folder, monkeypatch):
    """The speeds are all in the precision of speed.csv."""
    for file in folder.glob("pool*/config.json"):
        file.write_text(file.read_text().replace('"precision": "auto"', '"precision": "float32"'))
    (folder / "speed.csv").write_text(SPEED.replace("bf16", "float32"))
    monkeypatch.setattr(methods, "FOLDER", folder)
    methods.main()
    page = (folder / "README.md").read_text()
    assert "different precisions: PPO in auto, average pooling in float32, DrAC in auto" in page
    assert "in turns, all\nin float32" in page


def test_without_runs_it_says_how_to_train_one(folder):
    for config in folder.glob("*/config.json"):
        config.write_text(preset("paper", num_levels=7).to_json())
    with pytest.raises(UserError, match="no evaluated run of a method"):
        methods.load_groups(folder)


def test_a_method_without_a_speed_is_named_and_compared_at_equal_steps_alone(folder, monkeypatch):
    (folder / "speed.csv").write_text("".join(line for line in SPEED.splitlines(True) if "DrAC" not in line))
    monkeypatch.setattr(methods, "FOLDER", folder)
    methods.main()
    page = (folder / "README.md").read_text()
    assert "Speed not measured yet: DrAC;" in page
    steps, time = [[word.strip() for word in line.split("|")[2:-1]] for line in page.splitlines() if "| DrAC" in line]
    assert steps[:2] == ["0", f"{LENGTH:,}"] and "[" in steps[-2] and steps[-1] == "-"
    assert time == ["-"] * 4


def test_the_commands_are_sweeps_of_what_the_page_compares(capsys, monkeypatch, tmp_path):
    """The command line accepts them, and their runs have the settings by which the page finds a method's runs."""
    monkeypatch.chdir(tmp_path)
    base = read_config(ROOT / "results" / "levels" / "levels200-seed0")
    methods.commands()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(methods.METHODS) - 1 and sum("--seed 0 1 2 " in line for line in lines) == 4
    for line, changes in zip(lines, list(methods.METHODS.values())[1:], strict=True):
        words = line.split()[3:]
        assert main([*words, "--dry-run"]) == 0
        options = vars(_parser().parse_args(words))
        wanted = {name: options[name][0] for name in FIELDS if name in options}
        settled = {"build": base.build, "precision": base.precision}  # by the machine, unless the command names them
        config = preset("paper", **{**settled, **wanted})
        assert not changed_settings(base.replace(**changes), config).keys() - {"seed"}
        assert (config.total_steps, config.eval_episodes) == (base.total_steps, base.eval_episodes)


def test_speeds_are_measured_for_what_has_runs(folder, monkeypatch):
    """Of PPO and of each method that has begun, with its settings, in the precision that this machine prefers."""
    measured = {}
    monkeypatch.setattr(methods, "FOLDER", folder)
    monkeypatch.setattr(methods, "measure", lambda configs, file, rounds: measured.update({file: configs}))
    monkeypatch.setattr(methods, "configure", lambda config: SimpleNamespace(precision="fp16"))
    methods.speed()
    assert list(measured) == [folder / "speed.csv"]
    wanted = {name: methods.METHODS[name] for name in ("PPO", "average pooling", "DrAC", "mixreg")}
    assert measured[folder / "speed.csv"] == {
        name: preset("paper", precision="fp16", **changes) for name, changes in wanted.items()
    }


def test_notebook_07_compares_the_same_methods():
    """It defines them itself, to show them."""
    notebook = json.loads((ROOT / "notebooks" / "07_stronger_generalizers.ipynb").read_text())
    [source] = [text for cell in notebook["cells"] if (text := "".join(cell["source"])).startswith("METHODS = {")]
    shown = ast.literal_eval(ast.parse(source).body[0].value)
    assert shown == {name: changes for name, changes in methods.METHODS.items() if changes}
