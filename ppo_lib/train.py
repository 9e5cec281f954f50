"""The Trainer: collect, estimate, optimise, log, evaluate, save.

- `update` is the loop of the paper; how a rollout is collected stands in collector.py, the losses in ppo.py.
- Before each update its starting point is kept in memory. Whatever stops the run (Ctrl-C, SIGTERM, a notebook's
  stop button), that point is saved at once: a resumed run repeats the unfinished update bit for bit.
- Several processes (torchrun) stop together, after an update; the first of them logs, evaluates and saves.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from ppo_lib.accel.distributed import ALONE, Group
from ppo_lib.accel.hardware import configure
from ppo_lib.checkpoint import save_checkpoint, save_policy
from ppo_lib.config import PPOConfig, derive_seed
from ppo_lib.evaluate import evaluate, write_episodes
from ppo_lib.files import write_error
from ppo_lib.logger import NoLogger
from ppo_lib.policy import ActorCritic
from ppo_lib.ppo import PPO
from ppo_lib.rollout import Collector
from ppo_lib.run_folder import RunFolder
from ppo_lib.runs import SPLITS
from ppo_lib.signals import interruptible
from ppo_lib.storage import RolloutStorage

OWN_GENERATORS = ("action_generator", "batch_generator")  # each process has its own


class Stopped(Exception):
    """Raised inside an update when a stop was asked for."""


class Trainer:
    """Trains one run in its folder.

    config: settings; run_dir: the run's folder, made if missing; resume: go on from its checkpoint;
    overlap: see Collector; progress: show a progress bar and messages; group: the processes that train together.
    Raises UserError if the run exists (without resume), another process trains it, or its checkpoint doesn't fit the
    config or the group.
    """

    def __init__(
        self,
        config: PPOConfig,
        run_dir: Path,
        *,
        resume: bool = False,
        overlap: bool = True,
        progress: bool = True,
        group: Group = ALONE,
    ) -> None:
        self.config, self.run_dir, self.group = config, Path(run_dir), group
        self.folder = RunFolder(self.run_dir, config, resume, group.size)
        shard = self.group.shard(config)
        checkpoint = self.folder.find_checkpoint()
        self.hardware = configure(config, checkpoint and checkpoint["precision"], self.group)
        policy = ActorCritic(
            recurrent=config.recurrent,
            width_scale=config.width_scale,
            seed=derive_seed(config.seed, "weights"),
            encoder_init=config.encoder_init,
        ).to(self.hardware.device)
        policy.autocast_dtype = self.hardware.autocast_dtype
        self.ppo = PPO(policy, config, self.hardware, self.group)
        self.storage = RolloutStorage(
            shard.num_steps,
            shard.num_envs,
            state_size=policy.state_size,
            sequence_length=config.sequence_length if config.recurrent else None,
            device=self.hardware.device,
        )
        self.collector = Collector(config, self.ppo, self.group, overlap)
        self.steps = 0
        self.seconds = 0.0
        self._paused_seconds = 0.0
        self._stop, self._go = threading.Event(), threading.Event()
        self._go.set()
        if checkpoint:
            self.load_state_dict(checkpoint)
        self.group.wait()  # all have looked at the folder before one changes it
        self.logger = self.folder.claim(self.steps, progress) if self.group.is_first else NoLogger()
        self.logger.message(f"{self.run_dir.name}: {self.hardware.reason}")
        self._boundary = self.state_dict()  # where the run stood after the last whole update

    @property
    def policy(self) -> ActorCritic:
        """The network being trained."""
        return self.ppo.policy

    # --- the algorithm ---------------------------------------------------------------------------------------------

    def train(self, on_update: Callable[[dict[str, float]], None] | None = None) -> bool:
        """Run until total_steps. on_update gets each update's metrics. Returns False if it was stopped before the end.

        Ctrl-C and SIGTERM save and then raise KeyboardInterrupt; one of several processes finishes its update
        instead, and they stop together. Raises DivergedError (see PPO.optimize), and UserError if the disk is full;
        in both cases the last checkpoint is kept.
        """
        alone = self.group.size == 1
        self._boundary = self.state_dict()
        try:
            with interruptible(None if alone else self.stop):
                if self.steps >= self.config.total_steps:
                    self.save()  # a kill may have left the policy behind the checkpoint
                while self.steps < self.config.total_steps:
                    metrics = self.update()
                    if self._passed(self.config.eval_interval):
                        self.evaluate()
                    self._boundary = self.state_dict()
                    if not alone and self.group.any(self._stop.is_set()):
                        raise Stopped
                    if self._passed(self.config.checkpoint_interval):
                        self.save()
                    if on_update is not None:
                        on_update(metrics)
        except (KeyboardInterrupt, Stopped) as stop:
            self.save()
            if isinstance(stop, KeyboardInterrupt):
                raise
            return False
        except OSError as error:
            raise write_error(error, self.run_dir) from None
        return True

    def update(self) -> dict[str, float]:
        """One iteration of PPO (1707.06347, algorithm 1): collect, estimate, optimise, log."""
        start, paused = time.perf_counter(), self._paused_seconds
        if self.config.anneal_lr:
            self.ppo.learning_rate = self.config.learning_rate * (1 - self.steps / self.config.last_step)
        last_value = self.collect()
        self.storage.estimate(last_value, self.config.gamma, self.config.gae_lambda)
        diagnostics = self.ppo.optimize(self.storage, between_steps=self._obey)
        elapsed = time.perf_counter() - start - (self._paused_seconds - paused)
        self.steps += self.config.batch_size
        self.seconds += elapsed
        recent = np.array(self.recent or [(np.nan, np.nan)])
        metrics = {
            "steps": self.steps,
            "seconds": self.seconds,
            "episodes": self.episodes,
            "return_mean": float(recent[:, 0].mean()),
            "length_mean": float(recent[:, 1].mean()),
            **diagnostics,
            "learning_rate": self.ppo.learning_rate,
            "clip_range": self.ppo.coefficients.clip_range,
            "entropy_coef": self.ppo.coefficients.entropy_coef,
            "steps_per_second": self.config.batch_size / elapsed,
        }
        self.logger.update(metrics)
        return metrics

    def collect(self) -> Tensor:
        """Fill the storage; returns the value of the observations after it, [N]. See Collector.collect."""
        return self.collector.collect(self.storage, between_steps=self._obey)

    # --- measuring and keeping -------------------------------------------------------------------------------------

    def _passed(self, interval: int) -> bool:
        """Whether the last update crossed a multiple of `interval` steps (0: the end of the run; -1: never)."""
        if interval < 0:
            return False
        at_end = self.steps >= self.config.total_steps
        if interval == 0:
            return at_end
        return at_end or self.steps // interval > (self.steps - self.config.batch_size) // interval

    def evaluate(self) -> dict[str, float]:
        """Play eval_episodes on train and on unseen levels, append them to evaluation.csv, return the mean of each."""
        means = self.group.first(self._evaluate() if self.group.is_first else None)
        if means is None:
            raise Stopped
        return means

    def _evaluate(self) -> dict[str, float] | None:
        """None if it was stopped."""
        count, how = self.config.eval_episodes, dict(seed=self.steps, between_steps=self._obey_at_once)
        try:
            played = {split: evaluate(self.policy, self.config, split, count, **how) for split in SPLITS}
        except Stopped:
            return None
        write_episodes(self.run_dir / "evaluation.csv", self.steps, played)
        means = {split: float(np.mean([e.return_ for e in episodes])) for split, episodes in played.items()}
        self.logger.evaluation(self.steps, means)
        return means

    def save(self) -> None:
        """Write the state at the last finished update to checkpoint.pt, and its policy to policy.pt."""
        state = self._boundary
        own = {"halves": state["halves"], **{name: state["ppo"][name] for name in OWN_GENERATORS}}
        everyones = self.group.all(own)
        if self.group.is_first:
            save_checkpoint(self.run_dir, {**state, "others": everyones[1:]})
            save_policy(self.run_dir, state["ppo"]["policy"], self.config, state["steps"])

    @property
    def episodes(self) -> int:
        """Training episodes finished so far."""
        return self.collector.episodes

    @property
    def recent(self) -> list[tuple[float, int]]:
        """(return, length) of the last 100 training episodes."""
        return list(self.collector.recent)

    @property
    def saved_steps(self) -> int:
        """Where the run would go on after a resume: the steps at the last finished update."""
        return self._boundary["steps"]

    def state_dict(self) -> dict[str, object]:
        """All that a bit-exact resume of this process needs, copied. Only between updates."""
        state = {
            "config": self.config.to_dict(),
            "precision": self.hardware.precision,
            "steps": self.steps,
            "seconds": self.seconds,
            "ppo": self.ppo.state_dict(),
            **self.collector.state_dict(),
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, object]) -> None:
        """The inverse of state_dict, or of what save wrote."""
        if not self.group.is_first:
            own = state["others"][self.group.rank - 1]
            generators = {name: own[name] for name in OWN_GENERATORS}
            state = {**state, "halves": own["halves"], "ppo": {**state["ppo"], **generators}}
        self.steps, self.seconds = state["steps"], state["seconds"]
        self.ppo.load_state_dict(state["ppo"])
        self.collector.load_state_dict(state)

    # --- control from outside --------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask a running train() to save and return, from any thread; it does so within a step."""
        self._stop.set()
        self._go.set()

    def pause(self) -> None:
        """Hold a running train() until resume() or stop(), from any thread."""
        self._go.clear()

    def resume(self) -> None:
        """Let a paused train() go on."""
        self._go.set()

    @property
    def paused(self) -> bool:
        """Whether pause() was called and neither resume() nor stop() since."""
        return not self._go.is_set()

    def close(self) -> None:
        """Free the games' threads, close the log files and let others train the run."""
        self.collector.close()
        self.logger.close()
        self.folder.release()

    def _obey(self) -> None:
        """Between two steps of an update, which several processes finish together."""
        if self.group.size == 1:
            self._obey_at_once()

    def _obey_at_once(self) -> None:
        if not self._go.is_set():
            begin = time.perf_counter()
            self._go.wait()
            self._paused_seconds += time.perf_counter() - begin
        if self._stop.is_set():
            raise Stopped
