"""What saving costs training: CheckpointSaver beside Keras' ModelCheckpoint, and epochs with saves.

    .venv/bin/python tests/benchmarks/bench_saver.py
    .venv/bin/python tests/benchmarks/bench_saver.py --only blocked --runs 3

Two sections. `blocked`: seconds for which a save keeps training waiting, by the two callbacks in
turn, while epochs leave the disk time to finish. `epochs`: one training that saves at the end of
every second epoch; seconds from the end of an epoch to the end of the next are compared between
those with a save in them, and all that it leaves to the background, and those without.

Up to 1 GB of disk is needed in --folder.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
from _tables import number, table

from ckptavg import CheckpointSaver

SECTIONS = ("blocked", "epochs")


def dense(units: int, layers: int) -> keras.Model:
    """Few large tensors: 404 MB with 24 layers of 2,048 units."""
    blocks = [keras.Input((units,))]
    for _ in range(layers):
        blocks += [keras.layers.Dense(units), keras.layers.BatchNormalization()]
    return keras.Sequential(blocks)


def efficient_net(size: int) -> keras.Model:
    """Many small tensors: 672 of them, 88 MB."""
    network = keras.applications.EfficientNetV2S(
        weights=None, include_top=False, input_shape=(size, size, 3), pooling="avg"
    )
    return keras.Sequential([network, keras.layers.Dense(10)])


MODELS = {
    "Dense, 404 MB in 144 tensors": lambda quick: dense(*((64, 2) if quick else (2048, 24))),
    "EfficientNetV2S, 672 tensors": lambda quick: dense(16, 20) if quick else efficient_net(64),
}


class Clock(keras.callbacks.Callback):
    """Notes when epochs end, before other callbacks do their work, and pauses before they begin."""

    def __init__(self, pause: float = 0.0) -> None:
        super().__init__()
        self.pause = pause
        self.ends: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:  # noqa: ARG002
        time.sleep(self.pause)

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:  # noqa: ARG002
        self.ends.append(time.perf_counter())


class Timed(keras.callbacks.Callback):
    """Notes how long another callback takes at the end of epochs."""

    def __init__(self, callback: keras.callbacks.Callback) -> None:
        super().__init__()
        self.callback = callback
        self.seconds: list[float] = []

    def set_model(self, model: keras.Model) -> None:
        self.callback.set_model(model)

    def set_params(self, params: dict) -> None:
        self.callback.set_params(params)

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.callback.on_train_begin(logs)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.callback.on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        started = time.perf_counter()
        self.callback.on_epoch_end(epoch, logs)
        self.seconds.append(time.perf_counter() - started)

    def on_train_end(self, logs: dict | None = None) -> None:
        self.callback.on_train_end(logs)


def fit(model: keras.Model, callbacks: Sequence[object], epochs: int, steps: int) -> None:
    rng = np.random.default_rng(0)
    batch = (8, *model.input_shape[1:])
    x = rng.normal(size=(steps * batch[0], *batch[1:])).astype("float32")
    y = np.zeros((len(x), model.output_shape[-1]), "float32")
    model.fit(x, y, epochs=epochs, batch_size=batch[0], verbose=0, callbacks=list(callbacks))


def compiled(build: Callable[[bool], keras.Model], quick: bool) -> keras.Model:
    model = build(quick)
    model.compile(keras.optimizers.SGD(1e-6), "mse")
    return model


def blocked(folder: Path, runs: int, quick: bool) -> None:
    print(f"\n## Blocked: seconds of training for a save; {runs} rounds\n")
    rows = []
    for name, build in MODELS.items():
        model = compiled(build, quick)
        fit(model, [], 1, 1)  # traces the step
        found: dict[str, list[float]] = {"keras": [], "ckptavg": []}
        for round_number in range(runs):
            print(f"blocked, round {round_number + 1} of {runs}: {name}", file=sys.stderr)
            theirs = keras.callbacks.ModelCheckpoint(
                folder / "keras.weights.h5", save_weights_only=True
            )
            ours = CheckpointSaver(
                folder / "run", start_epoch=1, max_to_keep=1, existing="overwrite"
            )
            for key, callback in (("keras", theirs), ("ckptavg", ours)):
                timed = Timed(callback)
                os.sync()
                fit(model, [Clock(0.0 if quick else 2.0), timed], 3, 1)
                found[key].append(statistics.median(timed.seconds))
        ratios = [b / a for a, b in zip(found["keras"], found["ckptavg"], strict=True)]
        medians = [statistics.median(found[key]) for key in ("keras", "ckptavg")]
        rows.append((name, *map(number, medians), number(statistics.median(ratios))))
    print(table(("model", "ModelCheckpoint s", "CheckpointSaver s", "ratio"), rows))


def epochs(folder: Path, runs: int, quick: bool) -> None:
    print(f"\n## Epochs: with a save and without, in turns; {runs} of each\n")
    rows = []
    for name, build in MODELS.items():
        print(f"epochs: {name}", file=sys.stderr)
        model = compiled(build, quick)
        fit(model, [], 1, 1)
        steps = 2
        if not quick:
            started = time.perf_counter()
            fit(model, [], 1, 5)
            steps = max(5, int(100 / (time.perf_counter() - started)))  # some 20 s an epoch
        clock = Clock()
        saver = CheckpointSaver(folder / "epochs", start_epoch=1, swa_freq=2, max_to_keep=1)
        fit(model, [clock, saver], 2 * runs + 1, steps)
        seconds = np.diff(clock.ends)  # the first epoch ends with a save
        saving, free = seconds[0::2], seconds[1::2]
        ratio = statistics.median(saving / free)
        rows.append(
            (
                name,
                number(statistics.median(free)),
                number(statistics.median(saving)),
                number(ratio),
            )
        )
        for path in sorted((folder / "epochs").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (folder / "epochs").rmdir()
    print(table(("model", "epoch s", "epoch with a save s", "ratio"), rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", choices=SECTIONS, help="by default all")
    parser.add_argument("--runs", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--folder", type=Path, default=None, help="by default a temporary one")
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that it works")
    options = parser.parse_args()
    runs = 1 if options.quick else options.runs
    print(f"# Benchmark of CheckpointSaver\n\nkeras {keras.__version__}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for section in options.only or SECTIONS:
            {"blocked": blocked, "epochs": epochs}[section](Path(folder), runs, options.quick)


if __name__ == "__main__":
    main()
