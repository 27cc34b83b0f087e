"""Statistics that the network meets in inference mode, found by passes until they settle."""

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from ckptavg.batch_norm.backends import make_step
from ckptavg.batch_norm.gathering import Gathering
from ckptavg.batch_norm.observer import Observer
from ckptavg.batch_norm.options import POPULATION
from ckptavg.batch_norm.report import BatchNormReport
from ckptavg.batch_norm.statistics import Statistics
from ckptavg.batch_norm.targets import Targets
from ckptavg.errors import DataError
from ckptavg.models.batches import Progress

_SETTLED = 1e-6
"""Standard deviations that statistics may still move by: float32 gives no better."""

_EXTRA_PASSES = 20
"""For layers whose outputs come back to them; others need as many passes as there are layers."""


def update_population(
    model: keras.Model, read: Callable[[], Iterable[Any]], progress: Progress
) -> BatchNormReport:
    """Sets the statistics that every layer meets when all of them use these statistics.

    The first pass is one in training mode. Each further one runs the model in inference mode with
    the statistics of the one before, and measures all layers: those without BatchNorm before them
    are then exact, after the next pass those with one such layer before them, and so on in
    topological order. It ends when nothing moves any more. The batches have no say, whatever the
    depth, because in inference mode samples do not meet each other.

    Args:
        model: a built Keras model.
        read: gives the inputs of all batches, anew at each call.
        progress: called with the numbers of new batches and samples as they have been seen.

    Raises:
        CkptavgError: as `update_batch_norm` does.
    """
    targets = Targets.of(model)
    if not targets.layers:
        return targets.write({}, samples=0, batches=0, mode=POPULATION)
    observer = Observer(targets.layers)
    with observer.attached():
        first = _gathered(Gathering(make_step(model, observer), targets.layers), read, progress)
        found = first.statistics()
        step = make_step(model, observer, training=False)
        moved = np.inf
        for _ in range(len(targets.layers) + _EXTRA_PASSES if found else 0):
            step.given = targets.values(found)
            gathering = _gathered(Gathering(step, targets.layers), read, progress)
            if gathering.samples != first.samples:
                raise DataError(
                    f"the data gave {first.samples:,} samples at first and {gathering.samples:,} "
                    "later: bn_mode='population' reads them several times"
                )
            # Layers that run in inference mode even in training keep what they have.
            new = {n: s for n, s in gathering.statistics().items() if n in found}
            moved = max(
                _moved(found[n], statistics, targets.layers[n].epsilon)
                for n, statistics in new.items()
            )
            found = {**found, **new}
            if moved <= _SETTLED:
                break
    doubts = []
    if found and moved > _SETTLED:
        doubts.append(
            f"statistics did not settle: the last pass moved one by {moved:.1e} deviations"
        )
    return targets.write(
        found, samples=first.samples, batches=first.batches, mode=POPULATION, doubts=doubts
    )


def _gathered(
    gathering: Gathering, read: Callable[[], Iterable[Any]], progress: Progress
) -> Gathering:
    for inputs in read():
        before = gathering.samples
        gathering.add(inputs)
        progress(1, gathering.samples - before)
    return gathering


def _moved(old: Statistics, new: Statistics, epsilon: float) -> float:
    """The largest change, in standard deviations."""
    deviation = np.sqrt(new.variance + epsilon)
    changes = (new.mean - old.mean, deviation - np.sqrt(old.variance + epsilon))
    return max(float(np.abs(change / deviation).max()) for change in changes)
