"""Exercises of the notebooks: a check that names the mistake, and a table of what is solved.

- An answer runs on hidden cases beside the solution. If they differ, it is compared with known wrong versions, so that
  the message can name the mistake instead of printing two arrays.
- `check` returns the student's function if it is right, else the solution: a notebook runs to its end either way.
"""

from __future__ import annotations

import ast
import copy
import ctypes
import importlib
import importlib.util
import inspect
import itertools
import signal
import textwrap
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from IPython.display import Markdown

from ppo_lib.config import UserError, suggest
from ppo_lib.course.predictions import keep, kept
from ppo_lib.course.predictions import predict as predict
from ppo_lib.course.predictions import reveal as reveal
from ppo_lib.study.table import markdown_table

FILES = ("environment", "model", "storage", "ppo", "training", "generalization", "methods")  # of notebooks 01 to 07
LIMIT = 2.0  # seconds for an answer, over all cases
CLOSE = dict(rtol=1e-4, atol=1e-5)  # float32 sums in another order
ARRAYS, NUMBERS = (np.ndarray, torch.Tensor), (int, float, np.number, np.bool_)


@dataclass(frozen=True)
class Exercise:
    """What a student writes, and how it is checked."""

    name: str  # also the name of the student's function
    title: str
    difficulty: int  # 1 to 3
    minutes: int
    solution: Callable
    cases: Callable[[], list[tuple]]  # hidden arguments, which distinguish all mistakes
    mistakes: dict[str, Callable]  # the sentence that names the mistake -> a wrong version
    run: Callable = lambda answer, *case: answer(*case)  # how a function or class is applied to a case


class _TooSlow(BaseException):
    """The answer used up its time; no Exception, so that the answer can't catch it by chance."""


def exercises() -> Iterator[tuple[str, list[Exercise]]]:
    """("01 environment", its exercises) for each notebook, in order."""
    for number, file in enumerate(FILES, 1):
        if importlib.util.find_spec(f"{__name__}.{file}"):
            yield f"{number:02} {file}", importlib.import_module(f"{__name__}.{file}").EXERCISES


def find(name: str) -> Exercise:
    """The exercise of this name. Raises UserError if there is none."""
    for _, found in exercises():
        if match := next((one for one in found if one.name == name), None):
            return match
    names = [one.name for _, found in exercises() for one in found]
    raise UserError(f"There is no exercise '{name}'{suggest(name, names)}")


def check(name: str, answer: Any) -> Callable:
    """Print one line about the answer, and return it if it is right, else the solution. Raises UserError as `find`."""
    exercise = find(name)
    status, sentence = examine(exercise, answer)
    if status == "solved":
        solved = keep("solved", name, True)
        count = [one.name in solved for _, found in exercises() for one in found]
        print(f"Solved: {exercise.title}. {sum(count)} of {len(count)} exercises are solved.")
        return answer
    if status == "open":
        print("Still open: continuing with ppo_lib's version.")
    else:
        print(f"Not yet: {sentence}")
    return exercise.solution


def examine(exercise: Exercise, answer: Any) -> tuple[str, str]:
    """("solved", ""), ("open", "") if a gap `...` is left, or ("wrong", the sentence that names the mistake)."""
    if answer is None or answer is ...:
        return "open", ""
    if not callable(answer):
        return "wrong", f"`{exercise.name}` is {_describe(answer)}, not a function."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sentence = _problem(exercise, answer)
    if sentence and _has_gap(answer):
        return "open", ""
    return ("wrong", sentence) if sentence else ("solved", "")


def _problem(exercise: Exercise, answer: Callable) -> str:
    """What is wrong with the answer, or ""."""
    cases = exercise.cases()
    expected = _results(exercise, exercise.solution, cases)
    try:
        given = _limited(lambda: _results(exercise, answer, cases), LIMIT)
    except _TooSlow:
        return f"it still ran after {LIMIT:g} seconds. Does every loop come to an end?"
    except Exception as error:
        return _complaint(error, answer)
    different = _first(difference(*pair) for pair in zip(given, expected, strict=True))
    for sentence, wrong in exercise.mistakes.items() if different else ():
        try:
            theirs = _results(exercise, wrong, cases)
        except Exception:  # a version that fails on a case isn't what the student wrote
            continue
        if not any(difference(*pair) for pair in zip(given, theirs, strict=True)):
            return sentence
    return different and f"{different}."


def _results(exercise: Exercise, answer: Callable, cases: list[tuple]) -> list[Any]:
    """What the answer makes of copies of the cases, with the same random numbers each time."""
    results = []
    for case in cases:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            results.append(exercise.run(answer, *copy.deepcopy(case)))
    return results


def _limited(call: Callable[[], Any], seconds: float) -> Any:
    """The result of a call. Raises what it raises, or _TooSlow.

    That is after so many seconds of computing; a busy machine gets up to five times as long.
    """
    began, rounds = time.process_time(), itertools.count(1)

    def late() -> bool:
        return next(rounds) >= 5 or time.process_time() - began > 0.8 * seconds

    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):

        def stop(*_: object) -> None:
            if late():
                raise _TooSlow

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
        try:
            return call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    future: Future = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while wait([future], seconds).not_done:
        if late():  # end it there, too: an endless loop would slow down all that follows
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_TooSlow))
            raise _TooSlow
    return future.result()


def difference(yours: Any, expected: Any, place: str = "your result") -> str:
    """Where two results first differ, as the words of a sentence; "" if they agree.

    Tuples and lists are interchangeable, and so are numbers of any size; arrays, tensors and numbers are not.
    """
    if _describe(yours) != _describe(expected):
        return f"{place} is {_describe(yours)}; it should be {_describe(expected)}"
    if isinstance(expected, dict):
        return _first(difference(yours[key], expected[key], f"'{key}'") for key in expected)
    if isinstance(expected, (tuple, list)):
        pairs = enumerate(zip(yours, expected, strict=True))
        return _first(difference(*pair, f"{place}[{index}]") for index, pair in pairs)
    if not isinstance(expected, (*ARRAYS, *NUMBERS)):
        return "" if yours == expected else f"{place} is {yours!r}; it should be {expected!r}"
    mine, theirs = (torch.as_tensor(value).detach().cpu().double().numpy() for value in (yours, expected))
    wrong = np.argwhere(~np.isclose(mine, theirs, equal_nan=True, **CLOSE))
    if not len(wrong):
        return ""
    index = tuple(wrong[0].tolist())
    return f"{place}{list(index) if index else ''} is {mine[index]:.6g}; it should be {theirs[index]:.6g}"


def _describe(value: Any) -> str:
    if value is None:
        return "None (is a `return` missing?)"
    if isinstance(value, ARRAYS):
        kind = next((kind for kind in ("bool", "int", "float") if kind in str(value.dtype)), str(value.dtype))
        family = "torch tensor" if isinstance(value, torch.Tensor) else "numpy array"
        return f"a {family} of {kind}s with shape {list(value.shape)}"
    if isinstance(value, NUMBERS):
        return "a number"
    if isinstance(value, (tuple, list)):
        return f"a tuple or list of length {len(value)}"
    return f"a dict with the keys {list(value)}" if isinstance(value, dict) else f"of type {type(value).__name__}"


def _first(sentences: Iterator[str]) -> str:
    return next(filter(None, sentences), "")


def _functions(answer: Any) -> list[Any]:
    """The functions that the student wrote: the answer itself, or the methods of a class."""
    holder = answer if inspect.isclass(answer) else type(answer)
    found = [answer] if inspect.isfunction(answer) else vars(holder).values()
    return [inspect.unwrap(one) for one in found if inspect.isfunction(one)]


def _has_gap(answer: Any) -> bool:
    """Whether a statement of the answer is still `...`."""
    for function in _functions(answer):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        except (OSError, TypeError, SyntaxError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Expr, ast.Assign, ast.Return)) and getattr(node.value, "value", None) is ...:
                return True
    return False


def _complaint(error: Exception, answer: Any) -> str:
    """An exception in one sentence, with the student's line."""
    files = {function.__code__.co_filename for function in _functions(answer)}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    line = f" in the line `{frames[-1].line}`" if frames and frames[-1].line else ""
    message = (str(error).strip().splitlines() or ["no message"])[0][:150]
    return f"{type(error).__name__} ({message.rstrip('.')}){line}."


def progress() -> Markdown:
    """A table of all exercises by notebook, with the solved ones ticked."""
    solved, rows, count = kept("solved"), [], [0, 0]
    for notebook, found in exercises():
        done = [one.name in solved for one in found]
        count = [count[0] + sum(done), count[1] + len(done)]
        titles = (f"{'✓' if tick else '○'} {one.title}" for one, tick in zip(found, done, strict=True))
        rows.append([notebook, f"{sum(done)} of {len(done)}", "<br>".join(titles)])
    table = markdown_table(["notebook", "solved", "exercises"], rows)
    return Markdown(f"**{count[0]} of {count[1]} exercises are solved.**\n\n{table}")
