"""Runs tasks in several threads and gives their results in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ckptavg.errors import ThreadLimitError

W = TypeVar("W")
T = TypeVar("T")


def run_in_order(
    workers: Iterable[W], tasks: Iterable[Callable[[W], T]], ahead: int
) -> Generator[T, None, None]:
    """Runs each task with a worker of its own for the time, in one thread for each worker.

    The tasks are taken from the thread of the caller, who closes the generator when it does not
    want all results.

    Args:
        workers: what a thread works with, such as its buffers.
        tasks: each is called with a worker that no other thread uses meanwhile.
        ahead: results that may wait for the caller; with 0 tasks run in the caller's thread.

    Raises:
        ThreadLimitError: the system allows no more threads.
    """
    free = list(workers)
    if ahead == 0:
        yield from (task(free[0]) for task in tasks)
        return

    def run(task: Callable[[W], T]) -> T:
        # Never empty: there are as many threads as workers. `pop` and `append` are atomic.
        worker = free.pop()
        try:
            return task(worker)
        finally:
            free.append(worker)

    with ThreadPoolExecutor(len(free)) as pool:

        def submit(task: Callable[[W], T]) -> Future[T]:
            try:
                return pool.submit(run, task)
            except RuntimeError as error:
                raise ThreadLimitError from error

        waiting: deque[Future[T]] = deque()
        try:
            for task in tasks:
                waiting.append(submit(task))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BaseException:
            # Tasks that have not begun never will: the files that they read are about to be closed.
            pool.shutdown(cancel_futures=True)
            raise
