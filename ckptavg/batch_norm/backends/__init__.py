"""The compiled forward pass: one module per Keras backend, and the choice among them."""

import keras

from ckptavg.batch_norm.observer import Observer
from ckptavg.batch_norm.step import StatelessStep
from ckptavg.errors import ModelError


def make_step(model: keras.Model, observer: Observer, *, training: bool = True) -> StatelessStep:
    """Makes the step for the backend that Keras runs on.

    Args:
        model: the model to run forward.
        observer: the observer of its layers, entered while the step is called.
        training: True runs the model in training mode and measures the calls that are in training
            mode; False runs it in inference mode and measures all calls.

    Raises:
        ModelError: the backend is not supported.
    """
    backend = keras.backend.backend()
    # Imported here, because at most one of the three backends need be installed.
    if backend == "tensorflow":
        from ckptavg.batch_norm.backends.tensorflow import TensorFlowStep

        return TensorFlowStep(model, observer, training)
    if backend == "jax":
        from ckptavg.batch_norm.backends.jax import JaxStep

        return JaxStep(model, observer, training)
    if backend == "torch":
        from ckptavg.batch_norm.backends.torch import TorchStep

        return TorchStep(model, observer, training)
    raise ModelError(
        f"the BatchNorm pass runs on the backends tensorflow, jax and torch, but Keras runs on "
        f"{backend}: set KERAS_BACKEND"
    )
