"""Several processes that train one agent: `torchrun --standalone --nproc_per_node=G -m -- ppo_lib train ...`.

- Every rank plays its share of the environments and takes the gradient of its share of each minibatch; gradients are
  averaged before each step, so all ranks hold the same weights.
- What depends on a whole minibatch or rollout (advantage moments, reward variance, finished episodes, metrics) is
  gathered, so that G ranks compute what one process would compute on the union of their data.
- Only this file knows of it: a Trainer, a Collector and a PPO with a few methods replaced.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ppo_lib.accel.hardware import Hardware, configure
from ppo_lib.config import PPOConfig, UserError, derive_seed
from ppo_lib.ppo import PPO, Metrics, explained_variance, normalize_advantage
from ppo_lib.rollout import Collector
from ppo_lib.storage import Batch
from ppo_lib.train import Stopped, Trainer, make_halves
from ppo_lib.wrappers import RewardNormalizer

PATIENCE = datetime.timedelta(hours=2)  # how long the other ranks wait while the first one evaluates
OWN_GENERATORS = ("action_generator", "batch_generator")
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # which torchrun sets
T = TypeVar("T")


def launcher(processes: int) -> str:
    """The beginning of a command that starts ppo_lib in this many processes on one machine."""
    # without the --, torchrun would read our --run as an abbreviation of a flag of its own
    return (
        "python -m ppo_lib" if processes == 1 else f"torchrun --standalone --nproc_per_node={processes} -m -- ppo_lib"
    )


def rank() -> int:
    """Which of the processes this is, from 0."""
    return int(os.environ.get("RANK", 0))


def trainer_class() -> type[Trainer]:
    """DistributedTrainer under torchrun, otherwise Trainer."""
    return DistributedTrainer if int(os.environ.get("WORLD_SIZE", 1)) > 1 else Trainer


class Group:
    """The processes of a run. rank: which one this is, from 0; size: how many there are; local_*: on this machine."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1) -> None:
        self.rank, self.size, self.local_rank, self.local_size = rank, size, local_rank, local_size

    @classmethod
    def join(cls) -> Group:
        """The group that torchrun describes in the environment, joined. Raises UserError if that is incomplete."""
        if missing := [name for name in VARIABLES if name not in os.environ]:
            raise UserError(f"WORLD_SIZE is set but {', '.join(missing)} is not: start with torchrun, or unset it.")
        group = cls(*(int(os.environ[name]) for name in VARIABLES))
        if not dist.is_initialized():
            backend = "gloo"
            if torch.cuda.is_available():
                torch.cuda.set_device(group.local_rank % torch.cuda.device_count())
                backend = "cpu:gloo,cuda:nccl"
            dist.init_process_group(backend, timeout=PATIENCE)
        return group

    def shard(self, config: PPOConfig) -> PPOConfig:
        """The config of one rank: its share of the environments. Raises UserError if they cannot be shared."""
        if config.num_envs % self.size:
            raise UserError(f"num_envs {config.num_envs} cannot be shared by {self.size} processes: take a multiple.")
        return config.replace(num_envs=config.num_envs // self.size)

    def columns(self, shared: Any) -> Any:
        """This rank's part of an array or tensor whose last axis runs over all ranks' items."""
        width = shared.shape[-1] // self.size
        return shared[..., self.rank * width : (self.rank + 1) * width]

    def concat(self, part: Tensor) -> Tensor:
        """Every rank's part, side by side on the last axis. Equal shapes, no bool."""
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts, -1)

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over ranks, element by element."""
        total = tensor.clone()
        dist.all_reduce(total)
        return total / self.size

    def all(self, thing: T) -> list[T]:
        """Every rank's thing, by rank; anything that can be pickled."""
        things: list[Any] = [None] * self.size
        dist.all_gather_object(things, thing)
        return things

    def first(self, thing: T) -> T:
        """The first rank's thing."""
        return self.all(thing)[0]


def share(ppo: PPO, group: Group) -> None:
    """Let `ppo` learn together with the other ranks: each calls update with its own part of the rollout."""
    local_gradient = ppo.gradient

    def gradient(batch: Batch) -> Metrics:
        metrics = local_gradient(batch)
        gradients = [parameter.grad for parameter in ppo.policy.parameters()]
        mean = group.mean(torch.cat([g.flatten() for g in gradients])).split([g.numel() for g in gradients])
        for g, averaged in zip(gradients, mean, strict=True):
            g.copy_(averaged.view(g.shape))
        return dict(zip(metrics, group.mean(torch.stack(list(metrics.values()))), strict=True))

    ppo.gradient = gradient
    ppo.normalize_advantage = lambda advantage: group.columns(normalize_advantage(group.concat(advantage)))
    ppo.explained_variance = lambda storage: explained_variance(
        group.concat(storage.value), group.concat(storage.return_)
    )
    if group.rank:  # the first rank draws what a single process would
        ppo.action_generator.manual_seed(derive_seed(ppo.config.seed, "actions", group.rank))
        ppo.batch_generator.manual_seed(derive_seed(ppo.config.seed, "minibatches", group.rank))


class SharedCollector(Collector):
    """A Collector of one rank's environments whose statistics are those of all ranks."""

    def __init__(self, ppo: PPO, envs: list, overlap: bool, group: Group) -> None:
        super().__init__(ppo, envs, overlap)
        self.group = group
        self.normalizer = RewardNormalizer(self.config.num_envs, self.config.reward_gamma)

    def _count(self, finished: list[tuple[float, int]]) -> None:
        for episodes in self.group.all(finished):
            super()._count(episodes)

    def _normalize(self, reward: np.ndarray, done: np.ndarray) -> np.ndarray:
        every = (self.group.concat(torch.from_numpy(a)).numpy() for a in (reward, done.view(np.uint8)))
        return self.group.columns(self.normalizer(*every))


class _NoLogger:
    """Takes the place of the Logger in all ranks but the first: every method does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


class DistributedTrainer(Trainer):
    """A Trainer in each of torchrun's processes. They stop together, after an update; the first one logs and saves."""

    def __init__(self, config: PPOConfig, run_dir: Path | str, **options: Any) -> None:
        self.group = Group.join()
        self.processes = self.group.size
        self._evaluating = False
        try:
            run_dir = self.group.first(run_dir)  # the clock in a run's name may have ticked between two processes
            self.group.shard(config)
            super().__init__(config, run_dir, **options)
        except BaseException:
            dist.destroy_process_group()
            raise

    def _configure(self, config: PPOConfig, recorded: bool) -> Hardware:
        here = self.group.local_rank, self.group.local_size
        hardware = configure(config, recorded, *here)
        precision = self.group.first(hardware.precision)  # auto is decided by a measurement: once for all
        return (
            hardware
            if hardware.precision == precision
            else configure(config.replace(precision=precision), recorded, *here)
        )

    def _make_collector(self) -> Collector:
        share(self.ppo, self.group)
        path = [self.group.rank] if self.group.rank else []  # the first rank plays what a single process would
        return SharedCollector(self.ppo, make_halves(self.group.shard(self.config), *path), self.overlap, self.group)

    def _open_logger(self, progress: bool) -> Any:
        self.group.all(None)  # every rank has looked at the folder before one changes it
        return super()._open_logger(progress) if self.group.rank == 0 else _NoLogger()

    def evaluate(self) -> dict[str, float]:
        """See Trainer.evaluate; the other ranks wait for the first one. A stop stops all."""
        means, self._evaluating = None, True
        try:
            if self.group.rank == 0:
                means = super().evaluate()
        except Stopped:
            pass
        finally:
            self._evaluating = False
        means = self.group.first(means)
        if means is None:
            raise Stopped
        return means

    def _evaluated(self) -> bool:
        return self.group.first(super()._evaluated())

    def save(self) -> None:
        """See Trainer.save; the checkpoint also holds the games and generators of the other ranks."""
        ppo = self._boundary["ppo"]
        own = {"halves": self._boundary["halves"], **{name: ppo[name] for name in OWN_GENERATORS}}
        everyone = self.group.all(own)
        if self.group.rank == 0:
            self._boundary["others"] = everyone[1:]
            super().save()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Trainer.load_state_dict; from a checkpoint, each rank takes its own games and generators."""
        if self.group.rank and "others" in state:
            own = state["others"][self.group.rank - 1]
            generators = {name: own[name] for name in OWN_GENERATORS}
            state = {**state, "halves": own["halves"], "ppo": {**state["ppo"], **generators}}
        super().load_state_dict(state)

    def close(self) -> None:
        """See Trainer.close; leaves the group."""
        super().close()
        if dist.is_initialized():
            dist.destroy_process_group()

    def _on_signal(self) -> None:
        self.stop()

    def _stop_requested(self) -> bool:
        return any(self.group.all(self._stop.is_set()))

    def _obey(self) -> None:
        if self._evaluating:  # an update is finished by all ranks together
            super()._obey()
