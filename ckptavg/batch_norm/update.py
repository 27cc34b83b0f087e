"""`update_batch_norm`: BatchNorm statistics of a model from data."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import keras

from ckptavg.batch_norm.batch_norm_pass import BatchNormPass
from ckptavg.batch_norm.options import BATCH, POPULATION, BatchNormOptions
from ckptavg.batch_norm.population import update_population
from ckptavg.batch_norm.report import BatchNormReport
from ckptavg.errors import DataError
from ckptavg.models.batches import Progress, input_batches
from ckptavg.models.model import mixed_float16
from ckptavg.models.specs import as_inputs


def update_batch_norm(
    model: keras.Model,
    data: Any,
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    preprocess: Callable[[Any], Any] | str | None = None,
    bn_mode: str = BATCH,
    mixed_precision: bool = False,
    progress: Progress | None = None,
    mode: str | None = None,
) -> BatchNormReport:
    """Sets BatchNorm statistics to those of `data` under the model's present weights.

    An averaged network has other activations than any network it was averaged from, so the
    averaged statistics are wrong for it (Izmailov et al., arXiv 1803.05407, section 3.2). This
    runs the model forward over all batches and pools each layer's mean and (biased) variance in
    float64 by their true counts: batch x positions, or the number of unmasked ones. The result does
    not depend on momentum, on former statistics, or on how the data are divided into batches,
    except through what the layers in between make of a batch, which `bn_mode` chooses:

    - `batch`: the model runs in training mode, as training saw the data: every layer upstream
      normalizes by the statistics of its own batch, and dropout and augmentation are active.
    - `population`: every layer meets what it will meet in the deployed network, in which all layers
      upstream are in inference mode and have these statistics already. Independent of the batches
      at any depth. The data are read several times: at most one or two times more than there are
      layers on the longest path through the model, and fewer if the statistics settle earlier.
    - `cumulative`: the model runs as in `batch`, but each layer gets the unweighted mean of the
      means and of the unbiased variances of its batches, which is what PyTorch's
      `torch.optim.swa_utils.update_bn` does. For comparison; it is not exact.

    Layers that are frozen, or that the model calls with `training=False`, keep and use the
    statistics that they have. Nothing else changes: the pass runs in a `keras.StatelessScope`, so
    no variable is written until all statistics are known, and after an error all are as they were.
    Random layers draw anew for every batch, from the seeds that they hold; the seeds stay.

    Args:
        model: a built Keras model on the TensorFlow, JAX or torch backend.
        data: a `tf.data.Dataset` or other iterable of batches, a `keras.utils.PyDataset`, an array
            `x`, a tuple `(x, y)` or a dictionary `{"x": x, "y": y}`; or the SPEC of such data, an
            `.npz` file or a folder. Targets are not used.
        steps: number of batches to use; all by default.
        batch_size: samples per batch of arrays, images or a `tf.data.Dataset`.
        preprocess: function applied to the inputs of each batch, or the SPEC of one.
        bn_mode: `batch`, `population` or `cumulative`, as above.
        mixed_precision: whether float32 layers compute in float16 meanwhile, as under Keras' policy
            `mixed_float16`, for speed on a GPU; the statistics stay float32.
        progress: called after each batch with the number of new batches (1) and of new samples.
        mode: former name of `bn_mode`; takes precedence if given.

    Returns:
        What was done. A model without BatchNorm is left as it is, and the data are not read.

    Raises:
        DataError: the data are empty, cannot be read, or the model rejects them, or NaN or infinity
            is among them or reached a layer; the message names the batch.
        ModelError: not a model of Keras 3, or its backend or one of its layers is not supported.
        SpecError: a SPEC leads nowhere.

    Example:
        >>> model.load_weights("swa.weights.h5")
        >>> ckptavg.update_batch_norm(model, train_dataset)
    """
    options = BatchNormOptions(
        steps=steps,
        batch_size=batch_size,
        preprocess=preprocess,
        bn_mode=bn_mode if mode is None else mode,
        mixed_precision=mixed_precision,
    )
    inputs = as_inputs(data, model=model, batch_size=batch_size, preprocess=preprocess)
    return ConfiguredPass(model, options).run(inputs, progress)


class ConfiguredPass:
    """BatchNorm passes over one model as options say, over inputs that `as_inputs` has prepared.

    Of the options, `steps`, `bn_mode` and `mixed_precision` count here. The step is compiled once
    for all runs, except for population statistics; see
    docs/decisions/0056-one-compiled-step-for-many-passes.md.

    Raises:
        ModelError: as `update_batch_norm` does.
    """

    def __init__(self, model: keras.Model, options: BatchNormOptions) -> None:
        self._model, self._options = model, options
        self._pass: BatchNormPass | None = None
        if options.bn_mode != POPULATION:
            self._pass = BatchNormPass(model, bn_mode=options.bn_mode)

    def run(self, inputs: Any, progress: Progress | None = None) -> BatchNormReport:
        """Runs a pass with the weights that the model has now.

        Args:
            inputs: live data.
            progress: as in `update_batch_norm`.

        Raises:
            CkptavgError: as `update_batch_norm` does.
        """
        steps = self._options.steps
        if self._pass is None and isinstance(inputs, Iterator):
            raise DataError(
                f"bn_mode='population' reads the data several times, but a {type(inputs).__name__} "
                "can be read only once: pass the object that it iterates over"
            )
        with mixed_float16(self._model) if self._options.mixed_precision else nullcontext():
            if self._pass is not None:
                return self._pass.run(inputs, steps=steps, progress=progress)
            return update_population(
                self._model, lambda: input_batches(inputs, steps=steps), progress
            )
