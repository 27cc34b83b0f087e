"""Options of CheckpointSaver: what is written, what is kept, when it is saved."""

import keras
import ml_dtypes
import numpy as np
import pytest

import ckptavg
from ckptavg import CheckpointSaver, open_run
from ckptavg.errors import CkptavgWarning, SaverError
from tests.helpers.files import read_tensors
from tests.helpers.models import compiled_model, tiny_data, tiny_model
from tests.helpers.saving import fit


@pytest.fixture
def model():
    return compiled_model()


def records(directory):
    return open_run(directory).records


def test_training_goes_on_to_the_bit_from_a_file_with_its_optimizer(tmp_path):
    x, y = tiny_data()
    model = tiny_model(batch_norm=False)
    saver = CheckpointSaver(tmp_path / "run", start_epoch=2, include_optimizer=True)
    model.fit(x, y, epochs=4, shuffle=False, verbose=0, callbacks=[saver])
    other = tiny_model(batch_norm=False)
    other.optimizer.build(other.trainable_variables)
    other.load_weights(open_run(tmp_path / "run").checkpoints[0].path)
    other.fit(x, y, initial_epoch=2, epochs=4, shuffle=False, verbose=0)
    for one, two in zip(
        [*model.variables, *model.optimizer.variables],
        [*other.variables, *other.optimizer.variables],
        strict=True,
    ):
        assert one.numpy().tobytes() == two.numpy().tobytes()
    ckptavg.merge(tmp_path / "run", tmp_path / "o.weights.h5")
    assert not any("optimizer" in name for name in read_tensors(tmp_path / "o.weights.h5"))


@pytest.mark.parametrize("include_optimizer", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_of_another_dtype_are_rounded_once(model, tmp_path, dtype, include_optimizer):
    fit(
        model, tmp_path / "run", 1, start_epoch=1, save_dtype=dtype,
        include_optimizer=include_optimizer,
    )  # fmt: skip
    path = open_run(tmp_path / "run").checkpoints[0].path
    model.save_weights(tmp_path / "keras.weights.h5")
    stored, whole = read_tensors(path), read_tensors(tmp_path / "keras.weights.h5")
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    for name, values in stored.items():
        expected = whole[name]
        if not name.startswith("optimizer"):
            expected = expected.astype(kind)
        assert values.dtype == expected.dtype
        assert values.tobytes() == expected.tobytes()
    assert len(stored) == len(whole) if include_optimizer else True
    other = tiny_model()
    other.optimizer.build(other.trainable_variables)
    skipped = None if include_optimizer else [other.optimizer]
    keras.saving.load_weights(other, path, objects_to_skip=skipped)
    for one, two in zip(other.get_weights(), model.get_weights(), strict=True):
        assert np.array_equal(one, two.astype(kind).astype("float32"))


def test_shards_load_merge_and_are_pruned(model, tmp_path):
    fit(model, tmp_path / "run", 5, start_epoch=1, max_shard_size=2e-7, max_to_keep=2)
    run = open_run(tmp_path / "run")
    assert [record.epoch for record in run.records] == [4, 5]
    assert not run.uncommitted
    names = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert {name[:10] for name in names} == {"epoch-0004", "epoch-0005"}
    assert sum(name.endswith(".weights.h5") for name in names) >= 4
    other = tiny_model()
    keras.saving.load_weights(other, run.checkpoints[1].path, objects_to_skip=[other.optimizer])
    for one, two in zip(other.get_weights(), model.get_weights(), strict=True):
        assert one.tobytes() == two.tobytes()
    ckptavg.merge(tmp_path / "run", tmp_path / "o.weights.h5")
    assert len(read_tensors(tmp_path / "o.weights.h5")) == len(model.weights)
    fit(
        model, tmp_path / "run", 6, start_epoch=1, initial_epoch=3, existing="resume",
        max_shard_size=2e-7,
    )  # fmt: skip
    assert [record.epoch for record in records(tmp_path / "run")] == [4, 5, 6]


def test_metrics_of_validation_are_in_the_record_and_the_best_are_kept(model, tmp_path):
    x, y = tiny_data()
    saver = CheckpointSaver(tmp_path / "run", start_epoch=1, keep_best=("val_loss", 2))
    history = model.fit(x, y, epochs=6, validation_split=0.25, verbose=0, callbacks=[saver]).history
    losses = history["val_loss"]
    for record in records(tmp_path / "run"):
        assert record.metrics == {
            name: values[record.epoch - 1]
            for name, values in history.items()
            if name != "learning_rate"
        }
    best = sorted(sorted(range(1, 7), key=lambda epoch: losses[epoch - 1])[:2])
    assert [record.epoch for record in records(tmp_path / "run")] == sorted({*best, 6})


@pytest.mark.parametrize(
    ("keep_best", "message"),
    [
        (("auc", 2), r"uses 'auc', but Keras logged only: accuracy, loss"),
        (("val_loss",), r"must be \(monitor, count\)"),
        (("loss", 0), "must be an integer >= 1"),
        (("loss", 2, "least"), "mode"),
        (("fancy", 2), "direction|mode"),
    ],
)
def test_keep_best_that_cannot_work(model, tmp_path, keep_best, message):
    with pytest.raises(SaverError, match=message):
        fit(model, tmp_path / "run", 2, start_epoch=1, keep_best=keep_best)


def test_epochs_without_validation_are_none_of_the_best(model, tmp_path):
    x, y = tiny_data()
    validation = {"validation_data": (x, y), "validation_freq": 3}
    saver = CheckpointSaver(tmp_path / "run", start_epoch=1, keep_best=("val_loss", 1))
    kept = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, _: seen.append([r.epoch for r in _saved(saver, epoch)])
    )
    seen = []
    with pytest.warns(CkptavgWarning, match="'val_loss', which no epoch has had yet") as told:
        history = model.fit(
            x, y, epochs=8, verbose=0, callbacks=[saver, kept], **validation
        ).history
    assert sum("which no epoch has had yet" in str(warning.message) for warning in told) == 1
    best = 3 if history["val_loss"][0] <= history["val_loss"][1] else 6
    assert seen == [[], [1], [1, 2], [3], [3, 4], [3, 5], sorted({best, 6}), sorted({best, 7})]
    assert [record.epoch for record in records(tmp_path / "run")] == sorted({best, 8})


def _saved(saver, epoch):
    saver._prepared.queue.drain()
    return records(saver.directory) if epoch else ()


def test_without_validation_nothing_is_removed_for_its_metric(model, tmp_path):
    with pytest.warns(CkptavgWarning, match="only max_to_keep removes checkpoints"):
        fit(model, tmp_path / "all", 4, start_epoch=1, keep_best=("val_loss", 1))
    assert [record.epoch for record in records(tmp_path / "all")] == [1, 2, 3, 4]
    with pytest.warns(CkptavgWarning, match="only max_to_keep removes checkpoints"):
        fit(
            model, tmp_path / "two", 4, start_epoch=1, keep_best=("val_loss", 1), max_to_keep=2
        )  # fmt: skip
    assert [record.epoch for record in records(tmp_path / "two")] == [3, 4]


def test_a_metric_of_validation_that_cannot_come_is_an_error(model, tmp_path):
    x, y = tiny_data()
    saver = CheckpointSaver(tmp_path / "run", start_epoch=1, keep_best=("val_auc", 1))
    with pytest.raises(SaverError, match="only: accuracy, loss, val_accuracy, val_loss"):
        model.fit(x, y, validation_split=0.25, verbose=0, callbacks=[saver])
    with pytest.raises(SaverError, match="uses 'val_loss', but Keras logged only"):
        fit(model, tmp_path / "steps", 1, save_freq=2, keep_best=("val_loss", 1))


def test_a_metric_of_some_epochs_is_known_when_training_goes_on(model, tmp_path):
    class Score(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch % 3 == 0:
                logs["score"] = float(epoch)

    x, y = tiny_data()
    for first, last in ((0, 4), (4, 6)):
        saver = CheckpointSaver(
            tmp_path / "run", start_epoch=2, existing="resume", keep_best=("score", 1, "max")
        )
        model.fit(
            x, y, initial_epoch=first, epochs=last, verbose=0, callbacks=[Score(), saver]
        )  # fmt: skip
    assert [record.epoch for record in records(tmp_path / "run")] == [4, 6]


@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_steps_are_those_of_the_optimizer(tmp_path, steps_per_execution):
    """6 batches an epoch: an execution of 4 ends with the epoch, not beyond it."""
    model = tiny_model()
    model.compile("sgd", "sparse_categorical_crossentropy", steps_per_execution=steps_per_execution)
    fit(model, tmp_path / "run", 3, save_freq=4, start_step=6)
    expected = [6, 10, 14, 18] if steps_per_execution == 1 else [6, 10, 16, 18]
    assert [record.step for record in records(tmp_path / "run")] == expected
    assert [record.file for record in records(tmp_path / "run")] == [
        f"step-{step:08d}.weights.h5" for step in expected
    ]


@pytest.mark.parametrize("rate", [None, "fast", float("nan"), -1.0])
def test_a_function_that_gives_no_rate(model, tmp_path, rate):
    with pytest.raises(SaverError, match=r"lr_schedule returned .* for epoch 1, but must return"):
        fit(model, tmp_path / "run", 2, start_epoch=1, lr_schedule=lambda *_: rate)


@pytest.mark.parametrize("kind", ["constant", "cyclic"])
def test_an_optimizer_with_a_schedule_of_its_own_is_refused_before_training(tmp_path, kind):
    model = tiny_model()
    decay = keras.optimizers.schedules.ExponentialDecay(0.1, 6, 0.5)
    model.compile(keras.optimizers.SGD(decay), "sparse_categorical_crossentropy")
    with pytest.raises(SaverError, match="schedule of its own"):
        fit(model, tmp_path / "run", 4, start_epoch=2, swa_freq=2, lr_schedule=kind)
    assert model.optimizer.iterations == 0
    assert not (tmp_path / "run").exists()
