"""Writes of this process that are under way in other threads, and waiting for them."""

import os
from concurrent.futures import Future, wait
from typing import Any

_under_way: set[Future[Any]] = set()
os.register_at_fork(after_in_child=_under_way.clear)  # the threads that would finish them


def announce(write: Future[Any]) -> None:
    """Lets readers wait for a write that has begun, until it has ended."""
    _under_way.add(write)
    write.add_done_callback(_under_way.discard)


def wait_for_writes() -> None:
    """Waits for all that this process has begun to write, so that a reader sees it.

    No hook says that Ctrl-C or an exception has ended a training: its last checkpoint may still be
    under way when the same program goes on to average.
    """
    wait(_under_way.copy())
