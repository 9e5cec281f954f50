"""What is drawn beside the game in a film: score, value estimate and the probability of every action.

- Plain Pillow: about a millisecond a frame, so that filming costs little more than playing.
- Training levels carry blue, unseen levels orange-red, as in all figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ppo_lib.drawing import SPLIT_COLOR

GAME_SIZE = 512  # pixels, square
PANEL_WIDTH = 224
HEADER_HEIGHT = 40
GAP = 8
# The keys behind Procgen's 15 actions, in their order (the game's own combination table).
ACTION_NAMES = (
    "LEFT+DOWN", "LEFT", "LEFT+UP", "DOWN", "noop", "UP", "RIGHT+DOWN", "RIGHT", "RIGHT+UP",
    "D", "A", "W", "S", "Q", "E",
)  # fmt: skip
# In StarPilot the last six fire and stand still: A behind the ship, the five others ahead, all alike.
_STARPILOT_KEYS = {"D": "D fire", "A": "A fire back", "W": "W fire", "S": "S fire", "Q": "Q fire", "E": "E fire"}
_BACK, _TEXT, _DIM, _LINE = "#15181d", "#f2f2f2", "#9aa3ad", "#2b3138"
_BRIGHT = {"train": "#56B4E9", "unseen": "#E69F00"}  # lighter shades of the splits' colours, for a dark panel
_BAR_TOP, _BAR_STEP, _BAR_LEFT, _BAR_WIDTH = 218, 19, 106, 106


@dataclass(frozen=True)
class View:
    """What a panel shows at one step. A = number of actions."""

    split: str  # "train" or "unseen"
    level_seed: int
    step: int
    score: float  # return so far, raw
    values: Sequence[float]  # the critic's estimates since the episode's start; the last is this step's
    probabilities: NDArray[np.float32]  # [A]
    action: int  # the one taken
    over: bool = False  # the episode has ended: score is its return


def action_labels(env_name: str) -> tuple[str, ...]:
    """A name for each action: the keys, and what they do where that is known (StarPilot)."""
    return tuple(_STARPILOT_KEYS.get(name, name) if env_name == "starpilot" else name for name in ACTION_NAMES)


def draw_tile(frame: NDArray[np.uint8], view: View, labels: Sequence[str]) -> NDArray[np.uint8]:
    """The game's picture [512, 512, 3] with its panel at the right -> [512, 736, 3]."""
    panel = _empty_panel(view.split, tuple(labels)).copy()
    draw = ImageDraw.Draw(panel)
    accent = _BRIGHT[view.split]
    draw.text((12, 34), f"level {view.level_seed}", font=font(15), fill=_TEXT)
    draw.text((12, 64), f"{view.score:g}", font=font(34, bold=True), fill=_TEXT)
    draw.text((212, 84), f"step {view.step}", font=font(15), fill=_DIM, anchor="ra")
    draw.text((212, 118), f"{view.values[-1]:.2f}", font=font(15, bold=True), fill=_TEXT, anchor="ra")
    draw.line(_sparkline(view.values, (12, 142, 212, 188)), fill=accent, width=2)
    for index, probability in enumerate(view.probabilities):
        top = _BAR_TOP + index * _BAR_STEP
        taken = index == view.action
        width = round(_BAR_WIDTH * float(probability))
        draw.rectangle((_BAR_LEFT, top + 2, _BAR_LEFT + max(1, width), top + 14), fill=accent if taken else "#66717d")
        if taken:
            draw.text((12, top), labels[index], font=font(12), fill="white")
    if view.over:
        frame = frame // 3
    picture = np.concatenate([frame, np.asarray(panel)], axis=1)
    return _write_over(picture, view.score, accent) if view.over else picture


def draw_sheet(tiles: Sequence[Sequence[NDArray[np.uint8]]], headers: Sequence[tuple[str, str]]) -> NDArray[np.uint8]:
    """Columns of tiles side by side, each under its header (split, text) -> [H, W, 3] with even H and W."""
    rows = max(map(len, tiles))
    height = HEADER_HEIGHT + rows * GAME_SIZE + (rows - 1) * GAP
    width = len(tiles) * (GAME_SIZE + PANEL_WIDTH) + (len(tiles) - 1) * GAP
    sheet = np.zeros((height, width, 3), np.uint8)
    for column, (column_tiles, (split, text)) in enumerate(zip(tiles, headers, strict=True)):
        left = column * (GAME_SIZE + PANEL_WIDTH + GAP)
        sheet[:HEADER_HEIGHT, left : left + GAME_SIZE + PANEL_WIDTH] = _header(split, text)
        for row, tile in enumerate(column_tiles):
            top = HEADER_HEIGHT + row * (GAME_SIZE + GAP)
            sheet[top : top + GAME_SIZE, left : left + GAME_SIZE + PANEL_WIDTH] = tile
    return sheet


@lru_cache(maxsize=16)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, `size` pixels high."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


@lru_cache(maxsize=8)
def _empty_panel(split: str, labels: tuple[str, ...]) -> Image.Image:
    """All that doesn't change from step to step."""
    panel = Image.new("RGB", (PANEL_WIDTH, GAME_SIZE), _BACK)
    draw = ImageDraw.Draw(panel)
    draw.rectangle((0, 0, 5, GAME_SIZE), fill=SPLIT_COLOR[split])
    draw.text((12, 10), f"{'training' if split == 'train' else 'unseen'} level", font=font(16, bold=True),
              fill=_BRIGHT[split])  # fmt: skip
    draw.text((212, 64), "return", font=font(13), fill=_DIM, anchor="ra")
    draw.text((12, 120), "value estimate", font=font(13), fill=_DIM)
    draw.rectangle((12, 140, 212, 190), outline=_LINE)
    draw.text((12, 198), "action probabilities", font=font(13), fill=_DIM)
    for index, label in enumerate(labels):
        top = _BAR_TOP + index * _BAR_STEP
        draw.text((12, top), label, font=font(12), fill=_DIM)
        draw.rectangle((_BAR_LEFT, top + 2, _BAR_LEFT + _BAR_WIDTH, top + 14), fill="#20252b")
    return panel


@lru_cache(maxsize=8)
def _header(split: str, text: str) -> NDArray[np.uint8]:
    """A bar in the split's colour with white text."""
    bar = Image.new("RGB", (GAME_SIZE + PANEL_WIDTH, HEADER_HEIGHT), SPLIT_COLOR[split])
    ImageDraw.Draw(bar).text((14, 20), text, font=font(20, bold=True), fill="white", anchor="lm")
    return np.asarray(bar)


def _sparkline(values: Sequence[float], box: tuple[int, int, int, int]) -> list[tuple[float, float]]:
    """Points of a line through the last 200 values, scaled to the episode's range, inside box (l, t, r, b)."""
    left, top, right, bottom = box
    low, high = min(values), max(values)
    scale = (bottom - top) / (high - low) if high > low else 0.0
    shown = list(values)[-(right - left) :]
    points = [(left + i, bottom - (value - low) * scale) for i, value in enumerate(shown)]
    return points if len(points) > 1 else points * 2


def _write_over(picture: NDArray[np.uint8], score: float, accent: str) -> NDArray[np.uint8]:
    """The ended episode's return across the darkened game."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    centre = GAME_SIZE // 2
    draw.text((centre, centre - 26), "episode over", font=font(26), fill=_TEXT, anchor="mm")
    draw.text((centre, centre + 20), f"return {score:g}", font=font(42, bold=True), fill=accent, anchor="mm")
    return np.asarray(image)
