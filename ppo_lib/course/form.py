"""What the training panel's form and sliders offer, and their labels."""

from __future__ import annotations

import re

import ipywidgets as w

from ppo_lib.course.widgets import entry
from ppo_lib.methods import ALGORITHMS

FORM = {  # config fields in the form, by name and unit
    "num_levels": "training levels (0 = all)", "num_envs": "games in parallel",
    "total_steps": "length of run (steps)", "num_minibatches": "minibatches per epoch",
    "algorithm": "algorithm", "pooling": "pooling", "learning_rate": "learning rate (Adam)",
    "clip_range": "clip range (epsilon)", "entropy_coef": "entropy coefficient", "gamma": "gamma (per step)",
    "gae_lambda": "lambda (0 to 1)", "recurrent": "recurrent (GRU)",
}  # fmt: skip
CHOICES = {"algorithm": [*ALGORITHMS], "pooling": ["flatten", "average"]}
SLIDERS = {
    "learning_rate": (w.FloatLogSlider, {"min": -6, "max": -2, "step": 0.05}),
    "clip_range": (w.FloatSlider, {"min": 0.01, "max": 0.5, "step": 0.01}),
    "entropy_coef": (w.FloatSlider, {"min": 0, "max": 0.1, "step": 0.001, "readout_format": ".3f"}),
}


def form_field(name: str, value: object) -> w.Widget:
    """The form's widget for a config field."""
    if name in CHOICES:
        options = dict.fromkeys([*CHOICES[name], value])  # the algorithm may be in the user's file
        return w.Dropdown(options=list(options), value=value, description=FORM[name])
    return entry(FORM[name], value)


def box(name: str, children: list[w.Widget]) -> w.Widget:
    """A box that panel.css lays out."""
    return w.Box(children).add_class(f"ppo-{name}")


def labelled(message: str) -> str:
    """A message with the form's labels instead of the names of config fields."""
    names = "|".join(name for name in FORM if "_" in name)  # the others are labels themselves
    return re.sub(rf"\b({names})\b", lambda match: f"“{FORM[match[0]].split(' (')[0]}”", message)
