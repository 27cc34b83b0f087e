"""Candidates of a search, evaluated in one live model: weights, BatchNorm pass, metrics."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ckptavg.batch_norm import BatchNormReport, update_batch_norm
from ckptavg.batches import count_samples, peek
from ckptavg.checkpoints import metric_sign
from ckptavg.errors import DataError, ModelError
from ckptavg.evaluation import measure
from ckptavg.keras_models import batch_norm_layers, build, model_config
from ckptavg.record import digest
from ckptavg.search.data_prints import DataPrint, data_print
from ckptavg.search.live_weights import LiveWeights
from ckptavg.search.sums import Tensor

_OBJECT_ID = re.compile(r'"shared_object_id": \d+')
_NAME = re.compile(r'"([A-Za-z][A-Za-z0-9_]*?)(?:_\d+)?"')


@dataclass(frozen=True, slots=True)
class Statistics:
    """The BatchNorm statistics of a candidate, to be given to a model of the same weights again."""

    report: BatchNormReport
    values: tuple[tuple[np.ndarray, np.ndarray], ...]

    @classmethod
    def of(cls, model: keras.Model, report: BatchNormReport) -> "Statistics":
        values = tuple(
            tuple(
                np.array(keras.ops.convert_to_numpy(v))
                for v in (layer.moving_mean, layer.moving_variance)
            )
            for layer in batch_norm_layers(model)
        )
        return cls(report, values)

    def give(self, model: keras.Model) -> BatchNormReport:
        """Sets the statistics of a model; returns the report of the pass that found them."""
        for layer, (mean, variance) in zip(batch_norm_layers(model), self.values, strict=True):
            layer.moving_mean.assign(mean)
            layer.moving_variance.assign(variance)
        return self.report


@dataclass(frozen=True, slots=True)
class Score:
    """What a candidate came to.

    Attributes:
        metrics: on the data that choose.
        statistics: of the BatchNorm pass; None where there was none.
    """

    metrics: dict[str, float]
    statistics: Statistics | None = None


class Judge:
    """Evaluates candidates in one model, which is built and compiled once.

    Attributes:
        model: the live model; it keeps the weights of the last candidate.
        monitor: the metric that chooses, as `model.evaluate` names it.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        data: Any,
        eval_data: Any,
        monitor: str,
        mode: str = "auto",
        steps: int | None = None,
        bn_mode: str = "batch",
        mixed_precision: bool = False,
    ) -> None:
        """Reads the data once, for their fingerprints.

        Args:
            model: a compiled model.
            data: training inputs for BatchNorm passes; None for a model without BatchNorm.
            eval_data: `(x, y)` that choose.
            monitor: metric that chooses, with or without `val_` before it.
            mode: `min`, `max` or `auto`: by its name.
            steps: number of batches of `data` to see; all by default.
            bn_mode: the `mode` of `update_batch_norm`.
            mixed_precision: as in `update_batch_norm`; evaluations are not meant.

        Raises:
            DataError: data can be read only once.
            ModelError: the model has BatchNorm layers, but there are no data for them.
            RunError: the direction of the metric is not known.
        """
        self.model = model
        self.monitor = monitor.removeprefix("val_")
        self._sign = metric_sign(monitor, mode)
        self._data, self._eval_data = data, eval_data
        self._pass = {"steps": steps, "mode": bn_mode, "mixed_precision": mixed_precision}
        self._print = data_print(eval_data)
        self._data_digest, batch = None, None
        if data is not None:
            self._data_digest = data_print(data, steps=steps).digest
            batch = count_samples(peek(data)[0])
        # A layer sees its own batch upstream, and of that a replica sees its share.
        strategy = getattr(model, "distribute_strategy", None)
        replicas = 1 if strategy is None else strategy.num_replicas_in_sync
        self._how = [*self._pass.values(), batch, replicas]
        build(model, eval_data)
        self._weights = LiveWeights(model)
        self._model_digest = _model_digest(model)
        if data is None and any(layer.trainable for layer in batch_norm_layers(model)):
            raise ModelError(
                f"the model '{model.name}' has BatchNorm layers, whose averaged statistics are "
                "wrong for averaged weights: pass training data to re-estimate them (--data)"
            )

    @property
    def data_print(self) -> DataPrint:
        """Of the data that choose."""
        return self._print

    @property
    def fingerprint(self) -> list[str | int | None]:
        """What, beside the weights, the scores depend on, but for the rounding of a device."""
        return [self._model_digest, self._print.digest, self._data_digest, *self._how]

    def score(self, tensors: Iterable[Tensor], *, refresh: bool = True) -> Score:
        """Evaluates weights, after a BatchNorm pass if there are data for it.

        Args:
            tensors: all weights, by their stored names.
            refresh: whether to run the BatchNorm pass; without, statistics are among the tensors.

        Raises:
            DataError: the model rejects the data, or gives no such metric.
        """
        self._weights.assign(tensors)
        statistics = None
        if refresh and self._data is not None:
            report = update_batch_norm(self.model, self._data, **self._pass)
            if report.layers:
                statistics = Statistics.of(self.model, report)
        metrics = measure(self.model, self._eval_data)
        if self.monitor not in metrics:
            raise DataError(
                f"the model has no metric '{self.monitor}', it has: {', '.join(sorted(metrics))}"
            )
        return Score(metrics, statistics)

    def show(self, tensors: Iterable[Tensor], statistics: Statistics | None) -> None:
        """Gives the model the weights of a candidate, with the statistics that it was scored by.

        Where they are not known, another BatchNorm pass finds them.
        """
        self._weights.assign(tensors)
        if statistics is not None:
            statistics.give(self.model)
        elif self._data is not None:
            update_batch_norm(self.model, self._data, **self._pass)

    def rank(self, metrics: dict[str, float]) -> float:
        """A number that is smaller for better metrics; NaN is the worst."""
        value = metrics[self.monitor]
        return math.inf if math.isnan(value) else self._sign * value


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


def check_held_out(chooser: DataPrint, reporter: DataPrint) -> None:
    """Makes sure that the data of the final report chose nothing.

    Raises:
        DataError: samples of theirs are among those that choose.
    """
    shared = reporter.shared(chooser)
    if shared:
        raise DataError(
            f"{shared:,} of the {len(reporter.inputs):,} samples of the final report are among "
            "those that choose: a score on them says too much. Take others, or say that it is "
            "meant (--allow-same-data, in Python allow_same_data=True)"
        )
