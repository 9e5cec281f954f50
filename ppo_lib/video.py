"""Videos of a policy: training levels beside unseen levels, with its value estimate and action probabilities.

- A panel shows the value and the probabilities with which the highlighted action was chosen in the image beside it.
- Every game runs in an environment of its own, so that an ended episode can stand still while the others continue.
- Videos are H.264 mp4, which every browser plays, written by imageio with the ffmpeg of imageio-ffmpeg.
"""

from __future__ import annotations

import base64
import io
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import lru_cache
from itertools import chain, islice, repeat, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import imageio.v3 as iio
import imageio_ffmpeg
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch.nn import Module

from ppo_lib.config import PPOConfig, UserError, derive_seed
from ppo_lib.envs import make_env
from ppo_lib.plots import SPLIT_COLOR, SPLIT_NAME
from ppo_lib.rollout import PlayedStep, Player
from ppo_lib.runs import SPLITS

FPS = 15  # game steps per second, Procgen's own speed
# The keys behind Procgen's 15 actions, in their order (the game's own combination table).
_MOVES = ("LEFT+DOWN", "LEFT", "LEFT+UP", "DOWN", "noop", "UP", "RIGHT+DOWN", "RIGHT", "RIGHT+UP")
ACTION_NAMES = (*_MOVES, *"DAWSQE")
# In StarPilot the last six fire without moving: A backwards, the five others forwards, all alike.
_STARPILOT_NAMES = (*_MOVES, "D fire", "A fire back", "W fire", "S fire", "Q fire", "E fire")
_GAME, _PANEL, _HEADER, _GAP = 512, 224, 40, 8  # pixels: a game's side, a panel's width, a header's height, between
_LEFT, _RIGHT, _BAR = _GAME + 12, _GAME + 212, _GAME + 106  # of a panel's content, and of its bars
_BRIGHT = {"train": "#56B4E9", "unseen": "#E69F00"}  # lighter shades of the splits' colours, for a dark panel
_TEXT, _DIM = "#f2f2f2", "#9aa3ad"


class Moment(NamedTuple):
    """One step of a game."""

    frame: np.ndarray  # uint8 [512, 512, 3], before the step
    played: PlayedStep  # of one environment
    probabilities: np.ndarray  # float32 [A], of the actions
    score: float  # raw return before the step
    values: list[float]  # the critic's estimates from the episode's start to this step


class Recording(NamedTuple):
    """One episode of T steps; cut off by max_steps if the last entry of done is False."""

    frames: np.ndarray  # uint8 [T, size, size, 3]
    action: np.ndarray  # int64 [T]
    reward: np.ndarray  # float32 [T], raw
    value: np.ndarray  # float32 [T], the critic's estimates (in normalised reward)
    probabilities: np.ndarray  # float32 [T, A], of the actions
    done: np.ndarray  # bool [T]
    level_seed: int


def record_video(
    policy: Module, config: PPOConfig, path: str | Path, *,
    levels: int = 4, shots: Sequence[tuple[str, int | None]] = (), seed: int = 0, **end: Any
) -> Path:  # fmt: skip
    """Record a policy on `levels` games at once, half on training levels (left), half on unseen levels (right), as mp4;
    returns its path. Raises UserError for levels that aren't part of their split.

    policy: policy(obs, state, episode_start) -> logits, value, state (an ActorCritic, or any module of that form)
    shots: (split, level's seed) of each game instead: ("train", None) draws levels, ("unseen", 4711) plays that level
    end: max_seconds (20), max_bytes (1,000,000), once (every game plays one episode; the video ends with the longest)
    """
    if not shots and (levels < 2 or levels % 2):
        raise UserError(f"levels must be even, half for training and half for unseen levels, not {levels}.")
    headers = (f"Training levels ({config.num_levels or 'unlimited'})", "Unseen levels: never in training")
    games = {split: [] for split in SPLITS}
    for index, (split, level) in enumerate(shots or [(split, None) for split in SPLITS for _ in range(levels // 2)]):
        if split not in games:
            raise UserError(f"A shot's split is 'train' or 'unseen', not {split!r}.")
        games[split].append(moments_of(policy, config, split, level, seed=derive_seed(seed, index)))
    columns = [(split, header, games[split]) for split, header in zip(SPLITS, headers, strict=True) if games[split]]
    return _write_games(columns, config.env_name, path, **end)


def record_comparison(
    players: Sequence[tuple[str, Module, PPOConfig]], path: str | Path, *, rows: int = 2, seed: int = 0, **end: Any
) -> Path:
    """Record several policies on the same levels, which none of them trained on: a column per policy, a row per level.
    players: (header, policy, config) of each, all of the same game; the rest as for record_video."""
    configs = [config for _, _, config in players]
    if len({(config.env_name, config.distribution_mode) for config in configs}) > 1:
        raise UserError("These agents play different games: choose runs with the same env_name and distribution_mode.")
    first = max(config.unseen_levels[0] for config in configs)  # every config's unseen levels reach up to the last seed
    count = min(config.unseen_levels[1] for config in configs)
    levels = np.random.default_rng(derive_seed(seed, "video levels")).integers(first, first + count, rows).tolist()
    games = [[moments_of(policy, config, "unseen", n, seed=seed) for n in levels] for _, policy, config in players]
    columns = [("unseen", header, column) for (header, _, _), column in zip(players, games, strict=True)]
    return _write_games(columns, configs[0].env_name, path, **end)


def record_episode(
    policy: Module, config: PPOConfig, *, max_steps: int = 1000, size: int = 256, split: str = "train", **game: Any
) -> Recording:
    """Play one episode and keep everything, with frames scaled to size x size (256 pixels: 0.2 MB per step).
    game: level, seed and greedy, see moments_of."""
    rows = []
    with closing(moments_of(policy, config, split, **game)) as moments:
        for frame, played, probabilities, _, values in islice(moments, max_steps):
            image = np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR))
            value = np.float32(values[-1])
            rows.append((image, played.action[0], played.reward[0], value, probabilities, played.done[0]))
            if played.done[0]:
                break
    return Recording(*map(np.stack, zip(*rows, strict=True)), level_seed=int(played.level_seed[0]))


def moments_of(
    policy: Module, config: PPOConfig, split: str, level: int | None = None, *, seed: int = 0, greedy: bool = False
) -> Iterator[Moment]:
    """Play one game forever, a step each time; close the iterator to end it.
    level: its seed (default: drawn from the split for each episode); seed: of these levels and of the actions."""
    levels, env_seed = None if level is None else (level, 1), derive_seed(config.seed, "video", split, seed)
    with closing(make_env(config, split, num_envs=1, seed=env_seed, levels=levels, render=True)) as env:
        player = Player(policy, env, seed=derive_seed(env_seed, "actions"), greedy=greedy)
        score, values = 0.0, []
        while True:
            frame, played = env.render()[0].copy(), player.step()
            values.append(float(played.value[0]))
            yield Moment(frame, played, played.logits[0].float().softmax(-1).cpu().numpy(), score, values)
            score, values = (0.0, []) if played.done[0] else (score + float(played.reward[0]), values)


def _write_games(
    columns: Sequence[tuple[str, str, Sequence[Iterator[Moment]]]], env_name: str, path: str | Path,
    once: bool = False, max_seconds: float = 20, **limit: int
) -> Path:  # fmt: skip
    """The video of columns (split, header, games), each with as many games."""

    def tiles(moments: Iterator[Moment], split: str) -> Iterator[Image.Image]:
        """A game's tiles. An ended episode stands still for a second; then the next begins, or (once) the tiles end."""
        for moment in moments:
            yield draw_tile(moment, split, env_name)
            if moment.played.done[0]:
                yield from repeat(draw_tile(moment, split, env_name, over=True), FPS)
                if once:
                    return

    def sheets() -> Iterator[np.ndarray]:
        width, height, rows = _GAME + _PANEL + _GAP, _GAME + _GAP, max(len(games) for *_, games in columns)
        sheet = Image.new("RGB", (len(columns) * width - _GAP, _HEADER + rows * height - _GAP))
        draw, playing = ImageDraw.Draw(sheet), {}
        for x, (split, header, games) in zip(range(0, sheet.width, width), columns, strict=True):
            draw.rectangle((x, 0, x + _GAME + _PANEL - 1, _HEADER - 1), fill=SPLIT_COLOR[split])
            draw.text((x + 14, 20), header, "white", font(20, bold=True), "lm")
            playing |= {(x, _HEADER + y * height): tiles(moments, split) for y, moments in enumerate(games)}
        for shown in zip_longest(*playing.values()):
            for place, tile in zip(playing, shown, strict=True):
                if tile is not None:  # a game that is over keeps its last tile
                    sheet.paste(tile, place)
            yield np.asarray(sheet)

    return write_video(islice(sheets(), max(0, int(max_seconds * FPS))), path, **limit)


def action_labels(env_name: str) -> tuple[str, ...]:
    """A name for each action: the keys, and what they do where that is known (StarPilot)."""
    return _STARPILOT_NAMES if env_name == "starpilot" else ACTION_NAMES


@lru_cache(maxsize=16)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, `size` pixels high."""
    name = f"DejaVuSans{'-Bold' if bold else ''}.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


def draw_tile(moment: Moment, split: str, env_name: str, over: bool = False) -> Image.Image:
    """A game's frame and its panel, 736 x 512 pixels; over: a dark frame with the ended episode's return."""
    values, played, accent = moment.values, moment.played, _BRIGHT[split]
    score = moment.score + float(played.reward[0]) * over
    tile = Image.new("RGB", (_GAME + _PANEL, _GAME), "#15181d")
    tile.paste(Image.fromarray(moment.frame // 3 if over else moment.frame))
    draw = ImageDraw.Draw(tile)
    draw.rectangle((_GAME, 0, _GAME + 5, _GAME), fill=SPLIT_COLOR[split])
    draw.text((_LEFT, 10), SPLIT_NAME[split].removesuffix("s"), accent, font(16, bold=True))
    draw.text((_LEFT, 34), f"level {played.level_seed[0]}", _TEXT, font(15))
    draw.text((_LEFT, 64), f"{score:g}", _TEXT, font(34, bold=True))
    draw.text((_RIGHT, 64), "return", _DIM, font(13), "ra")
    draw.text((_RIGHT, 84), f"step {len(values) - 1}", _DIM, font(15), "ra")
    draw.text((_LEFT, 120), "value estimate", _DIM, font(13))
    draw.text((_RIGHT, 118), f"{values[-1]:.2f}", _TEXT, font(15, bold=True), "ra")
    draw.rectangle((_LEFT, 140, _RIGHT, 190), outline="#2b3138")
    low, scale = min(values), 46 / (max(values) - min(values) or 1)
    draw.line([(_LEFT + x, 188 - (v - low) * scale) for x, v in enumerate(values[-200:])], fill=accent, width=2)
    draw.text((_LEFT, 198), "action probabilities", _DIM, font(13))
    for index, (label, probability) in enumerate(zip(action_labels(env_name), moment.probabilities, strict=True)):
        taken, y = index == played.action[0], 220 + 19 * index
        draw.text((_LEFT, y - 2), label, "white" if taken else _DIM, font(12))
        draw.rectangle((_BAR, y, _BAR + 106, y + 12), fill="#20252b")
        length = max(1, round(106 * float(probability)))
        draw.rectangle((_BAR, y, _BAR + length, y + 12), fill=accent if taken else "#66717d")
    if over:
        draw.text((_GAME // 2, _GAME // 2 - 26), "episode over", _TEXT, font(26), "mm")
        draw.text((_GAME // 2, _GAME // 2 + 20), f"return {score:g}", accent, font(42, bold=True), "mm")
    return tile


def write_video(frames: Iterable[np.ndarray], path: str | Path, *, max_bytes: int = 1_000_000) -> Path:
    """Encode frames [H, W, 3] (uint8, at least one) as H.264 mp4 of at most max_bytes; returns its path. H.264 needs
    even sides: odd ones are scaled up by a pixel. The file appears only when it is complete.

    Raises ValueError for frames of several sizes, UserError for a file that can't be written or gets too large.
    """
    path, crf = Path(path), 26  # the quality to start from; higher is coarser
    if path.suffix != ".mp4":
        raise UserError(f"A video is an .mp4 file: write to {path.with_suffix('.mp4')} instead of {path}.")
    if (first := next(frames := iter(frames), None)) is None:
        raise UserError("A video needs at least one frame.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".video") as folder:
            master, draft = Path(folder, "master.mkv"), Path(folder, "draft.mp4")
            _encode(chain([first], frames), master, crf=8, preset="ultrafast")  # nearly lossless
            while (size := _encode(iio.imiter(master, plugin="FFMPEG"), draft, crf, "veryfast")) > max_bytes:
                if crf == 51:  # the coarsest that H.264 has
                    raise UserError(f"The video needs {size:,} bytes, more than {max_bytes:,}: make it shorter.")
                crf = min(51, crf + math.ceil(6 * math.log2(size / max_bytes)))  # six steps halve the size, roughly
            draft.replace(path)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no ffmpeg
        raise UserError(f"{path} could not be written: {error}.") from None
    return path


def _encode(frames: Iterable[np.ndarray], path: Path, crf: int, preset: str) -> int:
    """Encode frames by x264; returns the size in bytes. Raises UserError or OSError with the cause if ffmpeg stops."""
    flags = ["-preset", preset, "-crf", str(crf), "-movflags", "+faststart"]  # plays before all of it is loaded
    options = dict(codec="libx264", quality=None, output_params=flags, macro_block_size=2, ffmpeg_log_level="quiet")
    try:
        iio.imwrite(path, frames, plugin="FFMPEG", is_batch=True, fps=FPS, **options)
        if iio.immeta(path, plugin="FFMPEG")["duration"] > 0:
            return path.stat().st_size
    except OSError:  # imageio knows that ffmpeg stopped, not why
        pass
    Path(path.parent, "space").write_bytes(bytes(2**20))  # meets what ffmpeg met, such as a full disk
    found = imageio_ffmpeg.get_ffmpeg_exe()
    raise UserError(f"{found} can't write H.264: run `pip install -U imageio-ffmpeg`, and unset IMAGEIO_FFMPEG_EXE.")


def video_tag(video: str | Path) -> str:
    """An HTML <video> that holds the whole video and a still image from 40% of its length, which is shown instead where
    a page shows no video, as in GitHub's view of notebooks. Raises UserError if ffmpeg can't read the video."""
    try:
        facts = iio.immeta(video, plugin="FFMPEG")
        frame = iio.imread(video, index=int(0.4 * facts["duration"] * facts["fps"]), plugin="FFMPEG")
    except (OSError, IndexError, ValueError, RuntimeError):
        raise UserError(f"{video} can't be read as a video: make it with `python -m ppo_lib video RUN`.") from None
    image, still = Image.fromarray(frame), io.BytesIO()
    image.thumbnail((960, 10_000))
    image.save(still, "WEBP", quality=60)
    data, picture = (base64.b64encode(content).decode() for content in (Path(video).read_bytes(), still.getvalue()))
    width, height = facts["size"]
    return (
        f'<video controls loop muted playsinline preload="metadata" width="{width}" height="{height}" '
        f'style="width:100%;max-width:{width}px;height:auto" poster="data:image/webp;base64,{picture}">'
        f'<source src="data:video/mp4;base64,{data}" type="video/mp4"><img src="data:image/webp;base64,{picture}" '
        f'alt="A frame of the video {Path(video).name}" style="width:100%"></video>'
    )


def show_video(video: str | Path) -> object:
    """The video as an output of a notebook cell (Colab, JupyterLab, Notebook, VS Code), stored inside the notebook."""
    from IPython.display import HTML  # only notebooks have it

    return HTML(video_tag(video))
