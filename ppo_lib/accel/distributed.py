"""Several processes that train one agent: `torchrun --standalone --nproc_per_node=G -m -- ppo_lib train ...`.

- Every rank plays its share of the environments and takes the gradient of its share of each minibatch; torch's
  DistributedDataParallel averages the gradients, so all ranks hold the same weights after every step.
- What has to be known of a whole minibatch or rollout (advantage moments, reward variance, finished episodes,
  diagnostics) is gathered, so that G ranks compute what one process would on the union of their data.
- One process alone is a group of size 1, for which every method returns what it was given.
"""

from __future__ import annotations

import datetime
import os
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ppo_lib.config import PPOConfig, UserError

PATIENCE = datetime.timedelta(hours=2)  # the other ranks wait this long while the first one evaluates
T = TypeVar("T")


def launcher(processes: int) -> str:
    """The beginning of a command that starts ppo_lib in so many processes of this machine."""
    # without the --, torchrun would take our --run for an abbreviation of a flag of its own
    return (
        "python -m ppo_lib" if processes == 1 else f"torchrun --standalone --nproc_per_node={processes} -m -- ppo_lib"
    )


class Group:
    """The processes of a run. rank: which one this is, from 0; size: how many there are."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1) -> None:
        """local_rank and local_size count the processes on this machine."""
        self.rank, self.size, self.local_rank, self.local_size = rank, size, local_rank, local_size

    @classmethod
    def join(cls) -> Group:
        """The group that torchrun describes in the environment, joined; without torchrun, a group of one."""
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return cls()
        group = cls(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
        if not dist.is_initialized():
            backend = "gloo"
            if torch.cuda.is_available():
                torch.cuda.set_device(group.local_rank % torch.cuda.device_count())
                backend = "cpu:gloo,cuda:nccl"
            dist.init_process_group(backend, timeout=PATIENCE)
        return group

    @property
    def is_first(self) -> bool:
        """Whether this rank logs, evaluates and saves."""
        return self.rank == 0

    @property
    def path(self) -> tuple[int, ...]:
        """What tells this rank's random numbers apart, for derive_seed; nothing for the first."""
        return () if self.rank == 0 else (self.rank,)

    def shard(self, config: PPOConfig) -> PPOConfig:
        """The config of one rank: its share of the environments. Raises UserError if they can't be shared out."""
        if config.num_envs % self.size:
            raise UserError(f"num_envs {config.num_envs} can't be shared by {self.size} processes: take a multiple.")
        return config.replace(num_envs=config.num_envs // self.size)

    def columns(self, shared: T) -> T:
        """This rank's part of something whose last axis runs over all ranks' items."""
        width = shared.shape[-1] // self.size
        return shared[..., self.rank * width : (self.rank + 1) * width]

    def concat(self, part: Tensor) -> Tensor:
        """Every rank's part, side by side on the last axis. Equal shapes, no bool."""
        if self.size == 1:
            return part
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts, -1)

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over ranks, element by element."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total / self.size

    def all(self, thing: T) -> list[T]:
        """Every rank's thing, by rank; anything that can be pickled."""
        if self.size == 1:
            return [thing]
        things: list[T | None] = [None] * self.size
        dist.all_gather_object(things, thing)
        return things  # type: ignore[return-value]

    def any(self, flag: bool) -> bool:
        """Whether a rank says yes."""
        return any(self.all(flag))

    def first(self, thing: T) -> T:
        """What the first rank has."""
        return self.all(thing)[0]

    def wait(self) -> None:
        """Go on when every rank is here."""
        self.all(None)  # NCCL's barrier would need a device

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over ranks in backward."""
        return module if self.size == 1 else DistributedDataParallel(module)

    def averaging(self, module: nn.Module, last: bool) -> AbstractContextManager:
        """Around forward and backward of a micro-batch: gradients travel with the `last` one alone."""
        return nullcontext() if self.size == 1 or last else module.no_sync()

    def leave(self) -> None:
        """End of the common work."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


ALONE = Group()
