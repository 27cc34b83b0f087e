"""`.safetensors` files and shards, held against the format's own library, and hostile ones."""

import json
import os
import random
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from ckptavg.errors import FormatError
from ckptavg.formats import Structure, open_reader, open_writer
from ckptavg.formats.reader import FLAT, KERAS, LEGACY, TENSORFLOW
from ckptavg.formats.safetensors import checkpoint as our
from ckptavg.formats.safetensors.file import CODES
from ckptavg.formats.tensors import Extent, TensorInfo
from tests.formats.contract import ReaderContract, WriterContract, assert_same, copy_into
from tests.helpers.files import read_tensors
from tests.helpers.models import randomize

INDEX = ".safetensors.index.json"
DTYPES = {code: np.dtype(dtype) for dtype, code in CODES.items()}


def arrays(seed: int) -> dict[str, np.ndarray]:
    """Tensors of every type, with odd shapes and names."""
    rng = np.random.default_rng(seed)
    found = {
        f"of {dtype}": rng.integers(0, 2, (3, n)).astype(dtype) for n, dtype in enumerate(CODES, 1)
    }
    return found | {
        "encoder.layer.0.weight": rng.normal(size=(5, 7)).astype("float32"),
        "scalar": np.array(rng.normal(), "float64"),
        "empty": np.zeros((0, 4), "float32"),
        'naïve "name"\\\n/..': rng.normal(size=3).astype("float16"),
        "": rng.normal(size=2).astype("bfloat16"),
    }


def by_library(path: Path) -> dict[str, np.ndarray]:
    """What the library finds in one file; its numpy interface lacks the float8 types."""
    return {
        name: np.frombuffer(found["data"], DTYPES[found["dtype"]]).reshape(found["shape"])
        for name, found in safetensors.deserialize(path.read_bytes())
    }


def write(source: Path, target: Path) -> None:
    with open_reader(source) as reader:
        structure = reader.structure.with_tensors(reader.structure.model_tensors)
    with open_writer(target, structure) as writer:
        copy_into(writer, source)
        writer.finish()
        writer.commit()


def structure_of(path: Path) -> Structure:
    with open_reader(path) as reader:
        return reader.structure


class TestSafetensors(ReaderContract, WriterContract):
    suffix = ".safetensors"

    def make(self, folder, seed, name="ckpt"):
        path = folder / f"{name}{self.suffix}"
        save_file(arrays(seed), path, {"format": "np", "naïve": "\x01"})
        return path, arrays(seed)

    def load(self, path):
        return by_library(path)


class TestShardedSafetensors(ReaderContract, WriterContract):
    suffix = INDEX

    def make(self, folder, seed, name="ckpt"):
        expected = arrays(seed)
        shards = [list(expected)[start::3] for start in range(3)]
        weight_map = {}
        for number, names in enumerate(shards, 1):
            file = f"model-{seed}-{number:05}-of-00003.safetensors"
            save_file({n: expected[n] for n in names}, folder / file, {"format": "np"})
            weight_map |= dict.fromkeys(names, file)
        size = sum(value.nbytes for value in expected.values())
        path = folder / f"{name}{self.suffix}"
        path.write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}))
        return path, expected

    def load(self, path):
        index = json.loads(path.read_text())
        found = {}
        for shard in sorted(set(index["weight_map"].values())):
            for name, value in by_library(path.with_name(shard)).items():
                assert index["weight_map"][name] == shard
                found[name] = value
        assert sorted(found) == sorted(index["weight_map"])
        assert index["metadata"]["total_size"] == sum(value.nbytes for value in found.values())
        return found


def test_our_files_are_those_of_the_library_byte_for_byte(tmp_path):
    save_file(arrays(1), tmp_path / "their.safetensors", {"naïve": '\x01\x1f\x7f"\\/\n'})
    write(tmp_path / "their.safetensors", tmp_path / "our.safetensors")
    assert (tmp_path / "our.safetensors").read_bytes() == (
        tmp_path / "their.safetensors"
    ).read_bytes()


def test_the_librarys_own_functions_read_our_files(tmp_path):
    expected = {n: v for n, v in arrays(2).items() if "float8" not in v.dtype.name}
    save_file(expected, tmp_path / "their.safetensors", {"format": "pt"})
    write(tmp_path / "their.safetensors", tmp_path / "our.safetensors")
    assert_same(load_file(tmp_path / "our.safetensors"), expected)
    with safetensors.safe_open(tmp_path / "our.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert_same({name: file.get_tensor(name) for name in file.keys()}, expected)  # noqa: SIM118


def test_files_of_any_order_are_read(tmp_path):
    # Early versions of the library sorted by name alone.
    entries = {
        "b": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "a": {"dtype": "F64", "shape": [], "data_offsets": [3, 11]},
    }
    path = hostile(tmp_path, dict(reversed(entries.items())), bytes([1, 2, 3]) + bytes(8))
    assert list(read_tensors(path)) == ["b", "a"]
    assert_same(read_tensors(path), by_library(path))


# Hostile headers


def hostile(folder: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "h.safetensors"
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4), **more) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"", "its header is not JSON"),
        (b"\xff", "its header is not JSON: 'utf-8' codec"),
        (b"[]", "its header is not a JSON object"),
        (b"{} {}", "its header is not JSON: Extra data"),
        (b'{"x":' + b"[" * 100_000, "its header is nested too deeply"),
        (b'{"x":' * 100_000, "its header is nested too deeply"),
        (b'{"a":1,"b":2,"a":3}', "the key 'a' occurs twice"),
        (b'{"x":{"dtype":"F32","dtype":"F32"}}', "the key 'dtype' occurs twice"),
        (b'{"x":NaN}', "NaN is not a number"),
        (b'{"x":1e999}', "1e999 is not a number"),
        (b'{"x":' + b"9" * 5000 + b"}", "its header is not JSON: Exceeds the limit"),
        (b'{"\\ud800":' + json.dumps(entry()).encode() + b"}", "surrogates not allowed"),
        ({"__metadata__": None}, "its __metadata__ is not an object of strings"),
        ({"__metadata__": {"a": 1}}, "its __metadata__ is not an object of strings"),
        ({"x": []}, "'x' is not described by dtype, shape and data_offsets"),
        ({"x": {"dtype": "F32", "shape": [1]}}, "'x' is not described by"),
        ({"x": entry(strides=[4])}, "'x' is not described by"),
        ({"x": entry(["F32"])}, "'x' has the type ['F32']; those that can be read are BOOL"),
        ({"x": entry("F4", [8])}, "'x' has the type 'F4'"),
        ({"x": entry("F6_E2M3")}, "'x' has the type 'F6_E2M3'"),
        ({"x": entry("F8_E8M0", [4])}, "'x' has the type 'F8_E8M0'"),
        ({"x": entry("C64", [1], [0, 8])}, "'x' has the type 'C64'"),
        ({"x": entry("float32")}, "'x' has the type 'float32'"),
        ({"x": entry(shape=4)}, "'x' has the shape 4, which no array has"),
        ({"x": entry(shape=[-1])}, "'x' has the shape [-1], which no array has"),
        ({"x": entry(shape=[1.0])}, "'x' has the shape [1.0], which no array has"),
        ({"x": entry(shape=[True])}, "'x' has the shape [True], which no array has"),
        ({"x": entry(shape=[1] * 33)}, "which no array has"),
        ({"x": entry(dtype="F32", shape=[2**61, 0], offsets=[0, 0])}, "which no array has"),
        ({"x": entry(shape=[2**62, 2])}, "which no array has"),
        ({"x": entry(shape=[10**4000, 0], offsets=[0, 0])}, "which no array has"),
        ({"x": entry(shape=[2**32] * 32)}, "which no array has"),
        ({"x": entry(offsets=[0])}, "'x' has the offsets [0], which are not a range"),
        ({"x": entry(offsets=[0, 2, 4])}, "which are not a range"),
        ({"x": entry(offsets=[4, 0])}, "which are not a range"),
        ({"x": entry(offsets=[-4, 0])}, "which are not a range"),
        ({"x": entry(offsets={"0": 4})}, "which are not a range"),
        ({"x": entry(shape=[2])}, "'x' has the offsets [0, 4], but its shape takes 8 bytes"),
        ({"x": entry(shape=[2**40])}, "but its shape takes 4,398,046,511,104 bytes"),
        ({"x": entry(offsets=[4, 8])}, "'x' follows a gap"),
        ({"x": entry(), "y": entry(offsets=[2, 6])}, "'y' overlaps another tensor"),
        ({"x": entry(), "y": entry()}, "overlaps another tensor"),
        ({"x": entry(), "y": entry(shape=[0], offsets=[10**30] * 2)}, "'y' follows a gap"),
        ({"x": entry(), "y": entry(offsets=[4, 8])}, "its tensors end at byte"),
        ({}, "its tensors end at byte"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_hostile_headers_are_refused_by_name(tmp_path, header, reason):
    path = hostile(tmp_path, header, bytes(4))
    with pytest.raises(FormatError) as caught:
        open_reader(path)
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("length", [0, 1, 39, 100_000_001, 2**63, 2**64 - 1])
def test_lengths_of_headers_that_are_not_true_are_refused(tmp_path, length):
    path = hostile(tmp_path, {"x": entry()}, bytes(4), length)
    with pytest.raises(FormatError, match=r"not an intact|not intact"):
        open_reader(path)
    with path.open("r+b") as file:
        file.truncate(2**28)
    with pytest.raises(FormatError, match=r"not an intact|not intact|100,000,000 that the format"):
        open_reader(path)


def mutations(data: bytes, count: int, seed: int, end: int):
    """Copies with a byte changed, a piece cut out or one put in, before the byte `end`."""
    rng = random.Random(seed)
    for _ in range(count):
        start = rng.randrange(end)
        cut = rng.choice((0, 1, 1, 1, 2, 9))
        new = rng.choice((b"", rng.randbytes(1), rng.choice(b'0123456789[]{},:"FIU\\').to_bytes()))
        yield data[:start] + new + data[start + cut :]


def test_what_is_read_from_a_mutated_file_is_what_the_library_reads(tmp_path):
    original = tmp_path / "o.safetensors"
    save_file({n: arrays(3)[n] for n in ("scalar", "of float32", "empty")}, original, {"a": "b"})
    data, path = original.read_bytes(), tmp_path / "m.safetensors"
    outcomes = set()
    for mutated in mutations(data, 1500, 1, 8 + int.from_bytes(data[:8], "little")):
        path.write_bytes(mutated)
        try:
            assert_same(read_tensors(path), by_library(path))
            outcomes.add("read")
        except FormatError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


# Shards


@pytest.fixture
def sharded(tmp_path) -> Path:
    return TestShardedSafetensors().make(tmp_path, 1)[0]


def test_a_mutated_index_gives_the_same_tensors_or_an_error(sharded):
    data = sharded.read_bytes()
    outcomes = set()
    for mutated in mutations(data, 1000, 2, len(data)):
        sharded.write_bytes(mutated)
        try:
            assert_same(read_tensors(sharded), arrays(1))
            outcomes.add("read")
        except FormatError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


SHARD = "model-1-00001-of-00003.safetensors"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda i: i.pop("weight_map"), "is not an index of shards"),
        (lambda i: i.update(weight_map=[]), "is not an index of shards"),
        (lambda i: i.update(metadata=[]), "is not an index of shards"),
        (lambda i: i.update(more={}), "is not an index of shards"),
        (lambda i: i["weight_map"].pop("scalar"), "does not place 'scalar' in"),
        (lambda i: i["weight_map"].update(new=SHARD), "names 'new', which none of its shards has"),
        (lambda i: i["weight_map"].update(scalar="no"), "1 of its 4 shards are missing: no. Put"),
        (lambda i: i["weight_map"].update(scalar="n" * 300), "shards are missing"),
        (lambda i: i["weight_map"].update(scalar="folder"), "shards are missing: folder"),
        (lambda i: i["weight_map"].update(scalar="pipe"), "shards are missing: pipe"),
        (lambda i: i["weight_map"].update(scalar=["a"]), "it names the shard ['a'], not a file"),
        (lambda i: i["weight_map"].update(scalar=""), "it names the shard '', not a file"),
        (lambda i: i["weight_map"].update(scalar=".."), "it names the shard '..', not a file"),
        (lambda i: i["weight_map"].update(scalar=f"../x/{SHARD}"), "not a file beside it"),
        (lambda i: i["weight_map"].update(scalar=f"/x/{SHARD}"), "not a file beside it"),
        (lambda i: i["weight_map"].update(scalar=f"x\\{SHARD}"), "not a file beside it"),
        (lambda i: i["weight_map"].update(scalar="a\0b"), "not a file beside it"),
        (lambda i: i["weight_map"].update(scalar="link"), "link is a link to another folder"),
        (lambda i: i["weight_map"].update(scalar="again"), "in again: its shards are not those"),
        (lambda i: i["weight_map"].update(scalar="ckpt" + INDEX), "not an intact .safetensors"),
    ],
)
def test_hostile_indices_are_refused_by_name(sharded, tmp_path_factory, change, reason):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / SHARD
    elsewhere.write_bytes(sharded.with_name(SHARD).read_bytes())
    sharded.with_name("link").symlink_to(elsewhere)
    sharded.with_name("again").symlink_to(sharded.with_name(SHARD))
    sharded.with_name("folder").mkdir()
    os.mkfifo(sharded.with_name("pipe"))
    index = json.loads(sharded.read_text())
    change(index)
    sharded.write_text(json.dumps(index))
    with pytest.raises(FormatError) as caught:
        open_reader(sharded)
    assert reason in str(caught.value)


def test_depth_of_what_an_index_says_of_the_whole(sharded):
    index = json.loads(sharded.read_text()) | {"metadata": {"deep": 0}}
    outcomes = set()
    for depth in (*range(800, 1001), 100_000):
        deep = "[" * depth + "]" * depth
        sharded.write_text(json.dumps(index).replace('"deep": 0', f'"deep": {deep}'))
        try:
            open_reader(sharded).close()
            outcomes.add("read")
        except FormatError as error:
            outcomes.add(str(error).rpartition(" its ")[2])
    assert outcomes == {"read", "index is nested too deeply"}


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    for suffix in (".safetensors", INDEX):
        path = tmp_path / f"x{suffix}"
        path.mkdir() if kind == "folder" else os.mkfifo(path)
        with pytest.raises(FormatError, match="not a regular file"):
            open_reader(path)


def test_hugging_faces_cache_of_links_is_read(sharded, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1a2b"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate([sharded, *tmp_path.glob("*.safetensors")]):
        file.rename(blobs / f"{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert_same(read_tensors(snapshot / sharded.name), arrays(1))


def test_what_shards_and_index_say_survives(sharded, tmp_path):
    index = json.loads(sharded.read_text())
    index["metadata"] = {"total_parameters": 7, "by": {"naïve": [1.5, None]}, "total_size": 0}
    sharded.write_text(json.dumps(index))
    other = sharded.with_name("model-1-00002-of-00003.safetensors")
    save_file(
        {
            name: value
            for name, value in arrays(1).items()
            if index["weight_map"][name] == other.name
        },
        other,
        {"format": "np", "own": "text"},
    )
    before = structure_of(sharded).groups
    assert before[""]["format"] == "np"
    assert json.loads(before[""]["ckptavg.shards"]) == [{}, {"own": "text"}, {}]
    write(sharded, tmp_path / "single.safetensors")
    write(tmp_path / "single.safetensors", tmp_path / f"again{INDEX}")
    assert structure_of(tmp_path / "single.safetensors").groups == before
    assert structure_of(tmp_path / f"again{INDEX}").groups == before
    about = json.loads((tmp_path / f"again{INDEX}").read_text())["metadata"]
    size = sum(value.nbytes for value in arrays(1).values())
    assert about == index["metadata"] | {"total_size": size}


def test_shards_are_filled_up_to_the_limit_and_keep_to_their_files(sharded, tmp_path, monkeypatch):
    monkeypatch.setattr(our, "_SHARD_LIMIT", 200)
    path = tmp_path / f"out{INDEX}"
    write(sharded, path)
    assert_same(read_tensors(path), arrays(1))
    index = json.loads(path.read_text())["weight_map"]
    before = json.loads(sharded.read_text())["weight_map"]
    shards = sorted(set(index.values()))
    assert shards[0] == f"out-00001-of-{len(shards):05}.safetensors"
    assert len(shards) > 3
    for shard in shards:
        names = [name for name in index if index[name] == shard]
        assert len({before[name] for name in names}) == 1
        assert len(names) == 1 or sum(arrays(1)[name].nbytes for name in names) <= 200


# Writing what came from elsewhere


@pytest.mark.parametrize("suffix", [".safetensors", INDEX])
@pytest.mark.parametrize(
    ("structure", "reason"),
    [
        ((LEGACY, "a/kernel:0", "float32", {}), "named as in Keras 2 files"),
        ((TENSORFLOW, "a/.ATTRIBUTES/VALUE", "float32", {}), "named as in TensorFlow checkpoints"),
        ((FLAT, "x", "string", {}), "no type for 'x', a string"),
        ((FLAT, "x", "S5", {}), "no type for 'x', a S5"),
        ((FLAT, "x", "float8_e4m3b11fnuz", {}), "no type for 'x', a float8_e4m3b11fnuz"),
        ((FLAT, "__metadata__", "uint8", {}), "reserves the name __metadata__"),
        ((FLAT, "x", "uint8", {"": {"n": 1}}), "only strings as attributes"),
        ((KERAS, "../x", "uint8", {}), "not a path of folders"),
        (
            (KERAS, "x", "uint8", {"a": {"n": 1}}),
            "'a' is not a folder whose attributes are short strings",
        ),
        (
            (KERAS, "x", "uint8", {"a": {"n": "t" * 70_000}}),
            "'a' is not a folder whose attributes are short",
        ),
    ],
)
def test_what_the_format_cannot_hold_is_refused_by_name(tmp_path, suffix, structure, reason):
    naming, name, dtype, groups = structure
    tensors = {name: TensorInfo(name, (2,), dtype, Extent(0, 2))}
    with pytest.raises(FormatError) as caught:
        open_writer(tmp_path / f"o{suffix}", Structure(tensors, groups, naming))
    assert reason in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def keras_model() -> keras.Model:
    layers = keras.layers
    inner = keras.Sequential([layers.Dense(3, name="in"), layers.Dropout(0.5)], name="inner")
    stack = [
        keras.Input((2, 2)),
        layers.Flatten(name="flat"),
        inner,
        layers.ReLU(),
        layers.Dense(2),
    ]
    model = keras.Sequential(stack)
    model.compile("adam")
    return model


@pytest.mark.parametrize("suffix", [".safetensors", INDEX])
def test_a_keras_checkpoint_survives_the_way_there_and_back(tmp_path, suffix):
    model = randomize(keras_model(), 1)
    paths = [tmp_path / f"{name}" for name in ("a.weights.h5", f"b{suffix}", "c.weights.h5")]
    model.save_weights(paths[0])
    write(paths[0], paths[1])
    write(paths[1], paths[2])
    there, back = structure_of(paths[1]), structure_of(paths[2])
    original = structure_of(paths[0]).with_tensors(structure_of(paths[0]).model_tensors)
    assert there.naming == back.naming == original.naming == KERAS
    assert list(there.groups.items()) == list(original.groups.items())
    assert list(back.groups.items()) == list(original.groups.items())
    assert any(not any(n.startswith(group) for n in there.tensors) for group in there.groups)
    assert_same(read_tensors(paths[2]), read_tensors(paths[1]))
    other = keras_model()
    other.load_weights(paths[2])
    for one, two in zip(model.weights, other.weights, strict=True):
        assert one.numpy().tobytes() == two.numpy().tobytes()


@pytest.mark.parametrize("texts", [{}, {"by": "any program"}])
@pytest.mark.parametrize("suffix", [".safetensors", INDEX])
def test_the_checkpoint_itself_is_a_folder_too(tmp_path, suffix, texts):
    tensors = {"a/vars/0": TensorInfo("a/vars/0", (0,), "uint8", Extent(0, 0))}
    structure = Structure(tensors, {"": texts, "a": {"name": "x"}, "b": {}}, KERAS)
    path = tmp_path / f"o{suffix}"
    with open_writer(path, structure) as writer:
        writer.finish()
        writer.commit()
    assert list(structure_of(path).groups.items()) == list(structure.groups.items())


@pytest.mark.parametrize(
    ("name", "groups", "reason"),
    [
        ("a", b"[]", "its ckptavg.groups is not a JSON object"),
        ("a", b"[" * 100_000, "its ckptavg.groups is nested too deeply"),
        ("a", b'{"b":{},"b":{}}', "the key 'b' occurs twice"),
        ("a", b'{"b":1}', "'b' is not a folder whose attributes are short strings"),
        ("a", b'{"":{"name":"x"}}', "'' is not a folder whose attributes are short strings"),
        ("a", b'{"b":{"name":1}}', "'b' is not a folder whose attributes are short strings"),
        ("a", b'{"b":{"":"x"}}', "'b' is not a folder whose attributes are short strings"),
        (
            "a",
            b'{"b":{"name":"\\u0000"}}',
            "'b' is not a folder whose attributes are short strings",
        ),
        ("a", b'{"/b":{}}', "'/b' is not a path of folders"),
        ("a", b'{"b//c":{}}', "'b//c' is not a path of folders"),
        ("a", b'{"b/../c":{}}', "'b/../c' is not a path of folders"),
        ("a", b'{"./b":{}}', "'./b' is not a path of folders"),
        ("a", b'{"b\\u0000":{}}', "is not a path of folders"),
        ("a", json.dumps({"b/" * 70 + "c": {}}).encode(), "is too long or too deep"),
        ("a", json.dumps({"b" * 5000: {}}).encode(), "is too long or too deep"),
        ("a", b'{"a/b":{}}', "'a/b' lies inside a tensor"),
        ("a", b'{"a":{}}', "'a' is both a folder and a tensor"),
        ("../a", b"{}", "'../a' is not a path of folders"),
        ("a", b" " * (2**24 + 1), "its ckptavg.groups has 16,777,217 bytes"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_hostile_folders_are_refused_by_name(tmp_path, name, groups, reason):
    header = {"__metadata__": {"ckptavg.groups": groups.decode()}, name: entry()}
    path = hostile(tmp_path, header, bytes(4))
    with pytest.raises(FormatError) as caught:
        open_reader(path)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a.weight"], "names of another format, such as 'a.weight'"),
        (["/vars/0"], "not a path of folders"),
        (["../vars/0"], "not a path of folders"),
        (["a/vars/"], "not a path of folders"),
        (["a/vars/0", "a/vars/0/vars/1"], "lies inside a tensor"),
    ],
)
def test_names_that_no_tree_has_are_not_written_for_keras(tmp_path, names, reason):
    save_file({name: np.ones(2) for name in names}, tmp_path / "a.safetensors")
    with pytest.raises(FormatError) as caught:
        write(tmp_path / "a.safetensors", tmp_path / "b.weights.h5")
    assert reason in str(caught.value)


def test_keras_names_from_any_program_are_written_for_keras(tmp_path):
    values = {"layers/dense/vars/0": np.ones((2, 3)), "layers/dense/vars/1": np.zeros(3)}
    save_file(values, tmp_path / "a.safetensors", {"": "no name", "null": "\0", "format": "pt"})
    assert structure_of(tmp_path / "a.safetensors").naming == FLAT
    write(tmp_path / "a.safetensors", tmp_path / "b.weights.h5")
    with h5py.File(tmp_path / "b.weights.h5") as file:
        assert_same({name: file[name][()] for name in values}, values)


def test_equal_structures_are_laid_out_to_equal_bytes(tmp_path):
    save_file(arrays(1), tmp_path / "a.safetensors", {"format": "np"})
    outputs = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for output in outputs:
        write(tmp_path / "a.safetensors", output)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
