"""The benchmark splits an update into its parts and says what a user asks: steps per second and memory."""

import json

import pytest

from ppo_lib.accel.bench import PARTS, bench


@pytest.mark.parametrize("recurrent", [False, True])
def test_bench_measures_every_part(tiny, tmp_path, capsys, recurrent):
    path = tmp_path / "deep" / "bench.json"
    result = bench(tiny(recurrent=recurrent), path)
    assert json.loads(path.read_text()) == result
    assert result["steps_per_second"] > 0 and 0.1 < result["peak_memory_gb"]["process"] < 20
    assert tuple(result["parts"]) == PARTS
    parts = result["parts"]
    assert all(parts[name] > 0 for name in PARTS)
    assert parts["backward"] > parts["advantages"] and parts["forward"] > parts["minibatches"]
    shown = capsys.readouterr().out
    assert "steps per second" in shown and "backward" in shown and "learning" in shown
