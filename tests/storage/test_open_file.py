"""Positioned reads and writes of an open file."""

import os
import threading
from contextlib import closing
from pathlib import Path

import pytest

from ckptavg.storage.open_file import OpenFile, Range, gaps_between


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(100)))
    return path


def test_any_range_is_read_and_the_end_of_the_file_is_told(path):
    with closing(OpenFile(path)) as file:
        buffer = bytearray(10)
        assert file.read_into(20, memoryview(buffer)) == 10
        assert bytes(buffer) == bytes(range(20, 30)) == file.read(20, 10)
        assert file.read_into(95, memoryview(buffer)) == 5
        assert file.read_into(200, memoryview(buffer)) == 0
        assert file.read_ranges([Range(1, 2), Range(98, 5)]) == bytes([1, 2, 98, 99])


def test_short_reads_and_writes_of_the_system_are_continued(path, monkeypatch):
    preadv, pwrite = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda f, buffers, at: preadv(f, [buffers[0][:3]], at))
    monkeypatch.setattr(os, "pwrite", lambda f, data, at: pwrite(f, data[:3], at))
    with closing(OpenFile(path, writable=True)) as file:
        buffer = bytearray(10)
        assert file.read_into(20, memoryview(buffer)) == 10
        assert bytes(buffer) == bytes(range(20, 30))
        file.write(50, memoryview(b"0123456789"))
    assert path.read_bytes() == bytes(range(50)) + b"0123456789" + bytes(range(60, 100))


def test_threads_write_side_by_side(path):
    with closing(OpenFile(path, writable=True)) as file:
        threads = [
            threading.Thread(target=file.write, args=(10 * n, memoryview(bytes([n]) * 10)))
            for n in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        file.will_need(0, 100)
        file.begin_writeback(0, 100)
    assert path.read_bytes() == b"".join(bytes([n]) * 10 for n in range(10))


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "null"])
def test_only_regular_files_are_opened(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "null":
        path = tmp_path / "a\0b"
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match=r"."):
        OpenFile(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_links_are_read_but_not_written(path, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(path)
    OpenFile(link).close()
    with pytest.raises(OSError, match=r"symbolic link|Too many levels"):
        OpenFile(link, writable=True)


def test_a_stamp_tells_changes_and_a_path_that_names_another_file(path):
    with closing(OpenFile(path)) as file:
        stamp = file.stamp
        assert file.stamp == stamp
        assert stamp.size == file.size == 100
        with path.open("ab") as other:
            other.write(b"more")
        assert file.stamp != stamp
        os.utime(path, ns=(stamp.modified_ns, stamp.modified_ns))
        assert file.stamp.modified_ns == stamp.modified_ns
        assert file.stamp.changed_ns != stamp.changed_ns
        assert file.is_in_place()
        path.rename(path.with_name("moved"))
        assert not file.is_in_place()
        path.write_bytes(b"")
        assert not file.is_in_place()


def test_closing_twice_closes_no_other_file(path):
    file = OpenFile(path)
    file.close()
    with closing(OpenFile(path)) as other:  # which takes the freed descriptor
        file.close()
        assert other.size == 100


@pytest.mark.parametrize(
    ("ranges", "gaps"),
    [
        ([], [(0, 100)]),
        ([(0, 100)], []),
        ([(90, 10), (10, 20)], [(0, 10), (30, 60)]),
        ([(10, 50), (20, 5), (40, 30)], [(0, 10), (70, 30)]),
        ([(50, 0)], [(0, 50), (50, 50)]),
        ([(0, 200)], []),
    ],
)
def test_gaps_are_what_lies_in_no_range(ranges, gaps):
    found = gaps_between([Range(*some) for some in ranges], 100)
    assert found == [Range(*gap) for gap in gaps]
