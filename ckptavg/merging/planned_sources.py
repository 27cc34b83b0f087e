"""The checkpoints that a merge will read: opened, searched, compared with each other."""

import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ckptavg.errors import IntegrityError, MismatchError, ResourceError
from ckptavg.formats import CheckpointReader, Structure, open_reader
from ckptavg.formats.tensorflow.paths import main_file
from ckptavg.formats.zip_archive import Member
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.proof import Proof
from ckptavg.runs.reading import reading
from ckptavg.runs.record import Record
from ckptavg.storage.open_file import Stamp


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """A checkpoint to read, as it was when the plan was made, and its coefficient.

    Attributes:
        path: its file, or what names its files.
        coefficient: its coefficient in the average.
        stamps: inodes, times and sizes of its files, by which a change is noticed.
        structure: what it holds.
        record: the record of the checkpoint; None if it has none.
        proof: the digests in the record.
        epoch: 1-based; None if it is not known.
        files: names of its files, all in one folder.
        checksummed: whether, without a record, the format's own checksums prove its tensors.
        members: of a `.keras` file, with their checksums.
    """

    path: Path
    coefficient: float
    stamps: tuple[Stamp, ...]
    structure: Structure
    record: Record | None
    proof: Proof | None
    epoch: int | None = None
    files: tuple[str, ...] = ()
    checksummed: bool = False
    members: Mapping[str, Member] = field(default_factory=dict)

    @property
    def proven(self) -> bool:
        """Whether its bytes are proven while they are read."""
        return self.proof is not None or self.checksummed or bool(self.members)

    @property
    def size(self) -> int:
        """Size of its files in bytes."""
        return sum(stamp.size for stamp in self.stamps)


def plan_sources(
    checkpoints: Sequence[Checkpoint], coefficients: Sequence[float]
) -> tuple[SourcePlan, ...]:
    """Opens checkpoints that are to be averaged and finds what they hold.

    Checkpoints of one structure share it, so that the size of a plan does not grow with them.

    Raises:
        FormatError: a file is not a checkpoint, or is damaged.
        IntegrityError: a file does not fit its record, or is gone.
        MismatchError: checkpoints are not of one model, or one is named twice.
    """
    _check_distinct(checkpoints)
    planned: list[SourcePlan] = []
    skeleton = None
    firsts: dict[int, Mapping[str, int]] = {}
    for checkpoint, coefficient in zip(checkpoints, coefficients, strict=True):
        with open_reader(checkpoint.path, like=skeleton) as reader:
            structure = reader.structure
            if skeleton is None:
                skeleton = reader.skeleton()
            # Equal ones are found again and again: one of them is kept.
            elif structure == skeleton.structure:
                structure = skeleton.structure
            proof = None
            if checkpoint.record is not None:
                shared = firsts.get(id(structure))
                proof = Proof.of(checkpoint.record, reader, shared)
                firsts[id(structure)] = proof.first
            planned.append(
                SourcePlan(
                    checkpoint.path,
                    coefficient,
                    reader.stamps,
                    structure,
                    checkpoint.record,
                    proof,
                    checkpoint.epoch,
                    tuple(file.name for file in reader.files),
                    proof is None and bool(reader.checksums),
                    reader.members,
                )
            )
    for source in planned[1:]:
        check_same_model(planned[0], source)
    return tuple(planned)


@contextmanager
def open_sources(sources: Sequence[SourcePlan]) -> Iterator[list[CheckpointReader]]:
    """Opens the checkpoints of a plan, which must stay as they were when it was made.

    That is checked when they are opened, and again when the `with` is left without an error.

    Raises:
        IntegrityError: one has changed.
        ResourceError: there are more files than a process may open.
        RunError: a training is removing them.
    """
    _allow_open_files(sum(len(source.stamps) for source in sources))
    with ExitStack() as stack:
        stack.enter_context(reading(source.path for source in sources))
        readers = [
            stack.enter_context(open_reader(source.path, source.structure)) for source in sources
        ]
        _check_unchanged(sources, readers)
        yield readers
        _check_unchanged(sources, readers)


def _check_unchanged(sources: Sequence[SourcePlan], readers: Sequence[CheckpointReader]) -> None:
    for source, reader in zip(sources, readers, strict=True):
        reader.check_unchanged(source.stamps)


def _allow_open_files(count: int) -> None:
    """Raises the process's own limit as far as needed: all checkpoints stay open at once."""
    # Besides the checkpoints: output, journal, Python and its libraries.
    needed = count + 64
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ResourceError(
            f"{count} files of checkpoints must be open at once, but the system allows {hard}: "
            "average groups of them, then the averages"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def check_same_model(one: SourcePlan, other: SourcePlan | CheckpointReader) -> None:
    """Makes sure that two checkpoints hold the same tensors, but for optimizer state.

    Raises:
        MismatchError: they do not; the message names the first tensor that differs.
    """
    if one.structure is other.structure:
        return
    a, b = one.structure.model_tensors, other.structure.model_tensors
    for name in sorted({*a, *b}):
        if name not in a or name not in b:
            holder, lacking = (one, other) if name in a else (other, one)
            raise MismatchError(
                f"'{name}' is in {holder.path} but not in {lacking.path}: "
                "checkpoints must come from the same model"
            )
        for what in ("shape", "dtype"):
            left, right = getattr(a[name], what), getattr(b[name], what)
            if left != right:
                raise MismatchError(
                    f"'{name}' has {what} {left} in {one.path} but {right} in {other.path}: "
                    "checkpoints must come from the same model"
                )


def _check_distinct(checkpoints: Sequence[Checkpoint]) -> None:
    seen = set()
    for checkpoint in checkpoints:
        if not Checkpoint.exists(checkpoint.path):
            raise IntegrityError(f"there is a record but no file {checkpoint.path}")
        status = main_file(checkpoint.path).stat()
        # By inode: a link to a checkpoint would count it twice in the average.
        place = (status.st_dev, status.st_ino)
        if place in seen:
            raise MismatchError(
                f"{checkpoint.path} is named twice, or is a link to another one: name every "
                "checkpoint once"
            )
        seen.add(place)
