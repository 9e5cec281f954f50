"""What only Linux has is not needed: a run, an evaluation and a sweep where all of that has been taken away."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ppo_lib.accel import bench

ROOT = Path(__file__).resolve().parents[2]
# Every Python that starts with this file on its path is on an unknown system with an ARM processor.
ELSEWHERE = """
import os, pathlib, platform, signal, sys, sysconfig
sysconfig.get_config_vars()  # while Python still knows its system
sys.modules["resource"] = None
for module, names in ((os, "sched_getaffinity getuid"), (signal, "SIGHUP SIGUSR1 SIGALRM setitimer SIGKILL")):
    for name in names.split():
        delattr(module, name)
platform.libc_ver = lambda *arguments: ("", "")
sys.platform = "elsewhere"
exists = pathlib.Path.exists
pathlib.Path.exists = lambda path, **how: str(path) != "/proc/cpuinfo" and exists(path, **how)
"""
TINY = (
    "--num-envs 2 --num-steps 32 --sequence-length 8 --num-minibatches 1 --total-steps 64 --eval-episodes 2 "
    "--device cpu --precision float32"
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="takes away what Linux has")
def test_train_evaluate_and_sweep_without_what_only_linux_has(tmp_path: Path) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(ELSEWHERE)
    environment = {**os.environ, "LOGNAME": "me", "PYTHONPATH": os.pathsep.join((str(tmp_path / "path"), str(ROOT)))}

    def command(arguments: str) -> str:
        line = [sys.executable, "-m", "ppo_lib", *arguments.split()]
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "no C kernels: they need Linux and an x86-64 processor" in command(f"train --run one {TINY}")
    command(f"sweep --sweep two --seed 1 {TINY}")
    runs = [tmp_path / "results" / "one", *(tmp_path / "results" / "two").glob("*/")]
    assert [len((run / "evaluation.csv").read_text().splitlines()) for run in runs] == [5, 5]


def test_memory_is_unknown_without_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "resource", None)
    assert math.isnan(bench.peak_memory_gb()["process"])
