"""One pass over checkpoints that measures where they lie to each other, in fixed memory."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from ckptavg.analysis.geometry.geometry import Geometry
from ckptavg.analysis.statistics_shift import statistics_in
from ckptavg.errors import FormatError, IntegrityError, RunError, SpecError
from ckptavg.formats import open_reader
from ckptavg.formats.layers import layer_of
from ckptavg.formats.tensorflow.paths import main_file
from ckptavg.formats.tensors import all_finite
from ckptavg.merging.lockstep import AHEAD, RegionRead, read_side_by_side
from ckptavg.merging.plan import DEFAULT_JOBS, MergePlan, index_memory, memory_limit, plan_average
from ckptavg.merging.tensor_rules import AVERAGE, DROP, PlanItem
from ckptavg.merging.work import count_regions
from ckptavg.merging.worker import Progress, not_finite
from ckptavg.recipes.recipe import UNIFORM, Recipe, check_coefficients, uniform
from ckptavg.runs.checkpoint import Checkpoint, positions_in
from ckptavg.runs.sources import Sources, resolve, stem

Average = Sequence[float] | Recipe | str | Path | Checkpoint
"""Coefficients, a recipe for them, or a file whose record says what it is the average of."""

_PIECES = 4 * 1024 * 1024
"""Bytes of the float64 pieces of all checkpoints that a thread holds side by side."""
_FEWEST = 1024
"""Values of a piece below which reading costs more than it saves memory."""
_ROWS = 32
"""Rows of a matrix product, whose columns are then still long enough."""
_SMALL = 2**18
"""Multiplications of a product that OpenBLAS makes in one thread."""
_THREAD = 2 * 1024 * 1024
"""What a thread takes beside its piece: BLAS' own buffers, and the thread itself."""


def measure_geometry(
    sources: Sources,
    *,
    averages: Mapping[str, Average] | None = None,
    leave_out: Sequence[str] = (),
    max_memory: int | None = None,
    progress: Progress | None = None,
) -> Geometry:
    """Measures where checkpoints lie to each other, layer by layer.

    Every byte is read once; weights are never held but for a piece of each checkpoint. What is
    kept are inner products, 8 bytes for each layer and pair of checkpoints. Only weights count:
    optimizer state, integers and the moving statistics of BatchNorm layers do not. Statistics are
    told by records, by their names, or by the layers' names; where a layer of a subclassed model
    has neither, `leave_out` names them.

    Args:
        sources: checkpoints of one model, as in `merge`, in the order of training.
        averages: by name, averages whose points are wanted, too: coefficients with sum 1, a
            `Recipe`, or the file of an average, whose record says what it was made of (its weights
            are not read).
        leave_out: patterns such as `*/bn*/vars/[23]` of stored names of tensors that shall not
            count.
        max_memory: bytes that may be used beyond what the interpreter and its libraries do; by
            default 64 MiB, or what is needed for many checkpoints and layers.
        progress: called with numbers of bytes as they have been read.

    Returns:
        Inner products and what follows from them.

    Raises:
        RunError: there are no checkpoints where `sources` points, or the file of an average does
            not say that it is one of these checkpoints.
        FormatError: a file is not a checkpoint, or holds no weights.
        MismatchError: checkpoints are of different models.
        RecipeError: coefficients are not those of an average.
        SpecError: a pattern to leave out fits no tensor.
        IntegrityError: a file differs from its record, holds NaN or infinity, or changed meanwhile.
        MemoryLimitError: `max_memory` does not suffice; the error says what would.

    Example:
        >>> ema = ckptavg.Recipe("ema", decay=0.9)
        >>> averages = {"SWA": "swa.weights.h5", "EMA": ema}
        >>> geometry = ckptavg.analysis.measure_geometry("run", averages=averages)
        >>> geometry.distances().to_frame().loc["SWA"]
    """
    checkpoints = resolve(sources)
    count = len(checkpoints)
    vectors = {name: coefficients_of(a, checkpoints) for name, a in (averages or {}).items()}
    plan = plan_average(checkpoints, Path(), recipe=UNIFORM, coefficients=uniform(count))
    items, left_out = _weights(plan, leave_out)
    _check_records(plan, items)
    parameters: dict[str, int] = defaultdict(int)
    for item in items:
        size = item.tensor.nbytes // item.tensor.numpy_dtype.itemsize
        parameters[layer_of(item.tensor.name)] += size
    layers = tuple(parameters)
    numbers = {name: number for number, name in enumerate(layers)}
    piece, jobs = _fit_memory(plan, items, len(layers), max_memory)
    gram = np.zeros((len(layers), count, count))
    along = np.zeros((len(layers), count))
    mean_squares = np.zeros(len(layers))
    for found in read_side_by_side(
        plan, items, _measure, piece=piece, jobs=jobs, progress=progress
    ):
        found.check_intact(plan.sources)
        _check_finite(plan, found)
        number = numbers[layer_of(found.item.tensor.name)]
        gram[number] += found.measured.gram
        along[number] += found.measured.along
        mean_squares[number] += found.measured.mean_square
    places, unit = positions_in(checkpoints)
    return Geometry(
        checkpoints=checkpoints,
        labels=labels_of(checkpoints),
        positions=places,
        position_unit=unit,
        layers=layers,
        parameters=tuple(parameters.values()),
        gram=gram,
        along=along,
        mean_squares=mean_squares,
        averages=vectors,
        left_out=left_out,
    )


def coefficients_of(average: Average, checkpoints: Sequence[Checkpoint]) -> tuple[float, ...]:
    """The coefficients of an average of checkpoints, by which it is a point among them.

    Args:
        average: coefficients, a recipe, or a file that was merged from some of the checkpoints.
        checkpoints: in their order.

    Raises:
        RunError: the file does not say of what it is the average, or of others than these.
        RecipeError: the coefficients, or those of the recipe, are not those of an average.
    """
    if isinstance(average, Recipe):
        return average.coefficients(positions_in(checkpoints)[0])
    if isinstance(average, str | Path):
        average = Checkpoint.open(average)
    if not isinstance(average, Checkpoint):
        return check_coefficients(average, len(checkpoints))
    record = average.record
    if record is None or not record.sources:
        raise RunError(
            f"{average.path} has no record of what it is the average of: give its coefficients, "
            "or name it among the checkpoints"
        )
    places = {_place(checkpoint.path): n for n, checkpoint in enumerate(checkpoints)}
    coefficients = [0.0] * len(checkpoints)
    for source in record.sources:
        if source.coefficient == 0.0:
            continue
        path = record.path.parent / source.path
        if _place(path) not in places:
            raise RunError(
                f"{average.path} is an average of {path}, too, which is not among the checkpoints: "
                "name all that it was made of"
            )
        coefficients[places[_place(path)]] += source.coefficient
    return check_coefficients(coefficients, len(checkpoints))


def labels_of(checkpoints: Sequence[Checkpoint]) -> tuple[str, ...]:
    """Short names of checkpoints, no two alike: epochs where known, names of files, or paths."""
    stems = [stem(checkpoint.path) for checkpoint in checkpoints]
    epochs = [
        name if checkpoint.epoch is None else str(checkpoint.epoch)
        for name, checkpoint in zip(stems, checkpoints, strict=True)
    ]
    paths = [str(checkpoint.path) for checkpoint in checkpoints]
    names = [checkpoint.path.name for checkpoint in checkpoints]
    unique = (each for each in (epochs, stems, names) if len(set(each)) == len(each))
    return tuple(next(unique, paths))


@dataclass(frozen=True, slots=True)
class _Products:
    """Inner products of deviations from the mean, and with it."""

    gram: np.ndarray
    along: np.ndarray
    mean_square: float

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(np.trace(self.gram) + self.mean_square))


def _measure(_: PlanItem, pieces: Iterator[np.ndarray]) -> _Products:
    gram, along, mean_square = 0.0, 0.0, 0.0
    for values in pieces:
        mean = values.mean(axis=0)
        values -= mean
        gram += inner_products(values)
        # einsum, because BLAS would start threads of its own for as little as this.
        along += np.einsum("kn,n->k", values, mean)
        mean_square += np.einsum("n,n->", mean, mean)
    return _Products(gram, along, float(mean_square))


def inner_products(values: np.ndarray) -> np.ndarray:
    """`values @ values.T`, from products so small that BLAS makes each in the thread it is called.

    Its own threads wait for each other in a loop that keeps cores busy: beside ours, or beside
    other programs, they take many times as long as the products.

    Args:
        values: (rows, columns) float64.
    """
    rows = len(values)
    found = np.empty((rows, rows))
    for i in range(0, rows, _ROWS):
        for j in range(0, i + 1, _ROWS):
            one, other = values[i : i + _ROWS], values[j : j + _ROWS]
            found[i : i + _ROWS, j : j + _ROWS] = product = _small_products(one, other)
            found[j : j + _ROWS, i : i + _ROWS] = product.T
    return found


def _small_products(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """`one @ other.T`, summed over ranges of columns."""
    step = _SMALL // (len(one) * len(other))
    count = one.shape[1] // step
    left = one[:, : count * step].reshape(len(one), count, step).transpose(1, 0, 2)
    right = other[:, : count * step].reshape(len(other), count, step).transpose(1, 2, 0)
    rest = one[:, count * step :] @ other[:, count * step :].T
    return np.matmul(left, right).sum(axis=0) + rest


def _weights(
    plan: MergePlan, patterns: Sequence[str]
) -> tuple[tuple[PlanItem, ...], tuple[str, ...]]:
    """The tensors that are weights, and the names of the others."""
    statistics = {name for names in statistics_in(plan).values() for name in names}
    items = [item for item in plan.items if item.action != DROP]
    for pattern in patterns:
        matched = {i.tensor.name for i in items if fnmatchcase(i.tensor.name, pattern)}
        if not matched:
            raise SpecError(f"no tensor is called like {pattern!r:.80}, which shall be left out")
        statistics |= matched
    weights = tuple(
        i
        for i in items
        if i.action == AVERAGE and i.tensor.nbytes and i.tensor.name not in statistics
    )
    if not weights:
        raise FormatError(f"{plan.sources[0].path} holds no weights but what is left out")
    counted = {item.tensor.name for item in weights}
    return weights, tuple(i.tensor.name for i in items if i.tensor.name not in counted)


def _fit_memory(
    plan: MergePlan, items: Sequence[PlanItem], layers: int, max_memory: int | None
) -> tuple[int, int]:
    """Values of a piece and threads, as many as there is work and memory for."""
    count = len(plan.sources)
    # With a value come the mean, the bytes that are read, and a share of the small products.
    matrix, value = 8 * count**2, 8 * (count + 6)
    fixed = index_memory(plan.sources) + layers * (matrix + 8 * count + 8)
    thread = (3 + AHEAD) * matrix + _THREAD
    limit = memory_limit(max_memory, fixed + thread + _FEWEST * value)
    wanted = max(_FEWEST, _PIECES // (8 * count))
    jobs = min(DEFAULT_JOBS, len(os.sched_getaffinity(0)), count_regions(items))
    while (piece := (limit - fixed - jobs * thread) // (jobs * value)) < _FEWEST:
        jobs -= 1
    return min(piece, wanted), jobs


def _check_records(plan: MergePlan, items: Sequence[PlanItem]) -> None:
    """Refuses checkpoints of which their records say that they hold NaN, before all are read."""
    counted = {item.tensor.name for item in items}
    for source in plan.sources:
        bad = [] if source.record is None else counted.intersection(source.record.non_finite)
        if bad:
            raise IntegrityError(
                f"'{min(bad)}' in {source.path} holds NaN or infinity, as its record says: leave "
                "this checkpoint out"
            )


def _check_finite(plan: MergePlan, found: RegionRead[_Products]) -> None:
    """Refuses NaN, infinity, and numbers too large to be squared."""
    if found.measured.finite:
        return
    tensor, region = found.item.tensor, found.region
    for source in plan.sources:
        data = bytearray(region.nbytes)
        with open_reader(source.path, source.structure) as reader:
            stored = source.structure.tensors[tensor.name]
            reader.read_into(stored, region.start, memoryview(data))
        values = np.frombuffer(data, tensor.numpy_dtype)
        if not all_finite(values):
            raise not_finite(source.path, tensor.name, values.astype(np.float64))
    raise IntegrityError(
        f"'{tensor.name}' holds numbers whose squares are beyond float64: leave the tensor out"
    )


def _place(path: Path) -> Path:
    return main_file(path).resolve()
