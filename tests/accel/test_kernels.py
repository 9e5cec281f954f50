"""The C functions for the IMPALA block compute what torch computes, and their absence changes nothing but speed."""

import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ppo_lib.accel import kernels
from ppo_lib.accel.distributed import ALONE
from ppo_lib.accel.hardware import Hardware
from ppo_lib.checkpoint import load_policy
from ppo_lib.model import ImpalaBlock
from ppo_lib.ppo import PPO, normalize_advantage, ppo_loss
from ppo_lib.rollout import Collector
from ppo_lib.storage import RolloutStorage

AGENT = Path(__file__).parents[2] / "results/levels/levels200-seed0"

DTYPES = [
    pytest.param(
        dtype,
        marks=pytest.mark.skipif(
            kernels.library(dtype) is None,
            reason=f"this machine has no {need} or no C compiler: torch does the work",
        ),
    )
    for dtype, need in ((torch.float32, "AVX2"), (torch.bfloat16, "AVX512-BF16"))
]
ALL_FEATURES, FEATURES = kernels.features, kernels.features()
# of the input: B, C, H, W; channels of the output
SHAPES = [
    (2, 3, 64, 64, 16), (2, 16, 32, 32, 32), (3, 32, 16, 16, 32),  # the three blocks of ImpalaEncoder
    (3, 3, 7, 10, 32), (1, 16, 10, 7, 16), (4, 32, 3, 1, 16), (5, 16, 2, 3, 32),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _without_matrix_units(monkeypatch):
    """Where the processor has them, the block is tested all the same."""
    monkeypatch.setattr(kernels, "features", lambda: FEATURES - {"amx_bf16"})


def block_and_input(shape, whole_numbers=False, seed=0):
    """A block, and images. whole_numbers: so small that sums of them are exact even in bf16."""
    n, channels, height, width, out = shape
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    block = ImpalaBlock(channels, out).to(memory_format=torch.channels_last)
    x = torch.rand((n, channels, height, width), generator=generator)
    if whole_numbers:
        x = (2 * x).round()
        for parameter in block.parameters():
            kept = torch.rand(parameter.shape, generator=generator) < 2 / parameter[0].numel()
            signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2.0 - 1
            parameter.data.copy_(signs * kept)
    return block, x.bfloat16().float().contiguous(memory_format=torch.channels_last)


def run(block, x, dtype):
    """[output, gradients of the parameters, gradient of x unless it is RGB]."""
    x = x.to(dtype, copy=True).requires_grad_(x.shape[1] != kernels.RGB)
    block.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = block(x)
    assert y.is_contiguous(memory_format=torch.channels_last) and y.dtype == dtype
    y.backward(torch.randint(-1, 2, y.shape, generator=torch.Generator().manual_seed(1)).to(dtype))
    given = [] if x.grad is None else [x.grad]
    return [t.double() for t in (y.detach(), *(p.grad.clone() for p in block.parameters()), *given)]


def by_torch(block, x, dtype):
    """The same, without the C functions."""
    block.in_c = False
    results = run(block, x, dtype)
    block.in_c = True
    return results


def pooled(x):
    return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_whole_numbers_give_torchs_results_exactly(shape, dtype):
    """Ties of the pooling, borders, odd sizes, transposed weights: all exact, where rounding hides nothing."""
    block, x = block_and_input(shape, whole_numbers=True)
    expected = by_torch(block, x, torch.float32)
    assert expected[0].abs().max() <= 256 and all(e.abs().sum() > 0 for e in expected)
    assert kernels.runs_block(x.to(dtype), shape[-1])
    for found, exact in zip(run(block, x, dtype), expected, strict=True):
        assert torch.equal(found, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rounding_is_no_worse_than_torchs(shape, dtype):
    """On average: in each draw, rounding decides which of two near values a pooling or a ReLU lets through."""
    errors = []
    for seed in range(6):
        block, x = block_and_input(shape, seed=seed)
        exact = by_torch(block.double(), x, torch.float64)
        block.float()
        both = zip(run(block, x, dtype), by_torch(block, x, dtype), exact, strict=True)
        errors.append([[float((found - e).norm() / e.norm()) for found in (our, its)] for our, its, e in both])
    for our, its in torch.tensor(errors).mean(0):
        assert our <= 1.5 * its + 4 * torch.finfo(torch.float32).eps


@pytest.fixture(scope="module")
def agent_and_batch():
    """A trained agent as PPO holds it, and a minibatch of what it plays: 512 steps."""
    policy, config, _ = load_policy(AGENT)
    config = config.replace(num_envs=32, num_steps=16)
    ppo = PPO(policy, config, Hardware(torch.device("cpu"), torch.float32, 512, "for the test"))
    collector, storage = Collector(config, ppo, ALONE), RolloutStorage(16, 32, state_size=0)
    for _ in range(4):  # the scale of the rewards settles
        last_value = collector.collect(storage)
    collector.close()
    storage.estimate(last_value, config.gamma, config.gae_lambda)
    [batch] = storage.minibatches(1, torch.Generator().manual_seed(0))
    batch.advantage = normalize_advantage(batch.advantage)
    return ppo, batch


@pytest.mark.parametrize("dtype", DTYPES)
def test_ppos_gradient_for_a_trained_agent_is_as_near_as_torchs(agent_and_batch, dtype):
    """The gradient of PPO's loss on real screens, all parameters together, against torch's float32."""
    ppo, batch = agent_and_batch

    def gradient(dtype, in_c):
        for block in ppo.policy.encoder.blocks:
            block.in_c = in_c
        ppo.policy.autocast_dtype = dtype if dtype == torch.bfloat16 else None
        ppo.policy.zero_grad()
        logits, value, _ = ppo.policy(batch.obs, batch.state, batch.reset)
        ppo_loss(logits, value, batch, ppo.coefficients)[0].backward()
        return torch.cat([parameter.grad.flatten() for parameter in ppo.policy.parameters()])

    exact = gradient(torch.float32, in_c=False)
    our, its = ((gradient(dtype, in_c) - exact).norm() / exact.norm() for in_c in (True, False))
    assert 0 < our <= (1e-4 if dtype == torch.float32 else 1.2 * its)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_the_same_without_gradients_and_alone(dtype):
    block, x = block_and_input(SHAPES[0])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = block(x.to(dtype))
        with torch.no_grad():
            assert torch.equal(block(x.to(dtype)), y)
        first = block(x[:1].to(dtype))
    assert torch.equal(first, y[:1])  # an image's values don't depend on its neighbours


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_thread_computes_what_several_do(monkeypatch, dtype):
    block, x = block_and_input((5, 16, 9, 9, 32), whole_numbers=True)
    found = []
    for threads in (1, 3, 8):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(run(block, x, dtype))
    for results in zip(*found, strict=True):
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_comes_out(dtype):
    block, x = block_and_input((1, 16, 8, 8, 16))
    for bad in (torch.nan, -torch.nan):
        for layer in (block.conv, block.residual1.conv1):
            layer.bias.data[0] = bad
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                assert block(x.to(dtype)).isnan().any()
            layer.bias.data[0] = 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_library_is_compiled_once(monkeypatch, tmp_path, dtype):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile_it = kernels.library.__wrapped__
    assert compile_it(dtype) is not None
    assert [path.suffix for path in (tmp_path / "ppo_lib").iterdir()] == [".so"]
    monkeypatch.setattr(subprocess, "run", None)
    assert compile_it(dtype) is not None


@pytest.mark.skipif(kernels.library(torch.float32) is None, reason="this machine has no AVX2 or no C compiler")
def test_processors_without_avx512_get_narrower_vectors(monkeypatch):
    monkeypatch.setattr(kernels, "features", lambda: frozenset(kernels.AVX2))
    narrow = kernels.library.__wrapped__(torch.float32)
    monkeypatch.setattr(kernels, "library", lambda dtype: narrow)
    for shape in SHAPES:
        block, x = block_and_input(shape, whole_numbers=True)
        for found, exact in zip(run(block, x, torch.float32), by_torch(block, x, torch.float32), strict=True):
            assert torch.equal(found, exact)


@pytest.mark.parametrize("error", [FileNotFoundError("cc"), subprocess.CalledProcessError(1, "cc")])
def test_without_a_compiler_torch_does_it(monkeypatch, tmp_path, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setattr(kernels, "library", kernels.library.__wrapped__)
    block, x = block_and_input(SHAPES[1])
    assert not kernels.runs_block(x, 32)
    assert run(block, x, torch.float32)[0].shape == (2, 32, 16, 16)
    assert not list(tmp_path.glob("ppo_lib/*"))  # nothing half done is left


@pytest.mark.parametrize("flags", ["fpu sse2 avx", None])
def test_other_processors_are_left_to_torch(monkeypatch, tmp_path, flags):
    monkeypatch.setattr(kernels, "CPU", tmp_path / "cpuinfo")
    monkeypatch.setattr(kernels, "features", ALL_FEATURES.__wrapped__)
    if flags:
        kernels.CPU.write_text(f"processor : 0\nflags\t\t: {flags}\n")
        assert "avx" in kernels.features()
    assert kernels.library.__wrapped__(torch.float32) is None
    assert kernels.library.__wrapped__(torch.bfloat16) is None


def test_other_types_and_widths_are_left_to_torch():
    x = torch.zeros(1, 16, 4, 4)
    assert not kernels.runs_block(x.double(), 32)
    assert not kernels.runs_block(x, 64)
    assert not kernels.runs_block(torch.zeros(1, 64, 4, 4), 32)
    assert not kernels.runs_block(torch.zeros(1, 3, 4, 4).requires_grad_(), 16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_there_are_matrix_units_only_the_pooling_is_done(monkeypatch, dtype):
    """Its values are torch's, and its gradients the exact sums, rounded once."""
    monkeypatch.setattr(kernels, "features", lambda: FEATURES | {"amx_bf16"})
    assert kernels.runs_block(torch.zeros(1, 16, 4, 4, dtype=dtype), 32) == (dtype == torch.float32)
    for shape in ((2, 16, 64, 64), (3, 32, 7, 10), (1, 48, 10, 7), (2, 16, 1, 1), (1, 16, 2, 3)):
        x = (2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).round() / 2  # many ties
        x = x.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
        exact = x.detach().double().requires_grad_()
        y, reference = kernels.max_pool(x), pooled(exact)
        assert torch.equal(y, pooled(x)) and y.is_contiguous(memory_format=torch.channels_last)
        gradient = torch.randint(-8, 9, y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        y.backward(gradient)
        reference.backward(gradient.double())
        assert torch.equal(x.grad, exact.grad.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_pooling_signed_zeros_and_infinities(dtype):
    x = torch.tensor([-0.0, 0.0, -1.0, -torch.inf, torch.inf, 1e-40, -1e-40, 3.0, -3.0]).to(dtype)
    x = x.view(1, 1, 3, 3).expand(1, 16, 3, 3).contiguous(memory_format=torch.channels_last)
    for window in (x, -x, torch.full_like(x, -torch.inf)):
        assert torch.equal(kernels.max_pool(window), pooled(window))
