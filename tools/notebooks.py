"""Run the notebooks from top to bottom. `make notebooks` does it in place; the tests do it in a copy.

- A notebook is written only if every cell ran: one that fails leaves the file unchanged, and its cell is named.
- What is written has outputs and execution counts, but no timestamps and no widget state; figures have 256 colours.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import sys
import time
from pathlib import Path

import nbformat
from badges import ROOT, notebooks
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

CELL_LIMIT = 1800  # seconds


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, or 1 if a notebook failed."""
    parser = argparse.ArgumentParser(description="Run the notebooks from top to bottom.")
    parser.add_argument("names", nargs="*", help="beginnings of file names, such as 03 (default: all)")
    parser.add_argument("--smoke", action="store_true", help="shorten every run (PPO_SMOKE=1)")
    parser.add_argument("--output", type=Path, help="folder to write to (default: in place; needed for --smoke)")
    parser.add_argument("--workdir", type=Path, help="folder that the kernels start in (default: the notebook's)")
    parser.add_argument("--kernel", default="python3", help="name of the Jupyter kernel")
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder that has notebooks/ (default: the project)")
    options = parser.parse_args(arguments)
    if options.smoke and not options.output:
        parser.error("--smoke needs --output: outputs of a shortened run are not for committing")
    failed = False
    for path in notebooks(options.root):
        if path.name.startswith(tuple(options.names) or ""):
            start = time.perf_counter()
            target = (options.output or path.parent) / path.name
            problem = execute(path, target, options.workdir, options.kernel, options.smoke)
            failed |= bool(problem)
            print(f"{path.name}: {problem or 'ran'} ({time.perf_counter() - start:.0f} s)", flush=True)
    return int(failed)


def execute(path: Path, target: Path, workdir: Path | None = None, kernel: str = "python3", smoke: bool = False) -> str:
    """Run a notebook and write it to `target`; returns "" or what went wrong."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    client = NotebookClient(
        notebook, timeout=CELL_LIMIT, kernel_name=kernel, resources={"metadata": {"path": str(workdir or path.parent)}},
        record_timing=False, store_widget_state=False, coalesce_streams=True,
    )  # fmt: skip
    try:
        client.execute(env={**os.environ, "PPO_SMOKE": str(int(smoke))})
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        return f"failed: {error}"
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    if not smoke:
        lighten(notebook)
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)
    return ""


def lighten(notebook: nbformat.NotebookNode) -> None:
    """Store a notebook's figures with 256 colours each: a third of the size, with no visible difference."""
    from PIL import Image

    from ppo_lib.plots import light_png  # not above: colab_test runs this file where the project isn't installed

    for data in (output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())):
        if "image/png" in data:
            image = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
            data["image/png"] = base64.b64encode(light_png(image)).decode()


if __name__ == "__main__":
    sys.exit(main())
