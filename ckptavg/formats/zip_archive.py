"""Zip archives that may be damaged or hostile: members in bounded memory, proven by their CRC."""

import errno
import io
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ckptavg.errors import FormatError, IntegrityError
from ckptavg.storage.open_file import OpenFile, Range

_DIRECTORY_LIMIT = 1024 * 1024
"""Bytes of the list of members: of some 10,000, each of which takes zipfile half a kilobyte."""
_PIECE = 256 * 1024
_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Header of a member: signature, and the lengths of the name and extra field after it."""


class Member(NamedTuple):
    """A file in an archive, as its directory describes it."""

    size: int
    """Uncompressed."""
    crc: int
    """CRC-32 of its content."""


class ZipArchive:
    """An archive in an open file, which any number of threads may read, each with its own.

    Attributes:
        members: the files in it by name, in the order of the directory.
    """

    def __init__(self, file: OpenFile) -> None:
        """Reads the list of members.

        Raises:
            FormatError: it is no archive, is damaged, or has too many members or two of one name.
        """
        self._file = file
        try:
            # zipfile reads the list as a whole, and every member in pieces.
            self._archive = zipfile.ZipFile(_BoundedStream(file, _DIRECTORY_LIMIT))
            found = [info for info in self._archive.infolist() if not info.is_dir()]
        except FormatError:
            raise
        except Exception as error:  # zipfile raises nearly anything on a damaged file
            raise self._damaged(str(error)) from error
        self.members: Mapping[str, Member] = {
            info.filename: Member(info.file_size, info.CRC) for info in found
        }
        if len(self.members) < len(found):
            raise self._damaged("two of its members have one name")

    def extent(self, name: str) -> Range | None:
        """Where the bytes of a member lie in the file; None if it is compressed or encrypted.

        Raises:
            FormatError: it does not lie within the file.
        """
        info = self._archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            return None
        # Of an archive behind other bytes zipfile computes places, which may be anywhere.
        header = b""
        if 0 <= info.header_offset < self._file.size:
            header = self._file.read(info.header_offset, _LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
            raise self._damaged(f"its {name} is not where the list of members places it")
        # The extra field may differ from that of the list, which zipfile has read.
        _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if info.file_size != info.compress_size or start + info.file_size > self._file.size:
            raise self._damaged("it is truncated")
        return Range(start, info.file_size)

    def read(self, name: str, limit: int) -> bytes:
        """The content of a small member.

        Raises:
            FormatError: there is none, or it has more than `limit` bytes.
            IntegrityError: it fails its checksum.
        """
        if name not in self.members:
            raise self._damaged(f"it lacks {name}")
        size = self.members[name].size
        if size > limit:
            raise FormatError(
                f"refusing {self._file.path}: its {name} has {size:,} bytes, but at most "
                f"{limit:,} are expected"
            )
        return b"".join(self.pieces(name))

    def pieces(self, name: str) -> Iterator[bytes]:
        """The content of a member, piece by piece; its checksum is compared at the end.

        Raises:
            IntegrityError: it is damaged.
        """
        method = self._archive.getinfo(name).compress_type
        if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # Of others, zipfile unpacks a piece of the file as a whole, whatever it grows to.
            raise FormatError(f"refusing {self._file.path}: its {name} is not stored or deflated")
        try:
            with self._archive.open(name) as member:
                while piece := member.read(_PIECE):
                    yield piece
        except Exception as error:
            raise IntegrityError(
                f"{self._file.path} is damaged: its {name} cannot be read, or is not what was "
                f"saved ({error})"
            ) from error

    def _damaged(self, why: str) -> FormatError:
        return FormatError(f"{self._file.path} is not an intact .keras file: {why}")


class _BoundedStream(io.RawIOBase):
    """An open file as zipfile wants it, which is the very file that was opened and stamped."""

    def __init__(self, file: OpenFile, limit: int) -> None:
        self._file = file
        self._limit = limit
        self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET:
            offset += self._position if whence == os.SEEK_CUR else self._file.size
        if offset < 0:
            raise OSError(errno.EINVAL, "before the beginning of the file")
        self._position = offset
        return offset

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        size = size if size >= 0 else max(self._file.size - self._position, 0)
        if size > self._limit:
            raise FormatError(
                f"refusing {self._file.path}: its list of members has {size:,} bytes, but at most "
                f"{self._limit:,} are expected"
            )
        found = self._file.read(self._position, size)
        self._position += len(found)
        return found
