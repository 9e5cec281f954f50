"""The course in a real browser: JupyterLab in headless Chromium, with a student's clicks and keys.

In a copy of the project and in smoke mode, one notebook has the explorers, a video, and the cells of notebook 05 that
its training panel needs; another one has an exercise of notebook 03. SHOTS=folder keeps the screenshots.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import nbformat
import pytest
from project_copy import copy_project

from ppo_lib.course.exercises import find
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
KERNEL = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
PATIENCE = 120_000  # ms
pytestmark = [
    pytest.mark.xdist_group("browser"),  # they share a server
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project."""
    return copy_project(tmp_path_factory.mktemp("lab") / "project")


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
        server.wait(120)


@pytest.fixture(scope="module")
def chromium() -> Iterator[playwright.Browser]:
    """The browser; playwright can be started only once at a time."""
    with (
        playwright.sync_playwright() as driver,
        closing(driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)) as chromium,
    ):
        yield chromium


@pytest.fixture(scope="module")
def page(project, lab, chromium) -> Iterator[playwright.Page]:
    """The notebook of the widgets, opened and run."""
    with opened(chromium, project, lab, "browser.ipynb", sources(project)) as page:
        yield page
        shot(page, "end.png")


@contextmanager
def opened(
    chromium: playwright.Browser, project: Path, lab: str, name: str, cells: list[str]
) -> Iterator[playwright.Page]:
    """A notebook with these cells, opened and run."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.metadata["kernelspec"] = KERNEL
    nbformat.write(notebook, project / "notebooks" / name)
    with closing(chromium.new_page(viewport={"width": 1100, "height": 1300})) as page:
        page.set_default_timeout(PATIENCE)
        page.goto(f"{lab}/lab/tree/notebooks/{name}?reset")
        page.locator(".jp-Notebook .jp-Cell").first.wait_for()
        page.locator("#jp-main-statusbar").get_by_text("Idle").wait_for()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        wait_for_run(page, len(cells))
        yield page


def wait_for_run(page: playwright.Page, count: int) -> None:
    """Wait until the cell with this execution count has ended, without an error in any cell."""
    ran = page.locator(".jp-InputPrompt").get_by_text(f"[{count}]:", exact=True)
    error = page.locator('[data-mime-type="application/vnd.jupyter.error"]')
    wait(lambda: ran.count() or error.count(), PATIENCE / 1000, "the cells did not end")
    assert not error.count(), error.first.inner_text()


def sources(project: Path) -> list[str]:
    """The cells: notebook 05's first ones, the explorers, and notebook 05's panel."""
    [path] = (project / "notebooks").glob("05*.ipynb")
    found = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    needed = ("import_module", "%matplotlib", "USE_DRIVE", "sizes = dict(", ".show()")
    *first, panel = (next(source for source in found if text in source) for text in needed)
    return [*first, *EXPLORERS, panel]


EXPLORERS = [
    "from ppo_lib.course import widgets",
    "widgets.level_gallery(PPOConfig(), columns=3)",
    "widgets.gae_explorer(np.eye(40)[30], np.full(40, 0.5), np.arange(40) == 30)",
    "widgets.clip_explorer()",
    'video.show_video("../videos/quick-1m.mp4")',
]


def test_explorers_and_video(page):
    """Each slider redraws its picture in place, by keyboard; the video plays."""
    for name, key in (("first level", "ArrowRight"), ("time", "ArrowRight"), ("gamma", "ArrowLeft"),
                      ("lambda", "ArrowLeft"), ("epsilon", "ArrowLeft")):  # fmt: skip
        before = pictures(page)
        slider(page, name).press(key)
        wait(lambda before=before: pictures(page) != before, 30, f"{name} did not change the picture")
        assert len(pictures(page)) == len(before)
    shot(page, "explorers.png")
    video = page.locator("video")
    video.scroll_into_view_if_needed()
    video.evaluate("video => { video.muted = true; return video.play(); }")
    wait(lambda: video.evaluate("video => video.currentTime") > 0.5, 30, "the video does not play")
    assert video.evaluate("video => video.videoWidth") > 0 and video.get_attribute("poster")


def test_training_panel(page, project):
    """A bad value is explained; start, steer during training, pause, resume, stop."""
    fill(page, "name of the run", "browser")
    fill(page, "gamma", "1.5")
    page.get_by_role("alert").get_by_text("gamma must be at least 0 and at most 1, not 1.5").wait_for()
    assert press(page, "Start", click=False).is_disabled()
    fill(page, "gamma", "0.99")
    fill(page, "games in parallel", "4")  # short updates
    fill(page, "length of run", "5e7")
    before = pictures(page)
    press(page, "Start")
    metrics = learning_rates(project.parent, "browser")
    wait(lambda: len(metrics()) >= 2 and pictures(page) != before, 120, "nothing was drawn")

    start = metrics()[-1]
    slider(page, "learning rate").press("ArrowLeft")
    wait(lambda: metrics()[-1] < start, 60, "the learning rate did not change")
    press(page, "Pause")
    page.get_by_role("status").filter(has_text="Paused").wait_for()
    shot(page, "paused.png")
    held = len(metrics())
    time.sleep(1)
    assert len(metrics()) <= held + 1
    press(page, "Resume")
    wait(lambda: len(metrics()) > held + 1, 60, "it did not resume")
    press(page, "Stop and save")
    page.get_by_role("status").filter(has_text="Stopped").wait_for()
    stopped = len(metrics())
    assert press(page, "Continue", click=False).is_enabled()
    time.sleep(1)
    assert len(metrics()) == stopped
    press(page, "New run")
    wait(lambda: field(page, "name of the run").input_value() == "browser-run2", 30, "the new run has no name")
    assert press(page, "Start", click=False).is_enabled()


def test_panel_fits_the_page_in_light_and_dark(page):
    """Wide: the curve stands beside the controls, on one screen with the sliders. Narrow: it is below them, and
    nothing is cut off. Text can be read in both themes."""
    parts = [page.locator(f".ppo-panel {part}").first for part in (".ppo-left", ".ppo-right img")]
    for width, name in ((1280, "wide"), (700, "narrow")):
        page.set_viewport_size({"width": width, "height": 1000})
        page.locator(".ppo-panel .ppo-live").scroll_into_view_if_needed()
        time.sleep(1)
        controls, curve = (part.bounding_box() for part in parts)
        if name == "wide":
            assert curve["x"] >= controls["x"] + controls["width"] and curve["y"] < controls["y"] + controls["height"]
            assert curve["y"] > 0 and curve["y"] + curve["height"] < 1000
        else:
            assert curve["y"] >= controls["y"] + controls["height"] and curve["x"] < controls["x"] + controls["width"]
        assert page.locator(".ppo-panel").evaluate("panel => panel.scrollWidth <= panel.clientWidth")
        for light in ("true", "false"):
            page.evaluate("light => { document.body.dataset.jpThemeLight = light; }", light)
            style = "panel => { const s = getComputedStyle(panel); return [s.backgroundColor, s.color]; }"
            back, ink = (luminance(color) for color in page.locator(".ppo-panel").evaluate(style))
            assert back > 0.9 > 0.2 > ink if light == "true" else back < 0.2 < 0.8 < ink
            shot(page, f"panel-{name}-{'light' if light == 'true' else 'dark'}.png")
        page.evaluate("document.body.dataset.jpThemeLight = 'true'")


# What a student may return as the TD error, and how the sentence for it begins.
ANSWERS = {
    "reward + gamma * following - value": "The next episode's value leaks in",
    "reward + gamma * (~torch.cat([done[1:], done[:1] & False])) * following - value": "Your mask uses d_{t+1}",
    "reward + gamma * (~torch.cat([done[:1] & False, done[:-1]])) * following - value": "Your mask uses d_{t-1}",
    "reward + gamma * done * following - value": "Your mask is the wrong way round",
    "reward + gamma * ~done * torch.cat([value[1:], 0 * last_value[None]]) - value": "The value after the last step",
    "reward + ~done * following - value": "V_{t+1} is discounted",
    "value - (reward + gamma * ~done * following)": "The sign",
    "(reward + gamma * following) * ~done - value": "The mask removes the reward too",
    "reward + gama * ~done * following - value": "NameError (name 'gama' is not defined)",
}
ANSWER = """def td_error(reward, value, done, last_value, gamma):
    following = torch.cat([value[1:], last_value[None]])
    return {}


td_error = check("td_error", td_error)"""


def test_an_exercise_is_failed_solved_and_kept(chromium, project, lab):
    """A student makes each named mistake and a typing error, solves it, and finds it solved after a restart."""
    sentences = list(ANSWERS.values())[:-1]
    assert len(sentences) == len(find("td_error").mistakes)
    assert all(any(told.startswith(words) for words in sentences) for told in find("td_error").mistakes)
    [path] = (project / "notebooks").glob("03*.ipynb")
    found = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    stub = next(source for source in found if source.startswith("def td_error("))
    with opened(chromium, project, lab, "exercise.ipynb", [*found[:2], stub, "progress()"]) as page:
        assert output(page, 2).startswith("Still open")
        assert "○ TD error" in output(page, 3)
        count = 4
        for returned, words in ANSWERS.items():
            count += 1
            assert answer(page, 2, ANSWER.format(returned), count).startswith(f"Not yet: {words}")
            shot(page, f"exercise-{count}.png")
        right = ANSWER.format("reward + gamma * ~done * following - value")
        assert answer(page, 2, right, count + 1).startswith("Solved: TD error. 1 of ")
        shot(page, "exercise-solved.png")
        answer(page, 2, stub, count + 2)
        page.get_by_role("menuitem", name="Kernel", exact=True).click()
        page.get_by_text("Restart Kernel and Run All Cells…", exact=True).click()
        page.locator(".jp-Dialog .jp-mod-accept").click()
        wait(lambda: "✓ TD error" in output(page, 3), PATIENCE / 1000, "the progress is lost")
        assert output(page, 2).startswith("Still open")
        shot(page, "exercise-kept.png")


def output(page: playwright.Page, cell: int) -> str:
    """The text of a code cell's output. It may be drawn a moment after the cell has ended."""
    drawn = page.locator(".jp-CodeCell").nth(cell).locator(".jp-OutputArea-output")
    wait(lambda: "".join(drawn.all_inner_texts()).strip(), PATIENCE / 1000, f"cell {cell} shows no output")
    return "\n".join(drawn.all_inner_texts()).strip()


def answer(page: playwright.Page, cell: int, source: str, count: int) -> str:
    """Type a cell anew and run it, as the run with this execution count; its output."""
    page.locator(".jp-CodeCell").nth(cell).locator(".cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(source)
    page.keyboard.press("Control+Enter")
    wait_for_run(page, count)
    return output(page, cell)


def luminance(color: str) -> float:
    """How bright a colour such as "rgb(245, 248, 251)" is, from 0 to 1."""
    return sum(map(int, re.findall(r"\d+", color)[:3])) / (3 * 255)


def learning_rates(folder: Path, run: str) -> Callable[[], list[float]]:
    """A function that reads the logged learning rates of a run somewhere in a folder."""

    def read() -> list[float]:
        found = [path.parent for path in folder.rglob("metrics.csv") if path.parent.name == run]
        return list(read_metrics(found[0]).get("learning_rate", ())) if found else []

    return read


def pictures(page: playwright.Page) -> list[str]:
    """The source of every picture among the outputs."""
    return page.locator(".jp-OutputArea-output img").evaluate_all("images => images.map(image => image.src)")


def slider(page: playwright.Page, name: str) -> playwright.Locator:
    """The handle of the slider whose description begins with `name`."""
    return page.locator(".widget-slider").filter(has_text=name).get_by_role("slider").first


def fill(page: playwright.Page, name: str, value: str) -> None:
    """Type a value into the form's input whose label begins with `name`, and leave it."""
    field(page, name).fill(value)
    field(page, name).press("Tab")


def field(page: playwright.Page, name: str) -> playwright.Locator:
    """The form's input whose label begins with `name`."""
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
