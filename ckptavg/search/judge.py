"""Candidates of a search, evaluated in one live model: weights, BatchNorm pass, metrics."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ckptavg.batch_norm import BatchNormOptions, BatchNormReport
from ckptavg.errors import DataError
from ckptavg.models.evaluation import measure
from ckptavg.models.model import batch_norm_layers
from ckptavg.models.placement import moving_variables
from ckptavg.runs.checkpoint import metric_sign
from ckptavg.search.data_fingerprint import DataPrint, data_print
from ckptavg.search.live_model import LiveModel
from ckptavg.search.weight_rows import Tensor


@dataclass(frozen=True, slots=True)
class Statistics:
    """The BatchNorm statistics of a candidate, to be given to a model of the same weights again."""

    report: BatchNormReport
    values: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, model: keras.Model, report: BatchNormReport) -> "Statistics":
        """The statistics that a model has after a pass."""
        values = (np.array(keras.ops.convert_to_numpy(v)) for v in _statistics(model))
        return cls(report, tuple(values))

    def give(self, model: keras.Model) -> BatchNormReport:
        """Sets the statistics of a model; returns the report of the pass that found them."""
        for variable, value in zip(_statistics(model), self.values, strict=True):
            variable.assign(value)
        return self.report


def _statistics(model: keras.Model) -> list[Any]:
    return [v for layer in batch_norm_layers(model) for v in moving_variables(layer)]


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
        options: BatchNormOptions,
    ) -> None:
        """Reads the data once, for their fingerprints.

        Args:
            model: a compiled model.
            data: training inputs for BatchNorm passes; None for a model without BatchNorm.
            eval_data: `(x, y)` that choose.
            monitor: metric that chooses, with or without `val_` before it.
            mode: `min`, `max` or `auto`: by its name.
            options: how passes run; evaluations are not affected.

        Raises:
            DataError: data can be read only once.
            ModelError: the model has BatchNorm layers, but there are no data for them.
            RunError: the direction of the metric is not known.
        """
        self.model = model
        self.monitor = monitor.removeprefix("val_")
        self._sign = metric_sign(monitor, mode)
        self._eval_data = eval_data
        self._print = data_print(eval_data)
        self._live = LiveModel(model, data=data, eval_data=eval_data, options=options)

    @property
    def data_print(self) -> DataPrint:
        """Of the data that choose."""
        return self._print

    @property
    def fingerprint(self) -> list[str | int | None]:
        """What, beside the weights, the scores depend on."""
        return [*self._live.fingerprint, self._print.digest]

    def score(self, tensors: Iterable[Tensor], *, refresh: bool = True) -> Score:
        """Evaluates weights, after a BatchNorm pass if there are data for it.

        Args:
            tensors: all weights, by their stored names.
            refresh: whether to run the BatchNorm pass; without, statistics are among the tensors.

        Raises:
            DataError: the model rejects the data, or gives no such metric.
        """
        report = self._live.take(tensors, refresh=refresh)
        statistics = Statistics.of(self.model, report) if report and report.layers else None
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
        self._live.take(tensors, refresh=statistics is None)
        if statistics is not None:
            statistics.give(self.model)

    def rank(self, metrics: dict[str, float]) -> float:
        """A number that is smaller for better metrics; NaN is the worst."""
        value = metrics[self.monitor]
        return math.inf if math.isnan(value) else self._sign * value


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
