"""Runs that repeat one experiment: which ones do, their labels, their averages, and differences between experiments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_runs import make_run

from ppo_lib import stats
from ppo_lib.config import UserError
from ppo_lib.runs import SPLITS, Run, load_run
from ppo_lib.study import groups

ROOT = Path(__file__).resolve().parents[2]


def load(folder: Path, *arguments: float, **changes: object) -> Run:
    return load_run(make_run(folder, *arguments, **changes))


def names(found: dict[str, list[Run]]) -> dict[str, list[str]]:
    return {label: [run.name for run in group] for label, group in found.items()}


def test_a_summary_rests_on_the_last_evaluation(tmp_path: Path) -> None:
    run = load(tmp_path / "a")
    summary = groups.summarize_experiment(run)
    expected = {split: run.evaluation.select(split, run.steps) for split in SPLITS}
    assert summary.train.mean.value == pytest.approx(expected["train"].returns.mean())
    assert summary.gap.value == pytest.approx(expected["train"].returns.mean() - expected["unseen"].returns.mean())
    assert summary.train.length == pytest.approx(expected["train"].length.mean())
    assert (summary.steps, summary.train.episodes) == (run.config.batch_size * 12, 64)


def test_a_summary_of_an_unfinished_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    (folder / "evaluation.csv").unlink()
    (folder / "metrics.csv").unlink()
    assert groups.summarize_experiment(folder) == groups.RunSummary(None, None, None, 0)
    assert load_run(folder).steps == 0


def test_seeds_are_grouped_and_other_settings_are_not(tmp_path: Path) -> None:
    made = [
        load(tmp_path / "a", seed=0, eval_episodes=64),
        load(tmp_path / "b", 30.0, seed=1, device="cpu", total_steps=10**6, checkpoint_interval=5),
        load(tmp_path / "c", num_levels=200),
        load(tmp_path / "d", precision="float32", seed=2),
        load(tmp_path / "e", anneal_lr=True),
        load(tmp_path / "f", anneal_lr=True, total_steps=10**6, seed=1),
    ]
    found = groups.group_experiments(made)
    assert names(found) == {"a (2 seeds)": ["a", "b"]} | {name: [name] for name in "cdef"}
    summary = groups.summarize_experiment(found["a (2 seeds)"])
    single, other = (groups.summarize_experiment(run) for run in made[:2])
    assert summary.train.mean.value == pytest.approx((single.train.mean.value + other.train.mean.value) / 2)
    assert summary.train.mean.high - summary.train.mean.low > single.train.mean.high - single.train.mean.low
    assert (summary.unseen.runs, summary.unseen.episodes) == (2, 128)


def test_a_copied_run_is_no_second_seed(tmp_path: Path) -> None:
    made = [load(tmp_path / name, device=device) for name, device in (("a", "auto"), ("copy of a", "cpu"))]
    for group in (groups.experiments, groups.group_experiments, groups.group_families):
        with pytest.raises(UserError, match=rf"{tmp_path}/a and {tmp_path}/copy of a have the same settings and"):
            group([load(tmp_path / f"b{group.__name__}", seed=1), *made])


def test_seeds_are_averaged_at_the_same_steps(tmp_path: Path) -> None:
    """Evaluated at 2 and 4 updates, and at 4 and 8; a third seed that was never evaluated is left out."""
    made = [load(tmp_path / str(n), 2.0 * n, updates=n, seed=n) for n in (4, 8)]
    (make_run(tmp_path / "new", seed=1) / "evaluation.csv").unlink()
    summary = groups.summarize_experiment([*made, load_run(tmp_path / "new")])
    steps = 4 * made[0].config.batch_size
    assert (summary.steps, summary.unseen.runs) == (steps, 2)
    means = [run.evaluation.select("unseen", steps).returns.mean() for run in made]
    assert summary.unseen.mean.value == pytest.approx(np.mean(means))
    apart = groups.summarize_experiment([made[0], load(tmp_path / "12", updates=12, seed=5)])  # 2 and 4, 6 and 12
    assert apart == groups.RunSummary(None, None, None, 0)


def test_seeds_of_a_sweep_are_named_without_a_seed(tmp_path: Path) -> None:
    made = [load(tmp_path / f"levels10-seed{seed}", num_levels=10, seed=seed) for seed in (3, 4)]
    assert list(groups.group_experiments(made)) == ["levels10 (2 seeds)"]
    assert list(groups.group_experiments(made[:1])) == ["levels10-seed3"]


def test_no_run_is_lost_to_another_of_its_name(tmp_path: Path) -> None:
    """Three sweeps with a run of one name, two of them in folders of one name."""
    places = ("x/a", "y/a", "old/y/a", "z/b")
    made = [load(tmp_path / place, gamma=0.9 + 0.01 * i) for i, place in enumerate(places)]
    found = groups.group_experiments(made)
    assert list(found.values()) == [[run] for run in made]
    assert list(found) == ["x/a", f"{tmp_path.name}/y/a", "old/y/a", "b"]
    # experiments of one folder whose runs are named by seed alone: no folder distinguishes their labels
    same = [load(tmp_path / f"s/run-seed{n}", seed=n, num_envs=32 * (1 + n // 2)) for n in range(4)]
    assert sorted(run.name for group in groups.group_experiments(same).values() for run in group) == [
        f"run-seed{n}" for n in range(4)
    ]


def test_families_differ_in_more_than_levels_and_seed(tmp_path: Path) -> None:
    settings = {
        "a": {},
        "b": {"num_levels": 200, "seed": 7},
        "c": {"num_levels": 200, "recurrent": False, "gamma": 0.9},
    }
    made = [load(tmp_path / name, **changes) for name, changes in settings.items()]
    families = groups.group_families([made[2], *made[:2]])
    assert families == {"": made[:2], "gamma 0.9, recurrent False": made[2:]}
    assert groups.group_families([]) == {}


def test_curves_of_seeds_use_the_steps_that_all_have(tmp_path: Path) -> None:
    made = [load(tmp_path / "a", updates=3), load(tmp_path / "b", updates=5, seed=1)]
    steps, values = groups.common_metric(made, "entropy")
    assert steps.tolist() == made[0].metrics["steps"].tolist() and values.shape == (2, 3)
    assert values[1].tolist() == made[1].metrics["entropy"][:3].tolist()
    assert groups.common_metric(made, "absent")[0].tolist() == []


def test_a_difference_is_paired_by_seed_and_level(tmp_path: Path) -> None:
    """The fake runs of one seed play the same levels; the levels of seed 3 are replaced, and seed 4 has no partner."""
    ours = [load(tmp_path / f"a{seed}", 2.0, seed=seed) for seed in (1, 2, 3, 4)]
    theirs = [load(tmp_path / f"b{seed}", seed=seed, gamma=0.9) for seed in (2, 1, 3)]
    path = theirs[2].path / "evaluation.csv"
    path.write_text(path.read_text().replace(",unseen,1", ",unseen,9"))
    theirs[2] = load_run(theirs[2].path)
    pairs = groups.paired_returns(ours, theirs, "unseen")
    assert {seed: same for seed, (_, _, same) in pairs.items()} == {1: True, 2: True, 3: False}
    by_level = [
        dict(zip(run.final("unseen").level_seed, run.final("unseen").returns, strict=True))
        for run in (ours[1], theirs[0])
    ]
    assert pairs[2][0].tolist() == [by_level[0][level] for level in sorted(by_level[0])]
    assert pairs[2][1].tolist() == [by_level[1][level] for level in sorted(by_level[1])]
    found = groups.paired_difference(ours, theirs, "unseen")
    sides = [[run.final("unseen").returns for run in runs] for runs in (ours[:3], (theirs[1], theirs[0], theirs[2]))]
    assert found.value == pytest.approx(np.mean([a.mean() - b.mean() for a, b in zip(*sides, strict=True)]))
    assert found.high - found.low < 0.97 * np.ptp([(e := stats.difference(*sides)).low, e.high])
    with pytest.raises(UserError, match="same seed"):
        groups.paired_difference(ours[3:], theirs, "unseen")
    with pytest.raises(UserError, match=r"a1 and .*/short were not evaluated at the same number of steps"):
        groups.paired_difference(ours, [load(tmp_path / "short", updates=2, seed=1, gamma=0.8)], "unseen")


def test_committed_runs_are_grouped_as_they_were_made() -> None:
    """bf16 and float32 are two experiments of three seeds each; the seeds on 200 levels are one."""
    folder = ROOT / "results"
    found = groups.group_experiments(load_run(path.parent) for path in sorted(folder.glob("defaults/*/config.json")))
    assert {"levels200-bf16 (3 seeds)", "levels200-float32 (3 seeds)"} <= set(found)
    found = groups.group_experiments(load_run(path.parent) for path in sorted(folder.glob("levels/*/config.json")))
    summary = groups.summarize_experiment(found["levels200 (3 seeds)"])
    assert (summary.unseen.iqm.value, summary.unseen.mean.value) == (pytest.approx(10.11, abs=0.005),) * 2
