"""The comparison of precisions pairs runs by seed and says what their files say."""

import numpy as np
import pytest
import same_learning
from fake_runs import make_run
from figure_audit import unnamed


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two complete pairs, of which bf16 scores 2 more; a third seed without its partner; a fourth that isn't done."""
    steps = 12 * 64 * 256
    for seed in (1, 2, 3, 4):
        for precision, shift in (("bf16", 2.0), ("float32", 0.0)):
            if (seed, precision) != (3, "float32"):
                length = 4 * steps if (seed, precision) == (4, "bf16") else steps
                changes = dict(seed=seed, precision=precision, total_steps=length)
                make_run(tmp_path / f"{precision}-seed{seed}", shift, **changes)
    monkeypatch.setattr(same_learning, "FOLDER", tmp_path)
    return tmp_path


def test_only_complete_pairs_count(folder):
    pairs = same_learning.load_pairs(folder)
    assert [{name: run.config.seed for name, run in pair.items()} for pair in pairs] == [
        {"bf16": seed, "float32": seed} for seed in (1, 2)
    ]


def test_the_difference_is_that_of_the_files(folder):
    pairs = same_learning.load_pairs(folder)
    means = {
        name: np.mean([pair[name].final("unseen").returns.mean() for pair in pairs])
        for name in same_learning.PRECISIONS
    }
    found = same_learning.difference(pairs, "unseen")
    assert found.value == pytest.approx(means["bf16"] - means["float32"])
    assert found.low < found.value < found.high and found.low > 0


def test_the_page_and_the_picture(folder, capsys):
    assert same_learning.main() == 0
    page = (folder / "README.md").read_text()
    pairs = same_learning.load_pairs(folder)
    assert "seeds 1, 2:" in page and str(same_learning.difference(pairs, "train")) in page
    assert unnamed(same_learning.draw(pairs)) == [] and (folder / "same_learning.png").stat().st_size > 1000


def test_without_pairs_it_says_what_to_do(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(same_learning, "FOLDER", tmp_path)
    assert same_learning.main() == 2 and "run the sweep first" in capsys.readouterr().err
