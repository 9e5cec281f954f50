"""The training panel, driven as a student would: values, clicks, interrupts, and trainings in the background."""

from __future__ import annotations

import math
import re
import threading
import time
from pathlib import Path

import pytest

from ppo_lib.config import PPOConfig, UserError
from ppo_lib.course import live
from ppo_lib.course.live import live_changes
from ppo_lib.course.panel import TrainingPanel, live_curve
from ppo_lib.methods import ALGORITHMS
from ppo_lib.runs import load_run, read_config, read_metrics
from ppo_lib.train import Trainer

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300  # seconds; a busy machine is no failure


def wait_until(condition, seconds: float = PATIENCE) -> None:
    """Poll until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def test_sliders_hold_any_valid_value(tmp_path):
    """A value outside the usual range widens the slider; it is never changed."""
    for name, value in [("learning_rate", 0.5), ("learning_rate", 1e-8), ("clip_range", 0.9), ("entropy_coef", 2.0)]:
        assert TrainingPanel(tmp_path / "run", PPOConfig(**{name: value})).sliders[name].value == value


@pytest.fixture
def panel(tiny, tmp_path):
    """Make panels on tiny runs of the real game; whatever still trains at the end is stopped."""
    yield lambda name="run", **changes: TrainingPanel(tmp_path / name, tiny(**{"total_steps": 100_000, **changes}))
    live.stop_all()


def test_panel_trains_to_the_end(panel):
    """Start, curve, metrics, policy; the buttons follow."""
    made = panel(eval_interval=0, eval_episodes=1)
    made.form["total_steps"].value = "128"
    made.show()
    empty = made.curve.value
    assert made.pause_button.disabled and made.stop_button.disabled and not made.start_button.disabled
    made.start_button.click()
    made.wait()
    assert not made.running and not made.failure
    assert read_metrics(made.run_dir)["steps"][-1] == 128
    assert load_run(made.run_dir).evaluation.checkpoints == [128]
    assert (made.run_dir / "policy.pt").exists() and made.curve.value != empty
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
    assert made.pause_button.description == "Resume" and 'value="0.00' in made.status.value
    assert re.fullmatch(
        r"Paused\d+ of 100,032 steps, \d+ episodes, return .*, [\d.]+k? steps/s, \d+ (min|h) left", text
    )
    curve = made.curve.value
    made.sliders["learning_rate"].value = 1e-4
    made.set(clip_range=0.1, entropy_coef=0.03)
    assert made.trainer.ppo.learning_rate == 1e-4
    assert (made.trainer.ppo.coefficients.clip_range, made.trainer.ppo.coefficients.entropy_coef) == (0.1, 0.03)
    assert made.curve.value != curve
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


def trainers() -> list[threading.Thread]:
    """The trainings under way."""
    return [t for t in threading.enumerate() if hasattr(t, "ended") and not t.ended.is_set()]


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
    assert trainers() == [other.training]


def test_stop_before_the_first_update(panel):
    """Stopped while the games are being prepared: saved, and continues from there."""
    made = panel()
    made.start()
    made.stop()
    with pytest.raises(UserError, match="no finished update yet"):
        made.wait()
    assert not made.running and not made.failure
    made.run_for(1).wait()
    assert read_metrics(made.run_dir)["steps"].tolist() == [64]


def test_bad_value_is_explained(panel):
    """In words, below the form; start is disabled until it is mended."""
    made = panel(num_minibatches=4)
    made.form["num_envs"].value = "3"
    assert "“minibatches per epoch” 4 does not divide" in made.message.value and 'role="alert"' in made.message.value
    assert made.start_button.disabled
    made.start()
    assert not made.running
    made.form["num_envs"].value = "4"
    assert made.message.value == "" and not made.start_button.disabled
    made.name.value = "../elsewhere"
    assert "it becomes a folder" in made.message.value


def test_a_run_with_other_settings_is_kept(panel):
    """The panel says what differs, with the form's labels; a new run has another name and these settings."""
    made = panel()
    assert made.new_button.disabled  # there is no run yet
    made.run_for(1).wait()
    made.form["num_levels"].value = "10"
    assert "“training levels” 50 -&gt; 10" in made.message.value and made.start_button.disabled
    made.new_button.click()
    assert made.name.value == "run-run2" and not made.message.value and made.start_button.description == "Start"
    made.run_for(1).wait()
    assert load_run(made.run_dir).config.num_levels == 10
    made.new_button.click()
    assert made.name.value == "run-run3"


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


def test_failure_is_shown(panel, monkeypatch):
    """What goes wrong in the thread is said in the panel and by wait, and start works again."""

    def fail(self):
        raise RuntimeError("the network is down")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", fail)
        made = panel()
        made.start()
        with pytest.raises(UserError, match="RuntimeError: the network is down"):
            made.wait()
    assert "RuntimeError: the network is down" in made.message.value and not made.start_button.disabled
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
    assert "Saved after 128 steps" in made.status.value and 'value="0.500"' in made.status.value
    made.start()
    made.wait()
    assert not made.failure and read_metrics(made.run_dir)["steps"][-1] == 256
    assert read_config(made.run_dir) == recorded.replace(total_steps=256)
    made.form["total_steps"].value = "64"
    assert "has trained for 256 steps already: raise “length of run”" in made.message.value and made.check() is None


def test_a_finished_run_says_so_and_offers_more(panel):
    """More steps: as many again as the panel's config has. A start from code trains nothing, so a cell can run again.
    A learning rate that is lowered over the run can't take more."""
    made = panel(total_steps=64)
    made.run_for(1).wait()
    assert "Complete" in made.status.value and "“More steps” adds 64" in made.status.value
    made.start()
    made.wait()
    assert read_metrics(made.run_dir)["steps"].tolist() == [64]
    assert made.start_button.description == "More steps" and not made.new_button.disabled
    made.start_button.click()
    made.wait()
    assert read_metrics(made.run_dir)["steps"].tolist() == [64, 128] and made.form["total_steps"].value == "128"
    assert "Complete" in made.status.value

    fixed = panel("fixed", total_steps=64, anneal_lr=True)
    fixed.run_for(1).wait()
    assert "Complete" in fixed.status.value and "More steps" not in fixed.status.value and fixed.start_button.disabled


def test_an_algorithm_in_a_file_can_be_chosen(panel, tmp_path):
    (tmp_path / "own.py").write_text("from ppo_lib.ppo import PPO\nclass Own(PPO):\n    pass\n")
    name = f"{tmp_path / 'own.py'}:Own"
    made = panel(total_steps=64, algorithm=name)
    assert made.form["algorithm"].value == name and "ppo" in made.form["algorithm"].options
    made.run_for(1).wait()
    assert read_config(made.run_dir).algorithm == name and "Complete" in made.status.value


def test_a_missing_last_evaluation_is_made_up(panel):
    """A run that was stopped in its last evaluation isn't complete."""
    made = panel(total_steps=64, eval_interval=0, eval_episodes=1)
    made.run_for(1).wait()
    assert "Complete" in made.status.value
    (made.run_dir / "evaluation.csv").unlink()
    made = panel(total_steps=64, eval_interval=0, eval_episodes=1)
    assert made.start_button.description == "Continue"
    made.start_button.click()
    made.wait()
    assert "Complete" in made.status.value and load_run(made.run_dir).evaluation.checkpoints == [64]


def test_methods_and_pooling_can_be_chosen(panel):
    """Every algorithm of the library; the run is trained with what was chosen. An unknown one gets a sentence."""
    made = panel()
    assert list(made.form["algorithm"].options) == list(ALGORITHMS)
    made.form["algorithm"].value, made.form["pooling"].value = list(ALGORITHMS)[-1], "average"
    config = made.check()
    assert (config.algorithm, config.pooling) == (list(ALGORITHMS)[-1], "average")
    with pytest.raises(UserError, match="There is no algorithm 'pop'; did you mean"):
        panel(algorithm="pop")


@pytest.mark.parametrize(
    ("field", "text", "sentence"),
    [("entropy_coef", "1e12", "“entropy coefficient” must be at least 0 and at most 10,"),
     ("learning_rate", "5", "“learning rate” must be above 0 and at most 1,"),
     ("num_envs", "1e6", "“games in parallel” must be at least 1 and at most"),
     ("gamma", "1.5", "gamma must be at least 0 and at most 1, not 1.5"),
     ("num_minibatches", "3", "“minibatches per epoch” 3 does not divide")],
)  # fmt: skip
def test_bounds_are_explained_with_the_labels_of_the_form(panel, field, text, sentence):
    made = panel()
    made.form[field].value = text
    assert sentence in made.message.value and made.start_button.disabled


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
        assert made.check() is None and f"“length of run” must be a {answer}" in made.message.value


KERNEL_CELLS = (
    """
import math, pathlib, threading, time
from ppo_lib.config import PPOConfig
from ppo_lib.course import live
from ppo_lib.course.panel import TrainingPanel
folder = pathlib.Path("{folder}")
config = PPOConfig.from_saved_json((folder / "config.json").read_text())
panel = TrainingPanel(folder / "run", config)
class Slow(live.Trainer):
    def __init__(self, *arguments, **options):
        time.sleep(2)
        super().__init__(*arguments, **options)
fast, live.Trainer = live.Trainer, Slow
print("waits")
panel.run_for(math.inf).wait()
""",
    """
live.Trainer = fast
try:
    panel.wait()
except Exception as error:
    print(error)
panel.start()
while panel.trainer is None or panel.trainer.steps < 64:
    time.sleep(0.02)
print("waits")
panel.wait()
""",
    "panel.start(); print(panel.running, panel.start_button.disabled, panel.stop_button.disabled)",
    "while panel.trainer is None: time.sleep(0.02)\npanel.stop(); panel.wait()\n"
    "print(panel.running, panel.start_button.disabled, panel.stop_button.disabled, panel.failure,"
    " sum(not t.ended.is_set() for t in threading.enumerate() if hasattr(t, 'ended')))",
    "panel.name.value = 'last'; panel.start()\n"
    "while panel.trainer is None or panel.trainer.steps < 64: time.sleep(0.02)",
)


def test_interrupt_start_and_stop_in_a_real_kernel(tiny, tmp_path):
    """Interrupting the waiting cell stops and saves, also before the games are ready; a start at once trains on; a stop
    then ends it. A kernel that is restarted or shut down saves first."""
    from jupyter_client.manager import start_new_kernel

    (tmp_path / "config.json").write_text(tiny(total_steps=100_000, checkpoint_interval=100_000).to_json())
    manager, client = start_new_kernel(cwd=str(ROOT))

    def run(code: str, interrupt: str = "") -> tuple[str, str]:
        """Run a cell (and interrupt it when it has printed this) -> what it printed, and the name of its error."""
        request, printed, error = client.execute(code), "", ""
        while True:
            message = client.get_iopub_msg(timeout=PATIENCE)
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "stream":
                printed += message["content"]["text"]
                if interrupt and interrupt in printed:
                    time.sleep(0.3)
                    manager.interrupt_kernel()
                    interrupt = ""
            elif message["msg_type"] == "error":
                error = message["content"]["ename"]
            elif message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return printed.strip(), error

    try:
        assert run(KERNEL_CELLS[0].format(folder=tmp_path), interrupt="waits") == ("waits", "KeyboardInterrupt")
        sentence = "run has no finished update yet: run this cell again."
        assert run(KERNEL_CELLS[1], interrupt="waits") == (f"{sentence}\nwaits", "KeyboardInterrupt")
        saved = (tmp_path / "run" / "checkpoint.pt").stat().st_mtime_ns
        assert run(KERNEL_CELLS[2]) == ("True True False", "")
        assert run(KERNEL_CELLS[3]) == ("False False True  0", "")
        assert (tmp_path / "run" / "checkpoint.pt").stat().st_mtime_ns > saved
        assert run(KERNEL_CELLS[4]) == ("", "") and not (tmp_path / "last" / "checkpoint.pt").exists()
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
