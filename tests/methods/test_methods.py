"""What every method promises: it learns, resumes bit for bit in bf16, and runs in sweeps, recordings, micro-batches."""

import copy
import csv
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch

from ppo_lib.__main__ import main
from ppo_lib.accel.graphs import attach_graphs
from ppo_lib.config import ConfigError
from ppo_lib.course import toy
from ppo_lib.methods import ALGORITHMS, algorithm_class
from ppo_lib.study.sweep import plan
from ppo_lib.train import Trainer

ROOT = Path(__file__).parents[2]
METHODS = [name for name in ALGORITHMS if name != "ppo"]
BOTH = [(name, recurrent) for name in METHODS for recurrent in (False, True) if (name, recurrent) != ("mixreg", True)]
GRU = [name for name, recurrent in BOTH if recurrent]
PHASES = dict(ppg_interval=2, ppg_epochs=1)


def weights(policy):
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def learn(task, name, **changes):
    config = toy.toy_config(algorithm=name, **PHASES, **changes)
    return toy.train(task, config, algorithm_class(name)(toy.tiny_policy(config), config))[1]["return_mean"]


@pytest.mark.parametrize("name", METHODS)
def test_it_solves_the_bandit(name):
    curve = learn("bandit", name, total_steps=10_000)
    assert curve[0] < 0.4 and curve[-1] > 0.95 * toy.optimal_return("bandit")


@pytest.mark.parametrize("name", GRU)
def test_with_a_gru_it_solves_the_memory_task(name):
    assert learn("memory", name, total_steps=19_200, recurrent=True)[-1] > 0.95


@pytest.mark.parametrize(("name", "recurrent"), BOTH)
def test_micro_batches_change_nothing(agent, name, recurrent):
    found = []
    for micro_batch in (10_000, 24):
        ppo, storage = agent(recurrent, micro_batch, kind=ALGORITHMS[name], **{**PHASES, "ppg_interval": 1})
        found.append((ppo.update(storage), weights(ppo.policy)))
    (metrics, whole), (other_metrics, other) = found
    torch.testing.assert_close(other, whole, atol=2e-5, rtol=1e-4)
    assert other_metrics == pytest.approx(metrics, rel=1e-3, abs=1e-5)


def copying_record(function, inputs):
    """Results in fixed places, computed anew from the inputs' places, as a CUDA graph's are."""
    outputs = {name: x.detach().clone() for name, x in function(*inputs).items()}

    def replay():
        for name, new in function(*inputs).items():
            outputs[name].copy_(new.detach())

    return outputs, replay


@pytest.mark.parametrize(("name", "recurrent"), BOTH)
def test_recordings_compute_the_same(agent, name, recurrent):
    """What is drawn at random comes in as a field, so that a recording of the gradient repeats no draw."""
    found = []
    for recorded in (False, True):
        ppo, storage = agent(recurrent, kind=ALGORITHMS[name], num_epochs=1, **{**PHASES, "ppg_interval": 1})
        _, learning = attach_graphs(ppo, copying_record) if recorded else (None, None)
        found.append((ppo.update(storage), weights(ppo.policy)))
    assert learning.enabled and len(learning.recordings) == 1 + (name == "ppg")
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize(("name", "recurrent"), [("mixreg", False), ("drac", True), ("ppg", True)])
def test_a_resume_after_sigkill_is_bit_for_bit(tiny, tmp_path, name, recurrent):
    config = tiny(algorithm=name, recurrent=recurrent, total_steps=256, num_epochs=1, precision="bf16", **PHASES)
    code = (
        "import os, signal, sys; from pathlib import Path; from ppo_lib.config import PPOConfig\n"
        "from ppo_lib.train import Trainer\n"
        "trainer = Trainer(PPOConfig.from_saved_json(Path(sys.argv[1]).read_text()), sys.argv[2], progress=False)\n"
        "trainer.train(lambda row: os.kill(os.getpid(), signal.SIGKILL) if row['steps'] == 192 else None)\n"
    )
    (tmp_path / "c.json").write_text(config.to_json())
    command = [sys.executable, "-c", code, str(tmp_path / "c.json"), str(tmp_path / "killed")]
    assert subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == -signal.SIGKILL
    found = []
    for run, resume in (("whole", False), ("killed", True)):
        trainer = Trainer(config, tmp_path / run, resume=resume, progress=False)
        assert trainer.steps == 192 * resume
        first = weights(trainer.policy)
        assert trainer.train()
        rows = list(csv.DictReader((tmp_path / run / "metrics.csv").open()))
        found.append((weights(trainer.policy), [{k: v for k, v in row.items() if "second" not in k} for row in rows]))
        assert found[-1][0].isfinite().all() and not torch.equal(found[-1][0], first)
        trainer.close()
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


def test_a_sweep_trains_every_method(tmp_path):
    """And so does `train`, which it calls."""
    tiny = shlex.split(
        "--preset quick --no-recurrent --num-envs 4 --num-steps 16 --num-minibatches 2 --num-epochs 1 --total-steps 64 "
        "--eval-interval -1 --device cpu --precision float32 --ppg-interval 1"
    )
    assert main(["sweep", "--sweep", "s", "--results", str(tmp_path), "--algorithm", *METHODS, *tiny]) == 0
    headers = [path.read_text().split("\n")[0] for path in tmp_path.glob("s/*/metrics.csv")]
    assert len(headers) == len(METHODS)
    assert sum("auxiliary_kl" in header for header in headers) == sum("crop_kl" in header for header in headers) == 1


OWN = """from __future__ import annotations
from dataclasses import dataclass
from ppo_lib.ppo import PPO
from ppo_lib.storage import Batch

@dataclass
class OwnBatch(Batch):
    weight: float = 1.0

class Own(PPO):
    \"\"\"Its dataclass finds its module, whose name hides no other.\"\"\"
    coef, count, sign, word = 0.5, 3, True, "own"

Other = print
"""


def test_a_class_in_a_file_is_an_algorithm(tiny, tmp_path):
    """The folder may have spaces and the file any name. A run continues with it."""
    path = tmp_path / "my methods" / "random.py"
    path.parent.mkdir()
    path.write_text(OWN)
    config = tiny(algorithm=f"{path}:Own", total_steps=64)
    for total, resume in ((64, False), (128, True)):
        with closing(Trainer(config.replace(total_steps=total), tmp_path / "run", resume=resume)) as trainer:
            assert type(trainer.ppo).__name__ == "Own" and trainer.train() and trainer.steps == total
    assert sys.modules["random"].__file__ != str(path)


def test_settings_of_a_class_in_a_file(tmp_path):
    """Each keeps its type. The class is a new one: without settings it has its own values. They name a run's folder."""
    path = tmp_path / "own.py"
    path.write_text(OWN)
    settings = "coef=1:count=2e1:sign=false:word=1"
    kind = algorithm_class(f"{path}:Own:{settings}")
    assert (kind.__name__, kind.coef, kind.count, kind.sign, kind.word) == ("Own", 1.0, 20, False, "1")
    assert [type(value) for value in (kind.coef, kind.count)] == [float, int]
    plain = algorithm_class(f"{path}:Own")
    assert (plain.coef, plain.count, plain.sign, plain.word) == (0.5, 3, True, "own")
    grid = {"algorithm": [f"{path}:Own", f"{path}:Own:{settings}"], "seed": [1]}
    names = [run.run_dir.name for run in plan(tmp_path / "sweep", "quick", grid)]
    assert names == ["levels50-Own-seed1", "levels50-Own-coef-1-count-2e1-sign-false-word-1-seed1"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pp", "There is no algorithm 'pp'; did you mean 'ppo'"),
        ("lost.py:Own", "There is no file .*lost.py to take the algorithm Own from"),
        ("own.py:Ohn", "own.py has no subclass of PPO named 'Ohn'; did you mean 'Own'"),
        ("own.py:PPO", "own.py has no subclass of PPO named 'PPO'; choose one of: Own"),
        ("own.py:Other", "own.py has no subclass of PPO named 'Other'"),
        ("own.py:Own:coef", "A setting of Own is ATTRIBUTE=VALUE, not 'coef'"),
        ("own.py:Own:koef=1", "Own has no class attribute 'koef'; did you mean 'coef'"),
        ("own.py:Own:loss=1", "Own has no class attribute 'loss'; choose one of: .*coef"),
        ("own.py:Own:coef=much", "coef must be a number, not 'much'"),
        ("own.py:Own:count=0.5", "count must be a whole number, not 0.5"),
        ("own.py:Own:sign=1", "sign must be true or false, not 1"),
    ],
)
def test_a_wrong_algorithm_gets_one_sentence(tmp_path, monkeypatch, capsys, name, said):
    """Before anything is written, in a sweep before any of its runs."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    for command in (["train"], ["sweep", "--sweep", "s"]):
        assert main([*command, "--algorithm", name, "--device", "cpu"]) == 2
        err = capsys.readouterr().err
        assert re.match(f"error: {said}", err) and err.count("\n") == 1
        assert not (tmp_path / "results").exists()


def test_what_a_method_needs_is_said_when_training_starts(tiny, tmp_path, capsys):
    trainer = Trainer(tiny(algorithm="ppg", recurrent=False, **PHASES), tmp_path / "run")
    trainer.close()
    assert "PPG keeps up to 0.0 GB of rollouts" in capsys.readouterr().out


def test_a_refused_method_leaves_no_folder(tiny, tmp_path):
    with pytest.raises(ConfigError, match="--no-recurrent"):
        Trainer(tiny(algorithm="mixreg"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_methods_draw_from_the_generator_that_is_saved(agent):
    """Restored, it gives the same update; torch's and NumPy's own generators stay untouched."""
    for name, recurrent in BOTH:
        ppo, storage = agent(recurrent, kind=ALGORITHMS[name], num_epochs=1, **PHASES)
        state, before = copy.deepcopy(ppo.state_dict()), torch.random.get_rng_state()
        results = []
        for _ in range(2):
            ppo.load_state_dict(state)
            results.append(ppo.update(storage))
        assert results[0] == results[1] and torch.equal(before, torch.random.get_rng_state())
