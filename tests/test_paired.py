"""The comparison of settings pairs runs by seed and says what their files say."""

import numpy as np
import paired
import pytest
from fake_runs import make_run
from figure_audit import unnamed

STEPS = 12 * 64 * 256


@pytest.fixture
def folder(tmp_path):
    """Two complete pairs, of which bf16 scores 2 more; a third seed without its partner; a fourth that isn't done."""
    for seed in (1, 2, 3, 4):
        for precision, shift in (("bf16", 2.0), ("float32", 0.0)):
            if (seed, precision) != (3, "float32"):
                length = 4 * STEPS if (seed, precision) == (4, "bf16") else STEPS
                changes = dict(seed=seed, precision=precision, total_steps=length)
                make_run(tmp_path / f"{precision}-seed{seed}", shift, **changes)
    return tmp_path


def test_only_complete_pairs_count(folder):
    base, [variant] = paired.load_groups(folder, "precision=float32")
    assert base.settings["precision"] == "float32" and variant.changes(base) == {"precision": "bf16"}
    ours, theirs = paired.pairs(base, variant, "unseen")
    assert len(ours) == len(theirs) == 2  # seeds 1 and 2
    assert np.array_equal(theirs[1], base.runs[2].final("unseen").returns)


def test_the_difference_is_that_of_the_files(folder):
    base, [variant] = paired.load_groups(folder, "precision=float32")
    means = [np.mean([g.runs[seed].final("unseen").returns.mean() for seed in (1, 2)]) for g in (variant, base)]
    found = paired.difference(base, variant, "unseen")
    assert found.value == pytest.approx(means[0] - means[1])
    assert found.low < found.value < found.high and found.low > 0


def test_the_base_is_what_the_others_differ_from(tmp_path):
    for name, changes in {"a": {"recurrent": False}, "b": {}, "c": {"num_epochs": 2}, "d": {"num_levels": 9}}.items():
        make_run(tmp_path / name, total_steps=STEPS, **changes)
    base, variants = paired.load_groups(tmp_path)
    assert base.runs[0].name == "b" and [v.runs[0].name for v in variants] == ["c", "d", "a"]
    assert variants[2].name(base) == "`recurrent` False"
    base, variants = paired.load_groups(tmp_path, "recurrent=false")
    assert base.runs[0].name == "a" and [v.runs[0].name for v in variants] == ["b"]


def test_unlimited_levels_come_last(tmp_path):
    for levels in (200, 0, 10, 50):
        make_run(tmp_path / str(levels), total_steps=STEPS, num_levels=levels)
    _, variants = paired.load_groups(tmp_path, "num_levels=10")
    assert [v.runs[0].name for v in variants] == ["50", "200", "0"]


def test_the_page_and_the_picture(folder, capsys):
    assert paired.main([str(folder), "--base", "precision=float32"]) == 0
    page = (folder / "README.md").read_text()
    base, variants = paired.load_groups(folder, "precision=float32")
    assert str(paired.difference(base, variants[0], "train")) in page and "| 400 |" in page
    assert unnamed(paired.draw(base, variants)) == [] and (folder / "paired.png").stat().st_size > 1000


def test_the_page_says_when_a_return_was_reached(folder):
    base, variants = paired.load_groups(folder, "precision=float32")
    [best] = [row for row in paired.reached((base, *variants), base, (0.5, 99)) if row.startswith("| base | 1 |")]
    half = STEPS // 2  # of the steps, at the first evaluation, and of the 12 updates, 40 seconds each
    assert best == f"| base | 1 | {half / 1000:.3g}k steps, 4 min | not |"
    assert paired.reached((base,), base, (99,)) == []


@pytest.mark.parametrize("wish", ["", "precision=float32", "num_levels=7"])
def test_without_pairs_it_says_what_to_do(tmp_path, capsys, wish):
    make_run(tmp_path / "alone", total_steps=STEPS)
    assert paired.main([str(tmp_path), "--base", wish]) == 2 and "run the sweep first" in capsys.readouterr().err
