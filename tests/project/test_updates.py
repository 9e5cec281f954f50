"""The comparison of updates with the published ones says what the files say."""

import csv
import shutil
from pathlib import Path

import pytest
import updates
from fake_runs import make_run
from figure_audit import unnamed

from ppo_lib.config import PRESETS, UserError
from ppo_lib.study import published

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
STEPS = 20 * 64 * 256  # beyond the first two steps of the published record


@pytest.fixture
def folder(tmp_path):
    """Two seeds of the published protocol, one run with other first weights, one on ten levels."""
    shutil.copytree(REFERENCE, tmp_path / "reference")
    alike = PRESETS["paper"] | {"total_steps": STEPS}
    for name, changes in {
        "a-seed0": {}, "a-seed1": {"seed": 1}, "g-seed0": {"encoder_init": "glorot"}, "ten-seed0": {"num_levels": 10}
    }.items():  # fmt: skip
        make_run(tmp_path / "sweep" / name, updates=20, **(alike | changes))
    return tmp_path / "sweep"


def test_the_tables_hold_what_both_have_logged(folder, monkeypatch):
    drawn = []
    monkeypatch.setattr(updates.plots, "figure_png", lambda figure, dpi: drawn.append(figure) or b"PNG")
    updates.main(folder)
    assert not unnamed(drawn[0])
    text = (folder / "updates.md").read_text()
    with (REFERENCE / published.DIAGNOSTICS).open(newline="") as file:
        theirs = [float(row["clip_fraction"]) for row in csv.DictReader(file) if row["timesteps"] == "262144"]
    ours = []
    for seed in (0, 1):
        with (folder / f"a-seed{seed}" / "metrics.csv").open(newline="") as file:
            ours += [float(row["clip_fraction"]) for row in csv.DictReader(file) if row["steps"] == "262144"]
    assert len(theirs) == 3 and len(ours) == 2
    table = text.split("`clip_fraction`")[1].split("`policy_loss`")[0]
    rows = {cells[1].strip(): cells[3].strip() for line in table.splitlines() if len(cells := line.split("|")) > 3}
    for label, values in (("published", theirs), ("a (2 seeds)", ours)):
        singles = ", ".join(f"{value:.4f}" for value in values)
        assert rows[label] == f"{sum(values) / len(values):.4f} ({singles})"
    assert "g-seed0" in rows and "ten-seed0" not in text and "estimators of the KL divergence differ" in text
    assert all(line.rstrip(" |").endswith("| -") for line in table.splitlines() if line.startswith(("| a (", "| g-")))


def test_other_runs_are_refused(folder):
    for name in ("a-seed0", "a-seed1", "g-seed0"):
        shutil.rmtree(folder / name)
    with pytest.raises(UserError, match="has no run of the published protocol"):
        updates.main(folder)
