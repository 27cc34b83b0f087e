"""Streams the blocks of checkpoints through their mean, unit by unit, in the plan's threads."""

from collections.abc import Callable, Sequence
from contextlib import closing

from ckptavg.formats import CheckpointReader
from ckptavg.merging.digests import UnitDigests
from ckptavg.merging.ordered import run_in_order
from ckptavg.merging.plan import MergePlan
from ckptavg.merging.planned_sources import open_sources
from ckptavg.merging.work import WorkUnit, divide
from ckptavg.merging.worker import Advance, Worker, Write
from ckptavg.runs.proof import Checksums

Finished = Callable[[WorkUnit, UnitDigests], None]
"""Called with units in order, in the thread that called `stream`, when their bytes are written."""

_AHEAD = 4
"""Finished units for each thread that may wait for those before them."""


def stream(
    plan: MergePlan,
    write: Write,
    finished: Finished,
    done: Callable[[WorkUnit], UnitDigests | None] = lambda _: None,
    progress: Advance | None = None,
) -> None:
    """Averages every block. If this returns, no source has changed meanwhile.

    Args:
        plan: of the merge; it has decided the number of threads.
        write: called with the averages.
        finished: called with every unit when its bytes are written.
        done: gives the digests of a unit that an earlier merge finished, so that it is skipped.
        progress: called with the number of bytes that were read, or need not be read.

    Raises:
        IntegrityError: a source is not what was saved, or has changed.
        MismatchError: values that have no mean differ between checkpoints.
        ResourceError: there are more files than a process may open.
    """
    progress = progress or (lambda _: None)
    units, sources_read = divide_plan(plan), plan.sources_read
    numbers = {item.tensor.name: number for number, item in enumerate(plan.items)}
    with open_sources(plan.sources) as readers:
        checksums = [
            Checksums(reader, numbers) if source.checksummed else None
            for source, reader in zip(plan.sources, readers, strict=True)
        ]
        _check_archives(plan, readers)
        workers = [Worker(plan, readers, checksums, write, progress) for _ in range(plan.jobs)]

        def task(unit: WorkUnit) -> Callable[[Worker], UnitDigests]:
            # In the thread of the caller, like `finished`.
            known = done(unit)
            if known is None:
                return lambda worker: average(worker, unit)
            progress(sum(s.block.nbytes * len(sources_read[s.item.action]) for s in unit.segments))
            return lambda _: known

        def average(worker: Worker, unit: WorkUnit) -> UnitDigests:
            # The unit that this thread will probably do next: the disk can bring it meanwhile.
            if unit.number + plan.jobs < len(units):
                worker.expect(units[unit.number + plan.jobs])
            return worker.run(unit)

        with closing(run_in_order(workers, map(task, units), _AHEAD * plan.jobs)) as results:
            for unit, found in zip(units, results, strict=True):
                finished(unit, found)
        _check_rest(plan, checksums)


def _check_archives(plan: MergePlan, readers: Sequence[CheckpointReader]) -> None:
    """Proves archives without a record as a whole: their checksums are of nothing smaller."""
    pairs = zip(readers, plan.sources, strict=True)
    unproven = [reader for reader, source in pairs if source.members and source.proof is None]

    def check(reader: CheckpointReader) -> Callable[[None], None]:
        return lambda _: reader.check_members()

    for _ in run_in_order([None] * plan.jobs, map(check, unproven), _AHEAD * plan.jobs):
        pass


def _check_rest(plan: MergePlan, checksums: Sequence[Checksums | None]) -> None:
    """Reads what an earlier merge had averaged, where checksums of whole tensors prove it."""
    for index, expected in enumerate(checksums):
        if expected is not None:
            read = (item for item in plan.items if index in plan.sources_read[item.action])
            expected.finish(item.tensor.name for item in read)


def divide_plan(plan: MergePlan) -> list[WorkUnit]:
    """The work of a plan in units, which are independent of each other."""
    return divide(plan.items, [source.structure for source in plan.sources])
