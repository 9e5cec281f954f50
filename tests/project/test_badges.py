"""The repository's address in badges and bootstrap cells, and who writes it; the workflow and the dev container."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import badges
import pytest
import setup_env
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
CONTAINER = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
PAGE = "https://colab.research.google.com/github/owner/name/blob/main/notebooks/01_one.ipynb"


def git(folder: Path, *arguments: str) -> str:
    """The output of a git command."""
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main")
    return subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one notebook whose badge and bootstrap cell are placeholders."""
    folder = tmp_path / "project"
    (folder / "notebooks").mkdir(parents=True)
    (folder / "tools").mkdir()
    shutil.copy(badges.__file__, folder / "tools")
    (folder / "pyproject.toml").write_text('[tool.ppo_lib]\nrepository = ""\n')
    row, other = (
        "| [One](notebooks/01_one.ipynb) | text |",
        "See [One](notebooks/01_one.ipynb) [![Open in Colab](x)](y)",
    )
    (folder / "README.md").write_text(f"{row}\n{other}\n")
    cells = [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# One\n[![Open in Colab](x)](y)\nText"},
        {"cell_type": "code", "id": "b", "metadata": {"tags": ["bootstrap"]}, "source": ["pass"], "outputs": [],
         "execution_count": None},
    ]  # fmt: skip
    (folder / "notebooks" / "01_one.ipynb").write_text(
        json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    monkeypatch.setattr(badges, "ROOT", folder)
    return folder


def cells(project: Path) -> list[str]:
    """The sources of the notebook's cells."""
    notebook = json.loads((project / "notebooks" / "01_one.ipynb").read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"]]


def test_the_address_is_written_everywhere(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """pyproject, badge, bootstrap cell and README; a second time changes nothing."""
    assert badges.main(["owner/name"]) == 0 and badges.repository() == "owner/name"
    title, opening, text = cells(project)[0].split("\n")
    assert PAGE in opening and "VS Code" in opening and (title, text) == ("# One", "Text")
    assert cells(project)[1] == badges.bootstrap("owner/name")
    row, other = (project / "README.md").read_text().splitlines()
    assert f"({PAGE}) | text |" in row and other.endswith("[![Open in Colab](x)](y)")
    capsys.readouterr()
    assert badges.main([]) == 0 and "owner/name. Rewritten: nothing" in capsys.readouterr().out
    assert badges.main(["other/name"]) == 0 and badges.repository() == "other/name"


def test_without_an_address_a_line_says_how_to_open_a_notebook(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No badge, since it would lead nowhere; with an address, later, it appears."""
    assert badges.main([]) == 0 and "not set" in capsys.readouterr().out and badges.repository() == ""
    assert cells(project)[0] == f"# One\n{badges.WITHOUT}\nText" and "Colab" in badges.WITHOUT
    assert (project / "README.md").read_text().startswith("| [One](notebooks/01_one.ipynb) | text |\n")
    assert badges.main(["owner/name"]) == 0
    assert PAGE in cells(project)[0] and badges.WITHOUT not in cells(project)[0]


@pytest.mark.parametrize(
    "url", ["https://github.com/owner/na.me.git", "git@github.com:owner/na.me.git", "https://github.com/owner/na.me"]
)
def test_the_origin_remote_is_the_address_of_a_clone(project: Path, url: str) -> None:
    git(project, "init", "-q")
    git(project, "remote", "add", "origin", url)
    assert badges.main([]) == 0 and badges.repository() == "owner/na.me"


def test_what_is_no_address_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A whole URL, say."""
    assert badges.main(["https://github.com/owner/name"]) == 2
    assert "must be owner/name" in capsys.readouterr().err and badges.repository() == ""


def test_setup_writes_the_address_of_a_clone_from_github_once(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("make_venv", "complete"):
        monkeypatch.setattr(setup_env, name, lambda *arguments: True)
    git(project, "init", "-q")
    git(project, "remote", "add", "origin", str(tmp_path / "elsewhere"))
    assert setup_env.main([]) == 0 and badges.repository() == ""
    git(project, "remote", "set-url", "origin", "https://github.com/owner/name")
    assert setup_env.main(["--here"]) == 0 and badges.repository() == "", "a notebook must not rewrite itself"
    assert setup_env.main([]) == 0 and badges.repository() == "owner/name"
    git(project, "remote", "set-url", "origin", "https://github.com/fork/name")
    assert setup_env.main([]) == 0 and badges.repository() == "owner/name"


def test_the_first_push_to_github_writes_the_address_in_one_commit(project: Path, tmp_path: Path) -> None:
    """The workflow's own commands, with a folder as GitHub."""
    remote, clone, url = tmp_path / "remote.git", tmp_path / "clone", "https://github.com/owner/name"
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-qm", "first")
    git(project, "clone", "-q", "--bare", ".", str(remote))
    git(project, "clone", "-q", str(remote), str(clone))
    git(clone, "remote", "set-url", "origin", url)
    git(clone, "config", f"url.{remote}.insteadOf", url)
    [commands] = [step["run"] for step in WORKFLOW["jobs"]["badges"]["steps"] if "run" in step]
    for _ in range(2):  # the second push finds the address and commits nothing
        subprocess.run(
            ["bash", "-e", "-c", commands], cwd=clone, check=True, env={**os.environ, "GIT_TERMINAL_PROMPT": "0"}
        )
        assert git(remote, "rev-list", "--count", "main").strip() == "2"
    changed = git(remote, "show", "--name-only", "--format=", "main").split()
    assert sorted(changed) == ["README.md", "notebooks/01_one.ipynb", "pyproject.toml"]
    assert PAGE in git(remote, "show", "main:notebooks/01_one.ipynb")


def test_the_workflow_tests_the_supported_pythons_and_names_files_that_exist() -> None:
    jobs = WORKFLOW["jobs"]
    assert jobs["linux"]["strategy"]["matrix"]["python"] == ["3.10", "3.11", "3.12", "3.13"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    for path in re.findall(r"(?:tests|tools)/[\w/.]+", " ".join(commands)):
        assert (ROOT / path).exists(), path
    assert {step["uses"].split("@")[0] for job in jobs.values() for step in job["steps"] if "uses" in step} == {
        "actions/checkout", "actions/setup-python",
    }  # fmt: skip


def test_the_dev_container_installs_what_make_setup_does() -> None:
    """And before that the system's libraries that the games need, as their error message names them."""
    library = (ROOT / "ppo_lib" / "procgen" / "library.py").read_text()
    [packages] = re.findall(r"apt-get install ([\w. -]+?)`", library)
    packaged, setup = re.fullmatch(r"(.*) && (make setup)", CONTAINER["postCreateCommand"]).groups()
    assert packaged.endswith(packages) and setup == "make setup"
    assert packages in next(s["run"] for s in WORKFLOW["jobs"]["linux"]["steps"] if "apt-get" in s.get("run", ""))
    assert CONTAINER["image"].endswith("python:3.13")
    assert CONTAINER["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"].endswith(
        ".venv/bin/python"
    )
