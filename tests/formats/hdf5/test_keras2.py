"""Files of Keras 2, tf_keras and `model.save("x.h5")` of Keras 3, against these libraries."""

import json
import shutil
from functools import cache

import h5py
import keras
import numpy as np
import pytest
import tf_keras

import ckptavg
from ckptavg.errors import CkptavgError, FormatError
from ckptavg.formats import open_reader, open_writer
from ckptavg.formats.reader import KERAS
from tests.formats.contract import ReaderContract, WriterContract, output_structure
from tests.helpers.files import read_tensors
from tests.helpers.models import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")


def build(library, seed):
    """A model with a shared layer, a nested model, BatchNorm and a layer without weights."""
    layers = library.layers
    entry = library.Input((4,), name="entry")
    shared = layers.Dense(4, name="shared")
    inner = library.Input((4,), name="inner_entry")
    normed = layers.BatchNormalization(name="norm")(layers.Dense(3, name="inner_dense")(inner))
    block = library.Model(inner, normed, name="block")
    hidden = layers.Dropout(0.1, name="drop")(block(shared(shared(entry))))
    model = library.Model(entry, layers.Dense(2, name="head")(hidden), name="whole")
    model.compile(library.optimizers.Adam(name="adam"), library.losses.MeanSquaredError())
    model.optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(seed)
    model.set_weights([np.abs(rng.normal(size=value.shape)) for value in model.get_weights()])
    return model


@cache
def built(library):
    return build(library, 0)


def rebuilt(library, seed):
    """As `build`, but always the same model."""
    model, rng = built(library), np.random.default_rng(seed)
    model.set_weights([np.abs(rng.normal(size=value.shape)) for value in model.get_weights()])
    return model


def arrays(path):
    """What h5py finds in the file, without optimizer state."""
    found = {}

    def visit(name, entry):
        if isinstance(entry, h5py.Dataset) and not name.startswith("optimizer_weights/"):
            found[name] = entry[()]

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


class WeightsOnly(ReaderContract, WriterContract):
    def make(self, folder, seed, name="ckpt"):
        path = folder / f"{name}{self.suffix}"
        saved = folder / "saved.h5"
        rebuilt(tf_keras, seed).save_weights(saved)
        saved.rename(path)
        return path, arrays(path)

    def load(self, path):
        renamed = shutil.copy(path, path.with_name("renamed.h5"))
        model = rebuilt(tf_keras, 0)
        model.load_weights(renamed)
        model.save_weights(renamed)
        found = arrays(renamed)
        renamed.unlink()
        return found


class TestWeightsOfTfKeras(WeightsOnly):
    suffix = ".h5"


class TestHdf5OfTfKeras(WeightsOnly):
    suffix = ".hdf5"


class TestLegacyContentNamedAsTheNew(ReaderContract):
    suffix = ".weights.h5"
    make = WeightsOnly.make


class WholeModel(ReaderContract, WriterContract):
    suffix = ".h5"

    def make(self, folder, seed, name="ckpt"):
        path = folder / f"{name}.h5"
        rebuilt(self.library, seed).save(path)
        with h5py.File(path) as file:
            assert "optimizer_weights" in file
        return path, arrays(path)

    def load(self, path):
        copy = path.with_name("loaded.h5")
        self.library.models.load_model(path).save(copy)
        found = arrays(copy)
        copy.unlink()
        return found


class TestWholeModelOfTfKeras(WholeModel):
    library = tf_keras


class TestWholeModelOfKeras3(WholeModel):
    library = keras


@pytest.mark.parametrize("library", [tf_keras, keras])
def test_an_average_of_whole_models_is_loaded_compiled_and_trains_on(tmp_path, library):
    paths = [tmp_path / f"{seed}.h5" for seed in range(3)]
    models = [build(library, seed) for seed in range(3)]
    x, y = np.ones((2, 4), "float32"), np.ones((2, 2), "float32")
    for model, path in zip(models, paths, strict=True):
        model.optimizer.iterations.assign(7)
        model.save(path)
    ckptavg.merge(paths, tmp_path / "mean.h5")
    mean = library.models.load_model(tmp_path / "mean.h5")
    weights = zip(*(model.get_weights() for model in models), strict=True)
    for found, values in zip(mean.get_weights(), weights, strict=True):
        assert np.array_equal(found, np.mean(np.float64(values), axis=0).astype("float32"))
    assert float(mean.optimizer.iterations) == 0  # a new optimizer, configured as the old one
    assert type(mean.optimizer).__name__ == "Adam"
    mean.train_on_batch(x, y)
    with h5py.File(paths[-1]) as source, h5py.File(tmp_path / "mean.h5") as output:
        assert "optimizer_weights" not in output
        for folder in ("/", "model_weights", "model_weights/block"):
            assert texts(source[folder]) == texts(output[folder])


def texts(group):
    """The attributes, each as a list of its texts: fixed and variable lengths mean the same."""
    flat = {key: np.ravel(value) for key, value in group.attrs.items()}
    return {k: [n.decode() if isinstance(n, bytes) else n for n in v] for k, v in flat.items()}


def test_lists_of_names_that_were_split(tmp_path):
    # 60 names of 1,100 bytes are more than the 64,512 that one attribute may have.
    layers = [tf_keras.layers.Rescaling(1.0, name=f"{number:01100}") for number in range(60)]
    entry = tf_keras.Input((1,), name="entry")
    model = tf_keras.Sequential([entry, *layers, tf_keras.layers.Dense(1, name="head")])

    def fill(number):
        model.set_weights([np.full_like(value, number) for value in model.get_weights()])

    for number in (1, 3):
        fill(number)
        model.save_weights(tmp_path / f"{number}.h5")
    with h5py.File(tmp_path / "1.h5") as file:
        assert "layer_names" not in file.attrs
        assert "layer_names1" in file.attrs
    ckptavg.merge([tmp_path / "1.h5", tmp_path / "3.h5"], tmp_path / "mean.h5")
    fill(0)
    model.load_weights(tmp_path / "mean.h5")
    assert all((value == 2).all() for value in model.get_weights())


def test_weights_of_the_model_itself(tmp_path):
    class Scaled(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.scale = self.add_weight(name="scale", shape=(3,), initializer="ones")
            self.dense = tf_keras.layers.Dense(2, name="dense")

        def call(self, x):
            return self.dense(x * self.scale)

    model = Scaled()
    model(np.ones((1, 3)))
    model.save_weights(tmp_path / "s.h5")
    found = read_tensors(tmp_path / "s.h5")
    assert np.array_equal(found["top_level_model_weights/scale:0"], np.ones(3))
    assert len(found) == 3


@pytest.mark.parametrize("chosen", [str.encode, str])
def test_lists_of_either_kind_of_text_are_read(tmp_path, chosen):
    # Fixed lengths by old versions of h5py, variable ones by newer ones.
    names = {"layer_names": ["a", "bé"], "a": ["k:0"], "bé": ["k:0", "é:0"]}
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs["layer_names"] = (
            np.array([name.encode() for name in names["layer_names"]])
            if chosen is str.encode
            else np.array(names["layer_names"], h5py.string_dtype())
        )
        for layer in ("a", "bé"):
            kind = h5py.string_dtype() if chosen is str else None
            listed = names[layer] if chosen is str else [n.encode() for n in names[layer]]
            file.create_group(layer).attrs["weight_names"] = np.array(listed, kind)
            for name in names[layer]:
                file[f"{layer}/{name}"] = np.ones(2, "float32")
    assert set(read_tensors(tmp_path / "m.h5")) == {"a/k:0", "bé/k:0", "bé/é:0"}


def test_the_new_layout_keeps_being_read_under_any_name(tmp_path):
    build(tf_keras, 1).save_weights(tmp_path / "n.weights.h5")
    (tmp_path / "n.weights.h5").rename(tmp_path / "n.h5")
    with open_reader(tmp_path / "n.h5") as reader:
        assert reader.structure.naming == KERAS
        structure = reader.structure
    with pytest.raises(FormatError, match=r"Name an output that ends in \.weights\.h5"):
        open_writer(tmp_path / "o.h5", structure)
    with h5py.File(tmp_path / "old.weights.h5", "w") as file:  # as TensorFlow 2.13 wrote it
        file["_layer_checkpoint_dependencies/dense/vars/0"] = np.ones(2, "float32")
    with open_reader(tmp_path / "old.weights.h5") as reader:
        assert reader.structure.naming == KERAS


def test_legacy_names_are_not_written_into_new_files(tmp_path):
    build(tf_keras, 1).save_weights(tmp_path / "m.h5")
    for suffix in (".weights.json", ".weights.h5"):
        with pytest.raises(FormatError, match=r"would not be found there.* ends in \.h5 or \.hdf5"):
            open_writer(tmp_path / f"o{suffix}", output_structure(tmp_path / "m.h5"))


@pytest.mark.parametrize("source", ["m.h5", "m.weights.h5"])
def test_no_command_writes_what_no_keras_loads(tmp_path, source):
    build(tf_keras, 1).save_weights(tmp_path / "m.h5")
    (tmp_path / "m.h5").rename(tmp_path / source)
    other = shutil.copy(tmp_path / source, tmp_path / f"other-{source}")
    output, message = tmp_path / "o.weights.h5", r"ends in \.h5 or \.hdf5"
    with pytest.raises(FormatError, match=message):
        ckptavg.merge([tmp_path / source, other], output)
    with pytest.raises(FormatError, match=message):
        ckptavg.convert(tmp_path / source, output)
    assert len(list(tmp_path.iterdir())) == 2
    ckptavg.convert(tmp_path / source, tmp_path / "o.hdf5")
    with h5py.File(tmp_path / "o.hdf5") as file:
        assert "layer_names" in file.attrs


def damage(kind, file):
    weights = file["model_weights"]
    if kind == "weight":
        del weights["head/head/bias:0"]
    elif kind == "stowaway":
        weights["head/other"] = np.ones(2)
    elif kind == "stowaway outside":
        file["other"] = np.ones(2)
    elif kind == "optimizer":
        del file["optimizer_weights/iteration:0"]
    elif kind == "layer":
        del weights["drop"]
    elif kind == "layers":
        del weights.attrs["layer_names"]
    elif kind == "list":
        del weights["head"].attrs["weight_names"]
    elif kind == "list of numbers":
        weights["head"].attrs["weight_names"] = [1, 2]
    elif kind == "twice":
        weights["head"].attrs["weight_names"] = [b"head/kernel:0"] * 2
    elif kind == "config":
        del file.attrs["model_config"]
    elif kind == "numeric config":
        file.attrs["training_config"] = 3
    elif kind == "up":
        weights["head"].attrs["weight_names"] = [b"../shared/shared/kernel:0", b"head/bias:0"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("weight", "'model_weights/head/head/bias:0' is listed but missing"),
        ("stowaway", "'model_weights/head/other' is not listed"),
        ("stowaway outside", "'other' is not listed"),
        ("optimizer", "'optimizer_weights/iteration:0' is listed but missing"),
        ("layer", "the layer 'model_weights/drop' is listed but missing"),
        ("layers", "'model_weights' lacks the list 'layer_names'"),
        ("list", "'model_weights/head' lacks the list 'weight_names'"),
        ("list of numbers", "the attribute 'weight_names' of 'model_weights/head' is damaged"),
        ("twice", "'model_weights/head/head/kernel:0' is listed twice"),
        ("config", "it has 'model_weights' but not the attribute 'model_config'"),
        ("numeric config", "the attribute 'training_config' of '/' is damaged"),
        ("up", "'model_weights/head/../shared/shared/kernel:0' is listed but missing"),
    ],
)
def test_lists_and_tensors_must_agree(tmp_path, kind, reason):
    path = tmp_path / "m.h5"
    build(tf_keras, 1).save(path)
    with h5py.File(path, "a") as file:
        damage(kind, file)
    with pytest.raises(FormatError) as caught:
        open_reader(path)
    assert reason in str(caught.value)


def test_a_configuration_is_carried_and_never_run(tmp_path):
    path = tmp_path / "m.h5"
    build(tf_keras, 1).save(path)
    hostile = json.dumps({"class_name": "Lambda", "config": {"function": "raise SystemExit"}})
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = hostile
    ckptavg.merge([path], tmp_path / "o.h5")
    with h5py.File(tmp_path / "o.h5") as file:
        assert file.attrs["model_config"] == hostile


def test_any_flipped_byte_gives_tensors_or_an_error(tmp_path):
    original = tmp_path / "o.h5"
    model = tf_keras.Sequential([tf_keras.Input((2,)), tf_keras.layers.Dense(2, name="d")])
    model.compile("sgd", "mse")
    model.save(original)
    data, rng = bytearray(original.read_bytes()), np.random.default_rng(5)
    places = [place for place, byte in enumerate(data) if byte]
    path, outcomes = tmp_path / "m.h5", set()
    for place in rng.choice(places, 300, replace=False):
        mutated = data.copy()
        mutated[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(mutated)
        try:
            read_tensors(path)
            outcomes.add("read")
        except CkptavgError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_models_with_names_of_either_kind_do_not_mix(tmp_path):
    build(tf_keras, 1).save_weights(tmp_path / "a.h5")
    tiny_model().save_weights(tmp_path / "b.weights.h5")
    with pytest.raises(CkptavgError, match="same model"):
        ckptavg.merge([tmp_path / "a.h5", tmp_path / "b.weights.h5"], tmp_path / "o.h5")
