"""Saves that are written while training continues, a bounded number of them."""

import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from ckptavg.errors import ThreadLimitError
from ckptavg.runs.record import Record
from ckptavg.saving.host_copy import HostCopy
from ckptavg.storage.background import announce

Work = Callable[[], Record]
Outcome = Record | BaseException
"""What came of a piece of work: the record that was written, or the exception."""


class SaveQueue:
    """Writes in a thread of its own, one save after the other, from host copies of its own.

    The thread outlives an exception in training, and the interpreter waits for it at its exit: a
    save that was begun is finished.
    """

    def __init__(self, limit: int, copies: int) -> None:
        """Makes room for saves.

        Args:
            limit: how many saves may wait to be written.
            copies: host copies that a save needs.
        """
        self._limit = limit
        self._process = os.getpid()
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: deque[list[Future[Record]]] = deque()
        self._copies = deque([HostCopy() for _ in range(copies)] for _ in range(limit))

    @property
    def copies(self) -> list[HostCopy]:
        """The memory of the next save; only `submit` hands it to the other thread."""
        return self._copies[0]

    def make_room(self) -> tuple[list[Outcome], float]:
        """Waits until another save may be submitted.

        Returns:
            What came of finished work, and the seconds waited.
        """
        started = time.perf_counter()
        found = self.collect()
        while len(self._waiting) >= self._limit:
            found += map(_outcome, self._waiting.popleft())
        return found, time.perf_counter() - started

    def submit(self, work: list[Work]) -> None:
        """Begins the pieces of work of a save, in order, once those before it are finished.

        Raises:
            ThreadLimitError: the system allows no more threads.
        """
        if self._pool is None:
            self._process = os.getpid()
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="ckptavg-saver")
        try:
            self._waiting.append([self._pool.submit(piece) for piece in work])
        except RuntimeError as error:
            # The pool holds the work all the same, and would do it later with other weights.
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
            raise ThreadLimitError from error
        for future in self._waiting[-1]:
            announce(future)
        # The memory moves on with its work alone: if a save that failed before it was submitted
        # moved it too, the next copy would overwrite what is being written.
        # See docs/decisions/0044-what-a-killed-training-leaves-behind.md.
        self._copies.rotate()

    def collect(self) -> list[Outcome]:
        """What came of the saves that have finished since this was last asked."""
        found: list[Outcome] = []
        while self._waiting and all(future.done() for future in self._waiting[0]):
            found += map(_outcome, self._waiting.popleft())
        return found

    def drain(self) -> list[Outcome]:
        """Waits for everything, ends the thread and returns what came of it."""
        if self._process != os.getpid():  # a fork, where the thread does not run
            self._waiting.clear()
            self._pool = None
        found = [_outcome(future) for save in self._waiting for future in save]
        self._waiting.clear()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        return found


def _outcome(future: Future[Record]) -> Outcome:
    """The result of a piece of work or its exception, once it has finished."""
    error = future.exception()
    return future.result() if error is None else error
