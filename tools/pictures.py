"""The README's pictures: one figure of each notebook, and a GIF of the agent. `make pictures` makes them.

- A notebook's picture is the figure that its cell tagged "picture" drew in the committed run.
- The GIF shows a committed policy on a training level beside an unseen one, from the start of an episode: in each split
  the first that lasts long enough.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
from pathlib import Path

import nbformat
import numpy as np
from PIL import Image, ImageDraw

import notebooks
from ppo_lib.checkpoint import load_policy
from ppo_lib.drawing import SPLIT_COLOR, SPLIT_NAME
from ppo_lib.panel import font
from ppo_lib.video import FPS, record_episode

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks" / "pictures"
WIDTH = 640  # pixels, of a notebook's picture
GIF_BYTES = 2_000_000
GAME, HEADER, GAP = 320, 28, 6  # pixels, in the GIF before it is made small enough
EVERY = 2  # steps of the game a frame of the GIF


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, or 1 if a notebook has no picture."""
    parser = argparse.ArgumentParser(description="Make the README's pictures.")
    parser.add_argument("--run", default="paper-1m", help="whose policy the GIF shows")
    parser.add_argument("--seconds", type=float, default=8, help="length of the GIF")
    options = parser.parse_args(arguments)
    FOLDER.mkdir(exist_ok=True)
    for path in notebooks.notebooks():
        data = picture(path)
        if data is None:
            print(f"{path.name} has no cell tagged 'picture' that drew a figure.", file=sys.stderr)
            return 1
        (FOLDER / f"{path.name[:2]}.png").write_bytes(data)
    target = ROOT / "videos" / f"{options.run}.gif"
    target.write_bytes(small_gif(scenes(ROOT / "results" / options.run, round(options.seconds * FPS))))
    print(f"{FOLDER}: {len(notebooks.notebooks())} pictures; {target}: {target.stat().st_size / 1e6:.2f} MB")
    return 0


def picture(path: Path) -> bytes | None:
    """The figure of the cell tagged "picture" as PNG, WIDTH pixels wide; None if there is none."""
    for cell in nbformat.read(path, as_version=4).cells:
        if "picture" in cell.metadata.get("tags", ()):
            for output in cell.get("outputs", ()):
                if "image/png" in output.get("data", {}):
                    return _smaller(base64.b64decode(output["data"]["image/png"]))
    return None


def scenes(run: Path, steps: int) -> list[Image.Image]:
    """Frames of a run's policy, on a training level at the left and on an unseen one at the right."""
    policy, config, _ = load_policy(run)
    columns = []
    for split in SPLIT_COLOR:
        plays = (record_episode(policy, config, split=split, seed=s, max_steps=steps, size=GAME) for s in range(100))
        play = next(play for play in plays if len(play.reward) == steps)
        score = np.cumsum(play.reward) - play.reward  # before each step, as the picture is
        columns.append([_scene(play.frames[i], split, score[i]) for i in range(0, steps, EVERY)])
    return [_beside(*pair) for pair in zip(*columns, strict=True)]


def small_gif(frames: list[Image.Image]) -> bytes:
    """The frames as a GIF that repeats, as large as GIF_BYTES allow."""
    while len(data := gif(frames)) >= GIF_BYTES:
        size = [side * 15 // 16 for side in frames[0].size]
        frames = [frame.resize(size, Image.Resampling.LANCZOS) for frame in frames]
    return data


def gif(frames: list[Image.Image]) -> bytes:
    """The frames as a GIF of 64 colours at the game's own speed."""
    palette = frames[len(frames) // 2].quantize(64)
    reduced = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    buffer = io.BytesIO()
    reduced[0].save(buffer, "GIF", save_all=True, append_images=reduced[1:], duration=1000 * EVERY // FPS, loop=0)
    return buffer.getvalue()


def _scene(frame: np.ndarray, split: str, score: float) -> Image.Image:
    """The game's picture under a bar with the split's colour and name, and the score so far."""
    image = Image.new("RGB", (GAME, HEADER + GAME), SPLIT_COLOR[split])
    image.paste(Image.fromarray(frame), (0, HEADER))
    draw, bold = ImageDraw.Draw(image), font(16, bold=True)
    draw.text((8, HEADER // 2), SPLIT_NAME[split], font=bold, fill="white", anchor="lm")
    draw.text((GAME - 8, HEADER // 2), f"score {score:g}", font=bold, fill="white", anchor="rm")
    return image


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    image = Image.new("RGB", (2 * GAME + GAP, left.height), "white")
    image.paste(left, (0, 0))
    image.paste(right, (GAME + GAP, 0))
    return image


def _smaller(png: bytes) -> bytes:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image = image.resize((WIDTH, round(WIDTH * image.height / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.quantize(128, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
