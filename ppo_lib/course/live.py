"""A training in the background, and its curve with every change that was made while it ran.

- It has a thread of its own, since a widget's callbacks wait until the running cell has ended.
- `ended` says that it has ended: is_alive() would not, since Python 3.11 takes a thread for dead once a join() was
  interrupted. Only the thread itself sets it, when everything is saved and closed.
- Everything about one training is in its object, so a late word of an earlier one can't touch the next.
"""

from __future__ import annotations

import atexit
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ppo_lib import plots
from ppo_lib.checkpoint import can_resume
from ppo_lib.config import PPOConfig, UserError
from ppo_lib.course.drawing import finish
from ppo_lib.runs import Run, fixed_changes, load_run
from ppo_lib.train import Trainer

LIVE = {"learning_rate": "lr", "clip_range": "clip", "entropy_coef": "entropy"}  # fields that may change, as drawn


class Training(threading.Thread):
    """Trains config's run until total_steps or for `updates` updates, from its checkpoint if there is one.

    prepared: called with the trainer before the first update; changed: called after each update and at the end.
    Any other training is stopped and saved first.
    """

    def __init__(
        self, config: PPOConfig, run_dir: Path, updates: float, prepared: Callable[[Trainer], None],
        changed: Callable[[], None],
    ) -> None:  # fmt: skip
        super().__init__(daemon=True)
        stop_all()
        atexit.register(stop_all, timeout=20)  # a kernel that is restarted saves first
        self.config, self.run_dir, self.updates_left = config, run_dir, updates
        self.prepared, self.changed = prepared, changed
        self.trainer: Trainer | None = None  # while it trains
        self.ended, self.stopping = threading.Event(), False
        self.failure = ""  # why it failed
        self.progress, self.share = "the games and the network", 0.0  # how far it is: in words, and from 0 to 1

    def stop(self) -> None:
        """Ask it to save and end, which it does within a step."""
        self.stopping = True
        if (trainer := self.trainer) is not None:
            trainer.stop()

    def wait(self) -> None:
        """Wait for its end. An interrupt stops it, and is raised when all is saved."""
        try:
            self.ended.wait()
        except KeyboardInterrupt:
            self.stop()
            self.ended.wait()
            raise

    def run(self) -> None:
        """What the thread does."""
        try:
            with closing(Trainer(self.config, self.run_dir, resume=True, progress=False)) as trainer:
                self.progress, self.share = f"{trainer.steps:,} steps", trainer.steps / trainer.config.last_step
                self.prepared(trainer)
                self.trainer = trainer
                if self.stopping:  # asked before there was a trainer
                    trainer.stop()
                self.changed()
                trainer.train(self._after_update)
        except Exception as error:  # a thread's traceback would be lost
            self.failure = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        finally:
            self.trainer = None
            self.ended.set()
            self.changed()

    def _after_update(self, metrics: dict[str, float]) -> None:
        steps, speed, last = metrics["steps"], metrics["steps_per_second"], self.config.last_step
        minutes, self.share = (last - steps) / speed / 60, steps / last
        left = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h"
        self.progress = (
            f"{steps:,} of {last:,} steps, {metrics['episodes']:,} episodes, return "
            f"{metrics['return_mean']:.2f} (mean of the last 100), {plots.format_steps(speed)} steps/s, {left} left"
        )
        self.updates_left -= 1
        if self.updates_left <= 0:
            self.stop()
        self.changed()


def stop_all(timeout: float | None = None) -> None:
    """Stop and save whatever trains in this Python, and wait for it (at most `timeout` seconds). Threads are asked for
    by what they can do, so that a reloaded module finds those of the one before."""
    for thread in threading.enumerate():
        if hasattr(thread, "updates_left") and thread is not threading.current_thread():
            thread.stop()
            thread.ended.wait(timeout)


def how_far(run_dir: Path, config: PPOConfig) -> tuple[int, bool, float]:
    """Of a run on disk: its steps, whether nothing is left to do (its last evaluation too), and the part done (0 to 1).

    Raises UserError if this config can't continue it.
    """
    if not can_resume(run_dir):
        return 0, False, 0.0
    run, keep = load_run(run_dir), "press “New run” to keep it and train another one"
    if changes := fixed_changes(run.config, config):
        raise UserError(f"{run.name} was started with other settings ({changes}): put them back, or {keep}.")
    if run.steps > config.last_step:
        raise UserError(f"{run.name} has trained for {run.steps:,} steps already: raise total_steps, or {keep}.")
    evaluated = config.eval_interval < 0 or run.steps in run.evaluation.checkpoints
    return run.steps, evaluated and run.steps == config.last_step, run.steps / config.last_step


def live_curve(run_dir: Path | str, now: dict[str, float] | None = None) -> Figure:
    """The learning curve of a run's folder, every change of LIVE fields marked; empty axes if there is no run. now: the
    values in use, where they may be newer than the last finished update."""
    path = Path(run_dir)
    if not (path / "config.json").is_file():
        figure, [axis] = plots.new_figure(1, 1)
        finish(axis, plots.STEPS, plots.RETURN, title=f"{path.name}: not started")
        return figure
    run = load_run(path)
    figure = plots.learning_curve(run)
    axis = figure.axes[0]
    axis.set_title(f"{run.name}: {run.steps:,} of {run.config.total_steps:,} steps", fontsize=9.5)
    style = dict(xycoords=("data", "axes fraction"), rotation=90, va="top", fontsize=7, color="#8f3f6d")
    for steps, texts in live_changes(run, now or {}).items():
        axis.axvline(steps, color="#CC79A7", lw=1.2, ls="-.")
        plots.note(axis, "\n".join(texts), steps, 1, right=3, up=-3, **style)
    return figure


def live_changes(run: Run, now: dict[str, float]) -> dict[int, list[str]]:
    """Steps -> the changes of LIVE fields made there, in words. now: see live_curve."""
    changes, steps = defaultdict(list), [0, *run.metrics.get("steps", ())]
    for name, short in LIVE.items():
        if name == "learning_rate" and run.config.anneal_lr:
            continue
        used = [getattr(run.config, name), *run.metrics.get(name, ())]
        used.append(now.get(name, used[-1]))
        for step, old, new in zip(steps, used, used[1:], strict=False):
            if not np.isclose(old, new, rtol=1e-4, atol=0):
                changes[int(step)].append(f"{short} {old:.3g} → {new:.3g}")
    return changes


def live_values(trainer: Trainer) -> dict[str, float]:
    """What the trainer works with now."""
    ppo = trainer.ppo
    return {name: getattr(ppo if name == "learning_rate" else ppo.coefficients, name) for name in LIVE}
