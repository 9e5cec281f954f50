"""What makes training fast and changes nothing else: `attach` gives a policy's IMPALA blocks their C functions.

An edited network computes what is written: at each call, a block runs in C only if it is at that moment what the C
function computes (classes, settings, shapes, types, devices, no hooks). To allow for edits of model.py, a small block
as written there must first equal the C function in whole numbers.
"""

from __future__ import annotations

import contextlib
import types
from operator import itemgetter

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ppo_lib.accel import kernels
from ppo_lib.model import ImpalaBlock, ResidualBlock

GLOBAL_HOOKS = [hooks for name, hooks in vars(torch_module).items() if name.startswith("_global_") and "hooks" in name]
PLAIN = (Tensor, nn.Parameter)
FREE = ("_parameters", "_modules", "training", "in_channels", "out_channels")  # attributes that may differ
_written: dict[type, tuple] = {}  # of each class: code of its forward, number of attributes, values of those not free


def attach(policy: nn.Module, dtype: torch.dtype | None = None) -> str:
    """Let C functions compute the IMPALA blocks inside a module, or their pooling where torch convolves faster.

    dtype: in which the blocks will compute; by default the module's `autocast_dtype`, else float32.
    Returns what was replaced: "IMPALA blocks in C", "pooling in C", both, or "" (kernels.load says why).
    Weights, state_dict, copy.deepcopy and .to() work as before. A second call replaces the first.
    """
    dtype = dtype or getattr(policy, "autocast_dtype", None) or torch.float32
    usable = kernels.load(dtype)[0] is not None and _prove(dtype)
    done = {}
    for module in policy.modules():
        if _attached(module):
            del module.forward
    for block in [module for module in policy.modules() if usable and type(module) is ImpalaBlock]:
        if weights := _weights(block):
            whole = kernels.convolves(dtype, *weights[0].shape[:2])
            part, what = (block, "IMPALA blocks in C") if whole else (block.pool, "pooling in C")
            part.forward, done[what] = types.MethodType(forward, part), True
    return ", ".join(done)


def forward(module: nn.Module, x: Tensor) -> Tensor:  # pickle saves its name, and so restores the written forward
    """The forward of an ImpalaBlock, or of its pooling, in C where that computes the same."""
    if _takes(x) and type(module) is ImpalaBlock:
        weights = _weights(module)
        fits = weights and weights[0].shape[1] == x.shape[1] and kernels.convolves(x.dtype, *weights[0].shape[:2])
        if fits and not (x.shape[1] == kernels.RGB and x.requires_grad):  # C computes no gradient for the image itself
            return kernels.Block.apply(torch.is_grad_enabled(), x, *weights)
    elif _takes(x) and _as_written(module, nn.MaxPool2d) and x.shape[1] % kernels.LANES == 0:
        return kernels.MaxPool.apply(x)
    return type(module).forward(module, x)


def _takes(x: Tensor) -> bool:
    """Whether x is an input for the C functions: a plain CPU tensor [B, C, H, W] of the type that torch computes in."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    plain = type(x) in PLAIN and x.is_cpu and x.layout is torch.strided and x.dtype is dtype
    return plain and x.dim() == 4 and x.numel() > 0 and kernels.load(dtype)[0] is not None and not any(GLOBAL_HOOKS)


def _weights(block: ImpalaBlock) -> list[Tensor]:
    """Weight and bias of the five convolutions in their order, if the block is as in model.py, else nothing."""
    parts = block._modules
    residuals = [parts.get("residual1"), parts.get("residual2")]
    written = _as_written(block, ImpalaBlock) and _as_written(parts.get("pool"), nn.MaxPool2d)
    if not written or not all(_as_written(part, ResidualBlock) for part in residuals):
        return []
    convs = [parts.get("conv"), *(part._modules.get(name) for part in residuals for name in ("conv1", "conv2"))]
    found = [c._parameters.get(n) for c in convs if _as_written(c, nn.Conv2d) for n in ("weight", "bias")]
    if len(found) < 10 or not all(type(x) in PLAIN and x.dtype is torch.float32 and x.is_cpu for x in found):
        return []
    c, inputs = found[0].shape[:2]
    return found if [x.shape for x in found] == [(c, inputs, 3, 3), (c,), *4 * [(c, c, 3, 3), (c,)]] else []


def _attached(module: nn.Module) -> bool:
    return getattr(vars(module).get("forward"), "__func__", None) is forward


def _as_written(part: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Whether a module is of this very class, and as constructed: no hooks, settings or forward of its own but ours."""
    code, count, values, expected = _written[kind]
    same = type(part) is kind and getattr(kind.forward, "__code__", None) is code
    return same and len(vars(part)) == count + _attached(part) and values(vars(part)) == expected


def _prove(dtype: torch.dtype) -> bool:
    """Whether the classes as they are written now compute what the C function does, exactly in whole numbers."""
    equal = False  # whatever an edited class does differently, even raise an exception, is not what the C function does
    with contextlib.suppress(Exception), torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        block = ImpalaBlock(16, 32).float()
        for weight in block.parameters():  # few and small enough that sums are exact even in bf16
            few = torch.rand(weight.shape) < 3 / weight[0].numel()
            weight.data = (torch.randint(-1, 2, weight.shape) * few).float()
        inputs = [torch.randint(0, 3, (2, 16, 7, 6)).float().requires_grad_(), *block.parameters()]
        outputs = block(inputs[0]), kernels.Block.apply(True, inputs[0].to(dtype), *inputs[1:]).float()
        dy = torch.randint(-1, 2, outputs[0].shape)
        expected, found = ([y, *torch.autograd.grad((y * dy).sum(), inputs)] for y in outputs)
        equal = all(torch.equal(its, ours) for its, ours in zip(expected, found, strict=True))
    for module in (block, block.pool, block.residual1, block.conv) if equal else ():
        values = itemgetter(*(name for name in vars(module) if name not in FREE))
        _written[type(module)] = type(module).forward.__code__, len(vars(module)), values, values(vars(module))
    return equal
