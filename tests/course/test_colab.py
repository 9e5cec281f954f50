"""Set-up in and out of Colab, Drive, budgets, checks, badges, and the bootstrap cell."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import badges
import pytest
import torch

from ppo_lib.config import UserError
from ppo_lib.course import colab

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def in_colab(monkeypatch, tmp_path):
    """As in a Colab kernel: google.colab (the stand-in) is loaded; Drive would be mounted below tmp_path."""
    for name in [n for n in sys.modules if n.split(".")[0] == "google"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "colab_stand_in"))
    importlib.import_module("google.colab")
    monkeypatch.setattr(colab, "DRIVE", tmp_path / "drive")
    yield tmp_path / "drive"
    for name in [n for n in sys.modules if n.split(".")[0] == "google"]:
        del sys.modules[name]


def test_setup_tells_what_there_is(capsys, monkeypatch):
    """Python, torch, GPU and game, and the project's folders."""
    monkeypatch.delenv("PPO_SMOKE", raising=False)
    project = colab.setup()
    said = capsys.readouterr().out
    assert project.root == ROOT and project.results == ROOT / "results"
    assert project.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    for word in ("Python", f"torch    {torch.__version__}", "GPU", "procgen"):
        assert word in said
    assert "PPO_SMOKE" not in said and "Colab" not in said


def test_convolutions_end_under_a_limit_of_threads():
    """torch's default of a thread per core waits forever for the threads that OMP_THREAD_LIMIT refuses."""
    code = """
import torch
from ppo_lib.course.colab import setup
setup()
assert torch.get_num_threads() == 1
torch.nn.Conv2d(3, 16, 3, padding=1)(torch.rand(8, 3, 64, 64)).sum().backward()
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["OMP_THREAD_LIMIT"] = "1"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment)


def test_missing_package_is_named_with_the_remedy(monkeypatch):
    """A kernel of another environment is told which one to choose."""
    monkeypatch.setattr(colab, "NEEDED", ("numpy", "no_such_package"))
    with pytest.raises(ModuleNotFoundError, match=r"lacks no_such_package: run `make lab`"):
        colab.setup()


def test_missing_game_is_named(monkeypatch):
    """Without the game, set-up says which package to install."""
    from ppo_lib import envs

    def missing():
        raise UserError("run `pip install --no-deps procgen-gym`")

    monkeypatch.setattr(envs, "procgen_build", missing)
    with pytest.raises(UserError, match="pip install"):
        colab.setup()


def test_colab_without_gpu_says_how_to_get_one(in_colab, capsys, monkeypatch):
    """The remedy is the menu's own words."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(colab, "install_game", lambda: None)
    colab.setup()
    said = capsys.readouterr().out
    assert "in Colab" in said and "Runtime > Change runtime type > T4 GPU" in said


def test_gpu_that_torch_cannot_use(capsys, monkeypatch):
    """A driver without a fitting torch is a different problem from no GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    colab.setup()
    assert "none that this torch can use" in capsys.readouterr().out


def test_colab_installs_the_game_once(in_colab, monkeypatch):
    """Only if it is missing, through the set-up script that keeps torch, numpy and ipywidgets."""
    calls = []
    found = {"procgen": None, "procgen_gym": None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found.get(name))
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: calls.append(command) or done)
    colab.install_game()
    assert calls == [[sys.executable, str(ROOT / "tools" / "setup_env.py"), "--here"]]
    found["procgen_gym"] = "there"
    colab.install_game()
    assert len(calls) == 1
    found.clear()
    done.returncode, done.stderr = 2, "no network"
    with pytest.raises(RuntimeError, match="no network"):
        colab.install_game()


def test_drive_keeps_runs(in_colab, capsys):
    """Mounted on request, twice without harm; the folder is made."""
    results = colab.use_drive()
    assert results == in_colab / "MyDrive" / "DeepLearningPPO" / "results" and results.is_dir()
    (results / "run").mkdir()
    assert colab.use_drive() == results and (results / "run").is_dir()
    assert colab.use_drive("other").parent.name == "other"
    assert "already mounted" in capsys.readouterr().out


def test_drive_refused(in_colab, monkeypatch):
    """Saying no to Google's question is answered in a sentence."""
    monkeypatch.setenv("STAND_IN_DRIVE", "refuse")
    with pytest.raises(UserError, match="run this cell again and allow it"):
        colab.use_drive()


def test_no_drive_outside_colab(capsys):
    """The same cell works on a laptop."""
    assert colab.use_drive() == ROOT / "results"
    assert "Not in Colab" in capsys.readouterr().out


def test_budget(monkeypatch):
    """PPO_SMOKE=1 takes the small one."""
    monkeypatch.delenv("PPO_SMOKE", raising=False)
    assert colab.budget(full=200_000, smoke=2_048) == 200_000
    monkeypatch.setenv("PPO_SMOKE", "1")
    assert colab.budget(full=200_000, smoke=2_048) == 2_048


def test_check(capsys):
    """A tick, or the claim and the hint."""
    colab.check(torch.tensor(True), "both are equal")
    assert "✓" in (said := capsys.readouterr().out) and "both are equal" in said
    with pytest.raises(AssertionError, match=r"Expected, but not true: both are equal\. Look at done"):
        colab.check(False, "both are equal", "Look at done.")


# --- the bootstrap cell ---------------------------------------------------------------------------------------------


def bootstrap(folder: Path, address: str = "", home: str = "") -> subprocess.CompletedProcess:
    """Run the bootstrap cell in IPython, in `folder`, as Colab and Jupyter do."""
    code = badges.bootstrap(address).replace(
        'project = importlib.import_module("ppo_lib.course.colab").setup()', "print(root)"
    )
    runner = (
        "from IPython.core.interactiveshell import InteractiveShell as S; import sys; s = S.instance();"
        "r = s.run_cell(sys.argv[1]); sys.exit(0 if r.success else 1)"
    )
    config = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{home}.insteadOf", "GIT_TERMINAL_PROMPT": "0",
              "GIT_CONFIG_VALUE_0": "https://github.com/owner/name", "IPYTHONDIR": str(folder / ".python")}  # fmt: skip
    env = {**os.environ, **config}
    return subprocess.run([sys.executable, "-c", runner, code], cwd=folder, capture_output=True, text=True, env=env)


def test_bootstrap_is_short():
    """At most ten lines, and nothing but the standard library before the project is there."""
    assert len(badges.bootstrap("owner/name").splitlines()) <= 10


def test_bootstrap_finds_a_copy(tmp_path):
    """In a folder above, as in a clone; or below, as after an upload."""
    for folder in (tmp_path / "clone" / "ppo_lib", tmp_path / "clone" / "notebooks"):
        folder.mkdir(parents=True)
    assert f"{tmp_path / 'clone'}\n" in bootstrap(tmp_path / "clone" / "notebooks").stdout
    (tmp_path / "upload" / "DeepLearningPPO" / "ppo_lib").mkdir(parents=True)
    assert f"{tmp_path / 'upload' / 'DeepLearningPPO'}\n" in bootstrap(tmp_path / "upload").stdout


def test_bootstrap_without_copy_or_address_says_what_to_do(tmp_path):
    """One sentence."""
    done = bootstrap(tmp_path)
    assert done.returncode == 1
    assert f"Copy the project to {tmp_path / 'DeepLearningPPO'}, or mount a Drive" in done.stdout


def test_bootstrap_clones(tmp_path):
    """From the address; run again, it finds the clone."""
    home = tmp_path / "home"
    (home / "ppo_lib").mkdir(parents=True)
    (home / "ppo_lib" / "__init__.py").touch()
    git = ["git", "-C", str(home), "-c", "user.name=x", "-c", "user.email=x@x"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *arguments], check=True)
    (tmp_path / "content").mkdir()
    for _ in range(2):
        done = bootstrap(tmp_path / "content", "owner/name", f"file://{home}")
        assert f"{tmp_path / 'content' / 'DeepLearningPPO'}\n" in done.stdout, done
    assert (tmp_path / "content" / "DeepLearningPPO" / "ppo_lib" / "__init__.py").is_file()


def test_bootstrap_with_a_wrong_address(tmp_path):
    """Git's own words, and what to do."""
    done = bootstrap(tmp_path, "owner/name", f"file://{tmp_path / 'nothing'}")
    assert done.returncode == 1 and "Copy the project to" in done.stdout
