"""What every reader and every writer of checkpoints must do: inherit, and say how to make one."""

import errno
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import ckptavg
from ckptavg.errors import FormatError, IntegrityError, OutputError
from ckptavg.formats import CheckpointWriter, Structure, open_reader, open_writer
from ckptavg.formats.tensors import is_float
from ckptavg.merging.exact_mean import round_once
from ckptavg.storage.files import partial
from tests.helpers.files import leftovers, read_tensors


class FormatCase:
    """A format that the contracts are held against.

    Attributes:
        suffix: that names of its checkpoints end in.
    """

    suffix: str

    def make(self, folder: Path, seed: int, name: str = "ckpt") -> tuple[Path, dict]:
        """Writes a checkpoint by the format's own library.

        Returns:
            Its path, and the arrays it must hold by stored name, without optimizer state.
        """
        raise NotImplementedError

    def load(self, path: Path) -> dict:
        """Reads a checkpoint by the format's own library: arrays by stored name."""
        raise NotImplementedError

    def open_writer(self, path: Path, structure: Structure, **options) -> CheckpointWriter:
        """A writer of this format; overridden where it needs more than the structure."""
        return open_writer(path, structure, **options)


def assert_same(found: dict, expected: dict) -> None:
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        other = np.asarray(found[name])
        assert (other.shape, other.dtype) == (np.shape(value), np.asarray(value).dtype), name
        assert other.tobytes() == np.asarray(value).tobytes(), name


def mean_of(values: list[np.ndarray]) -> np.ndarray:
    """The float64 mean, rounded once; of what has none, the last."""
    last = np.asarray(values[-1])
    if last.dtype.kind in "SO" or not is_float(last.dtype.name):
        return last
    mean = sum(np.asarray(value).astype(np.float64) for value in values) / len(values)
    return round_once(np.atleast_1d(mean), last.dtype).reshape(last.shape)


def copy_into(writer: CheckpointWriter, source: Path) -> None:
    """Writes the tensors of a checkpoint in pieces, out of order."""
    with open_reader(source) as reader:
        pieces = [
            (tensor, start)
            for tensor in reader.structure.model_tensors.values()
            for start in range(0, tensor.nbytes, 24)
        ]
        for tensor, start in reversed(pieces):
            piece = bytearray(min(24, tensor.nbytes - start))
            reader.read_into(tensor, start, memoryview(piece))
            writer.write(tensor.name, start, memoryview(piece))


def output_structure(path: Path) -> Structure:
    """What an output that keeps all but optimizer state is made of."""
    with open_reader(path) as reader:
        return reader.structure.with_tensors(reader.structure.model_tensors)


class ReaderContract(FormatCase):
    def test_tensors_are_those_of_the_formats_own_library(self, tmp_path):
        path, expected = self.make(tmp_path, 1)
        with open_reader(path) as reader:
            model = set(reader.structure.model_tensors)
        assert_same({n: v for n, v in read_tensors(path).items() if n in model}, expected)

    def test_any_range_of_a_tensor_can_be_read(self, tmp_path):
        path, expected = self.make(tmp_path, 2)
        with open_reader(path) as reader:
            for name, value in expected.items():
                tensor, data = reader.structure.tensors[name], np.asarray(value).tobytes()
                size = tensor.numpy_dtype.itemsize
                for first, last in (
                    (0, min(1, value.size)),
                    (1, value.size),
                    (value.size // 2, value.size),
                ):
                    piece = bytearray(max(0, last - first) * size)
                    reader.read_into(tensor, first * size, memoryview(piece))
                    assert piece == data[first * size : last * size], (name, first, last)

    def test_it_opens_again_with_a_known_structure(self, tmp_path):
        path, _ = self.make(tmp_path, 3)
        with open_reader(path) as first, open_reader(path, first.structure) as second:
            assert second.structure is first.structure
            assert second.stamps == first.stamps
            assert second.size == first.size == sum(f.stat().st_size for f in second.files)

    def test_checkpoints_of_one_model_have_equal_structures(self, tmp_path):
        one, _ = self.make(tmp_path, 4, "one")
        two, _ = self.make(tmp_path, 5, "two")
        with open_reader(one) as first:
            skeleton = first.skeleton()
            with open_reader(two) as plain, open_reader(two, like=skeleton) as helped:
                assert list(plain.structure.tensors) == list(first.structure.tensors)
                assert helped.structure == plain.structure

    def test_a_file_that_changes_or_goes_is_noticed(self, tmp_path):
        path, _ = self.make(tmp_path, 6)
        with open_reader(path) as reader:
            reader.check_unchanged(reader.stamps)
            for file in reader.files:
                status = file.stat()
                os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
                with pytest.raises(IntegrityError, match="was changed"):
                    reader.check_unchanged(reader.stamps)
                os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
            moved = reader.files[-1].with_name("moved")
            reader.files[-1].rename(moved)
            with pytest.raises(IntegrityError, match="was changed"):
                reader.check_unchanged(reader.stamps)

    def test_a_missing_or_truncated_file_is_refused(self, tmp_path):
        path, _ = self.make(tmp_path, 7)
        with open_reader(path) as reader:
            files = reader.files
        for file in files:
            data = file.read_bytes()
            for keep in (0, 5, len(data) // 2, len(data) - 1):
                file.write_bytes(data[:keep])
                with pytest.raises(FormatError):
                    open_reader(path)
            file.unlink()
            with pytest.raises(FormatError):
                open_reader(path)
            file.write_bytes(data)
        open_reader(path).close()

    def test_a_closed_reader_has_no_open_files(self, tmp_path):
        path, _ = self.make(tmp_path, 8)
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(3):
            open_reader(path).close()
        assert len(list(Path("/proc/self/fd").iterdir())) == before


class WriterContract(FormatCase):
    def test_a_round_trip_is_the_identity(self, tmp_path):
        path, expected = self.make(tmp_path, 1)
        folder = tmp_path / "out"
        folder.mkdir()
        copy, structure = folder / f"copy{self.suffix}", output_structure(path)
        with self.open_writer(copy, structure) as writer:
            copy_into(writer, path)
            size = writer.finish()
            assert not copy.exists()
            writer.commit()
        assert_same(self.load(copy), expected)
        assert_same(read_tensors(copy), expected)
        with open_reader(copy) as reader:
            assert reader.structure.groups == structure.groups
            assert reader.structure.naming == structure.naming
            assert not reader.structure.optimizer
            assert size == reader.size
            files = {file.name for file in reader.files}
        assert {file.name for file in folder.iterdir()} == files

    def test_what_is_not_committed_leaves_nothing(self, tmp_path):
        path, _ = self.make(tmp_path, 2)
        folder = tmp_path / "out"
        folder.mkdir()
        for finished in (False, True):
            with self.open_writer(folder / f"o{self.suffix}", output_structure(path)) as writer:
                copy_into(writer, path)
                if finished:
                    writer.finish()
            assert list(folder.iterdir()) == []

    def test_a_former_output_is_replaced_whole(self, tmp_path):
        out = tmp_path / "out" / f"o{self.suffix}"
        out.parent.mkdir()
        for seed in (3, 4):
            path, expected = self.make(tmp_path, seed)
            with self.open_writer(out, output_structure(path)) as writer:
                copy_into(writer, path)
                writer.finish()
                writer.commit()
            assert_same(read_tensors(out), expected)
        assert not leftovers(tmp_path)

    def test_a_commit_that_fails_leaves_the_former_output(self, tmp_path, monkeypatch):
        out = tmp_path / "out" / f"o{self.suffix}"
        out.parent.mkdir()
        made = [self.make(tmp_path, seed, f"ckpt-{seed}") for seed in (3, 4)]
        former, new = (expected for _, expected in made)
        with self.open_writer(out, output_structure(made[0][0])) as writer:
            copy_into(writer, made[0][0])
            writer.finish()
            writer.commit()
        fsync, failed = os.fsync, True
        for failing in range(1, 20):
            left = [failing]

            def fail(file, left=left):
                left[0] -= 1
                if not left[0]:
                    raise OSError(errno.EIO, "the disk is broken")
                fsync(file)

            with self.open_writer(out, output_structure(made[1][0])) as writer:
                copy_into(writer, made[1][0])
                writer.finish()
                with monkeypatch.context() as patch, suppress(OSError):
                    patch.setattr(os, "fsync", fail)
                    writer.commit()
                    failed = False
            assert_same(read_tensors(out), former if failed else new)
            assert not leftovers(tmp_path)
            if not failed:
                break
        assert not failed

    def test_interrupted_writing_goes_on(self, tmp_path):
        path, expected = self.make(tmp_path, 5)
        out = tmp_path / "out" / f"o{self.suffix}"
        out.parent.mkdir()
        structure = output_structure(path)
        with self.open_writer(out, structure, resume=True) as writer:
            assert not writer.resumed
            writer.keep_partial = True
            copy_into(writer, path)
        with self.open_writer(out, structure, resume=True) as writer:
            assert writer.resumed
            for name, value in expected.items():
                data = np.asarray(value).tobytes()
                assert writer.read(name, 0, len(data)) == data
            writer.finish()
            writer.commit()
        assert_same(self.load(out), expected)
        assert not leftovers(tmp_path)

    def test_partial_files_of_another_layout_are_not_gone_on_with(self, tmp_path):
        path, expected = self.make(tmp_path, 6)
        out = tmp_path / "out" / f"o{self.suffix}"
        out.parent.mkdir()
        structure = output_structure(path)
        with self.open_writer(out, structure) as writer:
            writer.keep_partial = True
            targets = writer.output_files(out, structure)
        for target in targets:
            if partial(target).exists():
                with partial(target).open("ab") as file:
                    file.write(b"more")
        with self.open_writer(out, structure, resume=True) as writer:
            assert not writer.resumed
            copy_into(writer, path)
            writer.finish()
            writer.commit()
        assert_same(self.load(out), expected)
        assert not leftovers(tmp_path)

    def test_an_average_is_the_mean_rounded_once(self, tmp_path):
        made = [self.make(tmp_path, seed, f"ckpt-{seed}") for seed in (1, 2, 3)]
        paths = [path for path, _ in made]
        out = tmp_path / "out" / f"mean{self.suffix}"
        out.parent.mkdir()
        options = {"model": paths[0]} if self.suffix == ".keras" else {}
        report = ckptavg.merge(paths, out, non_float="last", **options)
        expected = {name: mean_of([values[name] for _, values in made]) for name in made[0][1]}
        assert_same(self.load(out), expected)
        assert_same(read_tensors(report.output), expected)
        assert not leftovers(tmp_path)
        (found,) = ckptavg.verify(out)
        assert (found.proof, found.average) == ("intact", "reproduced")

    def test_one_checkpoint_is_its_own_average_and_conversion(self, tmp_path):
        path, expected = self.make(tmp_path, 4)
        options = {"model": path} if self.suffix == ".keras" else {}
        for number, write in enumerate((ckptavg.merge, ckptavg.convert)):
            out = tmp_path / f"out{number}" / f"one{self.suffix}"
            out.parent.mkdir()
            write(path, out, **options)
            assert_same(self.load(out), expected)

    def test_nothing_is_replaced_unasked(self, tmp_path):
        path, expected = self.make(tmp_path, 5)
        options = {"model": path} if self.suffix == ".keras" else {}
        with pytest.raises(OutputError):
            ckptavg.merge(path, path, **options)
        out = tmp_path / "out" / f"one{self.suffix}"
        out.parent.mkdir()
        ckptavg.merge(path, out, **options)
        before = {file: file.read_bytes() for file in out.parent.iterdir()}
        with pytest.raises(OutputError, match="exists already"):
            ckptavg.merge(path, out, **options)
        assert {file: file.read_bytes() for file in out.parent.iterdir()} == before
        ckptavg.merge(path, out, overwrite=True, **options)
        assert_same(self.load(out), expected)
        with pytest.raises(OutputError, match="also one of the checkpoints"):
            ckptavg.merge(out, out, overwrite=True, **options)
