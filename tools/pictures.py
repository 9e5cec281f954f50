"""The README's images: one figure from each notebook, and an animation of an agent. `make pictures` makes them.

- A notebook's image is the figure that its cell tagged "picture" drew in the committed run.
- The animation shows a committed policy on training levels beside unseen ones, episode after episode. It is an animated
  WebP, which is much smaller than a GIF.
"""

from __future__ import annotations

import base64
import io
import sys
from itertools import islice
from pathlib import Path

import nbformat
from badges import ROOT
from PIL import Image, ImageDraw

import notebooks
from ppo_lib.checkpoint import load_policy
from ppo_lib.plots import SPLIT_COLOR, SPLIT_NAME, light_png
from ppo_lib.video import FPS, font, moments_of

FOLDER = ROOT / "notebooks" / "pictures"
RUN = ROOT / "results" / "levels" / "levels10-seed0"  # whose policy the animation shows
STEPS = 10 * FPS  # its length
WIDTH = 640  # pixels, of a notebook's image
GAME, HEADER, GAP = 320, 28, 6  # pixels
EVERY = 2  # game steps per frame of the animation


def main() -> int:
    """Make all images; 0, or 1 if a notebook has none."""
    FOLDER.mkdir(exist_ok=True)
    for path in notebooks.notebooks():
        data = picture(path)
        if data is None:
            print(f"{path.name} has no cell tagged 'picture' that drew a figure.", file=sys.stderr)
            return 1
        (FOLDER / f"{path.name[:2]}.png").write_bytes(data)
    target = ROOT / "videos" / f"{RUN.name}.webp"
    first, *rest = scenes(RUN)
    first.save(target, save_all=True, append_images=rest, duration=1000 * EVERY // FPS, quality=60)
    print(f"Written: {FOLDER}, and {target} ({target.stat().st_size / 1e6:.2f} MB)")
    return 0


def picture(path: Path) -> bytes | None:
    """The figure of the cell tagged "picture" as PNG, WIDTH pixels wide; None if there is none."""
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", ()) if "picture" in cell.metadata.get("tags", ()) else ():
            if png := output.get("data", {}).get("image/png"):
                image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
                size = WIDTH, round(WIDTH * image.height / image.width)
                return light_png(image.resize(size, Image.Resampling.LANCZOS))
    return None


def scenes(run: Path) -> list[Image.Image]:
    """Frames of a run's policy, on training levels at the left and on unseen ones at the right."""
    policy, config, _ = load_policy(run)
    images = [Image.new("RGB", (2 * GAME + GAP, HEADER + GAME), "white") for _ in range(0, STEPS, EVERY)]
    for column, split in enumerate(SPLIT_COLOR):
        moments, left, bold = moments_of(policy, config, split), column * (GAME + GAP), font(16, bold=True)
        for image, moment in zip(images, islice(moments, 0, STEPS, EVERY), strict=True):
            draw = ImageDraw.Draw(image)
            draw.rectangle((left, 0, left + GAME - 1, HEADER), SPLIT_COLOR[split])
            draw.text((left + 8, HEADER // 2), SPLIT_NAME[split], "white", bold, "lm")
            draw.text((left + GAME - 8, HEADER // 2), f"score {moment.score:g}", "white", bold, "rm")
            frame = Image.fromarray(moment.frame).resize((GAME, GAME), Image.Resampling.LANCZOS)
            image.paste(frame, (left, HEADER))
    return images


if __name__ == "__main__":
    sys.exit(main())
