"""What a sweep costs beside the BatchNorm passes and evaluations that it cannot do without.

    .venv/bin/python tests/benchmarks/bench_sweep.py

100 windows of a run of 30 checkpoints are swept, and in the same process as many BatchNorm passes
and evaluations run on the same model and data, without any checkpoint. Both take turns, so that a
machine that is busy for a while is busy for both; ratios are of the same round. A sweep reads 30
checkpoints, averages 100 windows, sets the weights 100 times, and fingerprints the data.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
from _tables import number, table

from ckptavg.batch_norm import update_batch_norm
from ckptavg.evaluation import measure
from ckptavg.proof import tensor_records
from ckptavg.record import Record, now
from ckptavg.run import open_run
from ckptavg.search.sweep import list_candidates, sweep


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


def timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--runs", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--folder", type=Path, help="where the run goes (default: a temporary one)")
    arguments = parser.parse_args()
    quick = arguments.quick
    windows, count = (5, 4) if quick else (100, 30)
    images, rounds = (64, 1) if quick else (256, arguments.runs)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((images, 8, 8, 3), dtype="float32")
    data, eval_data = x, (x[: images // 2], rng.integers(0, 10, images // 2))
    model = build(2, 4) if quick else build(8, 128)
    size = 4 * model.count_params()
    times: dict[str, list[float]] = {"alone": [], "memory": [], "disk": []}

    def alone() -> None:
        for _ in range(windows):
            update_batch_norm(model, data)
            measure(model, eval_data)

    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run = Path(folder) / "run"
        make_run(run, model, count)
        found = list_candidates(open_run(run), windows="all", budget=windows)
        assert len(found) == windows

        def swept(max_memory: int | None) -> None:
            report = sweep(
                run,
                model=model,
                data=data,
                eval_data=eval_data,
                monitor="val_loss",
                windows="all",
                budget=windows,
                max_memory=max_memory,
            )
            assert report.known == 0
            shutil.rmtree(run / "search")

        update_batch_norm(model, data)
        measure(model, eval_data)
        for _ in range(rounds):
            times["alone"].append(timed(alone))
            times["memory"].append(timed(lambda: swept(None)))
            times["disk"].append(timed(lambda: swept(0)))
    rows = []
    for name, what in (
        ("alone", f"{windows} BatchNorm passes and evaluations"),
        ("memory", f"sweep of {windows} windows of {count} checkpoints"),
        ("disk", "the same, sums in a file"),
    ):
        ratios = [a / b for a, b in zip(times[name], times["alone"], strict=True)]
        seconds = number(statistics.median(times[name]))
        rows.append((what, seconds, "1" if name == "alone" else number(statistics.median(ratios))))
    print(
        f"{model.count_params():,} weights ({size / 1e6:.1f} MB a checkpoint), "
        f"{len(model.weights)} tensors, {images:,} images, medians of {rounds} rounds\n"
    )
    print(table(("what", "s", "x alone"), rows))


if __name__ == "__main__":
    main()
