"""What a sweep costs beside the BatchNorm passes and evaluations that it cannot do without.

    .venv/bin/python tests/benchmarks/bench_sweep.py

100 windows of a run of 30 checkpoints are swept. After each candidate one BatchNorm pass and one
evaluation run on the same model and data, by themselves, and are timed apart: both take turns, so
that a machine that is busy for a while is busy for both. The pass keeps its compiled step, as that
of a sweep does. Beside the passes and evaluations a sweep
reads 30 checkpoints, averages 100 windows, sets the weights 100 times, and fingerprints the data.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
from _tables import number, table

from ckptavg import sweep
from ckptavg.batch_norm import BatchNormPass
from ckptavg.models.evaluation import measure
from ckptavg.runs.proof import tensor_records
from ckptavg.runs.record import Record, now


def build(blocks: int, filters: int) -> keras.Model:
    """A residual network of blocks of Conv-BatchNorm-ReLU over images of 8 x 8."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(filters, 3, padding="same")(inputs)
    for _ in range(blocks):
        y = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        y = keras.layers.ReLU()(keras.layers.BatchNormalization()(y))
        x = keras.layers.Add()([x, y])
    outputs = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    return model


def make_run(directory: Path, model: keras.Model, count: int) -> None:
    """A run of random checkpoints."""
    folder = directory / "checkpoints"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for epoch in range(1, count + 1):
        for variable in model.weights:
            values = rng.standard_normal(variable.shape, dtype="float32") * np.float32(0.05)
            variable.assign(np.abs(values) + 0.5 if "variance" in variable.path else values)
        path = folder / f"epoch-{epoch:04d}.weights.h5"
        keras.saving.save_weights(model, path, objects_to_skip=[model.optimizer])
        record = Record(path.name, path.stat().st_size, now(), {}, epoch=epoch, step=epoch * 100)
        record.write(folder / f"epoch-{epoch:04d}.json", tensor_records(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--folder", type=Path, help="where the run goes (default: a temporary one)")
    arguments = parser.parse_args()
    quick = arguments.quick
    windows, count, images = (5, 4, 64) if quick else (100, 30, 256)
    rng = np.random.default_rng(1)
    data = rng.standard_normal((images, 8, 8, 3), dtype="float32")
    eval_data = data[: images // 2], rng.integers(0, 10, images // 2)
    model = build(2, 4) if quick else build(8, 128)
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run = Path(folder) / "run"
        make_run(run, model, count)
        kept = BatchNormPass(model)
        for name, max_memory in (("in memory", None), ("in a file", 0)):
            alone: list[float] = []

            def pass_alone(_: int, alone: list[float] = alone) -> None:
                started = time.perf_counter()
                kept.run(data)
                measure(model, eval_data)
                alone.append(time.perf_counter() - started)

            kept.run(data)
            measure(model, eval_data)
            started = time.perf_counter()
            report = sweep(
                run,
                model=model,
                data=data,
                eval_data=eval_data,
                monitor="val_loss",
                windows="all",
                budget=windows,
                max_memory=max_memory,
                progress=pass_alone,
            )
            whole = time.perf_counter() - started - sum(alone)
            assert (report.tried, report.known, len(alone)) == (windows, 0, windows)
            shutil.rmtree(run / "search")
            rows.append((name, *map(number, (sum(alone), whole, whole / sum(alone)))))
    print(
        f"{windows} windows of {count} checkpoints of {4 * model.count_params() / 1e6:.1f} MB with "
        f"{len(model.weights)} tensors, {images:,} images\n"
    )
    print(table(("sums", "passes and evaluations s", "sweep s", "ratio"), rows))


if __name__ == "__main__":
    main()
