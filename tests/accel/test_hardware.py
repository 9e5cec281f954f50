"""Device, precision and threads: what is picked, what is refused, and what a recorded config falls back to."""

import copy
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ppo_lib.__main__ import main
from ppo_lib.accel import hardware, kernels
from ppo_lib.accel.hardware import configure, prepare_memory
from ppo_lib.config import UserError
from ppo_lib.policy import make_policy
from ppo_lib.train import Trainer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu(monkeypatch):
    """Let torch report GPUs: (their number, with bf16 or not)."""

    def pretend(count, bf16=True):
        for name, value in (
            ("is_available", count > 0), ("device_count", count), ("is_bf16_supported", bf16),
            ("get_device_capability", (8, 0) if bf16 else (7, 5)), ("get_device_name", "A100" if bf16 else "T4"),
        ):  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, lambda *arguments, value=value, **options: value)

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    pretend(0)
    yield pretend
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def test_auto_on_a_cpu_measures_and_says_why(tiny, gpu, monkeypatch):
    monkeypatch.setattr(hardware, "usable_cores", lambda: 1)
    chosen = configure(tiny(device="auto", precision="auto"))
    assert chosen.precision in ("float32", "bf16") and str(chosen.device) == "cpu" and not chosen.cuda_graphs
    assert "measured" in chosen.reason and chosen.reason.startswith("CPU with 1 core, ")


@pytest.mark.parametrize(("seconds_in_bf16", "precision", "most"), [(0.05, "float32", 4), (0.001, "bf16", 64)])
def test_emulated_bf16_is_out_after_few_images(tiny, gpu, monkeypatch, seconds_in_bf16, precision, most):
    """Whole batches of it would take many times as long."""
    seen = []

    class Encoder(torch.nn.Module):
        def forward(self, obs):
            seen.append(len(obs))
            time.sleep(seconds_in_bf16 if torch.is_autocast_enabled("cpu") else 0.01)
            return torch.zeros(1, requires_grad=True)

    monkeypatch.setattr(hardware, "ImpalaEncoder", Encoder)
    assert configure(tiny(device="cpu", precision="auto")).precision == precision
    assert max(seen) == most


def test_auto_on_a_gpu_takes_its_fastest_format(tiny, gpu):
    for bf16, precision in ((True, "bf16"), (False, "fp16")):
        gpu(1, bf16)
        chosen = configure(tiny(device="auto", precision="auto"))
        assert (str(chosen.device), chosen.precision, chosen.cuda_graphs) == ("cuda", precision, True)
        assert chosen.micro_batch == tiny().minibatch_size and ("TF32" in chosen.reason) == bf16


@pytest.mark.parametrize(
    ("gpus", "bf16", "device", "precision", "words"),
    [
        (0, False, "cpu", "fp16", "fp16 needs a GPU"),
        (1, False, "cuda", "bf16", "bf16 needs another GPU; use --precision fp16"),
        (0, False, "cuda", "float32", "no CUDA GPU.*--device cpu"),
        (2, True, "cuda:2", "float32", "no cuda:2.*cuda:0 to cuda:1"),
    ],
)
def test_what_is_not_there_is_refused(tiny, gpu, gpus, bf16, device, precision, words):
    gpu(gpus, bf16)
    with pytest.raises(UserError, match=words):
        configure(tiny(device=device, precision=precision))


@pytest.mark.parametrize(
    ("gpus", "bf16", "saved", "found", "words"),
    [
        (0, False, ("cuda", "fp16"), ("cpu", "float32"), ["cuda is not available", "fp16 is not available"]),
        (0, False, ("cuda:1", "bf16"), ("cpu", "bf16"), ["cuda:1 is not available"]),
        (1, True, ("cuda:1", "bf16"), ("cuda", "bf16"), ["cuda:1 is not available"]),
        (1, False, ("cuda", "bf16"), ("cuda", "fp16"), ["T4, fp16 (the run's bf16"]),  # begun on a newer GPU
        (1, True, ("cpu", "bf16"), ("cpu", "bf16"), ["--device cuda uses it"]),
        (1, True, ("cuda", "float32"), ("cuda", "float32"), ["TF32 for float32 products"]),
        (1, False, ("cuda", "float32"), ("cuda", "float32"), []),
    ],
)
def test_a_recorded_run_falls_back_to_what_is_there_and_says_so(tiny, gpu, gpus, bf16, saved, found, words):
    gpu(gpus, bf16)
    chosen = configure(tiny(device=saved[0], precision=saved[1]), recorded=True)
    assert (str(chosen.device), chosen.precision) == found
    assert all(word in chosen.reason for word in words), chosen.reason
    if not words:
        assert chosen.reason == "T4"


def test_processes_on_one_machine_share_its_gpus(tiny, gpu):
    gpu(2)
    for device in ("cuda", "cuda:0", "auto"):  # config.json may hold the first process's
        chosen = [configure(tiny(device=device), local_rank=rank, local_size=3).device for rank in range(3)]
        assert [device.index for device in chosen] == [0, 1, 0]


@pytest.fixture
def no_wishes(monkeypatch):
    """Leave OpenMP's variables unset."""
    for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "")  # restored afterwards, even if the code under test sets it
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("files", "omp", "local_size", "expected"),
    [
        ({}, None, 1, 8),
        ({}, None, 3, 2),
        ({}, "3", 1, 3),
        ({}, "3,2", 1, 3),
        ({}, "many", 1, 8),
        ({}, "64", 1, 8),
        ({}, "1", 2, 4),  # torchrun's own
        ({"cpu.max": "250000 100000"}, None, 1, 2),
        ({"cpu.max": "50000 100000"}, None, 1, 1),
        ({"cpu.max": "max 100000"}, None, 1, 8),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, None, 2, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None, 1, 8),
    ],
)
def test_threads_are_those_granted(tiny, monkeypatch, tmp_path, no_wishes, files, omp, local_size, expected):
    """The least of the cores, a container's limit (cgroup v2 and v1) and OMP_NUM_THREADS."""
    monkeypatch.setattr(hardware, "usable_cores", lambda: 8)
    monkeypatch.setattr(hardware, "CGROUPS", tmp_path)
    if omp:
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    chosen = configure(tiny(), local_size=local_size)
    assert torch.get_num_threads() == expected
    assert chosen.reason.startswith("CPU with 8 cores" if expected == 8 else f"CPU with {expected} of 8 cores")


def test_the_threads_flag_limits_every_command_that_computes(tiny, monkeypatch, capsys, no_wishes):
    monkeypatch.setattr(hardware, "usable_cores", lambda: 8)
    commands = "train --resume", "sweep --sweep s", "evaluate nobody", "video nobody", "bench --preset none"
    for command in commands:  # which end when they find what is missing
        monkeypatch.delenv("OMP_THREAD_LIMIT", raising=False)
        assert main([*command.split(), "--threads", "3"]) == 2 and "threads" not in capsys.readouterr().err
        assert (hardware.cpu_threads(), hardware.cpu_threads(4)) == (3, 2)  # and of several processes its share
        for wrong in ("0", "-1", "1.5", "all"):
            assert main([*command.split(), "--threads", wrong]) == 2
            said = capsys.readouterr().err
            assert said.count("\n") == 1 and f"--threads: a whole number of at least 1 is needed, not '{wrong}'" in said
    configure(tiny())
    assert torch.get_num_threads() == 3


def after_import(module, code="", **variables):
    """What a new process says that imports a module of ours with these environment variables."""
    command = [sys.executable, "-c", f"import os, {module}; {code}"]
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, torch's OpenMP is another one")
def test_threads_that_wait_spin_briefly(no_wishes):
    """As torch's own OpenMP understands it, which is loaded after ppo_lib; its default is 300,000."""
    shown = after_import("ppo_lib.model", OMP_DISPLAY_ENV="verbose")
    assert 100 < int(re.search(r"GOMP_SPINCOUNT = '(\d+)'", shown)[1]) < 100_000


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_a_wait_policy_that_the_user_chose_is_kept(no_wishes, name):
    ours = "print(*sorted({'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME'} & {*os.environ}), os.environ[NAME])"
    assert after_import("ppo_lib", ours.replace("NAME", repr(name)), **{name: "7"}).split() == [name, "7"]


def test_prepare_readies_a_policy_and_says_what_runs_in_c(tiny, monkeypatch):
    policy = make_policy(tiny())
    chosen = configure(tiny(precision="bf16"))
    assert chosen.prepare(policy) is policy and policy.autocast_dtype == torch.bfloat16
    notes = chosen.reason
    assert " in C" in notes or "no C kernels: " in notes
    chosen.prepare(copy.deepcopy(policy))
    assert chosen.reason == notes  # said once
    configure(tiny()).prepare(policy)
    assert policy.autocast_dtype is None
    monkeypatch.setattr(kernels, "load", lambda dtype: (None, "no C kernels: there is no C compiler (cc)"))
    without = configure(tiny())
    without.prepare(policy)
    assert without.reason.endswith(", no C kernels: there is no C compiler (cc)")
    assert without.prepare(torch.nn.Linear(2, 2))  # any module


@pytest.mark.parametrize("recurrent", [False, True])
def test_bf16_starts_at_ratio_one(tiny, tmp_path, recurrent):
    """Acting on half of the environments and learning on micro-batches must round alike."""
    trainer = Trainer(tiny(precision="bf16", recurrent=recurrent, num_steps=32), tmp_path / "run", progress=False)
    storage = trainer.storage
    trainer.collector.collect(storage)
    storage.compute_advantages(torch.zeros(4), 0.99, 0.95)
    for batch in storage.minibatches(2, torch.Generator().manual_seed(0)):
        with torch.no_grad():
            logits, _, _ = trainer.policy(batch.obs, batch.state, batch.episode_start)
        log_prob = logits.log_softmax(-1).gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
        assert (log_prob - batch.log_prob).abs().max() < 1e-3
    trainer.close()


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt belongs to glibc")
def test_freed_memory_is_kept_for_reuse():
    """After prepare_memory, taking and freeing a big block again faults in hardly any pages."""
    import resource

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(8_000_000)  # 32 MB, 8,000 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    prepare_memory.__wrapped__()  # whether or not another test has been here
    faults()
    assert faults() < 10_000
