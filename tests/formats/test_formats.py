"""Readers and writers of checkpoint files, on files that Keras wrote and on hostile ones."""

import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from ckptavg.errors import FormatError
from ckptavg.formats import (
    READ_SUFFIXES,
    CheckpointWriter,
    ModelConfig,
    Structure,
    open_reader,
    open_writer,
    writer_of,
)
from ckptavg.formats.hdf5.keras3 import WeightsH5Reader
from ckptavg.formats.reader import FLAT, KERAS, LEGACY, TENSORFLOW
from ckptavg.formats.tensors import Extent, TensorInfo
from ckptavg.models.model import model_config
from tests.helpers.files import leftovers, read_tensors
from tests.helpers.models import randomize, tiny_model


@pytest.mark.parametrize("suffix", READ_SUFFIXES)
def test_every_format_has_a_reader_and_a_writer_that_can_be_imported(tmp_path, suffix):
    """A line of the table that names a class wrongly would be noticed only when it is needed."""
    (tmp_path / f"x{suffix}").mkdir()
    with pytest.raises(FormatError, match="not a regular file"):
        open_reader(tmp_path / f"x{suffix}")
    held = 0
    for naming in (KERAS, LEGACY, TENSORFLOW, FLAT):
        try:
            assert issubclass(writer_of(tmp_path / f"x{suffix}", naming), CheckpointWriter)
            held += 1
        except FormatError as error:
            # The message names formats that do hold such tensors.
            known = [s for s in READ_SUFFIXES if s in str(error).partition("ends in ")[2]]
            assert known
            writer_of(tmp_path / f"x{known[0]}", naming)
    assert held


@pytest.fixture(params=[".weights.h5", ".keras"])
def saved(request, tmp_path) -> tuple[keras.Model, Path]:
    model = randomize(tiny_model(), 3)
    path = tmp_path / f"model{request.param}"
    model.save(path) if request.param == ".keras" else model.save_weights(path)
    return model, path


def test_reader_finds_every_tensor_of_keras(saved):
    model, path = saved
    found = read_tensors(path)
    weights = [found[name] for name in found if not name.startswith("optimizer")]
    assert len(weights) == len(model.weights)
    expected = sorted(variable.numpy().tobytes() for variable in model.weights)
    assert sorted(values.tobytes() for values in weights) == expected


def test_reader_agrees_with_h5py(tmp_path):
    path = tmp_path / "m.weights.h5"
    randomize(tiny_model(), 4).save_weights(path)
    found = read_tensors(path)
    with h5py.File(path) as file:
        names = []
        file.visititems(lambda n, o: names.append(n) if isinstance(o, h5py.Dataset) else None)
        assert sorted(names) == sorted(found)
        for name in names:
            assert np.array_equal(file[name][()], found[name])


def test_a_round_trip_is_the_identity_and_keras_loads_it(saved, tmp_path):
    model, path = saved
    copy = tmp_path / f"copy{''.join(path.suffixes)}"
    with open_reader(path) as reader:
        config = model_config(model) if path.suffix == ".keras" else None
        with open_writer(copy, reader.structure, config) as writer:
            for name, tensor in reader.structure.tensors.items():
                buffer = bytearray(tensor.nbytes)
                reader.read_into(tensor, 0, memoryview(buffer))
                writer.write(name, 0, memoryview(buffer))
            size = writer.finish()
            writer.commit()
    assert size == copy.stat().st_size
    original, copied = read_tensors(path), read_tensors(copy)
    assert list(original) == list(copied)
    assert all(original[name].tobytes() == copied[name].tobytes() for name in original)
    other = keras.saving.load_model(copy) if path.suffix == ".keras" else tiny_model()
    if path.suffix != ".keras":
        other.load_weights(copy)
    for one, two in zip(model.weights, other.weights, strict=True):
        assert one.numpy().tobytes() == two.numpy().tobytes()
    assert not leftovers(tmp_path)


def test_low_precision_types_and_odd_shapes_round_trip(tmp_path):
    values = {
        "a/bfloat16": np.arange(6).reshape(2, 3).astype("bfloat16"),
        "a/float8_e4m3fn": np.arange(4).astype("float8_e4m3fn"),
        "b/float16": np.arange(4).astype("float16"),
        "b/scalar": np.float64(2.5),
        "b/bool": np.array([True, False]),
        "b/empty": np.zeros((0, 4), "float32"),
        "b/uint32": np.arange(3, dtype="uint32"),
    }
    tensors = {
        name: TensorInfo(name, v.shape, v.dtype.name, Extent(0, 0)) for name, v in values.items()
    }
    path = tmp_path / "types.weights.h5"
    with open_writer(path, Structure(tensors, {"a": {"name": "first"}, "b": {}})) as writer:
        for name, value in values.items():
            writer.write(name, 0, memoryview(np.asarray(value).tobytes()))
        writer.finish()
        writer.commit()
    found = read_tensors(path)
    assert {name: (v.shape, v.dtype.name) for name, v in found.items()} == {
        name: (v.shape, v.dtype.name) for name, v in values.items()
    }
    assert all(found[name].tobytes() == np.asarray(values[name]).tobytes() for name in values)
    with h5py.File(path) as file:
        assert file["a"].attrs["name"] == "first"
        assert file["a/bfloat16"].attrs["dtype"] == "bfloat16"


def test_bfloat16_files_of_keras_are_read(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype="bfloat16")])
    path = tmp_path / "b.weights.h5"
    model.save_weights(path)
    kernel = read_tensors(path)["layers/dense/vars/0"]
    assert kernel.dtype.name == "bfloat16"
    expected = keras.ops.convert_to_numpy(keras.ops.cast(model.layers[0].kernel, "float32"))
    assert np.array_equal(kernel.astype("float32"), expected)


def test_discarded_output_leaves_nothing(tmp_path):
    tensors = {"x": TensorInfo("x", (4,), "float32", Extent(0, 0))}
    for name, config in (("o.weights.h5", None), ("o.keras", ModelConfig("{}", "{}"))):
        with open_writer(tmp_path / name, Structure(tensors, {}), config) as writer:
            writer.write("x", 0, memoryview(bytes(16)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [0, 7, 100, 0.3, 0.9, 0.999])
def test_truncated_files_are_refused(saved, keep):
    _, path = saved
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(FormatError, match="not an intact"):
        open_reader(path)


def test_a_file_that_resembles_another_is_not_searched_again(tmp_path, monkeypatch):
    model = tiny_model()
    paths = [tmp_path / f"{seed}.weights.h5" for seed in range(3)]
    for seed, path in enumerate(paths):
        randomize(model, seed).save_weights(path)
    with open_reader(paths[0]) as first:
        skeleton = first.skeleton()
    by_search = open_reader(paths[1]).structure
    data = paths[2].read_bytes()
    assert data.count(b"stem_bn") == 1
    paths[2].write_bytes(data.replace(b"stem_bn", b"Stem_bn"))  # the same size, another name
    searched = []
    search = WeightsH5Reader._read_structure
    monkeypatch.setattr(
        WeightsH5Reader, "_read_structure", lambda self: searched.append(self.path) or search(self)
    )
    assert open_reader(paths[1], like=skeleton).structure == by_search
    assert searched == []
    other = open_reader(paths[2], like=skeleton).structure
    assert searched == [paths[2]]
    assert other.groups["layers/batch_normalization/vars"] == {"name": "Stem_bn"}


def test_files_that_are_something_else_are_refused(tmp_path):
    for name in ("a.weights.h5", "a.keras"):
        (tmp_path / name).write_text("not a checkpoint")
        with pytest.raises(FormatError, match="not an intact"):
            open_reader(tmp_path / name)
    with pytest.raises(FormatError, match=r"ends in .weights.h5, "):
        open_reader(tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "b.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(FormatError, match=r"not an intact \.keras"):
        open_reader(tmp_path / "b.keras")


def hostile(kind: str, file: h5py.File, folder: Path) -> None:
    file.create_dataset("layers/dense/vars/0", data=np.ones(4, "float32"))
    if kind == "soft link":
        file["layers/other"] = h5py.SoftLink("/layers/dense")
    elif kind == "external link":
        file["layers/other"] = h5py.ExternalLink("elsewhere.h5", "/x")
    elif kind == "external storage":
        (folder / "raw").write_bytes(bytes(16))
        file.create_dataset("x", (4,), "float32", external=[(str(folder / "raw"), 0, 16)])
    elif kind == "virtual":
        layout = h5py.VirtualLayout((4,), "float32")
        layout[:] = h5py.VirtualSource("elsewhere.h5", "x", (4,))
        file.create_virtual_dataset("x", layout)
    elif kind == "cycle":
        file["layers/dense/loop"] = file["layers"]
    elif kind == "second name":
        file["layers/alias"] = file["layers/dense/vars/0"]
    elif kind == "huge":
        file.create_dataset("x", (2**60,), "float32", chunks=(1024,))
    elif kind == "holes":
        file.create_dataset("x", (64,), "float32", chunks=(16,))[:16] = 1
    elif kind == "large chunks":
        data = np.ones(2**22 + 1, "float32")
        file.create_dataset("x", data=data, chunks=data.shape, compression="gzip")
    elif kind == "unknown filter":
        file.create_dataset("x", data=np.ones(64), scaleoffset=3)
    elif kind == "text":
        file.create_dataset("x", data="hello")
    elif kind == "long double":
        file.create_dataset("x", data=np.ones(4, np.longdouble))
    elif kind == "name in no encoding":
        h5py.h5g.create(file.id, b"\xff\xfe")
    elif kind == "unknown bytes":
        file.create_dataset("x", data=np.zeros(4, "V2"))
    elif kind == "odd float":
        odd = h5py.h5t.IEEE_F32LE.copy()
        odd.set_fields(15, 7, 8, 0, 7)
        odd.set_size(2)
        odd.set_ebias(127)
        h5py.h5d.create(file.id, b"x", odd, h5py.h5s.create_simple((4,)))
    elif kind == "never written":
        file.create_dataset("x", (2**40,), "float32")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("soft link", "'layers/other' is a link to another place"),
        ("external link", "'layers/other' is a link to another place"),
        ("external storage", "'x' is stored in another file"),
        ("virtual", "'x' is stored in another file"),
        ("cycle", "'layers/dense/loop' is linked from two places"),
        ("second name", "is linked from two places"),
        ("huge", "'x' declares more bytes than the file can hold"),
        ("holes", "'x' lacks some of its chunks"),
        ("large chunks", "'x' has chunks of more than"),
        ("unknown filter", "'x' is compressed by"),
        ("text", "'x' is stored as variable-length type of 16 bytes, which is not a number"),
        ("long double", "which is not a number of up to 8 bytes"),
        ("name in no encoding", "is not a name in UTF-8"),
        ("unknown bytes", "'x' holds bytes of the unknown type None"),
        ("odd float", "'x' has a type of its own"),
        ("never written", "'x' was never written"),
    ],
)
def test_hostile_files_are_refused_by_name(tmp_path, kind, reason):
    path = tmp_path / "h.weights.h5"
    with h5py.File(path, "w") as file:
        hostile(kind, file, tmp_path)
    with pytest.raises(FormatError, match="refusing") as caught:
        open_reader(path)
    assert reason in str(caught.value)


@pytest.mark.parametrize("damaged", [b"1\0", b".\0", b"2/3\0", b"/\0"])
def test_links_whose_names_lead_elsewhere_are_refused(tmp_path, damaged):
    path = tmp_path / "h.weights.h5"
    with h5py.File(path, "w") as file:
        for number, name in enumerate(("0", "1", "2/3")):
            file.create_dataset(f"vars/{name}", data=np.full(4, number, "float32"))
    data = path.read_bytes()
    names = b"0\0".ljust(8, b"\0") + b"1\0"
    assert data.count(names) == 1
    path.write_bytes(data.replace(names, damaged.ljust(8, b"\0") + b"1\0"))
    with pytest.raises(FormatError, match=r"'vars/.*is not a valid name"):
        open_reader(path)


def test_a_heap_that_hdf5_would_never_finish_reading(tmp_path):
    # A free object of size 0 in the heap of names: HDF5 runs in circles there.
    path = tmp_path / "h.weights.h5"
    tiny_model().save_weights(path)
    whole = open_reader(path).structure
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    position, end = heap + 16, heap + int.from_bytes(data[heap + 8 : heap + 16], "little")
    while int.from_bytes(data[position : position + 2], "little"):
        length = int.from_bytes(data[position + 8 : position + 16], "little")
        position += 16 + -(-length // 8) * 8
        assert position < end
    data[position + 8 : position + 16] = bytes(8)
    path.write_bytes(data)
    with open_reader(path) as reader:
        assert reader.structure == whole  # the damage is behind the last name


def test_extents_that_overlap_or_reach_beyond_the_file_are_refused(tmp_path):
    path = tmp_path / "h.weights.h5"
    with h5py.File(path, "w") as file:
        for name in ("a", "b"):
            file.create_dataset(name, data=np.full(64, ord(name), "uint8"))
        places = [file[name].id.get_offset() for name in ("a", "b")]
    data = path.read_bytes()
    for place, reason in (
        (places[0], "overlaps another"),
        (len(data) - 8, "reaches beyond|invalid dataset size"),
    ):
        old, new = (value.to_bytes(8, "little") for value in (places[1], place))
        assert data.count(old) == 1
        path.write_bytes(data.replace(old, new))
        with pytest.raises(FormatError, match=reason):
            open_reader(path)


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_any_flipped_byte_gives_the_file_or_a_format_error(tmp_path, suffix):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="d")])
    original = tmp_path / f"o{suffix}"
    model.save(original) if suffix == ".keras" else model.save_weights(original)
    data, rng = bytearray(original.read_bytes()), np.random.default_rng(5)
    path = tmp_path / f"m{suffix}"
    outcomes = set()
    for place in rng.choice(len(data), 400, replace=False):
        mutated = data.copy()
        mutated[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(mutated)
        try:
            open_reader(path).close()
            outcomes.add("read")
        except FormatError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_compressed_archives_are_refused(tmp_path):
    tiny_model().save(tmp_path / "m.keras")
    with (
        zipfile.ZipFile(tmp_path / "m.keras") as old,
        zipfile.ZipFile(tmp_path / "z.keras", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(FormatError, match="compressed"):
        open_reader(tmp_path / "z.keras")


def test_tensors_that_must_be_decoded_are_read_in_any_pieces(tmp_path):
    rng = np.random.default_rng(2)
    values = {
        "chunks": rng.normal(size=(7, 33, 5)).astype("float32"),
        "gzip": rng.normal(size=(40, 11)).astype("float64"),
        "lzf": rng.integers(0, 9, (300,)).astype("int32"),
        "big": rng.normal(size=(6, 7)).astype(">f4"),
        "half": rng.normal(size=(50, 3)).astype("float16"),
        "compact": rng.normal(size=(3, 4)).astype("float32"),
    }
    path = tmp_path / "d.weights.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("vars/chunks", data=values["chunks"], chunks=(2, 8, 3))
        file.create_dataset("vars/gzip", data=values["gzip"], compression="gzip", shuffle=True)
        file.create_dataset("vars/lzf", data=values["lzf"], compression="lzf", fletcher32=True)
        file.create_dataset("vars/big", data=values["big"])
        file.create_dataset("vars/half", data=values["half"], chunks=(50, 3))
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.COMPACT)
        small = h5py.h5d.create(
            file.id,
            b"vars/compact",
            h5py.h5t.IEEE_F32LE,
            h5py.h5s.create_simple((3, 4)),
            properties,
        )
        small.write(h5py.h5s.ALL, h5py.h5s.ALL, values["compact"])
    with open_reader(path) as reader:
        for name, value in values.items():
            tensor = reader.structure.tensors[f"vars/{name}"]
            expected = value.astype(value.dtype.newbyteorder("<")).tobytes()
            assert (tensor.shape, tensor.nbytes) == (value.shape, len(expected))
            assert tensor.extent is None
            items = len(expected) // tensor.numpy_dtype.itemsize
            for count in (1, 7, items // 2, items):
                step = count * tensor.numpy_dtype.itemsize
                found = bytearray()
                for start in range(0, len(expected), step):
                    piece = bytearray(min(step, len(expected) - start))
                    reader.read_into(tensor, start, memoryview(piece))
                    found += piece
                assert bytes(found) == expected, (name, count)
