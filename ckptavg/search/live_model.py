"""A live model that takes the weights of one average after the other."""

import re
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras

from ckptavg.batch_norm import BatchNormOptions, BatchNormPass, BatchNormReport
from ckptavg.batch_norm.options import POPULATION
from ckptavg.batch_norm.update import run_pass
from ckptavg.errors import ModelError
from ckptavg.models.batches import count_samples, peek
from ckptavg.models.model import batch_norm_layers, build, mixed_float16, model_config
from ckptavg.runs.record import digest
from ckptavg.search.data_fingerprint import data_print
from ckptavg.search.live_weights import LiveWeights
from ckptavg.search.weight_rows import Tensor

_OBJECT_ID = re.compile(r'"shared_object_id": \d+')
_NAME = re.compile(r'"([A-Za-z][A-Za-z0-9_]*?)(?:_\d+)?"')


class LiveModel:
    """Sets weights in place, and re-estimates their BatchNorm statistics.

    Where variables are stored is found once, and all BatchNorm passes run by one compiled step, but
    for those of the mode `population`.

    Attributes:
        model: keeps the weights that it was given last.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        data: Any,
        eval_data: Any,
        options: BatchNormOptions,
    ) -> None:
        """Builds the model if need be, and reads `data` once, for their fingerprint.

        Args:
            model: a compiled model.
            data: training inputs for BatchNorm passes; None for a model without BatchNorm.
            eval_data: `(x, y)` that the model can be built by.
            options: how passes run; evaluations are not affected.

        Raises:
            DataError: data can be read only once.
            ModelError: the mode is unknown; the model has BatchNorm layers, but there are no data
                for them; or its weights cannot be set in place.
        """
        self.model = model
        self._data = data
        self._options = options
        self._data_digest, batch = None, None
        if data is not None:
            self._data_digest = data_print(data, steps=options.steps).digest
            batch = count_samples(peek(data)[0])
        # A layer sees its own batch upstream, and of that a replica sees its share.
        strategy = getattr(model, "distribute_strategy", None)
        replicas = 1 if strategy is None else strategy.num_replicas_in_sync
        self._how = [options.steps, options.bn_mode, options.mixed_precision, batch, replicas]
        build(model, eval_data)
        self._weights = LiveWeights(model)
        self._model_digest = _model_digest(model)
        if data is None and any(layer.trainable for layer in batch_norm_layers(model)):
            raise ModelError(
                f"the model '{model.name}' has BatchNorm layers, whose averaged statistics are "
                "wrong for averaged weights: pass training data to re-estimate them (--data)"
            )
        keeps_step = data is not None and options.bn_mode != POPULATION
        self._pass = BatchNormPass(model, bn_mode=options.bn_mode) if keeps_step else None

    @property
    def fingerprint(self) -> list[str | int | None]:
        """What, beside the weights, its outputs depend on, but for the rounding of a device."""
        return [self._model_digest, self._data_digest, *self._how]

    @property
    def moving_statistics(self) -> tuple[str, ...]:
        """Stored names of what BatchNorm layers keep of the data, which is no weight."""
        return self._weights.moving_statistics

    def kept(self) -> AbstractContextManager[None]:
        """Gives the model the weights and statistics back, at the exit, that it has now."""
        return self._weights.kept()

    def take(self, tensors: Iterable[Tensor], *, refresh: bool = True) -> BatchNormReport | None:
        """Gives the model weights, and runs the BatchNorm pass if there are data for it.

        Args:
            tensors: all weights, by their stored names.
            refresh: whether to run the pass; without, statistics are those among the tensors.

        Returns:
            The report of the pass; None if there was none.

        Raises:
            CkptavgError: as `update_batch_norm` does, or the tensors are not those of the model.
        """
        self._weights.assign(tensors)
        if not refresh or self._data is None:
            return None
        if self._pass is None:
            return run_pass(self.model, self._data, self._options)
        with mixed_float16(self.model) if self._options.mixed_precision else nullcontext():
            return self._pass.run(self._data, steps=self._options.steps)


def _model_digest(model: keras.Model) -> str:
    """Of the configuration of a model and its compilation; of its variables if it has none.

    Keras numbers the names of layers anew in each process, or goes on: `dense_3` of one model may
    be `dense_9` of the next, so that names count by the order in which they come up.
    """
    try:
        text = model_config(model).config
    except ModelError:
        text = repr([(tuple(v.shape), v.dtype) for v in model.weights])
    known: dict[str, dict[str, int]] = {}

    def renumber(match: re.Match[str]) -> str:
        numbers = known.setdefault(match[1], {})
        return f'"{match[1]} {numbers.setdefault(match[0], len(numbers))}"'

    text = _OBJECT_ID.sub("", text)
    return digest(_NAME.sub(renumber, text).encode()).hex()
