"""The README's images: one figure from each notebook, and an animation of an agent. `make pictures` makes them.

- A notebook's image is the figure that its cell tagged "picture" drew in the committed run.
- The animation is the video of a committed policy, on a training level beside an unseen one, as an animated WebP, which
  GitHub shows without a player and which is much smaller than a GIF.
"""

from __future__ import annotations

import base64
import io
import sys
import tempfile
from pathlib import Path

import imageio.v3 as iio
import nbformat
from badges import ROOT
from PIL import Image

import notebooks
from ppo_lib.checkpoint import load_policy
from ppo_lib.plots import light_png
from ppo_lib.video import FPS, record_video

FOLDER = ROOT / "notebooks" / "pictures"
WIDTH = 640  # pixels, of a notebook's image
RUN = ROOT / "results" / "levels" / "levels10-seed0"  # whose policy the animation shows
SECONDS = 10  # its length
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
    animate(RUN, target)
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


def animate(run: Path, target: Path) -> None:
    """Record a run's policy and write the video at half its size as an animated WebP."""
    policy, config, _ = load_policy(run)
    with tempfile.TemporaryDirectory() as folder:
        video = record_video(policy, config, f"{folder}/video.mp4", levels=2, max_seconds=SECONDS, max_bytes=10**8)
        first, *rest = (Image.fromarray(frame).reduce(2) for frame in iio.imread(video, plugin="FFMPEG")[::EVERY])
    first.save(target, save_all=True, append_images=rest, duration=1000 * EVERY // FPS, quality=45)


if __name__ == "__main__":
    sys.exit(main())
