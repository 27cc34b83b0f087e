"""The files that are mutated: small ones of every format, made by the libraries that define it."""

import contextlib
import json
from pathlib import Path
from unittest import mock

import h5py
import keras
import numpy as np
import safetensors.numpy
import tensorflow as tf
import tf_keras

import ckptavg
from ckptavg.formats import ModelConfig, open_reader
from ckptavg.formats.tensorflow.table import read_table
from ckptavg.runs.proof import tensor_records
from ckptavg.runs.record import Record
from ckptavg.runs.record_files import record_path
from ckptavg.search.score_cache import ScoreCache
from tests.fuzzing.mutations.tables import compressed
from tests.helpers.models import randomize, tiny_data
from tests.helpers.tensorflow_checkpoints import save as save_tensors

NAMES = ("one", "two")
"""Checkpoints of one model: files of the first are changed, the second is there to be averaged."""
SIGMA = 0.1
SCORES = {n: {"loss": n / 7, "accuracy": 1 - n / 9} for n in range(5)}
"""Metrics of a score cache, by the place of the only coefficient that is not 0."""


def make_corpus(folder: Path) -> None:
    """Fills a folder for each of the subjects."""
    keras.utils.set_random_seed(3)
    model = _model()
    for make in (_weights, _sharded, _archive, _whole, _tensorflow):
        for seed, name in enumerate(NAMES):
            randomize(model, seed)
            make(folder, name, model)
    for seed, name in enumerate(NAMES):
        rng = np.random.default_rng(seed)
        for make in (_hdf5, _chunked, _keras2, _safetensors, _sharded_safetensors, _saver):
            make(folder, name, rng)
    for recorded in ("weights.h5", "keras", "safetensors", "chunked.h5"):
        _recorded(folder / recorded, folder / f"recorded {recorded}")
    _compressed(folder / "tensorflow", folder / "tensorflow snappy")
    _managed(folder / "state", model)
    _run(folder / "run", model)
    _journal(folder / "journal", model)
    _scores(folder / "scores")
    _arrays(folder / "arrays")


def _model() -> keras.Model:
    layers = [keras.Input((6,)), keras.layers.Dense(5, name="stem")]
    layers += [keras.layers.BatchNormalization(), keras.layers.Dense(3, name="head")]
    model = keras.Sequential(layers, name="tiny")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"], run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    return model


def _in(folder: Path, subject: str) -> Path:
    (folder / subject).mkdir(exist_ok=True)
    return folder / subject


def _weights(folder: Path, name: str, model: keras.Model) -> None:
    model.save_weights(_in(folder, "weights.h5") / f"{name}.weights.h5")


def _sharded(folder: Path, name: str, model: keras.Model) -> None:
    path = _in(folder, "weights.json") / f"{name}.weights.json"
    keras.saving.save_weights(model, path, max_shard_size=150 / 1024**3)


def _archive(folder: Path, name: str, model: keras.Model) -> None:
    model.save(_in(folder, "keras") / f"{name}.keras")


def _whole(folder: Path, name: str, model: keras.Model) -> None:
    """A whole model, as Keras 3 still writes them for those who ask for `.h5`."""
    with mock.patch("absl.logging.warning"):
        model.save(_in(folder, "model.h5") / f"{name}.h5")


def _tensorflow(folder: Path, name: str, model: keras.Model) -> None:
    saved = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    saved.write(str(_in(folder, "tensorflow") / name))


def _hdf5(folder: Path, name: str, rng: np.random.Generator) -> None:
    """Files of several versions of HDF5, with groups and attributes of every kind."""
    for version in ("earliest", "v108", "v110", "latest"):
        for tracked in (False, True):
            subject = f"hdf5 {version}{' ordered' if tracked else ''}"
            path = _in(folder, subject) / f"{name}.weights.h5"
            with h5py.File(path, "w", libver=(version, "latest"), track_order=tracked) as file:
                for number in range(10):  # more than eight links or attributes are stored densely
                    group = file.create_group(f"layers/dense_{number}/vars", track_order=tracked)
                    group.attrs["name"] = f"dense_{number}"
                    group.create_dataset("0", data=rng.normal(size=(3, 4)).astype("f4"))
                kinds = file.create_group("kinds", track_order=tracked)
                for number in range(10):
                    kinds.attrs[f"text {number}"] = "x" * number
                kinds.attrs["names"] = np.array([b"a", b"bcd"])
                _of_types(file.create_group("types/vars"), rng)


def _of_types(group: h5py.Group, rng: np.random.Generator) -> None:
    half = group.create_dataset("0", data=np.frombuffer(rng.bytes(10), "V2"))
    half.attrs["dtype"] = "bfloat16"
    group.create_dataset("1", data=rng.normal(size=4).astype(">f4"))
    group.create_dataset("2", data=np.array([True, False, True]))
    group.create_dataset("3", data=np.float64(rng.normal()))
    group.create_dataset("4", data=np.zeros((0, 3), "f4"))
    group.create_dataset("5", data=np.arange(5, dtype="i8"))
    compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    compact.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((4,))
    identifier = h5py.h5d.create(group.id, b"6", h5py.h5t.IEEE_F32LE, space, compact)
    h5py.Dataset(identifier)[...] = rng.normal(size=4)


def _chunked(folder: Path, name: str, rng: np.random.Generator) -> None:
    """Chunks under every filter, and every index of chunks that is read."""
    filters = (
        *({"compression": "gzip", "shuffle": True}, {"compression": "lzf"}, {"fletcher32": True}),
        *({}, {"compression": "gzip", "shuffle": True, "fletcher32": True}),
    )
    for version, subject in (("earliest", "chunked.h5"), ("latest", "chunked latest")):
        path = _in(folder, subject) / f"{name}.weights.h5"
        with h5py.File(path, "w", libver=version) as file:
            for number, options in enumerate(filters):
                values = rng.integers(-3, 3, (9, 10)).astype("f4")
                place = f"layers/dense_{number}/vars/0"
                file.create_dataset(place, data=values, chunks=(4, 7), **options)
            file.create_dataset("layers/last/vars/0", data=values, chunks=(9, 10), shuffle=True)


def _keras2(folder: Path, name: str, rng: np.random.Generator) -> None:
    layers = tf_keras.layers
    entry = tf_keras.Input((4,), name="entry")
    normed = layers.BatchNormalization(name="norm")(layers.Dense(3, name="dense")(entry))
    model = tf_keras.Model(entry, layers.Dense(2, name="head")(normed), name="whole")
    model.set_weights([np.abs(rng.normal(size=value.shape)) for value in model.get_weights()])
    model.save_weights(_in(folder, "keras2.h5") / f"{name}.h5")


def _safetensors(folder: Path, name: str, rng: np.random.Generator) -> None:
    safetensors.numpy.save_file(
        _named(rng), _in(folder, "safetensors") / f"{name}.safetensors", {"format": "pt"}
    )


def _sharded_safetensors(folder: Path, name: str, rng: np.random.Generator) -> None:
    place, tensors = _in(folder, "shards.safetensors"), _named(rng)
    weight_map = {}
    for number in range(2):
        shard = f"{name}-{number + 1:05}-of-00002.safetensors"
        held = list(tensors)[number::2]
        safetensors.numpy.save_file({key: tensors[key] for key in held}, place / shard)
        weight_map |= dict.fromkeys(held, shard)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}}
    index["weight_map"] = weight_map
    (place / f"{name}.safetensors.index.json").write_text(json.dumps(index))


def _named(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "encoder.weight": rng.normal(size=(5, 7)).astype("f4"),
        "encoder.bias": rng.normal(size=7).astype("f2"),
        "scale": np.array(rng.normal()),
        "empty": np.zeros((0, 4), "f4"),
        "mask": np.array([True, False]),
        "step": np.array([3], "i8"),
    }


def _saver(folder: Path, name: str, rng: np.random.Generator) -> None:
    """Names of variables without an object graph, as TensorFlow 1 saved them."""
    values = {"net/w": (3, 2), "net/b": (2,), "net/w/Adam": (3, 2), "net/w/Adam_1": (3, 2)}
    tensors = {key: tf.constant(rng.normal(size=shape), "float32") for key, shape in values.items()}
    tensors["global_step"] = tf.constant(7, "int64")
    save_tensors(_in(folder, "tensorflow 1") / name, dict(sorted(tensors.items())))


def _compressed(source: Path, target: Path) -> None:
    """As TensorFlow 1 and TensorFlow Serving write their indexes."""
    target.mkdir()
    for file in source.iterdir():
        content = file.read_bytes()
        if file.suffix == ".index":
            *_, (last, _) = read_table(content)
            content = compressed(content, last)
        (target / file.name).write_bytes(content)


def _recorded(source: Path, target: Path) -> None:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    for path in list(target.iterdir()):
        with open_reader(path) as reader:
            time = "2026-01-01T00:00:00+00:00"
            record = Record(path.name, reader.size, time, {}, metrics={"val_loss": 0.5})
        record.write(record_path(path), tensor_records(path))


def _managed(folder: Path, model: keras.Model) -> None:
    folder.mkdir()
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(model=model), str(folder), 3)
    for seed in range(3):
        randomize(model, seed)
        manager.save()


def _run(folder: Path, model: keras.Model) -> None:
    """A run with tracked averages, a score cache, and an average with its record."""
    folder.mkdir()
    x, y = tiny_data(32)
    saver = ckptavg.CheckpointSaver(
        folder / "run",
        start_epoch=2,
        lr_schedule="constant",
        swa_lr=0.005,
        include_optimizer=True,
        tracked_sigmas=(SIGMA / 2, SIGMA),
        track_freq=4,
    )
    model.fit(x, y, epochs=4, batch_size=16, validation_split=0.5, callbacks=[saver], verbose=0)
    (folder / "run" / ".lock").unlink(missing_ok=True)
    ckptavg.merge(folder / "run", folder / "swa.weights.h5")


def _journal(folder: Path, model: keras.Model) -> None:
    folder.mkdir()
    for seed, name in enumerate(NAMES):
        randomize(model, seed).save_weights(folder / f"{name}.weights.h5")
    archive = folder / "model.keras"
    model.save(archive)
    (folder / "model.json").write_text(ModelConfig.read(archive).to_json())
    archive.unlink()


def open_scores(folder: Path) -> ScoreCache:
    """A cache whose context is always the same."""
    return ScoreCache(folder, [f"checkpoint {n}" for n in SCORES], ["model", "data"])


def one_hot(place: int) -> list[float]:
    """Coefficients of an average of one checkpoint."""
    return [float(n == place) for n in SCORES]


def _scores(folder: Path) -> None:
    cache = open_scores(folder)
    for place, metrics in SCORES.items():
        cache.add(one_hot(place), metrics)


def _arrays(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    with contextlib.suppress(OSError):
        np.savez(folder / "data.npz", x=rng.normal(size=(4, 3)), y=np.arange(4))
