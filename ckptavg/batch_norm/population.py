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
"""Standard deviations by which settled statistics may still move: float32 resolves no less."""

_EXTRA_PASSES = 20
"""For layers whose outputs return to them; other models need as many passes as they have layers."""


def update_population(
    model: keras.Model, read: Callable[[], Iterable[Any]], progress: Progress | None
) -> BatchNormReport:
    """Sets the statistics that every layer meets when all of them use these statistics.

    The first pass runs in training mode. Each further one runs the model in inference mode with the
    statistics of the pass before, and measures all layers. Layers without BatchNorm upstream are
    then exact, after the next pass those with one such layer upstream, and so on in topological
    order. The passes end when nothing moves any more. How the data are divided into batches does
    not matter at any depth, because samples do not interact in inference mode.

    Args:
        model: a built Keras model.
        read: returns the inputs of all batches, anew at each call.
        progress: called after each batch with the number of new batches (1) and of new samples.

    Raises:
        CkptavgError: as `update_batch_norm` does.
    """
    # See docs/decisions/0012-population-statistics-by-iteration.md.
    targets = Targets.of(model)
    if not targets.layers:
        return targets.write({}, samples=0, batches=0, mode=POPULATION)
    observer = Observer(targets.layers)
    with observer.attached():
        first = Gathering(make_step(model, observer), targets.measured)
        first.add_all(read(), progress)
        found = first.statistics()
        # One compiled step serves all further passes: the statistics are its arguments.
        step = make_step(model, observer, training=False)
        moved = np.inf
        for _ in range(len(targets.layers) + _EXTRA_PASSES if found else 0):
            step.given = targets.values(found)
            gathering = Gathering(step, targets.measured)
            gathering.add_all(read(), progress)
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
            f"the statistics did not settle: in the last pass one still moved by {moved:.1e} "
            "standard deviations"
        )
    return targets.write(
        found, samples=first.samples, batches=first.batches, mode=POPULATION, doubts=doubts
    )


def _moved(old: Statistics, new: Statistics, epsilon: float) -> float:
    """The largest change of a mean or a deviation, in standard deviations."""
    deviation = np.sqrt(new.variance + epsilon)
    changes = (new.mean - old.mean, deviation - np.sqrt(old.variance + epsilon))
    return max(float(np.abs(change / deviation).max()) for change in changes)
