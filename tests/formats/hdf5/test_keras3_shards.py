"""Sharded weights of Keras 3, held against Keras and against what an interruption leaves."""

import json

import h5py
import keras
import numpy as np
import pytest

import ckptavg
from ckptavg.errors import CkptavgError, FormatError
from ckptavg.formats import Structure, open_reader, open_writer
from ckptavg.formats.hdf5 import keras3_shards as sharded_h5
from ckptavg.formats.reader import FLAT
from ckptavg.formats.tensors import TensorInfo
from tests.formats.contract import ReaderContract, WriterContract, copy_into, output_structure
from tests.helpers.files import arrays, read_tensors
from tests.helpers.models import evaluator, randomize, tiny_model

SUFFIX = ".weights.json"
SHARD = 150 / 1024**3
"""Gigabytes that split the variables of single layers of the tiny model."""


def shards(index):
    """The shards that Keras finds for an index."""
    folders = json.loads(index.read_text())["weight_map"].values()
    names = {name for found in folders for name in ([found] if isinstance(found, str) else found)}
    return [index.with_name(name) for name in sorted(names)]


def save(folder, seed, name="ckpt"):
    path = folder / f"{name}{SUFFIX}"
    model = randomize(evaluator(), seed)
    keras.saving.save_weights(model, path, max_shard_size=SHARD)
    return path


class TestShardedWeights(ReaderContract, WriterContract):
    suffix = SUFFIX

    def make(self, folder, seed, name="ckpt"):
        path = save(folder, seed, name)
        assert len(shards(path)) > 3
        return path, {n: v for shard in shards(path) for n, v in arrays(shard).items()}

    def load(self, path):
        model = tiny_model()
        model.load_weights(path)
        copy = path.with_name("loaded.weights.h5")
        keras.saving.save_weights(model, copy, objects_to_skip=[model.optimizer])
        found = arrays(copy)
        copy.unlink()
        return found


def test_variables_of_one_layer_may_lie_in_two_shards(tmp_path):
    path = save(tmp_path, 1)
    folders = json.loads(path.read_text())["weight_map"]
    assert any(isinstance(found, list) for found in folders.values())
    whole = tmp_path / "whole.weights.h5"
    randomize(tiny_model(), 1).save_weights(whole)
    expected, found = read_tensors(whole), read_tensors(path)
    assert set(expected) == set(found)
    assert all(expected[n].tobytes() == found[n].tobytes() for n in expected if "opt" not in n)


@pytest.mark.parametrize("source", [SUFFIX, ".weights.h5"])
def test_an_average_is_split_by_size_and_loaded_by_keras(tmp_path, monkeypatch, source):
    monkeypatch.setattr(sharded_h5, "MAX_SHARD_SIZE", 100)
    paths = []
    for seed in range(3):
        paths.append(tmp_path / f"{seed}{source}")
        model, options = randomize(evaluator(), seed), {}
        if source == SUFFIX:
            options = {"max_shard_size": SHARD}
        keras.saving.save_weights(model, paths[-1], **options)
    out = tmp_path / f"mean{SUFFIX}"
    ckptavg.merge(paths, out)
    for shard in shards(out):
        sizes = [value.nbytes for value in arrays(shard).values()]
        assert sum(sizes) <= 100 or len(sizes) == 1
    loaded = tiny_model()
    loaded.load_weights(out)
    models = [randomize(tiny_model(), seed) for seed in range(3)]
    for found, *values in zip(*(m.get_weights() for m in (loaded, *models)), strict=True):
        assert np.array_equal(found, np.mean(np.float64(values), axis=0).astype("float32"))


def test_checkpoints_of_one_model_are_searched_once(tmp_path, monkeypatch):
    model = tiny_model()
    paths = [tmp_path / f"{name}{SUFFIX}" for name in ("one", "two")]
    for path in paths:
        keras.saving.save_weights(model, path, max_shard_size=SHARD)
    with open_reader(paths[0]) as first:
        skeleton = first.skeleton()
    monkeypatch.delattr(sharded_h5.ShardedH5Reader, "_check_index")
    open_reader(paths[1], like=skeleton).close()
    with pytest.raises(AttributeError, match="_check_index"):
        open_reader(paths[1])


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("former", [False, True])
def test_what_an_interrupted_save_leaves_is_refused(tmp_path, monkeypatch, after, former):
    from keras.src.saving.saving_lib import ShardedH5IOStore as Store

    if former:
        save(tmp_path, 1)
    begun, begin = [], Store._create_new_shard_file

    def killed(self):
        if len(begun) == after:
            raise Killed
        begun.append(begin(self))
        return begun[-1]

    monkeypatch.setattr(Store, "_create_new_shard_file", killed)
    with pytest.raises(Killed):
        save(tmp_path, 2)
    monkeypatch.undo()
    with pytest.raises(FormatError, match="interrupted"):
        open_reader(tmp_path / f"ckpt{SUFFIX}")


def tamper(kind, path):
    index = json.loads(path.read_text())
    folders = index["weight_map"]
    first, *_, last = folders
    found = shards(path)
    if kind == "total":
        index["metadata"]["total_size"] += 4
    elif kind == "no total":
        index["metadata"] = {}
    elif kind == "no map":
        del index["weight_map"]
    elif kind == "empty map":
        index["weight_map"] = {}
    elif kind == "folder not named":
        del folders[last]
    elif kind == "folder not there":
        folders["/layers/other/vars"] = found[0].name
    elif kind == "shard missing":
        found[1].unlink()
    elif kind == "shard not named":
        (path.parent / "ckpt_00099.weights.h5").touch()
    elif kind == "outside":
        folders[first] = f"../{found[0].name}"
    elif kind == "absolute":
        folders[first] = str(found[0])
    elif kind == "no name":
        folders[first] = {"a": 1}
    elif kind == "nested":
        folders[first] = [[found[0].name]]
    elif kind == "twice":
        with h5py.File(found[0]) as one, h5py.File(found[1], "a") as other:
            one.copy("layers/dense/vars/0", other.require_group("layers/dense/vars"), name="0")
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("total", "Saving was interrupted"),
        ("no total", "it declares None"),
        ("no map", "lacks 'weight_map'"),
        ("empty map", "lacks 'weight_map'"),
        ("folder not named", "' in ckpt_00003.weights.h5, which holds it"),
        ("folder not there", "' in ckpt_00000.weights.h5, which lacks it"),
        ("shard missing", "1 of its"),
        ("shard not named", "does not name the shard ckpt_00099.weights.h5"),
        ("outside", "not a file beside it"),
        ("absolute", "not a file beside it"),
        ("no name", "not a file beside it"),
        ("nested", "not a file beside it"),
        ("twice", "lies in two shards"),
    ],
)
def test_an_index_must_agree_with_its_shards(tmp_path, kind, reason):
    path = save(tmp_path, 1)
    tamper(kind, path)
    with pytest.raises(FormatError) as caught:
        open_reader(path)
    assert reason in str(caught.value)


def test_an_output_does_not_mix_with_other_shards(tmp_path):
    path = save(tmp_path, 1)
    other = tmp_path / "o_00077.weights.h5"
    other.touch()
    with pytest.raises(FormatError, match="would be taken for one of its shards"):
        open_writer(tmp_path / f"o{SUFFIX}", output_structure(path))
    other.unlink()
    with open_writer(tmp_path / f"o{SUFFIX}", output_structure(path)) as writer:
        copy_into(writer, path)
        writer.finish()
        writer.commit()


@pytest.mark.parametrize("suffix", [".weights.h5", ".weights.json"])
def test_attributes_that_hdf5_cannot_hold_stay_out(tmp_path, suffix):
    """safetensors files may hold any text about themselves; here, Keras would not look for it."""
    tensors = {"a/vars/0": TensorInfo("a/vars/0", (2,), "float32", None)}
    structure = Structure(tensors, {"": {"about": "a\0b"}}, FLAT)
    with open_writer(tmp_path / f"x{suffix}", structure) as writer:
        writer.finish()
        writer.commit()
    with open_reader(tmp_path / f"x{suffix}") as reader:
        assert reader.structure.groups[""] == {}


def test_tensors_that_must_be_decoded(tmp_path):
    names = [f"m_0000{n}.weights.h5" for n in (0, 1)]
    values = {"a/vars/0": np.arange(64.0), "a/vars/1": np.arange(64.0) * 2}
    for (key, value), name in zip(values.items(), names, strict=True):
        with h5py.File(tmp_path / name, "w") as file:
            file.create_dataset(key, data=value, compression="gzip")
    index = {"metadata": {"total_size": 1024.0}, "weight_map": {"/a/vars": names}}
    path = tmp_path / f"m{SUFFIX}"
    path.write_text(json.dumps(index))
    found = read_tensors(path)
    assert all(np.array_equal(found[key], values[key]) for key in values)


def test_booleans_count_as_keras_counts_them(tmp_path):
    class Flagged(keras.layers.Layer):
        def build(self, _):
            self.add_weight(shape=(3,), dtype="bool", initializer="zeros", trainable=False)

        def call(self, x):
            return x

    model = keras.Sequential([keras.Input((2,)), Flagged(), keras.layers.Dense(1)])
    path = tmp_path / f"b{SUFFIX}"
    keras.saving.save_weights(model, path, max_shard_size=SHARD)
    assert json.loads(path.read_text())["metadata"]["total_size"] == 12 + 3 / 8
    assert len(read_tensors(path)) == 3


def test_any_flipped_byte_of_an_index_gives_tensors_or_an_error(tmp_path):
    path = save(tmp_path, 1)
    data, rng = path.read_bytes(), np.random.default_rng(5)
    expected, outcomes = read_tensors(path), set()
    for place in rng.choice(len(data), 100):
        mutated = bytearray(data)
        mutated[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(mutated)
        try:
            found = read_tensors(path)
        except CkptavgError:
            outcomes.add("refused")
            continue
        outcomes.add("read")  # such as a space that is another white space now
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert "refused" in outcomes
