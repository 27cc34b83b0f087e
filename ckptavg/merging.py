"""Runs the plan of a merge: streams the checkpoints into their mean and commits it, or nothing."""

import os
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from ckptavg.accumulate import PIECE, Terms, WeightedMean
from ckptavg.errors import IntegrityError, MismatchError, ResourceError
from ckptavg.formats import CheckpointReader, CheckpointWriter, open_reader, open_writer
from ckptavg.outputs import check_output
from ckptavg.plan import (
    AVERAGE,
    DEFAULT_MAX_MEMORY,
    DROP,
    LAST,
    MergePlan,
    PlanItem,
    SourcePlan,
    plan_merge,
)
from ckptavg.proof import region_digest
from ckptavg.record import (
    Record,
    SourceRecord,
    TensorRecord,
    commit_with_record,
    now,
    versions,
)
from ckptavg.run import Sources
from ckptavg.tensors import BLOCK_SIZE, Region, TensorInfo, regions

Progress = Callable[[int], None]
"""Is told of bytes that were read, from any thread."""


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge did.

    Attributes:
        output: the file that it wrote.
        record: the record beside it.
        plan: what was planned and done; left out of the `repr`, like the record.
        unverified: sources that have no record to prove their bytes.
        seconds: from opening the checkpoints to the record; planning is not in it.
    """

    output: Path
    record: Record = field(repr=False)
    plan: MergePlan = field(repr=False)
    unverified: tuple[Path, ...]
    seconds: float


def merge(
    sources: Sources,
    output: str | Path,
    *,
    coefficients: Sequence[float] | None = None,
    model: str | Path | None = None,
    max_memory: int = DEFAULT_MAX_MEMORY,
    jobs: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MergeReport:
    """Averages checkpoints into one file, streaming, in fixed memory.

    Floating-point tensors become the mean sum(c_k x_k), computed in float64 (float64 ones with
    compensated summation) and rounded once. Integers and booleans must agree in all checkpoints;
    the state of random generators is taken from the last. Optimizer state is dropped. The output
    appears whole or not at all, with a record `<output>.json` beside it.

    Args:
        sources: a `Run` or its directory, a checkpoint file, or a sequence of files and
            `Checkpoint`s, as `Run.select` returns them.
        output: a `.weights.h5` or `.keras` file.
        coefficients: one for each checkpoint, with sum 1; the plain mean if left out.
        model: for a `.keras` output: the `model.json` of a run or a `.keras` file, to take the
            model's configuration from. By default that of the run.
        max_memory: bytes that the merge may use beyond what the interpreter and its libraries do.
        jobs: threads; by default one for each core, up to 4, fewer if memory does not allow them.
        overwrite: whether to replace an existing output.
        progress: called with numbers of bytes as they have been read.

    Returns:
        What was done.

    Raises:
        RunError: there are no checkpoints where `sources` points.
        FormatError: a file is not a checkpoint, or the output's format cannot be written.
        MismatchError: checkpoints are of different models, or coefficients do not fit.
        IntegrityError: a file differs from its record, holds NaN or infinity, or changed meanwhile.
        OutputError: the output exists, or cannot be written there.
        ResourceError: memory or disk do not suffice.

    Example:
        >>> run = ckptavg.open_run("run")
        >>> report = ckptavg.merge(run.select(last=10), "swa.weights.h5")
    """
    plan = plan_merge(
        sources,
        output,
        coefficients=coefficients,
        model=model,
        max_memory=max_memory,
        jobs=jobs,
        overwrite=overwrite,
    )
    return run_plan(plan, progress)


def run_plan(plan: MergePlan, progress: Progress | None = None) -> MergeReport:
    """Does what a plan says; see `merge`."""
    started = time.perf_counter()
    _allow_open_files(len(plan.sources))
    with ExitStack() as stack:
        readers = [
            stack.enter_context(open_reader(source.path, source.structure))
            for source in plan.sources
        ]
        _check_unchanged(plan.sources, readers)
        writer = stack.enter_context(open_writer(plan.output, plan.structure, plan.model_config))
        digests = _stream(plan, readers, writer, progress or (lambda _: None))
        _check_unchanged(plan.sources, readers)
        tensors = {
            name: TensorRecord(tensor.shape, tensor.dtype, tuple(digests[name]))
            for name, tensor in plan.structure.tensors.items()
        }
        record = _record(plan, writer.finish())
        check_output(plan.output, plan.overwrite)
        record = commit_with_record(writer.commit, record, tensors, plan.output)
    return MergeReport(
        output=plan.output,
        record=record,
        plan=plan,
        unverified=tuple(source.path for source in plan.sources if source.record is None),
        seconds=time.perf_counter() - started,
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """One region of one tensor: independent of every other."""

    item: PlanItem
    region: Region


class _Worker:
    """Averages regions with the buffers of one thread."""

    def __init__(
        self,
        plan: MergePlan,
        readers: Sequence[CheckpointReader],
        writer: CheckpointWriter,
        progress: Progress,
    ) -> None:
        self._plan = plan
        self._readers = readers
        self._writer = writer
        self._progress = progress
        self._terms = Terms.of(plan.coefficients)
        self._buffer = memoryview(bytearray(PIECE * 8))
        self._mean = WeightedMean()

    def run(self, work: _Work) -> str:
        """Writes one region of the output; returns its digest."""
        tensor, action = work.item.tensor, work.item.action
        chosen = [
            index
            for index, factor in enumerate(self._terms.factors)
            if (factor != 0.0 if action == AVERAGE else action != LAST)
        ] or [len(self._readers) - 1]
        proofs = {index: xxhash.xxh3_128() for index in chosen}
        written = xxhash.xxh3_128()
        step = PIECE * tensor.numpy_dtype.itemsize
        for start in range(work.region.start, work.region.start + work.region.nbytes, step):
            nbytes = min(step, work.region.start + work.region.nbytes - start)
            if action == AVERAGE:
                result = self._average(tensor, start, nbytes, proofs)
                if not _all_finite(result):
                    self._explain_not_finite(work, start, nbytes, chosen)
                result = result.view(np.uint8).data
            else:
                result = self._copy(work, start, nbytes, proofs)
            written.update(result)
            self._writer.write(tensor.name, start, result)
            self._progress(nbytes * len(chosen))
        for index, proof in proofs.items():
            source = self._plan.sources[index]
            if source.proof is not None:
                source.proof.check(source.path, tensor, work.region, proof.hexdigest())
        return written.hexdigest()

    def _average(
        self, tensor: TensorInfo, start: int, nbytes: int, proofs: dict[int, xxhash.xxh3_128]
    ) -> np.ndarray:
        for index, proof in proofs.items():
            data = self._read(index, tensor, start, nbytes)
            proof.update(data)
            self._mean.add(np.frombuffer(data, tensor.numpy_dtype), self._terms.factors[index])
        return self._mean.result(self._terms.divisor)

    def _copy(
        self, work: _Work, start: int, nbytes: int, proofs: dict[int, xxhash.xxh3_128]
    ) -> memoryview:
        tensor = work.item.tensor
        first: bytes | None = None
        for index, proof in proofs.items():
            data = self._read(index, tensor, start, nbytes)
            proof.update(data)
            if first is None:
                first, origin = bytes(data), index
            elif first != data:
                self._check_damage(origin, work)
                self._check_damage(index, work)
                raise MismatchError(
                    f"'{tensor.name}' ({tensor.dtype}) differs between "
                    f"{self._readers[origin].path} and {self._readers[index].path}: values of this "
                    "type have no mean, so all checkpoints must agree. Leave those that do not out"
                )
        return memoryview(first)

    def _read(self, index: int, tensor: TensorInfo, start: int, nbytes: int) -> memoryview:
        buffer = self._buffer[:nbytes]
        assert len(buffer) == nbytes
        source = self._plan.sources[index].structure.tensors[tensor.name]
        self._readers[index].read_into(source, start, buffer)
        return buffer

    def _check_damage(self, index: int, work: _Work) -> None:
        source, name = self._plan.sources[index], work.item.tensor.name
        if source.proof is not None:
            stored = source.structure.tensors[name]
            found = region_digest(self._readers[index], stored, work.region)
            source.proof.check(source.path, stored, work.region, found)

    def _explain_not_finite(
        self, work: _Work, start: int, nbytes: int, chosen: Iterable[int]
    ) -> None:
        """Raises the error that names the culprit: damage first, which may look like NaN."""
        tensor = work.item.tensor
        for index in chosen:
            source = self._plan.sources[index]
            values = np.frombuffer(self._read(index, tensor, start, nbytes), tensor.numpy_dtype)
            values = values.astype(np.float64)
            if np.isfinite(values).all():
                continue
            self._check_damage(index, work)
            kind = "NaN" if np.isnan(values).any() else "infinity"
            raise IntegrityError(
                f"'{tensor.name}' in {source.path} holds {kind}: leave this checkpoint out"
            )
        raise IntegrityError(f"the mean of '{tensor.name}' overflows {tensor.dtype}")


def _stream(
    plan: MergePlan,
    readers: Sequence[CheckpointReader],
    writer: CheckpointWriter,
    progress: Progress,
) -> dict[str, list[str]]:
    """Averages every region; returns the digests of the output by tensor, in order."""
    groups = list(_groups(plan.items))
    workers = [_Worker(plan, readers, writer, progress) for _ in range(plan.jobs)]
    digests: dict[str, list[str]] = {
        item.tensor.name: [] for item in plan.items if item.action != DROP
    }

    def run(group: list[_Work]) -> list[str]:
        worker = workers.pop()
        try:
            # What overflows or is invalid is found in the results, and reported by name.
            with np.errstate(all="ignore"):
                return [worker.run(work) for work in group]
        finally:
            workers.append(worker)

    with ThreadPoolExecutor(plan.jobs) as pool:
        futures = [pool.submit(run, group) for group in groups]
        try:
            for group, future in zip(groups, futures, strict=True):
                for work, digest in zip(group, future.result(), strict=True):
                    digests[work.item.tensor.name].append(digest)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return digests


def _groups(items: Iterable[PlanItem]) -> Iterable[list[_Work]]:
    """Regions in order, small ones together: a thread takes on about one block at a time."""
    group: list[_Work] = []
    nbytes = 0
    for item in items:
        if item.action == DROP:
            continue
        for region in regions(item.tensor.nbytes):
            group.append(_Work(item, region))
            nbytes += region.nbytes
            if nbytes >= BLOCK_SIZE:
                yield group
                group, nbytes = [], 0
    if group:
        yield group


def _allow_open_files(count: int) -> None:
    """All checkpoints stay open at once: raises the process's own limit as far as it may."""
    needed = count + 64
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ResourceError(
            f"{count} checkpoints need {needed} open files, but the system allows {hard}: "
            "average groups of them, then the averages"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _check_unchanged(sources: Sequence[SourcePlan], readers: Sequence[CheckpointReader]) -> None:
    for source, reader in zip(sources, readers, strict=True):
        reader.check_unchanged(source.stamp)


def _all_finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or infinite. A finite sum proves it at a fraction of the cost."""
    if np.isfinite(values.sum(dtype=np.float64)):
        return True
    return bool(np.isfinite(values.astype(np.float64)).all())


def _record(plan: MergePlan, size: int) -> Record:
    folder = plan.output.parent.resolve()
    last = plan.sources[-1].record
    return Record(
        file=plan.output.name,
        size=size,
        time=now(),
        versions=versions(),
        epoch=last.epoch if last and len(plan.sources) == 1 else None,
        batch_norm=plan.batch_norm,
        model=os.path.relpath(plan.model_file, folder) if plan.model_file else None,
        recipe=plan.recipe,
        sources=tuple(
            SourceRecord(
                path=os.path.relpath(source.path.resolve(), folder),
                size=source.size,
                coefficient=source.coefficient,
                epoch=source.record.epoch if source.record else None,
                verified=source.record is not None and source.coefficient != 0.0,
            )
            for source in plan.sources
        ),
    )
