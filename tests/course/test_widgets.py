"""The notebooks' widgets, driven as a student would: values, clicks, and trainings in the background."""

from __future__ import annotations

import io
import math
import os
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from ppo_lib.config import PPOConfig, UserError, field_types, preset
from ppo_lib.course import panel as training_panel
from ppo_lib.course import widgets
from ppo_lib.course.panel import TrainingPanel, live_changes, live_curve
from ppo_lib.ppo import Coefficients, ppo_loss
from ppo_lib.runs import load_run, read_config, read_metrics
from ppo_lib.storage import Batch
from ppo_lib.train import Trainer

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300  # seconds; a busy machine is no failure


def wait_until(condition, seconds: float = PATIENCE) -> None:
    """Poll until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def pixels(png: bytes) -> np.ndarray:
    """The picture as an array, which also shows that it is one."""
    return imread(io.BytesIO(png))


# --- explorers ----------------------------------------------------------------------------------------------------


def test_gallery_shows_other_levels_when_the_slider_moves():
    """First level and time both change the picture; the slider ends where a full row of training levels ends."""
    gallery = widgets.level_gallery(preset("quick"), columns=3)
    first, step = gallery.children
    assert (first.min, first.max) == (0, 47) and "seed" in first.description and "steps" in step.description
    shown = [gallery.png]
    first.value = 10
    shown.append(gallery.png)
    step.value = 60
    shown.append(gallery.png)
    assert len({pixels(png).tobytes() for png in shown}) == 3


@pytest.mark.parametrize(
    ("levels", "seeds", "first"),
    [(20, range(18, 20), (14, 14)), (50, range(18, 20), (18, 19)), (50, range(5, 6), (5, 5)), (6, range(3), (0, 0)),
     (50, range(30, 3, -3), (6, 30)), (0, range(10**6, 10**6 + 2), (10**6, 10**6 + 1))],
)  # fmt: skip
def test_gallery_takes_any_range_of_seeds(levels, seeds, first):
    """Also a single one, one in steps, and one at the end, where the row begins early enough to be full."""
    slider = widgets.level_gallery(preset("quick", num_levels=levels), seeds=seeds).children[0]
    assert (slider.min, slider.max) == first and slider.value == slider.min


@pytest.mark.parametrize(
    ("levels", "columns", "seeds", "message"),
    [(2, 6, None, "columns from 1 to 2"), (50, 0, None, "columns from 1 to 50"), (50, 6, range(-3, 5), "from 0 to 49"),
     (50, 6, range(48, 52), r"seeds from 0 to 49, not 6 and range\(48, 52\)"), (50, 6, range(5, 5), "seeds from 0")],
)  # fmt: skip
def test_gallery_refuses_levels_that_do_not_exist(levels, columns, seeds, message):
    with pytest.raises(UserError, match=message):
        widgets.level_gallery(preset("quick", num_levels=levels), columns, seeds)


def test_gae_explorer_draws_gae():
    """Gamma and lambda redraw the picture; lists, arrays and tensors are taken; wrong lengths are refused."""
    reward, value, done = [0.0, 1.0, 0.0, 1.0], np.full(4, 0.5), torch.tensor([False, True, False, False])
    explorer = widgets.gae_explorer(reward, value, done, 0.5)
    gamma, lam = explorer.children
    before = explorer.png
    gamma.value = 0.9
    middle = explorer.png
    lam.value = 0.0
    assert len({before, middle, explorer.png}) == 3
    with pytest.raises(ValueError, match="same shape"):
        widgets.gae_explorer(reward, value[:2], done)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_clip_explorer_draws_the_loss(advantage):
    """What is drawn is minus the policy loss of ppo_loss, ratio by ratio."""
    ratio = np.linspace(0.05, 1.9, 7)
    drawn = widgets.clipped_objective(ratio, advantage, 0.3)
    for r, objective in zip(ratio, drawn, strict=True):
        one, logits = torch.ones(1), torch.tensor([[0.3, -0.2]])
        log_prob = logits.log_softmax(-1)[0, :1]
        batch = Batch(obs=one, action=torch.zeros(1, dtype=torch.int64), log_prob=log_prob - np.log(r), value=one,
                      advantage=one * advantage, return_=one, episode_start=one, state=one)  # fmt: skip
        _, metrics = ppo_loss(logits, one, batch, Coefficients(clip_range=0.3))
        assert objective == pytest.approx(-metrics["policy_loss"].item(), abs=1e-5)
    explorer = widgets.clip_explorer()
    before = explorer.png
    explorer.children[0].value = 0.4
    assert explorer.png != before


def test_saved_notebooks_show_words_in_place_of_widgets():
    """The text output of a widget is a sentence, not a tree of objects."""
    assert repr(widgets.clip_explorer()) == "[A slider for epsilon: run this cell to use them]"


def test_pictures_are_replaced_through_the_display_handle():
    """A picture that is shown is updated in place."""
    updates = []
    controls = widgets.Controls([], "Nothing")
    controls._handle = type("Handle", (), {"update": lambda self, image: updates.append(image.data)})()
    controls.draw(live_curve("nowhere"))
    assert updates == [controls.png] and controls.png.startswith(b"\x89PNG")


def test_every_field_has_an_entry():
    """Any config field can be in a form, which holds its value."""
    config = PPOConfig()
    for name in field_types(PPOConfig):
        made = widgets.entry("a label", getattr(config, name))
        assert config.replace(**{name: widgets.entered(made)}) == config and made.description == "a label"


def test_sliders_hold_any_valid_value(tmp_path):
    """A value outside the usual range widens the slider; it is never changed."""
    for name, value in [("learning_rate", 0.5), ("learning_rate", 1e-8), ("clip_range", 0.9), ("entropy_coef", 2.0)]:
        assert TrainingPanel(tmp_path / "run", PPOConfig(**{name: value})).sliders[name].value == value


# --- the training panel -------------------------------------------------------------------------------------------


class OneThread(Trainer):
    """A trainer whose thread computes alone, as conftest asks of the main thread."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        torch.set_num_threads(1)


@pytest.fixture
def panel(tiny, tmp_path, monkeypatch):
    """Make panels on tiny runs of the real game; whatever still trains at the end is stopped."""
    monkeypatch.setattr(training_panel, "Trainer", OneThread)
    yield lambda name="run", **changes: TrainingPanel(tmp_path / name, tiny(**{"total_steps": 100_000, **changes}))
    training_panel.stop_all()


def test_panel_trains_to_the_end(panel):
    """Start, curve, metrics, policy; the buttons follow."""
    made = panel(eval_interval=0, eval_episodes=1)
    made.form["total_steps"].value = "128"
    made.show()
    empty = made.controls.png
    assert made.pause_button.disabled and made.stop_button.disabled and not made.start_button.disabled
    made.start_button.click()
    made.wait()
    assert not made.running and not made.failure
    assert read_metrics(made.run_dir)["steps"][-1] == 128
    assert load_run(made.run_dir).evaluation.checkpoints == [128]
    assert (made.run_dir / "policy.pt").exists() and made.controls.png != empty
    assert not made.start_button.disabled and made.stop_button.disabled


def test_pause_steer_stop_and_continue(panel):
    """Paused: no step is taken. Sliders act on the trainer and are logged and marked. Stop saves; start continues."""
    made = panel()
    made.start_button.click()
    wait_until(lambda: made.trainer is not None and made.trainer.steps >= 128)
    made.pause_button.click()
    steps = made.trainer.steps
    time.sleep(0.5)
    assert made.trainer.steps - steps <= 64  # at most the update that was nearly done
    made._show_state()
    text = re.sub("<[^>]*>", "", made.status.value)
    assert made.pause_button.description == "Resume" and 0 < made.progress.value < 1
    assert re.fullmatch(
        r"Paused: \d+ of 100,032 steps, \d+ episodes, return .*, [\d.]+k? steps/s, \d+ (min|h) left", text
    )
    curve = made.controls.png
    made.sliders["learning_rate"].value = 1e-4
    made.set(clip_range=0.1, entropy_coef=0.03)
    assert made.trainer.ppo.learning_rate == 1e-4
    assert (made.trainer.ppo.coefficients.clip_range, made.trainer.ppo.coefficients.entropy_coef) == (0.1, 0.03)
    assert made.controls.png != curve
    made.pause_button.click()
    goal = made.trainer.steps + 192
    wait_until(lambda: made.trainer.steps >= goal)
    made.stop_button.click()
    made.wait()
    assert not made.running and made.start_button.description == "Continue"

    run = load_run(made.run_dir)
    for name, value in [("learning_rate", 1e-4), ("clip_range", 0.1), ("entropy_coef", 0.03)]:
        assert run.metrics[name][-1] == value
    [(place, texts)] = live_changes(run, {}).items()
    assert texts == ["lr 0.0005 → 0.0001", "clip 0.2 → 0.1", "entropy 0.01 → 0.03"] and steps <= place <= steps + 64
    assert "\n".join(texts) in [text.get_text() for text in live_curve(made.run_dir).axes[0].texts]
    assert live_changes(run, {"clip_range": 0.2})[run.steps] == ["clip 0.1 → 0.2"]  # moved after the last update

    before = run.steps
    again = panel()  # the same cell, run again or after a disconnect
    again.run_for(1).wait()
    assert load_run(again.run_dir).steps == before + 64
    assert read_metrics(again.run_dir)["learning_rate"][-1] == 1e-4
    assert again.sliders["learning_rate"].value == pytest.approx(1e-4)


def test_set_before_the_games_are_ready(panel):
    """What was asked for is done as soon as there is a trainer."""
    made = panel()
    made.run_for(2)
    made.set(learning_rate=1e-4)
    made.wait()
    assert not made.failure and read_metrics(made.run_dir)["learning_rate"].tolist() == [1e-4, 1e-4]
    assert not made.running and (made.run_dir / "checkpoint.pt").exists()


@pytest.mark.parametrize("values", [{"learning_rate": 0}, {"clip_range": -1}, {"entropy_coef": math.nan}, {"gama": 1}])
def test_set_refuses_what_no_config_may_have(panel, values):
    made = panel()
    before = {name: slider.value for name, slider in made.sliders.items()}
    with pytest.raises(UserError):
        made.set(**values)
    assert {name: slider.value for name, slider in made.sliders.items()} == before


def trainers() -> list[TrainingPanel]:
    """The panels that train."""
    return [t.panel for t in threading.enumerate() if hasattr(t, "panel") and t.panel.running]


def test_never_two_trainers(panel):
    """A double start does nothing; a new panel, of this or another run, stops the older one first."""
    first = panel()
    first.start()
    first.start()
    assert len(trainers()) == 1
    wait_until(lambda: first.trainer is not None)
    again = panel()
    assert not first.running and not trainers()
    again.start()
    other = panel("other")
    assert not again.running
    again.start()
    wait_until(lambda: again.trainer is not None)
    other.start()
    wait_until(lambda: other.trainer is not None)
    assert trainers() == [other]


def test_stop_before_the_first_update(panel):
    """Stopped while the games are being prepared: saved, and continues from there."""
    made = panel()
    made.start()
    made.stop()
    made.wait()
    assert not made.running and not made.failure
    made.run_for(1).wait()
    assert read_metrics(made.run_dir)["steps"].tolist() == [64]


def test_bad_value_is_explained(panel):
    """In words, below the form; start is disabled until it is mended."""
    made = panel(num_minibatches=4)
    made.form["num_envs"].value = "3"
    assert "num_minibatches 4 does not divide" in made.message.value and 'role="alert"' in made.message.value
    assert made.start_button.disabled
    made.start()
    assert not made.running
    made.form["num_envs"].value = "4"
    assert made.message.value == "" and not made.start_button.disabled
    made.form["gamma"].value = "1.5"
    assert "at most 1, not 1.5" in made.message.value
    made.form["gamma"].value = "0.99"
    made.name.value = "../elsewhere"
    assert "it becomes a folder" in made.message.value


def test_a_run_with_other_settings_is_kept(panel):
    """The panel says what differs, and offers another name."""
    made = panel()
    made.run_for(1).wait()
    made.form["num_levels"].value = "10"
    assert "num_levels 50 -&gt; 10" in made.message.value and made.start_button.disabled
    made.name.value = "other"
    assert not made.message.value and made.start_button.description == "Start"
    made.run_for(1).wait()
    assert load_run(made.run_dir).config.num_levels == 10


def test_a_committed_run_is_kept(panel, tmp_path):
    """A run whose policy is there but whose checkpoint isn't can't be resumed, and must not be overwritten."""
    made = panel()
    made.run_for(1).wait()
    for file in made.run_dir.glob("checkpoint*"):
        file.unlink()
    metrics = (made.run_dir / "metrics.csv").read_text()
    again = panel()
    assert "no checkpoint to resume from" in again.message.value
    again.start()
    assert not again.running and (made.run_dir / "metrics.csv").read_text() == metrics


def test_a_run_that_died_before_its_first_checkpoint_starts_afresh(panel, tiny):
    """There is nothing to resume from, and nothing to lose."""
    made = panel()
    made.run_dir.mkdir()
    (made.run_dir / "config.json").write_text(tiny(total_steps=100_000).to_json())
    made.run_for(1).wait()
    assert not made.failure and read_metrics(made.run_dir)["steps"].tolist() == [64]


def test_failure_is_shown(panel, monkeypatch, capsys):
    """What goes wrong in the thread is said in the panel and by wait, and start works again."""

    def fail(self):
        raise RuntimeError("the network is down")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", fail)
        made = panel()
        made.start()
        made.wait()
    assert "RuntimeError: the network is down" in made.message.value
    assert "the network is down" in capsys.readouterr().out and not made.start_button.disabled
    made.run_for(1).wait()
    assert not made.failure


def test_more_steps_continue_a_run(panel):
    """As on the command line: the length of a run may change, with precision and device as the run recorded them."""
    made = panel(total_steps=128, precision="auto", device="auto")
    made.start()
    made.wait()
    recorded = read_config(made.run_dir)
    assert recorded.precision != "auto" and recorded.device != "auto"
    made.form["total_steps"].value = "2.56e2"
    assert not made.message.value and made.start_button.description == "Continue"
    made.start()
    made.wait()
    assert not made.failure and read_metrics(made.run_dir)["steps"][-1] == 256
    assert read_config(made.run_dir) == recorded.replace(total_steps=256)
    made.form["total_steps"].value = "64"  # fewer than it has: only the checkpoint knows
    made.start()
    made.wait()
    assert "has trained for 256 steps already" in made.message.value


@pytest.mark.parametrize(
    ("text", "answer"),
    [("1e6", 10**6), ("1_000", 1000), (" 2000 ", 2000), ("1e6.5", "whole number"), ("2.5", "whole number, not 2.5"),
     ("many", "whole number, not"), ("", "whole number"), ("inf", "whole number"), ("nan", "whole number")],
)  # fmt: skip
def test_whole_numbers_in_the_form(panel, text, answer):
    """Any way to write one is accepted; everything else is refused in a sentence."""
    made = panel()
    made.form["total_steps"].value = text
    if isinstance(answer, int):
        assert made.check().total_steps == answer and not made.message.value
    else:
        assert made.check() is None and f"total_steps must be a {answer}" in made.message.value


KERNEL_CELLS = (
    """
import pathlib, threading, time
from ppo_lib.config import PPOConfig
from ppo_lib.course.panel import TrainingPanel
folder = pathlib.Path("{folder}")
config = PPOConfig.from_saved_json((folder / "config.json").read_text())
panel = TrainingPanel(folder / "run", config)
panel.start()
while panel.trainer is None or panel.trainer.steps < 64:
    time.sleep(0.02)
print("waits")
panel.wait()
""",
    "panel.start(); print(panel.running, panel.start_button.disabled, panel.stop_button.disabled)",
    "while panel.trainer is None: time.sleep(0.02)\npanel.stop(); panel.wait()\n"
    "print(panel.running, panel.start_button.disabled, panel.stop_button.disabled, panel.failure,"
    " sum(t.panel.running for t in threading.enumerate() if hasattr(t, 'panel')))",
    "panel.name.value = 'last'; panel.start()\n"
    "while panel.trainer is None or panel.trainer.steps < 64: time.sleep(0.02)",
)


def test_interrupt_start_and_stop_in_a_real_kernel(tiny, tmp_path):
    """Interrupting the waiting cell stops and saves; a start at once trains on; a stop then ends it. A kernel that is
    restarted or shut down saves first."""
    from jupyter_client.manager import start_new_kernel

    (tmp_path / "config.json").write_text(tiny(total_steps=100_000, checkpoint_interval=100_000).to_json())
    manager, client = start_new_kernel(cwd=str(ROOT), env={**os.environ, "OMP_NUM_THREADS": "1"})

    def run(code: str, interrupt: bool = False) -> tuple[str, str]:
        """Run a cell (and interrupt it at its first print) -> what it printed, and the name of its error."""
        request, printed, error = client.execute(code), "", ""
        while True:
            message = client.get_iopub_msg(timeout=PATIENCE)
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "stream":
                printed += message["content"]["text"]
                if interrupt:
                    time.sleep(0.3)
                    manager.interrupt_kernel()
                    interrupt = False
            elif message["msg_type"] == "error":
                error = message["content"]["ename"]
            elif message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return printed.strip(), error

    try:
        assert run(KERNEL_CELLS[0].format(folder=tmp_path), interrupt=True) == ("waits", "KeyboardInterrupt")
        saved = (tmp_path / "run" / "checkpoint.pt").stat().st_mtime_ns
        assert run(KERNEL_CELLS[1]) == ("True True False", "")
        assert run(KERNEL_CELLS[2]) == ("False False True  0", "")
        assert (tmp_path / "run" / "checkpoint.pt").stat().st_mtime_ns > saved
        assert run(KERNEL_CELLS[3]) == ("", "") and not (tmp_path / "last" / "checkpoint.pt").exists()
        manager.shutdown_kernel()
        assert (tmp_path / "last" / "checkpoint.pt").exists()
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_annealed_learning_rate_has_no_slider(panel):
    """The schedule would overwrite it; nor are its changes marked."""
    made = panel(anneal_lr=True)
    made.run_for(3)
    wait_until(lambda: made.trainer is not None and made.trainer.steps)
    assert made.sliders["learning_rate"].disabled and not made.sliders["clip_range"].disabled
    made.wait()
    run = load_run(made.run_dir)
    assert len(set(run.metrics["learning_rate"])) == 3 and not live_changes(run, {})
