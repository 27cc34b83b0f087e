"""Makes the start of a training or an evaluation cheap, which with tiny models is all of it.

What is trained and computed stays as it is. All is for TensorFlow, whose functions take far longer
to trace and to optimize than such models take to run.
"""

from typing import Any


def install() -> None:
    import tensorflow as tf
    from keras.src.optimizers.base_optimizer import BaseOptimizer
    from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    BaseOptimizer.add_variable = _made_outside(BaseOptimizer.add_variable)
    ArrayDataAdapter.get_tf_dataset = _untraced(ArrayDataAdapter.get_tf_dataset)


def _made_outside(add_variable: Any) -> Any:
    """Makes variables of optimizers outside the training step that needs them first.

    A function that makes variables is traced twice. Replicas make theirs together, in the step.
    """
    import tensorflow as tf

    def add(*arguments: Any, **options: Any) -> Any:
        if tf.distribute.has_strategy():
            return add_variable(*arguments, **options)
        with tf.init_scope():
            return add_variable(*arguments, **options)

    return add


def _untraced(get_tf_dataset: Any) -> Any:
    """Gives the batches of arrays by a pipeline without functions of its own to be traced."""
    import keras
    import numpy as np
    import tensorflow as tf

    def batches(self: Any) -> tf.data.Dataset:
        arrays = keras.tree.flatten(self._inputs)
        if self._shuffle == "batch" or not all(isinstance(one, np.ndarray) for one in arrays):
            return get_tf_dataset(self)
        dataset = tf.data.Dataset.from_tensor_slices(keras.tree.lists_to_tuples(self._inputs))
        if self._shuffle:
            dataset = dataset.shuffle(self._num_samples)
        return dataset.batch(self._batch_size).prefetch(1)

    return batches
