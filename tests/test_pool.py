"""The C kernel for max-pooling computes what torch computes, and its absence changes nothing but speed."""

import shutil
import subprocess

import pytest
import torch
import torch.nn.functional as F

from ppo_lib import pool

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler here: torch pools")


def pooled(x):
    return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


def random(shape):
    """bf16 [B, C, H, W], channels innermost, with many ties."""
    x = (2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).round() / 2
    return x.bfloat16().contiguous(memory_format=torch.channels_last)


@needs_cc
@pytest.mark.parametrize("shape", [(2, 16, 64, 64), (3, 32, 7, 10), (1, 48, 10, 7), (2, 16, 1, 1), (1, 16, 2, 3)])
def test_values_and_gradients_are_torchs(shape):
    assert pool.kernel() is not None
    x = random(shape).requires_grad_()
    exact = x.detach().float().requires_grad_()  # the same choices, with sums that aren't rounded to bf16
    y, reference = pool.MaxPool()(x), pooled(exact)
    assert torch.equal(y, pooled(x)) and y.is_contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    y.backward(gradient)
    reference.backward(gradient.float())
    assert torch.equal(x.grad, exact.grad.bfloat16())


@needs_cc
def test_signed_zeros_and_infinities():
    x = torch.tensor([-0.0, 0.0, -1.0, -torch.inf, torch.inf, 1e-40, -1e-40, 3.0, -3.0]).bfloat16()
    x = x.view(1, 1, 3, 3).expand(1, 16, 3, 3).contiguous(memory_format=torch.channels_last)
    for window in (x, -x, torch.full_like(x, -torch.inf)):
        assert torch.equal(pool.MaxPool()(window), pooled(window))


@needs_cc
def test_one_thread_computes_what_several_do(monkeypatch):
    x = random((5, 16, 9, 9))
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(pool.MaxPool()(x))
    assert torch.equal(*found)


@pytest.mark.parametrize("error", [FileNotFoundError("cc"), subprocess.CalledProcessError(1, "cc")])
def test_without_a_compiler_torch_pools(monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setattr(pool, "kernel", pool.kernel.__wrapped__)
    x = random((2, 16, 8, 8))
    assert pool.kernel() is None and torch.equal(pool.MaxPool()(x), pooled(x))


def test_float32_and_odd_channels_are_torchs():
    for x in (random((2, 16, 8, 8)).float(), random((2, 5, 8, 8))):
        assert torch.equal(pool.MaxPool()(x), pooled(x))
