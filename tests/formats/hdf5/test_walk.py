"""The structures of HDF5 files, held against h5py; what is damaged is refused and kills nobody."""

import contextlib
import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

import ckptavg
from ckptavg.errors import CkptavgError, FormatError, IntegrityError
from ckptavg.formats import open_reader
from ckptavg.formats.hdf5.chunks import decompress_lzf, fletcher32
from ckptavg.formats.hdf5.window import DamagedError, lookup3, without_checksum
from tests.fuzzing.mutations.hdf5 import mended
from tests.helpers.files import read_tensors

VERSIONS = [None, ("earliest", "v108"), ("v108", "v110"), "latest"]
DTYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "?", "S5"]
DTYPES += [">i2", ">u8", ">f4", ">f8"]


def write(path: Path, version, *, track_order: bool, layers: int = 30) -> None:
    """A file with folders small and large, every type, and every way to store a tensor."""
    rng = np.random.default_rng(3)
    with h5py.File(path, "w", libver=version, track_order=track_order) as file:
        for n in range(layers):
            group = file.create_group(f"layers/dense_{n}/vars", track_order=track_order)
            group.attrs["name"] = f"dense_{n}"
            group["0"] = rng.normal(size=(3, n % 4)).astype("float32")
            group["1"] = np.float64(n)
        group = file.create_group("kinds", track_order=track_order)
        for dtype in DTYPES:
            group[dtype.replace(">", "big ")] = np.arange(6).astype(dtype).reshape(2, 3)
        opaque = group.create_dataset("bfloat16", data=np.arange(4, dtype="u2").view("V2"))
        opaque.attrs["dtype"] = "bfloat16"
        for n in range(20):  # more than eight lie in a fractal heap, in newer files
            group.attrs[f"text {n}"] = "x" * n
        options = {
            "plain": {},
            "gzip": {"compression": "gzip"},
            "shuffled": {"compression": "gzip", "shuffle": True},
            "checked": {"fletcher32": True},
            "lzf": {"compression": "lzf", "shuffle": True, "fletcher32": True},
        }
        for shape, chunk in [((29, 31), (7, 9)), ((5, 6, 7), (2, 3, 4)), ((900,), (900,))]:
            for name, chosen in options.items():
                values = rng.integers(0, 40, shape).astype("float32")
                group.create_dataset(f"{name} {len(shape)}", data=values, chunks=chunk, **chosen)
        compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        compact.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((2, 3))
        stored = h5py.h5d.create(group.id, b"compact", h5py.h5t.IEEE_F32LE, space, compact)
        stored.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(6, dtype="f4").reshape(2, 3))
        file["type"] = np.dtype("float32")
        named = h5py.h5d.create(file.id, b"named", file["type"].id, space)
        named.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ones((2, 3), "f4"))
        del file["type"]


@pytest.mark.parametrize("track_order", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
def test_everything_is_as_h5py_reads_it(tmp_path, version, track_order):
    path = tmp_path / "a.weights.h5"
    write(path, version, track_order=track_order)
    tensors = read_tensors(path)
    expected = {}
    with h5py.File(path) as file:
        file.visititems(expected.__setitem__)
        folders = {name for name, entry in expected.items() if isinstance(entry, h5py.Group)}
        expected = {n: entry[()] for n, entry in expected.items() if n not in folders}
        with open_reader(path) as reader:
            assert dict(reader.structure.groups["kinds"]) == dict(file["kinds"].attrs)
            assert set(reader.structure.groups) == {"", *folders}
    assert sorted(tensors) == sorted(expected)
    for name, values in expected.items():
        stored = tensors[name]
        assert stored.shape == values.shape
        assert (
            stored.tobytes()
            == np.asarray(values)
            .astype(stored.dtype if values.dtype.kind != "V" else values.dtype)
            .tobytes()
        ), name


@pytest.mark.parametrize("version", [None, "latest"])
def test_folders_of_thousands_are_in_the_order_of_their_names(tmp_path, version):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w", libver=version) as file:
        for n in range(2500):
            file.create_dataset(f"vars/{n}", data=np.float32(n))
    with open_reader(path) as reader:
        names = list(reader.structure.tensors)
        assert names == sorted(f"vars/{n}" for n in range(2500))
        assert float(read_tensors(path)["vars/1234"]) == 1234


def test_a_user_block_before_the_file_is_passed_over(tmp_path):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w", userblock_size=1024) as file:
        file["vars/0"] = np.arange(5.0)
    np.testing.assert_array_equal(read_tensors(path)["vars/0"], np.arange(5.0))


def test_any_part_of_a_chunked_tensor(tmp_path):
    path = tmp_path / "a.weights.h5"
    values = np.random.default_rng(0).normal(size=(13, 11, 5)).astype(">f4")
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=values, chunks=(4, 3, 5), compression="gzip")
    whole = values.astype("<f4").tobytes()
    rng = np.random.default_rng(1)
    with open_reader(path) as reader:
        tensor = reader.structure.tensors["x"]
        for _ in range(100):
            start, end = sorted(rng.integers(0, len(whole) + 1, 2))
            buffer = bytearray(end - start)
            reader.read_into(tensor, int(start), memoryview(buffer))
            assert bytes(buffer) == whole[start:end]


# Damage


def chunk_with(path: Path, data: bytes, mask: int = 0, **options) -> None:
    """A tensor of one chunk whose stored bytes are these."""
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("x", (4096,), "f4", chunks=(4096,), **options)
        dataset.id.write_direct_chunk((0,), data, mask)


SHORT = np.arange(1600, dtype="f4").tobytes()  # of 4,096 elements


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (SHORT, {}),
        (zlib.compress(SHORT), {"compression": "gzip"}),
        (zlib.compress(SHORT), {"compression": "gzip", "shuffle": True}),
        (zlib.compress(bytes(4096 * 4 + 400)), {"compression": "gzip"}),
        (zlib.compress(bytes(2**28)), {"compression": "gzip"}),
        (zlib.compress(bytes(4096 * 4))[:-4], {"compression": "gzip"}),
        (b"\x05abc", {"compression": "lzf"}),
        (b"\xff\xff\xff", {"compression": "lzf"}),
        (b"\x00a" + b"\xe0\xff\x00" * 3000, {"compression": "lzf"}),
        (bytes(4096 * 4) + b"abcd", {"fletcher32": True}),
    ],
)
def test_a_chunk_that_does_not_hold_its_bytes(tmp_path, data, options):
    path = tmp_path / "a.weights.h5"
    chunk_with(path, data, **options)
    with pytest.raises((FormatError, IntegrityError), match=r"a\.weights\.h5"):
        read_tensors(path)
    with pytest.raises(CkptavgError):
        ckptavg.convert(path, tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


def test_a_filter_that_was_not_applied_is_not_undone(tmp_path):
    path = tmp_path / "a.weights.h5"
    values = np.arange(4096, dtype="f4")
    chunk_with(path, values.tobytes(), mask=1, compression="gzip")
    np.testing.assert_array_equal(read_tensors(path)["x"], values)


def test_every_flipped_bit_of_a_fractal_heap_is_refused(tmp_path):
    path, damaged = tmp_path / "a.weights.h5", tmp_path / "b.weights.h5"
    with h5py.File(path, "w", track_order=True) as file:
        for n in range(30):
            file[f"vars/{n}"] = np.float32(n)
    data = path.read_bytes()
    heap = data.index(b"FRHP")
    for bit in range(8 * 146):
        flipped = bytearray(data)
        flipped[heap + bit // 8] ^= 1 << bit % 8
        damaged.write_bytes(flipped)
        with pytest.raises(FormatError, match="not an intact HDF5 file"):
            open_reader(damaged)


def test_a_free_list_that_leads_to_itself_is_never_followed(tmp_path):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        for n in range(8):
            file[f"vars/{'name' * n}{n}"] = np.float32(n)
        del file["vars/namename2"]
    data = bytearray(path.read_bytes())
    place = data.index(b"HEAP")
    while True:
        _, free, address = struct.unpack_from("<QQQ", data, place + 8)
        if free != 1:  # which means that nothing is free
            break
        place = data.index(b"HEAP", place + 4)
    struct.pack_into("<Q", data, address + free, free)
    path.write_bytes(data)
    assert len(read_tensors(path)) == 7


@pytest.mark.parametrize("signature", [b"TREE", b"SNOD", b"HEAP"])
def test_structures_that_lead_to_each_other_end(tmp_path, signature):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        for n in range(300):
            file[f"vars/{n}"] = np.float32(n)
    data = path.read_bytes()
    trees = [n for n in range(len(data)) if data.startswith(signature, n)]
    for target in trees[:3]:
        for place in range(trees[-1], trees[-1] + 200, 8):
            changed = bytearray(data)
            changed[place : place + 8] = struct.pack("<Q", target)
            path.write_bytes(changed)
            with contextlib.suppress(CkptavgError):  # anything else, or no end, is a bug
                assert len(read_tensors(path)) <= 300


def test_a_name_that_hdf5_would_cut_short(tmp_path):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file["dense_1/vars/0"] = np.zeros(3)
    data = path.read_bytes()
    path.write_bytes(mended(data.replace(b"dense_1", b"dense\0001"), data))
    with h5py.File(path) as file:
        assert list(file) == ["dense"]
    with pytest.raises(FormatError, match="not a valid name"):
        open_reader(path)


def test_a_file_that_was_truncated(tmp_path):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        file["vars/0"] = np.zeros(1000)
    data = path.read_bytes()
    for length in (0, 7, 8, 40, 96, 512, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(FormatError, match="not an intact HDF5 file"):
            open_reader(path)


# Checksums and compression


def test_lookup3_has_the_values_of_its_author():
    # Bob Jenkins, lookup3.c, driver5: hashlittle of the text from 0, and of nothing
    text = b"Four score and seven years ago"
    assert lookup3(b"") == 0xDEADBEEF
    assert lookup3(text) == 0x17770551
    with pytest.raises(DamagedError, match="checksum of a Four"):
        without_checksum(text + bytes(4))


@pytest.mark.parametrize("length", [0, 1, 2, 3, 720, 65_535, 400_000])
def test_checksums_of_chunks_are_those_of_hdf5(tmp_path, length):
    data = np.random.default_rng(length).integers(0, 256, max(length, 1), dtype="u1")
    if length in (0, 3):
        data[:] = 0
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("x", data=data, chunks=data.shape, fletcher32=True)
        _, stored = dataset.id.read_direct_chunk((0,))
    assert fletcher32(data.tobytes()) == int.from_bytes(stored[-4:], "little")


@pytest.mark.parametrize("kind", ["random", "runs", "zeros", "text"])
def test_lzf_is_decompressed_as_h5py_does(tmp_path, kind):
    rng = np.random.default_rng(2)
    data = {
        "random": rng.integers(0, 256, 5000, dtype="u1"),
        "runs": np.repeat(rng.integers(0, 5, 300, dtype="u1"), 40),
        "zeros": np.zeros(100_000, "u1"),
        "text": np.frombuffer(b"to be or not to be, that is the question " * 99, "u1"),
    }[kind]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("x", data=data, chunks=data.shape, compression="lzf")
        mask, stored = dataset.id.read_direct_chunk((0,))
    if not mask:
        assert decompress_lzf(stored, len(data)) == data.tobytes()
        with pytest.raises(DamagedError, match="more than it should"):
            decompress_lzf(stored, len(data) // 2)
    assert np.array_equal(h5py.File(tmp_path / "a.h5")["x"][()], data)


# Shapes and storage that contradict each other


def with_other_bytes(path: Path, former: bytes, now: bytes) -> None:
    data = path.read_bytes()
    assert data.count(former) == 1
    path.write_bytes(mended(data.replace(former, now), data))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("rows", [0, 1, 300])
def test_a_shape_that_does_not_fit_its_storage(tmp_path, version, rows):
    # HDF5 itself reads the first rows without a word.
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w", libver=version) as file:
        file["vars/0"] = np.ones((307, 5))
    sizes = struct.Struct("<QQ")
    with_other_bytes(path, sizes.pack(307, 5) * 2, sizes.pack(rows, 5) * 2)
    with pytest.raises(FormatError, match=f"has {rows * 40:,} bytes by its shape, but 12,280 are"):
        open_reader(path)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_empty_shape_that_no_array_has(tmp_path, version):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w", libver=version) as file:
        file["vars/0"] = np.ones((307, 0), "f4")
    sizes = struct.Struct("<QQ")
    with_other_bytes(path, sizes.pack(307, 0) * 2, sizes.pack(2**61, 0) * 2)
    with pytest.raises(FormatError, match="which no array has"):
        open_reader(path)


@pytest.mark.parametrize("shape", [(9, 10), (8, 14), (5, 7)])
def test_chunks_at_the_edge_may_be_stored_without_filters(tmp_path, shape):
    path, values = tmp_path / "a.weights.h5", np.random.default_rng(0).normal(size=shape)
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("vars/0", data=values, chunks=(4, 7), maxshape=shape, shuffle=True)
    # Version 4 of the layout: chunked, no flags, then rank and sizes.
    layout = bytes((4, 2, 0, 3, 1, 4, 7, 8))
    with_other_bytes(path, layout, bytes((4, 2, 1)) + layout[3:])
    with h5py.File(path) as file:
        expected = file["vars/0"][()]
    assert np.array_equal(expected, values) == (shape == (8, 14))
    np.testing.assert_array_equal(read_tensors(path)["vars/0"], expected)


def test_a_shape_beyond_the_largest_that_is_declared(tmp_path):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        file["vars/0"] = np.ones((307, 5))
    sizes = struct.Struct("<QQ")
    with_other_bytes(path, sizes.pack(307, 5) * 2, sizes.pack(307, 5) + sizes.pack(307, 4))
    with pytest.raises(FormatError, match="a shape is damaged"):
        open_reader(path)


def test_a_file_whose_root_is_a_tensor(tmp_path):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.ones(3)
        root, tensor = (struct.pack("<Q", h5py.h5o.get_info(o.id).addr) for o in (file, file["x"]))
    data = path.read_bytes()
    place = data.index(root, 56)  # its entry in the superblock
    path.write_bytes(data[:place] + tensor + data[place + 8 :])
    with pytest.raises(FormatError, match="its root is not a folder"):
        open_reader(path)
