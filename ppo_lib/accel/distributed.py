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
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # which torchrun sets


def launcher(processes: int) -> str:
    """The beginning of a command that starts ppo_lib in this many processes on one machine."""
    if processes == 1:
        return "python -m ppo_lib"
    # without the --, torchrun would read our --run as an abbreviation of a flag of its own
    return f"torchrun --standalone --nproc_per_node={processes} -m -- ppo_lib"


def rank() -> int:
    """Which of the processes this is, from 0."""
    return int(os.environ.get("RANK", 0))


def size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def trainer_class() -> type[Trainer]:
    """DistributedTrainer under torchrun, otherwise Trainer."""
    return DistributedTrainer if size() > 1 else Trainer


def columns(shared: Any) -> Any:
    """This rank's part of an array or tensor whose last axis runs over all ranks' items."""
    width = shared.shape[-1] // size()
    return shared[..., rank() * width : (rank() + 1) * width]


def concat(part: Tensor) -> Tensor:
    """Every rank's part, side by side on the last axis. Equal shapes, no bool."""
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts, -1)


def gather(thing: Any) -> list[Any]:
    """Every rank's thing, by rank; anything that can be pickled."""
    things = [None] * size()
    dist.all_gather_object(things, thing)
    return things


def share(ppo: PPO) -> None:
    """Let `ppo` learn together with the other ranks: each calls update with its own part of the rollout.

    A method's random draws are each rank's own. Raises UserError if it overrides after_update, whose data stay local.
    """
    if type(ppo).after_update is not PPO.after_update:
        raise UserError(
            f"{type(ppo).__name__} learns after an update from data that processes don't share: train without torchrun."
        )
    local_gradient = ppo.gradient

    def gradient(batch: Batch) -> Metrics:
        metrics = local_gradient(batch)
        tensors = [*(parameter.grad for parameter in ppo.policy.parameters()), *metrics.values()]
        dist.all_reduce(total := torch.cat([tensor.flatten() for tensor in tensors]))
        for tensor, mean in zip(tensors, (total / size()).split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view(tensor.shape))
        return metrics

    ppo.gradient = gradient
    ppo.normalize_advantage = lambda advantage: columns(normalize_advantage(concat(advantage)))
    ppo.explained_variance = lambda storage: explained_variance(concat(storage.value), concat(storage.return_))
    if rank():  # the first rank draws what a single process would
        ppo.action_generator.manual_seed(derive_seed(ppo.config.seed, "actions", rank()))
        ppo.batch_generator.manual_seed(derive_seed(ppo.config.seed, "minibatches", rank()))


class SharedCollector(Collector):
    """A Collector of one rank's environments whose statistics are those of all ranks."""

    def _count(self, finished: list[tuple[float, int]]) -> None:
        for episodes in gather(finished):
            super()._count(episodes)

    def _normalize(self, reward: np.ndarray, done: np.ndarray) -> np.ndarray:
        every = (concat(torch.from_numpy(a)).numpy() for a in (reward, done.view(np.uint8)))
        return columns(self.normalizer(*every))


class DistributedTrainer(Trainer):
    """A Trainer in each of torchrun's processes. They stop together, after an update; the first one logs and saves.

    Raises UserError if torchrun's variables are incomplete or the environments cannot be shared equally.
    """

    def __init__(self, config: PPOConfig, run_dir: Path | str, **options: Any) -> None:
        if missing := [name for name in VARIABLES if name not in os.environ]:
            raise UserError(f"WORLD_SIZE is set but {', '.join(missing)} is not: start with torchrun, or unset it.")
        if gpu := torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=PATIENCE)
        self.processes, self._evaluating = size(), False
        try:  # the clock in a run's name may have ticked between two processes
            super().__init__(config, gather(run_dir)[0], **options)
        except BaseException:
            dist.destroy_process_group()
            raise

    def _configure(self, config: PPOConfig, recorded: bool) -> Hardware:
        hardware = configure(config, recorded, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
        hardware.precision = gather(hardware.precision)[0]  # auto is decided by a measurement: once for all
        return hardware

    def _make_collector(self) -> Collector:
        num_envs = self.config.num_envs
        if num_envs % size():
            raise UserError(f"num_envs {num_envs} cannot be shared by {size()} processes: take a multiple.")
        part = self.config.replace(num_envs=num_envs // size())
        path = [rank()] if rank() else []  # the first rank plays what a single process would
        share(self.ppo)
        collector = SharedCollector(self.ppo, make_halves(part, *path), self.overlap)
        collector.normalizer = RewardNormalizer(num_envs, self.config.reward_gamma)
        return collector

    def _open_logger(self, progress: bool) -> Any:
        gather(None)  # every rank has looked at the folder before one changes it
        silent = SimpleNamespace(**dict.fromkeys(("message", "update", "evaluation", "close"), lambda *_: None))
        return silent if rank() else super()._open_logger(progress)

    def evaluate(self) -> dict[str, float]:
        """See Trainer.evaluate; the other ranks wait for the first one. A stop stops all."""
        means = None
        if rank() == 0:
            self._evaluating = True
            with suppress(Stopped):
                means = super().evaluate()
            self._evaluating = False
        if (means := gather(means)[0]) is None:
            raise Stopped
        return means

    def _evaluated(self) -> bool:
        return gather(super()._evaluated())[0]

    def save(self) -> None:
        """See Trainer.save; the checkpoint also holds the games and generators of the other ranks."""
        ppo = self._boundary["ppo"]
        own = {name: ppo[name] for name in ("action_generator", "batch_generator")}
        _, *others = gather({"halves": self._boundary["halves"], **own})
        if rank() == 0:
            self._boundary["others"] = others
            super().save()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Trainer.load_state_dict; from a checkpoint, each rank takes its own games and generators."""
        if rank() and "others" in state:
            own = state["others"][rank() - 1]
            state = {**state, "halves": own["halves"], "ppo": {**state["ppo"], **own}}
        super().load_state_dict(state)

    def close(self) -> None:
        """See Trainer.close; leaves the group."""
        super().close()
        dist.destroy_process_group()

    _on_signal = Trainer.stop

    def _stop_requested(self) -> bool:
        return any(gather(self._stop.is_set()))

    def _obey(self) -> None:
        if self._evaluating:  # an update is finished by all ranks together
            super()._obey()
