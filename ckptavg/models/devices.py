"""Where a model runs: on which device, or on several."""

from collections.abc import Iterator
from contextlib import contextmanager

from ckptavg.errors import SpecError

MIRRORED = "mirrored"


def check_device(device: str, distribute: str | None) -> None:
    """Checks the form of a device and a strategy; imports neither Keras nor a backend.

    Raises:
        SpecError: one of them is malformed, or they contradict each other.
    """
    _parse(device)
    if distribute not in (None, MIRRORED):
        raise SpecError(f"distribute is {distribute!r:.40}, but must be 'mirrored'")
    if distribute is not None and ":" in device:
        raise SpecError(
            f"distribute={distribute!r} uses all devices, but device is {device!r}: omit one of "
            "them (--distribute, --device)"
        )


@contextmanager
def computing_on(device: str = "auto", distribute: str | None = None) -> Iterator[None]:
    """Creates and runs models on a device until the exit.

    Args:
        device: `auto` (the backend's default), `cpu`, `gpu` or `gpu:N`.
        distribute: `mirrored` for a `tf.distribute.MirroredStrategy` over all GPUs, or over all
            logical CPUs where there is no GPU; None for a single device.

    Raises:
        SpecError: there is no such device, or the backend has no such strategy.
    """
    import keras

    check_device(device, distribute)
    if device != "auto":
        _check_present(device)
    if distribute is not None:
        if keras.backend.backend() != "tensorflow":
            raise SpecError(
                f"distribute={distribute!r} (--distribute) needs the TensorFlow backend, but Keras "
                f"runs on {keras.backend.backend()}: set KERAS_BACKEND=tensorflow"
            )
        import tensorflow as tf

        kind = "GPU" if device != "cpu" and _gpus() else "CPU"
        names = [found.name for found in tf.config.list_logical_devices(kind)]
        with tf.distribute.MirroredStrategy(names).scope():
            yield
    elif device == "auto":
        yield
    else:
        kind, index = _parse(device)
        with keras.device(f"{kind}:{index}"):
            yield


def _parse(device: str) -> tuple[str, int]:
    """Kind and number of a device."""
    kind, colon, number = device.partition(":")
    numbered = kind == "gpu" and number.isdecimal()
    if kind not in ("auto", "cpu", "gpu") or (colon and not numbered):
        raise SpecError(
            f"device is {device!r:.40}, but must be 'auto', 'cpu', 'gpu' or 'gpu:N' (--device)"
        )
    return kind, int(number or 0)


def _check_present(device: str) -> None:
    import keras

    kind, index = _parse(device)
    if kind == "gpu" and index >= (present := _gpus()):
        raise SpecError(
            f"there is no device {device!r} (--device): {keras.backend.backend()} finds "
            f"{present or 'no'} GPU here"
        )


def _gpus() -> int:
    """Number of GPUs that the backend can use."""
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return len(tf.config.list_logical_devices("GPU"))
    if backend == "torch":
        import torch

        return int(torch.cuda.device_count())
    import jax

    return sum(found.platform == "gpu" for found in jax.devices())
