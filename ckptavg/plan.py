"""The plan of a merge: everything checked and decided before a byte is written."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ckptavg.accumulate import PIECE
from ckptavg.checkpoints import Checkpoint, main_file
from ckptavg.errors import FormatError, IntegrityError, MismatchError, OutputError, ResourceError
from ckptavg.formats import (
    CheckpointReader,
    ModelConfig,
    Stamp,
    Structure,
    open_reader,
    output_suffix,
)
from ckptavg.outputs import check_output
from ckptavg.proof import Proof
from ckptavg.recipes import check_coefficients, uniform
from ckptavg.record import DIGEST_SIZE, BatchNormRecord, Record
from ckptavg.rules import (
    AVERAGE,
    DROP,
    EQUAL,
    LAST,
    PlanItem,
    check_config_not_quantized,
    check_not_quantized,
    count_batch_norm,
    decide,
)
from ckptavg.sources import Sources, resolve
from ckptavg.strips import count_regions
from ckptavg.tensors import BLOCK_SIZE

DEFAULT_MAX_MEMORY = 64 * 1024 * 1024
DEFAULT_JOBS = 4

_JOB_MEMORY = 14 * 8 * PIECE
"""Of one thread: bytes read, sum, scratch, and what float64 or bfloat16 arithmetic takes beside."""
_TENSOR_MEMORY = 1024


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """A checkpoint to read: as it was when the plan was made, and its share in the average."""

    path: Path
    coefficient: float
    stamps: tuple[Stamp, ...]
    structure: Structure
    record: Record | None
    proof: Proof | None
    epoch: int | None = None

    @property
    def size(self) -> int:
        """Of its files, in bytes."""
        return sum(stamp[2] for stamp in self.stamps)


@dataclass(frozen=True, slots=True)
class MergePlan:
    """All that a merge will do. It is plain data: it can be printed, compared and pickled.

    Attributes:
        output: the file to write.
        overwrite: whether a file of that name may be replaced.
        sources: in the order in which they were named.
        items: what becomes of every tensor of the checkpoints.
        recipe: how the coefficients came about: `uniform` or `coefficients`.
        jobs: threads.
        batch_norm: what the BatchNorm statistics of the output will be worth.
        model_file: the model's configuration, if there is one.
        model_config: its content, if the output needs it.
        bytes_read: from all sources.
        bytes_written: of tensors.
        memory: projected working memory in bytes, beyond the interpreter and its libraries.
    """

    output: Path
    overwrite: bool
    sources: tuple[SourcePlan, ...] = field(repr=False)
    items: tuple[PlanItem, ...] = field(repr=False)
    recipe: str
    jobs: int
    batch_norm: BatchNormRecord | None
    model_file: Path | None
    model_config: ModelConfig | None
    bytes_read: int
    bytes_written: int
    memory: int

    @property
    def coefficients(self) -> tuple[float, ...]:
        return tuple(source.coefficient for source in self.sources)

    @property
    def structure(self) -> Structure:
        """What the output will hold."""
        tensors = {i.tensor.name: i.tensor for i in self.items if i.action != DROP}
        return self.sources[-1].structure.with_tensors(tensors)


def plan_merge(
    sources: Sources,
    output: str | Path,
    *,
    coefficients: Sequence[float] | None = None,
    normalize: bool = True,
    non_float: str = EQUAL,
    model: str | Path | None = None,
    max_memory: int = DEFAULT_MAX_MEMORY,
    jobs: int | None = None,
    overwrite: bool = False,
    live_model: bool = False,
) -> MergePlan:
    """Plans a merge from metadata alone; arguments and errors are those of `merge`.

    With `live_model` a `.keras` output needs no configuration from a file: `merge_into_model` will
    take it from the model that it is given.
    """
    output = Path(output)
    suffix = output_suffix(output)
    check_output(output, overwrite)
    checkpoints = resolve(sources)
    _check_distinct(checkpoints, output)
    recipe = "uniform" if coefficients is None else "coefficients"
    coefficients = (
        uniform(len(checkpoints))
        if coefficients is None
        else check_coefficients(coefficients, len(checkpoints), normalize=normalize)
    )
    planned = _open_all(checkpoints, coefficients)
    reference = planned[0]
    for source in planned[1:]:
        _check_same_model(reference, source)
    last = planned[-1].structure
    check_not_quantized(planned[-1].path, last)
    items = decide(last, len(planned), non_float)
    if all(item.action == DROP for item in items):
        raise FormatError(f"{reference.path} holds no weights")
    model_file = Path(model) if model is not None else _model_file(checkpoints)
    written = sum(item.tensor.nbytes for item in items if item.action != DROP)
    _check_disk(output, written * (2 if suffix == ".keras" or live_model else 1))
    jobs, memory = _fit_memory(jobs, max_memory, planned, items)
    return MergePlan(
        output=output,
        overwrite=overwrite,
        sources=planned,
        items=items,
        recipe=recipe,
        jobs=jobs,
        batch_norm=_batch_norm(planned),
        model_file=model_file,
        model_config=(
            _model_config(model_file, output, reference)
            if suffix == ".keras" and not live_model
            else None
        ),
        bytes_read=sum(_bytes_read(item, coefficients) for item in items),
        bytes_written=written,
        memory=memory,
    )


def _open_all(
    checkpoints: Sequence[Checkpoint], coefficients: Sequence[float]
) -> tuple[SourcePlan, ...]:
    planned: list[SourcePlan] = []
    layout = None
    firsts: dict[int, Mapping[str, int]] = {}
    for checkpoint, coefficient in zip(checkpoints, coefficients, strict=True):
        with open_reader(checkpoint.path, like=layout) as reader:
            structure = reader.structure
            if layout is None:
                layout = reader.layout()
            elif structure == layout.structure:
                structure = layout.structure
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
                )
            )
    return tuple(planned)


def _bytes_read(item: PlanItem, coefficients: Sequence[float]) -> int:
    files = {
        AVERAGE: sum(coefficient != 0 for coefficient in coefficients),
        EQUAL: len(coefficients),
        LAST: 1,
        DROP: 0,
    }
    return item.tensor.nbytes * files[item.action]


def _check_distinct(checkpoints: Sequence[Checkpoint], output: Path) -> None:
    seen = set()
    for checkpoint in checkpoints:
        if not main_file(checkpoint.path).is_file():
            raise IntegrityError(f"there is a record but no file {checkpoint.path}")
        place = checkpoint.path.resolve()
        if place == output.resolve():
            raise OutputError(f"{output} is also one of the checkpoints: choose another name")
        if place in seen:
            raise MismatchError(f"{checkpoint.path} is named twice: name every checkpoint once")
        seen.add(place)


def _check_same_model(one: SourcePlan, other: SourcePlan | CheckpointReader) -> None:
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


def _check_disk(output: Path, needed: int) -> None:
    free = shutil.disk_usage(output.parent).free
    if free < needed:
        raise ResourceError(
            f"{output} needs {needed:,} bytes of disk but {output.parent} has {free:,} free"
        )


def _fit_memory(
    jobs: int | None,
    max_memory: int,
    sources: Sequence[SourcePlan],
    items: Sequence[PlanItem],
) -> tuple[int, int]:
    """As many threads as asked for, or as there is work and memory for."""
    if jobs is not None and (not isinstance(jobs, int) or jobs < 1):
        raise ResourceError(f"jobs is {jobs!r}, but must be a whole number, at least 1")
    wanted = jobs or min(DEFAULT_JOBS, len(os.sched_getaffinity(0)))
    written = sum(item.tensor.nbytes for item in items if item.action != DROP)
    wanted = min(wanted, -(-written // BLOCK_SIZE) or 1)
    structures = {id(source.structure): source.structure for source in sources}
    index = sum(len(structure.tensors) for structure in structures.values()) * _TENSOR_MEMORY
    index += sum(len(source.proof.digests) for source in sources if source.proof is not None)
    index += count_regions(items) * DIGEST_SIZE * (len(sources) + 1)
    least = index + _JOB_MEMORY
    if least > max_memory:
        raise ResourceError(
            f"a memory limit of {max_memory:,} bytes is too low: at least {least:,} are needed"
        )
    fitting = min(wanted, (max_memory - index) // _JOB_MEMORY)
    return fitting, index + fitting * _JOB_MEMORY


def _batch_norm(sources: Sequence[SourcePlan]) -> BatchNormRecord | None:
    known = sources[-1].record
    if known is not None:
        if known.batch_norm is None or len(sources) == 1:
            return known.batch_norm
        return BatchNormRecord(known.batch_norm.layers, "stale")
    layers = count_batch_norm(sources[-1].structure.tensors)
    if not layers:
        return None
    return BatchNormRecord(layers, "stale" if len(sources) > 1 else "running")


def _model_file(checkpoints: Sequence[Checkpoint]) -> Path | None:
    """The configuration that the checkpoints' records agree upon."""
    files = {
        (checkpoint.path.parent / checkpoint.record.model).resolve()
        for checkpoint in checkpoints
        if checkpoint.record is not None and checkpoint.record.model is not None
    }
    existing = [file for file in files if file.is_file()]
    return existing[0] if len(files) == 1 and existing else None


def _model_config(model_file: Path | None, output: Path, source: SourcePlan) -> ModelConfig:
    if model_file is None:
        raise FormatError(
            f"cannot write {output}: a .keras file holds the configuration of the model, and the "
            "checkpoints come with none. Pass a model (--model), or write a .weights.h5 file"
        )
    if model_file.suffix == ".keras":
        with open_reader(model_file) as reader:
            _check_same_model(source, reader)
    config = ModelConfig.read(model_file)
    check_config_not_quantized(model_file, config)
    return config
