"""Checkpoints of odd models: each equals what Keras itself would have written at that moment."""

import keras
import numpy as np
import pytest
from keras import layers

from ckptavg import SWA, CheckpointSaver, open_run, update_batch_norm
from ckptavg.batch_norm import BatchNormPass
from ckptavg.errors import ModelError, SaverError
from ckptavg.runs.proof import tensor_records
from tests.helpers.files import read_tensors
from tests.helpers.models import tiny_data, tiny_model
from tests.helpers.saving import late

pytestmark = pytest.mark.filterwarnings("ignore:`build..` was called on layer")


class Beside(keras.callbacks.Callback):
    """Has Keras save what the saver saves, at the same moments, and keeps what it wrote."""

    def __init__(self, folder, include_optimizer):
        super().__init__()
        self.folder = folder
        self.include_optimizer = include_optimizer
        self.files = {}

    def on_epoch_end(self, epoch, logs=None):  # noqa: ARG002
        path = self.folder / f"keras-{epoch + 1}.weights.h5"
        skipped = None
        if not self.include_optimizer:
            attributes = vars(self.model).values()
            skipped = [v for v in attributes if isinstance(v, keras.optimizers.Optimizer)] or None
        keras.saving.save_weights(self.model, path, objects_to_skip=skipped)
        self.files[epoch + 1] = path


def check_equal(model, folder, x, y, *, include_optimizer=False, is_fast=True, epochs=2, **fit):
    """Trains, and compares each checkpoint with Keras' own: names, shapes, dtypes and bytes."""
    saver = CheckpointSaver(folder / "run", start_epoch=1, include_optimizer=include_optimizer)
    beside = Beside(folder, include_optimizer)
    model.run_eagerly = True  # a few steps take less time than a graph of them
    history = model.fit(
        x, y, epochs=epochs, batch_size=16, verbose=0, callbacks=[saver, beside], **fit
    )
    assert np.isfinite(history.history["loss"]).all()
    assert (saver._prepared.placement().files is not None) == is_fast
    checkpoints = open_run(folder / "run").checkpoints
    assert [checkpoint.record.epoch for checkpoint in checkpoints] == list(range(1, epochs + 1))
    for checkpoint in checkpoints:
        own, theirs = (
            {
                name: (values.shape, values.dtype, values.tobytes())
                for name, values in read_tensors(path).items()
            }
            for path in (checkpoint.path, beside.files[checkpoint.record.epoch])
        )
        assert own.keys() == theirs.keys()
        for name, content in own.items():
            assert content == theirs[name], name
        assert tensor_records(checkpoint.path) == checkpoint.record.read_tensors()
        keras.saving.load_weights(model, checkpoint.path, objects_to_skip=_skipped(model))
    return checkpoints


def _skipped(model):
    optimizers = [v for v in vars(model).values() if isinstance(v, keras.optimizers.Optimizer)]
    return optimizers or None


def classifier(*parts, inputs=(6,), dtype=None):
    model = keras.Sequential([keras.Input(inputs, dtype=dtype), *parts, layers.Dense(3)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def shared():
    layer, inputs = layers.Dense(6, name="shared"), keras.Input((6,))
    outputs = layers.Dense(3)(layers.add([layer(inputs), layer(layer(inputs))]))
    model = keras.Model(inputs, outputs)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


class Tying(layers.Layer):
    """Has the kernel of another layer for its own, transposed, and that layer, too."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def build(self, _):
        self.kernel = self.other.kernel
        self.bias = self.add_weight(shape=(6,))

    def call(self, inputs):
        return inputs @ keras.ops.transpose(self.kernel) + self.bias


@keras.saving.register_keras_serializable("tests")
class Tied(keras.Model):
    """The same variable in two layers, a list and a dictionary of layers, a weight of its own."""

    def __init__(self):
        super().__init__()
        self.first = layers.Dense(6)
        self.blocks = [layers.Dense(6), {"inner": layers.Dense(6)}]
        self.tying = Tying(self.first)

    def build(self, shape):
        self.first.build(shape)
        self.blocks[0].build(shape)
        self.blocks[1]["inner"].build(shape)
        self.own = self.add_weight(shape=(), initializer="ones", name="own")
        self.steps = self.add_weight(shape=(), dtype="int32", trainable=False, name="steps")
        self.flag = self.add_weight(shape=(2,), dtype="bool", initializer="zeros", trainable=False)
        self.tying.build(shape)

    def call(self, inputs):
        hidden = self.blocks[1]["inner"](self.blocks[0](self.first(inputs)))
        hidden = self.tying(hidden)
        return hidden[:, :3] * self.own


def tied():
    model = Tied()
    model.build((None, 6))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


class Empty(layers.Layer):
    """Weights without values, and a scalar."""

    def build(self, _):
        self.nothing = self.add_weight(shape=(0, 3), trainable=False)
        self.scalar = self.add_weight(shape=(), initializer="ones")

    def call(self, inputs):
        return inputs * self.scalar


def normalization():
    layer = layers.Normalization()
    layer.adapt(tiny_data()[0])
    return classifier(layer)


def lora():
    model = classifier(layers.Dense(6, name="adapted"))
    model.get_layer("adapted").enable_lora(2)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def quantized():
    model = classifier(layers.Dense(6, name="adapted"))
    model.get_layer("adapted").quantize("int8")
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def policy(name):
    def build():
        kept = keras.mixed_precision.dtype_policy()
        keras.mixed_precision.set_dtype_policy(name)
        try:
            return classifier(layers.Dense(6), layers.BatchNormalization())
        finally:
            keras.mixed_precision.set_dtype_policy(kept)

    return build


MODELS = {
    "nested": tiny_model,
    "shared": shared,
    "tied": tied,
    "late": late,
    "deferred": lambda: _compiled(keras.Sequential([layers.Dense(4), layers.Dense(3)])),
    "empty weights": lambda: classifier(Empty()),
    "generators": lambda: classifier(layers.Dropout(0.3), layers.GaussianNoise(0.1)),
    "normalization": normalization,
    "float16": policy("float16"),
    "bfloat16": policy("bfloat16"),
    "mixed float16": policy("mixed_float16"),
    "spectral": lambda: classifier(layers.SpectralNormalization(layers.Dense(4))),
    "convolution": lambda: classifier(
        layers.Reshape((6, 1)), layers.Conv1D(2, 3), layers.LSTM(3), layers.GroupNormalization(1)
    ),
    "attention": lambda: classifier(
        layers.Reshape((3, 2)), Attending(), layers.Flatten(), layers.LayerNormalization()
    ),
}


class Attending(layers.Layer):
    def __init__(self):
        super().__init__()
        self.attention = layers.MultiHeadAttention(2, 3)

    def build(self, shape):
        self.attention.build(shape, shape)

    def call(self, inputs):
        return self.attention(inputs, inputs)


def _compiled(model):
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.mark.parametrize("include_optimizer", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("name", MODELS)
def test_checkpoints_equal_keras_own(tmp_path, name, include_optimizer):
    x, y = tiny_data(32)
    check_equal(MODELS[name](), tmp_path, x, y, include_optimizer=include_optimizer)


@pytest.mark.parametrize("build", [lora, quantized])
def test_layers_that_compute_what_they_save(tmp_path, build):
    x, y = tiny_data(32)
    model = build()
    saver = CheckpointSaver(tmp_path / "probe", start_epoch=1)
    model.fit(x, y, verbose=0, callbacks=[saver])
    check_equal(model, tmp_path, x, y, is_fast=saver._prepared.placement().files is not None)


class Saving(layers.Layer):
    """Saves what `change` makes of its variable."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]), initializer="glorot_uniform")
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, inputs):
        return (inputs @ self.kernel) * self.scale

    def save_own_variables(self, store):
        store["0"] = self.change(keras.ops.convert_to_numpy(self.kernel))
        store["1"] = self.change(keras.ops.convert_to_numpy(self.scale))

    def load_own_variables(self, store):
        pass


@pytest.mark.parametrize(
    ("change", "is_fast"),
    [
        (lambda values: values, True),
        (np.abs, False),
        (np.transpose, False),
        (np.flip, False),
        (lambda values: values.reshape(-1), False),
        (lambda values: np.maximum(values, 0), False),
        (lambda values: np.clip(values, -1e6, 1e6).astype(values.dtype), False),
        (lambda values: np.round(values, 3), False),
        (lambda values: np.round(values, 0).astype(values.dtype), False),
        (lambda values: np.round(values, 9).astype(values.dtype), False),
        (lambda values: values.astype("float64"), False),
        (lambda values: values.astype("float32").astype(values.dtype), False),
        (lambda values: values.astype("float16"), False),
        (lambda values: 2 * values, False),
        (lambda values: values.sum(), False),
        (lambda values: np.sort(values, axis=None).reshape(values.shape), False),
        (lambda _: np.array(7), False),
    ],
)
def test_a_layer_that_saves_something_else(tmp_path, change, is_fast):
    x, y = tiny_data(16)
    check_equal(classifier(Saving(change)), tmp_path, x, y, is_fast=is_fast, epochs=1)


def test_a_layer_that_builds_itself_late(tmp_path):
    """Its variables are in the checkpoints from the epoch on in which they come."""
    x, y = tiny_data(32)
    model = late()

    def extend(epoch, _):
        if epoch == 1:
            model.extended = True
            model.late.build((None, 6))

    extension = keras.callbacks.LambdaCallback(on_epoch_begin=extend)
    saver = CheckpointSaver(tmp_path / "run", start_epoch=1)
    beside = Beside(tmp_path, False)
    model.fit(x, y, epochs=3, verbose=0, callbacks=[extension, saver, beside])
    for checkpoint in open_run(tmp_path / "run").checkpoints:
        own = read_tensors(checkpoint.path)
        theirs = read_tensors(beside.files[checkpoint.record.epoch])
        assert own.keys() == theirs.keys()
        assert all((own[name] == theirs[name]).all() for name in own)
        assert len(own) == (2 if checkpoint.record.epoch == 1 else 4)


def test_texts_that_a_model_looks_up(tmp_path):
    words = np.array([["a"], ["b"], ["c"], ["a"]])
    lookup = layers.StringLookup(vocabulary=["a", "b"])
    inputs = keras.Input((1,), dtype="string")
    outputs = layers.Dense(3)(layers.Flatten()(layers.Embedding(5, 2)(lookup(inputs))))
    model = _compiled(keras.Model(inputs, outputs))
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((words, np.array([0, 1, 2, 0]))).batch(2)
    saver = CheckpointSaver(tmp_path / "run", start_epoch=1)
    beside = Beside(tmp_path, False)
    model.fit(data, epochs=2, verbose=0, callbacks=[saver, beside])
    own = read_tensors(open_run(tmp_path / "run").checkpoints[-1].path)
    theirs = read_tensors(beside.files[2])
    assert own.keys() == theirs.keys()
    assert all((own[name] == theirs[name]).all() for name in own)


class Adversaries(keras.Model):
    """Two parts with an optimizer of their own each, which exist with the first batch only."""

    def __init__(self):
        super().__init__()
        self.generator, self.critic = layers.Dense(6), layers.Dense(1)
        self.critic_optimizer = keras.optimizers.Adam(0.01)
        self.generator_optimizer = keras.optimizers.RMSprop(0.01)

    def call(self, inputs):
        return self.critic(self.generator(inputs))

    def train_step(self, data):
        import tensorflow as tf

        x, _ = data
        with tf.GradientTape(persistent=True) as tape:
            fake = self.critic(self.generator(x))
            lost = tf.reduce_mean(fake) - tf.reduce_mean(self.critic(x))
            gained = -tf.reduce_mean(fake)
        parts = (
            (self.critic, self.critic_optimizer, lost),
            (
                self.generator,
                self.generator_optimizer,
                gained,
            ),
        )
        for part, optimizer, loss in parts:
            variables = part.trainable_variables
            optimizer.apply(tape.gradient(loss, variables), variables)
        return {"loss": lost}


@pytest.mark.parametrize("include_optimizer", [False, True])
def test_two_optimizers_of_the_models_own(tmp_path, include_optimizer):
    model = Adversaries()
    model.build((None, 6))
    model.compile()
    x, y = tiny_data(32)
    check_equal(model, tmp_path, x, y, include_optimizer=include_optimizer)


def test_optimizers_in_lists_and_on_networks_within_stay_out_of_averages(tmp_path):
    model = tiny_model()
    model.spare = [keras.optimizers.SGD(momentum=0.9), {"more": keras.optimizers.Adam()}]
    model.get_layer("block").own = keras.optimizers.Adam()
    for optimizer in (model.spare[0], model.get_layer("block").own):
        optimizer.build(model.trainable_variables)
    x, y = tiny_data(32)
    for include_optimizer in (False, True):
        saver = CheckpointSaver(
            tmp_path / "run",
            start_epoch=1,
            include_optimizer=include_optimizer,
            existing="overwrite",
        )
        model.run_eagerly = True
        model.fit(x, y, epochs=1, batch_size=16, verbose=0, callbacks=[saver])
        [checkpoint] = open_run(tmp_path / "run").checkpoints
        stored = read_tensors(checkpoint.path)
        assert any("spare" in name for name in stored) == include_optimizer
        recorded = checkpoint.record.read_tensors()
        assert len(recorded) == len(model.weights)
        assert not any("spare" in name or "own" in name for name in recorded)


def test_steps_of_a_model_whose_optimizers_keras_does_not_know(tmp_path):
    """They are counted by batches, in a training that goes on as well."""
    x, y = tiny_data(64)
    arguments = {"save_freq": 3, "existing": "resume"}
    for name, parts in (("whole", [(0, 6)]), ("parts", [(0, 2), (2, 5), (5, 6)])):
        for first, last in parts:
            model = Adversaries()
            model.build((None, 6))
            model.compile(optimizer=None, run_eagerly=True)
            saver = CheckpointSaver(tmp_path / name, **arguments)
            model.fit(
                x, y, initial_epoch=first, epochs=last, batch_size=16, verbose=0, callbacks=[saver]
            )
    whole, parts = (
        [(record.file, record.epoch, record.step) for record in open_run(tmp_path / name).records]
        for name in ("whole", "parts")
    )
    assert whole == parts
    assert [step for *_, step in whole] == [3, 6, 9, 12, 15, 18, 21, 24]


class Unbuilt(keras.Model):
    """Has a training step and no `call()`, as the autoencoder of Keras' examples."""

    def __init__(self):
        super().__init__(name="vae")
        self.encoder = keras.Sequential([layers.Dense(4), layers.BatchNormalization()])
        self.steps = 0

    def train_step(self, data):
        self.steps += 1
        self.encoder(data[0])
        return {"loss": 0.0}


def test_a_model_that_nothing_builds_is_refused_after_its_first_batch(tmp_path):
    model, (x, y) = Unbuilt(), tiny_data(64)
    model.compile(run_eagerly=True)
    saver = CheckpointSaver(tmp_path / "run", start_epoch=9)
    with pytest.raises(SaverError, match=r"'vae' is not built .*set model.built = True before fit"):
        model.fit(x, y, batch_size=16, epochs=9, verbose=0, callbacks=[saver])
    assert model.steps == 1
    # The advice works.
    model.built = True
    model.fit(x, y, batch_size=16, epochs=9, verbose=0, callbacks=[saver])
    model.load_weights(open_run(tmp_path / "run").checkpoints[0].path)


def test_a_pass_over_a_model_without_call_names_the_way_out(tmp_path):
    model, (x, y) = Unbuilt(), tiny_data(32)
    message = r"'vae' has no call.*update_batch_norm\(model.encoder, inputs\).*BatchNormPass"
    with pytest.raises(ModelError, match=message):
        update_batch_norm(model, x)
    model.compile(run_eagerly=True)
    model.encoder(x[:1])
    model.built = True
    with pytest.raises(ModelError, match=message):  # at once, not in the last epoch
        model.fit(x, y, epochs=9, verbose=0, callbacks=[SWA(2, directory=tmp_path / "run")])
    assert model.steps == 0
    assert update_batch_norm(model.encoder, x).samples == 32


def test_layers_that_are_not_built_are_named_by_their_path():
    inner = keras.Sequential([layers.BatchNormalization(name="norm")], name="inner")
    model = keras.Sequential([layers.Dense(2), inner])
    with pytest.raises(ModelError, match="the layer 'inner/norm' is not built"):
        BatchNormPass(model)


def adversaries(generator_rate=0.01, **compiled):
    model = Adversaries()
    model.build((None, 6))
    model.generator_optimizer.learning_rate = generator_rate
    model.compile(run_eagerly=True, **compiled)  # by default with an RMSprop that is not used
    return model


def rates(model):
    optimizers = (model.critic_optimizer, model.generator_optimizer, model.optimizer)
    return [round(float(optimizer.learning_rate), 6) for optimizer in optimizers if optimizer]


def fit(model, run, epochs=5, initial_epoch=0, **arguments):
    x, y = tiny_data(32)
    saver = CheckpointSaver(run, start_epoch=3, lr_schedule="constant", **arguments)
    return model.fit(
        x,
        y,
        epochs=epochs,
        initial_epoch=initial_epoch,
        batch_size=16,
        verbose=0,
        callbacks=[saver],
    ).history


def test_the_optimizers_that_train_follow_the_schedule(tmp_path):
    model = adversaries()
    history = fit(model, tmp_path / "run", swa_lr=0.002)
    # The rate of the unused one is below that of averaging, which is nobody's mistake.
    assert rates(model) == [0.002, 0.002, 0.001]
    records = open_run(tmp_path / "run").records
    assert [record.learning_rate for record in records] == pytest.approx([0.002] * 3)
    assert [record.initial_learning_rate for record in records] == pytest.approx([0.01] * 3)
    assert [record.step for record in records] == [6, 8, 10]
    assert history["learning_rate"] == pytest.approx([0.01, 0.01, 0.002, 0.002, 0.002])


def test_a_record_tells_no_rate_where_optimizers_differ(tmp_path):
    model = adversaries(0.05)
    fit(model, tmp_path / "run", epochs=3)
    assert rates(model) == [0.001, 0.005, 0.0001]  # each a tenth of its own
    [record] = open_run(tmp_path / "run").records
    assert record.learning_rate is record.initial_learning_rate is None


def test_rates_of_several_optimizers_continue_after_a_resume(tmp_path):
    run = tmp_path / "run"
    fit(adversaries(0.05, optimizer=None), run, epochs=3)
    resumed = adversaries(optimizer=None)  # its rates are others, as those of a loaded state are
    fit(resumed, run, epochs=4, initial_epoch=3, existing="resume")
    assert rates(resumed) == [0.001, 0.005]
    with pytest.raises(SaverError, match="rates of 2 optimizers, but the model has 3"):
        fit(adversaries(), run, epochs=6, initial_epoch=4, existing="resume")


def test_an_optimizer_that_trains_from_too_low_a_rate_is_an_error(tmp_path):
    model = adversaries(0.001)
    with pytest.raises(SaverError, match=r"swa_lr is 0.002 but the optimizer begins at 0.001"):
        fit(model, tmp_path / "run", swa_lr=0.002)


def test_optimizers_within_a_multi_optimizer_are_scheduled(tmp_path):
    multi = pytest.importorskip("keras.src.optimizers.multi_optimizer")
    optimizers = multi.OptimizerMap(default_optimizer=keras.optimizers.SGD(0.1))
    model = tiny_model()
    model.compile(multi.MultiOptimizer(optimizers), "sparse_categorical_crossentropy")
    model.run_eagerly = True
    fit(model, tmp_path / "run", epochs=3, include_optimizer=True)
    [record] = open_run(tmp_path / "run").records
    assert (record.learning_rate, record.step) == (pytest.approx(0.01), 6)
    assert float(model.optimizer.optimizers[0].learning_rate) == pytest.approx(0.01)


def test_a_model_without_weights(tmp_path):
    model = keras.Sequential([keras.Input((6,)), layers.Flatten()])
    model.compile("sgd", "mse")
    x, _ = tiny_data(16)
    check_equal(model, tmp_path, x, x)


KERNEL = "layers/sequential/layers/dense/vars/0"


def test_an_uncompiled_model_is_saved_by_hand_driven_callbacks(tmp_path):
    inner = keras.Sequential([layers.Dense(3, name="schräge Schicht")], name="内側")
    model = keras.Sequential([keras.Input((6,)), inner])  # names TensorFlow would not train under
    saver = CheckpointSaver(tmp_path / "run", start_epoch=1)
    callbacks = keras.callbacks.CallbackList([saver], model=model, epochs=2)
    callbacks.on_train_begin()
    for epoch in range(2):
        callbacks.on_epoch_begin(epoch)
        inner.layers[0].kernel.assign(np.full((6, 3), epoch))
        callbacks.on_epoch_end(epoch, {"loss": 1.0})
    callbacks.on_train_end()
    for checkpoint in open_run(tmp_path / "run").checkpoints:
        epoch = checkpoint.record.epoch
        assert (read_tensors(checkpoint.path)[KERNEL] == epoch - 1).all()
        assert checkpoint.record.learning_rate is None
