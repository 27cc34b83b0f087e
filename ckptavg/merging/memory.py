"""The memory and the threads that work on checkpoints may use; both are decided here."""

import os
from collections.abc import Sequence

from ckptavg.errors import MemoryLimitError, ResourceError, check_count
from ckptavg.merging.planned_sources import SourcePlan

_DEFAULT_MAX_MEMORY = 64 * 1024 * 1024
_DEFAULT_JOBS = 4
"""More threads than this wait for the disk and for each other."""

_TENSOR_MEMORY = 12 * 1024
"""Bytes for one tensor of a structure: its facts, HDF5's own, and its part of the record."""


def fit_threads(
    work: int, fixed: int, least: int, max_memory: int | None, jobs: int | None = None
) -> tuple[int, int]:
    """How many threads to use, and how much memory each of them may use.

    Without a limit the usual one holds, or whatever one thread needs. A merge uses the number
    only, because its pieces have a fixed size.

    Args:
        work: number of blocks that can be worked on at once.
        fixed: bytes that the work needs whatever the number of threads.
        least: bytes that each thread needs at least.
        max_memory: limit in bytes; None for the usual one.
        jobs: threads to use if memory allows; by default one per core, up to 4.

    Returns:
        The number of threads, and the bytes for each.

    Raises:
        MemoryLimitError: the limit is too low for one thread.
        ResourceError: the limit is not a number of bytes, or `jobs` not a number of threads.
    """
    check_count("jobs", jobs, ResourceError)
    if isinstance(max_memory, bool) or not isinstance(max_memory, int | None):
        raise ResourceError(f"max_memory is {max_memory!r:.40}, but must be a number of bytes")
    # The usual limit is never an error: whoever gave none gets at least one thread.
    limit = max(_DEFAULT_MAX_MEMORY, fixed + least) if max_memory is None else max_memory
    if fixed + least > limit:
        raise MemoryLimitError(fixed + least, limit)
    wanted = jobs or min(_DEFAULT_JOBS, len(os.sched_getaffinity(0)))
    threads = max(1, min(wanted, work, (limit - fixed) // least))
    return threads, (limit - fixed) // threads


def index_memory(sources: Sequence[SourcePlan]) -> int:
    """Bytes that the facts about all tensors take, with the digests of the records."""
    # Checkpoints of one structure share it.
    structures = {id(source.structure): source.structure for source in sources}
    index = sum(len(structure.tensors) for structure in structures.values()) * _TENSOR_MEMORY
    return index + sum(len(source.proof.digests) for source in sources if source.proof is not None)
