"""`update_batch_norm`: BatchNorm statistics of a model from data."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import keras

from ckptavg.batch_norm.batch_norm_pass import BatchNormPass
from ckptavg.batch_norm.population import update_population
from ckptavg.batch_norm.report import BatchNormReport
from ckptavg.errors import DataError
from ckptavg.models.batches import Progress, input_batches
from ckptavg.models.model import mixed_float16


def update_batch_norm(
    model: keras.Model,
    data: Any,
    *,
    steps: int | None = None,
    mode: str = "batch",
    mixed_precision: bool = False,
    progress: Progress | None = None,
) -> BatchNormReport:
    """Sets BatchNorm statistics to those of `data` under the model's present weights.

    The averaged network has other activations than any network it was averaged from, so that the
    averaged statistics are wrong for it (Izmailov et al., arXiv 1803.05407, section 3.2). This
    runs the model forward over all batches and pools each layer's mean and (biased) variance in
    float64 by their true counts: batch x positions, or the number of unmasked ones. It does not
    depend on momentum, on former statistics, nor on how the data are divided into batches, but
    for what layers in between make of a batch, which `mode` says:

    - `batch`: the model runs in training mode, as training saw the data: every layer upstream
      normalizes by the statistics of its own batch, dropout and augmentation are at work.
    - `population`: every layer meets what it will meet in the deployed network, in which all layers
      upstream are in inference mode and have these statistics already. Independent of the batches
      at any depth. The data are read several times, one or two times more than there are layers on
      the longest path through the model, or fewer once nothing moves any more.
    - `cumulative`: the model runs as in `batch`, but each layer gets the unweighted mean of the
      means and of the unbiased variances of its batches, which is what PyTorch's
      `torch.optim.swa_utils.update_bn` does. To compare with; it is not exact.

    Layers that are frozen, or that the model calls with `training=False`, keep and use the
    statistics that they have. Nothing else changes: the pass runs in a `keras.StatelessScope`, so
    that no variable is written until all statistics are known; after an error all are as they were.
    Random layers draw anew for every batch, from the seeds that they hold, which stay.

    Args:
        model: a built Keras model on the TensorFlow, JAX or torch backend.
        data: a `tf.data.Dataset` or other iterable of batches, a `keras.utils.PyDataset`, an array
            `x`, or a tuple `(x, y)`; targets are not used.
        steps: number of batches to see; all by default.
        mode: `batch`, `population` or `cumulative`, as above.
        mixed_precision: whether float32 layers compute in float16 meanwhile, as under Keras' policy
            `mixed_float16`, for speed on a GPU; statistics are float32 as ever.
        progress: called with the numbers of new batches and samples as they have been seen.

    Returns:
        What was done; a model without BatchNorm is left as it is, at once.

    Raises:
        DataError: the data are empty, cannot be read, or the model rejects them, or NaN or infinity
            is among them or reached a layer; the message names the batch.
        ModelError: it is no model of Keras 3, or the backend or a kind of layer is not supported.

    Example:
        >>> model.load_weights("swa.weights.h5")
        >>> ckptavg.update_batch_norm(model, train_dataset)
    """
    if mode == "population" and isinstance(data, Iterator):
        raise DataError(
            f"mode='population' reads the data several times, but a {type(data).__name__} can be "
            "read only once: pass what it comes from"
        )
    with mixed_float16(model) if mixed_precision else nullcontext():
        if mode != "population":
            return BatchNormPass(model, mode=mode).run(data, steps=steps, progress=progress)
        return update_population(
            model, lambda: input_batches(data, steps=steps), progress or (lambda *_: None)
        )
