"""The loss in the middle between neighbouring checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from ckptavg.batch_norm import BatchNormOptions
from ckptavg.merging.plan import plan_mean
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.search.judge import Judge
from ckptavg.search.weight_rows import weighted_mean


@dataclass(frozen=True, slots=True)
class Midpoints:
    """Losses of checkpoints, and of the means of each with the next one."""

    losses: tuple[float, ...]
    midpoints: tuple[float, ...]


def measure_midpoints(
    checkpoints: Sequence[Checkpoint],
    model: keras.Model,
    *,
    data: Any,
    eval_data: Any,
    options: BatchNormOptions,
) -> Midpoints:
    """Evaluates checkpoints and midpoints alike, each after a BatchNorm pass if there are data."""
    judge = Judge(model, data=data, eval_data=eval_data, monitor="loss", options=options)
    count = len(checkpoints)
    plan = plan_mean(checkpoints)

    def loss(*numbers: int) -> float:
        share = [1 / len(numbers) if n in numbers else 0.0 for n in range(count)]
        return judge.score(weighted_mean(plan, share)).metrics["loss"]

    return Midpoints(
        tuple(loss(n) for n in range(count)), tuple(loss(n, n + 1) for n in range(count - 1))
    )
