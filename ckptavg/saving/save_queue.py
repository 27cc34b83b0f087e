"""Work that goes on while training does, a bounded amount of it."""

import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Runs work in a thread of its own, one piece after the other.

    The thread outlives an exception in training, and the interpreter waits for it at its exit: what
    was begun is finished.
    """

    def __init__(self, limit: int) -> None:
        """Takes on at most `limit` lots of work at a time."""
        self._limit = limit
        self._process = os.getpid()
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: deque[list[Future[T]]] = deque()

    def make_room(self) -> tuple[list[T | BaseException], float]:
        """Waits until another lot of work may be submitted.

        Returns:
            Results of what has finished, or its exceptions; and the seconds waited.
        """
        started = time.perf_counter()
        found = self.collect()
        while len(self._waiting) >= self._limit:
            found += map(_outcome, self._waiting.popleft())
        return found, time.perf_counter() - started

    def submit(self, *lot: Callable[[], T]) -> None:
        """Begins pieces of work as soon as those before them are finished, one after the other."""
        if self._pool is None:
            self._process = os.getpid()
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="ckptavg-saver")
        self._waiting.append([self._pool.submit(work) for work in lot])

    def collect(self) -> list[T | BaseException]:
        """Results of what has finished since they were last asked for, or its exceptions."""
        found = []
        while self._waiting and all(future.done() for future in self._waiting[0]):
            found += map(_outcome, self._waiting.popleft())
        return found

    def drain(self) -> list[T | BaseException]:
        """Waits for everything, ends the thread and gives the results."""
        if self._process != os.getpid():  # a fork, where the thread is not
            self._waiting.clear()
            self._pool = None
        found = [_outcome(future) for lot in self._waiting for future in lot]
        self._waiting.clear()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        return found


def _outcome(future: Future[T]) -> T | BaseException:
    """The result of a piece of work or its exception, once it has finished."""
    error = future.exception()
    return future.result() if error is None else error
