"""Time of a BatchNorm pass beside a bare forward pass, a prediction and an epoch of zero rate.

    .venv/bin/python tests/benchmarks/bench_batch_norm.py
    KERAS_BACKEND=jax .venv/bin/python tests/benchmarks/bench_batch_norm.py --runs 3

ResNet50 on random images of 96 x 96 in batches of 32. All cases take turns in one process: a round
runs each of them once over the same batches, so that a machine that is busy for a while is busy for
all. Times are medians over the rounds, and so are ratios, each of which is of two runs in the same
round. A round that is not counted comes first, in which everything is traced and compiled.

A second table shows how far the statistics are from exact ones, by Keras' own moments and by the
pass, and how far PyTorch's way is from them: one BatchNorm on inputs sorted by their means.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))  # the package beside these files is measured

import keras
import numpy as np
from _tables import number, table

from ckptavg.batch_norm import BatchNormPass, update_batch_norm

BARE = "bare model(x, training=True)"
PASS = "BatchNorm pass"
EPOCH = "fit epoch, rate 0"

Case = Callable[[], object]


def main() -> None:
    options = _parse()
    images, batch, count = (32, 4, 2) if options.quick else (96, 32, options.batches)
    print(f"\n{_machine()}\n\n## ResNet50, {count} batches of {batch} x {images} x {images}\n")
    data = _images(count, batch, images)
    model = _network(data[0].shape[1:], options.quick)
    print(_speed(model, data, options.runs))
    print("\n## Error of the statistics, in standard deviations; of the variance, relative\n")
    print(_errors(options.quick))


def _network(shape: tuple[int, ...], quick: bool) -> keras.Model:
    if not quick:
        return keras.applications.ResNet50(weights=None, input_shape=shape, classes=10)
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10, "softmax"),
        ]
    )


def _speed(model: keras.Model, data: list[np.ndarray], runs: int) -> str:
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    size = len(data[0])
    together = np.concatenate(data)
    targets = np.zeros(len(together), "int32")
    bare = _bare(model)
    with BatchNormPass(model) as bn:
        cases: dict[str, Case] = {
            BARE: lambda: _wait([bare(x) for x in data]),
            PASS: lambda: _wait([bn.add(x) for x in data]),
            "predict": lambda: model.predict(together, batch_size=size, verbose=0),
            EPOCH: lambda: model.fit(together, targets, batch_size=size, verbose=0),
        }
        seconds, first = _take_turns(cases, runs)
        started = time.perf_counter()
        bn.finish()
        finishing = time.perf_counter() - started
    rows = []
    for case, times in seconds.items():
        ratios = (
            statistics.median(a / b for a, b in zip(times, seconds[to], strict=True))
            for to in (BARE, EPOCH)
        )
        per_batch = statistics.median(times) / len(data)
        rows.append((case, number(per_batch), *map(number, ratios), number(first[case])))
    header = ("case", "s per batch", "x bare", "x epoch", "first round s, tracing included")
    return f"{table(header, rows)}\n\nPooling and writing at the end: {finishing:.3f} s."


def _take_turns(
    cases: dict[str, Case], runs: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    seconds, first = defaultdict(list), {}
    for round_number in range(runs + 1):
        for name, case in cases.items():
            print(f"round {round_number} of {runs}: {name}", file=sys.stderr)
            started = time.perf_counter()
            case()
            took = time.perf_counter() - started
            if round_number:
                seconds[name].append(took)
            else:
                first[name] = took
    return seconds, first


def _bare(model: keras.Model) -> Callable[[np.ndarray], object]:
    """The least that a training-mode forward pass costs on this backend."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        forward = tf.function(lambda x: model(x, training=True), autograph=False)
        return lambda x: forward(tf.convert_to_tensor(x))
    if keras.backend.backend() == "torch":
        import torch

        def eager(x: np.ndarray) -> object:
            with torch.no_grad():
                return model(keras.ops.convert_to_tensor(x), training=True)

        return eager
    import jax

    def stateless(trainable: list, others: list, x: object) -> object:
        return model.stateless_call(trainable, others, x, training=True)

    compiled = jax.jit(stateless)

    def stateful(x: np.ndarray) -> object:
        trainable = [v.value for v in model.trainable_variables]
        others = [v.value for v in model.non_trainable_variables]
        return compiled(trainable, others, keras.ops.convert_to_tensor(x))

    return stateful


def _wait(outputs: list) -> None:
    """Until the device has done what was asked of it."""
    keras.ops.convert_to_numpy(keras.tree.flatten(outputs[-1])[0])


def _errors(quick: bool) -> str:
    rng = np.random.default_rng(0)
    side, samples = (8, 32) if quick else (48, 256)
    x = rng.normal(3.0, 1.0, (samples, side, side, 16)) + rng.normal(0, 1, (samples, 1, 1, 16))
    x = np.float32(x[np.argsort(x.mean((1, 2, 3)))])
    mean, variance = (f(x, axis=(0, 1, 2), dtype="f8") for f in (np.mean, np.var))
    batches = np.split(x, [*range(64, samples, 64), samples - 3])
    rows = []

    def row(name: str, found_mean: object, found_variance: object) -> None:
        found = [keras.ops.convert_to_numpy(f).astype("f8") for f in (found_mean, found_variance)]
        off = np.abs(found[0] - mean).max() / np.sqrt(variance.min())
        rows.append((name, f"{off:.1e}", f"{np.abs(found[1] / variance - 1).max():.1e}"))

    row("keras.ops.moments of all data at once", *keras.ops.moments(x, (0, 1, 2)))
    for mode in ("batch", "population", "cumulative"):
        model = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.BatchNormalization()])
        update_batch_norm(model, batches, bn_mode=mode)
        row(f"pass, mode {mode}", *model.layers[0].weights[2:])
    try:
        row("torch.optim.swa_utils.update_bn", *_torch(batches))
    except ImportError:
        print("torch is not installed here: its row is missing.\n")
    return table(("how", "mean", "variance"), rows)


def _torch(batches: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    import torch
    from torch.optim.swa_utils import update_bn

    norm = torch.nn.BatchNorm2d(batches[0].shape[-1])
    update_bn([torch.tensor(x).permute(0, 3, 1, 2) for x in batches], norm)
    return norm.running_mean.numpy(), norm.running_var.numpy()


def _images(count: int, batch: int, size: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 1, (batch, size, size, 3)).astype("float32") for _ in range(count)]


def _machine() -> str:
    load = f"{os.getloadavg()[0]:.1f}"
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, load {load}; Keras {keras.__version__} on "
        f"{keras.backend.backend()}, Python {platform.python_version()}"
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, help="rounds (default 5)")
    parser.add_argument("--batches", type=int, default=4, help="in a round")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test this program")
    options = parser.parse_args()
    options.runs = options.runs or (1 if options.quick else 5)
    return options


if __name__ == "__main__":
    main()
