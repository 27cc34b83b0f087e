"""Checkpoints and averages as points: their labels and coefficients."""

from collections.abc import Sequence
from pathlib import Path

from ckptavg.errors import RunError
from ckptavg.formats.tensorflow.paths import main_file
from ckptavg.recipes import Recipe, check_coefficients
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.selection import positions_in
from ckptavg.runs.sources import stem

Average = Sequence[float] | Recipe | str | Path | Checkpoint
"""Coefficients, a recipe for them, or a merged file whose record lists its sources."""


def coefficients_of(average: Average, checkpoints: Sequence[Checkpoint]) -> tuple[float, ...]:
    """The coefficients that place an average among its checkpoints.

    Args:
        average: coefficients, a recipe, or a file that was merged from some of the checkpoints.
        checkpoints: in the order of the coefficients.

    Raises:
        RunError: the file has no record of its sources, or one of them is not among the
            checkpoints.
        RecipeError: there are not as many coefficients as checkpoints, or their sum is not 1.
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
            f"{average.path} has no record of its sources: pass its coefficients instead, or list "
            "the file as one of the checkpoints"
        )
    places = {_place(checkpoint.path): n for n, checkpoint in enumerate(checkpoints)}
    coefficients = [0.0] * len(checkpoints)
    for source in record.sources:
        if source.coefficient == 0.0:
            continue  # it does not move the average, so it may be missing
        path = average.path.parent / source.path
        if _place(path) not in places:
            raise RunError(
                f"{average.path} also averages {path}, which is not among the checkpoints: "
                "name all of its sources"
            )
        coefficients[places[_place(path)]] += source.coefficient
    return check_coefficients(coefficients, len(checkpoints))


def labels_of(checkpoints: Sequence[Checkpoint]) -> tuple[str, ...]:
    """The shortest names that are all different: epochs, stems, names of files, or paths."""
    stems = [stem(checkpoint.path) for checkpoint in checkpoints]
    epochs = [
        name if checkpoint.epoch is None else str(checkpoint.epoch)
        for name, checkpoint in zip(stems, checkpoints, strict=True)
    ]
    names = [checkpoint.path.name for checkpoint in checkpoints]
    # Labels are keys of results: two of them must not be equal.
    unique = (each for each in (epochs, stems, names) if len(set(each)) == len(each))
    return tuple(next(unique, [str(checkpoint.path) for checkpoint in checkpoints]))


def _place(path: Path) -> Path:
    return main_file(path).resolve()
