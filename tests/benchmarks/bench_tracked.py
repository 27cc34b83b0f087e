"""What tracking averages costs: steps of `fit` with tracked_sigmas and without, in turns.

    .venv/bin/python tests/benchmarks/bench_tracked.py
    KERAS_BACKEND=jax .venv/bin/python tests/benchmarks/bench_tracked.py --runs 3

Three cases take turns for some rounds, each of them an epoch of the same steps on the same model:
a plain `fit`; one with a callback that only hears of every batch, for which Keras waits for its
device after each; and one with a saver that tracks two averages, which are noted after the epoch.
The first epoch of each traces and is not counted. Batches are small: an update costs the same
whatever their size, and here it is seen best.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from _tables import number, table
from bench_saver import MODELS, compiled

from ckptavg import CheckpointSaver

CASES = ("plain", "batch callback", "tracked")


class Clock(keras.callbacks.Callback):
    """Notes the seconds of the steps of each epoch, without what happens at its end."""

    def __init__(self, hears_batches: bool) -> None:
        super().__init__()
        self.epochs: list[float] = []
        if hears_batches:
            self.on_train_batch_end = lambda *_, **__: None

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:  # noqa: ARG002
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:  # noqa: ARG002
        self.epochs.append(time.perf_counter() - self._started)


def seconds_of_a_step(model: keras.Model, case: str, folder: Path, steps: int, batch: int) -> float:
    """The second of two epochs, a step of it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(steps * batch, *model.input_shape[1:])).astype("float32")
    y = np.zeros((len(x), model.output_shape[-1]), "float32")
    clock = Clock(case == "batch callback")
    callbacks: list[keras.callbacks.Callback] = [clock]  # before the saver: notes are not counted
    if case == "tracked":
        saver = CheckpointSaver(
            folder / "run",
            start_epoch=2,
            tracked_sigmas=(0.05, 0.10),
            track_freq=steps,
            existing="overwrite",
        )
        callbacks.append(saver)
    model.fit(x, y, epochs=2, batch_size=batch, verbose=0, callbacks=callbacks)
    return clock.epochs[-1] / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", choices=list(MODELS), help="by default all")
    parser.add_argument("--runs", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--steps", type=int, default=20, help="of an epoch (default 20)")
    parser.add_argument("--batch", type=int, default=32, help="samples in a batch (default 32)")
    parser.add_argument("--folder", type=Path, default=None, help="by default a temporary one")
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that it works")
    options = parser.parse_args()
    runs, steps = (1, 3) if options.quick else (options.runs, options.steps)
    print(
        f"# Benchmark of tracked averages\n\nkeras {keras.__version__} on "
        f"{keras.backend.backend()}, {os.cpu_count()} cores; {runs} rounds, batches of "
        f"{options.batch}; medians of ms a step\n"
    )
    rows = []
    for name in options.only or MODELS:
        model = compiled(MODELS[name], options.quick)
        found: dict[str, list[float]] = {case: [] for case in CASES}
        for turn in range(runs):
            print(f"round {turn + 1} of {runs}: {name}", file=sys.stderr)
            for case in (*CASES[turn % 3 :], *CASES[: turn % 3]):
                with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                    found[case].append(
                        seconds_of_a_step(model, case, Path(folder), steps, options.batch)
                    )
        medians = [statistics.median(found[case]) for case in CASES]
        pairs = zip(found["tracked"], found["batch callback"], strict=True)
        added = statistics.median(tracked - heard for tracked, heard in pairs)
        rows.append((name, *(number(1000 * value) for value in (*medians, added))))
    print(table(("model", *CASES, "added by averaging"), rows))


if __name__ == "__main__":
    main()
