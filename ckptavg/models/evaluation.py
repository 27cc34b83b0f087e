"""Loss and metrics of a checkpoint file on data."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ckptavg.errors import DataError, ModelError, summary
from ckptavg.models.batches import fit_arguments
from ckptavg.models.model import build, load_weights


def evaluate(
    checkpoint: str | Path,
    *,
    model: keras.Model,
    data: Any,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Loads a checkpoint file into a live model and evaluates it; see `commands.evaluate`."""
    _check_compiled(model)
    data = build(model, data)
    load_weights(model, Path(checkpoint))
    return measure(model, data, progress=progress)


def measure(
    model: keras.Model, data: Any, *, progress: Callable[[int], None] | None = None
) -> dict[str, float]:
    """Evaluates a built model on live data; result and errors are those of `evaluate`."""
    _check_compiled(model)
    arguments = fit_arguments(data)
    try:
        with warnings.catch_warnings():
            # Keras warns at the end of every generator, which is how iterables are passed to it.
            warnings.filterwarnings("ignore", "Your input ran out of data", UserWarning)
            metrics = model.evaluate(
                **arguments,
                verbose=0,
                return_dict=True,
                callbacks=[_Reporting(progress)] if progress else None,
            )
    except Exception as error:
        raise DataError(
            f"the model cannot be evaluated on the data, which must be (x, y): {summary(error)}"
        ) from error
    return dict(_numbers(metrics))


def _check_compiled(model: keras.Model) -> None:
    if not model.compiled:
        raise ModelError(
            f"the model '{model.name}' is not compiled, so it has no loss to evaluate: "
            "compile it where it is built, or omit --model (in Python model=) if the checkpoint "
            "comes with a compiled one"
        )


def _numbers(metrics: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Metrics as numbers; an array, such as F1Score by class, becomes one number per entry."""
    for name, value in metrics.items():
        values = np.ravel(keras.ops.convert_to_numpy(value))
        if len(values) == 1:
            yield name, float(values[0])
        else:
            yield from ((f"{name}_{index}", float(entry)) for index, entry in enumerate(values))


class _Reporting(keras.callbacks.Callback):
    """Reports batches as they are evaluated."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        super().__init__()
        self._progress = progress
        self._reported = 0

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        # Keras calls this once for every `steps_per_execution` batches.
        self._progress(batch + 1 - self._reported)
        self._reported = batch + 1
