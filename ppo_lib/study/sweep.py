"""A sweep: a grid of runs over any config fields, in results/NAME/, that continues after whatever stops it.

- The same command starts it, continues it, adds to it (seeds, steps) and shows it once it is complete.
- A run's folder is named after what its config changes in the preset, so that its name doesn't depend on the grid.
- Each run is the ordinary train command in a process of its own, which an engine places: `local` on this machine's
  GPUs or its CPU, `ray` on a cluster, where Ray repeats runs that were killed. A run that fails stops no other.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ppo_lib.checkpoint import CheckpointError, RunFolder, interruptible, load_policy, uninterrupted
from ppo_lib.config import PPOConfig, UserError, as_flag, preset
from ppo_lib.methods import algorithm_class
from ppo_lib.runs import MEASURING_FIELDS, SPLITS, fixed_changes, load_run, read_config, read_evaluation
from ppo_lib.study.table import LOG, conclude

# A run's name says these only where they vary: they change the machine or how much is done, not what is learned.
UNNAMED = ("total_steps", "device", "precision", *MEASURING_FIELDS)
TIME_TO_SAVE = 60  # seconds between asking a run to stop and killing it
PROJECT = str(Path(__file__).resolve().parents[2])
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class SweepRun:
    """A run of the grid: its folder (absolute, so that it means the same in every process) and settings."""

    run_dir: Path
    config: PPOConfig

    @property
    def begun(self) -> bool:
        """Whether there is a run in the folder."""
        return (self.run_dir / "config.json").is_file()

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do: evaluated at the last step, or trained so far if no evaluation is wanted."""
        end, wanted = self.config.last_step, self.config.eval_episodes
        if self.config.eval_interval >= 0:
            played = read_evaluation(self.run_dir / "evaluation.csv")
            return self.begun and all(len(played.select(split, end)) >= wanted for split in SPLITS)
        with suppress(CheckpointError):
            return load_policy(self.run_dir)[2] == end
        return False

    def arguments(self) -> list[str]:
        """The command that brings the run to its end: what follows `python -m ppo_lib`."""
        config = self.config.to_dict()
        if self.begun and self.config.precision == "auto":
            del config["precision"]  # the run has settled its own
        where = ["--run", self.run_dir.name, "--results", str(self.run_dir.parent), *["--resume"] * self.begun]
        return ["train", *where, *(word for field in config.items() for word in as_flag(*field).split(" ", 1))]


def plan(folder: Path, preset_name: str, values: Mapping[str, Sequence[object]]) -> list[SweepRun]:
    """The runs of a grid: every combination of the values of each config field, the rest from the preset.

    Raises UserError if there are no values, a combination is no valid config or has no algorithm, or a run's folder
    holds something that it can't continue: nothing may be overwritten. Writes nothing.
    """
    if not values:
        raise UserError("A sweep needs config fields with values, such as --num-levels 10 50 200 --seed 1 2.")
    if (folder / "config.json").exists():
        raise UserError(f"{folder} is the folder of a run; give the sweep another name with --sweep.")
    base, varied = preset(preset_name), [name for name, several in values.items() if len(several) > 1]
    fields = sorted(values, key=lambda name: name != "seed")  # the seed varies slowest: one seed's whole curve first
    runs: dict[str, SweepRun] = {}
    for cell in itertools.product(*(values[name] for name in fields)):
        config = preset(preset_name, **dict(zip(fields, cell, strict=True)))
        algorithm_class(config.algorithm)
        name = run_name(config, base, varied)
        if name in runs:
            raise UserError(f"The grid has the run {name} twice: give each value of a field once.")
        runs[name] = run = SweepRun((folder / name).resolve(), config)
        if run.begun and (changes := fixed_changes(read_config(run.run_dir), config)):
            remedy = "give the sweep another name with --sweep, or remove that run"
            raise UserError(f"The run {run.run_dir} was made with another config ({changes}); {remedy}.")
        with suppress(CheckpointError):  # damaged files make that run fail, when its turn comes
            run.complete or RunFolder(run.run_dir, config, resume=True).find_checkpoint()
    return list(runs.values())


def run_name(config: PPOConfig, base: PPOConfig, varied: Sequence[str] = ()) -> str:
    """Levels, then what differs from the preset `base`, then the seed: levels200-recurrent-seed1, unlimited-seed1."""
    parts = [f"levels{config.num_levels}" if config.num_levels else "unlimited"]
    hidden = {"num_levels", "seed", *UNNAMED} - ({*varied} & {*UNNAMED})
    for name, value in config.to_dict().items():
        if name not in hidden and value != getattr(base, name):
            word = re.sub(r"[^\w.+-]", "-", str(value).rpartition(".py:")[2])  # FILE.py:CLASS is named after its class
            plain = {bool: name if value else f"no_{name}", str: word}
            parts.append(plain.get(type(value), f"{name.removeprefix('num_')}{word}"))
    return "-".join([*parts, f"seed{config.seed}"])


def describe(runs: Sequence[SweepRun]) -> str:
    """The runs in their order and how far each is, a line each, and the sum."""
    width, lines = max(len(run.run_dir.name) for run in runs), []
    for run in runs:
        steps = load_run(run.run_dir).steps if run.begun else 0
        state = "complete" if run.complete else f"{steps:,} of {run.config.last_step:,} steps"
        lines.append(f"{run.run_dir.name:<{width}}  {state}")
    total = f"{sum(run.config.last_step for run in runs):,} steps"
    return "\n".join([*lines, f"{len(runs)} runs in {runs[0].run_dir.parent}, {total}"])


def sweep(runs: Sequence[SweepRun], engine: str = "local", jobs: int = 1) -> int:
    """Bring all runs to their end, then print and write a table, figures and a report of all that lie in the folder.

    engine: local or ray; jobs: runs at a time on each GPU (or on the CPU).
    Returns 0, 1 if a run failed, or 130 after Ctrl-C or another stop signal.
    """
    todo, failures = [run for run in runs if not run.complete], {}
    if len(todo) < len(runs):
        print(f"{len(runs) - len(todo)} of {len(runs)} runs are complete already.")
    try:
        with interruptible(), closing({"local": local, "ray": ray}[engine](_settle_precision(todo), jobs)) as ended:
            for run, cause in ended:
                print(f"{run.run_dir.name}: {cause or 'complete'}", flush=True)
                failures |= {run.run_dir: cause} if cause else {}
    except KeyboardInterrupt:
        complete = sum(run.complete for run in runs)
        print(f"\nStopped; {complete} of {len(runs)} runs are complete. The same command continues.")
        return 130
    if failures:
        told = [f"FAILED {run_dir.name}: {cause} (log: {run_dir / LOG})" for run_dir, cause in failures.items()]
        told.append(f"{len(failures)} of {len(runs)} runs failed. The same command tries them again.")
        print(*told, sep="\n", file=sys.stderr)
    beside, finished = sorted(path.parent for path in runs[0].run_dir.parent.glob("*/config.json")), []
    for folder in dict.fromkeys([*(run.run_dir for run in runs), *beside]):
        try:
            found = load_run(folder)
            finished += [found] if SweepRun(folder, found.config).complete and folder not in failures else []
        except UserError as error:  # one that can't be read must not hide the others' results
            print(f"Left out of the table: {folder.name} ({error})", file=sys.stderr)
    if finished:
        finished.sort(key=lambda run: run.config.num_levels or float("inf"))  # stable: the rest as given
        conclude([run.path for run in finished])
    return 1 if failures else 0


# An engine yields each run that has ended, with the cause of its failure, or None. Closing it stops all runs.
Ended = Iterator[tuple[SweepRun, str | None]]


def local(runs: Sequence[SweepRun], jobs: int = 1) -> Ended:
    """Run everything on this machine, `jobs` at a time on each GPU, or on the CPU, with equal shares of the cores."""
    from ppo_lib.accel.hardware import cpu_threads

    waiting, places, running = list(runs), _gpus(runs) * jobs, {}
    threads = cpu_threads(min(len(places), len(runs) or 1))
    try:
        while waiting or running:
            while waiting and places:
                run, place = waiting.pop(0), places.pop(0)
                running[run] = place, _start(run, place, threads)
            for run, (place, process) in list(running.items()):
                if process.poll() is not None:
                    del running[run]
                    places.append(place)
                    yield run, _failure(run, process.returncode)
            time.sleep(0.5)
    finally:
        with uninterrupted():
            _stop(*(process for _, process in running.values()))


def ray(runs: Sequence[SweepRun], jobs: int = 1) -> Ended:
    """Run everything on the Ray cluster of RAY_ADDRESS, the one running on this machine, or one started here.

    jobs: runs at a time on each GPU, or on each machine of a cluster without. The results folder and this project
    must lie at the same path on all machines. Raises UserError if Ray isn't installed or can't be reached.
    """
    try:
        import ray as cluster

        environment = {"env_vars": {"PYTHONPATH": PROJECT}}
        cluster.init(ignore_reinit_error=True, log_to_driver=False, logging_level="error", runtime_env=environment)
    except (ImportError, ConnectionError) as error:
        remedy = "pip install 'deeplearningppo[ray]', start the cluster or unset RAY_ADDRESS, or use --engine local"
        raise UserError(f"Ray can't be used ({error}): {remedy}.") from None
    share = {"num_cpus": max(1, int(min(node["Resources"].get("CPU", 1) for node in cluster.nodes())) // jobs)}
    if cluster.cluster_resources().get("GPU") and any(run.config.device != "cpu" for run in runs):
        share = {"num_gpus": 1 / jobs}
    task = cluster.remote(max_retries=3, retry_exceptions=[InterruptedError], **share)(_run_on_ray)
    tasks = {task.remote(run): run for run in runs}
    try:
        while tasks:
            for ended in cluster.wait(list(tasks), timeout=1)[0]:
                try:
                    cause = cluster.get(ended)
                except Exception as error:  # Ray wraps the exception of a task
                    cause = str(getattr(error, "cause", None) or error).strip().partition("\n")[0]
                yield tasks.pop(ended), cause
    finally:
        with uninterrupted():
            for unfinished in tasks:  # a KeyboardInterrupt in each, which stops its process
                cluster.cancel(unfinished)
            cluster.wait(list(tasks), num_returns=len(tasks), timeout=TIME_TO_SAVE) if tasks else None


def _run_on_ray(run: SweepRun) -> str | None:
    """A Ray task: one run's process where Ray has placed it. InterruptedError if it was killed: Ray starts it again."""
    process = _start(run)
    try:
        code = process.wait()
    finally:
        _stop(process)
    if code < 0 or code == 130:
        raise InterruptedError(_failure(run, code))
    return _failure(run, code)


def _gpus(runs: Sequence[SweepRun]) -> list[str | None]:
    """The GPUs to share out, as CUDA_VISIBLE_DEVICES names them; [None] where there is nothing to choose."""
    import torch

    if all(run.config.device == "cpu" for run in runs) or not torch.cuda.is_available():
        return [None]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    return [name.strip() for name in visible.split(",")]


def _settle_precision(runs: Sequence[SweepRun]) -> list[SweepRun]:
    """Decide precision auto once for all runs that begin: as the runs beside them, or else as measured here."""
    from ppo_lib.accel.hardware import configure

    auto, found = [run for run in runs if run.config.precision == "auto" and not run.begun], set()
    for path in runs[0].run_dir.parent.glob("*/config.json") if auto else ():
        with suppress(UserError):
            found.add(read_config(path.parent).precision)
    precision = max(found - {"auto"}, default=None) or (auto and configure(auto[0].config).precision)
    return [replace(run, config=run.config.replace(precision=precision)) if run in auto else run for run in runs]


def _start(run: SweepRun, gpu: str | None = None, threads: int | None = None) -> subprocess.Popen[bytes]:
    """Start a run's process; its output is added to log.txt.

    gpu: the one that it sees unless it names its own; threads: its share of the cores (Ray gives its tasks theirs).
    """
    run.run_dir.mkdir(parents=True, exist_ok=True)
    with suppress(OSError, NotImplementedError), RunFolder(run.run_dir, run.config, resume=True).lock.acquire():
        pass  # the process of a sweep that was killed may still be saving
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "30"}
    if gpu is not None and run.config.device in ("auto", "cuda"):
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    if threads is not None:
        environment["OMP_THREAD_LIMIT"] = str(threads)
    arguments = run.arguments()
    with open(run.run_dir / LOG, "ab", buffering=0) as log:
        log.write(f"python -m ppo_lib {shlex.join(arguments)}\n".encode())
        return subprocess.Popen(
            [sys.executable, "-m", "ppo_lib", *arguments],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the sweep alone, which passes it on
            preexec_fn=LIBC and (lambda: LIBC.prctl(1, signal.SIGTERM)),  # PR_SET_PDEATHSIG: saves if the sweep dies
        )  # fmt: skip


def _stop(*processes: subprocess.Popen[bytes]) -> None:
    """Ask runs to save and stop, and wait until they have."""
    for process in processes:
        process.terminate()
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(TIME_TO_SAVE)
        process.kill()


def _failure(run: SweepRun, code: int) -> str | None:
    """Why a run's process ended before the run did; None if the run is complete."""
    if code in (130, -signal.SIGTERM):
        return "it was stopped"
    if code < 0:
        hint = " (often: the machine is out of memory)" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"
    if not code:
        return None if run.complete else "it ended without its last evaluation"
    lines = (run.run_dir / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line.strip() for line in lines if line.strip() and not re.search(r"\d+%\|", line)]  # no progress bar
    return said[-1].removeprefix("error: ")[:300]
