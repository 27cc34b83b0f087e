"""Checks files against their digests; recomputes averages and compares."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ckptavg.errors import IntegrityError
from ckptavg.merging.digests import MergeDigests
from ckptavg.merging.engine import stream
from ckptavg.merging.plan import COPY, plan_average
from ckptavg.merging.tensor_rules import LAST
from ckptavg.runs.checkpoint import Checkpoint
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
    )
    digests = MergeDigests(plan)
    stream(plan, lambda *_: None, digests.add)
    _check_sources(path, record, digests)
    return _compare(path, record, digests)


def _check_sources(path: Path, record: Record, digests: MergeDigests) -> None:
    """Makes sure that what was read now is what was read then."""
    for index, source in enumerate(record.sources):
        now = digests.source(index)
        if source.digest is not None and now is not None and source.digest != now:
            raise IntegrityError(
                f"{path} is intact, but {path.parent / source.path} is not what was averaged: it "
                "was replaced or changed since. Average again"
            )


def _compare(path: Path, record: Record, digests: MergeDigests) -> Verification:
    recorded, computed = record.read_tensors(), digests.tensor_records()
    if set(recorded) != set(computed):
        odd = min(set(recorded) ^ set(computed))
        raise IntegrityError(f"{path} and its sources do not hold the same tensors: '{odd}'")
    refreshed = record.batch_norm.tensors if record.batch_norm is not None else ()
    different = [name for name in recorded if recorded[name] != computed[name]]
    for name in different:
        # A record could otherwise excuse any tensor; statistics are one number for each channel.
        if name not in refreshed or len(recorded[name].shape) != 1:
            raise IntegrityError(
                f"{path} is intact, but is not the average of its sources: '{name}' differs"
            )
    count = len(record.sources)
    what = f"average of {count} checkpoints" if count > 1 else f"copy of {record.sources[0].path}"
    reason = f"the {what}, recomputed to the bit"
    if different:
        reason += f", but for {len(different)} BatchNorm statistics that were re-estimated"
    return Verification(path, INTACT, REPRODUCED, reason)
