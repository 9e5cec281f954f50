"""The README's pictures: one figure of each notebook, and a moving one of an agent. `make pictures` makes them.

- A notebook's picture is the figure that its cell tagged "picture" drew in the committed run.
- The moving picture shows a committed policy on training levels beside unseen ones, episode after episode. It is an
  animated WebP, which takes far less room than a GIF.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
from itertools import islice
from pathlib import Path

import nbformat
import numpy as np
from PIL import Image, ImageDraw

import notebooks
from ppo_lib.checkpoint import load_policy
from ppo_lib.drawing import SPLIT_COLOR, SPLIT_NAME, light_png
from ppo_lib.video import FPS, moments_of
from ppo_lib.video_panel import font

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks" / "pictures"
WIDTH = 640  # pixels, of a notebook's picture
GAME, HEADER, GAP = 320, 28, 6  # pixels
EVERY = 2  # steps of the game a frame of the moving picture


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, or 1 if a notebook has no picture."""
    parser = argparse.ArgumentParser(description="Make the README's pictures.")
    parser.add_argument("--run", default="levels/levels10-seed0", help="whose policy the moving picture shows")
    parser.add_argument("--seconds", type=float, default=10, help="its length")
    options = parser.parse_args(arguments)
    FOLDER.mkdir(exist_ok=True)
    for path in notebooks.notebooks():
        data = picture(path)
        if data is None:
            print(f"{path.name} has no cell tagged 'picture' that drew a figure.", file=sys.stderr)
            return 1
        (FOLDER / f"{path.name[:2]}.png").write_bytes(data)
    run = ROOT / "results" / options.run
    target = ROOT / "videos" / f"{run.name}.webp"
    first, *rest = scenes(run, round(options.seconds * FPS))
    first.save(target, save_all=True, append_images=rest, duration=1000 * EVERY // FPS, quality=60)
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
    """Frames of a run's policy, on training levels at the left and on unseen ones at the right."""
    policy, config, _ = load_policy(run)
    columns = []
    for split in SPLIT_COLOR:
        moments = islice(moments_of(policy, config, (split, None)), 0, steps, EVERY)
        columns.append([_scene(moment.frame, split, moment.view.score) for moment in moments])
    gap = np.full((HEADER + GAME, GAP, 3), 255, np.uint8)
    pairs = zip(*columns, strict=True)
    return [Image.fromarray(np.concatenate([left, gap, right], axis=1)) for left, right in pairs]


def _scene(frame: np.ndarray, split: str, score: float) -> np.ndarray:
    """The game's picture under a bar with the split's colour and name, and the score so far."""
    image = Image.new("RGB", (GAME, HEADER + GAME), SPLIT_COLOR[split])
    image.paste(Image.fromarray(frame).resize((GAME, GAME), Image.Resampling.LANCZOS), (0, HEADER))
    draw, bold = ImageDraw.Draw(image), font(16, bold=True)
    draw.text((8, HEADER // 2), SPLIT_NAME[split], font=bold, fill="white", anchor="lm")
    draw.text((GAME - 8, HEADER // 2), f"score {score:g}", font=bold, fill="white", anchor="rm")
    return np.asarray(image)


def _smaller(png: bytes) -> bytes:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    return light_png(image.resize((WIDTH, round(WIDTH * image.height / image.width)), Image.Resampling.LANCZOS))


if __name__ == "__main__":
    sys.exit(main())
