"""Work in small steps, and doing some of it ahead while the thread would only wait for an answer.

A piece of work is a generator that yields between its steps and returns its result. Delivery hands the next batch's
reading and preparing to `meanwhile`; a sink whose request is under way takes steps of it until the answer is there.
Both are one thread's, so nothing has to be locked and the two never wait for each other's turn of the interpreter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Result = TypeVar("Result")
Steps = Generator[None, None, Result]
"""Work that yields between its steps and returns its result."""


def worked_off(steps: Steps[Result]) -> Result:
    """The result of work that is done at once."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]


class Ahead(Generic[Result]):
    """Work that is begun before its result is wanted. What goes wrong is raised when the result is asked for."""

    def __init__(self, steps: Steps[Result]) -> None:
        self._steps = steps
        self._done: StopIteration | None = None
        self._failure: Exception | SystemExit | None = None

    def step(self) -> bool:
        """Do a little of it; False when there is no more to do."""
        if self._done is not None or self._failure is not None:
            return False
        try:
            next(self._steps)
        except StopIteration as done:
            self._done = done
        except (Exception, SystemExit) as failure:  # noqa: BLE001 - raised by `finish`, in its own place
            self._failure = failure
        else:
            return True
        return False

    def finish(self) -> Result:
        """Do the rest; the result."""
        while self.step():
            pass
        if self._failure is not None:
            raise self._failure
        assert self._done is not None
        return self._done.value  # type: ignore[no-any-return]

    def drop(self) -> None:
        """Nobody wants it any more."""
        self._steps.close()


class _Here(threading.local):
    step: Callable[[], bool] | None = None


_here = _Here()


@contextmanager
def meanwhile(step: Callable[[], bool]) -> Iterator[None]:
    """Whenever this thread waits for an answer in here, it may call `step` until that returns False."""
    before, _here.step = _here.step, step
    try:
        yield
    finally:
        _here.step = before


def step_meanwhile() -> bool:
    """Do a step of what this thread has to do while it waits; False when there is nothing (more)."""
    step = _here.step
    if step is None:
        return False
    # What is done meanwhile may wait for an answer too: it is not interrupted by itself.
    _here.step = None
    try:
        return step()
    finally:
        _here.step = step
