"""`inspect`: what a run, a folder of checkpoints or a checkpoint holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptavg.formats import open_reader
from ckptavg.formats.tensors import TensorInfo
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.describe import describe_epochs, human_size
from ckptavg.runs.run import Run, is_run, open_run
from ckptavg.runs.sources import Sources, resolve


@dataclass(frozen=True, slots=True, repr=False)
class CheckpointContent:
    """What a checkpoint holds.

    Attributes:
        checkpoint: its path, its record and its epoch, where these are known.
        size: of its files, in bytes.
        tensors: all that are stored, in the order of the file.
        model_tensors: those without the state of the optimizer, which a merge drops.
        remark: what the file is, if its name does not tell; else empty.
    """

    checkpoint: Checkpoint
    size: int
    tensors: tuple[TensorInfo, ...]
    model_tensors: tuple[TensorInfo, ...]
    remark: str = ""

    def __repr__(self) -> str:
        count, size = len(self.tensors), human_size(self.size)
        return f"CheckpointContent of {self.checkpoint.path}: {count} tensors, {size}"


@dataclass(frozen=True, slots=True, repr=False)
class Inspection:
    """What `inspect` found.

    Attributes:
        run: the run, if the source is one; its records say what its checkpoints are.
        contents: what the checkpoints hold; empty for a run, whose files are not opened.
    """

    run: Run | None = None
    contents: tuple[CheckpointContent, ...] = ()

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The checkpoints, in the order of training."""
        if self.run is not None:
            return self.run.checkpoints
        return tuple(content.checkpoint for content in self.contents)

    def __repr__(self) -> str:
        if self.run is not None:
            return f"Inspection: {self.run!r}"
        lines = [f"Inspection: {describe_epochs(self.checkpoints)}"]
        return "\n".join([*lines, *(f"  {content!r}" for content in self.contents)])


def inspect(source: Sources) -> Inspection:
    """Reads what a run, a folder of checkpoints or a checkpoint holds; tensors are not read.

    Args:
        source: as in `merge`: a run, a checkpoint file, a pattern, or a folder of checkpoints.

    Returns:
        The run with its records, or what each checkpoint holds.

    Raises:
        RunError: there are no checkpoints where `source` points.
        FormatError: a file is not a checkpoint, or is damaged.
        RecordError: a record is damaged.

    Example:
        >>> [tensor.shape for tensor in ckptavg.inspect("swa.weights.h5").contents[0].tensors]
    """
    if isinstance(source, str | Path) and is_run(source):
        return Inspection(run=open_run(source))
    if isinstance(source, Run):
        return Inspection(run=source)
    return Inspection(contents=_contents(resolve(source)))


def _contents(checkpoints: Sequence[Checkpoint]) -> tuple[CheckpointContent, ...]:
    found = []
    for checkpoint in checkpoints:
        with open_reader(checkpoint.path) as reader:
            tensors = (reader.structure.tensors, reader.structure.model_tensors)
            stored, of_model = (tuple(named.values()) for named in tensors)
            content = CheckpointContent(checkpoint, reader.size, stored, of_model, reader.remark)
            found.append(content)
    return tuple(found)
