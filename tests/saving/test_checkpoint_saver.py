"""CheckpointSaver in real trainings."""

import json
import shutil

import h5py
import keras
import numpy as np
import pytest

import ckptavg
from ckptavg import SWA, CheckpointSaver, open_run
from ckptavg.errors import SaverError
from ckptavg.runs.proof import tensor_records
from ckptavg.saving.schedule import Schedule
from tests.helpers.files import leftovers
from tests.helpers.models import compiled_model, tiny_data, tiny_model
from tests.helpers.saving import fit


def test_a_run_holds_checkpoints_records_and_configuration(trained_run):
    run = open_run(trained_run)
    assert [record.epoch for record in run.records] == [3, 4, 5, 6]
    for checkpoint in run.checkpoints:
        record = checkpoint.record
        assert record.size == checkpoint.path.stat().st_size
        assert record.read_tensors() == tensor_records(checkpoint.path)
        assert record.step == 3 * record.epoch  # 72 samples in batches of 32
        assert set(record.metrics) == {"accuracy", "loss", "val_accuracy", "val_loss"}
        assert record.batch_norm.layers == 2
        assert record.batch_norm.statistics == "running"
        assert record.batch_norm.moving == (
            "layers/batch_normalization/vars/2",
            "layers/batch_normalization/vars/3",
            "layers/sequential/layers/batch_normalization/vars/2",
            "layers/sequential/layers/batch_normalization/vars/3",
        )
        assert record.versions["keras"] == keras.__version__
        with h5py.File(checkpoint.path) as file:
            assert "optimizer" not in file
    assert run.records[-1].learning_rate == pytest.approx(0.005)
    assert json.loads((trained_run / "model.json").read_text())["metadata"]["keras_version"]
    assert not leftovers(trained_run)


def test_checkpoints_hold_the_weights_of_their_epoch(tmp_path):
    kept = {}
    model = compiled_model()
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, _: kept.update({epoch + 1: model.get_weights()})
    )
    fit(model, tmp_path / "run", start_epoch=2, swa_freq=2, callbacks=[keep])
    assert [record.epoch for record in open_run(tmp_path / "run").records] == [2, 4, 6]
    for checkpoint in open_run(tmp_path / "run").checkpoints:
        other = tiny_model()
        other.load_weights(checkpoint.path, objects_to_skip=[other.optimizer])
        for one, two in zip(other.get_weights(), kept[checkpoint.record.epoch], strict=True):
            assert one.tobytes() == two.tobytes()


def test_constant_rates_reach_the_optimizer(tmp_path):
    history = fit(
        compiled_model(), tmp_path / "run", 10, start_epoch=8, lr_schedule="constant", swa_lr=0.002
    )
    scheduled = Schedule("constant", 8, swa_lr=0.002).rates(float(np.float32(0.01)))
    expected = [np.float32(scheduled.of_epoch(epoch)) for epoch in range(10)]
    assert np.array_equal(np.float32(history["learning_rate"]), expected)


@pytest.mark.parametrize("known", [True, False])
def test_cyclic_rates_reach_the_optimizer_in_every_batch(tmp_path, known):
    model = compiled_model()
    rates = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda *_, **__: rates.append(float(model.optimizer.learning_rate))
    )
    x, y = tiny_data(40)
    saver = CheckpointSaver(
        tmp_path / "run",
        start_epoch=3,
        swa_freq=2,
        lr_schedule="cyclic",
        swa_lr=0.001,
        swa_lr2=0.003,
    )
    if known:
        model.fit(x, y, batch_size=8, epochs=6, callbacks=[saver, watch], verbose=0)
    else:  # a generator: Keras learns the number of batches in the first epoch
        import tensorflow as tf

        data = tf.data.Dataset.from_generator(
            lambda: (pair for pair in zip(x.reshape(5, 8, 6), y.reshape(5, 8), strict=True)),
            output_signature=(tf.TensorSpec((8, 6), tf.float32), tf.TensorSpec((8,), tf.int64)),
        )
        model.fit(data, epochs=6, callbacks=[saver, watch], verbose=0)
    scheduled = Schedule("cyclic", 3, 2, 0.001, 0.003).rates(float(np.float32(0.01)))
    expected = [scheduled.of_epoch(0)] * 5 + [scheduled.of_epoch(1)] * 5
    expected += [scheduled.of_batch(e, b, 5) for e in range(2, 6) for b in range(5)]
    assert np.array_equal(np.float32(rates), np.float32(expected))
    assert [record.epoch for record in open_run(tmp_path / "run").records] == [4, 6]
    assert open_run(tmp_path / "run").records[0].learning_rate == pytest.approx(0.001)


def test_manual_leaves_the_rate_alone_also_a_schedule_of_the_optimizer(tmp_path):
    model = tiny_model()
    decay = keras.optimizers.schedules.ExponentialDecay(0.1, 6, 0.5)
    model.compile(keras.optimizers.SGD(decay), "sparse_categorical_crossentropy")
    history = fit(model, tmp_path / "run", 3, start_epoch=1)
    assert history["learning_rate"] == pytest.approx([0.05, 0.025, 0.0125])
    rates = [record.learning_rate for record in open_run(tmp_path / "run").records]
    assert rates == pytest.approx([0.05, 0.025, 0.0125])
    with pytest.raises(SaverError, match="schedule of its own"):
        fit(model, tmp_path / "other", 3, start_epoch=2, lr_schedule="constant")


def test_max_to_keep(tmp_path):
    fit(compiled_model(), tmp_path / "run", start_epoch=1, max_to_keep=2)
    assert [record.epoch for record in open_run(tmp_path / "run").records] == [5, 6]
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 4


def test_verbose_says_what_was_saved(tmp_path, capsys):
    fit(compiled_model(), tmp_path / "run", 3, start_epoch=3, verbose=1)
    out = capsys.readouterr().out
    assert "Epoch 3: saving checkpoints" in out
    assert "Epoch 3: saving" in out
    assert "epoch-0003.weights.h5" in out
    fit(compiled_model(), tmp_path / "quiet", 3, start_epoch=3)
    assert capsys.readouterr().out == ""


def test_an_existing_run_is_not_written_over_but_can_go_on(tmp_path):
    model = compiled_model()
    fit(model, tmp_path / "run", 4, start_epoch=2)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(SaverError, match="3 checkpoints of epochs 2-4"):
        fit(tiny_model(), tmp_path / "run", 6, start_epoch=2)
    assert {p: p.read_bytes() for p in before} == before
    fit(model, tmp_path / "run", 6, start_epoch=2, initial_epoch=4, existing="resume")
    assert [record.epoch for record in open_run(tmp_path / "run").records] == [2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start_epoch": 9}, "training ends with epoch 6"),
        (
            {"start_epoch": 5, "swa_freq": 3, "lr_schedule": "cyclic"},
            "first checkpoint is due at the end of epoch 7",
        ),
        ({"start_epoch": 3, "lr_schedule": "constant", "swa_lr": 0.5}, "must not be above"),
        ({"start_epoch": 3, "max_to_keep": 0}, "max_to_keep is 0"),
    ],
)
def test_what_cannot_work_is_said_before_training(tmp_path, arguments, message):
    with pytest.raises(SaverError, match=message):
        fit(compiled_model(), tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_a_directory_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(SaverError, match="cannot use the directory"):
        fit(compiled_model(), tmp_path / "run", start_epoch=1)


class Doubling(keras.Model):
    """Without a constructor that Keras could call from a configuration."""

    def __init__(self, layer):
        super().__init__()
        self.dense = layer
        self.norm = keras.layers.BatchNormalization()

    def call(self, inputs, training=None):
        return self.norm(self.dense(inputs), training=training)

    def get_config(self):
        raise NotImplementedError


def test_a_model_that_cannot_be_serialized_is_saved_without_configuration(tmp_path):
    model = Doubling(keras.layers.Dense(3))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    fit(model, tmp_path / "run", 2, start_epoch=1)
    run = open_run(tmp_path / "run")
    assert run.model_file is None
    assert run.records[0].model is None
    assert run.records[0].batch_norm.layers == 1
    report = ckptavg.merge(run, tmp_path / "o.weights.h5")
    assert report.record.batch_norm.statistics == "stale"


@pytest.mark.parametrize("schedule", ["constant", "cyclic"])
def test_a_training_that_goes_on_keeps_its_rates(tmp_path, schedule):
    arguments = {"start_epoch": 3, "swa_freq": 2, "lr_schedule": schedule, "existing": "resume"}
    fit(compiled_model(), tmp_path / "whole", 8, **arguments)
    parts = compiled_model()
    fit(parts, tmp_path / "parts", 4, **arguments)
    fit(parts, tmp_path / "parts", 6, initial_epoch=4, **arguments)  # the same optimizer
    # A new process begins with a new optimizer.
    fit(compiled_model(), tmp_path / "parts", 8, initial_epoch=6, **arguments)
    rates, expected = (
        [(record.epoch, record.learning_rate) for record in open_run(tmp_path / name).records]
        for name in ("parts", "whole")
    )
    assert rates == expected


def test_a_rate_that_float32_rounds_is_not_refused(tmp_path):
    # 0.01 is a little more than the optimizer's float32 of it.
    fit(compiled_model(), tmp_path / "run", 4, start_epoch=3, lr_schedule="constant", swa_lr=0.01)
    assert open_run(tmp_path / "run").records[0].learning_rate == pytest.approx(0.01)


def test_the_rate_of_several_steps_per_execution_is_that_of_the_last(tmp_path):
    model = tiny_model()
    model.compile("sgd", "sparse_categorical_crossentropy", steps_per_execution=4)
    fit(model, tmp_path / "run", 4, start_epoch=3, swa_freq=2, lr_schedule="cyclic", swa_lr=0.001)
    assert open_run(tmp_path / "run").records[0].learning_rate == pytest.approx(0.001)


def test_the_configuration_is_that_of_the_model_that_was_trained(tmp_path):
    fit(compiled_model(), tmp_path / "run", 2, start_epoch=1)
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.unlink()
    fit(tiny_model(width=7), tmp_path / "run", 2, start_epoch=1)
    ckptavg.merge(tmp_path / "run", tmp_path / "o.keras")
    assert keras.saving.load_model(tmp_path / "o.keras").get_layer("head").kernel.shape == (7, 3)


def test_a_saver_has_all_its_attributes_from_the_start_and_trains_twice(tmp_path, caplog):
    model, (x, y) = tiny_model(), tiny_data()
    swa = SWA(2, directory=tmp_path / "swa", existing="overwrite")
    saver = CheckpointSaver(tmp_path / "run", start_epoch=2, existing="overwrite")
    saver.set_model(model)
    swa.set_model(model)
    before = set(vars(saver)), set(vars(swa))
    caplog.set_level("DEBUG", "ckptavg")
    for _ in range(2):
        model.fit(x, y, epochs=3, verbose=0, callbacks=[saver, swa])
        assert (set(vars(saver)), set(vars(swa))) == before
        assert len(saver.blocked) == 2
        assert [record.epoch for record in open_run(tmp_path / "run").records] == [2, 3]
    last = tmp_path / "run" / "checkpoints" / "epoch-0003.weights.h5"
    assert caplog.messages.count(f"saved {last}") == 2


def test_two_trainings_in_one_directory(tmp_path):
    fit(compiled_model(), tmp_path / "run", 2, start_epoch=1)
    unfinished = tmp_path / "run" / "checkpoints" / ".tmp-ab.weights.h5"
    unfinished.write_bytes(b"of a training that still runs")
    with pytest.raises(SaverError, match="holds 2 checkpoints of epochs 1-2 already") as caught:
        fit(compiled_model(), tmp_path / "run", 2, start_epoch=1)
    assert "which deletes these 2 checkpoints when training begins" in str(caught.value)
    assert unfinished.exists()
    # One that began before the other wrote, where locks do not hold: it writes over nothing.
    first = tmp_path / "run" / "checkpoints" / "epoch-0002.weights.h5"

    class Meanwhile(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):  # noqa: ARG002
            if epoch == 1:
                shutil.copytree(tmp_path / "run", tmp_path / "late", dirs_exist_ok=True)

    with pytest.raises(SaverError, match="does another training use this run"):
        fit(compiled_model(), tmp_path / "late", 2, start_epoch=2, callbacks=[Meanwhile()])
    late = tmp_path / "late" / "checkpoints" / "epoch-0002.weights.h5"
    assert late.read_bytes() == first.read_bytes()


def test_two_savers_on_one_directory(tmp_path):
    second = CheckpointSaver(tmp_path / "run", start_epoch=1, existing="overwrite")
    with pytest.raises(SaverError, match="another training or saver of this process writes to"):
        fit(compiled_model(), tmp_path / "run", 1, start_epoch=1, callbacks=[second])
    fit(compiled_model(), tmp_path / "run", 1, start_epoch=1)  # neither holds the run any more
    assert len(open_run(tmp_path / "run").records) == 1


def test_max_to_keep_does_not_mind_files_that_are_gone(tmp_path):
    gone = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: (tmp_path / "run" / "checkpoints" / "epoch-0001.weights.h5").unlink(
            missing_ok=True
        )
    )
    fit(compiled_model(), tmp_path / "run", 5, start_epoch=1, max_to_keep=3, callbacks=[gone])
    assert [record.epoch for record in open_run(tmp_path / "run").records] == [3, 4, 5]


class Adversarial(keras.Model):
    """Two parts with an optimizer of their own each."""

    def __init__(self):
        super().__init__()
        self.part = keras.layers.Dense(3)
        self.part_optimizer = keras.optimizers.Adam(0.01)

    def call(self, inputs):
        return self.part(inputs)

    def train_step(self, data):
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x) - tf.one_hot(y, 3)) ** 2)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.part_optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


def test_optimizers_that_a_model_adds_are_left_out_too(tmp_path):
    model = Adversarial()
    model.compile()
    fit(model, tmp_path / "run", 3, start_epoch=1)
    report = ckptavg.merge(tmp_path / "run", tmp_path / "o.weights.h5")
    assert {item.tensor.name for item in report.plan.items} == {
        "layers/dense/vars/0",
        "layers/dense/vars/1",
    }
