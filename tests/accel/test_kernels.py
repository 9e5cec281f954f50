"""The C functions for the IMPALA block compute what torch computes, and only where the block is as it is written."""

import copy
import os
import pickle
import subprocess
import tempfile
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ppo_lib.accel import attach, kernels
from ppo_lib.checkpoint import load_policy
from ppo_lib.envs import make_env
from ppo_lib.model import ImpalaBlock, ImpalaEncoder, ResidualBlock
from ppo_lib.policy import make_policy
from ppo_lib.ppo import PPO, normalize_advantage
from ppo_lib.rollout import Collector
from ppo_lib.storage import RolloutStorage

AGENT = Path(__file__).parents[2] / "results/levels/levels200-seed0"
DTYPES = [
    pytest.param(
        dtype,
        marks=pytest.mark.skipif(
            kernels.load(dtype)[0] is None,
            reason=f"this machine has no {need} or no C compiler: torch does the work",
        ),
    )
    for dtype, need in ((torch.float32, "AVX2"), (torch.bfloat16, "AVX512-BF16"))
]
(FLOAT32,) = DTYPES[0].marks
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


@pytest.fixture
def calls(monkeypatch):
    """Names of the C functions that are called from now on."""
    made, call = [], kernels._call
    monkeypatch.setattr(kernels, "_call", lambda name, *arguments: (made.append(name), call(name, *arguments))[1])
    return made


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
    """[output, gradients of the parameters, gradient of x unless it is RGB], by whatever forward the block has."""
    x = x.to(dtype, copy=True).requires_grad_(x.shape[1] != kernels.RGB)
    block.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = block(x)
    assert y.dtype == dtype
    y.backward(torch.randint(-1, 2, y.shape, generator=torch.Generator().manual_seed(1)).to(dtype))
    given = [] if x.grad is None else [x.grad]
    return [t.double() for t in (y.detach(), *(p.grad.clone() for p in block.parameters()), *given)]


def run_in_c(block, x, dtype):
    """The same by the C functions."""
    block = copy.deepcopy(block)
    assert attach(block, dtype) == "IMPALA blocks in C"
    return run(block, x, dtype)


def pooled(x):
    return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


# --- values and gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_whole_numbers_give_torchs_results_exactly(calls, shape, dtype):
    """Ties of the pooling, borders, odd sizes, transposed weights: all exact, where rounding hides nothing."""
    block, x = block_and_input(shape, whole_numbers=True)
    expected = run(block, x, torch.float32)
    assert expected[0].abs().max() <= 256 and all(e.abs().sum() > 0 for e in expected) and not calls
    for found, exact in zip(run_in_c(block, x, dtype), expected, strict=True):
        assert torch.equal(found, exact)
    assert calls[-2:] == ["block_forward", "block_backward"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rounding_is_no_worse_than_torchs(shape, dtype):
    """On average: in each draw, rounding decides which of two near values a pooling or a ReLU lets through."""
    errors = []
    for seed in range(6):
        block, x = block_and_input(shape, seed=seed)
        exact = run(copy.deepcopy(block).double(), x, torch.float64)
        both = zip(run_in_c(block, x, dtype), run(block, x, dtype), exact, strict=True)
        errors.append([[float((found - e).norm() / e.norm()) for found in (our, its)] for our, its, e in both])
    for our, its in torch.tensor(errors).mean(0):
        assert our <= 1.5 * its + 4 * torch.finfo(torch.float32).eps


pytestmark = pytest.mark.xdist_group("kernels")  # they share a trained agent's rollout


@pytest.fixture(scope="module")
def agent_and_batch():
    """A trained agent, and a minibatch of what it plays: 128 steps."""
    policy, config, _ = load_policy(AGENT)
    config = config.replace(num_envs=16, num_steps=8, num_minibatches=1)
    acting = copy.deepcopy(policy)
    attach(acting)
    collector = Collector(PPO(acting, config), [make_env(config)])
    storage = RolloutStorage(8, 16, state_size=0)
    for _ in range(4):  # the scale of the rewards settles
        last_value = collector.collect(storage)
    collector.close()
    storage.compute_advantages(last_value, config.gamma, config.gae_lambda)
    [batch] = storage.minibatches(1, torch.Generator().manual_seed(0))
    batch.advantage = normalize_advantage(batch.advantage)
    return policy, config, batch


@pytest.mark.parametrize("dtype", DTYPES)
def test_ppos_gradient_for_a_trained_agent_is_as_near_as_torchs(agent_and_batch, dtype):
    """The gradient of PPO's loss on real screens, all parameters together, against torch's float32."""
    trained, config, batch = agent_and_batch

    def gradient(dtype, in_c):
        policy = copy.deepcopy(trained)
        policy.autocast_dtype = dtype if dtype == torch.bfloat16 else None
        assert not in_c or attach(policy) == "IMPALA blocks in C"
        PPO(policy, config).loss(batch)[0].backward()
        return torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])

    exact = gradient(torch.float32, in_c=False)
    our, its = ((gradient(dtype, in_c) - exact).norm() / exact.norm() for in_c in (True, False))
    assert 0 < our <= (1e-4 if dtype == torch.float32 else 1.2 * its)


@pytest.mark.parametrize("dtype", DTYPES)
def test_with_average_pooling_the_gradient_is_as_near_as_torchs(agent_and_batch, calls, dtype):
    _, config, batch = agent_and_batch
    gradients = []
    for precision, in_c in ((None, False), (dtype, False), (dtype, True)):
        policy = make_policy(config.replace(pooling="average"))
        policy.autocast_dtype = dtype if precision == torch.bfloat16 else None
        assert not in_c or attach(policy) == "IMPALA blocks in C"
        calls.clear()
        PPO(policy, config).loss(batch)[0].backward()
        assert calls.count("block_backward") == 3 * in_c
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in policy.parameters()]))
    exact = gradients[0]
    its, our = ((gradient - exact).norm() / exact.norm() for gradient in gradients[1:])
    assert 0 < our <= (1e-4 if dtype == torch.float32 else 1.2 * its)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_the_same_without_gradients_and_alone(dtype):
    block, x = block_and_input(SHAPES[0])
    attach(block, dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = block(x.to(dtype))
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                assert torch.equal(block(x.to(dtype)), y)
        first = block(x[:1].to(dtype))
    assert torch.equal(first, y[:1])  # an image's values don't depend on its neighbours
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_thread_computes_what_several_do(monkeypatch, dtype):
    """Bit by bit, rounding included, whichever thread takes which image."""
    for images in (5, 40):  # fewer and more than the pieces that gradients are summed in
        block, x = block_and_input((images, 16, 9, 9, 32))
        found = []
        for threads in (1, 2, 3, 8, 8):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            found.append(run_in_c(block, x, dtype))
        for first, *others in zip(*found, strict=True):
            assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_comes_out(dtype):
    block, x = block_and_input((1, 16, 8, 8, 16))
    attach(block, dtype)
    for bad in (torch.nan, -torch.nan):
        for layer in (block.conv, block.residual1.conv1):
            layer.bias.data[0] = bad
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                assert block(x.to(dtype)).isnan().any()
            layer.bias.data[0] = 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_there_are_matrix_units_only_the_pooling_is_done(monkeypatch, calls, dtype):
    """Its values are torch's, and its gradients the exact sums, rounded once."""
    monkeypatch.setattr(kernels, "features", lambda: FEATURES | {"amx_bf16"})
    encoder = ImpalaEncoder()
    words = attach(encoder, dtype)
    assert words == ("pooling in C" if dtype == torch.bfloat16 else "IMPALA blocks in C")
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        encoder(torch.zeros(2, 64, 64, 3, dtype=torch.uint8))
    assert calls[-3:] == 3 * ["pool_forward" if dtype == torch.bfloat16 else "block_forward"]
    for shape in ((2, 16, 64, 64), (3, 32, 7, 10), (1, 48, 10, 7), (2, 16, 1, 1), (1, 16, 2, 3)):
        x = (2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).round() / 2  # many ties
        x = x.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
        exact = x.detach().double().requires_grad_()
        y, reference = kernels.MaxPool.apply(x), pooled(exact)
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
        assert torch.equal(kernels.MaxPool.apply(window), pooled(window))


# --- an edited network computes what is written -----------------------------------------------------------------------


class Twice(ResidualBlock):
    def forward(self, x):
        return 2 * super().forward(x)


class Halved(ImpalaBlock):
    def forward(self, x):
        return super().forward(x) / 2


def residual_subclass(block):
    block.residual2 = Twice(32)


def own_forward(part):
    part.forward = types.MethodType(lambda self, x: 3 * type(self).forward(self, x), part)


def conv(block, *, like=None, **changes):
    settings = dict(kernel_size=3, padding=1) | changes
    block.residual1.conv2 = nn.Conv2d(32, 32, **settings)


EDITS = {
    "average pooling": lambda block: setattr(block, "pool", nn.AvgPool2d(3, stride=2, padding=1)),
    "other pooling": lambda block: setattr(block.pool, "kernel_size", 1) or setattr(block.pool, "padding", 0),
    "identity": lambda block: setattr(block, "residual1", nn.Identity()),
    "removed layer": lambda block: setattr(block.residual2, "conv2", nn.Identity()),
    "subclass": residual_subclass,
    "forward of its own": lambda block: own_forward(block.residual1),
    "convolution's own forward": lambda block: own_forward(block.conv),
    "no bias": lambda block: conv(block, bias=False),
    "dilation": lambda block: conv(block, dilation=2, padding=2),
    "groups": lambda block: conv(block, groups=2),
    "padding mode": lambda block: conv(block, padding_mode="circular"),
    "edited setting": lambda block: (
        setattr(block.residual2.conv1, "dilation", (2, 2)) or setattr(block.residual2.conv1, "padding", (2, 2))
    ),
    "forward hook": lambda block: block.residual1.conv1.register_forward_hook(lambda module, x, y: 2 * y),
    "hook on the pooling": lambda block: block.pool.register_forward_hook(lambda module, x, y: y + 1),
    "hook before": lambda block: block.residual2.register_forward_pre_hook(lambda module, x: (x[0] + 1,)),
    "hook on the block": lambda block: block.register_forward_hook(lambda module, x, y: y + 1),
    "backward hook": lambda block: block.conv.register_full_backward_hook(lambda module, dx, dy: (3 * dx[0],)),
    "parametrization": lambda block: nn.utils.parametrizations.weight_norm(block.conv),
    "spectral norm": lambda block: nn.utils.spectral_norm(block.residual1.conv1).eval(),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("when", ["before attach", "after attach"])
def test_an_edited_block_computes_what_is_written(calls, edit, when, dtype):
    """Bit by bit torch's own result, forward and backward."""
    block, x = block_and_input((2, 16, 9, 10, 32))
    found = copy.deepcopy(block)
    if when == "after attach":
        assert attach(found, dtype)
        run(found, x, dtype)
    for one in (block, found):
        torch.manual_seed(1)  # new layers get the same weights
        edit(one)
    if when == "before attach":
        attach(found, dtype)
    calls.clear()
    expected = run(block, x, dtype)
    for ours, its in zip(run(found, x, dtype), expected, strict=True):
        assert torch.equal(ours, its)
    assert not calls


@FLOAT32
def test_a_subclass_of_the_block_is_left_alone(calls):
    torch.manual_seed(0)
    block, x = Halved(16, 32), torch.rand(1, 16, 6, 6)
    expected = block(x)
    assert attach(block) == "" and torch.equal(block(x), expected)
    mixed = nn.Sequential(block, ImpalaBlock(32, 32))
    assert attach(mixed) == "IMPALA blocks in C" and torch.equal(mixed[0](x), expected)


@FLOAT32
@pytest.mark.parametrize("how", ["replaced", "in place"])
@pytest.mark.parametrize("kind", [ImpalaBlock, ResidualBlock, nn.MaxPool2d])
@pytest.mark.parametrize("attached", [False, True])
def test_an_edited_class_computes_what_is_written(monkeypatch, kind, how, attached):
    """As an editor, or IPython's autoreload, changes model.py."""
    block, x = block_and_input(SHAPES[1])
    found = copy.deepcopy(block)
    if attached:
        assert attach(found)
    written = kind.forward
    copied = types.FunctionType(written.__code__, written.__globals__)

    def edited(self, x):
        return 2 * copied(self, x)

    if how == "replaced":
        monkeypatch.setattr(kind, "forward", edited)
    else:
        one_line = compile("lambda self, x: _edited(self, x)", "model.py", "eval").co_consts[0]
        monkeypatch.setitem(written.__globals__, "_edited", edited)
        monkeypatch.setattr(written, "__code__", one_line)
    if not attached:
        assert attach(found) == ""
    assert torch.equal(found(x), block(x)) and found(x).abs().sum() > 0


@FLOAT32
def test_weights_elsewhere_or_of_another_type_are_left_to_torch(calls):
    """Before, they crashed the process or were read as float32."""
    block, x = block_and_input(SHAPES[1])
    for move in (nn.Module.bfloat16, nn.Module.double, lambda module: module.to("meta")):
        moved = copy.deepcopy(block)
        attach(moved)
        calls.clear()
        move(moved)
        y = x.to(moved.conv.weight.dtype)
        found, expected = moved(y), ImpalaBlock.forward(moved, y)
        assert not calls and found.dtype == expected.dtype
        if not moved.conv.weight.is_meta:  # whose results are undefined
            assert torch.equal(found, expected)
    with pytest.raises(RuntimeError):  # torch's convolutions refuse bf16 images with float32 weights
        attach(block, torch.bfloat16)
        block(x.bfloat16())
    moved = copy.deepcopy(block)
    moved.residual1.conv1 = moved.residual1.conv1.bfloat16()
    with pytest.raises(RuntimeError):
        moved(x)


@FLOAT32
def test_other_inputs_are_left_to_torch(calls):
    block, _ = block_and_input(SHAPES[1])
    attach(block)
    wide, x = ImpalaBlock(16, 64), torch.rand(1, 16, 4, 4)
    assert attach(wide) == "pooling in C"
    wide(x)
    assert calls[-1] == "pool_forward"
    rgb = ImpalaBlock(3, 16)
    attach(rgb)
    calls.clear()
    image = torch.rand(1, 3, 4, 4, requires_grad=True)
    rgb(image).sum().backward()
    assert image.grad.abs().sum() > 0
    assert block(x[0]).shape == (32, 2, 2) and block(x[:0]).shape == (0, 32, 2, 2)
    with pytest.raises(RuntimeError):
        block(x.double())
    weights = {name: 2 * p for name, p in block.named_parameters()}
    with torch.autocast("cpu", torch.bfloat16):
        assert block(x).dtype == torch.bfloat16
    assert not calls
    vectorized = torch.vmap(lambda scale: block(scale * x))(torch.ones(2))
    torch.testing.assert_close(vectorized[0], ImpalaBlock.forward(block, x))
    assert not calls
    doubled = torch.func.functional_call(block, weights, x)
    torch.testing.assert_close(doubled, torch.func.functional_call(copy.deepcopy(block), weights, x))


@FLOAT32
def test_hooks_on_all_modules_see_all_modules():
    block, x = block_and_input(SHAPES[1])
    attach(block)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, x, y: seen.append(type(module)))
    block(x)
    handle.remove()
    assert seen.count(nn.Conv2d) == 5 and nn.MaxPool2d in seen
    block(x)
    assert seen.count(nn.Conv2d) == 5


@FLOAT32
def test_the_flop_counter_counts_an_attached_network():
    from torch.utils.flop_counter import FlopCounterMode

    block, x = block_and_input(SHAPES[1])
    counts = []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter:
            block(x).sum().backward()
        counts.append(counter.get_total_flops())
        attach(block)
    assert counts[0] == counts[1] > 0


# --- attach ----------------------------------------------------------------------------------------------------------


@FLOAT32
def test_attached_policies_are_copied_saved_and_restored(tiny, calls, tmp_path):
    policy = make_policy(tiny())
    names = list(policy.state_dict())
    assert attach(policy) == attach(policy) == "IMPALA blocks in C"
    assert list(policy.state_dict()) == names
    copied = copy.deepcopy(policy)
    calls.clear()
    for parameter in copied.parameters():
        parameter.data.zero_()
    obs, state, start = torch.full((2, 64, 64, 3), 99, dtype=torch.uint8), policy.initial_state(2), torch.ones(2) > 0
    assert copied(obs, state, start)[1].abs().sum() == 0  # by its own weights
    assert policy(obs, state, start)[1].abs().sum() > 0
    assert len(calls) == 6
    torch.save(policy.state_dict(), tmp_path / "weights.pt")
    copied.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert torch.equal(copied(obs, state, start)[0], policy(obs, state, start)[0])
    restored = pickle.loads(pickle.dumps(policy))  # by its class's forward, where it may not be attached
    torch.testing.assert_close(restored(obs, state, start)[0], policy(obs, state, start)[0])


@FLOAT32
def test_attach_draws_no_random_numbers():
    encoder = ImpalaEncoder()
    before = torch.get_rng_state()
    attach(encoder)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_blocks_nothing_is_replaced():
    assert attach(nn.Linear(2, 2)) == ""


# --- compiling -------------------------------------------------------------------------------------------------------


@pytest.fixture
def caches(monkeypatch, tmp_path):
    """(the user's cache, the one without it), both new."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "cache/ppo_lib", tmp_path / f"temporary/ppo_lib-{os.getuid()}"


@FLOAT32
def test_the_library_is_compiled_once(monkeypatch, caches):
    load = kernels.load.__wrapped__
    assert load(torch.float32)[0] is not None
    assert [path.suffix for path in caches[0].iterdir()] == [".so"] and not caches[1].exists()
    monkeypatch.setattr(subprocess, "run", None)
    assert load(torch.float32)[0] is not None


@FLOAT32
@pytest.mark.parametrize("why", ["not a folder", "no home"])
def test_without_the_users_cache_another_folder_serves(monkeypatch, caches, why):
    compiled = Path(kernels.load(torch.float32)[0]._name).read_bytes()

    def write(arguments, **options):
        Path(arguments[arguments.index("-o") + 1]).write_bytes(compiled)

    monkeypatch.setattr(subprocess, "run", write)
    if why == "not a folder":
        caches[0].parent.write_text("")
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user without an entry and HOME
    found, problem = kernels.load.__wrapped__(torch.float32)
    assert found is not None and problem == ""
    assert [path.suffix for path in caches[1].iterdir()] == [".so"] and not Path("~").exists()


@FLOAT32
def test_another_users_folder_is_not_trusted(monkeypatch, caches):
    caches[0].parent.write_text("")
    caches[1].mkdir()
    caches[1].chmod(0o777)
    found, problem = kernels.load.__wrapped__(torch.float32)
    assert found is None and "writable by all" in problem


@FLOAT32
@pytest.mark.parametrize("error", [None, FileNotFoundError("cc"), subprocess.CalledProcessError(1, "cc")])
def test_without_a_compiler_torch_does_it_and_says_why(monkeypatch, caches, error):
    def fail(*arguments, **options):
        raise error

    if error is None:
        monkeypatch.setenv("PATH", "")
    else:
        monkeypatch.setattr(subprocess, "run", fail)
    load = kernels.load.__wrapped__
    assert ("no C compiler" if error is None else "cc") in load(torch.float32)[1]
    monkeypatch.setattr(kernels, "load", load)
    block, x = block_and_input(SHAPES[1])
    assert attach(block) == ""
    assert run(block, x, torch.float32)[0].shape == (2, 32, 16, 16)
    assert not [file for folder in caches for file in folder.glob("*")]  # nothing half done is left


@FLOAT32
def test_processors_without_avx512_get_narrower_vectors(monkeypatch):
    monkeypatch.setattr(kernels, "features", lambda: frozenset(kernels.NEEDS[torch.float32]))
    narrow = kernels.load.__wrapped__(torch.float32)
    monkeypatch.setattr(kernels, "load", lambda dtype: narrow)
    for shape in SHAPES:
        block, x = block_and_input(shape, whole_numbers=True)
        for found, exact in zip(run_in_c(block, x, torch.float32), run(block, x, torch.float32), strict=True):
            assert torch.equal(found, exact)


@pytest.mark.parametrize("flags", ["fpu sse2 avx", None])
def test_other_processors_are_left_to_torch(monkeypatch, tmp_path, flags):
    monkeypatch.setattr(kernels, "CPU", tmp_path / "cpuinfo")
    monkeypatch.setattr(kernels, "features", ALL_FEATURES.__wrapped__)
    if flags:
        kernels.CPU.write_text(f"processor : 0\nflags\t\t: {flags}\n")
        assert "avx" in kernels.features()
    for dtype, missing in ((torch.float32, "avx2"), (torch.bfloat16, "avx512_bf16"), (torch.float64, "float64")):
        found, problem = kernels.load.__wrapped__(dtype)
        assert found is None and (missing if flags else "they need Linux and an x86-64 processor") in problem
