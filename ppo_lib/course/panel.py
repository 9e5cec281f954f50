"""The training panel of a notebook: a form, buttons, a live curve, and sliders that act on the running training.

- live.py trains in the background; there is never more than one training.
- What the panel shows is read from the run's folder, changes of the sliders too: it is the same after a disconnect.
- form.py has what the form offers, panel.css its look.
"""

from __future__ import annotations

import html
import math
import re
import threading
import time
from base64 import b64encode
from contextlib import suppress
from itertools import count
from pathlib import Path

import ipywidgets as w
from IPython.display import display

from ppo_lib import plots
from ppo_lib.checkpoint import has_checkpoint, uninterrupted
from ppo_lib.config import PPOConfig, UserError, suggest
from ppo_lib.course.form import FORM, SLIDERS, box, form_field, labelled
from ppo_lib.course.live import LIVE, Training, how_far, live_curve, live_values, stop_all
from ppo_lib.course.widgets import Controls, entered, entry, put
from ppo_lib.methods import algorithm_class
from ppo_lib.runs import read_metrics
from ppo_lib.train import Trainer


class TrainingPanel:
    """Sets up, trains and shows one run. `show()` puts it below the cell.

    run_dir: the run's folder, whose name can be changed in the form; config: initial values of the form.
    """

    def __init__(self, run_dir: Path | str, config: PPOConfig) -> None:
        stop_all()  # this cell may have run before
        algorithm_class(config.algorithm)  # an unknown one gets a sentence
        self.results, self.base = Path(run_dir).parent, config
        self.training: Training | None = None  # the last one, until the form changes
        self.invalid = ""  # why the form can't be started
        self.saved, self.finished, self._share = 0, False, 0.0  # of the named run, see how_far
        self._next_drawing = 0.0  # during training, on time.monotonic
        self._turn = threading.RLock()  # threads take turns, so that the last to write has read the newest state
        self.name = entry("name of the run", Path(run_dir).name)
        self.form = {name: form_field(name, getattr(config, name)) for name in FORM}
        wide = {"description_width": "11em"}
        self.sliders = {name: kind(description=FORM[name], continuous_update=False, style=wide, **options)
                        for name, (kind, options) in SLIDERS.items()}  # fmt: skip
        self.message, self.status, self.curve = w.HTML(), w.HTML(), w.HTML()
        self.start_button, self.pause_button, self.stop_button, self.new_button = buttons = [
            w.Button(description=text, icon=icon)
            for text, icon in [("Start", "play"), ("Pause", "pause"), ("Stop and save", "stop"), ("New run", "plus")]
        ]
        self._fields = [self.name, *self.form.values()]
        live = w.HTML("<b>During training</b> <small>Each change is marked on the curve and logged.</small>")
        left = [box("form", self._fields), self.message, box("buttons", buttons),
                box("live", [live, *self.sliders.values()])]  # fmt: skip
        style = w.HTML(f"<style>{Path(__file__).with_suffix('.css').read_text('utf-8')}</style>")
        parts = [box("style", [style]), box("left", left), box("right", [self.status, self.curve])]
        self.controls = Controls(parts, "Settings, buttons, sliders and the learning curve")
        self.controls.add_class("ppo-panel")
        self.start_button.add_class("ppo-main")
        pressed = (self.press_start, self.toggle_pause, self.stop, self.new_run)
        for button, action in zip(buttons, pressed, strict=True):
            button.on_click(lambda _, action=action: action())
        for name, slider in self.sliders.items():
            slider.observe(lambda change, name=name: self._steer(name, change["new"]), "value")
        for field in self._fields:
            field.observe(lambda _: self.check(), "value")
        self.name.observe(lambda _: self._changed(), "value")
        self.check()
        self._changed()

    def show(self) -> None:
        """Display the panel."""
        display(self.controls)

    @property
    def running(self) -> bool:
        """Whether a training is under way: from start() until everything is saved and closed."""
        return self.training is not None and not self.training.ended.is_set()

    @property
    def trainer(self) -> Trainer | None:
        """The trainer at work; None before it is prepared, and after the training."""
        return self.training.trainer if self.training is not None else None

    @property
    def failure(self) -> str:
        """Why the last training failed; "" if it didn't, or if the form has changed since."""
        return labelled(self.training.failure) if self.training is not None else ""

    @property
    def run_dir(self) -> Path:
        """The folder of the run that the form names."""
        return self.results / self.name.value.strip()

    def check(self) -> PPOConfig | None:
        """The config that the form describes; None, with the reason below the form, if it can't be started."""
        config = None
        if not self.running:
            self.training = None
        try:
            config = self.base.replace(**{name: entered(field) for name, field in self.form.items()})
            if not re.fullmatch(r"\w[\w.-]*", self.run_dir.name) or self.run_dir.parent != self.results:
                raise UserError("Give the run a name of letters, digits, '-' and '_': it becomes a folder.")
            self.saved, self.finished, self._share = how_far(self.run_dir, config)
            self.invalid = ""
        except UserError as error:
            self.invalid = labelled(str(error))
        if not self.running:
            for name, slider in self.sliders.items():
                put(slider, getattr(config or self.base, name))
        self._show_state()
        return None if self.invalid else config

    def press_start(self) -> None:
        """Start or continue; a finished run gets as many more steps as the panel's config has."""
        if self.finished:
            self.form["total_steps"].value = str(self.saved + self.base.total_steps)
        self.start()

    def new_run(self) -> None:
        """Name a run that doesn't exist yet, which the form's settings start. The one before is kept."""
        stem = re.sub(r"-run\d+$", "", self.run_dir.name)
        names = (f"{stem}-run{number}" for number in count(2))
        self.name.value = next(name for name in names if not (self.results / name).exists())

    def start(self) -> None:
        """Train until total_steps, from the run's checkpoint if there is one. A second start does nothing."""
        self.run_for(math.inf)

    def run_for(self, updates: float) -> TrainingPanel:
        """Start, and stop and save after this many updates. Returns at once; `wait()` waits."""
        if self.training is not None and self.training.stopping:
            self.training.ended.wait()
        if not self.running and (config := self.check()) is not None:
            training = Training(config, self.run_dir, updates, self._prepared, self._changed)
            with uninterrupted():  # an interrupt finds no training, or one that will end
                self.training = training
                training.start()
            self._show_state()
        return self

    def toggle_pause(self) -> None:
        """Pause the training, or let it continue."""
        if (trainer := self.trainer) is not None:
            (trainer.resume if trainer.paused else trainer.pause)()
            self._show_state()

    def stop(self) -> None:
        """Ask the training to save and end, which it does within a step."""
        if self.running:
            self.training.stop()
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
        """Wait until the training has ended. Interrupting the cell stops and saves it.

        Raises UserError, with the reason, if it failed or if the run hasn't finished an update.
        """
        if self.training is not None:
            self.training.wait()
        self._changed()
        if self.failure or not read_metrics(self.run_dir):
            early = f"{self.run_dir.name} has no finished update yet: run this cell again."
            raise UserError(self.failure or self.invalid or early)

    def _prepared(self, trainer: Trainer) -> None:
        for name, value in live_values(trainer).items():
            put(self.sliders[name], value)  # a resumed run continues with the values that its sliders had

    def _steer(self, name: str, value: float) -> None:
        if (trainer := self.trainer) is not None:
            setattr(trainer.ppo if name == "learning_rate" else trainer.ppo.coefficients, name, value)
            self._next_drawing = 0.0
            self._changed()

    def _changed(self) -> None:
        """Draw the curve and show the state, as they are now."""
        with self._turn:
            if self.training is not None and not self.running:
                with suppress(UserError):
                    self.saved, self.finished, self._share = how_far(self.run_dir, self.training.config)
            if not self.running or time.monotonic() > self._next_drawing:
                figure = live_curve(self.run_dir, live_values(trainer) if (trainer := self.trainer) is not None else {})
                figure.set_figheight(4)  # as high as the controls beside it
                png, name = b64encode(plots.figure_png(figure, dpi=160)).decode(), html.escape(self.run_dir.name)
                self.curve.value = f'<img alt="Learning curve of {name}" src="data:image/png;base64,{png}">'
                self._next_drawing = time.monotonic() + 1  # short updates don't wait for drawings
            self._show_state()

    def _show_state(self) -> None:
        """Bring buttons, messages, progress and the status line up to date."""
        with self._turn:
            training, running, problem = self.training, self.running, self.invalid or self.failure
            stopping, extend = running and training.stopping, not self.base.anneal_lr
            paused = (trainer := self.trainer) is not None and trainer.paused
            begun, finished = has_checkpoint(self.run_dir), self.finished and not running
            word, text, share = "Not started", "It trains in the background: the notebook stays usable.", self._share
            if running:
                word = "Stopping" if stopping else "Paused" if paused else "Training" if trainer else "Preparing"
                text, share = training.progress, training.share
            elif problem:
                word, text = "Not training", "See the message below the form."
            elif finished:
                more = f"“More steps” adds {self.base.total_steps:,}. " if extend else ""
                word, text = "Complete", f"{self.saved:,} steps. {more}“New run” keeps it and starts another."
            elif begun:
                word, text = "Stopped", f"Saved after {self.saved:,} steps. “Continue” resumes there."
            self.start_button.disabled = running or bool(self.invalid) or (finished and not extend)
            self.start_button.description = "More steps" if finished else "Continue" if begun else "Start"
            self.pause_button.disabled = trainer is None or stopping
            self.pause_button.description = "Resume" if paused else "Pause"
            self.stop_button.disabled = not running or stopping
            self.new_button.disabled = running or not (self.run_dir / "config.json").is_file()
            for field in self._fields:
                field.disabled = running
            for name, slider in self.sliders.items():
                slider.disabled = trainer is None or (name == "learning_rate" and trainer.config.anneal_lr)
            self.message.value = f'<div role="alert">{html.escape(problem)}</div>' if problem else ""
            self.status.value = (
                f'<div role="status"><b class="ppo-{word[:4].lower()}">{word}</b><br>{text}</div>'
                f'<progress aria-label="steps done" value="{share:.3f}"></progress>'
            )
