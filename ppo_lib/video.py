"""Films of a policy: training levels beside unseen levels, with its value estimate and action probabilities.

- The panel belongs to the picture: value and probabilities are those with which the highlighted action was chosen.
- Every game runs in an environment of its own, so that an ended episode can stand still while the others go on.
- Actions are sampled, as in training and evaluation; greedy is an option.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from ppo_lib.accel.hardware import to_device
from ppo_lib.config import PPOConfig, UserError, derive_seed
from ppo_lib.encode import write_video
from ppo_lib.envs import make_env
from ppo_lib.video_panel import View, action_labels, draw_sheet, draw_tile

FPS = 15  # game steps a second, Procgen's own speed
Shot = tuple[str, int | None]  # split, and one level's seed or None for levels drawn from the split


@dataclass(frozen=True)
class Moment:
    """One step: what the agent saw, thought and did, and what came of it."""

    frame: NDArray[np.uint8]  # [512, 512, 3], before the step
    obs: NDArray[np.uint8]  # [64, 64, 3], what the policy saw
    view: View
    reward: float
    done: bool


@dataclass(frozen=True)
class Recording:
    """One episode of T steps."""

    frames: NDArray[np.uint8]  # [T, size, size, 3]
    obs: NDArray[np.uint8]  # [T, 64, 64, 3]
    action: NDArray[np.int64]  # [T]
    reward: NDArray[np.float32]  # [T], raw
    value: NDArray[np.float32]  # [T], the critic's estimates (in normalised reward)
    probabilities: NDArray[np.float32]  # [T, A]
    done: NDArray[np.bool_]  # [T]; False at the end if max_steps cut the episode
    level_seed: int

    @property
    def return_(self) -> float:
        """The episode's raw score."""
        return float(self.reward.sum())


def film(
    policy: nn.Module,
    config: PPOConfig,
    path: str | Path,
    *,
    levels: int = 4,
    shots: Sequence[Shot] | None = None,
    seed: int = 0,
    greedy: bool = False,
    max_seconds: float = 20,
    max_bytes: int = 1_000_000,
    once: bool = False,
) -> Path:
    """Film a policy on `levels` games at once, half on training levels (left), half on unseen levels (right).

    policy: policy(obs, state, reset) -> logits, value, state (an ActorCritic, or any module of that form)
    path: of the mp4 (H.264, 15 frames a second, at most max_bytes)
    levels: games to show, an even number; with shots they are named one by one: ("train", None) draws levels,
        ("unseen", 4711) plays that level
    seed: of the levels and the sampled actions
    once: every game plays one episode and the film ends with the longest (at most after max_seconds);
        otherwise an ended episode is followed by the next
    Returns the path. Raises UserError for levels that don't belong to their split and for unwritable files.
    """
    if shots is None:
        if levels < 2 or levels % 2:
            raise UserError(
                f"levels must be an even number, half for training and half for unseen levels, not {levels}."
            )
        shots = [(split, None) for split in ("train", "unseen") for _ in range(levels // 2)]
    if max_seconds <= 0:
        raise UserError(f"max_seconds must be above 0, not {max_seconds}.")
    columns = [split for split in ("train", "unseen") if any(shot[0] == split for shot in shots)]
    if len(columns) < len({split for split, _ in shots}):
        raise UserError("Every shot needs a split: 'train' or 'unseen'.")
    known = f"Training levels ({config.num_levels or 'unlimited'})"
    headers = [(split, known if split == "train" else "Unseen levels: never in training") for split in columns]
    games = [[] for _ in columns]
    for index, shot in enumerate(shots):
        moments = moments_of(policy, config, shot, seed=derive_seed(seed, index), greedy=greedy)
        games[columns.index(shot[0])].append(moments)
    sheets = _sheets(games, headers, action_labels(config.env_name), int(max_seconds * FPS), once)
    return write_video(sheets, path, fps=FPS, max_bytes=max_bytes)


def film_beside(
    players: Sequence[tuple[str, nn.Module, PPOConfig]],
    path: str | Path,
    *,
    rows: int = 2,
    seed: int = 0,
    greedy: bool = False,
    max_seconds: float = 20,
    max_bytes: int = 1_000_000,
) -> Path:
    """Film several policies on the same levels, which none of them trained on: a column each, a level a row.

    players: (header, policy, config) of each, with one game in common; the rest as for film, of which this is the twin
    Returns the path. Raises UserError for players of different games and for unwritable files.
    """
    configs = [config for _, _, config in players]
    if len({(config.env_name, config.distribution_mode) for config in configs}) > 1:
        raise UserError("These agents play different games: choose runs with the same env_name and distribution_mode.")
    first = max(config.unseen_levels[0] for config in configs)  # every config's unseen levels reach up to the last seed
    count = min(config.unseen_levels[1] for config in configs)
    levels = np.random.default_rng(derive_seed(seed, "film levels")).integers(first, first + count, rows)
    games = [
        [moments_of(policy, config, ("unseen", int(level)), seed=seed, greedy=greedy) for level in levels]
        for _, policy, config in players
    ]
    headers = [("unseen", header) for header, _, _ in players]
    sheets = _sheets(games, headers, action_labels(configs[0].env_name), int(max_seconds * FPS), once=False)
    return write_video(sheets, path, fps=FPS, max_bytes=max_bytes)


def record_episode(
    policy: nn.Module,
    config: PPOConfig,
    *,
    split: str = "train",
    level: int | None = None,
    seed: int = 0,
    greedy: bool = False,
    max_steps: int = 1000,
    size: int = 256,
) -> Recording:
    """Play one episode and keep everything: pictures (scaled to size x size), rewards, values, probabilities.

    level: the level's seed; default: one drawn from the split. 256-pixel pictures take 0.2 MB a step of memory.
    """
    moments = []
    for moment in moments_of(policy, config, (split, level), seed=seed, greedy=greedy):
        picture = np.asarray(Image.fromarray(moment.frame).resize((size, size), Image.Resampling.BILINEAR))
        moments.append(replace(moment, frame=picture))
        if moment.done or len(moments) == max_steps:
            break
    return Recording(
        frames=np.stack([m.frame for m in moments]),
        obs=np.stack([m.obs for m in moments]),
        action=np.array([m.view.action for m in moments]),
        reward=np.array([m.reward for m in moments], np.float32),
        value=np.array([m.view.values[-1] for m in moments], np.float32),
        probabilities=np.stack([m.view.probabilities for m in moments]),
        done=np.array([m.done for m in moments]),
        level_seed=moments[0].view.level_seed,
    )


def moments_of(
    policy: nn.Module, config: PPOConfig, shot: Shot, *, seed: int = 0, greedy: bool = False
) -> Iterator[Moment]:
    """Play one game for ever, a step each time; close the iterator (or drop it) to end the game."""
    split, level = shot
    env = make_env(
        config,
        split,
        num_envs=1,
        seed=derive_seed(config.seed, "film", split, seed),
        levels=None if level is None else (level, 1),
        render=True,
    )
    device = next(policy.parameters()).device
    generator = torch.Generator(device).manual_seed(derive_seed(config.seed, "film actions", split, seed))
    try:
        obs, info = env.reset()
        state = policy.initial_state(1)
        reset = torch.ones(1, dtype=torch.bool, device=device)
        step, score, values = 0, 0.0, []
        while True:
            with torch.no_grad():
                logits, value, state = policy(to_device(obs, device), state, reset)
                probabilities = logits[0].float().softmax(-1)
                action = probabilities.argmax() if greedy else probabilities.multinomial(1, generator=generator)[0]
            values.append(float(value))
            view = View(split, int(info["level_seed"][0]), step, score, tuple(values), probabilities.cpu().numpy(),
                        int(action))  # fmt: skip
            frame, seen = env.render()[0].copy(), obs[0].copy()
            obs, rewards, terminated, truncated, info = env.step(np.array([int(action)]))
            done = bool(terminated[0] or truncated[0])
            yield Moment(frame, seen, view, float(rewards[0]), done)
            step, score = step + 1, score + float(rewards[0])
            reset = torch.full_like(reset, done)
            if done:
                step, score, values = 0, 0.0, []
    finally:
        env.close()


def _sheets(
    columns: Sequence[Sequence[Iterator[Moment]]],
    headers: Sequence[tuple[str, str]],
    labels: Sequence[str],
    frames: int,
    once: bool,
) -> Iterator[NDArray[np.uint8]]:
    """The film's pictures, one a game step: columns of games under their headers (split, text)."""
    games = [[_Game(moments, once) for moments in column] for column in columns]
    everyone = [game for column in games for game in column]
    try:
        for _ in range(frames):
            yield draw_sheet([[game.picture(labels) for game in column] for column in games], headers)
            if once and all(game.standing == 0 and game.over for game in everyone):
                break
    finally:
        for game in everyone:
            game.moments.close()


class _Game:
    """One game of a film: its next picture, with a second's stop at every episode's end."""

    def __init__(self, moments: Iterator[Moment], once: bool) -> None:
        self.moments = moments
        self.once = once
        self.over = False  # the last picture's episode has ended
        self.standing = 0  # pictures for which it stands still yet
        self.last: Moment | None = None

    def picture(self, labels: Sequence[str]) -> NDArray[np.uint8]:
        """[512, 736, 3]"""
        if self.over and (self.standing or self.once):
            self.standing = max(0, self.standing - 1)
            view = replace(self.last.view, score=self.last.view.score + self.last.reward, over=True)  # type: ignore
            return draw_tile(self.last.frame, view, labels)  # type: ignore[union-attr]
        self.last = next(self.moments)
        self.over, self.standing = self.last.done, FPS if self.last.done else 0
        return draw_tile(self.last.frame, self.last.view, labels)
