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
    ours, theirs = paired.pairs(variant, "unseen")
    assert len(ours) == len(theirs) == 2  # seeds 1 and 2
    assert np.array_equal(theirs[1], base.runs[2].final("unseen").returns)


def test_the_difference_is_that_of_the_files(folder):
    base, [variant] = paired.load_groups(folder, "precision=float32")
    means = [np.mean([g.runs[seed].final("unseen").returns.mean() for seed in (1, 2)]) for g in (variant, base)]
    found = paired.difference(variant, "unseen")
    assert found.value == pytest.approx(means[0] - means[1])
    assert found.low < found.value < found.high and found.low > 0


def test_the_base_is_what_the_others_differ_from(tmp_path):
    for name, changes in {"a": {"recurrent": False}, "b": {}, "c": {"num_epochs": 2}, "d": {"num_levels": 9}}.items():
        make_run(tmp_path / name, total_steps=STEPS, **changes)
    base, variants = paired.load_groups(tmp_path)
    assert base.runs[0].name == "b" and [v.runs[0].name for v in variants] == ["c", "d", "a"]
    assert [v.change for v in variants] == ["--num-epochs 2", "--num-levels 9", "--no-recurrent"]


def test_a_setting_that_needs_another_is_compared_with_it(tmp_path):
    epochs = {"recurrent": False, "num_epochs": 2}
    changes = {"plain": {"recurrent": False}, "gru": {}, "long": {"sequence_length": 64}, "epochs": epochs}
    for shift, (name, change) in enumerate(changes.items()):
        make_run(tmp_path / name, float(shift), total_steps=STEPS, **change)
    base, variants = paired.load_groups(tmp_path, "recurrent=false")
    found = {group.runs[0].name: group for group in (base, *variants)}
    assert list(found) == ["plain", "epochs", "gru", "long"]
    assert found["gru"].against is base and found["long"].against is found["gru"]
    assert found["long"].name == "--recurrent --sequence-length 64"
    mean = {name: group.runs[0].final("unseen").returns.mean() for name, group in found.items()}
    assert paired.difference(found["long"], "unseen").value == pytest.approx(mean["long"] - mean["gru"])
    assert "| `--sequence-length 64` | `--recurrent` |" in paired.page(base, variants, "the command")
    labels = [label.get_text() for label in paired.draw(base, variants).axes[1].get_yticklabels()]
    assert labels == ["--num-epochs 2", "--recurrent", "--sequence-length 64\nwith --recurrent"]


def test_unlimited_levels_come_last(tmp_path):
    for levels in (200, 0, 10, 50):
        make_run(tmp_path / str(levels), total_steps=STEPS, num_levels=levels)
    _, variants = paired.load_groups(tmp_path, "num_levels=10")
    assert [v.runs[0].name for v in variants] == ["50", "200", "0"]


def test_the_page_and_the_picture(folder, capsys):
    assert paired.main([str(folder), "--base", "precision=float32"]) == 0
    page = (folder / "README.md").read_text()
    base, variants = paired.load_groups(folder, "precision=float32")
    assert str(paired.difference(variants[0], "train")) in page and "| 400 |" in page
    assert unnamed(paired.draw(base, variants)) == [] and (folder / "paired.png").stat().st_size > 1000


def test_the_page_says_when_a_return_was_reached(folder):
    base, variants = paired.load_groups(folder, "precision=float32")
    [best] = [row for row in paired.reached((base, *variants), (0.5, 99)) if row.startswith("| base | 1 |")]
    half = STEPS // 2  # of the steps, at the first evaluation, and of the 12 updates, 40 seconds each
    assert best == f"| base | 1 | {half / 1000:.3g}k steps, 4 min | not |"
    assert paired.reached((base,), (99,)) == []


@pytest.mark.parametrize("wish", ["", "precision=float32", "num_levels=7"])
def test_without_pairs_it_says_what_to_do(tmp_path, capsys, wish):
    make_run(tmp_path / "alone", total_steps=STEPS)
    assert paired.main([str(tmp_path), "--base", wish]) == 2 and "run the sweep first" in capsys.readouterr().err
