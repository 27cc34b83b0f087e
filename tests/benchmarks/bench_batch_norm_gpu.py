"""A BatchNorm pass on the GPU beside the same pass on the CPU: statistics and speed.

    .venv/bin/python tests/benchmarks/bench_batch_norm_gpu.py --backend jax
    .venv/bin/python tests/benchmarks/bench_batch_norm_gpu.py --backend torch --device gpu:1

Each device gets the same weights and the same batches. GPUs multiply in less than float32 unless
told otherwise, so the GPU runs as the backend would have it, in full and in mixed precision.
Without a GPU, `--device cpu` runs all on the CPU, to see that the program works.
"""

import argparse
import os
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))  # the package beside these files is measured


def main() -> None:
    options = _parse()
    os.environ["KERAS_BACKEND"] = options.backend
    import keras
    import numpy as np
    from _tables import number, table

    from ckptavg.models.devices import computing_on

    images, batch, count = (32, 4, 2) if options.quick else (224, 64, options.batches)
    rng = np.random.default_rng(0)
    data = [rng.normal(0, 1, (batch, images, images, 3)).astype("float32") for _ in range(count)]
    keras.utils.set_random_seed(0)
    with computing_on("cpu"):
        weights = _model(images, options.quick).get_weights()

    runs = [("cpu", "full", False), (options.device, "default", False)]
    runs += [(options.device, "full", False), (options.device, "default", True)]
    rows, reference = [], None
    for device, precision, mixed in runs:
        with computing_on(device), _precision(options.backend, precision):
            model = _model(images, options.quick)
            model.set_weights(weights)
            found, seconds, first = _pass(model, data, options.runs, mixed)
        reference = reference or found
        off = max(
            float(np.max(np.abs(one - two) / np.sqrt(variance + 1e-3)))
            for (one, _), (two, variance) in zip(found, reference, strict=True)
        )
        ratio = max(
            float(np.max(np.abs(one / two - 1)))
            for (_, one), (_, two) in zip(found, reference, strict=True)
        )
        rows.append(
            (
                f"{device}, {'mixed' if mixed else precision} precision",
                number(batch * count / seconds),
                number(first),
                f"{off:.1e}",
                f"{ratio:.1e}",
            )
        )
    print(f"\n## ResNet50, {count} batches of {batch} x {images} x {images}, {options.backend}\n")
    print("Off are statistics beside those of the first row: means in standard deviations,\n")
    print("variances relatively; the worst channel of all layers.\n")
    header = ("device", "samples/s", "first pass s", "mean off", "variance off")
    print(table(header, rows))


def _model(images: int, quick: bool):
    import keras

    shape = (images, images, 3)
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


def _pass(model, data, runs, mixed):
    """Statistics of every layer, seconds of a pass once all is compiled, and of the first."""
    import numpy as np

    from ckptavg.batch_norm import BatchNormPass
    from ckptavg.models.model import batch_norm_layers, mixed_float16

    took = []
    with mixed_float16(model) if mixed else nullcontext(), BatchNormPass(model) as bn:
        for number in range(runs + 1):
            print(f"round {number} of {runs}", file=sys.stderr)
            started = time.perf_counter()
            for inputs in data:
                outputs = bn.add(inputs)
            np.asarray(_host(outputs))
            took.append(time.perf_counter() - started)
        bn.finish()
    found = [
        tuple(_host(v).astype("f8") for v in (layer.moving_mean, layer.moving_variance))
        for layer in batch_norm_layers(model)
    ]
    return found, statistics.median(took[1:]), took[0]


def _host(value):
    import keras

    return keras.ops.convert_to_numpy(value)


def _precision(backend: str, precision: str):
    """Within, matrices are multiplied in full float32 if `precision` is full."""
    if precision == "default":
        return nullcontext()
    if backend == "jax":
        import jax

        return jax.default_matmul_precision("highest")
    if backend == "torch":
        import torch

        return torch.backends.cudnn.flags(allow_tf32=False)
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)
    return nullcontext()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("jax", "torch", "tensorflow"), default="jax")
    parser.add_argument("--device", default="gpu", help="gpu, gpu:N or cpu")
    parser.add_argument("--runs", type=int, help="rounds (default 5)")
    parser.add_argument("--batches", type=int, default=16, help="in a pass")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test this program")
    options = parser.parse_args()
    options.runs = options.runs or (1 if options.quick else 5)
    return options


if __name__ == "__main__":
    main()
