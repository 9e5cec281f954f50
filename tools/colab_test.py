"""Run all notebooks as Colab would: its Python, its package versions, its empty folder. `make colab-test` runs this.

- The versions are Colab's own (googlecolab/backend-info, 2026-08-19); the game is not among them: the bootstrap cell
  installs it, and must leave everything else as it is.
- The project comes as it does there, by `git clone` of the address in the bootstrap cell. Git is told to take that
  address from this folder's last commit, so the test needs no network for it.
- `google.colab` is a stand-in (tests/colab_stand_in) that behaves as the real one where it is used.
- What ran, on which versions and for how long is written to results/colab_test.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import badges

import notebooks

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = ROOT / "tests" / "colab_stand_in"
ADDRESS = "colab-test/DeepLearningPPO"
PINS = {
    "torch": "2.11.0", "numpy": "2.1.3", "ipywidgets": "7.7.1", "ipython": "7.34.0", "ipykernel": "6.17.1",
    "notebook": "6.5.7", "gymnasium": "1.3.0", "gym": "0.25.2", "matplotlib": "3.10.0", "imageio": "2.37.4",
    "imageio-ffmpeg": "0.6.0", "tqdm": "4.67.3", "tensorboard": "2.20.0", "pandas": "2.2.3", "scipy": "1.16.3",
    "nbclient": "0.10.4",
}  # fmt: skip
GAME = ("procgen-gym", "procgen-mirror", "procgen", "deeplearningppo")
TESTS = ("tests/test_colab.py", "tests/test_widgets.py")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, 1 if anything failed, 2 if there is no Python to run it on."""
    parser = argparse.ArgumentParser(description="Run all notebooks on Colab's versions.")
    parser.add_argument("names", nargs="*", help="beginnings of notebook names, such as 03 (default: all)")
    parser.add_argument("--python", default=None, help="a Python 3.13 (default: the first one found)")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-colab", help="environment with Colab's versions")
    options = parser.parse_args(arguments)
    python = options.venv / "bin" / "python"
    if not python.exists():
        base = options.python or find_python()
        if base is None:
            print("There is no Python 3.13 here: install it, or name one with --python.", file=sys.stderr)
            return 2
        print(f"Installing Colab's versions into {options.venv}; this takes minutes, once.", flush=True)
        subprocess.run([base, "-m", "venv", str(options.venv)], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-q"]
    wanted = [f"{name}=={version}" for name, version in PINS.items()]
    subprocess.run([*pip, "install", "--no-warn-conflicts", *wanted, "pytest", "hypothesis"], check=True)
    subprocess.run([*pip, "uninstall", "-y", *GAME], check=True, capture_output=True)

    before = versions(python)
    with tempfile.TemporaryDirectory() as scratch:
        results = run_notebooks(python, Path(scratch), options.names)
    after = versions(python)
    changed = {name: [before[name], after.get(name)] for name in before if before[name] != after.get(name)}
    added = {name: version for name, version in after.items() if name not in before}
    report = {
        "commit": git("rev-parse", "--short", "HEAD"),
        "machine": f"{os.cpu_count()} CPU cores, {platform.system()} {platform.machine()}, no Colab but its versions",
        "python": ask(python, "import platform; print(platform.python_version())"),
        "versions": {name: after[name] for name in PINS},
        "added by the bootstrap cell": added,
        "changed by the bootstrap cell": changed,
        "notebooks": results,
        "tests": run_tests(python),
    }
    passed = not changed and all(r["result"] == "ran" for r in results) and report["tests"]["result"] == "passed"
    report["passed"] = passed
    write(report)
    print(f"{'Passed' if passed else 'FAILED'}: see results/colab_test.md")
    return 0 if passed else 1


def run_notebooks(python: Path, scratch: Path, names: list[str]) -> list[dict[str, object]]:
    """Run each notebook in smoke mode with an empty folder for /content; what happened and the seconds it took."""
    content = scratch / "content"
    content.mkdir()
    kernel = scratch / "jupyter" / "kernels" / "colab"
    kernel.mkdir(parents=True)
    launch = [str(python), "-m", "colab_kernel_launcher", "-f", "{connection_file}"]
    environment = {
        "PYTHONPATH": str(STAND_IN),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "COLAB_RELEASE_TAG": "stand-in",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{ROOT}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{ADDRESS}",
    }
    spec = {"argv": launch, "display_name": "Colab", "language": "python", "env": environment}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    rows = []
    for path in notebooks.notebooks():
        if names and not any(path.name.startswith(name) for name in names):
            continue
        opened = scratch / "opened" / path.name  # with the address that `make badges` will write
        opened.parent.mkdir(exist_ok=True)
        opened.write_text(badges.rewrite_notebook(json.loads(path.read_text("utf-8")), path.name, ADDRESS), "utf-8")
        start = time.perf_counter()
        command = [
            str(python),
            "-c",
            RUN,
            str(ROOT / "tools"),
            str(opened),
            str(scratch / "ran" / path.name),
            str(content),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "JUPYTER_PATH": str(scratch / "jupyter")}
        )
        seconds = round(time.perf_counter() - start, 1)
        result = "ran" if done.returncode == 0 else (done.stdout + done.stderr).strip()
        rows.append({"notebook": path.name, "result": result, "seconds": seconds})
        print(f"{path.name}: {result} ({seconds:.0f} s)", flush=True)
    return rows


# Runs in the 3.13 environment, so that nbclient has Colab's version too.
RUN = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import notebooks
problem = notebooks.execute(*map(pathlib.Path, sys.argv[2:5]), kernel="colab", smoke=True, limit=600)
sys.exit(problem or 0)
"""


def run_tests(python: Path) -> dict[str, object]:
    """The tests of set-up and widgets, on the same versions."""
    start = time.perf_counter()
    present = [test for test in TESTS if (ROOT / test).exists()]
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *present]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
    result = "passed" if done.returncode == 0 else done.stdout[-3000:] + done.stderr[-1000:]
    print(f"{', '.join(present)}: {lines[-1]}", flush=True)
    return {"files": present, "result": result, "summary": lines[-1], "seconds": round(time.perf_counter() - start, 1)}


def find_python() -> str | None:
    """A Python 3.13 among pyenv's (on the path it has only a shim, which may refuse) or on the path."""
    places = [*sorted(Path.home().glob(".pyenv/versions/3.13*/bin/python")), shutil.which("python3.13")]
    return next((str(place) for place in places if place), None)


def versions(python: Path) -> dict[str, str]:
    """Every installed package and its version."""
    names = "{d.name.lower(): d.version for d in importlib.metadata.distributions()}"
    return dict(sorted(json.loads(ask(python, f"import importlib.metadata, json; print(json.dumps({names}))")).items()))


def ask(python: Path, code: str) -> str:
    """What a line of Python prints."""
    return subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True, cwd="/").stdout.strip()


def git(*arguments: str) -> str:
    """What git says about this folder."""
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True).stdout.strip()


def write(report: dict[str, object]) -> None:
    """The report as JSON, and as a page."""
    (ROOT / "results" / "colab_test.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    rows = [f"| {r['notebook']} | {str(r['result']).splitlines()[0]} | {r['seconds']} |" for r in report["notebooks"]]
    tests = report["tests"]
    lines = [
        "# The notebooks on Colab's versions",
        "",
        f"`make colab-test` at commit {report['commit']}, Python {report['python']}, {report['machine']}: "
        f"{'passed' if report['passed'] else 'FAILED'}. Smoke mode; google.colab is a stand-in.",
        "",
        "| notebook | result | seconds |",
        "|---|---|---|",
        *rows,
        f"| {', '.join(tests['files'])} | {tests['summary']} | {tests['seconds']} |",
        "",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + ".",
        "",
        "The bootstrap cell added "
        + ", ".join(f"{name} {version}" for name, version in report["added by the bootstrap cell"].items())
        + " and changed "
        + (
            json.dumps(report["changed by the bootstrap cell"])
            if report["changed by the bootstrap cell"]
            else "nothing"
        )
        + ".",
        "",
    ]
    (ROOT / "results" / "colab_test.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
