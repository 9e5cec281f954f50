"""The Trainer: collect, estimate, optimise, log, evaluate, save.

- Two halves of the environments take turns: while one half's games run in Procgen's threads, the network acts for
  the other. The order of actions is fixed, so the overlap changes speed alone.
- Before each update its starting point is kept in memory. Whatever stops the run (Ctrl-C, SIGTERM, a notebook's
  stop button), that point is saved at once: a resumed run repeats the unfinished update bit for bit.
- The bootstrap value after the last step reads the state without advancing it.
"""

from __future__ import annotations

import copy
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from .checkpoint import CHECKPOINT, POLICY, PREVIOUS, load_checkpoint, save_checkpoint, save_policy, write_error
from .config import PPOConfig, UserError, derive_seed
from .envs import make_env
from .evaluate import evaluate, write_episodes
from .logger import Logger, keep_rows
from .policy import ActorCritic
from .ppo import PPO
from .runs import EVALUATION_COLUMNS, SPLITS
from .speed import configure
from .storage import RolloutStorage
from .wrappers import RewardNormalizer

RETURN_WINDOW = 100  # finished episodes that return_mean and length_mean average over


# A resumed run may change these: they don't touch what is learned (total_steps does if the learning rate is annealed).
FREE_TO_CHANGE = ("total_steps", "device", "eval_interval", "eval_episodes", "checkpoint_interval")


class Stopped(Exception):
    """Raised inside an update when a stop was asked for."""


@dataclass
class Half:
    """One half of the environments and what its network state is before the next step."""

    env: gym.vector.VectorEnv
    envs: slice  # its columns in the storage
    state: Tensor  # [n, S]
    reset: Tensor  # bool [n]: the next observation begins an episode
    obs: np.ndarray  # uint8 [n, H, W, C]


class Trainer:
    """Trains one run in its folder.

    config: settings; run_dir: the run's folder, made if missing; resume: go on from its checkpoint;
    overlap: step one half of the games while the network acts for the other (changes nothing but speed);
    progress: show a progress bar and messages.
    Raises UserError if the run exists (without resume) or its checkpoint doesn't fit the config.
    """

    def __init__(
        self, config: PPOConfig, run_dir: Path, *, resume: bool = False, overlap: bool = True, progress: bool = True
    ) -> None:
        self.config, self.run_dir, self.overlap = config, Path(run_dir), overlap
        checkpoint = self._find_checkpoint(resume)
        self.hardware = configure(config, checkpoint and checkpoint["precision"])
        policy = ActorCritic(
            recurrent=config.recurrent, width_scale=config.width_scale, seed=derive_seed(config.seed, "weights")
        ).to(self.hardware.device)
        policy.autocast_dtype = self.hardware.autocast_dtype
        self.ppo = PPO(policy, config, self.hardware)
        self.normalizer = RewardNormalizer(config.num_envs, config.gamma)
        self.storage = RolloutStorage(
            config.num_steps,
            config.num_envs,
            state_size=policy.state_size,
            sequence_length=config.sequence_length if config.recurrent else None,
            device=self.hardware.device,
        )
        self.halves = self._make_halves(policy)
        self.steps = self.episodes = 0
        self.seconds = 0.0
        self.recent: deque[tuple[float, int]] = deque(maxlen=RETURN_WINDOW)  # (return, length)
        self._stop, self._go = threading.Event(), threading.Event()
        self._go.set()
        if checkpoint:
            self.load_state_dict(checkpoint)
        self._make_folder()
        self.logger = Logger(self.run_dir, config.num_updates * config.batch_size, self.steps, progress)
        keep_rows(self.run_dir / "evaluation.csv", EVALUATION_COLUMNS, self.steps)
        self.logger.message(f"{self.run_dir.name}: {self.hardware.reason}")

    @property
    def policy(self) -> ActorCritic:
        """The network being trained."""
        return self.ppo.policy

    # --- the algorithm ---------------------------------------------------------------------------------------------

    def train(self, on_update: Callable[[dict[str, float]], None] | None = None) -> bool:
        """Run until total_steps. on_update gets each update's metrics. Returns False if it was stopped before the end.

        Ctrl-C and SIGTERM save and then raise KeyboardInterrupt. Raises DivergedError (see PPO.optimize), and
        UserError if the disk is full; in both cases the last checkpoint is kept.
        """
        try:
            with _sigterm_as_interrupt():
                self._boundary = self.state_dict()
                while self.steps < self.config.total_steps:
                    metrics = self.update()
                    if self._passed(self.config.eval_interval):
                        self.evaluate()
                    self._boundary = self.state_dict()
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
        metrics = {
            "steps": self.steps,
            "seconds": self.seconds,
            "episodes": self.episodes,
            "return_mean": float(np.mean([r for r, _ in self.recent])) if self.recent else float("nan"),
            "length_mean": float(np.mean([length for _, length in self.recent])) if self.recent else float("nan"),
            **diagnostics,
            "learning_rate": self.ppo.learning_rate,
            "clip_range": self.ppo.coefficients.clip_range,
            "entropy_coef": self.ppo.coefficients.entropy_coef,
            "steps_per_second": self.config.batch_size / elapsed,
        }
        self.logger.update(metrics)
        return metrics

    def collect(self) -> Tensor:
        """Fill the storage with T steps of every environment. Returns the value of the observations after them, [N]."""
        rewards = np.zeros((self.config.num_steps, self.config.num_envs), dtype=np.float32)
        for t in range(self.config.num_steps):
            self._obey()
            for half in self.halves:
                if t > 0 and self.overlap:
                    self._receive(half, t - 1, rewards)  # the other half's games run on meanwhile
                self._act(half, t)
                if not self.overlap:
                    self._receive(half, t, rewards)
        if self.overlap:
            for half in self.halves:
                self._receive(half, self.config.num_steps - 1, rewards)
        if self.config.normalize_reward:
            rewards = self.normalizer(rewards, self.storage.done.cpu().numpy())
        self.storage.reward.copy_(torch.from_numpy(rewards))
        obs = (torch.from_numpy(half.obs).to(self.hardware.device) for half in self.halves)
        return torch.cat([self.ppo.predict_value(o, h.state, h.reset) for o, h in zip(obs, self.halves, strict=True)])

    def _act(self, half: Half, t: int) -> None:
        """Choose the half's actions for step t, start its games on them, and store what was known before the step."""
        self.storage.add(t, half.envs, obs=torch.from_numpy(half.obs), state=half.state, reset=half.reset)
        prediction = self.ppo.predict(self.storage.obs[t, half.envs], half.state, half.reset)
        half.env.step_async(prediction.action.cpu().numpy())
        half.state = prediction.state
        self.storage.add(t, half.envs, action=prediction.action, log_prob=prediction.log_prob, value=prediction.value)

    def _receive(self, half: Half, t: int, rewards: np.ndarray) -> None:
        """Wait for the half's games to finish step t and store how they answered."""
        half.obs, rewards[t, half.envs], terminated, truncated, info = half.env.step_wait()
        done = terminated | truncated
        half.reset = torch.from_numpy(done).to(self.hardware.device)
        self.storage.add(t, half.envs, done=half.reset)
        for i in np.flatnonzero(done):
            self.episodes += 1
            self.recent.append((float(info["episode"]["r"][i]), int(info["episode"]["l"][i])))

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
        for split, episodes in played.items():
            write_episodes(self.run_dir / "evaluation.csv", self.steps, split, episodes)
        means = {split: float(np.mean([e.return_ for e in episodes])) for split, episodes in played.items()}
        self.logger.evaluation(self.steps, means)
        return means

    def save(self) -> None:
        """Write the state at the last finished update to checkpoint.pt, and its policy to policy.pt."""
        save_checkpoint(self.run_dir, self._boundary)
        save_policy(self.run_dir, self._boundary["ppo"]["policy"], self.config, self._boundary["steps"])

    @property
    def saved_steps(self) -> int:
        """Where the run would go on after a resume: the steps at the last finished update."""
        return self._boundary["steps"]

    def state_dict(self) -> dict[str, object]:
        """All that a bit-exact resume needs, copied. Only between updates."""
        state = {
            "config": self.config.to_dict(),
            "precision": self.hardware.precision,
            "steps": self.steps,
            "episodes": self.episodes,
            "seconds": self.seconds,
            "recent": list(self.recent),
            "ppo": self.ppo.state_dict(),
            "normalizer": self.normalizer.state_dict(),
            "halves": [
                {
                    "env": half.env.get_state(),
                    "state": half.state,
                    "reset": half.reset,
                    "obs": torch.from_numpy(half.obs),
                }
                for half in self.halves
            ],
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, object]) -> None:
        """The inverse of state_dict."""
        self.steps, self.episodes, self.seconds = state["steps"], state["episodes"], state["seconds"]
        self.recent.extend(tuple(episode) for episode in state["recent"])
        self.ppo.load_state_dict(state["ppo"])
        self.normalizer.load_state_dict(state["normalizer"])
        for half, saved in zip(self.halves, state["halves"], strict=True):
            half.env.set_state(saved["env"])
            half.state = saved["state"].to(self.hardware.device)
            half.reset = saved["reset"].to(self.hardware.device)
            half.obs = saved["obs"].numpy()

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
        """Free the games' threads and close the log files."""
        for half in self.halves:
            half.env.close()
        self.logger.close()

    def _obey(self) -> None:
        self._go.wait()
        if self._stop.is_set():
            raise Stopped

    # --- setting up ------------------------------------------------------------------------------------------------

    def _find_checkpoint(self, resume: bool) -> dict[str, object] | None:
        """The checkpoint to resume from, or None for a new run, whose folder must not exist."""
        if not resume:
            if (self.run_dir / "config.json").exists():
                raise UserError(
                    f"The run {self.run_dir} exists; go on with --resume, or choose another name with --run."
                )
            return None
        if not any((self.run_dir / name).exists() for name in (CHECKPOINT, PREVIOUS, POLICY)):
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
        return checkpoint

    def _make_folder(self) -> None:
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            (self.run_dir / "config.json").write_text(self.config.to_json())
        except OSError as error:
            raise write_error(error, self.run_dir) from None

    def _make_halves(self, policy: ActorCritic) -> list[Half]:
        n = self.config.num_envs
        halves = []
        for i, (first, last) in enumerate([(0, n // 2), (n // 2, n)] if n > 1 else [(0, 1)]):
            env = make_env(self.config, num_envs=last - first, seed=derive_seed(self.config.seed, "train", i))
            obs, _ = env.reset()
            reset = torch.ones(last - first, dtype=torch.bool, device=self.hardware.device)
            halves.append(Half(env, slice(first, last), policy.initial_state(last - first), reset, obs))
        return halves


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Treat a polite kill like Ctrl-C. Signals reach only the main thread; elsewhere this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
