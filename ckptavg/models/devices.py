"""Where a model runs: on which device, or on several."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

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
    kind, index = _parse(device)
    backend = keras.backend.backend()
    if kind == "gpu" and index >= (present := _gpus()):
        raise SpecError(
            f"there is no device {device!r} (--device): {backend} finds {present or 'no'} GPU here "
            "(--verbose shows what it says of devices)"
        )
    if distribute is None:
        with nullcontext() if device == "auto" else keras.device(f"{kind}:{index}"):
            yield
        return
    if backend != "tensorflow":
        raise SpecError(
            f"distribute={distribute!r} (--distribute) needs the TensorFlow backend, but Keras "
            f"runs on {backend}: set KERAS_BACKEND=tensorflow"
        )
    import tensorflow as tf

    devices = tf.config.list_logical_devices("GPU" if device != "cpu" and _gpus() else "CPU")
    with tf.distribute.MirroredStrategy([found.name for found in devices]).scope():
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
