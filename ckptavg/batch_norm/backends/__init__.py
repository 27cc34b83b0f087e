"""The compiled forward pass, a module for each Keras backend, and the choice among them."""

import keras

from ckptavg.batch_norm.observer import Observer
from ckptavg.batch_norm.step import Step
from ckptavg.errors import ModelError


def make_step(model: keras.Model, observer: Observer, *, training: bool = True) -> Step:
    """The step of the backend that Keras runs on.

    Args:
        model: runs forward.
        observer: attached to its layers.
        training: whether the model runs in training mode, and the calls that do are measured;
            otherwise it runs in inference mode, and all calls are.

    Raises:
        ModelError: there is none for this backend.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        from ckptavg.batch_norm.backends.tensorflow import TensorFlowStep as BackendStep
    elif backend == "jax":
        from ckptavg.batch_norm.backends.jax import JaxStep as BackendStep
    elif backend == "torch":
        from ckptavg.batch_norm.backends.torch import TorchStep as BackendStep
    else:
        raise ModelError(
            f"the BatchNorm pass runs on the backends tensorflow, jax and torch, but Keras runs on "
            f"{backend}: set KERAS_BACKEND"
        )
    return BackendStep(model, observer, training)
