"""What every format that can be written provides: a writer that commits or leaves nothing."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from ckptavg.errors import OutputError
from ckptavg.formats.reader import Structure, gaps_by_file
from ckptavg.formats.tensors import Extent
from ckptavg.storage.files import commit, partial
from ckptavg.storage.open_file import OpenFile


class CheckpointWriter(ABC):
    """A checkpoint being written beside its target, safe to write from several threads.

    Each file is written under a name of its own and takes its true one at `commit()`, the index of
    several files last. It is used in a `with`: leaving it without `commit()` removes all that
    was written, unless `keep_partial` is set.

    Attributes:
        path: what will name the checkpoint: its file, or the index of its shards.
        resumed: whether an earlier writer's partial files, of the same layout, are gone on with.
        keep_partial: whether to leave the partial files for a later writer.
        needs_model_config: whether files of this format hold the configuration of the model too.
    """

    path: Path
    resumed: bool
    keep_partial: bool
    needs_model_config: ClassVar[bool] = False

    def __init__(self, path: Path, structure: Structure, *, resume: bool = False) -> None:
        """Lays out the files, their tensors unwritten.

        Args:
            path: what will name the checkpoint.
            structure: its tensors (extents are only hints) and folders.
            resume: whether to look for an earlier writer's partial files.

        Raises:
            FormatError: the format cannot hold these tensors.
        """
        self.path = path
        self.structure = structure
        self.resumed = self.keep_partial = False
        self._targets = self._data_files(path, structure)
        self._partial = [partial(target) for target in self._targets]
        self._opened: list[OpenFile] = []
        self._moves: list[tuple[Path, Path]] = []
        try:
            self._begin(resume and all(file.is_file() for file in self._partial))
        except BaseException:
            self.discard()
            raise

    @classmethod
    def output_files(cls, path: Path, structure: Structure) -> list[Path]:
        """Every file that writing `structure` to `path` will make."""
        return list(dict.fromkeys([*cls._data_files(path, structure), path]))

    @classmethod
    def _data_files(cls, path: Path, structure: Structure) -> list[Path]:
        """The files that hold tensors, in the order in which an `Extent` numbers them."""
        return [path]

    @abstractmethod
    def _lay_out(self, files: Sequence[Path]) -> Mapping[str, Extent]:
        """Makes the data files under these names; returns where each tensor is to lie.

        Equal structures must give equal bytes, so that interrupted work can be gone on with.
        """

    def _complete(self) -> Sequence[tuple[Path, Path]]:
        """Writes what only the finished tensors allow, such as an index.

        Returns:
            Further files: their partial names, and names to be. The last one makes the checkpoint
            count.
        """
        return ()

    def write(self, name: str, start: int, data: memoryview) -> None:
        """Writes bytes of the tensor `name`, from its byte `start` on."""
        extent = self._extents[name]
        self._opened[extent.file].write(extent.offset + start, data)

    def read(self, name: str, start: int, nbytes: int) -> bytes:
        """Bytes of the tensor `name` as they were written; fewer if the file ends before."""
        extent = self._extents[name]
        return self._opened[extent.file].read(extent.offset + start, nbytes)

    def settle(self, name: str, start: int, nbytes: int) -> None:
        """Lets the system begin to write bytes to the disk, so that `commit()` need not wait."""
        extent = self._extents[name]
        self._opened[extent.file].begin_writeback(extent.offset + start, nbytes)

    def finish(self) -> int:
        """Completes all files under their partial names; returns their size in bytes."""
        self._moves = [*zip(self._partial, self._targets, strict=True), *self._complete()]
        return sum(file.stat().st_size for file, _ in self._moves)

    def commit(self) -> None:
        """Makes the finished files durable and names them; after an error, none of them.

        Of a checkpoint of several files the former index goes away first: a crash on the way may
        leave no checkpoint of that name, but never one of old and new files.

        Raises:
            OutputError: something that is no file stands where one is to go.
        """
        for _, target in self._moves:
            if target.is_symlink() or target.is_dir():
                raise OutputError(f"{target} is in the way: a file of the output goes there")
        *others, (last, index) = self._moves
        former: dict[Path, Path] = {}
        moved: list[tuple[Path, Path]] = []
        try:
            if others:
                for target in (index, *(target for _, target in others)):
                    if target.exists():
                        former[target] = partial(target.with_name(f"{target.name}.former"))
                        target.replace(former[target])
            for now, target in (*others, (last, index)):
                moved.append((now, target))
                commit(now, target)
        except BaseException:
            for now, target in moved:
                if target.exists():
                    target.replace(now)
            for target, kept in reversed(former.items()):
                kept.replace(target)
            raise
        for kept in former.values():
            kept.unlink()

    def discard(self) -> None:
        """Removes everything that was not committed."""
        self._close()
        if not self.keep_partial:
            outputs = map(partial, self.output_files(self.path, self.structure))
            for file in (*outputs, *(now for now, _ in self._moves)):
                file.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.discard()

    def _begin(self, resume: bool) -> None:
        """Lays out the files, or finds that the partial ones have the very same layout."""
        fresh = [partial(file) for file in self._partial] if resume else self._partial
        for file in fresh:
            file.unlink(missing_ok=True)
        try:
            self._extents = self._lay_out(fresh)
            self._reopen()
            if resume and self._outside(fresh) == self._outside(self._partial):
                self.resumed = True
            elif resume:
                for new, old in zip(fresh, self._partial, strict=True):
                    new.replace(old)
                self._reopen()
        finally:
            if resume:
                for file in fresh:
                    file.unlink(missing_ok=True)

    def _reopen(self) -> None:
        self._close()
        self._opened = [OpenFile(file, writable=True) for file in self._partial]

    def _close(self) -> None:
        while self._opened:
            self._opened.pop().close()

    def _outside(self, paths: Sequence[Path]) -> list[tuple[int, bytes]]:
        """Size of each file, and its bytes that belong to no tensor."""
        files = [OpenFile(path) for path in paths]
        try:
            sizes = [file.size for file in files]
            gaps = gaps_by_file(self._extents.values(), sizes)
            return list(zip(sizes, map(OpenFile.read_ranges, files, gaps), strict=True))
        finally:
            for file in files:
                file.close()
