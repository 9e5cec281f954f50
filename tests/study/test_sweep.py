"""Sweeps: the grid, a run's state on disk, engines; and real ones that are killed and continue."""

from __future__ import annotations

import csv
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_runs import make_run
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_lib.__main__ import FIELDS, _parser, main
from ppo_lib.accel.hardware import cpu_threads
from ppo_lib.checkpoint import RunFolder, save_checkpoint, save_policy
from ppo_lib.config import PPOConfig, UserError, preset
from ppo_lib.policy import ActorCritic
from ppo_lib.runs import load_run
from ppo_lib.study import sweep as sweeps
from ppo_lib.study.sweep import SweepRun, plan, sweep

ROOT = Path(__file__).resolve().parents[2]
TINY = shlex.split(
    "--num-envs 4 --num-steps 16 --num-minibatches 2 --num-epochs 1 --no-recurrent --eval-episodes 2 "
    "--checkpoint-interval 64 --device cpu --precision float32"
)
STEPS = 640
CHANGED = "envs4-steps16-epochs1-minibatches2-no_recurrent"  # by TINY
NAMES = [f"{levels}-{CHANGED}-seed1" for levels in ("levels10", "unlimited")]
GRID = ["--num-levels", "10", "0", "--seed", "1", "--total-steps", str(STEPS), *TINY]
SETTINGS = {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive", "PYTHONDONTWRITEBYTECODE": ""}


pytestmark = pytest.mark.xdist_group("sweep")  # they share a finished sweep


@pytest.fixture(scope="module", autouse=True)
def _settings():
    with pytest.MonkeyPatch.context() as patch:
        for item in SETTINGS.items():
            patch.setenv(*item)
        yield


def start_sweep(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ppo_lib", "sweep", "--sweep", "s", *GRID],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def sweep_here(folder: Path, *more: str) -> tuple[int, str, str]:
    """The same command in this process (its runs have their own): exit code, what it said, its errors."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code = main(["sweep", "--sweep", "s", *GRID, *more])
    return code, out.getvalue(), err.getvalue()


def until(condition, seconds: float = 240):
    """Wait for something true and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def processes(folder: Path) -> list[int]:
    """The processes of the runs in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[2:4] == [b"ppo_lib", b"train"] and any(word.startswith(str(folder).encode()) for word in words):
            found.append(int(path.parent.name))
    return found


def outcome(folder: Path) -> dict[str, object]:
    """All that a sweep left but times: table, metrics and evaluations."""

    def rows(path: Path) -> list[dict[str, str]]:
        with open(path) as file:
            return [{k: v for k, v in row.items() if "second" not in k} for row in csv.DictReader(file)]

    return {str(p.relative_to(folder)): rows(p) for p in sorted(folder.rglob("*.csv"))}


def complete_run(folder: Path, **changes: object) -> SweepRun:
    """A run folder made of random numbers, with the policy that belongs to it."""
    config = preset("quick", **changes)
    make_run(folder, updates=config.num_updates, **config.to_dict())
    policy = ActorCritic(recurrent=config.recurrent)
    save_policy(folder, policy.state_dict(), config, config.num_updates * config.batch_size)
    return SweepRun(folder, config)


def grid(folder: Path, arguments: list[str]) -> list[SweepRun]:
    """The runs that the command line makes of these arguments."""
    options = vars(_parser().parse_args(["sweep", "--sweep", "s", *arguments]))
    return plan(folder, "quick", {name: options[name] or [True] for name in FIELDS if name in options})


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """A folder with a tiny sweep that nothing disturbed."""
    folder = tmp_path_factory.mktemp("swept")
    code, out, err = sweep_here(folder)
    assert code == 0 and err == "" and not re.search(r"(?i)warning|traceback", out), err
    assert re.search(r"\| +10 .*\n\| +unlimited ", out) and "report_levels_curve.png" in out
    return folder


# --- the grid --------------------------------------------------------------------------------------------------------

AXES = {
    "num_levels": st.lists(st.sampled_from([0, 1, 10, 200]), min_size=1, max_size=3, unique=True),
    "seed": st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
    "recurrent": st.lists(st.booleans(), min_size=1, unique=True),
    "learning_rate": st.lists(st.sampled_from([1e-5, 5e-4, 0.1]), min_size=1, unique=True),
    "total_steps": st.lists(st.sampled_from([1e6, 25_000_000]), min_size=1, unique=True),
    "env_name": st.lists(st.sampled_from(["starpilot", "coinrun"]), min_size=1, unique=True),
}


@settings(deadline=None)
@given(st.fixed_dictionaries({}, optional=AXES).filter(bool), st.randoms())
def test_a_grid_is_every_combination_once(values, random):
    runs = plan(Path("results/none"), "paper", values)
    count = 1
    for several in values.values():
        count *= len(several)
    assert len(runs) == len({run.run_dir for run in runs}) == len({run.config for run in runs}) == count
    for run in runs:
        assert all(getattr(run.config, name) in several for name, several in values.items())
        rest = {name: value for name, value in run.config.to_dict().items() if name not in values}
        assert rest == {name: value for name, value in preset("paper").to_dict().items() if name in rest}
        assert re.fullmatch(r"\w[\w.+-]*", run.run_dir.name) and run.run_dir.is_absolute()
    seeds = [run.config.seed for run in runs]
    assert seeds == sorted(seeds, key=values.get("seed", seeds).index)  # a whole grid of one seed, then the next
    # a smaller grid has the same names for the same runs, but for what a name says only where it varies
    part = {name: random.sample(several, random.randint(1, len(several))) for name, several in values.items()}
    if len(part.get("total_steps", [])) == len(values.get("total_steps", [])):
        names = {run.config: run.run_dir.name for run in runs}
        assert all(names[run.config] == run.run_dir.name for run in plan(Path("results/none"), "paper", part))


def test_names_say_what_differs_from_the_preset():
    values = {"num_levels": [0, 200], "seed": [3], "recurrent": [True, False], "device": ["cuda:0"]}
    assert [run.run_dir.name for run in plan(Path("x"), "paper", values)] == [
        "unlimited-recurrent-seed3", "unlimited-seed3", "levels200-recurrent-seed3", "levels200-seed3",
    ]  # fmt: skip


def test_the_commands_of_the_readme(capsys, monkeypatch, tmp_path):
    """The experiments are one command each, and mean the runs that they should."""
    monkeypatch.chdir(tmp_path)
    section = (ROOT / "results" / "README.md").read_text().partition("## Experiments")[2].partition("\n## ")[0]
    commands = [shlex.split(line)[3:] for line in re.findall(r"^ +(python -m ppo_lib sweep .*)$", section, re.M)]
    assert len(commands) == 5
    listed = []
    for command in commands:
        assert main([*command, "--dry-run"]) == 0
        listed.append(capsys.readouterr().out.splitlines())
    assert len(listed[0]) == 1 + 2 * 2 * 3 and listed[0][0].startswith("levels200-seed1 ")
    assert any(line.startswith("levels200-anneal_lr-recurrent-seed3 ") for line in listed[0])
    names = ["levels10-seed0", "levels50-seed0", "levels200-seed0", "unlimited-seed0"]
    assert [line.split()[0] for line in listed[1][:-1]] == names and "0 of 1,507,328 steps" in listed[1][0]
    names = ["levels200-seed0", "levels200-seed1", "levels200-seed2"]
    assert [line.split()[0] for line in listed[2][:-1]] == names and "0 of 1,507,328 steps" in listed[2][0]
    assert len(listed[3]) == 1 + 8 * 3 and listed[3][7].startswith("unlimited-seed1 ")
    assert "0 of 5,013,504 steps" in listed[3][0] and "24 runs" in listed[3][-1]
    names = ["levels200-seed1", "levels200-glorot-seed1"]
    assert [line.split()[0] for line in listed[4][:-1]] == names and "0 of 2,015,232 steps" in listed[4][0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--sweep s", "needs config fields with values, such as --num-levels"),
        ("--num-levels 10", "--sweep"),
        ("--sweep ../s --seed 1", "name is made of letters"),
        ("--sweep s --seed", "--seed: expected at least one argument"),
        ("--sweep s --sead 1", "did you mean '--seed'"),
        ("--sweep s --seed 1 one", "seed must be a whole number, not 'one'"),
        ("--sweep s --recurrent true maybe", "recurrent must be true or false, not 'maybe'"),
        ("--sweep s --seed 1 --gamma 0.9 1.5", "gamma must be .* at most 1"),
        ("--sweep s --num-envs 64 63 --num-minibatches 7 8", "(doesn't|does not) divide"),
        ("--sweep s --seed 1 2 1", "levels50-seed1 twice"),
        ("--sweep s --total-steps 1e6 1000000", "twice"),
        ("--sweep s --seed 1 --engine tractor", "invalid choice"),
        ("--sweep s --seed 1 --jobs 0", "at least 1"),
        ("--sweep lone --seed 1", "folder of a run"),
        ("--sweep other --seed 1", r"another config \(num_levels 10 -> 50\).*another name"),
        ("--sweep annealed --anneal-lr --seed 1", r"another config \(total_steps 163840 -> 435000\)"),
        ("--sweep long --seed 1 --total-steps 64000", "180,224 steps already, more than the 65,536"),
        ("--sweep lost --seed 1 --total-steps 1e6", "no checkpoint to resume from.*remove the folder"),
    ],
)
def test_mistakes_get_one_sentence_and_start_nothing(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    results = tmp_path / "results"
    name = arguments.split()[1]
    if name == "lone":
        make_run(results / "lone")
    if name == "other":
        make_run(results / "other/levels50-seed1", **preset("quick", seed=1, num_levels=10).to_dict())
    if name == "annealed":
        annealed = preset("quick", seed=1, anneal_lr=True, total_steps=163_840)
        make_run(results / "annealed/levels50-anneal_lr-seed1", **annealed.to_dict())
    if name in ("long", "lost"):
        made = complete_run(results / name / "levels50-seed1", seed=1)
        if name == "long":
            state = {"config": made.config.to_dict(), "precision": "float32", "steps": 180_224}
            save_checkpoint(made.run_dir, state)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(["sweep", *arguments.split()]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1 and shown.out == ""
    assert re.search(words, shown.err), shown.err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_no_such_field():
    with pytest.raises(UserError, match="did you mean 'seed'"):
        plan(Path("x"), "quick", {"sead": [1]})


# --- a run's state ---------------------------------------------------------------------------------------------------


def test_complete_means_evaluated_at_the_end(tmp_path):
    run = complete_run(tmp_path / "levels50-seed1", seed=1, eval_episodes=64)
    assert run.complete
    for change in ({"eval_episodes": 65}, {"total_steps": 10**6}):
        assert not SweepRun(run.run_dir, run.config.replace(**change)).complete
    trained_only = SweepRun(run.run_dir, run.config.replace(eval_interval=-1))
    assert trained_only.complete
    save_policy(run.run_dir, ActorCritic().state_dict(), run.config, run.config.last_step - run.config.batch_size)
    assert run.complete and not trained_only.complete
    (run.run_dir / "policy.pt").unlink()
    assert run.complete and not trained_only.complete  # git may keep the CSVs alone
    (run.run_dir / "evaluation.csv").unlink()
    assert not run.complete


def test_results_without_policy_are_neither_trained_again_nor_hidden(tmp_path):
    """As where git holds the CSVs alone."""
    kept = complete_run(tmp_path / "s/levels50-seed1", seed=1, eval_episodes=64)
    (kept.run_dir / "policy.pt").unlink()
    before = {path.name: path.read_bytes() for path in kept.run_dir.iterdir()}
    assert sweep(plan(tmp_path / "s", "quick", {"seed": [1], "eval_episodes": [64]})) == 0
    with pytest.raises(UserError, match=r"no checkpoint"):
        plan(tmp_path / "s", "quick", {"seed": [1], "eval_episodes": [64], "total_steps": [10**6]})
    assert {name: (kept.run_dir / name).read_bytes() for name in before} == before


def test_the_train_command_means_the_config_and_continues_what_is_there(tmp_path):
    config = preset("paper", seed=7, anneal_lr=True, learning_rate=3.3e-5, eval_interval=-1, device="cpu",
                    precision="bf16")  # fmt: skip
    run = SweepRun(tmp_path / "s/run", config)

    def options():
        found = _parser().parse_args(run.arguments())
        assert found.name == "train" and found.results / found.run == run.run_dir
        assert PPOConfig.from_dict({name: getattr(found, name) for name in FIELDS}) == config
        return found

    run.run_dir.mkdir(parents=True)
    assert not options().resume  # new
    (run.run_dir / "config.json").write_text(config.to_json())
    assert options().resume  # killed before its first save: it starts again, see test_train.py
    (run.run_dir / "checkpoint.previous.pt").write_text("killed between the renames of a save")
    assert options().resume


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; print('training'); sys.exit('error: the disk is full')", "^the disk is full$"),
        ("raise ValueError('wrong shape')", "ValueError: wrong shape"),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL.*out of memory"),
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("import sys; sys.exit(130)", "was stopped"),
        ("pass", "without its last evaluation"),
    ],
)
def test_the_cause_of_a_failure(tmp_path, code, words):
    run = SweepRun(tmp_path, PPOConfig())
    with open(tmp_path / "log.txt", "ab") as log:
        code = subprocess.run([sys.executable, "-c", code], stdout=log, stderr=log).returncode
    assert re.search(words, sweeps._failure(run, code))


def test_a_run_starts_when_nobody_else_is_in_its_folder(tmp_path, monkeypatch):
    """The process of a sweep that was killed may still be saving."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: time.monotonic())
    saving = RunFolder(tmp_path, PPOConfig(), resume=True)
    other = threading.Thread(target=saving.claim, args=[PPOConfig()])
    other.start()
    other.join()
    threading.Timer(0.5, saving.release).start()
    begin = time.monotonic()
    assert sweeps._start(SweepRun(tmp_path, PPOConfig())) - begin > 0.4
    saving.claim(PPOConfig())  # the starting process does not keep it
    saving.release()


def test_precision_is_decided_once(tmp_path, monkeypatch):
    measured = iter(["bf16", "float32"])
    hardware = SimpleNamespace(configure=lambda config: SimpleNamespace(precision=next(measured)))
    monkeypatch.setitem(sys.modules, "ppo_lib.accel.hardware", hardware)
    fixed = SweepRun(tmp_path / "s/fixed", PPOConfig(precision="float32"))
    runs = [SweepRun(tmp_path / f"s/{name}", PPOConfig()) for name in "abc"]
    first = sweeps._settle_precision([fixed, *runs])
    assert [run.config.precision for run in first] == ["float32", "bf16", "bf16", "bf16"]
    (tmp_path / "s/a").mkdir(parents=True)
    (tmp_path / "s/a/config.json").write_text(first[1].config.to_json())
    (tmp_path / "s/damaged").mkdir()
    (tmp_path / "s/damaged/config.json").write_text("{")
    again = sweeps._settle_precision(runs)
    assert [run.config.precision for run in again] == ["auto", "bf16", "bf16"]  # one has begun and keeps its own
    assert "--precision" not in again[0].arguments() and "--resume" in again[0].arguments()
    assert next(measured) == "float32"  # nothing was measured a second time


# --- engines ---------------------------------------------------------------------------------------------------------


def test_one_run_a_gpu_and_jobs(tmp_path, monkeypatch):
    busy, most, seen, shares = Counter(), Counter(), {}, set()

    class Process:
        def __init__(self, gpu):
            self.gpu, self.polls = gpu, iter([None, None, 0])

        def poll(self):
            self.returncode = next(self.polls)
            busy[self.gpu] -= self.returncode == 0
            return self.returncode

    def start(run, gpu, threads):
        busy[gpu] += 1
        shares.add(threads)
        most[gpu] = max(most[gpu], busy[gpu])
        seen[run.run_dir.name] = gpu
        return Process(gpu)

    runs = [SweepRun(tmp_path / f"run{i}", PPOConfig()) for i in range(9)]
    monkeypatch.setattr(sweeps, "_gpus", lambda runs: ["0", "1"])
    monkeypatch.setattr(sweeps, "_start", start)
    monkeypatch.setattr(sweeps, "_failure", lambda run, code: None)
    monkeypatch.setattr(sweeps.time, "sleep", lambda seconds: None)
    monkeypatch.setattr("ppo_lib.accel.hardware.usable_cores", lambda: 8)
    for jobs in (1, 2):
        most.clear(), seen.clear(), shares.clear()
        ended = [run for run, cause in sweeps.local(runs, jobs)]
        assert most == {"0": jobs, "1": jobs} and len(seen) == 9 and set(ended) == set(runs)
        assert shares == {4 // jobs}  # of eight cores
    assert [run.run_dir.name for run in ended[:4]] == ["run0", "run1", "run2", "run3"]  # in their order


def test_which_gpus_there_are(monkeypatch):
    torch = pytest.importorskip("torch")
    auto, cpu = SweepRun(Path("a"), PPOConfig()), SweepRun(Path("b"), PPOConfig(device="cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert sweeps._gpus([auto, cpu]) == ["0", "1", "2"]
    assert sweeps._gpus([cpu]) == [None]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-5ebe9f43")
    assert sweeps._gpus([auto]) == ["2", "GPU-5ebe9f43"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert sweeps._gpus([auto]) == [None]


def test_a_run_sees_its_gpu_alone(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: given.update(options["env"]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    for gpu, device, visible in (("1", "auto", "1"), (None, "auto", "0,1"), ("1", "cuda:0", "0,1")):
        sweeps._start(SweepRun(tmp_path, PPOConfig(device=device)), gpu)
        assert given["CUDA_VISIBLE_DEVICES"] == visible


def test_each_of_several_runs_has_its_share_of_the_cores(tmp_path, monkeypatch):
    """As its own process sees it; test_hardware.py shows that a run keeps to it."""
    for name in ("OMP_THREAD_LIMIT", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    count = "import os; print('threads', os.environ['OMP_THREAD_LIMIT'])"
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **how: start([sys.executable, "-c", count], **how))
    monkeypatch.setattr(sweeps, "_failure", lambda run, code: None)
    cores = cpu_threads()
    for jobs, runs in ((cores, cores), (cores, 1), (1, 2)):
        grid = [SweepRun(tmp_path / f"{jobs}-{runs}-{i}", PPOConfig(device="cpu")) for i in range(runs)]
        assert len(list(sweeps.local(grid, jobs))) == runs
        for run in grid:
            assert (run.run_dir / "log.txt").read_text().endswith(f"\nthreads {cores // min(jobs, runs)}\n")


def test_ray_missing_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"deeplearningppo\[ray\].*--engine local"):
        next(sweeps.ray([]))


class FakeRay:
    """As much of Ray as a sweep uses, in this process: tasks run when they are waited for."""

    def __init__(self, fail=()):
        self.fail, self.options, self.cancelled = dict(fail), None, []

    def init(self, **options): ...

    def nodes(self):
        return [{"Resources": {"CPU": 4.0}}, {"Resources": {"CPU": 8.0}}]

    def cluster_resources(self):
        return {"CPU": 12.0}

    def remote(self, **options):
        self.options = options
        return lambda function: SimpleNamespace(remote=lambda run: run.run_dir.name)

    def wait(self, tasks, num_returns=1, timeout=None):
        return tasks[:num_returns], tasks[num_returns:]

    def get(self, task):
        if task in self.fail:
            raise self.fail[task]
        return None

    def cancel(self, task):
        self.cancelled.append(task)


def test_ray_places_and_retries(tmp_path, monkeypatch):
    runs = [SweepRun(tmp_path / name, PPOConfig()) for name in "abc"]
    cluster = FakeRay({"b": InterruptedError("killed by SIGKILL\nand more")})
    monkeypatch.setitem(sys.modules, "ray", cluster)
    ended = [(run.run_dir.name, cause) for run, cause in sweeps.ray(runs, 2)]
    assert ended == [("a", None), ("b", "killed by SIGKILL"), ("c", None)]
    assert cluster.options == {"max_retries": 3, "retry_exceptions": [InterruptedError], "num_cpus": 2}
    events = sweeps.ray(runs)
    next(events)
    events.close()  # as Ctrl-C does
    assert cluster.cancelled == ["b", "c"]


def test_a_task_of_ray_says_whether_to_try_again(tmp_path, monkeypatch):
    stopped = []
    for code, outcome in ((0, None), (-9, InterruptedError), (2, "the disk is full")):
        monkeypatch.setattr(sweeps, "_start", lambda run, code=code: SimpleNamespace(wait=lambda: code))
        monkeypatch.setattr(sweeps, "_stop", stopped.append)
        monkeypatch.setattr(sweeps, "_failure", lambda run, code, outcome=outcome: outcome)
        if outcome is InterruptedError:
            with pytest.raises(InterruptedError):
                sweeps._run_on_ray(SweepRun(tmp_path, PPOConfig()))
        else:
            assert sweeps._run_on_ray(SweepRun(tmp_path, PPOConfig())) == outcome
    assert len(stopped) == 3


# --- the runs of a folder --------------------------------------------------------------------------------------------


def test_the_table_holds_the_runs_of_all_commands(tmp_path, capsys):
    fields = dict(seed=1, total_steps=65_536, eval_episodes=64)
    for levels in (0, 200, 50):
        complete_run(tmp_path / f"s/{levels or 'unlimited'}", num_levels=levels, **fields)
    unfinished = complete_run(tmp_path / "s/unfinished", num_levels=10, **fields)
    (unfinished.run_dir / "evaluation.csv").unlink()
    complete_run(tmp_path / "s/levels200-no_recurrent-seed1", num_levels=200, recurrent=False, **fields)
    values = {"num_levels": [200], "recurrent": [False], **{name: [value] for name, value in fields.items()}}
    runs = plan(tmp_path / "s", "quick", values)
    assert runs[0].complete
    (tmp_path / "s/damaged").mkdir()
    (tmp_path / "s/damaged/config.json").write_text("{")
    (complete_run(tmp_path / "s/edited", num_levels=30, **fields).run_dir / "metrics.csv").write_text("steps\nmany\n")
    assert sweep(runs) == 0
    out, err = capsys.readouterr()
    assert "1 of 1 runs are complete already" in out
    assert "Left out of the table: damaged (" in err and "Left out of the table: edited (" in err
    with open(tmp_path / "s/table.csv") as file:
        rows = [(row["num_levels"], row["recurrent"]) for row in csv.DictReader(file)]
    assert rows == [("50", "True"), ("200", "False"), ("200", "True"), ("0", "True")]


# --- real sweeps -----------------------------------------------------------------------------------------------------


def test_a_sweep_leaves_whole_runs_and_a_table(swept):
    for name in NAMES:
        folder = swept / "results/s" / name
        log = (folder / "log.txt").read_text()
        assert log.startswith("python -m ppo_lib train --run") and "CPU with" in log
        assert load_run(folder).steps == STEPS
    assert set(outcome(swept)) == {f"results/s/{path}" for path in (
        "table.csv", *(f"{name}/{kind}.csv" for name in NAMES for kind in ("metrics", "evaluation")))}  # fmt: skip


def test_complete_runs_are_skipped(swept):
    before = {path: path.stat().st_mtime_ns for name in NAMES for path in (swept / "results/s" / name).iterdir()}
    table_before = outcome(swept)
    code, out, _ = sweep_here(swept)
    assert code == 0 and "2 of 2 runs are complete already" in out
    assert {path: path.stat().st_mtime_ns for path in before} == before and outcome(swept) == table_before
    code, out, _ = sweep_here(swept, "--dry-run")
    assert code == 0
    assert re.search(rf"{NAMES[0]} +complete\n.*complete\n2 runs in .*results/s, 1,280 steps", out)


def test_kills_and_ctrl_c_change_nothing_but_time(swept, tmp_path):
    """Ctrl-C, kill -9 of the sweep, kill -9 of a run: the same command ends where an undisturbed one does."""
    first, second = (tmp_path / "results/s" / name for name in NAMES)

    process = start_sweep(tmp_path)
    until((first / "checkpoint.pt").exists)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert "0 of 2 runs are complete. The same command continues." in out
    assert not processes(tmp_path)

    process = start_sweep(tmp_path)
    steps = load_run(first).steps
    until(lambda: load_run(first).steps > steps)
    process.kill()
    process.communicate()

    def kill_a_run():
        """The next one of the first folder, which waits until that of the killed sweep has saved."""
        until(lambda: (first / "log.txt").read_text().count("python -m ppo_lib train") == 3)
        steps = load_run(first).steps
        until(lambda: load_run(first).steps > steps)
        [victim] = processes(tmp_path)
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill_a_run)
    killer.start()
    code, out, err = sweep_here(tmp_path)
    killer.join()
    assert code == 1 and re.search(rf"FAILED {NAMES[0]}: killed by SIGKILL.*log.txt", err), err
    assert "1 of 2 runs failed" in err and f"{second.name}: complete" in out  # it stopped no other
    assert re.search(r"\| +unlimited +\|", out) and not re.search(r"\| +10 +\|", out)

    code, out, err = sweep_here(tmp_path)
    assert code == 0 and "1 of 2 runs are complete already" in out, err
    assert outcome(tmp_path / "results") == outcome(swept / "results")


def test_a_damaged_run_fails_when_its_turn_comes(tmp_path, monkeypatch, capsys):
    [run] = grid(tmp_path / "results/s", ["--seed", "3", *TINY])
    run.run_dir.mkdir(parents=True)
    (run.run_dir / "config.json").write_text(run.config.to_json())
    (run.run_dir / "checkpoint.pt").write_bytes(b"nonsense")
    [run] = grid(tmp_path / "results/s", ["--seed", "3", *TINY])
    assert main(run.arguments()) == 2 and "is damaged" in capsys.readouterr().err


def test_a_cluster_of_two_machines(tmp_path, monkeypatch, capsys):
    """Ray places a run on each of two nodes, and starts one again whose process is killed."""
    pytest.importorskip("ray", reason="Ray is an extra: pip install 'deeplearningppo[ray]'")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's workers give way to all else: on a busy machine, for minutes
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        runs = grid(tmp_path / "results/s", [*GRID, "--total-steps", "320"])
        killed = []

        def kill_one() -> None:
            until((runs[0].run_dir / "checkpoint.pt").exists)
            [victim] = processes(runs[0].run_dir)
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)

        killer = threading.Thread(target=kill_one)
        killer.start()
        assert sweep(runs, "ray") == 0, capsys.readouterr().err
        killer.join()
        assert killed and all(run.complete for run in runs)
        assert (runs[0].run_dir / "log.txt").read_text().count("python -m ppo_lib train") == 2
        assert "unlimited |" in capsys.readouterr().out
    finally:
        cluster.shutdown()
