"""The record beside every checkpoint: what it is, how to prove that it is intact.

A record is a JSON file. Beside a checkpoint of a run, `epoch-0016.weights.h5`, it is called
`epoch-0016.json` and is the commit mark: a checkpoint counts as saved once its record stands.
Beside any other file it has the file's whole name and `.json`, as in `swa.weights.h5.json`, so
that the records of `swa.weights.h5` and `swa.keras` do not collide. A record names its file, and
holds for that file only.
"""

import json
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xxhash

from ckptavg.errors import OutputError, RecordError
from ckptavg.runs.json_values import digest_text, number, optional, text, whole
from ckptavg.storage.files import staged_text, temporary_sibling, write_text
from ckptavg.version import __version__

FORMAT = "ckptavg-record"
VERSION = 1

_MARKS = (FORMAT.encode(), b'"ckptavg":')
"""Either makes a file a record: damage to one would take a checkpoint's proof away unnoticed."""
_HEAD = 4096
"""Bytes in which marks stand, however long the name of the file between them is."""

_SUFFIXES = re.compile(r"(\.weights)?\.\w+$")


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """Shape, dtype and the xxh3-128 digest of every 8 MiB of a tensor's bytes, in order."""

    shape: tuple[int, ...]
    dtype: str
    digests: tuple[str, ...]


TensorRecords = Mapping[str, TensorRecord]


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """A checkpoint that entered an average.

    Attributes:
        path: the file, relative to the folder of the averaged file.
        size: its size in bytes.
        coefficient: its share in the average.
        epoch: the epoch it was saved at, where known.
        verified: whether its bytes were proven by its own record while they were read.
        digest: of all bytes that went into the average: the xxh3-128 of the digests of all 8 MiB
            blocks of all tensors, in order, zeros for those that came from other sources alone.
    """

    path: str
    size: int
    coefficient: float
    epoch: int | None = None
    verified: bool = False
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class BatchNormRecord:
    """What the BatchNorm statistics in a file are worth.

    Attributes:
        layers: number of BatchNormalization layers.
        statistics: `running` (as training left them), `stale` (averaged with the weights, not
            those of the averaged network), `fresh` (re-estimated by a forward pass) or `partly
            fresh` (some layers are frozen, or the pass did not reach them).
        samples: samples that fresh statistics were estimated from.
        batches: batches that they came in.
        data: the data SPEC they came from.
        tensors: stored names of the statistics that the pass changed.
        mode: of the pass, see `update_batch_norm`.
        moving: stored names of all moving statistics; empty where they are not known.
    """

    layers: int
    statistics: str
    samples: int | None = None
    batches: int | None = None
    data: str | None = None
    tensors: tuple[str, ...] = ()
    mode: str | None = None
    moving: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EmaRecord:
    """Which power-function average of a training's weights a file holds, where it holds one.

    Attributes:
        sigma_rel: its relative standard deviation; see `ckptavg.power_profiles`.
        step: updates that it had seen, counted from 1: the time t of its profile.
    """

    sigma_rel: float
    step: int


@dataclass(frozen=True, slots=True)
class Record:
    """What a checkpoint file is. Its file also holds what proves the checkpoint intact.

    The proof is as large as the model has tensors, so it is read only where it is needed, by
    `read_tensors`, and the records of a long run can be held at once.

    Attributes:
        file: name of the file that the record stands beside.
        size: size of the file in bytes.
        time: when it was written, ISO 8601, UTC.
        versions: of ckptavg, Python and the packages that wrote the file.
        epoch: 1-based epoch that had just ended.
        step: optimizer steps taken.
        learning_rate: at the end of the epoch.
        initial_learning_rate: that the saver's schedule started from; None if it set none.
        metrics: of the epoch, as Keras logs them.
        batch_norm: what the BatchNorm statistics are worth; None without BatchNorm.
        model: configuration of the model, a path relative to the record; None if there is none.
        recipe: how the coefficients were chosen; None for a checkpoint of a run.
        sources: the checkpoints that were averaged; empty for a checkpoint of a run.
        non_finite: stored names of tensors that hold NaN or infinity; no average takes them.
        ema: the average of weights over training that the file holds; None for weights themselves.
        path: the file that the record was read from or written to.
    """

    file: str
    size: int
    time: str
    versions: Mapping[str, str]
    epoch: int | None = None
    step: int | None = None
    learning_rate: float | None = None
    initial_learning_rate: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    batch_norm: BatchNormRecord | None = None
    model: str | None = None
    recipe: str | None = None
    sources: tuple[SourceRecord, ...] = ()
    non_finite: tuple[str, ...] = ()
    ema: EmaRecord | None = None
    path: Path | None = field(default=None, compare=False)

    def write(self, path: Path, tensors: TensorRecords) -> "Record":
        """Writes the record to `path`, whole or not at all; returns it with the path."""
        write_text(path, self.to_json(tensors))
        return replace(self, path=path)

    def to_json(self, tensors: TensorRecords) -> str:
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        del content["path"]
        content["tensors"] = {
            name: {"shape": tensor.shape, "dtype": tensor.dtype, "digests": tensor.digests}
            for name, tensor in tensors.items()
        }
        content["metrics"] = {name: number(value) for name, value in self.metrics.items()}
        for rate in ("learning_rate", "initial_learning_rate"):
            content[rate] = number(content[rate])
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Reads a record.

        Raises:
            RecordError: the file is missing, is not a record, or is of a newer version.
        """
        content = _read_content(path)
        with _damage_explained(path):
            if not isinstance(content["tensors"], dict):
                raise TypeError("its tensors are no dictionary")
            return cls._from_content(content, path)

    def read_tensors(self) -> TensorRecords:
        """The proof of the checkpoint by stored name of its tensors, without optimizer state.

        Raises:
            RecordError: the record's file is gone or damaged.
        """
        assert self.path is not None, "only a record with a file has tensors"
        content = _read_content(self.path)
        with _damage_explained(self.path):
            return _read_tensors(content)

    @classmethod
    def _from_content(cls, content: dict[str, Any], path: Path) -> "Record":
        batch_norm = content["batch_norm"]
        return cls(
            file=text(content["file"]),
            size=whole(content["size"]),
            time=text(content["time"]),
            versions={text(name): text(v) for name, v in content["versions"].items()},
            epoch=optional(whole, content["epoch"]),
            step=optional(whole, content["step"]),
            learning_rate=optional(float, content["learning_rate"]),
            initial_learning_rate=optional(float, content["initial_learning_rate"]),
            metrics={text(name): float(value) for name, value in content["metrics"].items()},
            batch_norm=optional(_read_batch_norm, batch_norm),
            model=optional(text, content["model"]),
            recipe=optional(text, content["recipe"]),
            sources=tuple(map(_read_source, content["sources"])),
            non_finite=tuple(map(text, content.get("non_finite", ()))),
            ema=optional(_read_ema, content.get("ema")),
            path=path,
        )


def record_path(checkpoint: Path) -> Path:
    """Where the record of a file that is no checkpoint of a run stands."""
    return checkpoint.with_name(checkpoint.name + ".json")


def find_record(checkpoint: Path) -> Record | None:
    """The record of a checkpoint, wherever it came from; None if it has none.

    Raises:
        RecordError: there is a record, but it cannot be read.
    """
    stem = _SUFFIXES.sub("", checkpoint.name)
    for path in (record_path(checkpoint), checkpoint.with_name(stem + ".json")):
        if path.is_file() and is_record(path):
            record = Record.read(path)
            # Beside a file of its very name it is of that file, which may have been renamed.
            if record.file == checkpoint.name or path == record_path(checkpoint):
                return record
    return None


def commit_with_record(
    commit: Callable[[], None], record: Record, tensors: TensorRecords, place: Path
) -> Record:
    """Commits a file and its record, which goes to `place` and is returned.

    The record is written out before anything is replaced, because the disk may be full. A former
    file's record is taken away first: a crash on the way may leave a file without a record, but
    none with a wrong one.

    Raises:
        OutputError: a folder stands where the record is to go.
    """
    if place.is_dir():
        raise OutputError(f"{place} is in the way: the record goes there")
    former = temporary_sibling(place)
    with staged_text(place, record.to_json(tensors)) as commit_record:
        with suppress(FileNotFoundError):
            place.replace(former)
        try:
            commit()
        except BaseException:
            with suppress(FileNotFoundError):
                former.replace(place)
            raise
        former.unlink(missing_ok=True)
        commit_record()
    return replace(record, path=place)


def is_record(path: Path) -> bool:
    """Tells a record, even a damaged one, from somebody else's JSON file of the same name."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    return any(mark in head for mark in _MARKS)


def digest(data: bytes | bytearray | memoryview) -> bytes:
    """The xxh3-128 digest of bytes: 16 bytes, written as 32 hexadecimal digits."""
    return xxhash.xxh3_128_digest(data)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions(packages: Iterable[str] = ("numpy", "h5py")) -> dict[str, str]:
    """Versions of ckptavg, Python and those of the packages that this process has imported."""
    found = {"ckptavg": __version__, "python": platform.python_version()}
    for package in packages:
        # The modules know their versions; importlib.metadata would parse files for 20 ms.
        version = getattr(sys.modules.get(package), "__version__", None)
        if version is not None:
            found[package] = str(version)
    return found


def _read_content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"cannot read the record {path}: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RecordError(
            f"{path} is not a record of ckptavg, or is damaged: restore it, or remove it to go "
            "without its proof"
        )
    if content.get("version") != VERSION:
        raise RecordError(
            f"{path} is a record of version {content.get('version')!r:.20}, but this ckptavg reads "
            f"version {VERSION}: install the ckptavg that wrote it"
        )
    return content


@contextmanager
def _damage_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RecordError(f"the record {path} is damaged: {error!r:.200}") from error


def _read_tensors(content: dict[str, Any]) -> TensorRecords:
    return {
        text(name): TensorRecord(
            tuple(whole(n) for n in tensor["shape"]),
            text(tensor["dtype"]),
            tuple(digest_text(digest) for digest in tensor["digests"]),
        )
        for name, tensor in content["tensors"].items()
    }


def _read_batch_norm(content: dict[str, Any]) -> BatchNormRecord:
    return BatchNormRecord(
        layers=whole(content["layers"]),
        statistics=text(content["statistics"]),
        samples=optional(whole, content["samples"]),
        batches=optional(whole, content["batches"]),
        data=optional(text, content["data"]),
        tensors=tuple(map(text, content.get("tensors", ()))),
        mode=optional(text, content.get("mode")),
        moving=tuple(map(text, content.get("moving", ()))),
    )


def _read_ema(content: dict[str, Any]) -> EmaRecord:
    return EmaRecord(float(content["sigma_rel"]), whole(content["step"]))


def _read_source(content: dict[str, Any]) -> SourceRecord:
    return SourceRecord(
        path=text(content["path"]),
        size=whole(content["size"]),
        coefficient=float(content["coefficient"]),
        epoch=optional(whole, content["epoch"]),
        verified=bool(content["verified"]),
        digest=optional(digest_text, content.get("digest")),
    )
