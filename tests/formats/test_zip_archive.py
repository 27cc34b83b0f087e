"""Zip archives that may be hostile: read in bounded memory, proven by their checksums."""

import tracemalloc
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

import ckptavg
from ckptavg.errors import CkptavgError, FormatError, IntegrityError, MemoryLimitError
from ckptavg.formats import ModelConfig, open_reader
from ckptavg.formats.zip_archive import ZipArchive
from ckptavg.storage.open_file import OpenFile
from tests.helpers.files import rewrite_zip
from tests.helpers.models import evaluator, randomize

MiB = 1024**2


def written(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def archive(tmp_path) -> Path:
    path = tmp_path / "a.keras"
    randomize(evaluator(), 1).save(path)
    return path


def test_members_are_those_of_the_archive(tmp_path):
    contents = {"a": b"x" * 700_000, "b/c": b"", "d": b"yz"}
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = written(tmp_path / "a.zip", contents, method)
        with closing(OpenFile(path)) as file:
            found = ZipArchive(file)
            assert {name: member.size for name, member in found.members.items()} == {
                name: len(content) for name, content in contents.items()
            }
            assert {name: found.read(name, 10**6) for name in contents} == contents
            with pytest.raises(FormatError, match=r"its a has 700,000 bytes, but at most 10 are"):
                found.read("a", 10)
            with pytest.raises(FormatError, match="it lacks e"):
                found.read("e", 10)
            extent = found.extent("d")
            assert (extent is None) == (method == zipfile.ZIP_DEFLATED)
            assert extent is None or file.read(*extent) == b"yz"


def test_a_member_without_a_name_is_damage(archive):
    data = archive.read_bytes()
    place = data.rindex(b"PK\1\2")  # the last member's entry in the list
    length = int.from_bytes(data[place + 28 : place + 30], "little")
    # The name counts as the comment of the member.
    entry = data[place : place + 28] + bytes(4) + length.to_bytes(2, "little")
    archive.write_bytes(data[:place] + entry + data[place + 34 :])
    with pytest.raises(FormatError, match="not an intact"):
        open_reader(archive)


def test_a_list_of_many_members_is_refused_in_little_memory(tmp_path, archive):
    with zipfile.ZipFile(archive, "a") as appended:
        for number in range(25_000):
            appended.writestr(zipfile.ZipInfo(f"assets/{number}"), b"")
    tracemalloc.start()
    with pytest.raises(FormatError, match=r"its list of members has [\d,]+ bytes, but at most"):
        open_reader(archive)
    assert tracemalloc.get_traced_memory()[1] < 3 * MiB
    tracemalloc.stop()


@pytest.mark.parametrize("content", [b"[" + b"[]," * 20_000_000 + b"0]", b"[" * 10**6])
def test_a_configuration_that_inflates_is_refused_in_little_memory(tmp_path, archive, content):
    bomb = rewrite_zip(archive, tmp_path / "b.keras", {"config.json": content}, deflate=True)
    assert bomb.stat().st_size < 200_000
    tracemalloc.start()
    for write in (ckptavg.merge, ckptavg.convert):
        with pytest.raises(CkptavgError, match=r"at most|Recursion|damaged"):
            write(bomb, tmp_path / "o.keras")
    assert tracemalloc.get_traced_memory()[1] < 40 * MiB
    tracemalloc.stop()


def test_a_configuration_must_fit_into_the_memory_that_is_given(tmp_path, archive):
    content = b'{"class_name": [' + b"[]," * 1_000_000 + b"0]}"
    large = rewrite_zip(archive, tmp_path / "b.keras", {"config.json": content})
    with pytest.raises(MemoryLimitError):
        ckptavg.merge(large, tmp_path / "o.keras", max_memory=80 * MiB)
    assert ModelConfig.read(large).config == content.decode()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_without_bounds_are_refused(tmp_path, method):
    path = written(tmp_path / "a.zip", {"a": bytes(10)}, method)
    with closing(OpenFile(path)) as file, pytest.raises(FormatError, match="not stored or defl"):
        ZipArchive(file).read("a", 10)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(tmp_path, archive):
    with zipfile.ZipFile(archive, "a") as appended:
        appended.writestr("config.json", b"{}")
    with pytest.raises(FormatError, match="two of its members have one name"):
        open_reader(archive)


def test_assets_that_lead_out_of_their_folder_are_refused(tmp_path, archive):
    with zipfile.ZipFile(archive, "a") as appended:
        appended.writestr("assets/../../x", b"")
    with pytest.raises(FormatError, match="is not a path of folders"):
        ckptavg.merge(archive, tmp_path / "o.keras")


@pytest.mark.parametrize("name", ["config.json", "metadata.json", "model.weights.h5"])
def test_a_damaged_member_is_named_by_all_that_read_it(tmp_path, archive, name):
    with closing(OpenFile(archive)) as file:
        extent = ZipArchive(file).extent(name)
    data = bytearray(archive.read_bytes())
    data[extent.offset + extent.nbytes - 3] ^= 1
    archive.write_bytes(data)
    for command in (
        lambda: ckptavg.verify(archive),
        lambda: ckptavg.merge(archive, tmp_path / "o.keras"),
        lambda: ckptavg.convert(archive, tmp_path / "o.weights.h5"),
    ):
        with pytest.raises(IntegrityError, match=rf"a.keras is damaged: its {name} cannot be read"):
            command()


def test_an_archive_without_record_is_proven_by_its_checksums(tmp_path, archive):
    (found,) = ckptavg.verify(archive)
    assert (found.proof, found.unproven) == ("intact", ())
    assert ckptavg.merge(archive, tmp_path / "o.keras").unverified == ()


def test_a_list_of_members_that_lies_nowhere(archive):
    # It seems to be preceded by fewer bytes than it says, so that all offsets become negative.
    data = bytearray(archive.read_bytes())
    end = data.rindex(b"PK\5\6")
    data[end + 16 : end + 20] = (int.from_bytes(data[end + 16 : end + 20], "little") + 99).to_bytes(
        4, "little"
    )
    archive.write_bytes(data)
    with pytest.raises(FormatError):
        open_reader(archive)
