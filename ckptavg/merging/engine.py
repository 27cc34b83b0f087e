"""Streams the blocks of checkpoints through their mean into an output, in several threads."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from ckptavg.formats import CheckpointReader
from ckptavg.merging.plan import MergePlan
from ckptavg.merging.tensor_rules import DROP
from ckptavg.merging.work import Strip, divide
from ckptavg.merging.worker import GroupDigests, Progress, Worker, Write, chosen_sources
from ckptavg.runs.proof import Checksums

Finished = Callable[[int, GroupDigests], None]
"""Is told of groups in order, from the thread that called `stream`."""


def stream(
    plan: MergePlan,
    readers: Sequence[CheckpointReader],
    groups: Sequence[Sequence[Strip]],
    write: Write,
    finished: Finished,
    done: Callable[[int], GroupDigests | None] = lambda _: None,
    progress: Progress | None = None,
) -> None:
    """Averages every block.

    Args:
        plan: of the merge.
        readers: of its sources.
        groups: its work, as `divide_plan` gives it.
        write: takes the averages.
        finished: is told of every group when its bytes are written.
        done: gives the digests of a group that an earlier merge finished, so that it is skipped.
        progress: is told of bytes that were read, or need not be.
    """
    progress = progress or (lambda _: None)
    checksums = [
        Checksums(reader) if source.checksummed else None
        for source, reader in zip(plan.sources, readers, strict=True)
    ]
    workers = [Worker(plan, readers, checksums, write, progress) for _ in range(plan.jobs)]

    def run(number: int) -> GroupDigests:
        worker = workers.pop()
        try:
            if number + plan.jobs < len(groups):
                worker.expect(groups[number + plan.jobs])
            # What overflows or is invalid is found in the results, and reported by name.
            with np.errstate(all="ignore"):
                return worker.run(groups[number])
        finally:
            workers.append(worker)

    with ThreadPoolExecutor(plan.jobs) as pool:
        waiting: deque[tuple[int, Future[GroupDigests] | GroupDigests]] = deque()
        try:
            for number, group in enumerate(groups):
                known = done(number)
                if known is not None:
                    progress(_bytes_read(plan, group))
                waiting.append((number, pool.submit(run, number) if known is None else known))
                if len(waiting) > 4 * plan.jobs:
                    _finish(waiting.popleft(), finished)
            while waiting:
                _finish(waiting.popleft(), finished)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for index, found in enumerate(checksums):
        if found is not None:
            found.finish(
                {
                    item.tensor.name
                    for item in plan.items
                    if item.action != DROP and index in chosen_sources(plan, item.action)
                }
            )


def divide_plan(plan: MergePlan) -> list[list[Strip]]:
    """The work of a plan in groups, which are independent of each other."""
    return divide(plan.items, [source.structure for source in plan.sources])


def _bytes_read(plan: MergePlan, group: Sequence[Strip]) -> int:
    segments = [segment for strip in group for segment in strip.segments]
    return sum(s.block.nbytes * len(chosen_sources(plan, s.item.action)) for s in segments)


def _finish(entry: tuple[int, Future[GroupDigests] | GroupDigests], finished: Finished) -> None:
    number, result = entry
    finished(number, result.result() if isinstance(result, Future) else result)
