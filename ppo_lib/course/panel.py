"""Training from a notebook: a form, buttons, live curves, and sliders that act while it trains.

- Training runs in a thread of its own, since callbacks wait for running cells to end.
- There is never more than one trainer. Its thread is found by asking Python for its threads, so that a cell that runs
  again, or a reloaded module, finds and stops the one before.
- What the panel shows is read from the run's folder, so it is the same after a disconnect, and start goes on from the
  run's checkpoint.
"""

from __future__ import annotations

import atexit
import html
import re
import threading
from collections.abc import Sequence
from pathlib import Path

import ipywidgets as w
from IPython.display import display

from ppo_lib.checkpoint import goes_on, has_checkpoint
from ppo_lib.config import PPOConfig, UserError
from ppo_lib.course.live_curve import live_curve, live_values, progress_line
from ppo_lib.course.widget_parts import (
    LIVE_FIELDS,
    SLIDER_WIDTH,
    STYLE,
    Controls,
    Picture,
    button,
    entry,
    live_slider,
    put,
)
from ppo_lib.runs import read_config
from ppo_lib.train import Trainer

FIELDS = ("num_levels", "recurrent", "learning_rate", "clip_range", "entropy_coef", "gamma", "gae_lambda", "num_envs",
          "total_steps")  # fmt: skip


class TrainingPanel:
    """Sets up, trains and shows one run. `show()` puts it below the cell.

    run_dir: the run's folder, whose name can be changed in the form; config: what the form starts from;
    fields: the config fields in the form, in order.
    """

    def __init__(self, run_dir: Path | str, config: PPOConfig, fields: Sequence[str] = FIELDS) -> None:
        stop_all()  # this cell may have run before
        self.results, self.base = Path(run_dir).parent, config
        self.trainer: Trainer | None = None
        self.invalid = self.failure = ""  # why the form can't be started; why the last training ended early
        self.picture = Picture()
        self._thread: threading.Thread | None = None
        self._updates_left: int | None = None
        self._speed = 0.0  # steps per second of the last update
        self._wishes: dict[str, float] = {}  # what `set` was given before there was a trainer
        self.name = entry("run", Path(run_dir).name)
        self.name.description = "name of the run"
        self.form = {name: entry(name, getattr(config, name)) for name in fields}
        self.message, self.status = w.HTML(), w.HTML()
        self.progress = w.FloatProgress(
            0, min=0, max=1, description="steps done (0 to 1)", layout=w.Layout(**SLIDER_WIDTH), style=STYLE
        )
        self.start_button = button("Start", "play", self.start)
        self.pause_button = button("Pause", "pause", self.toggle_pause)
        self.stop_button = button("Stop and save", "stop", self.stop)
        self.sliders = {name: live_slider(name, getattr(config, name)) for name in LIVE_FIELDS}
        for name, slider in self.sliders.items():
            slider.observe(lambda change, name=name: self._steer(name, change["new"]), "value")
        for field in self.form.values():
            field.observe(lambda _: self.check(), "value")
        self.name.observe(lambda _: (self.check(), self._draw()), "value")
        self.check()
        self._draw()

    # --- what the student does -------------------------------------------------------------------------------------

    def show(self) -> None:
        """Display the panel and, below it, the curves."""
        wrap = w.Layout(flex_flow="row wrap")
        parts = [
            w.HBox([self.name, *self.form.values()], layout=wrap),
            self.message,
            w.HBox([self.start_button, self.pause_button, self.stop_button], layout=wrap),
            w.HTML("<b>While it trains</b> (each change is marked on the curve and logged in metrics.csv):"),
            w.HBox(list(self.sliders.values()), layout=wrap),
            self.progress,
            self.status,
        ]
        display(Controls(parts, self.picture, "Settings, start, pause and stop buttons, live sliders"))
        self.picture.show()

    def check(self) -> PPOConfig | None:
        """The config that the form describes; None, and the reason below the form, if it can't be started."""
        self.invalid = self.failure = ""
        config = None
        try:
            config = self.base.replace(**{name: field.value for name, field in self.form.items()})
            _check_run(self.results, self.name.value.strip(), config)
        except UserError as error:
            self.invalid = str(error)
        if not self.running:
            for name, slider in self.sliders.items():
                put(slider, getattr(config or self.base, name))
        self._show_state()
        return None if self.invalid else config

    def start(self) -> None:
        """Train until total_steps, from the run's checkpoint if there is one. A second start does nothing."""
        self._begin(None)

    def run_for(self, updates: int) -> TrainingPanel:
        """Start, and stop and save after so many updates. Returns at once; `wait()` waits."""
        self._begin(updates)
        return self

    def toggle_pause(self) -> None:
        """Hold the training, or let it go on."""
        trainer = self.trainer
        if trainer is not None:
            (trainer.resume if trainer.paused else trainer.pause)()
            self._show_state()

    def stop(self) -> None:
        """Ask the training to save and end; it does so within a step."""
        if (thread := self._thread) is not None:
            thread.stopping = True  # type: ignore[attr-defined]
        if (trainer := self.trainer) is not None:
            trainer.stop()
        self._show_state()

    def set(self, **values: float) -> None:
        """Move sliders of the training that runs, as in set(learning_rate=1e-4).

        Raises UserError for a name without a slider and a value that no config may have.
        """
        for name in values:
            if name not in self.sliders:
                raise UserError(f"There is no slider for {name}; there are: {', '.join(self.sliders)}.")
        self.base.replace(**values)
        self._wishes |= values
        if self.trainer is not None:
            self._fulfil_wishes()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the training has ended, at most `timeout` seconds. An interrupt of the cell stops and saves."""
        thread = self._thread
        try:
            if thread is not None:
                thread.join(timeout)
        except KeyboardInterrupt:
            self.stop()
            thread.join()  # type: ignore[union-attr]
        self.picture.refresh()  # from this cell, so that a notebook that is run unattended keeps the final curve
        if self.failure:
            print(self.failure)

    @property
    def running(self) -> bool:
        """Whether this panel's training thread is alive."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    @property
    def run_dir(self) -> Path:
        """The folder of the run that the form names."""
        return self.results / self.name.value.strip()

    # --- the thread ------------------------------------------------------------------------------------------------

    def _begin(self, updates: int | None) -> None:
        config = None if self.running else self.check()
        if config is None:
            return
        stop_all()
        atexit.unregister(stop_all)
        atexit.register(stop_all, timeout=20)  # a kernel that is restarted saves first
        self._updates_left, self._speed, self._wishes = updates, 0.0, {}
        thread = threading.Thread(target=self._work, args=(config, self.run_dir), daemon=True)
        thread.panel, thread.stopping = self, False  # type: ignore[attr-defined]
        self._thread = thread
        thread.start()
        self._show_state()

    def _work(self, config: PPOConfig, run_dir: Path) -> None:
        """The training thread: build a trainer, train, and close it whatever happens."""
        ended = threading.Event()
        threading.Thread(target=self._watch, args=(ended,), daemon=True).start()
        try:
            self.trainer = trainer = Trainer(config, run_dir, resume=True, progress=False)
            for name, value in live_values(trainer).items():
                put(self.sliders[name], value)  # a resumed run goes on with what its sliders were
            self._fulfil_wishes()
            if threading.current_thread().stopping:  # type: ignore[attr-defined]
                trainer.stop()
            trainer.train(self._after_update)
        except Exception as error:  # a thread's traceback would be lost: the panel shows it
            self.failure = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        finally:
            ended.set()
            trainer, self.trainer = self.trainer, None
            if trainer is not None:
                trainer.close()
            self._thread = None
            self._draw()
            self._show_state()

    def _after_update(self, metrics: dict[str, float]) -> None:
        self._speed = metrics["steps_per_second"]
        if self._updates_left is not None:
            self._updates_left -= 1
            if self._updates_left <= 0:
                self.stop()
        self._draw()

    def _watch(self, ended: threading.Event) -> None:
        """Keep the figures moving between updates, which take a while without a GPU."""
        while not ended.wait(1.0):
            self._show_state()

    def _fulfil_wishes(self) -> None:
        for name in list(self._wishes):  # set() may be doing the same in another thread
            if (value := self._wishes.pop(name, None)) is not None:
                put(self.sliders[name], value)

    def _steer(self, name: str, value: float) -> None:
        """A slider moved: act on the trainer at once."""
        trainer = self.trainer
        if trainer is not None and live_values(trainer)[name] != value:
            setattr(trainer.ppo if name == "learning_rate" else trainer.ppo.coefficients, name, value)
            self._draw()

    # --- what the student sees -------------------------------------------------------------------------------------

    def _draw(self) -> None:
        trainer = self.trainer
        self.picture.draw(live_curve(self.run_dir, live_values(trainer) if trainer is not None else {}))

    def _show_state(self) -> None:
        """Bring buttons, messages, progress and the line of figures up to date."""
        trainer, thread = self.trainer, self._thread
        running = thread is not None
        stopping = running and thread.stopping  # type: ignore[attr-defined]
        paused = trainer is not None and trainer.paused
        begun = has_checkpoint(self.run_dir)
        self.start_button.disabled = running or bool(self.invalid)
        self.start_button.description = "Go on" if begun else "Start"
        self.pause_button.disabled = trainer is None or stopping
        self.pause_button.description = "Resume" if paused else "Pause"
        self.stop_button.disabled = not running or stopping
        for field in [self.name, *self.form.values()]:
            field.disabled = running
        for name, slider in self.sliders.items():
            slider.disabled = trainer is None or (name == "learning_rate" and trainer.config.anneal_lr)
        problem = html.escape(self.invalid or self.failure)
        self.message.value = f'<div role="alert" style="color:#b00020"><b>{problem}</b></div>' if problem else ""
        if trainer is not None:
            self.progress.value = trainer.steps / trainer.config.last_step
            doing = "Stopping and saving" if stopping else "Paused" if paused else "Training"
            line = f"{doing}: {progress_line(trainer, self._speed)}"
        elif running:
            line = "Preparing the games and the network"
        else:
            line = "Not training. " + ("“Go on” continues from the saved checkpoint." if begun else "")
        self.status.value = f'<div role="status">{line}</div>'


def stop_all(timeout: float | None = None) -> None:
    """Stop and save whatever any panel trains in this Python, and wait for it (at most `timeout` seconds)."""
    for thread in threading.enumerate():
        if hasattr(thread, "panel") and thread is not threading.current_thread():
            thread.panel.stop()
            thread.join(timeout)


def _check_run(results: Path, name: str, config: PPOConfig) -> None:
    """Raise UserError if a training with this config can't begin or go on under this name."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError("Give the run a name of letters, digits, '-' and '_': it becomes a folder.")
    run_dir = results / name
    if not goes_on(run_dir):
        return
    saved = read_config(run_dir)
    changed = [field for field, value in config.to_dict().items() if value != getattr(saved, field)]
    if changed:
        was = ", ".join(f"{field} was {getattr(saved, field)}" for field in changed)
        raise UserError(
            f"The run {name} was begun with other settings ({was}): put them back to go on with it, or give "
            "this one another name."
        )
