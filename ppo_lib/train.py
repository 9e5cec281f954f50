"""The Trainer: collect, estimate, optimise, log, evaluate, save.

- `update` is the loop of the paper; how a rollout is collected stands in collector.py, the losses in ppo.py.
- Before each update its starting point is kept in memory. Whatever stops the run (Ctrl-C, SIGTERM, a notebook's
  stop button), that point is saved at once: a resumed run repeats the unfinished update bit for bit.
- Several processes (torchrun) stop together, after an update; the first of them logs, evaluates and saves.
"""

from __future__ import annotations

import copy
import fcntl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import numpy as np
from torch import Tensor

from .checkpoint import POLICY, has_checkpoint, load_checkpoint, save_checkpoint, save_policy
from .collector import Collector
from .config import PPOConfig, UserError, derive_seed
from .distributed import ALONE, Group, launcher
from .evaluate import evaluate, write_episodes
from .files import replacing, write_error
from .logger import Logger, NoLogger, keep_rows
from .policy import ActorCritic
from .ppo import PPO
from .runs import EVALUATION_COLUMNS, MEASURING_FIELDS, SPLITS
from .signals import interruptible
from .speed import configure
from .storage import RolloutStorage

# A resumed run may change these: they don't touch what is learned (total_steps does if the learning rate is annealed).
FREE_TO_CHANGE = ("total_steps", "device", *MEASURING_FIELDS)
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
        shard = self.group.shard(config)
        checkpoint = self._find_checkpoint(resume)
        self.hardware = configure(config, checkpoint and checkpoint["precision"], self.group)
        policy = ActorCritic(
            recurrent=config.recurrent, width_scale=config.width_scale, seed=derive_seed(config.seed, "weights")
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
        self._stop, self._go = threading.Event(), threading.Event()
        self._go.set()
        if checkpoint:
            self.load_state_dict(checkpoint)
        self.group.wait()  # all have looked at the folder before one changes it
        self._lock: TextIO | None = None
        self.logger = self._make_folder(progress, resume) if self.group.is_first else NoLogger()
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
        start = time.perf_counter()
        if self.config.anneal_lr:
            self.ppo.learning_rate = self.config.learning_rate * (1 - self.steps / self.last_step)
        last_value = self.collect()
        self.storage.estimate(last_value, self.config.gamma, self.config.gae_lambda)
        diagnostics = self.ppo.optimize(self.storage, between_steps=self._obey)
        elapsed = time.perf_counter() - start
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

    @property
    def last_step(self) -> int:
        """Steps at the end of the run: total_steps, rounded up to whole rollouts."""
        return self.config.num_updates * self.config.batch_size

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
        return self.group.first(self._evaluate() if self.group.is_first else {})

    def _evaluate(self) -> dict[str, float]:
        played = {
            split: evaluate(
                self.policy,
                self.config,
                split,
                self.config.eval_episodes,
                seed=self.steps,
                between_steps=self._obey,
            )
            for split in SPLITS
        }
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
        if self._lock is not None:
            self._lock.close()

    def _obey(self) -> None:
        self._go.wait()
        if self._stop.is_set() and self.group.size == 1:
            raise Stopped

    # --- setting up ------------------------------------------------------------------------------------------------

    def _find_checkpoint(self, resume: bool) -> dict[str, object] | None:
        """The checkpoint to resume from, or None for a new run, whose folder must not exist."""
        if not resume:
            self._refuse_existing()
            return None
        if not has_checkpoint(self.run_dir) and not (self.run_dir / POLICY).exists():
            return None  # it was stopped before its first checkpoint: there is nothing to lose
        checkpoint = load_checkpoint(self.run_dir)
        saved = PPOConfig.from_dict(checkpoint["config"])
        free = FREE_TO_CHANGE if not saved.anneal_lr else FREE_TO_CHANGE[1:]
        changed = [n for n, v in self.config.to_dict().items() if v != getattr(saved, n) and n not in free]
        if changed:
            differences = ", ".join(f"{n} {getattr(saved, n)} -> {getattr(self.config, n)}" for n in changed)
            raise UserError(
                f"The run {self.run_dir} was started with another config ({differences}); resume it without these "
                "changes, or start a new run with another --run name."
            )
        processes = 1 + len(checkpoint.get("others", ()))
        if processes != self.group.size:
            raise UserError(
                f"The run {self.run_dir} was trained by {processes} process{'es' * (processes > 1)}, not "
                f"{self.group.size}; go on with {launcher(processes)} train."
            )
        if self.last_step < checkpoint["steps"]:
            raise UserError(
                f"The run {self.run_dir} has trained for {checkpoint['steps']:,} steps already, more than the "
                f"{self.last_step:,} asked for: give more --total-steps, or leave them out."
            )
        return checkpoint

    def _refuse_existing(self) -> None:
        if (self.run_dir / "config.json").exists():
            raise UserError(f"The run {self.run_dir} exists; go on with --resume, or choose another name with --run.")

    def _make_folder(self, progress: bool, resume: bool) -> Logger:
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self._lock = self._lock_folder()
            if not resume:
                self._refuse_existing()  # another process may have been faster
            with replacing(self.run_dir / "config.json") as file:
                file.write(self.config.to_json())
            keep_rows(self.run_dir / "evaluation.csv", EVALUATION_COLUMNS, self.steps)
            return Logger(self.run_dir, self.last_step, self.steps, progress)
        except OSError as error:
            raise write_error(error, self.run_dir) from None

    def _lock_folder(self) -> TextIO:
        """Keep other processes out of the folder, until close() or this one's end."""
        file = open(self.run_dir / ".train.lock", "w")  # noqa: SIM115 (closed by close)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(
                f"Another process is training {self.run_dir}: stop it first, or choose another name with --run."
            ) from None
        except OSError:
            pass  # a file system without locks, such as a mounted Drive
        return file
