"""TensorFlow checkpoints that are damaged or hostile: refused by name, soon, in bounded memory."""

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import tensorflow as tf

from ckptavg.errors import CkptavgError, FormatError
from ckptavg.formats import open_reader
from ckptavg.formats.tensorflow import strings as tf_strings
from ckptavg.formats.tensorflow.object_graph import model_part
from ckptavg.formats.tensorflow.protobuf import (
    BYTES,
    BundleEntry,
    Refused,
    number,
    text,
    varint,
)
from ckptavg.formats.tensorflow.table import mask, read_table, write_table
from ckptavg.formats.tensors import STRING, Extent, TensorInfo
from tests.helpers.files import flip_bit
from tests.helpers.tensorflow_checkpoints import GRAPH, fill, keras_3_model, save

HEADER = number(1, 1) + text(3, number(1, 1))
GOOD = BundleEntry(dtype=1, shape=(2,), shard=0, offset=0, size=8, crc=mask(0))
FOOTER_SIZE = 48
TRAILER_SIZE = 5


def bundle(
    folder: Path, *entries: tuple[bytes, bytes], data: bytes = bytes(64), header: bytes = HEADER
) -> Path:
    path = folder / "c.index"
    path.write_bytes(write_table([(b"", header), *entries]))
    (folder / "c.data-00000-of-00001").write_bytes(data)
    return path


def graph_of(*nodes: bytes) -> bytes:
    return b"".join(text(1, node) for node in nodes)


def child(target: int, name: bytes) -> bytes:
    return text(1, number(1, target) + text(2, name))


def attribute(key: bytes) -> bytes:
    return text(2, text(1, b"VARIABLE_VALUE") + text(3, key))


def with_graph(folder: Path, graph: bytes, key: bytes = b"x") -> Path:
    """A checkpoint of one tensor and this object graph."""
    stored = tf_strings.encode(graph)
    tensor = TensorInfo(GRAPH, (), STRING, Extent(8, len(stored)))
    layout = tf_strings.scan(tensor, lambda start, n: stored[start : start + n])
    crc = mask(layout.translated(google_crc32c.value(stored)))
    entry = BundleEntry(dtype=7, shape=(), shard=0, offset=8, size=len(stored), crc=crc)
    entries = sorted([(GRAPH.encode(), entry.encode()), (key, GOOD.encode())])
    return bundle(folder, *entries, data=bytes(8) + stored)


@pytest.fixture
def real(tmp_path) -> Path:
    model = fill(keras_3_model(), 1)
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(str(tmp_path / "c"))
    return tmp_path / "c"


def refused(path: Path, reason: str) -> None:
    began = time.monotonic()
    with pytest.raises(FormatError, match=r"refusing|cannot open") as caught:
        open_reader(path)
    assert reason in str(caught.value)
    assert str(path).removesuffix(".index") in str(caught.value)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"offset": 60}, "'x' reaches beyond the end"),
        ({"offset": 2**63}, "'x' reaches beyond the end"),
        ({"size": 2**62}, "but 4,611,686,018,427,387,904 are stored"),
        ({"shape": (2**62,), "size": 2**64 - 1}, "are stored"),
        ({"shape": (2**61,), "size": 2**63}, "which no array has"),
        ({"shape": (2**32, 2**32), "size": 0}, "but 0 are stored"),
        ({"shape": (2**64 - 1, 0), "size": 0}, "'x' has no shape"),
        ({"shape": (1,) * 255}, "255 dimensions"),
        ({"shard": 1}, "'x' lies in shard 1, which does not exist"),
        ({"shard": 2**64 - 1}, "which does not exist"),
        ({"dtype": 0}, "'x' has the type number 0"),
        ({"dtype": 20}, "'x' has the type resource"),
        ({"dtype": 101}, "'x' has the type number 101"),
        ({"dtype": 7}, "'x' holds strings whose lengths are damaged"),
        ({"dtype": 7, "shape": (2**40,)}, "'x' holds strings whose lengths are damaged"),
        ({"shape": (2**62, 0), "size": 0}, "which no array has"),
        ({"shape": (1,) * 33, "size": 4}, "which no array has"),
    ],
)
def test_hostile_entries_are_refused(tmp_path, changes, reason):
    refused(bundle(tmp_path, (b"x", replace(GOOD, **changes).encode())), reason)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (number(1, 1) + number(2, 1), "big-endian"),
        (number(1, 1) + text(3, number(2, 2)), "newer than this version"),
        (b"", "its index declares 0 shards"),
        (number(1, 2**31), "its index declares 2,147,483,648 shards"),
        (number(1, 2), "c.data-00000-of-00002: No such file"),
        (varint(1 << 3 | BYTES) + varint(10**9), "truncated or damaged"),
        (varint(1 << 3 | 3), "unknown wire type"),
        (varint(1 << 3 | BYTES) + varint(0), "an unexpected wire type"),
    ],
)
def test_hostile_headers_are_refused(tmp_path, header, reason):
    refused(bundle(tmp_path, (b"x", GOOD.encode()), header=header), reason)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([(b"x", GOOD.encode()), (b"y", GOOD.encode())], "'y' overlaps another"),
        ([(b"x", GOOD.encode()), (b"x", GOOD.encode())], "not in order"),
        ([(b"y", GOOD.encode()), (b"x", GOOD.encode())], "not in order"),
        ([(b"\xff", GOOD.encode())], "is not valid UTF-8"),
        ([(b"\0x", GOOD.encode())], "partitioned variables"),
        ([(b"x", GOOD.encode() + text(7, b""))], "partitioned variables"),
        ([(b"x", GOOD.encode()[:-1])], "truncated or damaged"),
        ([(b"x", number(1, 1) + text(2, number(3, 1)))], "'x' has no shape"),
        ([(b"x" * 5000, GOOD.encode())], "damaged or too long"),
    ],
)
def test_hostile_indexes_are_refused(tmp_path, entries, reason):
    refused(bundle(tmp_path, *entries), reason)


def test_an_index_must_begin_with_a_header(tmp_path):
    path = bundle(tmp_path)
    path.write_bytes(write_table([(b"x", GOOD.encode())]))
    refused(path, "does not begin with a header")


def table(block: bytes, handles: int = 1, compression: int = 0) -> bytes:
    """A table of one raw block, to which the index leads any number of times."""

    def sealed(content: bytes, kind: int = 0) -> bytes:
        stored = content + bytes([kind])
        return stored + mask(google_crc32c.value(stored)).to_bytes(4, "little")

    handle = varint(0) + varint(len(block))
    entries = b"".join(
        varint(0) + varint(3) + varint(len(handle)) + n.to_bytes(3, "big") + handle
        for n in range(handles)
    )
    index, data = entries + bytes(4), sealed(block, compression)
    place = varint(len(data)) + varint(len(index))
    footer = (place + place).ljust(FOOTER_SIZE - 8, b"\0")
    return data + sealed(index) + footer + 0xDB4775248B80FB57.to_bytes(8, "little")


def test_blocks_that_would_grow_without_end_are_refused(tmp_path):
    path = bundle(tmp_path)
    growing = varint(0) + varint(4000) + varint(0) + b"\0" * 4000
    nothing = bytes(2**20 - 4) + (2**18 - 1).to_bytes(4, "little")  # no entries, but many bytes
    growing += b"".join(varint(4000) + varint(2) + varint(0) + n.to_bytes(2, "big")
                        for n in range(60_000))  # fmt: skip
    for content, reason in (
        (table(growing + bytes(4)), "bytes for their names"),
        (table(nothing, handles=10_000), "its blocks overlap"),
        (table(varint(0) + varint(0) + varint(0) + bytes(4), compression=1), "does not unpack"),
        (table(varint(0) + varint(0) + varint(0) + bytes(4), compression=9), "unknown method"),
        (table(b"\xff\xff\xff\x7f"), "lacks its list of restarts"),
        (table(b""), "lacks its list of restarts"),
        (table(varint(7) + varint(0) + varint(0) + bytes(4)), "damaged or too long"),
        (table(varint(0) + varint(2**60) + varint(0) + bytes(4)), "damaged or too long"),
        (table(b"\xff" * 20 + bytes(4)), "too large"),
        (bytes(10**5), "not an index of a TensorFlow checkpoint"),
        (b"", "not an index of a TensorFlow checkpoint"),
    ):
        path.write_bytes(content)
        with pytest.raises(Refused, match=reason):
            list(read_table(content))
        refused(path, "")
    with path.open("r+b") as file:
        file.truncate(2**40)
    refused(path, "more than the 16,777,216")


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (b"", "object graph is empty"),
        (graph_of(child(1, b"model")), "refers to object 1, which does not exist"),
        (graph_of(child(2**63, b"model")), "which does not exist"),
        (graph_of(b""), "holds no tensors"),
        (graph_of(child(1, b"optimizer"), attribute(b"x") + text(3, b"")), "holds no model"),
        (
            graph_of(attribute(b"x"), attribute(b"y")),
            "'y' is in its object graph, but not in its i",
        ),
        (graph_of(attribute(b"y")), "'x' is in its index, but not in its object graph"),
        (graph_of(attribute(b"\xff")), "a key that is not valid UTF-8"),
        (graph_of(number(1, 5)), "is damaged"),
        (number(1, 5), "is damaged"),
        (varint(1 << 3 | BYTES) + varint(10**9), "truncated"),
        (text(1, b"") * (2**20 + 1), "too large"),
    ],
)
def test_hostile_object_graphs_are_refused(tmp_path, graph, reason):
    refused(with_graph(tmp_path, graph), reason)


def test_circles_and_long_ways_in_object_graphs_are_walked_once(tmp_path):
    way = [child(n + 1, b"next") + child(n, b"self") for n in range(20_000)]
    path = with_graph(tmp_path, graph_of(*way, child(0, b"root") + attribute(b"x")))
    with open_reader(path) as reader:
        assert list(reader.structure.model_tensors) == ["x"]
    # Many ways to one large optimizer: it is looked at once.
    ways = b"".join(child(1, b"a") for _ in range(30_000))
    optimizer = b"".join(child(0, b"b") for _ in range(30_000)) + text(3, b"")
    began = time.monotonic()
    assert model_part(graph_of(ways + attribute(b"x"), optimizer)).kept == {"x"}
    assert time.monotonic() - began < 10


def test_repeated_fields_take_no_memory(tmp_path):
    """Of a single value that is stored many times, only the last is kept."""
    hostile = GOOD.encode() + text(2, text(2, b"") * 20_000) + number(1, 1) * 20_000
    for value, reason in ((hostile, "255 dimensions"), (number(1, 1) * 20_000, "but 0 are stored")):
        path = bundle(tmp_path, (b"x", value))
        tracemalloc.start()
        refused(path, reason)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**20


def test_a_graph_that_is_no_single_text_is_refused(tmp_path):
    path = bundle(tmp_path, (GRAPH.encode(), GOOD.encode()))
    refused(path, "its object graph is not a single string")


def test_unknown_fields_of_the_graph_are_kept_as_they_are():
    unknown = varint(77 << 3 | 5) + b"abcd" + text(78, b"more")
    kept = attribute(b"x") + text(4, b"saver") + unknown
    dropped = attribute(b"y") + text(3, number(3, 1)) + unknown  # whoever has slots is an optimizer
    graph = graph_of(child(1, b"optimizer") + kept, dropped) + unknown
    assert model_part(graph).graph == graph_of(child(1, b"optimizer") + kept, unknown) + unknown


def read_all(path: Path) -> None:
    with open_reader(path) as reader:
        assert reader.checksums.keys() == reader.structure.tensors.keys()
        for tensor in reader.structure.tensors.values():
            reader.read_into(tensor, 0, memoryview(bytearray(tensor.nbytes)))


def outcome(read: Callable[[], object]) -> str:
    try:
        read()
    except (CkptavgError, Refused):
        return "refused"
    return "read"


def test_any_changed_byte_of_an_index_gives_the_same_tensors_or_an_error(real):
    index = real.with_suffix(".index")
    data, rng = index.read_bytes(), np.random.default_rng(1)
    with open_reader(real) as reader:
        expected = reader.structure
    outcomes = set()
    for place in rng.choice(len(data), 300, replace=False):
        flip_bit(index, place)
        try:
            with open_reader(real) as reader:
                assert reader.structure == expected
            outcomes.add("read")  # the padding of the footer
        except FormatError:
            outcomes.add("refused")
        index.write_bytes(data)
    assert outcomes == {"read", "refused"}


def test_an_index_that_was_changed_with_its_checksum_gives_tensors_or_an_error(real):
    index = real.with_suffix(".index")
    entries, rng = list(read_table(index.read_bytes())), np.random.default_rng(2)
    outcomes = []
    for number_of_entry in rng.integers(len(entries), size=300):
        changed = list(entries)
        parts = [bytearray(part) for part in changed[number_of_entry]]
        part = parts[int(rng.integers(2))] or parts[1]
        part[int(rng.integers(len(part)))] = int(rng.integers(256))
        changed[number_of_entry] = tuple(map(bytes, parts))
        index.write_bytes(write_table(changed))
        outcomes.append(outcome(lambda: read_all(real)))
    assert set(outcomes) == {"read", "refused"}


def test_a_block_that_was_changed_with_its_checksum_gives_entries_or_an_error(real):
    content, rng = real.with_suffix(".index").read_bytes(), np.random.default_rng(3)
    size = content.index(b"\0\0\0\0\1\0\0\0\0\xc0\xf2\xa1\xb0") - TRAILER_SIZE  # metaindex
    for _ in range(300):
        block = bytearray(content[:size])
        for _ in range(int(rng.integers(1, 4))):
            block[int(rng.integers(size))] = int(rng.integers(256))
        outcome(lambda block=block: list(read_table(table(bytes(block)))))


def test_an_object_graph_that_was_changed_gives_a_part_or_an_error(real):
    graph, rng = tf.train.load_checkpoint(str(real)).get_tensor(GRAPH), np.random.default_rng(4)
    outcomes = set()
    for _ in range(300):
        changed = bytearray(graph)
        changed[int(rng.integers(len(graph)))] ^= 1 << int(rng.integers(8))
        outcomes.add(outcome(lambda changed=changed: model_part(bytes(changed))))
    assert outcomes == {"read", "refused"}


def check_found(path: Path) -> str:
    """Makes sure that a change of the data is found: at once, or by a tensor's checksum."""
    try:
        with open_reader(path) as reader:
            checksums, wrong = reader.checksums, 0
            for name, tensor in reader.structure.tensors.items():
                data = bytearray(tensor.nbytes)
                reader.read_into(tensor, 0, memoryview(data))
                wrong += google_crc32c.value(bytes(data)) != checksums[name]
    except FormatError as error:
        return str(error)
    assert wrong == 1
    return "by a checksum"


def test_any_changed_byte_of_the_data_is_found(real):
    data_file, rng = real.with_name("c.data-00000-of-00001"), np.random.default_rng(5)
    data = data_file.read_bytes()
    outcomes = set()
    for place in rng.choice(len(data), 200, replace=False):
        flip_bit(data_file, place)
        outcomes.add(check_found(real))
        data_file.write_bytes(data)
    assert outcomes == {
        "by a checksum",
        f"refusing {real}: its object graph is damaged: it fails its checksum",
    }


def test_any_changed_byte_of_texts_is_found(tmp_path):
    path = tmp_path / "c"
    texts = tf.constant([f"{n}" * n for n in range(9)])
    save(path, {"x": texts})
    data_file = Path(f"{path}.data-00000-of-00001")
    data = data_file.read_bytes()
    outcomes = []
    for place in range(len(data)):
        flip_bit(data_file, place)
        outcomes.append(check_found(path))
        data_file.write_bytes(data)
    lengths = 9 + 4
    assert set(outcomes[:lengths]) == {
        f"refusing {path}: 'x' holds strings whose lengths are damaged"
    }
    assert set(outcomes[lengths:]) == {"by a checksum"}
