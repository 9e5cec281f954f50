"""Exercises of the notebooks: a check that names the mistake, predictions that are kept, and the progress of both.

- An answer runs on hidden cases beside the solution. If they differ, it is compared with known wrong versions, so that
  the message can name the mistake instead of printing two arrays.
- `check` returns the student's function if it is right, else the solution: a notebook runs to its end either way.
- Progress is one JSON file beside the notebooks (on Drive, if the project lies there); PPO_PROGRESS names another file.
"""

from __future__ import annotations

import ast
import copy
import importlib
import importlib.util
import inspect
import json
import os
import signal
import textwrap
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as w
import numpy as np
import torch
from IPython.display import Markdown, display

from ppo_lib.checkpoint import atomic_write
from ppo_lib.config import UserError, suggest
from ppo_lib.course.colab import ROOT
from ppo_lib.study.table import markdown_table

FILES = ("environment", "model", "storage", "ppo", "training", "generalization", "methods")  # of notebooks 01 to 07
LIMIT = 2.0  # seconds for an answer, over all cases
CLOSE = dict(rtol=1e-4, atol=1e-5)  # float32 sums in another order


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
    raise UserError(
        f"There is no exercise '{name}'{suggest(name, [one.name for _, found in exercises() for one in found])}"
    )


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
        print(f"Not yet: {sentence} (Until then: ppo_lib's version.)")
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
        given = _limited(lambda: _results(exercise, answer, cases))
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


def _limited(call: Callable[[], Any], seconds: float = LIMIT) -> Any:
    """The result of a call. Raises what it raises, or _TooSlow after so many seconds."""
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):

        def stop(*_: object) -> None:
            raise _TooSlow

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            return call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    ended: list[tuple[Any, BaseException | None]] = []

    def work() -> None:
        try:
            ended.append((call(), None))
        except BaseException as error:
            ended.append((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    result, error = ended[0] if ended else (None, _TooSlow())
    if error is not None:
        raise error
    return result


def difference(yours: Any, expected: Any, place: str = "the result") -> str:
    """Where two results first differ, as the words of a sentence; "" if they agree.

    Tuples and lists are interchangeable, and so are floats of any size; arrays and tensors, bools and numbers are not.
    """
    if isinstance(expected, dict) and isinstance(yours, dict) and yours.keys() == expected.keys():
        return _first(difference(yours[key], expected[key], f"'{key}'") for key in expected)
    if isinstance(expected, (tuple, list)) and isinstance(yours, (tuple, list)):
        if len(yours) != len(expected):
            return f"{place} has {len(yours)} parts; expected are {len(expected)}"
        name = f"{place}[{{}}]" if isinstance(expected, list) else "output {} of " + str(len(expected))
        start = isinstance(expected, tuple)
        return _first(
            difference(*pair, name.format(i)) for i, pair in enumerate(zip(yours, expected, strict=True), start)
        )
    if isinstance(expected, (np.ndarray, torch.Tensor)):
        if _describe(yours) != _describe(expected):
            return f"{place} is {_describe(yours)}; expected is {_describe(expected)}"
        mine, theirs = (torch.as_tensor(value).detach().cpu().double().numpy() for value in (yours, expected))
        wrong = np.argwhere(~np.isclose(mine, theirs, equal_nan=True, **CLOSE))
        if not len(wrong):
            return ""
        index = tuple(wrong[0].tolist())
        return f"{place}{list(index) if index else ''} is {mine[index]:.6g}; expected is {theirs[index]:.6g}"
    if isinstance(expected, (int, float, np.number, np.bool_)):
        try:
            return (
                ""
                if np.isclose(float(yours), float(expected), **CLOSE)
                else f"{place} is {yours}; expected is {expected}"
            )
        except (TypeError, ValueError, RuntimeError):
            return f"{place} is {_describe(yours)}; expected is a number"
    if type(yours) is type(expected) and yours == expected:
        return ""
    return f"{place} is {_describe(yours)}; expected is {_describe(expected)}"


def _describe(value: Any) -> str:
    if value is None:
        return "None (is a `return` missing?)"
    if isinstance(value, (np.ndarray, torch.Tensor)):
        family = "a torch tensor" if isinstance(value, torch.Tensor) else "a numpy array"
        kind = next((kind for kind in ("bool", "int", "float") if kind in str(value.dtype)), str(value.dtype))
        return f"{family} of {kind}s with shape {list(value.shape)}"
    return f"'{value}'" if isinstance(value, str) else f"a {type(value).__name__}"


def _first(sentences: Iterator[str]) -> str:
    return next(filter(None, sentences), "")


def _functions(answer: Any) -> list[Any]:
    """The functions that the student wrote: the answer itself, or the methods of a class."""
    found = (
        [answer] if inspect.isfunction(answer) else vars(answer if inspect.isclass(answer) else type(answer)).values()
    )
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
    lines = [
        frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files and frame.line
    ]
    message = (str(error).strip().splitlines() or ["no message"])[0][:150]
    return f"{type(error).__name__} ({message.rstrip('.')}){f' in the line `{lines[-1]}`' if lines else ''}."


def progress_file() -> Path:
    """Where progress is kept."""
    return Path(os.environ.get("PPO_PROGRESS") or ROOT / "notebooks" / ".progress.json")


def kept(section: str) -> dict[str, Any]:
    """A section of the progress file, "solved" or "predictions"; empty if there is none."""
    try:
        return dict(json.loads(progress_file().read_text(encoding="utf-8"))[section])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def keep(section: str, name: str, value: Any) -> dict[str, Any]:
    """Add to a section of the progress file and return the section; says so if the file can't be written."""
    sections = {one: kept(one) for one in ("solved", "predictions")}
    sections[section][name] = value
    try:
        with atomic_write(progress_file()) as file:
            json.dump(sections, file, indent=1, sort_keys=True)
    except OSError as error:
        print(f"Progress isn't kept: {progress_file()} could not be written ({error.strerror}).")
    return sections[section]


class _Prediction(w.VBox):
    def __repr__(self) -> str:
        return "[An entry for your prediction: run this cell to use it]"


def predict(name: str, question: str, options: Sequence[str] | None = None) -> None:
    """Ask for a prediction, a number or one of the options, and keep it. name: such as "mean_score"."""
    before = kept("predictions").get(name)
    wide = {"layout": {"width": "40em", "max_width": "100%"}}
    if options is None:
        entry = w.Text("" if before is None else f"{before:g}", placeholder="a number", continuous_update=False)
    else:
        entry = w.RadioButtons(options=options, value=before if before in options else None, **wide)
    answer = w.Label()

    def save(change: dict[str, Any]) -> None:
        try:
            value = float(change["new"]) if options is None else change["new"]
        except ValueError:
            answer.value = f"'{change['new']}' is no number: write it like 0.5 or 1200."
            return
        keep("predictions", name, value)
        answer.value = "Kept. Run the next cells to see what comes out."

    entry.observe(save, "value")
    display(_Prediction([w.HTML(question, **wide), entry, answer]))


def reveal(name: str, value: Any) -> None:
    """Print what came out, and the student's prediction beside it."""
    guess = kept("predictions").get(name)
    shown, guess = (f"{x:.4g}" if isinstance(x, float) else x for x in (value, guess))
    beside = "" if guess is None else f" (you predicted {guess})"
    print(f"{name.replace('_', ' ').capitalize()}: {shown}{beside}")


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
