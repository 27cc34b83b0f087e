"""Mean and variance of what one call of a layer meets, on the device."""

from typing import Any, NamedTuple

import keras
from keras import ops

_LONG = 1024
"""Length of an axis above which a float32 sum along it loses too many digits."""


class Moments(NamedTuple):
    """Moments of each channel: tensors of shape (channels,) in the wide dtype."""

    count: Any
    mean: Any
    variance: Any


def wide_dtype() -> str:
    """The widest float type that the backend computes in: float64 where it has it, or float32."""
    if keras.backend.backend() == "jax":
        import jax

        return "float64" if jax.config.jax_enable_x64 else "float32"
    if keras.backend.backend() == "torch":
        from keras.src.backend.torch.core import get_device

        return "float32" if get_device() == "mps" else "float64"
    return "float64"


def batch_moments(inputs: Any, mask: Any, axis: int) -> Moments:
    """The moments of a batch over all axes but one.

    Values are summed in float32 along short axes, one axis at a time, and in the wide dtype along
    the batch and along long axes, so that their number costs no precision. The variance is that of
    deviations from the mean, never a difference of large sums.

    Args:
        inputs: the layer's inputs, of any rank and float dtype.
        mask: True where values count, in the shape of `inputs` without the last axis; or None.
        axis: the axis of the channels.
    """
    dtype = keras.backend.result_type(inputs.dtype, "float32")
    values = ops.cast(inputs, dtype)
    axes = [other for other in range(len(values.shape)) if other != axis % len(values.shape)]
    if mask is None:
        masked = values
        count = _size(values, axes)
    else:
        mask = ops.broadcast_to(ops.expand_dims(ops.cast(mask, "bool"), -1), ops.shape(values))
        masked = ops.where(mask, values, 0)
        count = _wide_sum(ops.cast(mask, dtype), axes)
    divisor = ops.maximum(count, 1.0)
    mean = _wide_sum(masked, axes) / divisor
    shape = [1] * len(values.shape)
    shape[axis] = -1
    center = ops.cast(mean, dtype)
    deviations = ops.square(values - ops.reshape(center, shape))
    if mask is not None:
        deviations = ops.where(mask, deviations, 0)
    # The deviations are from the mean as rounded to the layer's dtype: E[(x - c)^2] - (m - c)^2.
    rounding = mean - ops.cast(center, wide_dtype())
    variance = ops.maximum(_wide_sum(deviations, axes) / divisor - ops.square(rounding), 0.0)
    return Moments(count + ops.zeros_like(mean), mean, variance)


def _wide_sum(values: Any, axes: list[int]) -> Any:
    """The sum over axes, of which the first, that of the batch, may be of any length."""
    first, *others = axes
    for axis in reversed(others):
        if (values.shape[axis] or _LONG) >= _LONG:
            values = ops.cast(values, wide_dtype())
        values = ops.sum(values, axis=axis)
    return ops.sum(ops.cast(values, wide_dtype()), axis=first)


def _size(values: Any, axes: list[int]) -> Any:
    """The number of values along axes, as a tensor: it may only be known when the step runs."""
    shape = ops.shape(values)
    size = ops.cast(1.0, wide_dtype())
    for axis in axes:
        size = size * ops.cast(shape[axis], wide_dtype())
    return size
