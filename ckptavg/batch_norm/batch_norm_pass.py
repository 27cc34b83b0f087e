"""`BatchNormPass`: statistics gathered batch by batch, written at the end."""

from contextlib import AbstractContextManager
from typing import Any, Self

import keras

from ckptavg.batch_norm.backends import make_step
from ckptavg.batch_norm.gathering import Gathering
from ckptavg.batch_norm.observer import Observer
from ckptavg.batch_norm.options import BATCH, CUMULATIVE
from ckptavg.batch_norm.report import BatchNormReport
from ckptavg.batch_norm.statistics import Merge, averaged, pooled
from ckptavg.batch_norm.targets import Targets
from ckptavg.errors import ModelError
from ckptavg.models.batches import Progress, input_batches

_MERGES: dict[str, Merge] = {BATCH: pooled, CUMULATIVE: averaged}


class BatchNormPass:
    """Re-estimates BatchNorm statistics batch by batch, within a loop of your own.

    Nothing is written before `finish`, which sets the statistics and nothing else; after an
    exception everything is as it was. The layers are watched only within the `with` block, which
    may be left and entered again. `update_batch_norm` is the loop for data at hand.

    Args:
        model: a built Keras model on the TensorFlow, JAX or torch backend.
        bn_mode: `batch` or `cumulative`, see `update_batch_norm`.
        mode: former name of `bn_mode`; takes precedence if given.

    Raises:
        ModelError: the mode is unknown, or the backend or a layer is not supported.

    Example:
        >>> with BatchNormPass(model) as bn:
        ...     for x, y in train_dataset:
        ...         outputs = bn.add(x)
        ...     report = bn.finish()
    """

    def __init__(
        self, model: keras.Model, *, bn_mode: str = BATCH, mode: str | None = None
    ) -> None:
        self._mode = bn_mode if mode is None else mode
        if self._mode not in _MERGES:
            raise ModelError(
                f"bn_mode is {self._mode!r:.40}, but must be 'batch' or 'cumulative'; 'population' "
                "reads the data several times: use update_batch_norm"
            )
        self._targets = Targets.of(model)
        self._observer = Observer(self._targets.layers)
        self._step = make_step(model, self._observer)
        self._gathering = self._gather_nothing()
        self._attached: AbstractContextManager[None] | None = None

    def __enter__(self) -> Self:
        self._attached = self._observer.attached()
        self._attached.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        attached, self._attached = self._attached, None
        if attached is not None:
            attached.__exit__(None, None, None)

    @property
    def layers(self) -> tuple[str, ...]:
        """Paths of the layers whose statistics will be set, if they are called in training mode."""
        return tuple(layer.path for layer in self._targets.layers)

    @property
    def batches(self) -> int:
        """Number of batches seen."""
        return self._gathering.batches

    @property
    def samples(self) -> int:
        """Number of samples seen."""
        return self._gathering.samples

    def add(self, inputs: Any) -> Any:
        """Runs the model forward in training mode, and gathers statistics on the device.

        Args:
            inputs: the inputs of one batch: arrays or tensors as the model takes them, which a
                strategy divides among its replicas, or values that a `tf.distribute.Strategy` has
                distributed already.

        Returns:
            What the model returns, on the device; under a strategy, per replica.

        Raises:
            DataError: the model rejects the batch, or it holds NaN or infinity, or brought such
                values to a layer; these may be reported one batch later.
            ModelError: a layer is called where its statistics cannot be measured.
            ResourceError: memory ran out.
        """
        if self._attached is None:
            raise RuntimeError("batches are added within a block: with BatchNormPass(model) as bn")
        return self._gathering.add(inputs)

    def run(
        self, data: Any, *, steps: int | None = None, progress: Progress | None = None
    ) -> BatchNormReport:
        """Gathers all batches of `data` and sets the statistics; may be called any number of times.

        Each call is a pass of its own with the weights that the model has then, run by the step
        that was compiled for the first one. The compiled step does not notice layers that were
        frozen or exchanged since then, or attributes that were changed.

        Args:
            data: live data, as in `update_batch_norm`.
            steps: number of batches to use; all by default.
            progress: called after each batch with the number of new batches (1) and of new samples.

        Returns:
            What was done.

        Raises:
            CkptavgError: as `update_batch_norm` does.
        """
        # See docs/decisions/0056-one-compiled-step-for-many-passes.md: this makes the result equal
        # to that of a fresh pass, random layers included.
        self._step.restart()
        self._gathering = self._gather_nothing()
        with self:
            # Without a layer to set the data are not read at all.
            batches = input_batches(data, steps=steps) if self.layers else ()
            self._gathering.add_all(batches, progress)
            return self.finish()

    def finish(self) -> BatchNormReport:
        """Sets the statistics of all layers to those of all batches, or raises and sets none.

        A model without layers to set is left as it is.

        Returns:
            What was done.

        Raises:
            DataError: there was no batch, or all values that reached a layer are masked.
        """
        return self._targets.write(
            self._gathering.statistics(),
            samples=self.samples,
            batches=self.batches,
            mode=self._mode,
        )

    def _gather_nothing(self) -> Gathering:
        return Gathering(self._step, self._targets.measured, _MERGES[self._mode])
