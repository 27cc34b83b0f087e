"""Scores averages in one live model: weights, BatchNorm pass, metrics."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras

from ckptavg.batch_norm import BatchNormOptions, BatchNormReport
from ckptavg.batch_norm.refresh import Refresh
from ckptavg.errors import DataError, SpecError
from ckptavg.models.evaluation import measure
from ckptavg.models.model import batch_norm_layers
from ckptavg.models.placement import moving_variables
from ckptavg.models.specs import as_data
from ckptavg.runs.selection import metric_sign
from ckptavg.search.data_fingerprint import DataFingerprint, fingerprint_data
from ckptavg.search.live_model import LiveModel
from ckptavg.search.weight_rows import Tensor


@dataclass(frozen=True, slots=True)
class Score:
    """What an evaluation found.

    Attributes:
        metrics: on the data used for selection.
        restore: sets the BatchNorm statistics of a model to those that the pass estimated, and
            returns the report of the pass; None if there was no pass.
    """

    metrics: dict[str, float]
    restore: Refresh | None = None


class Judge:
    """Evaluates averages in one model, which is built and compiled once.

    Attributes:
        model: the live model; it keeps the weights of the last average.
        data: inputs for BatchNorm passes.
        options: how BatchNorm passes run.
        monitor: the metric used for selection, as `model.evaluate` names it.
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
        test_data: Any = None,
        allow_same_data: bool = False,
    ) -> None:
        """Reads the data once, for their fingerprints.

        Args:
            model: a compiled model.
            data: training inputs for BatchNorm passes; None for a model without BatchNorm.
            eval_data: `(x, y)` used for selection, or their SPEC.
            monitor: metric used for selection, with or without the prefix `val_`.
            mode: `min`, `max` or `auto`, which goes by the metric's name.
            options: how BatchNorm passes run; evaluations are not affected.
            test_data: `(x, y)` not used for selection, or their SPEC, for the final report.
            allow_same_data: whether samples of `test_data` may be among those used for selection.

        Raises:
            DataError: data can be read only once, or the data of the report share samples with
                those used for selection.
            ModelError: the model has BatchNorm layers, but there are no data for them.
            RunError: `auto` cannot tell whether lower or higher is better.
            SpecError: there are no `eval_data`, or a SPEC leads nowhere.
        """
        if eval_data is None:
            raise SpecError(
                "averages are scored on held-out data: pass --eval-data SPEC (in Python eval_data=)"
            )
        self.model, self.data, self.options = model, data, options
        self.monitor = monitor.removeprefix("val_")
        self._sign = metric_sign(monitor, mode)
        self._eval_data, self._test_data = (
            as_data(part, model=model) for part in (eval_data, test_data)
        )
        self._eval_fingerprint = fingerprint_data(self._eval_data)
        self._live = LiveModel(model, data=data, eval_data=self._eval_data, options=options)
        if self._test_data is not None and not allow_same_data:
            _check_held_out(self._eval_fingerprint, fingerprint_data(self._test_data))

    @property
    def fingerprint(self) -> list[str | int | None]:
        """What the scores depend on besides the weights."""
        return [*self._live.fingerprint, self._eval_fingerprint.digest]

    def score(self, tensors: Iterable[Tensor], *, refresh: bool = True) -> Score:
        """Evaluates weights, after a BatchNorm pass if there are data for it.

        Args:
            tensors: all weights, by their stored names.
            refresh: whether to run the BatchNorm pass; otherwise statistics are among the tensors.

        Raises:
            DataError: the model rejects the data, or gives no such metric.
        """
        report = self._live.take(tensors, refresh=refresh)
        # Kept now, because the next score changes the statistics of the model.
        restore = _restoring(self.model, report) if report and report.layers else None
        metrics = measure(self.model, self._eval_data)
        if self.monitor not in metrics:
            raise DataError(
                f"the model has no metric '{self.monitor}', it has: {', '.join(sorted(metrics))}"
            )
        return Score(metrics, restore)

    def show(self, tensors: Iterable[Tensor], restore: Refresh | None) -> None:
        """Gives the model the weights of an average, with the statistics that it was scored with.

        If those are not known, another BatchNorm pass estimates them.
        """
        self._live.take(tensors, refresh=restore is None)
        if restore is not None:
            restore(self.model)

    @property
    def tests(self) -> bool:
        """Whether there are data not used for selection."""
        return self._test_data is not None

    def rank(self, metrics: dict[str, float]) -> float:
        """A number that is smaller for better metrics; NaN is the worst."""
        value = metrics[self.monitor]
        # NaN compares as false with everything, so sorting would leave it anywhere.
        return math.inf if math.isnan(value) else self._sign * value

    def test(self) -> dict[str, float] | None:
        """Metrics of the model as it is, on data not used for selection; None without any."""
        return measure(self.model, self._test_data) if self.tests else None


def _restoring(model: keras.Model, report: BatchNormReport) -> Refresh:
    """A function that sets the statistics which a model has now, and returns their report."""
    values = [keras.ops.convert_to_numpy(v).copy() for v in _statistics(model)]

    def restore(model: keras.Model) -> BatchNormReport:
        for variable, value in zip(_statistics(model), values, strict=True):
            variable.assign(value)
        return report

    return restore


def _statistics(model: keras.Model) -> list[Any]:
    return [v for layer in batch_norm_layers(model) for v in moving_variables(layer)]


def _check_held_out(selection: DataFingerprint, test: DataFingerprint) -> None:
    shared = test.count_shared(selection)
    if shared:
        raise DataError(
            f"{shared:,} of the {len(test.inputs):,} samples of the final report are among those "
            "used for selection, so its score would be optimistic: pass other data, or allow it "
            "(--allow-same-data, in Python allow_same_data=True)"
        )
