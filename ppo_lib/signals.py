"""Polite ways to be told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interruptible(stop: Callable[[], None] | None = None) -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C: raise KeyboardInterrupt. With `stop`, both call it instead and nothing is raised.

    Signals reach only the main thread; in another one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {signal.SIGTERM: signal.default_int_handler}
    if stop is not None:
        handlers = dict.fromkeys((signal.SIGTERM, signal.SIGINT), lambda *_: stop())
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
