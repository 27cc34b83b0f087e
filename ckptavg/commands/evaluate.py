"""`evaluate`: loss and metrics of checkpoints, by default in the model that they come with."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ckptavg.batch_norm.options import BatchNormOptions
from ckptavg.commands.defaults import checkpoint_file, model_or_that_of
from ckptavg.commands.display import bar, import_keras
from ckptavg.errors import DataError, RunError, SpecError
from ckptavg.runs.reading import reading

if TYPE_CHECKING:
    import keras

    from ckptavg.analysis.comparison.results import Comparison


@overload
def evaluate(
    checkpoint: str | Path,
    *,
    data: Any,
    model: "keras.Model | str | Path | None" = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]: ...


@overload
def evaluate(
    checkpoint: Iterable[str | Path],
    *,
    data: Any,
    model: "keras.Model | str | Path | None" = None,
    bn_data: Any = None,
    steps: int | None = None,
    batch_size: int | None = None,
    preprocess: Callable[[Any], Any] | str | None = None,
    bn_mode: str = "batch",
) -> "Comparison": ...


def evaluate(
    checkpoint: str | Path | Iterable[str | Path],
    *,
    data: Any,
    model: "keras.Model | str | Path | None" = None,
    bn_data: Any = None,
    steps: int | None = None,
    batch_size: int | None = None,
    preprocess: Callable[[Any], Any] | str | None = None,
    bn_mode: str = "batch",
    progress: Callable[[int], None] | None = None,
) -> "dict[str, float] | Comparison":
    """Loads a checkpoint into a model and evaluates it, or compares several.

    A comparison says whether averages are better than the latest of the other checkpoints.

    Args:
        checkpoint: a `.weights.h5` or `.keras` file, or a run, whose last checkpoint is meant; or
            several of these, to compare.
        data: held-out data: a `tf.data.Dataset` or other iterable of batches `(x, y)`, a
            `keras.utils.PyDataset`, or a tuple of arrays `(x, y)`; or their SPEC.
        model: the compiled model, or its SPEC; by default the one that the checkpoint comes with.
            A live model keeps the new weights.
        bn_data: for a comparison, training data: every checkpoint whose BatchNorm statistics no
            pass has set is evaluated after a pass, too; as in `update_batch_norm`, or their SPEC.
        steps: number of batches of `bn_data` to use; all by default.
        batch_size: as in `update_batch_norm`.
        preprocess: as in `update_batch_norm`.
        bn_mode: as in `update_batch_norm`.
        progress: called with the number of batches evaluated since the last call, for a single
            checkpoint.

    Returns:
        Loss and metrics by name, as `model.evaluate` gives them; for several checkpoints a
        `Comparison` of their scores.

    Raises:
        FormatError: there is no such checkpoint, or it is damaged.
        ModelError: the model is not compiled, or the checkpoint does not fit it.
        DataError: the model rejects the data, or data for several checkpoints can be read only
            once.
        SpecError: a SPEC leads nowhere, no model is known, or `bn_data` are given for a single
            checkpoint.

    Example:
        >>> ckptavg.evaluate("swa.keras", data="train.py:test_data")["accuracy"]
        >>> ckptavg.evaluate(["run", "swa.keras"], data="train.py:test_data").verdict
    """
    options = BatchNormOptions(steps, batch_size, preprocess, bn_mode)
    options.check(model, bn_data, "bn_data", data=data)
    if not isinstance(checkpoint, str | Path):
        return _compare(list(map(checkpoint_file, checkpoint)), data, model, bn_data, options)
    if bn_data is not None:
        raise SpecError(
            "training data are for a comparison: name several checkpoints, or a list of one, or "
            "run ckptavg.update_bn first"
        )
    path = checkpoint_file(checkpoint)
    model = model_or_that_of(model, path)
    import_keras()
    from ckptavg.models.batches import count_batches
    from ckptavg.models.evaluation import evaluate as evaluate_file
    from ckptavg.models.specs import as_data, open_model

    with reading([path]):
        network = open_model(model, [path])
        held_out = as_data(data, model=network)
        progress = progress or bar("evaluating", count_batches(held_out, None))
        return evaluate_file(path, model=network, data=held_out, progress=progress)


def _compare(
    paths: list[Path],
    data: Any,
    model: "keras.Model | str | Path | None",
    bn_data: Any,
    options: BatchNormOptions,
) -> "Comparison":
    from ckptavg.analysis.comparison.candidates import candidates_named

    if not paths:
        raise RunError("there is no checkpoint to evaluate: name one or more")
    candidates = candidates_named(paths)
    model = model_or_that_of(model, paths[0])
    import_keras()
    from ckptavg.analysis.comparison.evaluate import compare
    from ckptavg.models.batches import can_be_read_again
    from ckptavg.models.specs import as_data

    with options.opened(model, bn_data, checkpoints=paths) as (network, inputs):
        held_out = as_data(data, model=network)
        for part, what in ((held_out, "held-out"), (inputs, "training")):
            if len(paths) > 1 and not can_be_read_again(part):
                raise DataError(
                    f"the {what} data can be read only once, but are needed for every checkpoint: "
                    "pass a tf.data.Dataset, a PyDataset, arrays or a list of batches"
                )
        return compare(
            candidates, model=network, held_out=held_out, inputs=inputs, options=options, bar=bar
        )
