"""What every format that can be written provides: a writer that commits or leaves nothing."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import ClassVar, Self

from ckptavg.errors import OutputError
from ckptavg.formats.model_config import ModelConfig
from ckptavg.formats.reader import Part, Structure, attribute_parts, gaps_by_file
from ckptavg.formats.tensors import Extent, TensorInfo
from ckptavg.storage.files import commit, partial
from ckptavg.storage.open_file import OpenFile


class CheckpointWriter(ABC):
    """A checkpoint being written beside its target, from any number of threads.

    Each file is written under a temporary name and gets its own at `commit()`, the index of several
    files last. A writer is used in a `with` statement: leaving it without `commit()` removes
    everything that was written, unless `keep_partial` is set.

    Attributes:
        path: the checkpoint: its file, or the index of its shards.
        structure: its tensors and folders.
        resumed: whether the writer continues the partial files of an earlier one.
        keep_partial: whether to keep the partial files for a later writer.
        needs_model_config: whether the format also holds the configuration of the model.
    """

    needs_model_config: ClassVar[bool] = False

    def __init__(
        self,
        path: Path,
        structure: Structure,
        model_config: ModelConfig | None = None,
        *,
        resume: bool = False,
    ) -> None:
        """Makes the files with room for the tensors.

        Args:
            path: the checkpoint.
            structure: its tensors (whose extents are ignored) and folders.
            model_config: the configuration of the model, for formats that hold it.
            resume: whether to continue the partial files of an earlier writer, if there are any.

        Raises:
            FormatError: the format cannot hold these tensors.
        """
        self.path = path
        self.structure = structure
        self.resumed = False
        self.keep_partial = False
        self._model_config = model_config
        self._check()
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
        """All files of a checkpoint of this structure."""
        return list(dict.fromkeys([*cls._data_files(path, structure), path]))

    @classmethod
    def _data_files(cls, path: Path, structure: Structure) -> list[Path]:
        """The files that hold tensors, in the order of their numbers in an `Extent`."""
        return [path]

    @classmethod
    def _split(cls, structure: Structure) -> list[list[TensorInfo]]:
        """The tensors of each file that holds tensors."""
        return [list(structure.tensors.values())]

    def _check(self) -> None:
        """Makes sure that the format can hold these tensors.

        Raises:
            FormatError: it cannot.
        """
        return

    @abstractmethod
    def _lay_out(
        self, file: Path, number: int, tensors: Sequence[TensorInfo]
    ) -> Mapping[str, Extent]:
        """Makes a file with room for tensors.

        Equal structures must give equal bytes: that is how a resumed writer recognizes its files.

        Args:
            file: the name to make it under.
            number: of the file in its checkpoint.
            tensors: that it is to hold.

        Returns:
            Where the bytes of each tensor belong.
        """

    def _index(self) -> bytes | None:
        """The content of the index, the last of `output_files`, which may depend on the tensors."""
        return None

    def write(self, name: str, start: int, data: memoryview) -> None:
        """Writes bytes of the tensor `name`, beginning at its byte `start`."""
        extent = self._extents[name]
        self._opened[extent.file].write(extent.offset + start, data)

    def read(self, name: str, start: int, nbytes: int) -> bytes:
        """Bytes of the tensor `name` as they were written; fewer where the file ends before."""
        extent = self._extents[name]
        return self._opened[extent.file].read(extent.offset + start, nbytes)

    def settle(self, name: str, start: int, nbytes: int) -> None:
        """Lets the system start writing bytes to the disk: `commit()` has less to wait for."""
        extent = self._extents[name]
        self._opened[extent.file].begin_writeback(extent.offset + start, nbytes)

    def finish(self) -> int:
        """Completes all files under their temporary names; returns their size in bytes."""
        self._moves = list(zip(self._partial, self._targets, strict=True))
        index = self._index()
        if index is not None:
            *_, path = self.output_files(self.path, self.structure)
            partial(path).write_bytes(index)
            self._moves.append((partial(path), path))
        return sum(file.stat().st_size for file, _ in self._moves)

    def parts(self) -> Iterator[Part]:
        """What the finished files hold beside tensors, as `CheckpointReader.parts` will find it."""
        return attribute_parts(self.structure)

    def commit(self) -> None:
        """Makes the finished files durable and gives them their names; all of them, or none.

        If that fails, what had these names before has them again.

        Raises:
            OutputError: something other than a file has the name of one of them.
        """
        for _, target in self._moves:
            if target.is_symlink() or (target.exists() and not target.is_file()):
                raise OutputError(
                    f"{target} is in the way: it has the name of a file of the output"
                )
        with ExitStack() as clean_up, ExitStack() as undo:
            # The former index steps aside first: a crash may leave no checkpoint of this name, but
            # never one of old and new files. A single file is replaced in one step instead.
            # See docs/decisions/0024-outputs-are-replaced-as-a-whole.md.
            for _, target in reversed(self._moves):
                former = partial(target.with_name(f"{target.name}.former"))
                former.unlink(missing_ok=True)  # a commit that was killed may have left one
                if target.exists():
                    clean_up.callback(former.unlink, missing_ok=True)
                    undo.callback(_move_back, former, target)
                    if len(self._moves) > 1:
                        target.replace(former)
                    else:
                        with suppress(OSError):  # some file systems have no links
                            former.hardlink_to(target)
            for now, target in self._moves:
                if not target.exists():
                    undo.callback(_move_back, target, now)
                commit(now, target)
            undo.pop_all()

    def discard(self) -> None:
        """Removes everything that was not committed."""
        while self._opened:
            self._opened.pop().close()
        if not self.keep_partial:
            outputs = map(partial, self.output_files(self.path, self.structure))
            for file in (*outputs, *(now for now, _ in self._moves)):
                file.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def _begin(self, resume: bool) -> None:
        """Makes the files, or finds that partial ones have the same bytes outside the tensors."""
        fresh = [partial(file) for file in self._partial]
        for file in fresh:
            file.unlink(missing_ok=True)
        self._extents: dict[str, Extent] = {}
        try:
            shards = self._split(self.structure)
            for number, (file, tensors) in enumerate(zip(fresh, shards, strict=True)):
                self._extents |= self._lay_out(file, number, tensors)
            # Sizes first: a partial file may be of any, and is then not read.
            self.resumed = (
                resume
                and [file.stat().st_size for file in fresh]
                == [file.stat().st_size for file in self._partial]
                and self._outside(fresh) == self._outside(self._partial)
            )
            if not self.resumed:
                for new, old in zip(fresh, self._partial, strict=True):
                    new.replace(old)
            for file in self._partial:
                self._opened.append(OpenFile(file, writable=True))
        finally:
            for file in fresh:
                file.unlink(missing_ok=True)

    def _outside(self, paths: Sequence[Path]) -> list[bytes]:
        """The bytes of each file that belong to no tensor."""
        with ExitStack() as stack:
            files = [stack.enter_context(closing(OpenFile(path))) for path in paths]
            gaps = gaps_by_file(self._extents.values(), [file.size for file in files])
            return list(map(OpenFile.read_ranges, files, gaps))


def _move_back(file: Path, place: Path) -> None:
    if file.exists():
        file.replace(place)
