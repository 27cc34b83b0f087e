"""Points between and beyond corners, evaluated in a live model that is restored afterwards."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ckptavg.analysis.loss_surface.corners import (
    Corner,
    Vector,
    corner_digests,
    edge_products,
    plan_corners,
)
from ckptavg.analysis.loss_surface.results import Metrics
from ckptavg.batch_norm import BatchNormOptions
from ckptavg.errors import DataError, NonFiniteError
from ckptavg.merging.worker import Advance
from ckptavg.models.evaluation import measure
from ckptavg.models.specs import as_data, as_inputs, as_model
from ckptavg.runs.outputs import writing
from ckptavg.search.data_fingerprint import fingerprint_data
from ckptavg.search.live_model import LiveModel
from ckptavg.search.row_store import DEFAULT_MEMORY
from ckptavg.search.score_cache import ScoreCache, can_keep_scores
from ckptavg.search.weight_rows import WeightRows

_ONLY = "eval"
"""Name of data that come without one."""
_DIGITS = 12
"""Decimals of coefficients: inner products differ in their last bits from run to run, and the keys
of points must not."""


class Points:
    """Evaluates points, each a vector of coefficients over the corners.

    Attributes:
        labels: names of the corners.
        products: (corners - 1, corners - 1) float64, inner products of the edges from the first
            corner to the others, over the weights of the model.
    """

    labels: tuple[str, ...]
    products: np.ndarray

    def __init__(
        self,
        labels: tuple[str, ...],
        corners: WeightRows,
        live: LiveModel,
        eval_data: Mapping[str, Any],
        folder: Path | None,
    ) -> None:
        """Sets the weights of the first corner, which shows whether they fit the model.

        Args:
            labels: names of the corners.
            corners: a row for each corner.
            live: takes their weights.
            eval_data: `(x, y)` by name.
            folder: where results are kept; None for nowhere.

        Raises:
            DataError: data can be read only once.
            ModelError: the corners do not fit the model.
        """
        self.labels = labels
        self._corners, self._live, self._eval_data = corners, live, eval_data
        # Shows at once whether the corners fit the model.
        live.take(corners.combine({0: 1.0}), refresh=False)
        self.products = edge_products(corners, len(labels), live.weights.moving_statistics)
        contents, rest = corner_digests(corners, len(labels))
        # Also without a folder, because it refuses data that can be read only once.
        digests = {name: fingerprint_data(data).digest for name, data in eval_data.items()}
        self._caches = {
            name: ScoreCache(folder, contents, [*live.fingerprint, found, rest])
            for name, found in digests.items()
            if folder is not None
        }

    def evaluate(self, places: Iterable[Vector], progress: Advance | None = None) -> Metrics:
        """Metrics at points, in their order; known ones are not evaluated again.

        Args:
            places: coefficients of the points.
            progress: called with 1 for each point.

        Raises:
            NonFiniteError: the BatchNorm pass fails at every point.
            CkptavgError: as `update_batch_norm` and `evaluate` do.
        """
        found: dict[str, list[dict[str, float]]] = {name: [] for name in self._eval_data}
        rounded = [tuple(round(float(c), _DIGITS) for c in place) for place in places]
        for name, cache in self._caches.items():
            cache.confirm(rounded, partial(self._measure_on, name))
        for place in rounded:
            for name, metrics in self._at(place).items():
                found[name].append(metrics)
            if progress is not None:
                progress(1)
        return {name: _arrays(entries) for name, entries in found.items()}

    def _at(self, place: Sequence[float]) -> dict[str, dict[str, float]]:
        """Metrics on all data; none if the BatchNorm pass met NaN or infinity."""
        known = {name: cache.get(place) for name, cache in self._caches.items()}
        found = {name: metrics for name, metrics in known.items() if metrics is not None}
        missing = [name for name in self._eval_data if name not in found]
        if missing:
            new = self._measure(place, missing)
            for name in new.keys() & self._caches.keys():
                self._caches[name].add(place, new[name])
            found |= new
        return found

    def _measure_on(self, name: str, place: Sequence[float]) -> dict[str, float]:
        return self._measure(place, [name])[name]

    def _measure(self, place: Sequence[float], names: Sequence[str]) -> dict[str, dict[str, float]]:
        try:
            self._live.take(self._corners.combine(dict(enumerate(place))))
            return {name: measure(self._live.model, self._eval_data[name]) for name in names}
        except NonFiniteError:  # a value of the surface, unlike other errors
            return {name: {} for name in names}


@contextmanager
def open_points(
    corners: Sequence[Corner],
    model: keras.Model | str | Path,
    data: Any,
    eval_data: Any,
    options: BatchNormOptions,
    labels: Sequence[str] | None,
    cache: str | Path | None,
    max_memory: int | None,
) -> Iterator[Points]:
    """Reads corners and evaluates points of them; arguments are those of `loss_plane`.

    The weights and statistics of the model are restored at the exit.
    """
    model = as_model(model)
    data = as_inputs(data, model=model)
    eval_data = as_data(eval_data, model=model)
    # A dictionary of x and y has become (x, y), so what still is one holds several data.
    named = eval_data if isinstance(eval_data, Mapping) else {_ONLY: eval_data}
    eval_data = {name: as_data(entry, model=model) for name, entry in named.items()}
    if not eval_data:
        raise DataError("eval_data is empty: pass (x, y), or several of them in a dictionary")
    plan = plan_corners(corners, labels)
    folder = plan.search_folder if cache is None else Path(cache)
    if folder is not None:
        with writing(folder):
            folder = folder if can_keep_scores(folder) else None
    live = LiveModel(
        model,
        data=data,
        # Only used to build the model, so any of them will do.
        eval_data=next(iter(eval_data.values())),
        options=options,
    )
    rows = WeightRows(
        plan.mean,
        len(corners),
        folder=folder or Path(tempfile.gettempdir()),
        max_memory=DEFAULT_MEMORY if max_memory is None else max_memory,
    )
    with closing(rows), live.weights.kept():
        for row, vector in enumerate(plan.vectors):
            rows.add({n: c for n, c in enumerate(vector) if c != 0.0}, into=row)
        yield Points(plan.labels, rows, live, eval_data, folder)


def _arrays(entries: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """Metrics by name, NaN for points that have none."""
    names = dict.fromkeys(name for entry in entries for name in entry)
    if not names:
        raise NonFiniteError(
            "a BatchNorm layer met NaN or infinity at every point: choose points nearer to the "
            "checkpoints, or check the data"
        )
    return {name: np.array([entry.get(name, np.nan) for entry in entries]) for name in names}
