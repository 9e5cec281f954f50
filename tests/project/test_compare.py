"""The comparison with other implementations: its contenders train, and its page says what was measured."""

import json
import re
import shutil

import compare
import contender
import pytest
import torch
from figure_audit import unnamed

from ppo_lib.accel import hardware, kernels
from ppo_lib.accel.bench import bench
from ppo_lib.config import PPOConfig


@pytest.fixture
def config(tiny) -> PPOConfig:
    """The real game, feed-forward, one update of 4 x 16 steps."""
    return tiny(recurrent=False)


@pytest.fixture
def blocks_in_c(monkeypatch):
    """How often the C functions ran. What the other contenders change is changed back."""
    calls, run = [], kernels._call
    monkeypatch.setattr(kernels, "_call", lambda *arguments: calls.append(1) or run(*arguments))
    for name in ("prepare_memory", "attach", "CPU_MICRO_BATCH"):
        monkeypatch.setattr(hardware, name, getattr(hardware, name))
    return calls


@pytest.mark.parametrize("textbook", [False, True])
def test_ppo_lib_and_the_textbook_mode_train(config, blocks_in_c, textbook):
    can = kernels.load(torch.float32)[0] is not None
    assert 0 < contender.train_with_ppo_lib(config, updates=1, textbook=textbook) < 60
    assert len(blocks_in_c) > 20 if can and not textbook else not blocks_in_c


def test_stable_baselines3_trains_by_torch(config, blocks_in_c):
    pytest.importorskip("stable_baselines3", reason="it is an extra: pip install 'deeplearningppo[bench]'")
    assert 0 < contender.train_with_sb3(config, updates=1) < 60
    assert not blocks_in_c


@pytest.fixture
def measured(tiny, tmp_path):
    """A folder with two made-up rounds, the second on a machine at half the speed, and two small benches."""
    speeds = {"ppo_lib": 800, "recurrent": 640, "float32": 400, "textbook": 200, "sb3": 100}
    rounds = [
        {name: {"steps_per_second": rate / slow, "peak_memory_gb": {"process": slow}} for name, rate in speeds.items()}
        for slow in (1, 2)
    ]
    bench(tiny(), tmp_path / "bench_paper.json")
    shutil.copy(tmp_path / "bench_paper.json", tmp_path / "bench_course.json")
    (tmp_path / "compare.json").write_text(json.dumps({"machine": compare.machine(), "rounds": rounds}))
    return tmp_path


def test_the_page_takes_ratios_within_a_round_and_names_its_axes(measured):
    compare.show(measured)
    page = (measured / "README.md").read_text()
    assert re.search(r"\| ppo_lib +\| +600 \| +2 \| 8.00, 8.00 ", page)
    assert "Without the GRU the speed is 1.25, 1.25 times" in page
    assert "| backward " in page and "`course`" in page
    assert (measured / "compare.png").stat().st_size > 1000
    assert unnamed(compare.draw(json.loads((measured / "compare.json").read_text()))) == []
