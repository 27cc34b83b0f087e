"""`update_bn`: a checkpoint file with BatchNorm statistics that are re-estimated from data."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptavg.batch_norm.options import BatchNormOptions
from ckptavg.commands.defaults import model_or_that_of
from ckptavg.commands.display import bar, import_keras
from ckptavg.errors import FormatError
from ckptavg.formats import check_keras_output
from ckptavg.models.spec_source import data_named
from ckptavg.runs.outputs import owning
from ckptavg.runs.run import CHECKPOINT_FOLDER, is_run
from ckptavg.storage.background import wait_for_writes

if TYPE_CHECKING:
    import keras

    from ckptavg.batch_norm.refresh import RefreshReport


def update_bn(
    checkpoint: str | Path,
    output: str | Path,
    *,
    data: Any,
    model: "keras.Model | str | Path | None" = None,
    steps: int | None = None,
    batch_size: int | None = None,
    preprocess: Callable[[Any], Any] | str | None = None,
    bn_mode: str = "batch",
    mixed_precision: bool = False,
    device: str = "auto",
    distribute: str | None = None,
    data_name: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> "RefreshReport":
    """Re-estimates the BatchNorm statistics of a checkpoint by a forward pass over data.

    Nothing but the statistics changes. `refresh_batch_norm` is the same function for a model that
    is named.

    Args:
        checkpoint: a `.weights.h5` or `.keras` file.
        output: a `.weights.h5` or `.keras` file; it appears whole or not at all.
        data: training data, as in `update_batch_norm`, or their SPEC.
        model: the Keras model, or its SPEC; by default the one that the checkpoint comes with.
        steps: number of batches to use; all by default.
        batch_size: as in `update_batch_norm`.
        preprocess: as in `update_batch_norm`.
        bn_mode: as in `update_batch_norm`.
        mixed_precision: as in `update_batch_norm`.
        device: `auto`, `cpu`, `gpu` or `gpu:N`.
        distribute: `mirrored` divides batches among all GPUs (TensorFlow).
        data_name: what the record calls the data; by default their SPEC, if they have one.
        overwrite: whether to replace an existing output.
        progress: called after each batch with the number of new batches (1) and of new samples.

    Returns:
        The new file, its record, and what the pass did.

    Raises:
        CkptavgError: as `update_batch_norm` does, or the checkpoint does not fit the model, or the
            output exists.

    Example:
        >>> ckptavg.update_bn("swa.weights.h5", "swa-bn.weights.h5", data="train.py:bn_data")
    """
    wait_for_writes()
    checkpoint, output = Path(checkpoint), Path(output)
    if is_run(checkpoint):
        raise FormatError(
            f"{checkpoint} is a run, but update-bn takes one file: average the run with the pass "
            f"in one go (ckptavg merge {checkpoint} -o swa.keras --data SPEC), or name a file in "
            f"{checkpoint / CHECKPOINT_FOLDER}"
        )
    if not checkpoint.is_file():
        raise FormatError(f"there is no checkpoint {checkpoint}")
    check_keras_output(output)
    options = BatchNormOptions(
        steps, batch_size, preprocess, bn_mode, mixed_precision, device, distribute
    )
    options.check(model, data)
    model = model_or_that_of(model, checkpoint)
    with owning(output, overwrite):
        import_keras()
        from ckptavg.batch_norm.refresh import refresh_live

        with options.opened(model, data, checkpoints=[checkpoint]) as (network, inputs):
            return refresh_live(
                checkpoint,
                output,
                network,
                inputs,
                options,
                data_name=data_named(data, data_name),
                overwrite=overwrite,
                progress=progress or bar("BatchNorm pass", options.count_batches(inputs)),
            )


def refresh_batch_norm(
    checkpoint: str | Path,
    output: str | Path,
    *,
    model: "keras.Model | str | Path",
    data: Any,
    data_name: str | None = None,
    steps: int | None = None,
    bn_mode: str = "batch",
    mixed_precision: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    mode: str | None = None,
) -> "RefreshReport":
    """Loads a checkpoint into a model, re-estimates its BatchNorm statistics, saves it.

    This is `update_bn` for a model that is named; see there for arguments, result and errors.

    Args:
        mode: former name of `bn_mode`; takes precedence if given.

    Example:
        >>> ckptavg.refresh_batch_norm(
        ...     "swa.weights.h5", "swa-bn.weights.h5", model="train.py:build", data="train.py:data"
        ... )
    """
    return update_bn(
        checkpoint,
        output,
        model=model,
        data=data,
        data_name=data_name,
        steps=steps,
        bn_mode=bn_mode if mode is None else mode,
        mixed_precision=mixed_precision,
        overwrite=overwrite,
        progress=progress,
    )
