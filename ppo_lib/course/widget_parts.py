"""What the notebooks' widgets are made of: a picture that can be replaced, form entries, sliders, buttons.

- A picture is a plain PNG output, replaced in place through a display handle: it works from callbacks and threads,
  and whoever reads the notebook without a kernel sees it.
- Only widgets and options that ipywidgets 7.7 (Colab) and 8 share. Each works by keyboard and names its unit.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as w
from IPython.display import Image, display
from matplotlib.figure import Figure

from ppo_lib.config import DISTRIBUTION_MODES, GAMES

LABELS = {  # what a config field is called, with its unit
    "env_name": "game",
    "num_levels": "training levels (0 = all)",
    "start_level": "first level (seed)",
    "distribution_mode": "difficulty",
    "use_backgrounds": "picture backgrounds",
    "restrict_themes": "one set of sprites",
    "seed": "seed of the run",
    "num_envs": "games side by side",
    "num_steps": "rollout (steps a game)",
    "total_steps": "length of run (steps)",
    "num_epochs": "epochs (passes a rollout)",
    "num_minibatches": "minibatches (an epoch)",
    "learning_rate": "learning rate (Adam)",
    "clip_range": "clip range (epsilon)",
    "entropy_coef": "entropy coefficient",
    "gamma": "gamma (per step)",
    "gae_lambda": "lambda (0 to 1)",
    "recurrent": "recurrent (GRU)",
    "sequence_length": "GRU sequence (steps)",
    "eval_interval": "evaluate every (steps)",
    "eval_episodes": "evaluation (episodes)",
    "checkpoint_interval": "save every (steps)",
}
CHOICES = {
    "env_name": GAMES,
    "distribution_mode": DISTRIBUTION_MODES,
    "precision": ("auto", "float32", "bf16", "fp16"),
}
LIVE_FIELDS = ("learning_rate", "clip_range", "entropy_coef")  # what may change while it trains
WIDTH = {"width": "23em", "max_width": "100%"}  # two entries fit beside each other
SLIDER_WIDTH = {"width": "40em", "max_width": "100%"}
STYLE = {"description_width": "12em"}  # room for a name with its unit


class Picture:
    """A figure in the notebook that can be replaced from any thread. `png` is what it shows now."""

    def __init__(self) -> None:
        self.png = b""
        self._handle: Any = None  # IPython's display handle; None where there is no notebook
        self._lock = threading.Lock()

    def draw(self, figure: Figure, dpi: int = 110) -> None:
        """Show this figure in place of the one before."""
        with self._lock:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=dpi)
            self.png = buffer.getvalue()
            self.refresh()

    def show(self) -> None:
        """Make the figure an output of the cell that is running."""
        self._handle = display(Image(self.png), display_id=True)

    def refresh(self) -> None:
        """Send the figure once more, so that the cell that is running is seen to update it."""
        if self._handle is not None:
            self._handle.update(Image(self.png))


class Controls(w.VBox):
    """Widgets with the picture that they draw. A saved notebook, which has no widgets, shows `note` in their place."""

    def __init__(self, children: Sequence[w.Widget], picture: Picture, note: str) -> None:
        super().__init__(list(children))
        self.picture, self._note = picture, note

    def __repr__(self) -> str:
        return f"[{self._note}: run this cell to use them]"


def interactive_picture(figure: Callable[[], Figure], sliders: list[w.Widget], note: str) -> Controls:
    """Show the figure now, and draw it anew whenever a slider moves."""
    picture = Picture()

    def redraw(_: object = None) -> None:
        picture.draw(figure())

    for slider in sliders:
        slider.layout, slider.style.description_width = w.Layout(**SLIDER_WIDTH), STYLE["description_width"]
        slider.observe(redraw, "value")
    redraw()
    picture.show()
    return Controls(sliders, picture, note)


def entry(name: str, value: object) -> w.Widget:
    """The form's widget for a config field."""
    options = {"description": LABELS.get(name, name), "layout": w.Layout(**WIDTH), "style": STYLE}
    if name in CHOICES:
        return w.Dropdown(options=CHOICES[name], value=value, **options)
    if isinstance(value, bool):
        return w.Checkbox(value, indent=True, **options)
    kind = {int: w.IntText, float: w.FloatText}.get(type(value), w.Text)
    return kind(value, continuous_update=False, **options)


def live_slider(name: str, value: float) -> w.Widget:
    """The slider of one of LIVE_FIELDS."""
    layout = w.Layout(**SLIDER_WIDTH)
    options = {"description": LABELS[name], "layout": layout, "style": STYLE, "continuous_update": False}
    if name == "learning_rate":
        slider = w.FloatLogSlider(base=10, min=-6, max=-2, step=0.05, readout_format=".1e", **options)
    elif name == "clip_range":
        slider = w.FloatSlider(min=0.01, max=0.5, step=0.01, readout_format=".2f", **options)
    else:
        slider = w.FloatSlider(min=0, max=0.1, step=0.001, readout_format=".3f", **options)
    put(slider, value)
    return slider


def put(slider: w.Widget, value: float) -> None:
    """Move a slider to exactly this value, widening its range where the value lies outside."""
    low = high = value
    if isinstance(slider, w.FloatLogSlider):  # ends are powers of 10, rounded: leave room for that
        low, high = math.log10(value) - 0.1, math.log10(value) + 0.1
    slider.min, slider.max = min(slider.min, low), max(slider.max, high)
    slider.value = value


def button(description: str, icon: str, action: Callable[[], object]) -> w.Button:
    """A button that calls `action`."""
    made = w.Button(description=description, icon=icon)
    made.on_click(lambda _: action())
    return made
