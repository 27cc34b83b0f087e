"""`evaluate`: loss and metrics of a checkpoint, by default in the model that it comes with."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptavg.commands.defaults import checkpoint_file, model_or_that_of
from ckptavg.commands.display import bar, import_keras
from ckptavg.models.spec_source import check_specs
from ckptavg.runs.reading import reading

if TYPE_CHECKING:
    import keras


def evaluate(
    checkpoint: str | Path,
    *,
    data: Any,
    model: "keras.Model | str | Path | None" = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Loads a checkpoint into a model and evaluates it.

    Args:
        checkpoint: a `.weights.h5` or `.keras` file, or a run, whose last checkpoint is meant.
        data: held-out data: a `tf.data.Dataset` or other iterable of batches `(x, y)`, a
            `keras.utils.PyDataset`, or a tuple of arrays `(x, y)`; or their SPEC.
        model: the compiled model, or its SPEC; by default the one that the checkpoint comes with.
            A live model keeps the new weights.
        progress: called with the number of batches evaluated since the last call.

    Returns:
        Loss and metrics by name, as `model.evaluate` gives them.

    Raises:
        FormatError: there is no such checkpoint, or it is damaged.
        ModelError: the model is not compiled, or the checkpoint does not fit it.
        DataError: the model rejects the data.
        SpecError: a SPEC leads nowhere, or no model is known.

    Example:
        >>> ckptavg.evaluate("swa.keras", data="train.py:test_data")["accuracy"]
    """
    path = checkpoint_file(checkpoint)
    check_specs(model, data=data)
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
