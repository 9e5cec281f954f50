"""What makes training fast and changes nothing else: `attach` gives a policy's IMPALA blocks their C functions.

- An edited network computes what is written. At every call, a block runs in C only if it is, at that moment, exactly
  what the C function computes: classes, settings, shapes, types, devices, no hooks. Otherwise its own forward runs.
- The code in model.py may be edited as well: before anything is replaced, a small block as written there must equal
  the C function exactly, in values and gradients.
"""

from __future__ import annotations

import types

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ppo_lib.accel import kernels
from ppo_lib.model import ImpalaBlock, ResidualBlock

CONV_SETTINGS = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
WRITTEN_CONV = ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
WRITTEN_POOL = (3, 2, 1, 1, False, False)  # kernel_size, stride, padding, dilation, return_indices, ceil_mode
# The code of each class's forward that the C functions stand for; the first two only once `_proved` has seen them.
_code: dict[type, types.CodeType | None] = {
    ImpalaBlock: None,
    ResidualBlock: None,
    **{kind: kind.forward.__code__ for kind in (nn.Conv2d, nn.MaxPool2d)},
}


def attach(policy: nn.Module, dtype: torch.dtype | None = None) -> str:
    """Let C functions compute the IMPALA blocks inside a module, or their pooling where torch convolves faster.

    dtype: in which the blocks will compute; by default the module's `autocast_dtype`, else float32.
    Returns what was replaced: "IMPALA blocks in C", "pooling in C", both, or "" (kernels.load says why).
    Weights, state_dict, copy.deepcopy and .to() work as before; a second call replaces the first.
    """
    dtype = dtype or getattr(policy, "autocast_dtype", None) or torch.float32
    blocks = [block for block in policy.modules() if type(block) is ImpalaBlock]
    for module in (part for block in blocks for part in (block, block._modules.get("pool"))):
        if getattr(vars(module).get("forward"), "__func__", None) in (forward, pool_forward):
            del module.forward
    done = []
    if not blocks or kernels.library(dtype) is None:
        return ""
    proved = not kernels.torch_convolves(dtype) and _proved(dtype)
    for block in blocks:
        if proved and _block_parameters(block) is not None:
            block.forward = types.MethodType(forward, block)
            done.append("IMPALA blocks in C")
        elif _is_written_pool(block._modules.get("pool")):
            block.pool.forward = types.MethodType(pool_forward, block.pool)
            done.append("pooling in C")
    return ", ".join(dict.fromkeys(done))


# Both are named as the method they replace: unpickled elsewhere, a module finds its written forward by that name.
def forward(block: ImpalaBlock, x: Tensor) -> Tensor:
    """ImpalaBlock.forward, in C where that computes the same. [B, C, H, W] -> [B, C', H/2, W/2]."""
    if _takes(x) and not kernels.torch_convolves(x.dtype):
        parameters = _block_parameters(block)
        channels = x.shape[1]
        needs_too_much = channels == kernels.RGB and x.requires_grad  # no gradient is computed for the image itself
        if parameters is not None and parameters[0].shape[1] == channels and not needs_too_much:
            return kernels.impala_block(x, *parameters)
    return type(block).forward(block, x)


def pool_forward(pool: nn.MaxPool2d, x: Tensor) -> Tensor:
    """nn.MaxPool2d.forward with window 3, stride 2 and padding 1, in C where that computes the same."""
    if _takes(x, autocast=False) and x.shape[1] % kernels.LANES == 0 and _is_written_pool(pool, attached=True):
        return kernels.max_pool(x)
    return type(pool).forward(pool, x)


def _takes(x: Tensor, autocast: bool = True) -> bool:
    """Whether the input is one for the C functions: a plain CPU tensor, of the type that torch would compute in."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    if type(x) not in (Tensor, nn.Parameter) or x.dim() != 4 or not x.is_cpu or x.layout is not torch.strided:
        return False
    if autocast:
        mixed = torch.is_autocast_enabled("cpu")
        if x.dtype is not (torch.get_autocast_dtype("cpu") if mixed else torch.float32):
            return False
    return x.numel() > 0 and kernels.library(x.dtype) is not None


def _block_parameters(block: ImpalaBlock) -> list[Tensor] | None:
    """Weight and bias of the five convolutions in their order, or None unless the block is what the C code computes."""
    parts = block._modules
    residuals = parts.get("residual1"), parts.get("residual2")
    if _has_global_hooks() or not _untouched(block, ImpalaBlock, attached=True):
        return None
    if not (_is_written_pool(parts.get("pool")) and all(_untouched(part, ResidualBlock) for part in residuals)):
        return None
    convs = [parts.get("conv"), *(part._modules.get(name) for part in residuals for name in ("conv1", "conv2"))]
    found: list[Tensor] = []
    inputs = outputs = 0
    for conv in convs:
        if not _untouched(conv, nn.Conv2d):
            return None
        own = conv.__dict__
        if "_conv_forward" in own or tuple([own[name] for name in CONV_SETTINGS]) != WRITTEN_CONV:
            return None
        weight, bias = own["_parameters"].get("weight"), own["_parameters"].get("bias")
        if not (_is_plain(weight) and _is_plain(bias)):
            return None
        if not found:
            outputs, inputs = weight.shape[:2]
            if inputs not in kernels.INPUTS or outputs not in kernels.OUTPUTS:
                return None
        if weight.shape != (outputs, inputs, 3, 3) or bias.shape != (outputs,):
            return None
        inputs = outputs
        found += weight, bias
    return found


def _is_plain(weight: Tensor | None) -> bool:
    return type(weight) in (nn.Parameter, Tensor) and weight.dtype is torch.float32 and weight.is_cpu


def _is_written_pool(pool: nn.Module | None, attached: bool = False) -> bool:
    if not _untouched(pool, nn.MaxPool2d, attached) or _has_global_hooks():
        return False
    settings = pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.return_indices, pool.ceil_mode
    return settings == WRITTEN_POOL


def _untouched(part: nn.Module | None, kind: type[nn.Module], attached: bool = False) -> bool:
    """Whether a part is of this very class, without hooks or a forward of its own (attached: but for ours)."""
    if type(part) is not kind or getattr(kind.forward, "__code__", None) is not _code[kind]:
        return False
    own = part.__dict__
    hooks = own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
    return not hooks and (attached or "forward" not in own)


def _has_global_hooks() -> bool:
    """Whether hooks on all modules are registered, as those of torch's FLOP counter."""
    m = torch_module
    return bool(
        m._global_forward_hooks
        or m._global_forward_pre_hooks
        or m._global_backward_hooks
        or m._global_backward_pre_hooks
    )


def _proved(dtype: torch.dtype) -> bool:
    """Whether the classes as they are written now compute what the C function does: exact in whole numbers."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.enable_grad():
            torch.manual_seed(0)
            block = ImpalaBlock(16, 32).float()
            for weight in block.parameters():  # few and small enough that sums are exact even in bf16
                signs = (torch.rand_like(weight) < 0.5) * 2.0 - 1
                weight.data = signs * (torch.rand_like(weight) < 2 / weight[0].numel())
            x = torch.randint(0, 3, (2, 16, 7, 6)).float().requires_grad_()
            dy = torch.randint(-1, 2, (2, 32, 4, 3)).float()
            inputs = [x, *block.parameters()]
            written = block(x)
            fast = kernels.impala_block(x.to(dtype), *block.parameters())
            expected = [written, *torch.autograd.grad(written, inputs, dy)]
            found = [fast, *torch.autograd.grad(fast, inputs, dy.to(dtype))]
    except Exception:  # whatever an edited class does differently, it is not what the C function computes
        return False
    equal = all(torch.equal(ours.float(), its) for ours, its in zip(found, expected, strict=True))
    if equal:
        _code.update({kind: kind.forward.__code__ for kind in (ImpalaBlock, ResidualBlock)})
    return equal
