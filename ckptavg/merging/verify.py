"""Checks files against their digests; recomputes averages and compares."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ckptavg.errors import IntegrityError
from ckptavg.formats import CheckpointReader, open_reader
from ckptavg.formats.layers import layer_of, moving_statistics
from ckptavg.merging.digests import MergeDigests
from ckptavg.merging.engine import stream
from ckptavg.merging.plan import COPY, MergePlan, plan_average
from ckptavg.merging.tensor_rules import DTYPES, LAST
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.numbering import natural_key
from ckptavg.runs.proof import check_intact, check_model_file
from ckptavg.runs.record import Record
from ckptavg.runs.sources import Sources, resolve

INTACT, UNVERIFIED = "intact", "unverified"
REPRODUCED, NOT_RECOMPUTED = "reproduced", "not recomputed"


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found out about one checkpoint.

    Attributes:
        path: the checkpoint.
        proof: `intact`: every tensor is as its record says, or the checksums of its format;
            `unverified`: it has neither.
        average: of an average, `reproduced`: recomputed from its sources, it came out the same to
            the bit; `not recomputed`: some sources are gone; None for other checkpoints.
        reason: details about `average`.
        unproven: what else the checkpoint comes with, its configuration, that its record does not
            prove, because 0.1.0 wrote it.
    """

    path: Path
    proof: str
    average: str | None = None
    reason: str = ""
    unproven: tuple[str, ...] = ()

    def __repr__(self) -> str:
        average = "" if self.average is None else f", average {self.average}: {self.reason}"
        return f"Verification of {self.path}: {self.proof}{average}"


def verify(paths: Sources) -> list[Verification]:
    """Checks checkpoints against their records; recomputes averages whose sources still exist.

    Args:
        paths: what `merge` takes: runs, with the averages that they have tracked, files, patterns,
            folders.

    Returns:
        What was found, checkpoint by checkpoint.

    Raises:
        IntegrityError: a checkpoint is not what its record says, a source not what was averaged, or
            an average not the average of its sources.
        FormatError: a file is not a checkpoint, or is damaged.
    """
    return list(verify_each(paths))


def verify_each(paths: Sources) -> Iterator[Verification]:
    """As `verify`, one by one."""
    for checkpoint in resolve(paths, tracked=True):
        path, record = checkpoint.path, checkpoint.record
        unproven = check_intact(path)
        if unproven is None:
            yield Verification(path, UNVERIFIED)
            continue
        model = check_model_file(checkpoint)
        if model is not None and model.suffix == ".json" and record and not record.model_digest:
            unproven = (*unproven, model.name)
        found = Verification(path, INTACT)
        if record is not None and record.sources:
            found = _recompute(path, record)
        yield replace(found, unproven=unproven)


def _recompute(path: Path, record: Record) -> Verification:
    """Averages the sources of an average again, to compare the digests; nothing is written."""
    sources = [path.parent / source.path for source in record.sources]
    # It would otherwise prove itself.
    if any(Checkpoint.exists(s) and s.resolve() == path.resolve() for s in sources):
        raise IntegrityError(f"the record of {path} names itself among its sources")
    if record.recipe == COPY and len(sources) != 1:
        raise IntegrityError(f"the record of {path} names {len(sources)} sources of one copy")
    gone = [source for source in sources if not Checkpoint.exists(source)]
    if gone:
        reason = f"{len(gone)} of {len(sources)} sources are gone, such as {gone[0]}"
        return Verification(path, INTACT, NOT_RECOMPUTED, reason)
    plan = plan_average(
        [Checkpoint.open(source) for source in sources],
        path,
        recipe=record.recipe or "",
        coefficients=[source.coefficient for source in record.sources],
        # Integers were compared when the average was made; the last one's are in it either way.
        non_float=LAST,
        dtype=_dtype_of(record),
    )
    digests = MergeDigests(plan)
    with open_reader(path) as reader:
        written = _Written(reader, plan)
        stream(plan, written.compare, digests.add)
        computed = digests.tensor_records(written.read)
    _check_sources(path, record, digests)
    recorded = record.read_tensors()
    if set(recorded) != set(computed):
        odd = min(set(recorded) ^ set(computed))
        raise IntegrityError(f"{path} and its sources do not hold the same tensors: '{odd}'")
    different = {name for name in recorded if recorded[name] != computed[name]}
    return _judge(path, record, plan, different | written.different)


class _Written:
    """An average as it is on disk, where its dtype is not that of its sources.

    Its blocks are then not those of the sources, so that bytes are compared instead of digests.

    Attributes:
        different: names of the tensors that are not what they should be.
    """

    def __init__(self, reader: CheckpointReader, plan: MergePlan) -> None:
        self._reader = reader
        self._stored = reader.structure.tensors
        self._converted = {i.tensor.name for i in plan.items if i.converted is not None}
        self.different: set[str] = set()

    def compare(self, name: str, start: int, data: memoryview) -> None:
        if name in self._converted and self.read(name, start, len(data)) != data:
            self.different.add(name)

    def read(self, name: str, start: int, nbytes: int) -> bytearray:
        tensor = self._stored.get(name)
        # What is missing or shorter differs.
        found = bytearray(nbytes if tensor and start + nbytes <= tensor.nbytes else 0)
        if tensor is not None and found:
            self._reader.read_into(tensor, start, memoryview(found))
        return found


def _dtype_of(record: Record) -> str | None:
    """The dtype that was asked for; a wrong one is found out, because the tensors differ."""
    dtype = record.choice.get("dtype")
    return dtype if isinstance(dtype, str) and dtype in DTYPES else None


def _check_sources(path: Path, record: Record, digests: MergeDigests) -> None:
    """Makes sure that what was read now is what was read then."""
    for index, source in enumerate(record.sources):
        now = digests.source(index)
        if source.digest is not None and now is not None and source.digest != now:
            raise IntegrityError(
                f"{path} is intact, but {path.parent / source.path} is not what was averaged: it "
                "was replaced or changed since. Average again"
            )


def _judge(path: Path, record: Record, plan: MergePlan, different: set[str]) -> Verification:
    """What the tensors tell that are not the mean of the sources: a pass may have set them."""
    refreshed = set(record.batch_norm.tensors) if record.batch_norm is not None else set()
    # A record could otherwise excuse any tensor.
    if wrong := different - (refreshed & _statistics(plan)):
        raise IntegrityError(
            f"{path} is intact, but is not the average of its sources: '{min(wrong)}' differs"
        )
    count = len(record.sources)
    what = f"average of {count} checkpoints" if count > 1 else f"copy of {record.sources[0].path}"
    reason = f"the {what}, recomputed to the bit"
    if different:
        reason += f", but for {len(different)} BatchNorm statistics that were re-estimated"
    return Verification(path, INTACT, REPRODUCED, reason)


def _statistics(plan: MergePlan) -> set[str]:
    """Names of what may be statistics of BatchNorm layers, by the sources and not by the average.

    Their records know it. Without any, the layer must be called so, or at least look so: vectors of
    one length, of which the last ones are the statistics.
    """
    structure = plan.sources[-1].structure
    states = [s.record.batch_norm for s in plan.sources if s.record is not None]
    known = {name for s in states if s is not None for name in (*s.moving, *s.tensors)}
    found = {name for names in moving_statistics(structure, known).values() for name in names}
    if states:
        return found
    layers = defaultdict(list)
    for name, tensor in structure.model_tensors.items():
        layers[layer_of(name)].append(tensor)
    for tensors in layers.values():
        if len(tensors) > 1 and len({t.shape for t in tensors}) == len(tensors[0].shape) == 1:
            ordered = sorted((t.name for t in tensors), key=natural_key)
            found.update(ordered[-2 if len(ordered) < 5 else -5 :])
    return found
