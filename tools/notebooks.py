"""Run the notebooks from top to bottom. `make notebooks` does it in place; the tests do it in a copy.

- A notebook is written only if every cell ran: one that fails leaves the file unchanged, and its cell is named.
- Progress of the exercises is kept in a file of the run alone, so that outputs never show what someone has solved here.
- What is written has outputs and execution counts, but no timestamps and no widget state; figures have 256 colours.
"""

from __future__ import annotations

import argparse
import base64
import copy
import io
import os
import re
import sys
import tempfile
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
    parser.add_argument("--solved", action="store_true", help="put the solutions of all exercises in")
    parser.add_argument("--again", action="store_true", help="run each cell twice, then all from the last to the first")
    parser.add_argument("--output", type=Path, help="folder to write to (default: in place)")
    parser.add_argument("--workdir", type=Path, help="folder that the kernels start in (default: the notebook's)")
    parser.add_argument("--kernel", default="python3", help="name of the Jupyter kernel")
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder that has notebooks/ (default: the project)")
    options = parser.parse_args(arguments)
    if (options.smoke or options.solved or options.again) and not options.output:
        parser.error("--smoke, --solved and --again need --output: what they write is not for committing")
    failed = False
    for path in notebooks(options.root):
        if path.name.startswith(tuple(options.names) or ""):
            start = time.perf_counter()
            target = (options.output or path.parent) / path.name
            notebook = solved(path) if options.solved else nbformat.read(path, as_version=4)
            if options.again:
                notebook.cells = again(notebook.cells)
            problem = execute(notebook, target, options.workdir or path.parent, options.kernel, options.smoke)
            failed |= bool(problem)
            print(f"{path.name}: {problem or 'ran'} ({time.perf_counter() - start:.0f} s)", flush=True)
    return int(failed)


def is_exercise(cell: nbformat.NotebookNode) -> bool:
    """Whether the student writes this cell."""
    return "exercise" in cell.metadata.get("tags", ())


def exercise_name(cell: nbformat.NotebookNode) -> str:
    """The name in the check that an exercise's cell ends with."""
    return cell.source.rstrip().splitlines()[-1].split(" = check(")[0]


def solution_of(cells: list[nbformat.NotebookNode], place: int) -> str:
    """The folded solution below the exercise at this place. Raises ValueError if there is none."""
    found = re.search(r"<summary>Solution</summary>.*?```python\n(.*?)\n```", cells[place + 1].source, re.DOTALL)
    if found is None:
        raise ValueError(f"The cell below the exercise '{exercise_name(cells[place])}' has no folded solution.")
    return found.group(1)


def solved(path: Path) -> nbformat.NotebookNode:
    """A notebook with the solution in each exercise's cell."""
    notebook = nbformat.read(path, as_version=4)
    for place, cell in enumerate(notebook.cells):
        if is_exercise(cell):
            cell.source = f"{solution_of(notebook.cells, place)}\n\n\n{cell.source.rstrip().splitlines()[-1]}"
    return notebook


def again(cells: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Each code cell twice in a row, then all once more from the last to the first."""
    code = [cell for cell in cells if cell.cell_type == "code"]
    copies = [copy.deepcopy(cell) for cell in [cell for one in code for cell in (one, one)] + code[::-1]]
    for number, cell in enumerate(copies):
        cell.id = f"again-{number}"
    return copies


def execute(
    notebook: nbformat.NotebookNode, target: Path, workdir: Path, kernel: str = "python3", smoke: bool = False
) -> str:
    """Run a notebook in `workdir` and write it to `target`; returns "" or what went wrong."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    client = NotebookClient(
        notebook, timeout=CELL_LIMIT, kernel_name=kernel, resources={"metadata": {"path": str(workdir)}},
        record_timing=False, store_widget_state=False, coalesce_streams=True,
        startup_timeout=300,  # a busy machine
    )  # fmt: skip
    try:
        with tempfile.TemporaryDirectory() as folder:
            progress = str(Path(folder, "progress.json"))
            client.execute(env={**os.environ, "PPO_SMOKE": str(int(smoke)), "PPO_PROGRESS": progress})
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
