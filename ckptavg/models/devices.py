"""Where a model runs: on which device, or on several."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras

from ckptavg.errors import SpecError


@contextmanager
def computing_on(device: str = "auto", distribute: str | None = None) -> Iterator[None]:
    """Models that are made within live and run on a device.

    Args:
        device: `auto` (what the backend prefers), `cpu`, `gpu` or `gpu:N`.
        distribute: `mirrored` for a `tf.distribute.MirroredStrategy` over all GPUs, or without any
            over all logical CPUs; or None.

    Raises:
        SpecError: there is no such device, or the backend has no such strategy.
    """
    if distribute is None:
        if device == "auto":
            yield
            return
        with keras.device(_checked(device)):
            yield
        return
    if distribute != "mirrored":
        raise SpecError(f"--distribute is {distribute!r}, but must be mirrored")
    if device not in ("auto", "cpu", "gpu"):
        raise SpecError(f"--distribute uses all devices: it does not go with --device {device}")
    if keras.backend.backend() != "tensorflow":
        raise SpecError(
            f"--distribute needs the TensorFlow backend, but Keras runs on "
            f"{keras.backend.backend()}: set KERAS_BACKEND=tensorflow"
        )
    import tensorflow as tf

    kind = "GPU" if device != "cpu" and _gpus() else "CPU"
    if device == "gpu":
        _checked(device)
    names = [found.name for found in tf.config.list_logical_devices(kind)]
    with tf.distribute.MirroredStrategy(names).scope():
        yield


def _checked(device: str) -> str:
    kind, _, number = device.partition(":")
    if device != "cpu" and (kind != "gpu" or (":" in device and not number.isdecimal())):
        raise SpecError(f"--device is {device!r}, but must be auto, cpu, gpu or gpu:N")
    index = int(number or 0)
    if kind == "gpu" and index >= _gpus():
        raise SpecError(
            f"--device {device}: {keras.backend.backend()} finds {_gpus() or 'no'} GPU here"
        )
    return f"{kind}:{index}"


def _gpus() -> int:
    """Number of GPUs that the backend can use."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return len(tf.config.list_logical_devices("GPU"))
    if backend == "torch":
        import torch

        return torch.cuda.device_count()
    import jax

    return sum(found.platform == "gpu" for found in jax.devices())
