"""The Trainer: collect, compute advantages, update; log, save, evaluate.

- `update` is the loop of the paper; rollout.py collects, ppo.py learns.
- Before each update its starting point is kept in memory. Whatever stops the run (Ctrl-C, SIGTERM, a notebook's stop
  button), that point is saved at once: a resumed run repeats the unfinished update bit for bit.
- The policy and a checkpoint are on disk before an evaluation begins; a resume makes up an evaluation that is missing.
- Several processes that train one agent are a subclass in accel/distributed.py.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from ppo_lib.accel.graphs import attach_graphs
from ppo_lib.accel.hardware import configure
from ppo_lib.checkpoint import CHECKPOINT, POLICY, RunFolder, interruptible, save_checkpoint, save_policy, uninterrupted
from ppo_lib.config import PPOConfig, UserError, derive_seed
from ppo_lib.envs import make_env, procgen_build
from ppo_lib.evaluate import evaluate, write_episodes
from ppo_lib.logger import Logger, PatientWriter, keep_rows
from ppo_lib.methods import algorithm_class
from ppo_lib.policy import ActorCritic, make_policy
from ppo_lib.ppo import PPO, DivergedError
from ppo_lib.rollout import Collector
from ppo_lib.runs import EVALUATION_COLUMNS, SPLITS, read_evaluation
from ppo_lib.storage import RolloutStorage
from ppo_lib.wrappers import EpisodeStatistics


def make_halves(config: PPOConfig, *path: int) -> list[EpisodeStatistics]:
    """The training environments in two halves, which take turns. path: sets these seeds apart from others."""
    sizes = [config.num_envs // 2, (config.num_envs + 1) // 2]
    seeds = [derive_seed(config.seed, "train", i, *path) for i in range(2)]
    if config.num_envs == 1:
        return [make_env(config, seed=seeds[0])]
    return [make_env(config, num_envs=size, seed=seed) for size, seed in zip(sizes, seeds, strict=True)]


class Stopped(Exception):
    """Raised inside an update when a stop was requested."""


class Trainer:
    """Trains one run in its folder.

    config: settings; run_dir: the run's folder, made if missing; resume: continue from its checkpoint;
    overlap: see Collector; progress: show a progress bar and messages;
    policy: the network, an ActorCritic or a module with its interface (default: make_policy(config));
    algorithm: PPO or a subclass (default: config.algorithm's).
    Raises UserError if the run exists (without resume), another trainer has it, or its checkpoint does not fit.
    """

    processes = 1

    def __init__(
        self,
        config: PPOConfig,
        run_dir: Path | str,
        *,
        resume: bool = False,
        overlap: bool = True,
        progress: bool = True,
        policy: nn.Module | None = None,
        algorithm: type[PPO] | None = None,
    ) -> None:
        self.run_dir, self.overlap, self.write = Path(run_dir), overlap, PatientWriter(run_dir)
        self.folder = RunFolder(self.run_dir, config, resume, self.processes)
        checkpoint = self.folder.find_checkpoint()
        if checkpoint:
            build = type(config).from_saved(checkpoint["config"]).build
            config = config.replace(precision=checkpoint["precision"], build=build)
        self.hardware = self._configure(config, recorded=checkpoint is not None)
        made = dict(device=str(self.hardware.device), precision=self.hardware.precision)
        self.config = config.replace(build=procgen_build(config.build).kind, **made)
        policy = self.hardware.prepare(policy or make_policy(self.config))
        self.ppo = (algorithm or algorithm_class(config.algorithm))(policy, self.config, self.hardware.micro_batch)
        if self.hardware.cuda_graphs:
            attach_graphs(self.ppo)
        self.collector = self._make_collector()
        self.storage = RolloutStorage(
            config.num_steps,
            self.collector.num_envs,
            state_size=policy.state_size,
            sequence_length=config.sequence_length if config.recurrent else None,
            device=self.hardware.device,
        )
        self.steps, self.seconds, self._paused_seconds = 0, 0.0, 0.0
        self._stop, self._go = threading.Event(), threading.Event()
        self._go.set()
        if checkpoint:
            self.load_state_dict(checkpoint)
        self.logger = self._open_logger(progress)
        self.logger.message(f"{self.run_dir.name}: {self.hardware.reason}{self.ppo.note}")
        if checkpoint and self.config.build == "envpool":
            self.logger.message("envpool can't save its games: the run resumes with new episodes.")
        self._boundary = self.state_dict()  # where the run stood after the last complete update

    @property
    def policy(self) -> ActorCritic:
        """The network being trained."""
        return self.ppo.policy

    def train(self, on_update: Callable[[dict[str, float]], None] | None = None) -> bool:
        """Run until total_steps. on_update gets each update's metrics. Returns False if stopped before the end.

        Ctrl-C and SIGTERM save and then raise KeyboardInterrupt. After either, or after stop(), the trainer stands at
        its last complete update, and train() continues from there. Raises DivergedError (see PPO.update), and
        UserError if a file could not be written until the end; in both cases the last checkpoint is kept.
        """
        self._boundary = self.state_dict()
        with interruptible(self._on_signal):
            try:
                if self._passed(self.config.eval_interval) and not self._evaluated():
                    self.evaluate()  # a kill came between checkpoint and evaluation
                if self.steps >= self.config.total_steps:
                    self.save()  # a kill may have left the policy behind the checkpoint
                while self.steps < self.config.total_steps:
                    metrics = self.update()
                    with uninterrupted():  # a stop finds an update both finished and logged, or neither
                        self._boundary = self.state_dict()
                        self.write("metrics.csv", partial(self.logger.update, metrics), self.steps)
                    if self._stop_requested():
                        raise Stopped
                    evaluating = self._passed(self.config.eval_interval)
                    if evaluating or self._passed(self.config.checkpoint_interval):
                        self.save()
                    if evaluating:
                        self.evaluate()
                    if on_update is not None:
                        on_update(metrics)
            except (KeyboardInterrupt, Stopped, DivergedError) as end:
                if not isinstance(end, DivergedError):
                    self.save()
                self._stop.clear()
                self.load_state_dict(self._boundary)
                if not isinstance(end, Stopped):
                    raise
                return False
            finally:
                self.write.finish()
        return True

    def update(self) -> dict[str, float]:
        """One iteration of PPO (1707.06347, algorithm 1): collect, compute advantages, update. Returns its metrics."""
        start, paused = time.perf_counter(), self._paused_seconds
        if self.config.anneal_lr:
            self.ppo.learning_rate = self.config.learning_rate * (1 - self.steps / self.config.last_step)
        last_value = self.collector.collect(self.storage, between_steps=self._obey)
        self.storage.compute_advantages(last_value, self.config.gamma, self.config.gae_lambda)
        learned = self.ppo.update(self.storage, between_steps=self._obey)
        elapsed = time.perf_counter() - start - (self._paused_seconds - paused)
        self.steps += self.config.batch_size
        self.seconds += elapsed
        recent = np.array(self.collector.recent or [(np.nan, np.nan)])
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "episodes": self.collector.episodes,
            "return_mean": float(recent[:, 0].mean()),
            "length_mean": float(recent[:, 1].mean()),
            **learned,
            "learning_rate": self.ppo.learning_rate,
            "clip_range": self.ppo.coefficients.clip_range,
            "entropy_coef": self.ppo.coefficients.entropy_coef,
            "steps_per_second": self.config.batch_size / elapsed,
        }

    def _passed(self, interval: int) -> bool:
        """Whether the last update crossed a multiple of `interval` steps (0: the end of the run; -1: never)."""
        if interval < 0 or not self.steps:
            return False
        crossed = interval and self.steps // interval > (self.steps - self.config.batch_size) // interval
        return bool(crossed) or self.steps >= self.config.total_steps

    def _evaluated(self) -> bool:
        """Whether the evaluation at the current step is on disk, with as many episodes as are wanted."""
        played, wanted = read_evaluation(self.run_dir / "evaluation.csv"), self.config.eval_episodes
        return all(len(played.select(split, self.steps)) >= wanted for split in SPLITS)

    def evaluate(self) -> dict[str, float]:
        """Play eval_episodes on train and on unseen levels, add them to evaluation.csv, return the mean of each."""
        count, how = self.config.eval_episodes, dict(seed=self.steps, between_steps=self._obey)
        played = {name: evaluate(self.policy, self.config, name, count, **how) for name in SPLITS}
        path, steps = self.run_dir / "evaluation.csv", self.steps
        self.write(path.name, partial(write_episodes, path, steps, played), steps)
        means = {split: float(np.mean([e.return_ for e in episodes])) for split, episodes in played.items()}
        self.logger.evaluation(self.steps, means)
        return means

    def save(self) -> None:
        """Write the state at the last complete update to checkpoint.pt, and its policy to policy.pt."""
        state = self._boundary
        with uninterrupted():
            self.write(CHECKPOINT, partial(save_checkpoint, self.run_dir, state))
            policy = partial(save_policy, self.run_dir, state["ppo"]["policy"], self.config, state["steps"])
            self.write(POLICY, policy)

    @property
    def saved_steps(self) -> int:
        """The step that a resume would continue from: that of the last complete update."""
        return self._boundary["steps"]

    def state_dict(self) -> dict[str, object]:
        """All that a bit-exact resume needs, copied. Only between updates."""
        state = {
            "config": self.config.to_dict(),
            "algorithm": type(self.ppo).__name__,
            "precision": self.hardware.precision,
            "steps": self.steps,
            "seconds": self.seconds,
            "ppo": self.ppo.state_dict(),
            **self.collector.state_dict(),
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, object]) -> None:
        """The inverse of state_dict; `state` itself is left alone. Raises UserError if another algorithm saved it."""
        before, now = state.get("algorithm", "PPO"), type(self.ppo).__name__
        if before != now:
            raise UserError(f"The run {self.run_dir} was trained with {before}: resume it with that, not with {now}.")
        self.steps, self.seconds = state["steps"], state["seconds"]
        self.ppo.load_state_dict(state["ppo"])
        self.collector.load_state_dict(state)

    def stop(self) -> None:
        """Ask a running train() to save and return, from any thread; it does so within a step."""
        self._stop.set()
        self._go.set()

    def pause(self) -> None:
        """Hold a running train() until resume() or stop(), from any thread."""
        self._go.clear()

    def resume(self) -> None:
        """Let a paused train() continue."""
        self._go.set()

    @property
    def paused(self) -> bool:
        """Whether pause() was called and neither resume() nor stop() since."""
        return not self._go.is_set()

    def close(self) -> None:
        """Free the games' threads, close the log files and release the run's folder."""
        self.collector.close()
        self.logger.close()
        self.folder.release()

    def _obey(self) -> None:
        """Between two steps: wait while paused, and raise Stopped if a stop was requested."""
        if not self._go.is_set():
            begin = time.perf_counter()
            self._go.wait()
            self._paused_seconds += time.perf_counter() - begin
        if self._stop.is_set():
            raise Stopped

    _on_signal: Callable[[], None] | None = None  # None: Ctrl-C and SIGTERM raise KeyboardInterrupt

    def _stop_requested(self) -> bool:
        return self._stop.is_set()

    _configure = staticmethod(configure)

    def _make_collector(self) -> Collector:
        return Collector(self.ppo, make_halves(self.config), self.overlap)

    def _open_logger(self, progress: bool) -> Logger:
        """Take the run's folder and open the logs of a run that stands at self.steps."""
        self.folder.claim(self.config)
        try:
            keep_rows(self.run_dir / "evaluation.csv", EVALUATION_COLUMNS, self.steps)
            return Logger(self.run_dir, self.config.last_step, self.steps, progress)
        except BaseException:
            self.folder.release()
            raise
