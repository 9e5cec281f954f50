"""Frames to an H.264 mp4 that every browser plays, and from there to an HTML tag.

- ffmpeg comes with imageio-ffmpeg: nothing to install on the system.
- Frames are streamed to a nearly lossless temporary file; the final encoding repeats from it, a little coarser each
  time, until the film fits its size limit.
"""

from __future__ import annotations

import base64
import math
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from ppo_lib.config import UserError

_LAST_CRF = 51  # the coarsest that H.264 knows


def write_video(
    frames: Iterable[NDArray[np.uint8]], path: str | Path, *, fps: float = 15, max_bytes: int = 1_000_000, crf: int = 26
) -> Path:
    """Encode frames [H, W, 3] (uint8, H and W even, all alike) as H.264 mp4 of at most max_bytes; returns its path.

    crf: the quality to start from (lower is better). The file appears only when it is complete. Raises UserError for
    no frames, odd sizes, a path that can't be written, and a film that doesn't fit at the lowest quality.
    """
    path = Path(path)
    if path.suffix != ".mp4":
        raise UserError(f"A film is an .mp4 file: write to {path.with_suffix('.mp4')} instead of {path}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".film") as folder:
            master, draft = Path(folder, "master.mkv"), Path(folder, "draft.mp4")
            _stream(frames, master, fps)
            while True:
                # slower presets took 2 to 3 times the time for these pictures and saved nothing
                _run("-i", master, "-c:v", "libx264", "-preset", "veryfast", "-crf", str(crf),
                     "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-an", draft)  # fmt: skip
                size = draft.stat().st_size
                if size <= max_bytes:
                    break
                if crf == _LAST_CRF:
                    raise UserError(f"The film needs {size:,} bytes, more than {max_bytes:,}: make it shorter.")
                # six steps of crf halve the size, roughly
                crf = min(_LAST_CRF, crf + max(1, math.ceil(6 * math.log2(size / max_bytes))))
            os.replace(draft, path)
    except OSError as error:
        raise UserError(f"The film {path} can't be written ({error.strerror}): choose another folder.") from None
    return path


def film_facts(film: str | Path) -> dict[str, object]:
    """codec, pix_fmt, size (W, H), fps and duration (s) of a film, as ffmpeg reads them."""
    # without an output file ffmpeg describes its input and leaves with an error
    done = subprocess.run(
        _command("-i", _existing(film), loglevel="info"), stdin=subprocess.DEVNULL, capture_output=True
    )
    text = done.stderr.decode(errors="replace")
    stream = re.search(r"Video: (\w+).*?, (yuv\w+|rgb\w+|bgr\w+|gbr\w+|pal8).*?, (\d+)x(\d+).*?, ([\d.]+) fps", text)
    length = re.search(r"Duration: (\d+):(\d+):([\d.]+)", text)
    if stream is None or length is None:
        raise UserError(f"{film} is no film that ffmpeg can read: make it again with `python -m ppo_lib video RUN`.")
    codec, pix_fmt, width, height, fps = stream.groups()
    hours, minutes, seconds = map(float, length.groups())
    return {
        "codec": codec,
        "pix_fmt": pix_fmt,
        "size": (int(width), int(height)),
        "fps": float(fps),
        "duration": 3600 * hours + 60 * minutes + seconds,
    }


def video_tag(film: str | Path) -> str:
    """An HTML <video> that holds the whole film and a still picture from 40% of its length: it needs no other file.

    Where a page shows no video, as GitHub's view of notebooks, the still picture stands in its place.
    """
    film = _existing(film)
    facts = film_facts(film)
    width, height = facts["size"]
    with tempfile.TemporaryDirectory() as folder:
        still = Path(folder, "still.webp")
        _run("-ss", f"{0.4 * facts['duration']:.3f}", "-i", film, "-frames:v", "1", "-vf", "scale='min(960,iw)':-2",
             "-quality", "60", still)  # fmt: skip
        picture = f"data:image/webp;base64,{base64.b64encode(still.read_bytes()).decode()}"
    data = base64.b64encode(film.read_bytes()).decode()
    return (
        f'<video controls loop muted playsinline preload="metadata" width="{width}" height="{height}" '
        f'style="width:100%;max-width:{width}px;height:auto" poster="{picture}">'
        f'<source src="data:video/mp4;base64,{data}" type="video/mp4">'
        f'<img src="{picture}" alt="A frame of the film {film.name}" style="width:100%"></video>'
    )


def show_film(film: str | Path) -> object:
    """The film as an output of a notebook cell (Colab, JupyterLab, Notebook, VS Code), stored inside the notebook."""
    from IPython.display import HTML  # only notebooks have it

    return HTML(video_tag(film))


def _existing(film: str | Path) -> Path:
    film = Path(film)
    if not film.is_file():
        raise UserError(f"There is no film {film}: make it with `python -m ppo_lib video RUN`.")
    return film


def _stream(frames: Iterable[NDArray[np.uint8]], path: Path, fps: float) -> None:
    """Pipe frames into ffmpeg."""
    process = None
    with tempfile.TemporaryFile() as log:
        try:
            for frame in frames:
                height, width, _ = frame.shape
                if process is None:
                    if height % 2 or width % 2:
                        raise UserError(f"H.264 needs an even width and height, not {width} x {height}.")
                    source = (
                        "-f",
                        "rawvideo",
                        "-pix_fmt",
                        "rgb24",
                        "-s",
                        f"{width}x{height}",
                        "-r",
                        f"{fps}",
                        "-i",
                        "-",
                    )
                    master = ("-c:v", "libx264", "-preset", "ultrafast", "-crf", "8", "-pix_fmt", "yuv420p", path)
                    process = subprocess.Popen(_command(*source, *master), stdin=subprocess.PIPE, stderr=log)
                process.stdin.write(np.ascontiguousarray(frame).data)  # type: ignore[union-attr]
        except BrokenPipeError:
            pass  # ffmpeg gave up: its log says why
        except BaseException:
            if process is not None:
                process.kill()
                process.communicate()
            raise
        if process is None:
            raise UserError("A film needs at least one frame.")
        process.communicate()
        log.seek(0)
        _check(process.returncode, log.read())


def _command(*arguments: str | Path, loglevel: str = "error") -> list[str]:
    return [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-y", "-loglevel", loglevel, *map(str, arguments)]


def _run(*arguments: str | Path) -> None:
    """Run ffmpeg on files."""
    done = subprocess.run(_command(*arguments), stdin=subprocess.DEVNULL, capture_output=True)
    _check(done.returncode, done.stderr)


def _check(returncode: int, log: bytes) -> None:
    if returncode:
        reason = log.decode(errors="replace").strip().splitlines() or [f"exit code {returncode}"]
        if any("No space left" in line for line in reason):
            raise UserError("The disk is full: free some space and make the film again.")
        raise UserError(f"ffmpeg could not make the film: {reason[-1]}")
