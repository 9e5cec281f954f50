"""CUDA graphs: a fixed sequence of GPU kernels, recorded once and started with one call.

- At 64 environments a step's kernels are shorter than the time that Python needs to start them, so acting and the
  gradient of a minibatch are recorded. What is computed stays the same.
- A recording proves itself: its first results must equal those of the plain call, or the plain call is used.
- Elsewhere than on a GPU, `Graphed` is the plain call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]
TOLERANCE = 0.05  # relative, of all results' norm: reduced-precision kernels may add up in another order


def record(function: Function, inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
    """Record function(*inputs) -> (its results, which a replay overwrites; the replay)."""
    with torch.cuda.device(inputs[0].device):  # a stream belongs to the current GPU, whichever has the inputs
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries choose their kernels and set themselves up before a recording
            for _ in range(3):
                function(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            outputs = function(*inputs)
    return outputs, graph.replay


class Graphed:
    """Calls a function of tensors through recordings, one for each combination of input shapes.

    function: tensors -> tuple of tensors, the same kernels every time: no random numbers, no look at values. It may
    read other tensors (weights) that are only ever changed in place.
    constant: what else the function reads; recordings begin anew when it changes.
    The results are overwritten by the next call with the same shapes.
    """

    def __init__(
        self,
        function: Function,
        enabled: bool,
        constant: Callable[[], Hashable] = lambda: None,
        record: Callable = record,
    ) -> None:
        self.function, self.enabled, self.constant, self.record = function, enabled, constant, record
        self.recordings: dict[Hashable, tuple] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if not self.enabled:
            return self.function(*inputs)
        constant, shapes = self.constant(), tuple(x.shape for x in inputs)
        if (constant, shapes) not in self.recordings:
            self.recordings = {key: made for key, made in self.recordings.items() if key[0] == constant}
            try:
                self.recordings[constant, shapes] = self._proved_recording(inputs)
            except RuntimeError as error:
                self.enabled = False
                warnings.warn(f"CUDA graphs are off, training is slower: {error}", stacklevel=2)
                return self.function(*inputs)
        fixed, outputs, replay = self.recordings[constant, shapes]
        for place, new in zip(fixed, inputs, strict=True):
            place.copy_(new)
        replay()
        return outputs

    def _proved_recording(self, inputs: tuple[Tensor, ...]) -> tuple:
        """(places of the inputs, places of the results, replay). Raises RuntimeError if a replay computes otherwise."""
        expected = tuple(x.clone() for x in self.function(*inputs))
        fixed = tuple(x.clone() for x in inputs)
        outputs, replay = self.record(self.function, fixed)
        with torch.no_grad():  # what stands there now may be of a plain call: the replay has to write it
            for x in outputs:
                x.zero_()
            for place, new in zip(fixed, inputs, strict=True):  # a result can be an input
                place.copy_(new)
        replay()
        wanted, found = (
            torch.cat([x.flatten() for x in some if x.is_floating_point()]) for some in (expected, outputs)
        )
        if not (found - wanted).norm() <= TOLERANCE * wanted.norm():
            raise RuntimeError("a recording did not repeat what the plain call computes")
        return fixed, outputs, replay
