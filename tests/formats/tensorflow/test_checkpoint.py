"""TensorFlow checkpoints, held against TensorFlow and both generations of Keras."""

from functools import cache
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ckptavg
from ckptavg.errors import FormatError, IntegrityError, RunError
from ckptavg.formats import open_reader, open_writer
from ckptavg.formats.reader import FLAT, KERAS, TENSORFLOW, Structure
from ckptavg.formats.tensorflow.checkpoint import TensorFlowWriter
from ckptavg.formats.tensors import STRING, Extent, TensorInfo
from tests.formats.contract import ReaderContract, WriterContract, copy_into, output_structure
from tests.helpers.files import read_tensors
from tests.helpers.tensorflow_checkpoints import GRAPH, fill, keras_3_model, save

V1 = tf.compat.v1


@cache
def keras_2_model(legacy: bool = False) -> tf_keras.Model:
    model = tf_keras.Sequential(
        [
            tf_keras.Input((6,)),
            tf_keras.layers.Dense(5),
            tf_keras.layers.BatchNormalization(),
            tf_keras.layers.Dense(3),
        ]
    )
    optimizers = tf_keras.optimizers.legacy if legacy else tf_keras.optimizers
    model.compile(optimizers.Adam(0.01), "mse")
    model.train_on_batch(np.ones((2, 6)), np.ones((2, 3)))
    return model


def values(model) -> list[bytes]:
    return [np.asarray(weight.numpy()).tobytes() for weight in model.weights]


def by_tensorflow(path: Path) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(str(path).removesuffix(".index"))
    names = reader.get_variable_to_shape_map()
    return {name: np.asarray(reader.get_tensor(name)) for name in names if name != GRAPH}


def of_model(path: Path, model) -> dict[str, np.ndarray]:
    """What TensorFlow finds in a checkpoint of random weights that is one of the model's."""
    weights = values(model)
    found = {n: v for n, v in by_tensorflow(path).items() if v.tobytes() in weights}
    assert len(found) == len(weights)
    return found


def copy(path: Path, target: Path) -> Path:
    """The checkpoint without optimizer state, written by us."""
    target.parent.mkdir(exist_ok=True)
    with open_writer(target, output_structure(path)) as writer:
        copy_into(writer, path)
        writer.finish()
        writer.commit()
    return target.with_name(target.name.removesuffix(".index"))


class Both(ReaderContract, WriterContract):
    suffix = ".index"

    def load(self, path):
        return by_tensorflow(path)


class TestKeras3Checkpoint(Both):
    def make(self, folder, seed, name="ckpt"):
        model = fill(keras_3_model(), seed)
        path = folder / name
        tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(str(path))
        return path, of_model(path, model)


class TestKeras2Weights(Both):
    suffix = ""  # named by the prefix, as in Keras 2 itself

    def make(self, folder, seed, name="ckpt"):
        model = fill(keras_2_model(), seed)
        model.save_weights(str(folder / name), save_format="tf")
        return folder / name, of_model(folder / name, model)

    def open_writer(self, path, structure, **options):
        return TensorFlowWriter(path, structure, **options)


class TestSaverOfTensorFlow1(Both):
    def make(self, folder, seed, name="ckpt"):
        rng = np.random.default_rng(seed)
        expected = {
            "net/w": rng.normal(size=(3, 2)).astype("float32"),
            "net/b": rng.normal(size=2).astype("float32"),
            "net/w/ExponentialMovingAverage": rng.normal(size=(3, 2)).astype("float32"),
            "global_step": np.int64(seed),
        }
        with tf.Graph().as_default(), V1.Session() as session:
            variables = {
                name: V1.get_variable(name, initializer=value) for name, value in expected.items()
            }
            w, b = variables["net/w"], variables["net/b"]
            loss = tf.reduce_sum(tf.square(w)) + tf.reduce_sum(tf.square(b))
            with V1.variable_scope("training"):
                for optimizer in (
                    V1.train.AdamOptimizer(),
                    V1.train.AdamOptimizer(),
                    V1.train.MomentumOptimizer(0.1, 0.9),
                    V1.train.RMSPropOptimizer(0.1),
                    V1.train.AdagradOptimizer(0.1),
                    V1.train.AdadeltaOptimizer(0.1),
                    V1.train.FtrlOptimizer(0.1),
                ):
                    optimizer.apply_gradients(optimizer.compute_gradients(loss, [w, b]))
            session.run(V1.global_variables_initializer())
            V1.train.Saver().save(session, str(folder / name), write_meta_graph=False)
        assert len(by_tensorflow(folder / name)) > 20
        return folder / f"{name}.index", expected


def test_the_trap_trainable_variables_stored_under_the_optimizers_name(tmp_path):
    path, expected = TestKeras3Checkpoint().make(tmp_path, 1)
    assert sum("optimizer" in name for name in expected) == 10
    with open_reader(path) as reader:
        assert set(reader.structure.model_tensors) == set(expected)
        assert len(reader.structure.optimizer) == 10 + 2  # a velocity of each, step and rate


def checkpoints_of(model, names: tuple[str, ...]) -> tf.train.Checkpoint:
    objects = {"model": model, "optimizer": model.optimizer, "generator_opt": model.optimizer}
    return tf.train.Checkpoint(**{name: objects[name] for name in names})


@pytest.mark.parametrize("saved", [("model",), ("model", "optimizer"), ("model", "generator_opt")])
@pytest.mark.parametrize("kind", ["keras 3", "keras 2", "keras 2 legacy"])
def test_an_average_restores_into_the_objects_of_its_checkpoints(tmp_path, kind, saved):
    model = keras_3_model() if kind == "keras 3" else keras_2_model(legacy="legacy" in kind)
    path = checkpoints_of(fill(model, 1), saved).save(str(tmp_path / "c"))
    expected = values(model)
    prefix = str(copy(Path(path), tmp_path / "out" / "avg.index"))
    kept = by_tensorflow(Path(prefix))
    assert len(kept) == len(expected) + 1
    assert kept["save_counter/.ATTRIBUTES/VARIABLE_VALUE"] == 1
    for names in (saved, ("model",)):
        fill(model, 2)
        status = checkpoints_of(model, names).restore(prefix)
        status.expect_partial()
        assert values(model) == expected
        if names == ("model",) and kind == "keras 2":
            status.assert_nontrivial_match()


def test_keras_2_loads_an_average_as_weights(tmp_path):
    path, _ = TestKeras2Weights().make(tmp_path, 3)
    model = keras_2_model()
    expected = values(model)
    prefix = copy(path, tmp_path / "out" / "avg.index")
    fill(model, 4).load_weights(str(prefix)).expect_partial()
    assert values(model) == expected


def test_nothing_in_the_graph_that_goes_out_names_what_is_not_kept(tmp_path):
    from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

    model = fill(keras_2_model(legacy=True), 1)
    path = Path(tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(tmp_path / "c"))

    def graph(prefix: Path) -> TrackableObjectGraph:
        stored = tf.train.load_checkpoint(str(prefix)).get_tensor(GRAPH)
        return TrackableObjectGraph.FromString(stored)

    before, after = graph(path), graph(copy(path, tmp_path / "out" / "avg.index"))
    named = {a.checkpoint_key for node in after.nodes for a in node.attributes}
    assert named == set(by_tensorflow(tmp_path / "out" / "avg"))
    assert sum(len(node.slot_variables) for node in before.nodes) == 12
    assert sum(len(node.slot_variables) for node in after.nodes) == 0
    for old, new in zip(before.nodes, after.nodes, strict=True):
        assert list(old.children) == list(new.children)
        if old.attributes == new.attributes and not old.slot_variables:
            assert old == new


@pytest.mark.parametrize("as_root", [False, True])
def test_an_optimizer_alone_is_refused(tmp_path, as_root):
    optimizer = keras_3_model().optimizer
    checkpoint = (
        tf.train.Checkpoint(optimizer) if as_root else tf.train.Checkpoint(optimizer=optimizer)
    )
    path = checkpoint.save(str(tmp_path / "c"))
    with pytest.raises(FormatError, match="holds no model"):
        open_reader(Path(path))


FLOAT_8 = [f"float8_{kind}" for kind in ("e4m3fn", "e5m2", "e4m3fnuz", "e4m3b11fnuz", "e5m2fnuz")]
TYPES = {
    **{
        name: tf.cast([[1, 0, 3]], name)
        for name in ("float64", "float32", "float16", "bfloat16", "bool", "int8", "int16", "int32")
    },
    **{name: tf.cast([1, 2, 3], name) for name in ("int64", "uint8", "uint16", "uint32", "uint64")},
    **{
        name: tf.constant(np.array([1, 0.5], name))
        for name in FLOAT_8
        if hasattr(tf.dtypes.experimental, name)
    },
    "scalar": tf.constant(2.5),
    "empty": tf.zeros((0, 3)),
    "texts": tf.constant([["one", ""], ["x" * 300, "ü"]]),
    "many texts": tf.constant([f"{n}" * (n % 200) for n in range(3000)]),
    "a text": tf.constant("a"),
    "no text": tf.zeros((0,), tf.string),
}


def test_every_type_is_read_and_written_as_tensorflow_does(tmp_path):
    path = save(tmp_path / "types", TYPES)
    again = copy(path, tmp_path / "out" / "types.index")
    for prefix in (path, again):
        found = by_tensorflow(prefix)  # which checks every checksum
        with open_reader(prefix) as reader:
            checksums = reader.checksums
            assert sorted(reader.structure.tensors) == sorted(checksums) == sorted(TYPES)
            for name, tensor in reader.structure.tensors.items():
                data = bytearray(tensor.nbytes)
                reader.read_into(tensor, 0, memoryview(data))
                assert google_crc32c.value(bytes(data)) == checksums[name]
                value = np.asarray(TYPES[name].numpy())
                assert found[name].tolist() == value.tolist()
                assert tensor.shape == value.shape
                if tensor.dtype == STRING:
                    assert name.endswith(("text", "texts"))
                else:
                    assert (tensor.dtype, data) == (value.dtype.name, value.tobytes())


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (tf.constant(1j), "'x' has the type complex128"),
        (tf.cast([1, 2], tf.qint8), "'x' has the type qint8"),
        (tf.cast([1, 2], tf.quint16), "'x' has the type quint16"),
        (tf.cast([1, 2], tf.dtypes.experimental.int4), "'x' has the type int4"),
    ],
)
def test_types_without_a_mean_or_bytes_of_their_own_are_refused(tmp_path, value, reason):
    with pytest.raises(FormatError, match=reason):
        open_reader(save(tmp_path / "c", {"x": value}))


def test_the_state_of_a_dataset_is_refused(tmp_path):
    iterator = iter(tf.data.Dataset.range(3))
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "c"))
    with pytest.raises(FormatError, match="has the type variant"):
        open_reader(Path(path))


def test_partitioned_variables_are_refused(tmp_path):
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "c"),
        tensor_names=["x"],
        shape_and_slices=["4 3 0,2:-"],
        tensors=[tf.ones((2, 3))],
    )
    with pytest.raises(FormatError, match="partitioned variable"):
        open_reader(tmp_path / "c")


def test_indexes_of_several_blocks_and_data_in_several_shards(tmp_path):
    rng = np.random.default_rng(3)
    tensors = {rng.bytes(60).hex(): tf.constant([n, n]) for n in range(2400)}
    halves = [dict(list(tensors.items())[half::2]) for half in range(2)]
    parts = [str(save(tmp_path / f"part{n}", half)) for n, half in enumerate(halves)]
    path = tmp_path / "whole"
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=parts, destination_prefix=str(path), delete_old_dirs=False
    )
    assert (tmp_path / "whole.index").stat().st_size > 256 * 1024
    with open_reader(path) as reader:
        assert [file.name for file in reader.files[1:]] == [
            "whole.data-00000-of-00002",
            "whole.data-00001-of-00002",
        ]
        assert {tensor.extent.file for tensor in reader.structure.tensors.values()} == {1, 2}
    again = copy(path, tmp_path / "out" / "whole.index")
    found, expected = read_tensors(again), {n: t.numpy() for n, t in tensors.items()}
    loaded = by_tensorflow(again)
    assert sorted(found) == sorted(expected) == sorted(loaded)
    assert all(np.array_equal(found[n], v) for n, v in expected.items())
    assert all(np.array_equal(loaded[n], v) for n, v in expected.items())
    (tmp_path / "whole.data-00001-of-00002").unlink()
    with pytest.raises(FormatError, match=r"whole.data-00001-of-00002: No such file"):
        open_reader(path)


@pytest.mark.parametrize("naming", [KERAS, FLAT])
def test_names_of_other_formats_are_not_written(tmp_path, naming):
    tensors = {"layers/dense/vars/0": TensorInfo("x", (1,), "float32", Extent(0, 4))}
    with pytest.raises(
        FormatError, match=r"named as in .*would not be found there\. Name an output"
    ):
        open_writer(tmp_path / "c.index", Structure(tensors, {}, naming))
    assert list(tmp_path.iterdir()) == []


def test_the_files_of_an_output_are_the_same_by_either_name(tmp_path):
    structure = Structure({}, {}, TENSORFLOW)
    expected = [tmp_path / "a.b.data-00000-of-00001", tmp_path / "a.b.index"]
    for name in ("a.b", "a.b.index"):
        assert TensorFlowWriter.output_files(tmp_path / name, structure) == expected


def test_checkpoints_are_found_whatever_their_prefix_ends_in(tmp_path):
    for name in ("best.ckpt", "model.keras", "m.weights.h5"):
        save(tmp_path / name, {"x": tf.constant([1.0])})
        for path in (tmp_path / name, tmp_path / f"{name}.index"):
            assert list(read_tensors(path)) == ["x"]


def test_a_saved_model_without_variables_holds_no_tensors(tmp_path):
    module = tf.Module()
    signature = [tf.TensorSpec([None], tf.float32)]
    module.double = tf.function(lambda x: 2 * x, input_signature=signature)
    tf.saved_model.save(module, tmp_path / "saved")
    with pytest.raises(FormatError, match="it holds no tensors, only objects without variables"):
        open_reader(tmp_path / "saved" / "variables" / "variables")
    with pytest.raises(RunError, match=r"is a SavedModel: name its variables, .*/variables$"):
        ckptavg.inspect(tmp_path / "saved")


def test_a_record_proves_the_object_graph(tmp_path):
    for seed in (1, 2):
        tf.train.Checkpoint(model=fill(keras_3_model(), seed)).write(str(tmp_path / f"c-{seed}"))
    out = tmp_path / "mean"
    report = ckptavg.merge([tmp_path / "c-1", tmp_path / "c-2"], out, non_float="last")
    assert list(report.record.parts) == ["object_graph"]
    assert [found.average for found in ckptavg.verify(out)] == ["reproduced"]
    record = report.record.path
    digest = report.record.parts["object_graph"]
    record.write_text(record.read_text().replace(digest, digest[::-1]))
    with pytest.raises(IntegrityError, match="its 'object_graph' is not what was saved"):
        ckptavg.verify(out)
