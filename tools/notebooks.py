"""Run the notebooks afresh, top to bottom. `make notebooks` does it in place; the tests do it in a copy.

- A notebook is written only if every cell ran: one that fails leaves the file as it was, and says where it failed.
- What is written has outputs and execution counts, but no timestamps and no widget state; figures are stored lightly.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import shutil
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
CELL_LIMIT = 1800  # seconds
NOT_COPIED = (".git", ".venv*", "*cache*", ".hypothesis", "*.egg-info", "build", "checkpoint*", "events.out.*")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, or 1 if a notebook failed."""
    parser = argparse.ArgumentParser(description="Run the notebooks afresh.")
    parser.add_argument("names", nargs="*", help="beginnings of file names, such as 03 (default: all)")
    parser.add_argument("--smoke", action="store_true", help="shorten every run (PPO_SMOKE=1)")
    parser.add_argument("--output", type=Path, help="folder to write to (default: in place; needed for --smoke)")
    parser.add_argument("--workdir", type=Path, help="folder that the kernels start in (default: the notebook's)")
    parser.add_argument("--kernel", default="python3", help="name of the Jupyter kernel")
    options = parser.parse_args(arguments)
    if options.smoke and not options.output:
        parser.error("--smoke needs --output: outputs of a shortened run are not for committing")
    chosen = [p for p in notebooks() if not options.names or any(p.name.startswith(n) for n in options.names)]
    failed = 0
    for path in chosen:
        start = time.perf_counter()
        target = (options.output or path.parent) / path.name
        problem = execute(path, target, options.workdir, options.kernel, options.smoke)
        failed += bool(problem)
        if not problem:
            lighten(target)
        print(f"{path.name}: {problem or 'ran'} ({time.perf_counter() - start:.0f} s)", flush=True)
    return 1 if failed else 0


def notebooks(root: Path = ROOT) -> list[Path]:
    """The notebooks, in order."""
    return sorted((root / "notebooks").glob("[0-9]*.ipynb"))


def execute(
    path: Path,
    target: Path,
    workdir: Path | None = None,
    kernel: str = "python3",
    smoke: bool = False,
    extra_env: dict[str, str] | None = None,
    limit: int = CELL_LIMIT,
) -> str:
    """Run a notebook and write it to `target`; returns "" or what went wrong. limit: seconds that a cell may take."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.metadata.pop("execution", None)
    environment = {**os.environ, **(extra_env or {}), "PPO_SMOKE": "1" if smoke else "0"}
    client = NotebookClient(
        notebook,
        timeout=limit,
        kernel_name=kernel,
        resources={"metadata": {"path": str(workdir or path.parent)}},
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
    )
    try:
        client.execute(env=environment)
    except CellExecutionError as error:
        return f"failed:\n{error}"
    except CellTimeoutError as error:
        return f"stopped: {str(error).splitlines()[0]}"
    except DeadKernelError:
        return "failed: the kernel died"
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)
    return ""


def lighten(path: Path) -> None:
    """Store a notebook's figures with 256 colours each: a third of the room, and the eye sees no difference."""
    from ppo_lib.drawing import light_png  # not above: `execute` also serves where the project isn't installed

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if png := output.get("data", {}).get("image/png"):
                image = Image.open(io.BytesIO(base64.b64decode(png)))
                output["data"]["image/png"] = base64.b64encode(light_png(image)).decode()
    nbformat.write(notebook, path)


def copy_project(target: Path) -> Path:
    """A copy of the project as it stands, without git, environments and checkpoints; returns its folder."""
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return target


if __name__ == "__main__":
    sys.exit(main())
