"""The method that README shows is code that runs."""

from __future__ import annotations

import csv
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = "seed=1, num_envs=4, num_steps=64, total_steps=512, num_minibatches=2, num_epochs=1, eval_episodes=4"


def test_the_method_of_the_readme_trains_and_loads(tmp_path, monkeypatch):
    """At a small size: its own metric is a column of metrics.csv, and the last line evaluates what it saved."""
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert len(code[code.index("class") :].split("config,")[0].strip().splitlines()) <= 20
    names: dict = {}
    for full, small in (("seed=1", SMALL), (", 256)", ", 4)")):
        assert code.count(full) == 1
        code = code.replace(full, small)
    exec(compile(code, "README.md", "exec"), names)
    with (tmp_path / "results" / "penalty-seed1" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["steps"]) for row in rows] == [256, 512] and names["steps"] == 512
    assert all(0 <= float(row["kl_penalty"]) < 1 for row in rows) and len(names["returns"]) == 4
    assert any(float(row["kl_penalty"]) for row in rows)
