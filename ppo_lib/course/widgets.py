"""Figures with sliders for the notebooks: levels of a game, advantages of an episode, the clipped objective.

- Each explorer shows its figure at once and returns the sliders that redraw it: make it the last line of a cell.
- Only widgets and options that ipywidgets 7.7 (Colab) and 8 share. Each works by keyboard and names its unit.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from functools import lru_cache
from typing import Any

import ipywidgets as w
import numpy as np
import PIL.Image
import torch
from IPython.display import Image, display
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from ppo_lib import plots
from ppo_lib.config import PPOConfig, UserError
from ppo_lib.course.drawing import DPI, GREEN, YELLOW, canvas, finish, strip
from ppo_lib.envs import make_env
from ppo_lib.storage import gae

NOOP = 4  # the action that presses no key
PIXELS = 150  # side of one level's image in the gallery
STYLE = {"description_width": "12em"}  # room for a name with its unit
NARROW = {"layout": {"width": "23em", "max_width": "100%"}, "style": STYLE}  # two entries fit beside each other
WIDE = {"layout": {"width": "40em", "max_width": "100%"}, "style": STYLE}


class Controls(w.VBox):
    """Widgets, and the picture that they draw: a PNG output of its own, which any thread can replace.

    A saved notebook has the picture, but no widgets: it shows `note` instead.
    """

    def __init__(self, children: list[w.Widget], note: str) -> None:
        super().__init__(children)
        self.png, self._note = b"", note
        self._handle: Any = None  # IPython's display handle; None where there is no notebook
        self._lock = threading.Lock()

    def draw(self, figure: Figure) -> None:
        """Show this figure instead."""
        with self._lock:
            self.png = plots.figure_png(figure, dpi=DPI)
            if self._handle is not None:
                self._handle.update(Image(self.png, retina=True))

    def show_picture(self) -> None:
        """Make the picture an output of the running cell."""
        self._handle = display(Image(self.png, retina=True), display_id=True)

    def __repr__(self) -> str:
        return f"[{self._note}: run this cell to use them]"


def interactive_picture(figure: Callable[[], Figure], sliders: list[w.Widget], note: str) -> Controls:
    """Show the figure, and draw it again whenever a slider moves."""
    controls = Controls(sliders, note)
    for slider in sliders:
        slider.layout, slider.style = WIDE["layout"], WIDE["style"]
        slider.observe(lambda _: controls.draw(figure()), "value")
    controls.draw(figure())
    controls.show_picture()
    return controls


def entry(label: str, value: object) -> w.Widget:
    """A form's widget for a config field. Numbers are text, since a browser's number field cuts 1e6 to 1."""
    if isinstance(value, bool):
        return w.Checkbox(value, description=label, indent=True, **NARROW)
    return w.Text(str(value), description=label, continuous_update=False, **NARROW)


def entered(field: w.Widget) -> object:
    """What a widget of `entry` holds: text that reads as a number is one."""
    for kind in (int, float) if isinstance(field, w.Text) else ():
        with suppress(ValueError):
            return kind(field.value)
    return field.value


def put(slider: w.Widget, value: float) -> None:
    """Move a slider to exactly this value; a value outside its range widens the range."""
    log = isinstance(slider, w.FloatLogSlider)
    place, room = (math.log10(value), 0.1) if log else (value, 0)  # powers of 10 are rounded: leave room
    slider.min, slider.max = min(slider.min, place - room), max(slider.max, place + room)
    slider.value = value


def level_gallery(config: PPOConfig, columns: int = 6, seeds: range | None = None) -> Controls:
    """Training levels above unseen ones, each as it looks some steps after its start when no key is pressed.

    columns: levels per row; seeds: of the first level of a row, counted from the split's first (default: the first 200)
    Raises UserError if a split has too few levels for a row, or does not have all of `seeds`.
    """
    count = min(config.train_levels[1], config.unseen_levels[1])
    seeds = range(min(count, 200)) if seeds is None else seeds
    if not 1 <= columns <= count or not seeds or min(seeds) < 0 or max(seeds) >= count:
        allowed = f"columns from 1 to {count}, and seeds from 0 to {count - 1}"
        raise UserError(f"Each split has {count} levels: give {allowed}, not {columns} and {seeds}.")
    low, high = (min(end(seeds), count - columns) for end in (min, max))
    first = w.IntSlider(low, low, high, 1, description="first level (seed)")
    step = w.IntSlider(30, 0, 80, 10, description="time (game steps)")

    def figure() -> Figure:
        places = [(split, getattr(config, f"{split}_levels")[0] + first.value + i)
                  for split in plots.SPLIT_NAME for i in range(columns)]  # fmt: skip
        frames = [_level_frame(config, split, level, step.value) for split, level in places]
        titles, colors = zip(*[(str(level), plots.SPLIT_COLOR[split]) for split, level in places], strict=True)
        caption = "level seeds; above: training levels, below: unseen levels"
        return strip(frames, titles, columns=columns, colors=colors, caption=caption, size=8.4 / columns)

    return interactive_picture(figure, [first, step], "Sliders for the first level and the time")


@lru_cache(maxsize=512)
def _level_frame(config: PPOConfig, split: str, level: int, step: int) -> NDArray[np.uint8]:
    """A level after `step` steps without a key, [PIXELS, PIXELS, 3]; its last frame if the episode ends before."""
    with closing(make_env(config, split, num_envs=1, seed=0, levels=(level, 1), num_threads=0, render=True)) as env:
        env.reset()
        for _ in range(step + 1):
            frame = env.render()[0]
            if env.step(np.array([NOOP]))[2][0]:
                break
    return np.asarray(PIL.Image.fromarray(frame).resize((PIXELS, PIXELS), PIL.Image.Resampling.LANCZOS))


def gae_explorer(
    reward: ArrayLike, value: ArrayLike, done: ArrayLike, last_value: float = 0.0, *, gamma: float = 0.999,
    gae_lambda: float = 0.95,
) -> Controls:  # fmt: skip
    """Returns and advantages of recorded steps of one game, redrawn as gamma and lambda move.

    reward, value: [T], of the game and of the network; done: [T], whether the step ended an episode;
    last_value: of the observation after the last step. gamma, gae_lambda: initial values, kept as a grey line.
    """
    reward, value, done = np.stack([np.ravel(column) for column in (reward, value, done)]).astype(np.float32)
    recorded = [torch.from_numpy(column)[:, None] for column in (reward, value, done == 1)]  # [T, 1]

    def estimates(gamma: float, gae_lambda: float) -> tuple[torch.Tensor, torch.Tensor]:
        return gae(*recorded, torch.tensor([last_value]), gamma, gae_lambda)

    initial, initially = estimates(gamma, gae_lambda), f"at {gamma:g}, {gae_lambda:g}"
    gammas = w.FloatSlider(gamma, min=0.8, max=1, step=0.001, readout_format=".3f", description="gamma (per step)")
    lambdas = w.FloatSlider(gae_lambda, min=0, max=1, step=0.01, description="lambda (0 to 1)")

    def figure() -> Figure:
        fig, axes = canvas(2, 1, height=4.4, sharex=True)
        axes[0].vlines(np.flatnonzero(reward), 0, reward[reward != 0], color=YELLOW, lw=2, label="reward")
        axes[0].plot(value, color=GREEN, lw=1.2, label="value estimate")
        now = estimates(gammas.value, lambdas.value)
        lines = zip(axes[::-1], ("unseen", "train"), ("advantage", "return"), initial, now, strict=True)
        for axis, split, name, old, new in lines:
            axis.plot(old, color=plots.GREY, lw=1, ls=":", label=initially if name == "advantage" else None)
            axis.plot(new, color=plots.SPLIT_COLOR[split], lw=1.4, label=name)
            for end in np.flatnonzero(done):
                axis.axvline(end + 0.5, color=plots.DARK, lw=1, ls="--")
        horizon = "no horizon" if gammas.value == 1 else f"horizon {1 / (1 - gammas.value):,.0f} steps"
        title = f"gamma {gammas.value:.3f} ({horizon}), lambda {lambdas.value:.2f}"
        finish(axes[0], "", "reward, value, return", title=title)
        finish(axes[1], "time (game steps; dashed: episode end)", "advantage")
        plots.legend_above(fig, [handle for axis in axes for handle in axis.get_legend_handles_labels()[0]])
        return fig

    return interactive_picture(figure, [gammas, lambdas], "Sliders for gamma and lambda")


def clip_explorer(epsilon: float = 0.2) -> Controls:
    """The clipped objective against the ratio, for a good and for a bad action (1707.06347, equation 7, figure 1)."""
    slider = w.FloatSlider(epsilon, min=0.05, max=0.6, step=0.05, description="epsilon (clip range)")
    ratio = np.linspace(0, 2, 401)

    def figure() -> Figure:
        fig, axes = canvas(1, 2, height=3.2)
        for axis, sign in zip(axes, (1, -1), strict=True):
            clipped = clipped_objective(ratio, sign, slider.value)
            axis.plot(ratio, ratio * sign, color=plots.GREY, lw=1, ls="--", label="unclipped: r A")
            axis.plot(ratio, clipped, color=plots.SPLIT_COLOR["train"], lw=2, label="clipped objective")
            cut = clipped != ratio * sign
            axis.fill_between(ratio, -2, 2, cut, color=YELLOW, alpha=0.25, lw=0, label="no gradient")
            axis.plot([1], [sign], "o", color=plots.DARK, ms=5, label="before the update (r = 1)")
            title = f"A = {sign:+d}: {'better' if sign > 0 else 'worse'} than expected"
            ylim = sorted((-0.1 * sign, 2 * sign))
            finish(axis, "ratio r = new / old probability", "objective", title=title, ylim=ylim)
        plots.legend_above(fig, axes[0].get_legend_handles_labels()[0])
        return fig

    return interactive_picture(figure, [slider], "A slider for epsilon")


def clipped_objective(ratio: NDArray[np.float64], advantage: float, epsilon: float) -> NDArray[np.float64]:
    """min(r A, clip(r, 1 - epsilon, 1 + epsilon) A) for ratios [n]; ppo_loss averages its negative."""
    return np.minimum(ratio * advantage, np.clip(ratio, 1 - epsilon, 1 + epsilon) * advantage)
