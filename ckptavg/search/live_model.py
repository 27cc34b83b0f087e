"""A live model whose weights are set in place, one average after the other."""

import re
from collections.abc import Iterable
from typing import Any

import keras

from ckptavg.batch_norm import BatchNormOptions, BatchNormReport
from ckptavg.batch_norm.update import ConfiguredPass
from ckptavg.errors import ModelError
from ckptavg.models.batches import count_samples, peek
from ckptavg.models.model import batch_norm_layers, build, model_config
from ckptavg.runs.digest import digest
from ckptavg.search.data_fingerprint import fingerprint_data
from ckptavg.search.live_weights import live_weights
from ckptavg.search.weight_rows import Tensor

# Keras counts shared objects through the whole process.
_OBJECT_ID = re.compile(r'"shared_object_id": \d+')
_NAME = re.compile(r'"([A-Za-z][A-Za-z0-9_]*?)(?:_\d+)?"')


class LiveModel:
    """Sets weights in place and re-estimates their BatchNorm statistics.

    The stored names of variables are found once, and all BatchNorm passes share one compiled step,
    except those of the mode `population`.
    See docs/decisions/0056-one-compiled-step-for-many-passes.md

    Attributes:
        model: keeps the weights that it was given last.
        weights: the weights of the model by their stored names.
    """

    def __init__(
        self, model: keras.Model, *, data: Any, eval_data: Any, options: BatchNormOptions
    ) -> None:
        """Builds the model if necessary, and reads `data` once, for their fingerprint.

        Args:
            model: a compiled model.
            data: training inputs for BatchNorm passes; None for a model without BatchNorm.
            eval_data: `(x, y)` by which the model can be built.
            options: how passes run; evaluations are not affected.

        Raises:
            DataError: data can be read only once.
            ModelError: the model has BatchNorm layers, but there are no data for them; or its
                weights cannot be set in place.
        """
        self.model = model
        self._data = data
        self._data_digest, batch = None, None
        if data is not None:
            self._data_digest = fingerprint_data(data, steps=options.steps).digest
            batch = count_samples(peek(data)[0])
        # A layer sees its own batch upstream, and of that a replica sees its share.
        strategy = getattr(model, "distribute_strategy", None)
        replicas = 1 if strategy is None else strategy.num_replicas_in_sync
        self._how = [options.steps, options.bn_mode, options.mixed_precision, batch, replicas]
        build(model, eval_data)
        self.weights = live_weights(model)
        self._model_digest = _model_digest(model)
        # Frozen layers keep their statistics on purpose.
        if data is None and any(layer.trainable for layer in batch_norm_layers(model)):
            raise ModelError(
                f"the model '{model.name}' has BatchNorm layers, whose averaged statistics are "
                "wrong for averaged weights: pass training data to re-estimate them (--data)"
            )
        self._pass = None if data is None else ConfiguredPass(model, options)

    @property
    def fingerprint(self) -> list[str | int | None]:
        """What its outputs depend on besides the weights and the rounding of a device."""
        return [self._model_digest, self._data_digest, *self._how]

    def take(self, tensors: Iterable[Tensor], *, refresh: bool = True) -> BatchNormReport | None:
        """Sets the weights of the model, and runs the BatchNorm pass if there are data for it.

        Args:
            tensors: all weights, by their stored names.
            refresh: whether to run the pass; otherwise statistics are among the tensors.

        Returns:
            The report of the pass; None if there was none.

        Raises:
            CkptavgError: as `update_batch_norm` does, or the tensors are not those of the model.
        """
        self.weights.assign(tensors)
        return self._pass.run(self._data) if refresh and self._pass is not None else None


def _model_digest(model: keras.Model) -> str:
    """A digest of a model's configuration and compilation, or of its variables if it has none.

    Keras numbers the layers of one process: `dense_3` of one model may be `dense_9` of the next, so
    only the order in which names first occur counts.
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
