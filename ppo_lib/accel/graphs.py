"""CUDA graphs: a fixed sequence of GPU kernels, recorded once and started with one call.

- Python starts the short kernels of a step more slowly than a GPU runs them: acting and gradients are recorded.
- A recording has to prove itself: each tensor of its first results must equal the plain call's, or graphs are off.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from ppo_lib.ppo import PPO
from ppo_lib.storage import Batch

Results = dict[Hashable, Tensor]
TOLERANCE, FLOOR = 0.05, 1e-4  # for rounding: of a tensor's norm, and of the largest norm among tensors of its kind


def record_graph(function: Callable[..., Results], inputs: list[Tensor]) -> tuple[Results, Callable[[], None]]:
    """Record function(*inputs) -> (its results, which a replay overwrites; the replay)."""
    with torch.cuda.device(inputs[0].device):  # a stream belongs to the current GPU, whichever has the inputs
        (side := torch.cuda.Stream()).wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries choose their kernels and set themselves up before a recording
            for _ in range(3):
                function(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph := torch.cuda.CUDAGraph(), stream=side):
            outputs = function(*inputs)
    return outputs, graph.replay


def attach_graphs(ppo: PPO, record: Callable = record_graph) -> tuple[Graphed, Graphed]:
    """Let `ppo.act` and `ppo.gradient` run as recordings; returns the two. Call it again after an edit of the policy.

    A subclass's loss is recorded, too: it draws no random numbers, and only tensors and `coefficients` change later.
    """
    parameters = list(ppo.policy.parameters())
    zero = torch.zeros((), dtype=torch.float64, device=ppo.device)  # 1 - clip_range then rounds as Python's numbers do
    numbers = {name: zero.clone() for name, value in vars(ppo.coefficients).items() if not isinstance(value, bool)}

    def run_gradient(constant: tuple, *fields: Tensor) -> Results:
        kind, _, switches = constant
        twin = copy.copy(ppo)  # `ppo` itself keeps plain numbers, which other threads read and set
        twin.coefficients = dataclasses.replace(ppo.coefficients, **numbers, **dict(switches))
        metrics = type(ppo).gradient(twin, kind(*fields))
        return metrics | {i: p.grad for i, p in enumerate(parameters) if p.grad is not None}

    def gradient(batch: Batch) -> dict[str, Tensor]:
        live = vars(ppo.coefficients).copy()
        for name, number in numbers.items():
            number.fill_(live.pop(name))
        constant = type(batch), ppo.micro_batch, tuple(live.items())
        results = learn(constant, *(getattr(batch, field.name) for field in dataclasses.fields(batch)))
        for i, parameter in enumerate(parameters):
            parameter.grad = results.get(i)
        return {name: value.clone() for name, value in results.items() if isinstance(name, str)}

    act = Graphed(lambda _, *inputs: dict(enumerate(type(ppo)._sample(ppo, *inputs))), record)
    learn = Graphed(run_gradient, record)
    ppo._sample, ppo.gradient = (lambda *inputs: tuple(act(None, *inputs).values())), gradient
    return act, learn


class Graphed:
    """Calls function(constant, *inputs) -> named tensors through recordings, one per constant and input shapes.

    Tensors that the function reads (weights) change in place only. The next call of the same shapes overwrites results.
    """

    def __init__(self, function: Callable[..., Results], record: Callable) -> None:
        self.function, self.record, self.enabled, self.recordings = function, record, True, {}

    def __call__(self, constant: Hashable, *inputs: Tensor) -> Results:
        key = constant, *((x.shape, x.dtype) for x in inputs)
        if key in self.recordings:
            return self.recordings[key](*inputs)
        expected = {name: x.clone() for name, x in self.function(constant, *inputs).items()}
        if self.enabled and all(bool(x.isfinite().all()) for x in expected.values()):  # else fp16 overflowed: next time
            try:
                self.recordings[key] = self._prove(constant, inputs, expected)
            except RuntimeError as error:
                self.enabled, self.recordings = False, {}
                warnings.warn(f"CUDA graphs are off, training is slower: {error}", stacklevel=2)
        return expected

    def _prove(self, constant: Hashable, inputs: tuple[Tensor, ...], expected: Results) -> Callable[..., Results]:
        """The function, recorded. Raises RuntimeError if a replay computes otherwise."""
        places = [x.clone() for x in inputs]
        outputs, start = self.record(lambda *fixed: self.function(constant, *fixed), places)

        def replay(*inputs: Tensor) -> Results:
            for place, new in zip(places, inputs, strict=True):
                place.copy_(new)
            start()
            return outputs

        for x in outputs.values():  # what stands there now may be of a plain call: the replay has to write it
            x.detach().fill_(torch.nan if x.is_floating_point() else -1)
        replay(*inputs)
        norms = {name: float(x.double().norm()) for name, x in expected.items()}
        for name, x in expected.items():
            error, largest = x.double() - outputs[name].double(), max(norms[n] for n in norms if type(n) is type(name))
            if not error.norm() <= TOLERANCE * norms[name] + FLOOR * largest:
                raise RuntimeError(f"a recording computed another result {name!r} than the plain call")
        return replay
