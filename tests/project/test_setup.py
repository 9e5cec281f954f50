"""The set-up keeps its promises: which Procgen build, which versions, what is left alone, what is said."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from types import SimpleNamespace

import imageio_ffmpeg
import pytest
import setup_env
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ppo_lib.procgen import library

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] not in "#"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
CONDA_PIP = next(part["pip"] for part in ENVIRONMENT["dependencies"] if isinstance(part, dict))
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def applies(requirement: Requirement, python: str, system: str = "linux", machine: str = "x86_64") -> bool:
    """Whether the requirement is for this Python and platform."""
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    environment |= {"sys_platform": system, "platform_machine": machine, "extra": ""}
    return requirement.marker is None or requirement.marker.evaluate(environment)


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    """A command with its output, in the project's folder."""
    return subprocess.run(
        [str(part) for part in command], **{"capture_output": True, "text": True, "cwd": ROOT, **options}
    )


def make(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`make`, deaf to the make that may run these tests."""
    quiet = ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL", "PYTHON", "VENV", "ARGS")
    return run("make", *arguments, env={name: value for name, value in os.environ.items() if name not in quiet})


def pip_would_install(command: list[str], tmp_path: Path) -> dict[str, str]:
    """Names and versions that a pip command would install: it is run to the end, but for the installing."""
    report = tmp_path / f"report{len(list(tmp_path.iterdir()))}.json"
    done = run(*command, "--dry-run", "--report", report, timeout=900)
    if any(
        word in done.stderr for word in ("NewConnectionError", "Name or service", "Temporary failure", "Retrying (")
    ):
        pytest.skip("no package registry can be reached")
    assert done.returncode == 0, done.stderr
    found = {
        item["metadata"]["name"]: item["metadata"]["version"] for item in json.loads(report.read_text())["install"]
    }
    return {canonicalize_name(name): version for name, version in found.items()}


@pytest.mark.parametrize("python", [*PYTHONS, "3.14"])
@pytest.mark.parametrize("place", ["linux x86_64", "linux aarch64", "darwin arm64", "win32 AMD64"])
def test_markers_choose_the_procgen_build_that_the_library_names(
    python: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One build, and none where there is none: on Macs with Apple silicon before Python 3.12, say."""
    system, machine = place.split()
    everything = [*PYPROJECT["dependency-groups"]["procgen"], *PYPROJECT["project"]["dependencies"]]
    games = (*library.PACKAGES,)
    chosen = [r.name for r in map(Requirement, everything) if r.name in games and applies(r, python, *place.split())]
    version = tuple(map(int, python.split(".")))
    monkeypatch.setattr(library, "sys", SimpleNamespace(platform=system, version_info=version))
    monkeypatch.setattr(library.platform, "machine", lambda: machine)
    named = library.package_here()
    assert chosen == ([named] if named != "envpool" or version >= (3, 12) else [])


def test_the_games_packages_are_pinned_and_bring_no_dependencies_of_their_own(tmp_path: Path) -> None:
    assert setup_env.game_packages() == PYPROJECT["dependency-groups"]["procgen"]
    assert all(re.fullmatch(r"==[\d.]+", str(Requirement(text).specifier)) for text in setup_env.game_packages())
    game = setup_env.commands(Path(sys.executable), "", True, tmp_path)[1]
    assert "--no-deps" in game and not any("numpy" in part for part in game)


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_pin_each_dependency_once_within_its_bounds(python: str) -> None:
    pins: dict[str, str] = {}
    for requirement in CONSTRAINTS:
        if applies(requirement, python):
            name = canonicalize_name(requirement.name)
            assert name not in pins, f"{name} is pinned twice for Python {python}"
            pins[name] = str(requirement.specifier).removeprefix("==")
    extras = PYPROJECT["project"]["optional-dependencies"]
    for text in [*PYPROJECT["project"]["dependencies"], *extras["notebooks"], *extras["test"], *extras["bench"]]:
        requirement = Requirement(text)
        if applies(requirement, python) and requirement.name != PYPROJECT["project"]["name"]:
            assert pins[canonicalize_name(requirement.name)] in requirement.specifier, text


def test_versions_that_break_the_training_panel_are_excluded() -> None:
    """In ipykernel 7.0.0 and 7.0.1 a thread can't update a widget: LookupError: shell_parent."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    declared = [r for texts in extras.values() for t in texts if (r := Requirement(t)).name == "ipykernel"]
    for requirement in [*declared, *(pin for pin in CONSTRAINTS if pin.name == "ipykernel")]:
        assert not {*requirement.specifier.filter(["7.0.0", "7.0.1"])}, requirement
    assert declared and {*declared[0].specifier.filter(["6.17.1", "6.31.0", "7.1.0"])} == {"6.17.1", "6.31.0", "7.1.0"}
    assert "--editable .[test]" in CONDA_PIP and not any("ipykernel" in part for part in CONDA_PIP)


def test_dependencies_have_no_upper_bounds() -> None:
    for text in PYPROJECT["project"]["dependencies"]:
        assert {s.operator for s in Requirement(text).specifier} == {">="}, text


@pytest.mark.slow
def test_an_environment_keeps_its_torch_numpy_and_ipywidgets(tmp_path: Path) -> None:
    """The real pip resolves for an environment with Colab's versions (recorded as installed, without their files)."""
    venv.create(tmp_path / "theirs", symlinks=True)
    python = tmp_path / "theirs" / "bin" / "python"
    has = {"torch": "2.11.0+cu128", "numpy": "2.1.3" if sys.version_info < (3, 14) else "2.5.0", "ipywidgets": "7.7.1"}
    packages = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])").stdout.strip())
    for name, version in has.items():
        (packages / f"{name}-{version}.dist-info").mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (packages / f"{name}-{version}.dist-info" / "METADATA").write_text(metadata)
    assert setup_env.make_venv(tmp_path / "theirs", switch=False) is False
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    new: dict[str, str] = {}
    for command in setup_env.commands(python, "", False, scratch):
        lent_pip = [sys.executable, "-m", "pip", "--python", str(python)]
        new.update(pip_would_install([*lent_pip, *command[command.index("install") :]], scratch))
    assert not new.keys() & has.keys()
    assert {"deeplearningppo", "gymnasium", "matplotlib", "tensorboard"} <= new.keys()
    assert any(name.startswith("procgen") for name in new)


def test_own_environment_gets_the_tested_versions_and_is_made_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real_run = subprocess.run

    def run_without_pip(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return real_run([*command, "--without-pip"] if "venv" in command else command, **options)  # 5 s less

    monkeypatch.setattr(subprocess, "run", run_without_pip)
    folder = tmp_path / "ours"
    folder.mkdir()
    setup_env.write_stamp(folder, {"own": True})  # what an interrupted making leaves: it is made anew
    own = setup_env.make_venv(folder, switch=False)
    stamp = setup_env.read_stamp(folder)
    assert stamp["made"] and (folder / "bin" / "python").exists()
    project = setup_env.commands(folder / "bin" / "python", "test", True, tmp_path)[0]
    assert project[project.index("-c", 4) + 1] == str(ROOT / "constraints.txt")

    key = setup_env.fingerprint(folder / "bin" / "python", "test")
    assert key != setup_env.fingerprint(folder / "bin" / "python", "bench")
    setup_env.write_stamp(folder, {**stamp, "key": key})  # as after installing
    monkeypatch.setattr(setup_env.badges, "origin", lambda: "")
    assert setup_env.main(["--venv", str(folder)]) == 0
    assert capfd.readouterr() == ("", "")  # nothing to do, nothing to say
    assert setup_env.make_venv(folder, switch=True) == own  # the same Python: not made anew
    assert setup_env.read_stamp(folder)["key"] == key


def test_an_environment_of_the_users_is_never_removed(tmp_path: Path) -> None:
    """Also the second time, when it has our stamp, which then says what was installed."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "thesis.tex").write_text("mine")
    for stamp in ({}, {"key": "what complete() writes"}):
        setup_env.write_stamp(tmp_path, stamp)
        assert setup_env.make_venv(tmp_path, switch=True) is False
        assert (tmp_path / "thesis.tex").read_text() == "mine" and setup_env.read_stamp(tmp_path) == stamp


def test_a_link_to_an_empty_folder_becomes_an_environment(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "venv").symlink_to(tmp_path / "disk")
    setup_env.make_venv(tmp_path / "venv", switch=False)
    assert setup_env.read_stamp(tmp_path / "disk")["made"] and (tmp_path / "disk" / "bin" / "python").exists()


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert setup_env.main(["--venv", str(tmp_path)]) == 2
    assert "no Python environment" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_environment_yml_is_thin_and_installs_this_project() -> None:
    assert set(ENVIRONMENT) == {"name", "channels", "dependencies"}
    conda = [part for part in ENVIRONMENT["dependencies"] if isinstance(part, str)]
    assert [re.split("[=<>]", part)[0] for part in conda] == ["python", "pip"]
    assert conda[0].split("=")[1] in PYTHONS
    assert CONDA_PIP[:2] == ["--constraint constraints.txt", "--editable .[test]"]
    game = [str(Requirement(text)) for text in CONDA_PIP[2:]]
    assert game == [
        str(Requirement(t)) for t in setup_env.game_packages() if applies(Requirement(t), conda[0].split("=")[1])
    ]


@pytest.mark.slow
def test_environment_yml_gives_what_these_tests_run_on(tmp_path: Path) -> None:
    """Its pip part, applied the way conda does to the environment of these tests, finds nothing to change."""
    if not setup_env.read_stamp(Path(sys.prefix)).get("own"):
        pytest.skip("these tests run in an environment that `make setup` didn't make alone")
    requirements = tmp_path / "condaenv.txt"
    requirements.write_text("\n".join(CONDA_PIP) + "\n")
    shutil.copy(ROOT / "constraints.txt", tmp_path)  # conda writes its file beside it, in the project's folder
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--upgrade", "-r", str(requirements)]
    changes = pip_would_install(pip, tmp_path)
    ours = ("deeplearningppo", "moviepy", "proglog", "python-dotenv", "decorator", "opencv-python", "seaborn", "pandas")
    assert not changes.keys() - set(ours), changes  # all but itself: only what procgen-gym declares and doesn't use


@pytest.mark.slow
def test_an_installed_wheel_trains_evaluates_and_reports(tmp_path: Path) -> None:
    """Far from the checkout: what training, the C kernels and the report page need is in the wheel."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "ppo_lib", tmp_path / "ppo_lib", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    done = run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    done = run(*pip, "install", "-q", "--no-deps", "--no-index", "--target", installed, wheel)
    assert done.returncode == 0, done.stderr
    files = {path.relative_to(tmp_path) for path in (tmp_path / "ppo_lib").rglob("*") if path.is_file()}
    assert len(files) > 30 and not [path for path in files if not (installed / path).is_file()]
    empty.mkdir()

    def python(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        done = run(sys.executable, *arguments, cwd=empty, env=environment, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert python("-c", "import ppo_lib; print(ppo_lib.__file__)").startswith(str(installed))
    sizes = {"num-envs": 2, "num-steps": 8, "sequence-length": 8, "num-minibatches": 1, "total-steps": 16}
    flags = [text for name, size in sizes.items() for text in (f"--{name}", str(size))]
    python("-m", "ppo_lib", "train", "--run", "tiny", "--eval-episodes", "2", *flags)
    assert len((empty / "results" / "tiny" / "evaluation.csv").read_text().splitlines()) == 5
    python("-m", "ppo_lib", "report", "tiny")
    assert "tiny" in (empty / "results" / "tiny" / "report.html").read_text()


def test_make_lists_its_targets_and_says_what_is_wrong_with_a_python() -> None:
    listed = make().stdout
    for target in ("setup", "train", "test", "lab", "notebooks", "colab-test", "badges", "bench", "clean"):
        assert f"make {target} " in listed
    missing = make("setup", "PYTHON=python3.99")
    assert missing.returncode == 2 and "There is no python3.99 here" in missing.stderr
    plan = make("-n", "train", f"PYTHON={sys.executable}", "VENV=my env", "ARGS=--seed 1").stdout
    assert '--venv "my env"' in plan
    assert '"my env/bin/python" -m ppo_lib train --preset quick --finish --seed 1' in plan


@pytest.mark.parametrize("target", ["train", "test"])
def test_without_make_setup_env_does_what_the_makefile_does(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same commands in the same environment; the first that fails ends it."""
    plan = make("-n", target, f"PYTHON={sys.executable}", "ARGS=--seed 1").stdout
    python, ran = str(ROOT / ".venv" / "bin" / "python"), []

    def run_nothing(command: list[str], **options: object) -> SimpleNamespace:
        ran.append(command)
        return SimpleNamespace(returncode=3 if len(ran) > 3 else 0)

    for name, answer in {"make_venv": True, "complete": None}.items():
        monkeypatch.setattr(setup_env, name, lambda *arguments, answer=answer: answer)
    monkeypatch.setattr(setup_env.badges, "repository", lambda: "owner/name")
    monkeypatch.setattr(setup_env.subprocess, "run", run_nothing)
    assert setup_env.main([target, "--seed", "1"]) == 0
    made = [line.partition('bin/python" ')[2] for line in plan.splitlines() if '.venv/bin/python" -m' in line]
    assert [command[0] for command in ran] == [python] * len(made)
    assert [" ".join(command[1:]) for command in ran] == made
    ran[:] = [[]] * 3
    assert setup_env.main([target]) == 3 and len(ran) == 4


def test_setup_env_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["tarin"], ["--seed"]):
        with pytest.raises(SystemExit, match="2"):
            setup_env.main(arguments)
    assert "invalid choice: 'tarin'" in (said := capsys.readouterr().err) and "there is no --seed" in said


def test_set_up_without_fcntl_and_with_the_folders_of_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)  # importing it fails
    source = importlib.util.spec_from_file_location("setup_env_elsewhere", setup_env.__file__)
    elsewhere = importlib.util.module_from_spec(source)
    source.loader.exec_module(elsewhere)
    monkeypatch.setattr(elsewhere.badges, "origin", lambda: "")
    asked = []
    monkeypatch.setattr(elsewhere, "make_venv", lambda folder, switch: True)
    monkeypatch.setattr(elsewhere, "complete", lambda python, *others: asked.append(python))
    assert elsewhere.main(["--venv", str(tmp_path)]) == 0 and asked == [tmp_path / "bin" / "python"]
    monkeypatch.setattr(elsewhere, "os", SimpleNamespace(name="nt"))
    assert elsewhere.python_in(tmp_path) == tmp_path / "Scripts" / "python.exe"


def test_old_python_is_told_so(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make("setup", f"PYTHON={old}")
    assert done.returncode == 2 and "older than Python 3.10" in done.stderr


def test_ffmpeg_writes_h264(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    writer = imageio_ffmpeg.write_frames(film, (64, 64), fps=15, codec="libx264", macro_block_size=2)
    writer.send(None)
    for shade in range(0, 150, 10):
        writer.send(bytes([shade]) * (64 * 64 * 3))
    writer.close()
    assert run(imageio_ffmpeg.get_ffmpeg_exe(), "-i", film).stderr.count("Video: h264") == 1
    assert imageio_ffmpeg.count_frames_and_secs(film)[0] == 15


def test_the_game_is_installed_at_its_pinned_version() -> None:
    for requirement in map(Requirement, setup_env.game_packages()):
        if applies(requirement, f"{sys.version_info[0]}.{sys.version_info[1]}"):
            assert importlib.metadata.version(requirement.name) in requirement.specifier


def test_git_keeps_the_small_files_of_a_run_and_ignores_the_large() -> None:
    def ignored(path: str) -> bool:
        return run("git", "check-ignore", "-q", path).returncode == 0

    if run("git", "rev-parse", "--git-dir").returncode:
        pytest.skip("not a git clone")
    for name in ("config.json", "metrics.csv", "evaluation.csv", "policy.pt", "gap.png"):
        assert not ignored(f"results/run/{name}"), name
    for name in ("checkpoint.pt", "checkpoint_previous.pt", "events.out.tfevents.1.host.2.0", "report.html"):
        assert ignored(f"results/run/{name}"), name


def test_license_and_readme() -> None:
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n\nCopyright (c) 2026 DeepLearningPPO developers")
    readme = (ROOT / "README.md").read_text()
    assert 0 < readme.index("make train") < readme.index("make test") < 250
    for paper in ("1707.06347", "1506.02438", "1802.01561", "1912.01588"):
        assert f"arXiv {paper}" in readme


def test_readmes_map_names_every_file_of_the_library() -> None:
    named = set(re.findall(r"`(\w+\.py)`", (ROOT / "README.md").read_text()))
    present = {path.name for path in (ROOT / "ppo_lib").glob("*.py")} - {"__init__.py"}
    assert present <= named, f"README's map lacks {sorted(present - named)}"
