"""The README's pictures: one figure of each notebook, and the film as a GIF. `make pictures` makes them.

- A notebook's picture is the figure that its cell tagged "picture" drew in the committed run.
- The GIF is cut from a film in videos/: fewer and smaller frames, with the colours that they need.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
from itertools import islice
from pathlib import Path

import imageio.v3 as imageio
import nbformat
from PIL import Image

import notebooks

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks" / "pictures"
WIDTH = 640  # pixels, of a notebook's picture
GIF_BYTES = 2_000_000


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, or 1 if a notebook has no picture."""
    parser = argparse.ArgumentParser(description="Make the README's pictures.")
    parser.add_argument("--film", type=Path, default=ROOT / "videos" / "paper-1m.mp4", help="what the GIF is cut from")
    parser.add_argument("--seconds", type=float, default=10, help="length of the GIF")
    options = parser.parse_args(arguments)
    FOLDER.mkdir(exist_ok=True)
    for path in notebooks.notebooks():
        data = picture(path)
        if data is None:
            print(f"{path.name} has no cell tagged 'picture' that drew a figure.", file=sys.stderr)
            return 1
        (FOLDER / f"{path.name[:2]}.png").write_bytes(data)
    target = options.film.with_suffix(".gif")
    target.write_bytes(gif(options.film, options.seconds))
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


def gif(film: Path, seconds: float, width: int = 640, fps: float = 7.5) -> bytes:
    """The first seconds of a film as GIF, as wide as GIF_BYTES allow."""
    step = round(imageio.immeta(film, plugin="FFMPEG")["fps"] / fps)
    frames = list(islice(imageio.imiter(film, plugin="FFMPEG"), 0, round(seconds * fps) * step, step))
    while True:
        data = _gif(frames, width, fps)
        if len(data) < GIF_BYTES:
            return data
        width = width * 7 // 8


def _gif(frames: list, width: int, fps: float) -> bytes:
    height = round(width * frames[0].shape[0] / frames[0].shape[1])
    small = [Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS) for frame in frames]
    palette = small[len(small) // 2].quantize(64)
    small = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in small]
    buffer = io.BytesIO()
    small[0].save(buffer, "GIF", save_all=True, append_images=small[1:], duration=round(1000 / fps), loop=0)
    return buffer.getvalue()


def _smaller(png: bytes) -> bytes:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image = image.resize((WIDTH, round(WIDTH * image.height / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.quantize(128, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
