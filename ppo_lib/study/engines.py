"""Where the runs of a sweep run: on this machine or on a Ray cluster. Both are existing engines.

- `local`: the standard library's thread pool; each thread watches one run's process. One run at a time on the CPU, or
  one on each CUDA GPU.
- `ray`: a Ray task for each run; Ray places them on the cluster's GPUs (or machines) and repeats those whose machine,
  worker or process was killed. The results folder and this project must lie at the same path on all machines.
- Both give standard futures, so that whoever watches doesn't know which engine it is.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from subprocess import Popen

from ppo_lib.config import UserError
from ppo_lib.study.sweep_run import RunKilled, SweepRun, finish, run_on_ray, start, stop

Futures = dict["Future[None]", SweepRun]
Engine = Callable[[Sequence[SweepRun], int], AbstractContextManager[Futures]]
RAY_RETRIES = 3


@contextmanager
def local(runs: Sequence[SweepRun], jobs: int = 1) -> Iterator[Futures]:
    """Run everything on this machine, `jobs` at a time on each GPU, or on the CPU. Leaving early stops all runs."""
    places: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    gpus = _gpus(runs)
    for place in gpus * jobs:
        places.put(place)
    processes: set[Popen[bytes]] = set()
    stopped, guard = threading.Event(), threading.Lock()

    def work(run: SweepRun) -> None:
        gpu = places.get()
        try:
            with guard:  # after `stopped`, nothing starts
                if stopped.is_set():
                    raise CancelledError
                process = start(run, gpu if _takes_any_gpu(run) else None)
                processes.add(process)
            finish(run, process)
        finally:
            places.put(gpu)

    with ThreadPoolExecutor(len(gpus) * jobs) as pool:
        try:
            yield {pool.submit(work, run): run for run in runs}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            with guard:
                stopped.set()
            with _undisturbed():  # a second Ctrl-C must not cut their saving short
                stop(*processes)


@contextmanager
def ray(runs: Sequence[SweepRun], jobs: int = 1) -> Iterator[Futures]:
    """Run everything on the Ray cluster of RAY_ADDRESS, the one running on this machine, or one started here.

    jobs: runs at a time on each GPU, or on each machine of a cluster without. Leaving early stops all runs.
    Raises UserError if Ray isn't installed or its cluster can't be reached.
    """
    try:
        import ray as engine
    except ImportError:
        raise UserError(
            "The engine ray needs Ray, which is an extra: pip install 'deeplearningppo[ray]', or use --engine local."
        ) from None
    ours = not engine.is_initialized()
    if ours:
        project = str(Path(__file__).resolve().parents[2])
        try:
            engine.init(log_to_driver=False, logging_level="error", runtime_env={"env_vars": {"PYTHONPATH": project}})
        except ConnectionError as error:
            raise UserError(f"The Ray cluster can't be reached ({error}); start it or unset RAY_ADDRESS.") from None
    try:
        machines = [node["Resources"] for node in engine.nodes() if node["Alive"]]
        gpu = any(machine.get("GPU") for machine in machines) and any(map(_takes_any_gpu, runs))
        cpus = min((int(machine["CPU"]) for machine in machines if machine.get("CPU")), default=1)
        share = {"num_gpus": 1 / jobs} if gpu else {"num_cpus": max(1, cpus // jobs)}
        task = engine.remote(max_retries=RAY_RETRIES, retry_exceptions=[RunKilled], **share)(run_on_ray)
        tasks = [task.remote(run) for run in runs]
        try:
            yield {task.future(): run for task, run in zip(tasks, runs, strict=True)}
        finally:
            with _undisturbed():
                _, unfinished = engine.wait(tasks, num_returns=len(tasks), timeout=0)
                for task in unfinished:  # a KeyboardInterrupt in each, which stops its process
                    engine.cancel(task)
                engine.wait(unfinished, num_returns=len(unfinished), timeout=60) if unfinished else None
    finally:
        if ours:
            engine.shutdown()


ENGINES: dict[str, Engine] = {"local": local, "ray": ray}


def _takes_any_gpu(run: SweepRun) -> bool:
    """Whether it is the engine that chooses the run's GPU."""
    return run.config.device in ("auto", "cuda")


def _gpus(runs: Sequence[SweepRun]) -> list[str | None]:
    """The GPUs to share out, as CUDA_VISIBLE_DEVICES names them; [None] where there is nothing to choose."""
    if not any(map(_takes_any_gpu, runs)):
        return [None]
    import torch

    if not torch.cuda.is_available():
        if any(run.config.device == "cuda" for run in runs):
            raise UserError("There is no CUDA GPU that torch can use; use --device cpu.")
        return [None]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
    return [name.strip() for name in names]


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM for a while. Signals reach only the main thread; elsewhere this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {kind: signal.signal(kind, signal.SIG_IGN) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
