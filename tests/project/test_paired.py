"""The comparison of settings pairs runs by seed and says what their files say."""

import re

import paired
import pytest
from fake_runs import make_run
from figure_audit import unnamed

from ppo_lib.config import UserError
from ppo_lib.runs import SPLITS
from ppo_lib.study import groups

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
    base, variant = paired.load_groups(folder, "precision=float32")
    assert base.runs[0].config.precision == "float32" and variant.changed == (("precision", "bf16"),)
    pairs = groups.paired_returns(variant.runs, base.runs, "unseen")
    assert list(pairs) == [1, 2]
    theirs = {run.config.seed: run for run in base.runs}[2].final("unseen").returns
    assert sorted(pairs[2][1]) == sorted(theirs)


def test_the_base_is_what_the_others_differ_from(tmp_path):
    for name, changes in {"a": {"recurrent": False}, "b": {}, "c": {"num_epochs": 2}, "d": {"num_levels": 9}}.items():
        make_run(tmp_path / name, total_steps=STEPS, **changes)
    found = paired.load_groups(tmp_path)
    assert [group.runs[0].name for group in found] == ["b", "c", "d", "a"]
    assert [group.name for group in found] == ["base", "--num-epochs 2", "--num-levels 9", "--no-recurrent"]


def test_decay_is_one_setting_whatever_the_length_of_the_others(tmp_path):
    """total_steps shapes learning only with a learning rate that decays over it."""
    make_run(tmp_path / "base", total_steps=STEPS - 10)
    make_run(tmp_path / "decay", total_steps=STEPS, anneal_lr=True)
    assert [group.name for group in paired.load_groups(tmp_path, "anneal_lr=false")] == ["base", "--anneal-lr"]


def test_a_setting_that_needs_another_is_compared_with_it(tmp_path):
    epochs = {"recurrent": False, "num_epochs": 2}
    changes = {"plain": {"recurrent": False}, "gru": {}, "long": {"sequence_length": 64}, "epochs": epochs}
    for shift, (name, change) in enumerate(changes.items()):
        make_run(tmp_path / name, float(shift), total_steps=STEPS, **change)
    chain = paired.load_groups(tmp_path, "recurrent=false")
    found = {group.runs[0].name: group for group in chain}
    assert list(found) == ["plain", "epochs", "gru", "long"]
    assert found["gru"].against is found["plain"] and found["long"].against is found["gru"]
    assert found["long"].name == "--recurrent --sequence-length 64"
    mean = {name: group.runs[0].final("unseen").returns.mean() for name, group in found.items()}
    page = paired.page(chain, "the command")
    [row] = [line for line in page.splitlines() if line.startswith("| `--sequence-length 64` | `--recurrent` |")]
    assert f"| {mean['long'] - mean['gru']:.2f} [" in row and f"| {mean['long'] - mean['gru']:+.2f} " in row
    labels = [label.get_text() for label in paired.draw(chain).axes[1].get_yticklabels()]
    assert labels == ["--num-epochs 2", "--recurrent", "--sequence-length 64\nwith --recurrent"]


def test_unlimited_levels_come_last(tmp_path):
    for levels in (200, 0, 10, 50):
        make_run(tmp_path / str(levels), total_steps=STEPS, num_levels=levels)
    assert [g.runs[0].name for g in paired.load_groups(tmp_path, "num_levels=10")] == ["10", "50", "200", "0"]


def test_the_page_and_the_figure(folder, capsys):
    paired.main(folder, "precision=float32")
    page = (folder / "README.md").read_text()
    base, variant = paired.load_groups(folder, "precision=float32")
    for split in SPLITS:
        found = groups.paired_difference(variant.runs, base.runs, split)
        assert str(found) in page and found.low > 0
    assert "| 400 " in page and str(groups.summarize_experiment(base.runs).unseen.mean) in page
    half = STEPS // 2  # of the steps, at the first evaluation, and of the 12 updates, 40 seconds each
    assert re.search(rf"\| `--precision bf16` +\| +2 \| {half / 1000:.3g}k steps, 4 min ", page), page
    assert unnamed(paired.draw([base, variant])) == [] and (folder / "paired.png").stat().st_size > 1000


@pytest.mark.parametrize("wish", ["", "precision=float32", "num_levels=7"])
def test_without_pairs_it_says_what_to_do(tmp_path, wish):
    make_run(tmp_path / "alone", total_steps=STEPS)
    with pytest.raises(UserError, match="run the sweep first"):
        paired.main(tmp_path, wish)
