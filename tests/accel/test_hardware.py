"""Device and precision: what is picked, what is refused, and that every precision starts at ratio 1."""

import sys

import pytest
import torch

from ppo_lib.accel.hardware import configure, prepare_memory
from ppo_lib.config import UserError
from ppo_lib.train import Trainer


@pytest.fixture(autouse=True)
def _one_thread():
    yield
    torch.set_num_threads(1)


def test_auto_on_a_cpu_measures_and_says_why(tiny):
    hardware = configure(tiny(precision="auto"))
    assert hardware.precision in ("float32", "bf16")
    assert "times as fast" in hardware.reason and "cores" in hardware.reason


def test_a_resumed_run_keeps_its_precision(tiny):
    assert configure(tiny(precision="auto"), "bf16").precision == "bf16"
    assert configure(tiny(precision="auto"), "float32").autocast_dtype is None


def test_a_run_begun_in_fp16_goes_on_without_a_gpu(tiny):
    hardware = configure(tiny(device="cpu"), "fp16")
    assert hardware.precision == "float32" and "fp16, in which it began" in hardware.reason


def test_fp16_needs_a_gpu(tiny):
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        configure(tiny(precision="fp16"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU whose absence is tested")
def test_absent_gpu_is_explained(tiny):
    with pytest.raises(UserError, match="--device cpu"):
        configure(tiny(device="cuda"))


@pytest.mark.parametrize("recurrent", [False, True])
def test_bf16_starts_at_ratio_one(tiny, tmp_path, recurrent):
    """Acting on half of the environments and learning on micro-batches must round alike."""
    trainer = Trainer(tiny(precision="bf16", recurrent=recurrent, num_steps=32), tmp_path / "run", progress=False)
    trainer.collect()
    storage = trainer.storage
    storage.estimate(torch.zeros(4), 0.99, 0.95)
    for batch in storage.minibatches(2, torch.Generator().manual_seed(0)):
        with torch.no_grad():
            logits, _, _ = trainer.policy(batch.obs, batch.state, batch.reset)
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
