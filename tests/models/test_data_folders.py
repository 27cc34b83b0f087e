"""Inputs from folders, their batch size, and what is made of them before the model sees them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from ckptavg import update_batch_norm
from ckptavg.errors import DataError, SpecError
from ckptavg.models.batches import PreparedInputs, count_batches
from ckptavg.models.specs import as_inputs


def image_model() -> keras.Model:
    return keras.Sequential([keras.Input((6, 4, 3)), keras.layers.BatchNormalization()])


@pytest.fixture
def images(tmp_path):
    """Seven images of two classes, each of one colour."""
    colours = []
    for n in range(7):
        folder = tmp_path / "images" / ("cat" if n % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        colours.append((n * 30, 255 - n * 30, 7))
        picture = np.full((9, 8, 3), colours[-1], np.uint8)
        keras.utils.save_img(folder / f"{n}.png", picture, scale=False)
    return tmp_path / "images", np.float64(colours)


def test_images_by_class_are_resized_and_all_seen(images):
    folder, colours = images
    model = image_model()
    data = as_inputs(folder, model=model, batch_size=3)
    report = update_batch_norm(model, data)
    assert (report.samples, report.batches) == (7, 3)
    mean, variance = (np.float64(v) for v in model.layers[0].weights[2:])
    np.testing.assert_allclose(mean, colours.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance, colours.var(0), rtol=1e-6)


def test_preprocess_gets_the_inputs_of_every_batch(images, tmp_path):
    folder, colours = images
    (tmp_path / "pre.py").write_text("def halve(x): return x / 2\ndef bad(x): return x / 0 + {}\n")
    model = image_model()
    spec = f"{tmp_path}/pre.py:halve"
    update_batch_norm(model, as_inputs(folder, model=model, preprocess=spec), bn_mode="population")
    mean = model.layers[0].moving_mean
    np.testing.assert_allclose(mean, colours.mean(0) / 2, rtol=1e-6)
    with pytest.raises(DataError, match="batch 0 of the data cannot be read"):
        update_batch_norm(
            model, as_inputs(folder, model=model, preprocess=f"{tmp_path}/pre.py:bad")
        )


def test_a_model_that_says_no_size_cannot_take_images(images):
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.BatchNormalization()])
    with pytest.raises(SpecError, match="need a model with one input of fixed height, width"):
        as_inputs(images[0], model=model)


def test_a_folder_of_nothing_is_refused(tmp_path):
    with pytest.raises(SpecError, match="holds neither images"):
        as_inputs(tmp_path, model=image_model())


@pytest.mark.parametrize("saved_in_batches", [False, True])
def test_saved_data_sets(tmp_path, saved_in_batches):
    x = np.random.default_rng(0).normal(3, 1, (50, 6)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, np.arange(50)))
    (data.batch(8) if saved_in_batches else data).save(str(tmp_path / "saved"))
    for batch_size, batches in ((None, 7 if saved_in_batches else 2), (20, 3)):
        model = keras.Sequential([keras.Input((6,)), keras.layers.BatchNormalization()])
        loaded = as_inputs(tmp_path / "saved", model=model, batch_size=batch_size)
        report = update_batch_norm(model, loaded)
        assert (report.samples, report.batches) == (50, batches)
        np.testing.assert_allclose(model.layers[0].moving_mean, x.mean(0), rtol=1e-5)


def test_records_through_a_callable(tmp_path, monkeypatch):
    x = np.random.default_rng(0).normal(3, 1, (10, 6)).astype("float32")
    with tf.io.TFRecordWriter(str(tmp_path / "x.tfrecord")) as writer:
        for row in x:
            writer.write(row.tobytes())
    (tmp_path / "records.py").write_text(
        "import tensorflow as tf\n"
        "def data():\n"
        "    parse = lambda r: tf.ensure_shape(tf.io.decode_raw(r, tf.float32), (6,))\n"
        "    return tf.data.TFRecordDataset('x.tfrecord').map(parse).batch(4)\n"
    )
    monkeypatch.chdir(tmp_path)
    model = keras.Sequential([keras.Input((6,)), keras.layers.BatchNormalization()])
    assert update_batch_norm(model, as_inputs("records.py:data")).samples == 10
    np.testing.assert_allclose(model.layers[0].moving_mean, x.mean(0), rtol=1e-5)


def test_batch_sizes_of_arrays_and_dictionaries():
    x = {"a": np.zeros((50, 3), "f4"), "b": np.ones((50, 2), "f4")}
    prepared = PreparedInputs(x, 20)
    assert [len(batch["a"]) for (batch,) in prepared] == [20, 20, 10]
    assert [sorted(batch) for (batch,) in prepared] == [["a", "b"]] * 3
    assert (count_batches(prepared, None), count_batches(prepared, 2)) == (3, 2)
    halved = PreparedInputs(x, preprocess=lambda batch: {n: v / 2 for n, v in batch.items()})
    assert [(len(batch["b"]), batch["b"].max()) for (batch,) in halved] == [(32, 0.5), (18, 0.5)]
    endless = PreparedInputs(tf.data.Dataset.from_tensors(np.ones((4, 6))).repeat(), 8)
    model = keras.Sequential([keras.Input((6,)), keras.layers.BatchNormalization()])
    assert update_batch_norm(model, endless, steps=3).samples == 24
    with pytest.raises(DataError, match="repeats without end"):
        update_batch_norm(model, endless)


def test_several_inputs_in_a_tuple_stay_together():
    inputs = keras.Input((3,)), keras.Input((3,))
    norm = keras.layers.BatchNormalization()
    model = keras.Model(inputs, norm(keras.layers.Subtract()(inputs)))
    one, two = np.random.default_rng(0).normal(0, 1, (2, 50, 3)).astype("f4")
    data = PreparedInputs(((one, two), np.zeros(50)), 20)
    assert update_batch_norm(model, data).samples == 50
    np.testing.assert_allclose(norm.moving_mean, (one - two).mean(0), rtol=1e-5, atol=1e-6)


def test_a_batch_size_for_what_comes_in_batches_is_refused():
    with pytest.raises(DataError, match="a list comes in batches of its own"):
        PreparedInputs([np.ones((2, 3))], 4)
    with pytest.raises(DataError, match="batch_size is 0, but must be an integer >= 1"):
        PreparedInputs(np.ones((2, 3)), 0)


def test_a_py_dataset_is_preprocessed_to_its_end():
    x = np.random.default_rng(0).normal(3, 1, (50, 6)).astype("float32")

    class Rows(keras.utils.PyDataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            assert index < 5, "no such batch"
            return x[10 * index : 10 * index + 10]

    model = keras.Sequential([keras.Input((6,)), keras.layers.BatchNormalization()])
    assert update_batch_norm(model, Rows(), preprocess=lambda rows: 2 * rows).batches == 5
    np.testing.assert_allclose(model.layers[0].moving_mean, 2 * x.mean(0), rtol=1e-5)
