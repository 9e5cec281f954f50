"""Pictures with sliders for the notebooks: levels of a game, advantages of an episode, the clipped objective.

- Each function shows its picture at once and returns the sliders that redraw it; let it be a cell's last line.
- Numbers come from ppo_lib's own functions, so a widget can't disagree with the training code.
- TrainingPanel is imported here so that a notebook needs one name.
"""

from __future__ import annotations

from functools import lru_cache

import ipywidgets as w
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from ppo_lib.config import PPOConfig, UserError
from ppo_lib.course.panel import TrainingPanel
from ppo_lib.course.widget_parts import Controls, interactive_picture
from ppo_lib.drawing import GREY, SPLIT_COLOR, SPLIT_NAME, label_axes, legend_above, new_figure
from ppo_lib.envs import make_env
from ppo_lib.storage import gae

__all__ = ["TrainingPanel", "clip_explorer", "clipped_objective", "gae_explorer", "level_gallery"]

NOOP = 4  # the action that presses no key
PIXELS = 150  # side of one level's picture in the gallery


def level_gallery(config: PPOConfig, columns: int = 6, seeds: range | None = None) -> Controls:
    """Training levels above unseen ones, each as it looks some steps after its start when no key is pressed.

    columns: levels in a row. seeds: what the slider runs over, counted from the first level of each split
    (default: all training levels, at most 200). A second slider sets the step. Raises UserError if there are fewer
    levels than columns.
    """
    count = config.train_levels[1]
    if count < columns:
        raise UserError(f"A gallery of {columns} columns needs as many training levels, not {count}.")
    seeds = seeds or range(min(count, 200))
    last = min(seeds[-1], count - columns)
    first = w.IntSlider(min(seeds[0], last), seeds[0], last, 1, description="first level (seed)")
    step = w.IntSlider(30, 0, 80, 10, description="time (game steps)")

    def figure() -> Figure:
        fig, axes = new_figure(2, 1, height=10 / columns + 0.9)
        for axis, split in zip(axes, ("train", "unseen"), strict=True):
            levels = [getattr(config, f"{split}_levels")[0] + first.value + i for i in range(columns)]
            frames = [_level_frame(config, split, level, step.value) for level in levels]
            axis.imshow(np.concatenate(frames, axis=1))
            label_axes(axis, "level seed" if split == "unseen" else "", SPLIT_NAME[split], size=8.5)
            axis.yaxis.label.set_color(SPLIT_COLOR[split])
            axis.set_xticks(PIXELS * (np.arange(columns) + 0.5), [str(level) for level in levels])
            axis.set_yticks([])
            axis.grid(visible=False)
            for edge in PIXELS * np.arange(1, columns):
                axis.axvline(edge - 0.5, color="white", lw=2)
        return fig

    return interactive_picture(figure, [first, step], "Sliders for the first level and the time")


def gae_explorer(
    reward: ArrayLike, value: ArrayLike, done: ArrayLike, last_value: float = 0.0, *, gamma: float = 0.999,
    gae_lambda: float = 0.95,
) -> Controls:  # fmt: skip
    """Returns and advantages of a recorded stretch of one game, redrawn as gamma and lambda move.

    reward, value: [T] what the game paid and the network expected; done: [T] whether the step ended an episode;
    last_value: of the observation after the last step. gamma, gae_lambda: where the sliders start, kept as a grey line.
    """
    fields = [torch.as_tensor(np.asarray(field)).reshape(-1, 1) for field in (reward, value, done)]
    reward_, value_, done_ = fields[0].float(), fields[1].float(), fields[2].bool()
    if not len(reward_) == len(value_) == len(done_):
        raise UserError("reward, value and done must have one entry a step each.")

    def estimates(gamma: float, gae_lambda: float) -> list[NDArray[np.float32]]:
        found = gae(reward_, value_, done_, torch.tensor([last_value]), gamma, gae_lambda)
        return [estimate[:, 0].numpy() for estimate in found]

    before = estimates(gamma, gae_lambda)
    gamma_slider = w.FloatSlider(
        gamma, min=0.8, max=1, step=0.001, readout_format=".3f", description="gamma (per step)"
    )
    lambda_slider = w.FloatSlider(gae_lambda, min=0, max=1, step=0.01, description="lambda (0 to 1)")

    def figure() -> Figure:
        g, lam = gamma_slider.value, lambda_slider.value
        now = estimates(g, lam)
        fig, axes = new_figure(2, 1, height=4.2, sharex=True)
        time = np.arange(len(reward_))
        paid = np.flatnonzero(reward_[:, 0].numpy())
        axes[0].vlines(paid, 0, reward_[paid, 0].numpy(), color="#E69F00", lw=2, label="reward")
        axes[0].plot(time, value_[:, 0].numpy(), color="#009E73", lw=1.2, label="value estimate")
        for axis, old, new, name in zip(axes, before[::-1], now[::-1], ("return", "advantage"), strict=True):
            axis.plot(
                time, old, color=GREY, lw=1, ls=":", label=f"at {gamma:g}, {gae_lambda:g}" if axis is axes[1] else None
            )
            axis.plot(time, new, color=SPLIT_COLOR["train" if axis is axes[0] else "unseen"], lw=1.4, label=name)
            for end in np.flatnonzero(done_[:, 0].numpy()):
                axis.axvline(end + 0.5, color="#222222", lw=1, ls="--")
        label_axes(axes[0], "", "reward, value, return", size=9)
        label_axes(axes[1], "time (game steps; dashed: episode end)", "advantage", size=9)
        horizon = "no horizon" if g == 1 else f"horizon {1 / (1 - g):,.0f} steps"
        axes[0].set_title(f"gamma {g:.3f} ({horizon}), lambda {lam:.2f}", fontsize=9, loc="left")
        legend_above(fig, [h for axis in axes for h in axis.get_legend_handles_labels()[0]])
        return fig

    return interactive_picture(figure, [gamma_slider, lambda_slider], "Sliders for gamma and lambda")


def clip_explorer(epsilon: float = 0.2) -> Controls:
    """The clipped objective against the ratio, for a good and for a bad action (1707.06347, equation 7, figure 1)."""
    slider = w.FloatSlider(epsilon, min=0.05, max=0.6, step=0.05, description="epsilon (clip range)")
    ratio = np.linspace(0, 2, 401)

    def panel(axis: Axes, sign: int) -> None:
        clipped = clipped_objective(ratio, sign, slider.value)
        axis.plot(ratio, ratio * sign, color=GREY, lw=1, ls="--", label="unclipped: r A")
        axis.plot(ratio, clipped, color=SPLIT_COLOR["train"], lw=2, label="clipped objective")
        flat = clipped != ratio * sign
        axis.fill_between(ratio, -2, 2, where=flat, color="#E69F00", alpha=0.25, lw=0, label="no gradient")
        axis.plot([1], [sign], "o", color="#222222", ms=5, label="before the update (r = 1)")
        axis.set_ylim((-0.1, 2) if sign > 0 else (-2, 0.1))
        axis.set_title(f"A = {sign:+d}: {'better' if sign > 0 else 'worse'} than expected", fontsize=9)
        label_axes(axis, "ratio r = new / old probability", "objective" if sign > 0 else "", size=9)

    def figure() -> Figure:
        fig, axes = new_figure(1, 2, height=2.9)
        for axis, sign in zip(axes, (1, -1), strict=True):
            panel(axis, sign)
        legend_above(fig, axes[0].get_legend_handles_labels()[0])
        return fig

    return interactive_picture(figure, [slider], "A slider for epsilon")


def clipped_objective(ratio: NDArray[np.float64], advantage: float, epsilon: float) -> NDArray[np.float64]:
    """min(r A, clip(r, 1 - epsilon, 1 + epsilon) A) for ratios [n]: minus it is what ppo_loss averages."""
    return np.minimum(ratio * advantage, np.clip(ratio, 1 - epsilon, 1 + epsilon) * advantage)


@lru_cache(maxsize=512)
def _level_frame(config: PPOConfig, split: str, level: int, step: int) -> NDArray[np.uint8]:
    """A level after `step` steps without a key, [PIXELS, PIXELS, 3]; its last frame if the episode ends before."""
    from PIL import Image as Pixels

    env = make_env(config, split, num_envs=1, seed=0, levels=(level, 1), num_threads=0, render=True)
    try:
        env.reset()
        frame = env.render()[0]
        for _ in range(step):
            _, _, ended, _, _ = env.step(np.array([NOOP]))
            if ended[0]:
                break
            frame = env.render()[0]
    finally:
        env.close()
    return np.asarray(Pixels.fromarray(frame).resize((PIXELS, PIXELS), Pixels.Resampling.LANCZOS))
