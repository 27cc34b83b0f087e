"""The saver of tf_keras in real trainings of Keras 2 models."""

import subprocess
from functools import cache

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ckptavg
import ckptavg.tf_keras
from ckptavg import open_run
from ckptavg.errors import IntegrityError, ModelError, SaverError
from ckptavg.formats import open_reader
from ckptavg.saving.keras2 import Keras2
from ckptavg.saving.schedule import Schedule
from tests.helpers.files import flip_bit, leftovers, read_tensors
from tests.helpers.models import tiny_data

CheckpointSaver = ckptavg.tf_keras.CheckpointSaver
Adam = tf_keras.optimizers.legacy.Adam  # whose steps trace in half the time


def tiny(optimizer=None, **compiled):
    """Two nested blocks and a head."""
    tf_keras.backend.clear_session()  # names count from here on
    block = tf_keras.Sequential(
        [
            tf_keras.layers.Dense(4, activation="relu"),
            tf_keras.layers.BatchNormalization(),
        ],
        name="block",
    )
    model = tf_keras.Sequential(
        [
            tf_keras.Input((6,)),
            tf_keras.layers.Dense(5, name="stem"),
            tf_keras.layers.BatchNormalization(name="stem_bn"),
            tf_keras.layers.Dropout(0.1),
            block,
            tf_keras.layers.Dense(3, name="head"),
        ]
    )
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or Adam(0.01), loss, metrics=["accuracy"], **compiled)
    return model


def single(optimizer=None, **compiled):
    """One layer, where the optimizer is the subject."""
    model = tf_keras.Sequential([tf_keras.Input((6,)), tf_keras.layers.Dense(3)])
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or Adam(0.01), loss, **compiled)
    return model


@cache
def compiled_once():
    model = tiny()
    model.optimizer._create_all_weights(model.trainable_variables)
    return model, model.get_weights(), model.optimizer.get_weights()


def compiled():
    """The tiny model before its training, always the same one: its steps are traced once."""
    model, weights, state = compiled_once()
    model.set_weights(weights)
    model.optimizer.set_weights(state)
    model.optimizer.learning_rate = 0.01
    return model


def fit(model, directory, epochs=4, callbacks=(), initial_epoch=0, data=None, **arguments):
    x, y = tiny_data() if data is None else data
    saver = CheckpointSaver(directory, **arguments)
    history = model.fit(
        x,
        y,
        epochs=epochs,
        initial_epoch=initial_epoch,
        batch_size=16,
        verbose=0,
        callbacks=[saver, *callbacks],
    )
    return history.history


def texts(attributes):
    """Attributes as tf_keras reads them, which minds no difference between the types of texts."""
    lists = {key: np.atleast_1d(value).tolist() for key, value in attributes.items()}
    return {
        key: [text.decode() if isinstance(text, bytes) else text for text in found]
        for key, found in lists.items()
    }


def described(path):
    """Everything that tf_keras reads of a weights file: its lists and its tensors."""
    found = {}
    with h5py.File(path) as file:
        found["/"] = texts(file.attrs)

        def note(name, item):
            if isinstance(item, h5py.Dataset):
                found[name] = (item.dtype.str, item.shape, item[()].tobytes())
            else:
                found[name] = texts(item.attrs)

        file.visititems(note)
    return found


def test_checkpoints_are_those_of_save_weights(tmp_path):
    keep = tf_keras.callbacks.ModelCheckpoint(
        str(tmp_path / "keras-{epoch}.h5"), save_weights_only=True
    )
    history = fit(compiled(), tmp_path / "run", start_epoch=2, swa_freq=2, callbacks=[keep])
    run = open_run(tmp_path / "run")
    assert [checkpoint.path.name for checkpoint in run.checkpoints] == [
        "epoch-0002.h5",
        "epoch-0004.h5",
    ]
    for checkpoint in run.checkpoints:
        record = checkpoint.record
        assert described(checkpoint.path) == described(tmp_path / f"keras-{record.epoch}.h5")
        assert record.batch_norm.layers == 2
        moving = record.batch_norm.moving
        assert {name.rpartition("/")[2] for name in moving} == {
            "moving_mean:0",
            "moving_variance:0",
        }
        assert len(moving) == 4
        assert record.step == 6 * record.epoch
        assert record.metrics["loss"] == history["loss"][record.epoch - 1]
        assert record.versions["tf_keras"] == tf_keras.__version__
        assert record.model is None
    assert run.model_file is None
    assert not leftovers(tmp_path / "run")


def test_the_average_loads_into_tf_keras_and_is_the_mean(tmp_path):
    model = compiled()
    fit(model, tmp_path / "run", start_epoch=2)
    report = ckptavg.merge(tmp_path / "run", tmp_path / "swa.h5")
    assert report.record.batch_norm.statistics == "stale"
    kept = []
    for checkpoint in open_run(tmp_path / "run").checkpoints:
        model.load_weights(checkpoint.path)
        kept.append(model.get_weights())
    model.load_weights(tmp_path / "swa.h5")
    for tensors, found in zip(zip(*kept, strict=True), model.get_weights(), strict=True):
        assert found.tobytes() == np.mean(tensors, 0, np.float64).astype(found.dtype).tobytes()


class Subclassed(tf_keras.Model):
    """Has no variables before its first batch, and some of its own beside its layers."""

    def __init__(self):
        super().__init__()
        self.dense = tf_keras.layers.Dense(3)
        self.scale = tf.Variable([1.0, 2.0, 3.0], name="scale")
        self.calls = tf.Variable(3, dtype=tf.int64, trainable=False, name="calls")

    def call(self, inputs):
        return self.dense(inputs) * self.scale


def test_a_model_that_its_first_batch_builds(tmp_path):
    model = Subclassed()
    model.compile(Adam(0.01), "sparse_categorical_crossentropy")
    fit(model, tmp_path / "run", 2, start_epoch=2)
    model.save_weights(tmp_path / "keras.h5")
    saved = tmp_path / "run" / "checkpoints" / "epoch-0002.h5"
    assert "top_level_model_weights/scale:0" in read_tensors(saved)
    assert described(saved) == described(tmp_path / "keras.h5")


def test_lists_of_names_that_must_be_split(tmp_path):
    layers = [
        tf_keras.layers.Dense(1, name=f"{number:04d}-{'n' * 1100}", use_bias=False)
        for number in range(60)
    ]
    model = tf_keras.Sequential([tf_keras.Input((1,)), *layers])
    model.save_weights(tmp_path / "keras.h5")
    placement = Keras2().place(model, False)
    assert set(placement.structure.groups[""]) >= {"layer_names0", "layer_names1"}
    expected = described(tmp_path / "keras.h5")
    groups = placement.structure.groups
    for folder in ("", *(layer.name for layer in layers)):
        assert texts(groups[folder]) == expected[folder or "/"]


@pytest.mark.parametrize("kind", ["new", "legacy", "scaled", "scaled legacy"])
def test_constant_rates_reach_every_kind_of_optimizer(tmp_path, kind):
    make = tf_keras.optimizers.legacy.SGD if "legacy" in kind else tf_keras.optimizers.SGD
    optimizer = make(0.01)
    if "scaled" in kind:
        optimizer = tf_keras.mixed_precision.LossScaleOptimizer(optimizer)
    history = fit(
        single(optimizer),
        tmp_path / "run",
        10,
        start_epoch=8,
        lr_schedule="constant",
        swa_lr=0.002,
    )
    scheduled = Schedule("constant", 8, swa_lr=0.002).rates(float(np.float32(0.01)))
    expected = [np.float32(scheduled.of_epoch(epoch)) for epoch in range(10)]
    assert np.array_equal(np.float32(history["learning_rate"]), expected)
    records = open_run(tmp_path / "run").records
    assert [record.step for record in records] == [48, 54, 60]
    assert {record.learning_rate for record in records} == {float(np.float32(0.002))}


@pytest.mark.parametrize("steps", [1, 2])
def test_cyclic_rates_batch_by_batch(tmp_path, steps):
    model = single(steps_per_execution=steps)
    rates = []
    watch = tf_keras.callbacks.LambdaCallback(
        on_batch_end=lambda *_, **__: rates.append(float(model.optimizer.learning_rate.numpy()))
    )
    fit(
        model,
        tmp_path / "run",
        6,
        callbacks=[watch],
        data=[part[:80] for part in tiny_data()],  # 5 batches
        start_epoch=3,
        swa_freq=2,
        lr_schedule="cyclic",
        swa_lr=0.001,
        swa_lr2=0.003,
    )
    scheduled = Schedule("cyclic", 3, 2, 0.001, 0.003).rates(float(np.float32(0.01)))
    lasts = [0, 1, 2, 3, 4] if steps == 1 else [1, 3, 4]
    expected = [scheduled.of_epoch(e) for e in range(2) for _ in lasts]
    expected += [scheduled.of_batch(e, b, 5) for e in range(2, 6) for b in lasts]
    assert np.array_equal(np.float32(rates), np.float32(expected))
    assert [record.epoch for record in open_run(tmp_path / "run").records] == [4, 6]


def test_steps_of_an_epoch_that_is_long(tmp_path):
    kept = {}
    model = compiled()
    keep = tf_keras.callbacks.LambdaCallback(
        on_batch_end=lambda *_, **__: kept.update(
            {int(model.optimizer.iterations): model.get_weights()}
        )
    )
    fit(model, tmp_path / "run", 2, save_freq=5, callbacks=[keep])
    run = open_run(tmp_path / "run")
    assert [record.step for record in run.records] == [5, 10]
    for checkpoint in run.checkpoints:
        model.load_weights(checkpoint.path)
        for one, two in zip(model.get_weights(), kept[checkpoint.record.step], strict=True):
            assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("kind", ["new", "legacy", "legacy function"])
def test_a_schedule_of_the_optimizer(tmp_path, kind):
    rate = tf_keras.optimizers.schedules.ExponentialDecay(0.1, 6, 0.5)
    if kind == "legacy function":
        rate = lambda: 0.1  # noqa: E731
    make = tf_keras.optimizers.legacy.SGD if "legacy" in kind else tf_keras.optimizers.SGD
    with pytest.raises(SaverError, match="schedule of its own"):
        fit(single(make(rate)), tmp_path / "other", start_epoch=2, lr_schedule="constant")
    assert not (tmp_path / "other").exists()
    history = fit(single(make(rate)), tmp_path / "run", 2, start_epoch=1)
    rates = [record.learning_rate for record in open_run(tmp_path / "run").records]
    assert rates == history["learning_rate"]
    if kind == "legacy":  # these tell the rate of the step to come, the new ones that of the last
        assert rates == pytest.approx([0.05, 0.025])


def test_float16_weights_load_and_bring_half_the_bytes(tmp_path):
    model = compiled()
    fit(model, tmp_path / "run", 2, start_epoch=2, save_dtype="float16")
    expected = [weight.astype("float16") for weight in model.get_weights()]
    model.load_weights(tmp_path / "run" / "checkpoints" / "epoch-0002.h5")
    for one, two in zip(model.get_weights(), expected, strict=True):
        assert np.array_equal(one, two.astype("float32"))


@pytest.mark.parametrize(
    "arguments",
    [{"include_optimizer": True}, {"max_shard_size": 1}, {"save_dtype": "bfloat16"}],
)
def test_what_weights_files_of_tf_keras_cannot_hold(tmp_path, arguments):
    with pytest.raises(SaverError, match=next(iter(arguments))):
        CheckpointSaver(tmp_path / "run", start_epoch=1, **arguments)


def test_models_that_tf_keras_could_not_save_either(tmp_path):
    parts = [tf_keras.Sequential([tf_keras.layers.Dense(3, name="same")]) for _ in range(2)]
    block = tf_keras.Sequential(parts, name="block")
    model = tf_keras.Sequential([tf_keras.Input((6,)), block])
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(SaverError, match="two weights of the model 'sequential"):
        fit(model, tmp_path / "run", start_epoch=1)
    with pytest.raises(ValueError, match="name already exists"):
        model.save_weights(tmp_path / "keras.h5")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_resume_loads_the_weights(tmp_path):
    model = compiled()
    fit(model, tmp_path / "run", 2, start_epoch=1)
    weights = model.get_weights()
    model.set_weights([weight * 0 for weight in weights])
    assert ckptavg.resume(tmp_path / "run", model) == 2
    assert all(map(np.array_equal, weights, model.get_weights()))


def test_texts_are_refused_before_training(tmp_path):
    texts = tf_keras.layers.TextVectorization(name="texts")
    texts.adapt(["a b"])
    model = tf_keras.Sequential(
        [tf_keras.Input((1,), dtype="string"), texts, tf_keras.layers.Embedding(4, 2)]
    )
    model.compile("sgd", "mse", run_eagerly=True)
    saver = CheckpointSaver(tmp_path / "run", start_epoch=1)
    with pytest.raises(SaverError, match=r"the layer 'texts' .* holds a .*apply the layer"):
        model.fit(np.array([["a b"]]), np.zeros((1, 2, 2)), verbose=0, callbacks=[saver])
    assert not saver.blocked  # nothing was trained


def test_a_run_goes_on_and_is_not_written_over(tmp_path):
    model = compiled()
    fit(model, tmp_path / "run", 2, start_epoch=1)
    with pytest.raises(SaverError, match="2 checkpoints of epochs 1-2"):
        fit(tiny(), tmp_path / "run", start_epoch=1)
    fit(model, tmp_path / "run", 4, start_epoch=1, initial_epoch=2, existing="resume")
    records = open_run(tmp_path / "run").records
    assert [(record.epoch, record.step) for record in records] == [
        (1, 6),
        (2, 12),
        (3, 18),
        (4, 24),
    ]


def test_loading_refuses_what_is_damaged_or_does_not_fit(tmp_path):
    model = compiled()
    fit(model, tmp_path / "run", 1, start_epoch=1)
    saved = tmp_path / "run" / "checkpoints" / "epoch-0001.h5"
    expected = model.get_weights()
    model.set_weights([0 * weight for weight in expected])
    Keras2().load(model, saved)
    for one, two in zip(model.get_weights(), expected, strict=True):
        assert one.tobytes() == two.tobytes()
    other = tf_keras.Sequential([tf_keras.Input((6,)), tf_keras.layers.Dense(5)])
    with pytest.raises(ModelError, match="does not fit the model 'sequential"):
        Keras2().load(other, saved)
    with open_reader(saved) as reader:
        extent = reader.structure.tensors["head/head/kernel:0"].extent
    flip_bit(saved, extent.offset)
    with pytest.raises(IntegrityError):
        Keras2().load(model, saved)


def test_batches_are_watched_only_where_they_must_be(tmp_path):
    def hooks(**arguments):
        saver = CheckpointSaver(tmp_path, **arguments)
        assert saver._supports_tf_logs
        return saver._implements_train_batch_hooks()

    assert not hooks(start_epoch=2, lr_schedule="constant")
    assert hooks(start_epoch=2, lr_schedule="cyclic", swa_freq=2)
    assert hooks(save_freq=10)


def test_batch_norm_of_every_kind_counts():
    kinds = [
        tf_keras.layers.BatchNormalization(),
        tf_keras.layers.BatchNormalization(synchronized=True),
        tf_keras.layers.experimental.SyncBatchNormalization(),
        tf_keras.layers.TimeDistributed(tf_keras.layers.BatchNormalization()),
        tf_keras.layers.LayerNormalization(),
    ]
    model = tf_keras.Sequential([tf_keras.Input((3, 2)), tf_keras.Sequential(kinds), kinds[0]])
    assert len(Keras2().batch_norm_layers(model)) == 4


def test_ckptavg_offers_it_and_imports_it_only_when_asked(warm):
    code = (
        "import sys, ckptavg\n"
        "assert 'tf_keras' not in sys.modules and 'ckptavg.tf_keras' not in sys.modules\n"
        "print(ckptavg.tf_keras.CheckpointSaver.__module__)\n"
        "import tf_keras\n"
        "assert issubclass(ckptavg.tf_keras.CheckpointSaver, tf_keras.callbacks.Callback)\n"
    )
    result = subprocess.run(
        [*warm, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "ckptavg.tf_keras"
