"""Run all notebooks as Colab would: its Python, its package versions, its empty folder. `make colab-test` runs this.

- The versions are Colab's own (googlecolab/backend-info, 2026-08-19). The game is not among them: the bootstrap cell
  installs it, and must leave everything else unchanged.
- The project arrives as it does there, by `git clone` of the address in the bootstrap cell. Git is told to take that
  address from this folder's last commit, so the test needs no network for it.
- `google.colab` is a stand-in (tests/colab_stand_in) that behaves like the real one where it is used.
- What ran, on which versions and for how long is written to results/colab_test.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import badges
from badges import ROOT

ADDRESS = "colab-test/DeepLearningPPO"
PINS = (
    "torch==2.11.0", "numpy==2.1.3", "ipywidgets==7.7.1", "ipython==7.34.0", "ipykernel==6.17.1", "notebook==6.5.7",
    "gymnasium==1.3.0", "gym==0.25.2", "matplotlib==3.10.0", "imageio==2.37.4", "imageio-ffmpeg==0.6.0",
    "tqdm==4.67.3", "tensorboard==2.20.0", "pandas==2.2.3", "scipy==1.16.3", "nbclient==0.10.4",
)  # fmt: skip
NOT_THERE = ("procgen-gym", "procgen-mirror", "procgen", "deeplearningppo")
TESTS = ("tests/course/test_colab.py", "tests/course/test_panel.py", "tests/course/test_widgets.py")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, 1 if anything failed, 2 if there is no Python to run it on."""
    parser = argparse.ArgumentParser(description="Run all notebooks on Colab's versions.")
    parser.add_argument("names", nargs="*", help="beginnings of notebook names, such as 03 (default: all)")
    parser.add_argument("--python", default=find_python(), help="a Python 3.13 (default: the first one found)")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-colab", help="environment with Colab's versions")
    options = parser.parse_args(arguments)
    python = options.venv / "bin" / "python"
    if not python.exists():
        if options.python is None:
            print("There is no Python 3.13 here: install it, or name one with --python.", file=sys.stderr)
            return 2
        print(f"Installing Colab's versions into {options.venv}; this takes minutes, once.", flush=True)
        subprocess.run([options.python, "-m", "venv", str(options.venv)], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "-q", "install", "--no-warn-conflicts", *PINS, "pytest", "hypothesis"], check=True)
    subprocess.run([*pip, "-q", "uninstall", "-y", *NOT_THERE], check=True, capture_output=True)

    before = run([*pip, "list", "--format=freeze"]).stdout.split()
    with tempfile.TemporaryDirectory() as scratch:
        ran = run_notebooks(python, Path(scratch), options.names)
    after = run([*pip, "list", "--format=freeze"]).stdout.split()
    tested = run([str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS])
    added, gone = ([x for x in one if x not in other] for one, other in ((after, before), (before, after)))
    passed = not gone and ran.returncode == 0 and tested.returncode == 0
    page = f"""# The notebooks on Colab's versions

`make colab-test` at commit {run(["git", "rev-parse", "--short", "HEAD"]).stdout.strip()} on {os.cpu_count()} CPU \
cores: {"passed" if passed else "FAILED"}. Smoke mode; google.colab is a stand-in.

```
{ran.stdout.strip()}
{" ".join(TESTS)}: {tested.stdout.strip().splitlines()[-1]}
```

Python 3.13 with {", ".join(PINS)}.

The bootstrap cell added {", ".join(added) or "nothing"} and replaced {", ".join(gone) or "nothing"}.
"""
    (ROOT / "results" / "colab_test.md").write_text(page, encoding="utf-8")
    print(page if passed else page + ran.stderr + tested.stdout[-3000:])
    return 0 if passed else 1


def run_notebooks(python: Path, scratch: Path, names: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the notebooks in smoke mode, with Colab's nbclient and with an empty folder for /content."""
    environment = {
        "PYTHONPATH": str(ROOT / "tests" / "colab_stand_in"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "COLAB_RELEASE_TAG": "stand-in",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{ROOT}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{ADDRESS}",
    }
    launch = [str(python), "-m", "colab_kernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": launch, "display_name": "Colab", "language": "python", "env": environment}
    for folder in ("content", "notebooks", "kernels/colab"):
        (scratch / folder).mkdir(parents=True)
    (scratch / "kernels" / "colab" / "kernel.json").write_text(json.dumps(spec))
    for path in badges.notebooks():  # with the address that `make badges` will write
        text = badges.rewrite_notebook(json.loads(path.read_text("utf-8")), path.name, ADDRESS)
        (scratch / "notebooks" / path.name).write_text(text, "utf-8")
    where = ["--root", scratch, "--output", scratch / "ran", "--workdir", scratch / "content"]
    command = [python, ROOT / "tools" / "notebooks.py", *names, "--smoke", "--kernel", "colab", *where]
    return run(list(map(str, command)), JUPYTER_PATH=str(scratch))


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """A command with its output, in the project's folder."""
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


def find_python() -> str | None:
    """A Python 3.13 among pyenv's (on the path it has only a shim, which may refuse) or on the path."""
    places = [*sorted(Path.home().glob(".pyenv/versions/3.13*/bin/python")), shutil.which("python3.13")]
    return next((str(place) for place in places if place), None)


if __name__ == "__main__":
    sys.exit(main())
