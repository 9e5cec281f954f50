"""The notebooks in a real browser: JupyterLab in headless Chromium, with a student's clicks and keys.

Only the cells up to the one that is tried are run, in smoke mode, in a copy of the project. SHOTS=folder keeps the
screenshots.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest

from ppo_lib.runs import read_metrics

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required"]  # fmt: skip
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page, also those out of sight
}
PATIENCE = 120_000  # ms
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project."""
    from test_notebooks import tool

    return tool.copy_project(tmp_path_factory.mktemp("lab") / "project")


@pytest.fixture(scope="module")
def lab(project) -> Iterator[str]:
    """A JupyterLab server on the copy; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = project.parent / "jupyter"
    for name, values in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "JUPYTERLAB_SETTINGS_DIR": "settings",
               "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython"}  # fmt: skip
    environment = {**os.environ, **{name: str(home / folder) for name, folder in folders.items()}, "PPO_SMOKE": "1"}
    environment["TMPDIR"] = str(project.parent)  # where shortened notebooks put their runs
    options = ["--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0"]
    options += ["--IdentityProvider.token=", f"--ServerApp.root_dir={project}"]
    log = (project.parent / "lab.log").open("w")
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        wait(lambda: answers(address), 60, "JupyterLab did not start")
        yield address
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    """One Chromium for all tests."""
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(project, lab, browser, request) -> Iterator[Callable[[str, str], playwright.Page]]:
    """A function that opens a notebook, cut off after the cell with a certain text, and runs its cells."""
    pages = []

    def open_notebook(beginning: str, last: str) -> playwright.Page:
        [path] = (project / "notebooks").glob(f"{beginning}*.ipynb")
        notebook = nbformat.read(path, as_version=4)
        ends = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and last in cell.source]
        notebook.cells = notebook.cells[: ends[0] + 1]
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        cut = path.with_name(f"browser_{request.node.name[:30]}.ipynb".replace("[", "_").replace("]", ""))
        nbformat.write(notebook, cut)
        page = browser.new_page(viewport={"width": 1100, "height": 1300})
        page.set_default_timeout(PATIENCE)
        pages.append(page)
        page.goto(f"{lab}/lab/tree/notebooks/{cut.name}?reset")
        page.locator(".jp-Notebook .jp-Cell").first.wait_for()
        page.locator("#jp-main-statusbar").get_by_text("Idle").wait_for()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        count = sum(cell.cell_type == "code" for cell in notebook.cells)
        ran = page.locator(".jp-InputPrompt").get_by_text(f"[{count}]:", exact=True)
        error = page.locator('[data-mime-type="application/vnd.jupyter.error"]')
        wait(lambda: ran.count() or error.count(), PATIENCE / 1000, "the cells did not end")
        assert not error.count(), error.first.inner_text()
        return page

    yield open_notebook
    for page in pages:
        shot(page, f"{request.node.name}.png")
        page.close()


def test_gallery_and_film(opened):
    """Notebook 01: a key moves the slider and the levels change; the film plays."""
    page = opened("01", "show_film")
    before = pictures(page)
    slider(page, "first level").press("ArrowRight")
    wait(lambda: pictures(page) != before, 30, "the gallery did not change")
    film = page.locator("video")
    film.scroll_into_view_if_needed()
    film.evaluate("film => { film.muted = true; return film.play(); }")
    wait(lambda: film.evaluate("film => film.currentTime") > 0.5, 30, "the film does not play")
    assert film.evaluate("film => film.videoWidth") > 0 and film.get_attribute("poster")


@pytest.mark.parametrize(
    ("notebook", "call", "names"),
    [("03", "gae_explorer(", ("gamma", "lambda")), ("04", "clip_explorer(", ("epsilon",))],
    ids=["gae", "clip"],
)
def test_explorers(opened, notebook, call, names):
    """Notebooks 03 and 04: each slider redraws the picture in place."""
    page = opened(notebook, call)
    for name in names:
        before = pictures(page)
        slider(page, name).press("ArrowLeft")
        wait(lambda before=before: pictures(page) != before, 30, f"{name} did not change the picture")
        assert len(pictures(page)) == len(before)


def test_training_panel(opened, project):
    """Notebook 05: a bad value is explained; start, steer while it trains, pause, go on, stop."""
    page = opened("05", ".show()")
    entry(page, "name of the run").fill("browser")
    entry(page, "name of the run").press("Tab")
    entry(page, "gamma").fill("1.5")
    entry(page, "gamma").press("Tab")
    page.get_by_role("alert").get_by_text("gamma must be between 0 and 1").wait_for()
    assert press(page, "Start", click=False).is_disabled()
    entry(page, "gamma").fill("0.99")
    entry(page, "gamma").press("Tab")
    entry(page, "length of run").fill("50000000")
    entry(page, "length of run").press("Tab")
    before = pictures(page)
    press(page, "Start")
    metrics = learning_rates(project.parent, "browser")
    wait(lambda: len(metrics()) >= 2 and pictures(page) != before, 120, "nothing was drawn")

    start = metrics()[-1]
    slider(page, "learning rate").press("ArrowLeft")
    wait(lambda: metrics()[-1] < start, 60, "the learning rate did not change")
    press(page, "Pause")
    page.get_by_role("status").filter(has_text="Paused").wait_for()
    page.locator(".jp-OutputArea-output img").last.scroll_into_view_if_needed()
    shot(page, "paused.png")
    held = len(metrics())
    time.sleep(3)
    assert len(metrics()) <= held + 1
    press(page, "Resume")
    wait(lambda: len(metrics()) > held + 1, 60, "it did not go on")
    press(page, "Stop and save")
    page.get_by_role("status").filter(has_text="Not training").wait_for()
    stopped = len(metrics())
    assert press(page, "Go on", click=False).is_enabled()
    time.sleep(2)
    assert len(metrics()) == stopped


def learning_rates(folder: Path, run: str) -> Callable[[], list[float]]:
    """A function that reads the logged learning rates of a run somewhere in a folder."""

    def read() -> list[float]:
        found = [path for path in folder.rglob("metrics.csv") if path.parent.name == run]
        return list(read_metrics(found[0]).get("learning_rate", ())) if found else []

    return read


def pictures(page: playwright.Page) -> list[str]:
    """The source of every picture among the outputs."""
    return page.locator(".jp-OutputArea-output img").evaluate_all("images => images.map(image => image.src)")


def slider(page: playwright.Page, name: str) -> playwright.Locator:
    """The handle of the slider whose description begins with `name`."""
    return page.locator(".widget-slider").filter(has_text=name).get_by_role("slider").first


def entry(page: playwright.Page, name: str) -> playwright.Locator:
    """The form's input whose description begins with `name`."""
    return page.locator(".widget-text").filter(has_text=name).locator("input").first


def press(page: playwright.Page, name: str, click: bool = True) -> playwright.Locator:
    """The button with this text, pressed by keyboard unless told otherwise."""
    button = page.locator("button.jupyter-button").filter(has_text=name)
    if click:
        playwright.expect(button).to_be_enabled()
        button.press("Enter")
    return button


def shot(page: playwright.Page, name: str) -> None:
    """Keep a screenshot if SHOTS names a folder."""
    if "SHOTS" in os.environ:
        page.screenshot(path=str(Path(os.environ["SHOTS"]) / name))


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(f"{address}/api/status", timeout=5).status == 200
    except OSError:
        return False


def wait(condition: Callable[[], bool], seconds: float, problem: str) -> None:
    """Poll until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, problem
        time.sleep(0.2)
