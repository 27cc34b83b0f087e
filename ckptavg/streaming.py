"""Streams the regions of checkpoints through their mean into an output, in several threads."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import xxhash

from ckptavg.accumulate import PIECE, Terms, WeightedMean
from ckptavg.errors import IntegrityError, MismatchError
from ckptavg.formats import CheckpointReader, CheckpointWriter
from ckptavg.plan import AVERAGE, DROP, LAST, MergePlan, PlanItem
from ckptavg.proof import region_digest
from ckptavg.tensors import BLOCK_SIZE, Region, TensorInfo, regions

Progress = Callable[[int], None]
"""Is told of bytes that were read, from any thread."""


def stream(
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


def _all_finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or infinite. A finite sum proves it at a fraction of the cost."""
    if np.isfinite(values.sum(dtype=np.float64)):
        return True
    return bool(np.isfinite(values.astype(np.float64)).all())
