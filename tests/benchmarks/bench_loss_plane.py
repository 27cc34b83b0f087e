"""What a loss plane costs beside the BatchNorm passes and evaluations that it cannot do without.

    .venv/bin/python tests/benchmarks/bench_loss_plane.py

A plane of 21 x 21 points goes through three checkpoints of a small convolutional network. After
each point one BatchNorm pass and one evaluation run on the same model and data, by themselves, and
are timed apart: both take turns, so that a machine that is busy for a while is busy for both. The
pass is a `BatchNormPass` that keeps its compiled step, as that of the plane does. Beside it a plane
reads its corners, fingerprints the data, compiles a step, sets the weights and writes every result.

A smaller plane tells what `update_batch_norm` would cost for each point, which compiles anew.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
from _tables import number, table

from ckptavg.analysis import loss_plane
from ckptavg.batch_norm import BatchNormPass, update_batch_norm
from ckptavg.models.evaluation import measure


def build(filters: int) -> keras.Model:
    """Three blocks of Conv-BatchNorm-ReLU over images of 8 x 8, as small as such networks are."""
    inputs = keras.Input((8, 8, 1))
    x = inputs
    for width in (filters, 2 * filters, 2 * filters):
        x = keras.layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    outputs = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    quick = parser.parse_args().quick
    few, many, images = (2, 3, 64) if quick else (5, 21, 1024)
    rng = np.random.default_rng(0)
    data = rng.standard_normal((images, 8, 8, 1), dtype="float32")
    eval_data = data[: images // 2], rng.integers(0, 10, images // 2)
    model = build(4 if quick else 16)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        corners = []
        for seed in range(3):
            for variable in model.trainable_variables:
                values = rng.standard_normal(variable.shape, dtype="float32")
                variable.assign(values * np.float32(0.1))
            corners.append(Path(folder) / f"corner-{seed}.weights.h5")
            model.save_weights(corners[-1])
        kept = BatchNormPass(model)
        passes: dict[str, tuple[int, Callable[[], object]]] = {
            "BatchNormPass": (many, lambda: kept.run(data)),
            "update_batch_norm": (few, lambda: update_batch_norm(model, data)),
        }
        for name, (points, refresh) in passes.items():
            alone: list[float] = []

            def pass_alone(
                _: int, alone: list[float] = alone, refresh: Callable[[], object] = refresh
            ) -> None:
                started = time.perf_counter()
                refresh()
                measure(model, eval_data)
                alone.append(time.perf_counter() - started)

            pass_alone(1)  # the kept step is compiled outside of what is timed
            alone.clear()
            started = time.perf_counter()
            plane = loss_plane(
                *corners,
                model=model,
                data=data,
                eval_data=eval_data,
                points=points,
                cache=Path(folder) / name,
                progress=pass_alone,
            )
            whole = time.perf_counter() - started - sum(alone)
            assert len(alone) == plane.metrics["eval"]["loss"].size == points**2
            size = f"{points} x {points}"
            rows.append((name, size, *map(number, (sum(alone), whole, whole / sum(alone)))))
    print(
        f"{model.count_params():,} weights, {images:,} images for "
        f"the pass, {images // 2:,} to evaluate; load {os.getloadavg()[0]:.1f}\n"
    )
    print(table(("beside", "points", "passes and evaluations s", "plane s", "ratio"), rows))


if __name__ == "__main__":
    main()
