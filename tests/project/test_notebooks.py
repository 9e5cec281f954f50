"""The notebooks: their committed form, and that each runs from top to bottom.

They run in smoke mode, in a copy of the project, each on one core.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import badges
import nbformat
import numpy as np
import pictures
import pytest
from figure_audit import unnamed
from matplotlib.figure import Figure
from PIL import Image
from project_copy import copy_project

import notebooks as tool
from ppo_lib import config, model, policy, ppo, storage, train, wrappers
from ppo_lib.methods import mixreg
from ppo_lib.plots import new_figure, run_color

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    "01_environment_and_wrappers",
    "02_impala_model",
    "03_storage_and_gae",
    "04_ppo",
    "05_training",
    "06_generalization",
    "07_stronger_generalizers",
)
MODULES = (config, model, policy, ppo, storage, train, wrappers, mixreg)
CLASSES = {name: thing for module in MODULES for name, thing in vars(module).items()}
each_alone = pytest.mark.parametrize(  # several test processes share them out
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(f"notebook {name[:2]}")) for name in NAMES]
)
PATHS = [ROOT / "notebooks" / f"{name}.ipynb" for name in NAMES]
TIME_LIMIT = 180  # seconds for each


@pytest.fixture(params=PATHS, ids=[name[:2] for name in NAMES])
def path(request) -> Path:
    """Each notebook's file."""
    return request.param


@pytest.fixture
def notebook(path):
    """Each notebook's content."""
    return nbformat.read(path, as_version=4)


def sources(notebook, kind: str) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


def text(notebook) -> str:
    """All prose."""
    return "\n".join(sources(notebook, "markdown"))


def test_there_are_seven_and_no_more():
    """The folder contains the notebooks that the README lists."""
    assert tool.notebooks() == PATHS


def test_format(path, notebook):
    """Valid, current format, any Python 3 kernel, under 1.5 MB."""
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert path.stat().st_size < 1.5e6


def test_outputs_are_of_a_whole_run(notebook):
    """Every code cell ran, in order, without an error, and no widget state is kept."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert "error" not in kinds and "display_data" in kinds
    assert "widgets" not in notebook.metadata
    written = json.dumps([cell.outputs for cell in code])
    for word in ("PPO_SMOKE=1", "Warning:", "Traceback", "findfont:"):
        assert word not in written


def test_first_cells(path, notebook):
    """Title, badge, learning goals, duration; then the bootstrap cell, the same everywhere."""
    first = notebook.cells[0].source
    assert first.startswith("# ") and badges.opening(path.name, badges.repository()) in first
    tagged = [cell for cell in notebook.cells if "bootstrap" in cell.metadata.get("tags", ())]
    assert [cell.source for cell in tagged] == [badges.bootstrap(badges.repository())]
    assert tagged[0] is next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert len(tagged[0].source.splitlines()) <= 10
    opening = "\n".join(cell.source for cell in notebook.cells[: notebook.cells.index(tagged[0])])
    assert re.search("you will learn", opening, re.IGNORECASE)
    assert "T4" in opening and "CPU" in opening


def test_cells_are_short(notebook):
    """Median at most 8 lines, none above 40."""
    lengths = [len(source.splitlines()) for source in sources(notebook, "code")]
    assert statistics.median(lengths) <= 8 and max(lengths) <= 40


def test_rhythm(path, notebook):
    """Questions before cells, checks in cells, a closing with three folded answers, and a link to the next notebook."""
    prose = text(notebook)
    assert prose.count("Predict first") >= 3
    assert "What it shows" in prose and "What you should have seen" in prose
    closing = prose[prose.index("What you should have seen") :]
    assert closing.count("<details>") == closing.count("</details>") == closing.count("<summary>") >= 3
    assert any("colab.check(" in source or re.search(r"\bcheck\(", source) for source in sources(notebook, "code"))
    place = PATHS.index(path)
    if place + 1 < len(PATHS):
        assert f"({PATHS[place + 1].name})" in closing


def test_links_resolve(path, notebook):
    """Relative links point to files of the project, and Colab links to its notebooks."""
    for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text(notebook)):
        link = next(filter(None, target))
        if colab := re.fullmatch(r"https://colab\.research\.google\.com/github/[^/]+/[^/]+/blob/main/(.+)", link):
            assert (ROOT / colab.group(1)).is_file(), link
        elif not re.match(r"(https?:|mailto:|#|data:)", link):
            assert (path.parent / unquote(link.split("#")[0])).exists(), link


def test_prose_names_what_exists(notebook):
    """A method that the prose names, such as `PPO.update`, is there, unless the notebook defines the class itself."""
    code = "\n".join(sources(notebook, "code"))
    for owner, name in re.findall(r"`([A-Z]\w+)\.(\w+)", text(notebook)):
        assert hasattr(CLASSES.get(owner), name) or f"class {owner}" in code, f"{owner}.{name}"


def test_runs_in_colab_and_jupyter(notebook):
    """Nothing is used that Colab's ipywidgets 7.7, plain Jupyter or one of the Procgen builds lack."""
    code = "\n".join(sources(notebook, "code"))
    for word in (
        "Tab(titles",
        "tooltip=",
        "Stack(",
        "ipympl",
        "%matplotlib widget",
        "FigureWidget",
        "from google.colab",
        "env.get_state(",  # envpool can't save games
    ):
        assert word not in code
    assert not re.search(r"^%pip|^!pip", code, re.MULTILINE)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project, and beside it an IPython that checks figures when it draws them."""
    folder = tmp_path_factory.mktemp("notebooks")
    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "audit.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import figure_audit as _audit; _audit.install()"
        "; del _audit, sys.path[0], sys\n"
    )
    return copy_project(folder / "project")


def run(project: Path, name: str, *options: str) -> tuple[str, str]:
    """Run a notebook; returns what went wrong, and the figures without axis names."""
    audit, output = project.parent / f"{name}.audit", project.parent / "ran"
    command = [sys.executable, "tools/notebooks.py", name, "--smoke", "--output", str(output), *options]
    settings = {"IPYTHONDIR": str(project.parent / "ipython"), "FIGURE_AUDIT": str(audit)}
    done = subprocess.run(command, cwd=project, env={**os.environ, **settings}, capture_output=True, text=True)
    return done.stdout + done.stderr if done.returncode else "", audit.read_text() if audit.exists() else ""


@pytest.mark.slow
@each_alone
def test_runs_from_top_to_bottom(project, name):
    """Every cell runs, in smoke mode, in a fresh kernel, in three minutes; the axes of its figures have names."""
    start = time.monotonic()
    problem, figures = run(project, name)
    assert not problem, problem
    assert not figures, f"figures with numbers on an axis that has no name:\n{figures}"
    assert time.monotonic() - start <= TIME_LIMIT


@pytest.mark.slow
@each_alone
def test_runs_solved_and_each_cell_again(project, name):
    """The student's own functions do as well; each cell runs twice in a row, and again after the whole notebook."""
    problem, _ = run(project, name, "--solved", "--again")
    assert not problem, problem


def test_audit_sees_unnamed_axes():
    """The check of axis names itself works."""
    figure = Figure()
    left, right = figure.subplots(1, 2)
    left.plot([1, 2])
    right.plot([1, 2])
    right.set_xlabel("time (s)")
    assert unnamed(figure) == ["x axis of 'axes 0'", "y axis of 'axes 0'", "y axis of 'axes 1'"]
    left.set_ylabel("reward")
    left.set_xticks([])
    assert unnamed(figure) == []
    right.set_xlabel("")
    right.set_xticks([0, 1], ["10 levels", "all levels"])
    assert unnamed(figure) == []
    right.set_xscale("log")
    assert unnamed(figure) == ["x axis of 'axes 1'"]


def test_tool_leaves_a_failing_notebook_as_it_was(tmp_path):
    """Nothing is written, and the error is named."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    path = tmp_path / "01_bad.ipynb"
    nbformat.write(notebook, path)
    before = path.read_bytes()
    assert "ZeroDivisionError" in tool.execute(notebook, path, tmp_path)
    assert path.read_bytes() == before


def test_tool_writes_outputs_without_times_and_widget_state(tmp_path):
    """Outputs and counts are new; PPO_SMOKE is set as requested, and progress is kept elsewhere."""
    code = (
        "import ipywidgets, os; display(ipywidgets.IntSlider()); print(os.environ['PPO_SMOKE'],"
        " os.path.exists(os.environ['PPO_PROGRESS']))"
    )
    cell = nbformat.v4.new_code_cell(code, execution_count=7, metadata={"execution": {"iopub.status.busy": "x"}})
    path = tmp_path / "out" / "01_good.ipynb"
    assert tool.execute(nbformat.v4.new_notebook(cells=[cell]), path, tmp_path, smoke=True) == ""
    ran = nbformat.read(path, as_version=4)
    assert ran.cells[0].execution_count == 1 and "execution" not in ran.cells[0].metadata
    assert "widgets" not in ran.metadata and ran.cells[0].outputs[-1].text == "1 False\n"


STUB = "def twice(x):\n    ...\n\n\ntwice = check('twice', twice)"
FOLDED = "<details><summary>Solution</summary>\n\n```python\ndef twice(x):\n    return 2 * x\n```\n</details>"


def exercise_notebook(folded: str = FOLDED) -> nbformat.NotebookNode:
    """A notebook with one exercise, whose check is the identity."""
    cells = [
        nbformat.v4.new_code_cell("def check(name, answer):\n    return answer"),
        nbformat.v4.new_code_cell(STUB, metadata={"tags": ["exercise"]}),
        nbformat.v4.new_markdown_cell(folded),
        nbformat.v4.new_code_cell("print(twice(2))"),
    ]
    return nbformat.v4.new_notebook(cells=cells)


def test_tool_puts_solutions_in(tmp_path):
    """Into the run's copy alone."""
    path, out = tmp_path / "notebooks" / "01_one.ipynb", tmp_path / "out"
    path.parent.mkdir()
    nbformat.write(exercise_notebook(), path)
    before = path.read_bytes()
    assert tool.main(["--solved", "--output", str(out), "--root", str(tmp_path)]) == 0
    ran = nbformat.read(out / path.name, as_version=4)
    assert ran.cells[1].source == "def twice(x):\n    return 2 * x\n\n\ntwice = check('twice', twice)"
    assert ran.cells[3].outputs[0].text == "4\n" and path.read_bytes() == before
    nbformat.write(exercise_notebook("no solution"), path)
    with pytest.raises(ValueError, match="'twice' has no folded solution"):
        tool.solved(path)


def test_tool_runs_cells_again():
    """Twice in a row, then all from the last to the first."""
    order = [cell.source for cell in tool.again([nbformat.v4.new_code_cell(name) for name in "abc"])]
    assert order == list("aabbcccba")


@pytest.mark.parametrize("option", ["--smoke", "--solved", "--again"])
def test_tool_never_writes_such_runs_in_place(option, capsys):
    with pytest.raises(SystemExit):
        tool.main([option, "01"])
    assert "need --output" in capsys.readouterr().err


def test_tool_stores_figures_lightly():
    """Each figure takes less than half of the space; less than 1% of its pixels change visibly."""
    buffer = io.BytesIO()
    figure, [axis] = new_figure(1, 1)
    for i in range(6):
        axis.plot([0, 1, 3, i], color=run_color(i), alpha=0.4 + i / 10)
    figure.savefig(buffer, format="png")
    before = buffer.getvalue()
    output = nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(before).decode()})
    cells = [nbformat.v4.new_code_cell("figure", outputs=[output]), nbformat.v4.new_markdown_cell("text")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    tool.lighten(notebook)
    after = base64.b64decode(notebook.cells[0].outputs[0].data["image/png"])
    assert len(after) < 0.5 * len(before)
    first, second = (np.array(Image.open(io.BytesIO(png)).convert("RGB"), int) for png in (before, after))
    assert first.shape == second.shape and (abs(first - second).max(-1) > 16).mean() < 0.01


def test_readme_shows_each_notebook_and_the_agent(path, notebook):
    """A row with its link, badge and picture, which `make pictures` can make; a video under 1 MB."""
    readme = (ROOT / "README.md").read_text()
    [row] = [line for line in readme.splitlines() if f"](notebooks/{path.name})" in line]
    link = f"{path.name}) {badges.badge(path.name, badges.repository())}".rstrip()
    assert f"{link} |" in row
    assert f"notebooks/pictures/{path.name[:2]}.png" in row
    picture = Image.open(io.BytesIO(pictures.picture(path)))
    assert Image.open(ROOT / "notebooks" / "pictures" / f"{path.name[:2]}.png").size == picture.size
    [video] = re.findall(r"\((videos/.+\.webp)\)", readme)
    assert (ROOT / video).stat().st_size < 1_000_000


def test_a_notebook_without_a_picture_is_named(monkeypatch, tmp_path, capsys):
    """No picture is written."""
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), tmp_path / "01_bare.ipynb")
    monkeypatch.setattr(pictures.notebooks, "notebooks", lambda: [tmp_path / "01_bare.ipynb"])
    monkeypatch.setattr(pictures, "FOLDER", tmp_path / "pictures")
    assert pictures.main() == 1 and "01_bare.ipynb has no cell tagged 'picture'" in capsys.readouterr().err
    assert not list((tmp_path / "pictures").iterdir())
