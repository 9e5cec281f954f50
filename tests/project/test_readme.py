"""The method that README shows, and the commands below it, do what README says."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ppo_lib.methods import algorithm_class

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "--num-envs 4 --num-steps 64 --total-steps 512 --num-minibatches 2 --num-epochs 1 --eval-episodes 4 "
    "--device cpu --precision float32"
)


@pytest.mark.slow
def test_the_method_of_the_readme_is_compared_with_ppo(tmp_path, monkeypatch):
    """At a small size, with one seed: its own metric is a column of metrics.csv, and the page has the difference."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert len(code.strip().splitlines()) <= 20
    (tmp_path / "penalty.py").write_text(code)
    sweep, page = re.findall(r"^    python (.*penalty.*)$", text, re.M)
    assert sweep.count("--seed 1 2 3") == 1
    for command in (f"{sweep.replace('--seed 1 2 3', '--seed 1')} {SMALL}", f"{ROOT}/{page}"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, *command.split()], cwd=tmp_path, env=environment, check=True)
    [own] = (tmp_path / "results" / "penalty").glob("*PenaltyPPO*-seed1")
    with (own / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["steps"]) for row in rows] == [256, 512]
    assert all(0 <= float(row["kl_penalty"]) < 1 for row in rows) and any(float(row["kl_penalty"]) for row in rows)
    assert "| `--algorithm penalty.py:PenaltyPPO` | `base` " in (own.parent / "README.md").read_text()
    [setting] = re.findall(r"^`--algorithm (penalty.py:PenaltyPPO:\S+)` sets", text, re.M)
    monkeypatch.chdir(tmp_path)
    assert algorithm_class(setting).penalty_coef == 2 != algorithm_class("penalty.py:PenaltyPPO").penalty_coef
