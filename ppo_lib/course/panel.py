"""Train from a notebook: a form, buttons, a live curve, and sliders that act on the running training.

- Training runs in its own thread, since callbacks wait until the running cell has ended.
- There is never more than one training. Its thread is found by asking Python for its threads, so that a cell that runs
  again, or a reloaded module, finds and stops the one before.
- What the panel shows is read from the run's folder, changes of the sliders too: it is the same after a disconnect.
"""

from __future__ import annotations

import atexit
import html
import math
import re
import threading
import time
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import ipywidgets as w
import numpy as np
from IPython.display import display
from matplotlib.figure import Figure

from ppo_lib import plots
from ppo_lib.checkpoint import can_resume, has_checkpoint
from ppo_lib.config import PPOConfig, UserError, suggest
from ppo_lib.course.drawing import finish
from ppo_lib.course.widgets import WIDE, Controls, entered, entry, put
from ppo_lib.runs import Run, fixed_changes, load_run, read_config
from ppo_lib.train import Trainer

FORM = {  # config fields in the form, by name and unit
    "num_levels": "training levels (0 = all)", "recurrent": "recurrent (GRU)",
    "learning_rate": "learning rate (Adam)", "clip_range": "clip range (epsilon)",
    "entropy_coef": "entropy coefficient", "gamma": "gamma (per step)", "gae_lambda": "lambda (0 to 1)",
    "num_envs": "games in parallel", "total_steps": "length of run (steps)",
}  # fmt: skip
LIVE = {  # fields that may change during training: name on the curve, slider
    "learning_rate": ("lr", w.FloatLogSlider, {"min": -6, "max": -2, "step": 0.05}),
    "clip_range": ("clip", w.FloatSlider, {"min": 0.01, "max": 0.5, "step": 0.01}),
    "entropy_coef": ("entropy", w.FloatSlider, {"min": 0, "max": 0.1, "step": 0.001, "readout_format": ".3f"}),
}


class TrainingPanel:
    """Sets up, trains and shows one run. `show()` puts it below the cell.

    run_dir: the run's folder, whose name can be changed in the form; config: initial values of the form.
    """

    def __init__(self, run_dir: Path | str, config: PPOConfig) -> None:
        stop_all()  # this cell may have run before
        self.results, self.base = Path(run_dir).parent, config
        self.trainer: Trainer | None = None
        self.stopping = False
        self.invalid = self.failure = ""  # why the form can't be started; why the last training failed
        self._ended, self._showing = threading.Event(), threading.Lock()
        self._ended.set()
        self._updates_left, self._progress = math.inf, ""  # progress: in words, after the last update
        self.name = entry("name of the run", Path(run_dir).name)
        self.form = {name: entry(label, getattr(config, name)) for name, label in FORM.items()}
        self.sliders = {name: kind(description=FORM[name], continuous_update=False, **options, **WIDE)
                        for name, (_, kind, options) in LIVE.items()}  # fmt: skip
        self.message, self.status = w.HTML(), w.HTML()
        self.progress = w.FloatProgress(0, min=0, max=1, description="steps done (0 to 1)", **WIDE)
        self.start_button = w.Button(description="Start", icon="play")
        self.pause_button = w.Button(description="Pause", icon="pause")
        self.stop_button = w.Button(description="Stop and save", icon="stop")
        self._fields = [self.name, *self.form.values()]
        buttons = [self.start_button, self.pause_button, self.stop_button]
        form, buttons, sliders = (w.HBox(row, layout=w.Layout(flex_flow="row wrap"))
                                  for row in (self._fields, buttons, [*self.sliders.values()]))  # fmt: skip
        live = w.HTML("<b>During training</b> (each change is marked on the curve and logged in metrics.csv):")
        parts = [form, self.message, buttons, live, sliders, self.progress, self.status]
        self.controls = Controls(parts, "Settings, start, pause and stop buttons, live sliders")
        self.start_button.on_click(lambda _: self.start())
        self.pause_button.on_click(lambda _: self.toggle_pause())
        self.stop_button.on_click(lambda _: self.stop())
        for name, slider in self.sliders.items():
            slider.observe(lambda change, name=name: self._steer(name, change["new"]), "value")
        for field in self._fields:
            field.observe(lambda _: self.check(), "value")
        self.name.observe(lambda _: self._draw(), "value")
        self.check()
        self._draw()

    def show(self) -> None:
        """Display the panel and, below it, the curve."""
        display(self.controls)
        self.controls.show_picture()

    @property
    def running(self) -> bool:
        """Whether a training is under way: from start() until everything is saved and closed."""
        return not self._ended.is_set()

    @property
    def run_dir(self) -> Path:
        """The folder of the run that the form names."""
        return self.results / self.name.value.strip()

    def check(self) -> PPOConfig | None:
        """The config that the form describes; None, with the reason below the form, if it can't be started."""
        self.invalid, self.failure, config = "", "", None
        try:
            config = self.base.replace(**{name: entered(field) for name, field in self.form.items()})
            if not re.fullmatch(r"\w[\w.-]*", self.run_dir.name) or self.run_dir.parent != self.results:
                raise UserError("Give the run a name of letters, digits, '-' and '_': it becomes a folder.")
            if can_resume(self.run_dir) and (changes := fixed_changes(read_config(self.run_dir), config)):
                remedy = "put them back to continue it, or give this one another name"
                raise UserError(f"The run {self.run_dir.name} was started with other settings ({changes}): {remedy}.")
        except UserError as error:
            self.invalid = str(error)
        if not self.running:
            for name, slider in self.sliders.items():
                put(slider, getattr(config or self.base, name))
        self._show_state()
        return None if self.invalid else config

    def start(self) -> None:
        """Train until total_steps, from the run's checkpoint if there is one. A second start does nothing."""
        self.run_for(math.inf)

    def run_for(self, updates: float) -> TrainingPanel:
        """Start, and stop and save after this many updates. Returns at once; `wait()` waits."""
        if self.stopping:
            self._ended.wait()
        if self.running or (config := self.check()) is None:
            return self
        stop_all()
        atexit.register(stop_all, timeout=20)  # a kernel that is restarted saves first
        self._ended.clear()
        self.stopping, self._updates_left = False, updates
        thread = threading.Thread(target=self._train, args=(config, self.run_dir), daemon=True)
        thread.panel = self  # type: ignore[attr-defined]
        thread.start()
        self._show_state()
        return self

    def toggle_pause(self) -> None:
        """Pause the training, or let it continue."""
        if (trainer := self.trainer) is not None:
            (trainer.resume if trainer.paused else trainer.pause)()
            self._show_state()

    def stop(self) -> None:
        """Ask the training to save and end, which it does within a step."""
        self.stopping = self.running
        if (trainer := self.trainer) is not None:
            trainer.stop()
        self._show_state()

    def set(self, **values: float) -> None:
        """Move sliders of the running training, as in set(learning_rate=1e-4); without one, nothing changes.

        Raises UserError for a name without a slider and for a value that no config may have.
        """
        if unknown := values.keys() - LIVE:
            raise UserError(f"There is no slider '{min(unknown)}'{suggest(min(unknown), LIVE)}")
        self.base.replace(**values)
        while self.running and self.trainer is None:  # still preparing
            time.sleep(0.01)
        for name, value in values.items() if self.running else ():
            put(self.sliders[name], value)

    def wait(self) -> None:
        """Wait until the training has ended. Interrupting the cell stops and saves it."""
        try:
            self._ended.wait()  # an interrupted join() would make Python 3.11 take the thread for dead
        except KeyboardInterrupt:
            self.stop()
            self._ended.wait()
            raise
        self._draw()  # from this cell, so that a notebook that is run unattended keeps the final curve
        if self.failure:
            print(self.failure)

    def _train(self, config: PPOConfig, run_dir: Path) -> None:
        try:
            with closing(Trainer(config, run_dir, resume=True, progress=False)) as trainer:
                for name, value in live_values(trainer).items():
                    put(self.sliders[name], value)  # a resumed run continues with the values that its sliders had
                self._progress = f"{trainer.steps:,} of {trainer.config.last_step:,} steps"
                self.trainer = trainer
                self._show_state()
                if self.stopping:
                    trainer.stop()
                trainer.train(self._after_update)
        except Exception as error:  # a thread's traceback would be lost: the panel shows it
            self.failure = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        self.trainer, self.stopping = None, False
        self._ended.set()
        self._draw()

    def _after_update(self, metrics: dict[str, float]) -> None:
        speed, last = metrics["steps_per_second"], self.trainer.config.last_step
        minutes = (last - metrics["steps"]) / speed / 60
        left = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h"
        self._progress = (
            f"{metrics['steps']:,} of {last:,} steps, {metrics['episodes']:,} episodes, return "
            f"{metrics['return_mean']:.2f} (mean of the last 100), {plots.format_steps(speed)} steps/s, {left} left"
        )
        self._updates_left -= 1
        if self._updates_left <= 0:
            self.stop()
        self._draw()

    def _steer(self, name: str, value: float) -> None:
        if (trainer := self.trainer) is not None:
            setattr(trainer.ppo if name == "learning_rate" else trainer.ppo.coefficients, name, value)
            self._draw()

    def _draw(self) -> None:
        trainer = self.trainer
        self.controls.draw(live_curve(self.run_dir, live_values(trainer) if trainer is not None else {}))
        self._show_state()

    def _show_state(self) -> None:
        """Bring buttons, messages, progress and the status line up to date."""
        with self._showing:  # threads take turns, so that the last one to write has read the newest state
            trainer, begun = self.trainer, has_checkpoint(self.run_dir)
            paused = trainer is not None and trainer.paused
            self.start_button.disabled = self.running or bool(self.invalid)
            self.start_button.description = "Continue" if begun else "Start"
            self.pause_button.disabled = trainer is None or self.stopping
            self.pause_button.description = "Resume" if paused else "Pause"
            self.stop_button.disabled = not self.running or self.stopping
            for field in self._fields:
                field.disabled = self.running
            for name, slider in self.sliders.items():
                slider.disabled = trainer is None or (name == "learning_rate" and trainer.config.anneal_lr)
            problem = html.escape(self.invalid or self.failure)
            self.message.value = f'<div role="alert" style="color:#b00020"><b>{problem}</b></div>' if problem else ""
            line = "Preparing the games and the network" if self.running else "Not training."
            if trainer is not None:
                self.progress.value = trainer.steps / trainer.config.last_step
                line = "Stopping and saving" if self.stopping else "Paused" if paused else "Training"
                line += f": {self._progress}"
            elif begun and not self.running:
                line += " “Continue” resumes from the saved checkpoint."
            self.status.value = f'<div role="status">{line}</div>'


def stop_all(timeout: float | None = None) -> None:
    """Stop and save whatever any panel trains in this Python, and wait for it (at most `timeout` seconds)."""
    for thread in threading.enumerate():
        if hasattr(thread, "panel") and thread is not threading.current_thread():
            thread.panel.stop()
            thread.panel._ended.wait(timeout)


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
    for name, (short, *_) in LIVE.items():
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
