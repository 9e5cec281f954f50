"""The benchmark's parts and floors on a tiny configuration."""

import json

import pytest

from ppo_lib.accel.bench import bench


@pytest.mark.parametrize("recurrent", [False, True])
def test_bench_measures_every_part(tiny, tmp_path, capsys, recurrent):
    path = tmp_path / "bench.json"
    result = bench(tiny(recurrent=recurrent, eval_interval=64), path)
    assert json.loads(path.read_text()) == result
    assert result["steps_per_second"] > 0 and 0.1 < result["peak_memory_gb"]["process"] < 20
    assert {"game", "acting", "advantages", "copies", "forward", "backward", "optimiser"} <= set(result["parts"])
    assert all(part["seconds"] > 0 and part["floor_seconds"] >= 0 for part in result["parts"].values())
    assert all(rate > 0 for rate in result["rates"].values())
    shown = capsys.readouterr().out
    assert "steps per second" in shown and "backward" in shown and str(path) in shown
