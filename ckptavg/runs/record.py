"""The record of a checkpoint: what the file is, and the digests that prove it intact.

A record is a JSON file. Beside a checkpoint of a run, `epoch-0016.weights.h5`, it is called
`epoch-0016.json` and is the commit mark: a checkpoint counts as saved once its record stands.
Beside any other file it has the file's whole name and `.json`, as in `swa.weights.h5.json`, so
that the records of `swa.weights.h5` and `swa.keras` do not collide. A record names its file, and
holds for that file only.
"""

import json
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ckptavg.errors import RecordError
from ckptavg.formats.strict_json import parse
from ckptavg.recipes.posthoc_ema import TrackedAverage
from ckptavg.runs.json_values import DAMAGE, Digest, Scalar, decode, encode
from ckptavg.storage.files import write_text
from ckptavg.storage.open_file import read_small_file
from ckptavg.version import __version__

FORMAT = "ckptavg-record"
VERSION = 1
OMITTED_IF_EMPTY = ("choice", "parts", "model_digest", "differences")
"""Fields that are not written while they are empty."""


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """Shape, dtype and the xxh3-128 digest of every 8 MiB of a tensor's bytes, in order."""

    shape: tuple[int, ...]
    dtype: str
    digests: tuple[Digest, ...]


TensorRecords = Mapping[str, TensorRecord]


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """A checkpoint that entered an average.

    Attributes:
        path: the file, relative to the folder of the averaged file.
        size: its size in bytes.
        coefficient: its coefficient in the average.
        epoch: the epoch it was saved at, where known.
        verified: whether its bytes were proven by its own record while they were read.
        digest: of all bytes that went into the average: the xxh3-128 of the digests of all 8 MiB
            blocks of all tensors, in order, with zeros for blocks that came from other sources
            alone.
    """

    path: str
    size: int
    coefficient: float
    epoch: int | None = None
    verified: bool = False
    digest: Digest | None = None


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
        non_finite: stored names of tensors that hold NaN or infinity; averages leave the
            checkpoint out.
        ema: the tracked average that the file holds; None for the weights themselves.
        choice: what `merge` was asked for, such as `{"last": 10, "recipe": "ema", "decay": 0.9}`;
            empty for the plain mean of all checkpoints, and in records of 0.1.0.
        parts: digests of what the file holds beside tensors and what the network depends on, by
            name, such as `config.json` and `assets/...`; records of 0.1.0 have none.
        model_digest: digest of the file that `model` names; None if that is no `model.json`, and in
            records of 0.1.0.
        differences: in what the trainings of the sources differ, if they are of several, such as
            `learning rate (0.01, 0.05)`; as far as it was recorded, and not in records of 0.1.0.
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
    ema: TrackedAverage | None = None
    choice: Mapping[str, Scalar] = field(default_factory=dict)
    parts: Mapping[str, Digest] = field(default_factory=dict)
    model_digest: Digest | None = None
    differences: tuple[str, ...] = ()
    path: Path | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return f"Record of {self.file}: {self.facts}"

    @property
    def facts(self) -> str:
        """What the file is, in a few words, such as `epoch 75, step 7500, val_loss 0.1234`."""
        known = [f"epoch {self.epoch}"] if self.epoch is not None else []
        known += [f"step {self.step}"] if self.step is not None else []
        known += [f"{name} {value:.4g}" for name, value in self.metrics.items()]
        if self.ema is not None:
            known.append(f"tracked average of sigma_rel {self.ema.sigma_rel:g}")
        if self.sources:
            count = f"{len(self.sources)} checkpoint" + ("s" if len(self.sources) != 1 else "")
            known.append(f"{self.recipe} of {count}")
        if self.batch_norm is not None:
            known.append(f"BatchNorm statistics {self.batch_norm.statistics}")
        known += ["holds NaN or infinity"] if self.non_finite else []
        return ", ".join(known) or f"{self.size:,} bytes"

    def write(self, path: Path, tensors: TensorRecords) -> "Record":
        """Writes the record to `path`, whole or not at all; returns it with the path."""
        write_text(path, self.to_json(tensors))
        return replace(self, path=path)

    def to_json(self, tensors: TensorRecords) -> str:
        """The record with the proof of the checkpoint, strict JSON."""
        content = {"format": FORMAT, "version": VERSION, **encode(self), "tensors": encode(tensors)}
        # Records of what 0.1.0 knew stay as it wrote them.
        for name in OMITTED_IF_EMPTY:
            if not content[name]:
                del content[name]
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Reads a record.

        Raises:
            RecordError: the file is missing, is not a record, or is of a newer version.
        """
        found: Record = _decoded(cls, _read_content(path), path)
        return replace(found, path=path)

    def read_tensors(self) -> TensorRecords:
        """The proof of the checkpoint by stored name of its tensors, without optimizer state.

        Raises:
            RecordError: the record's file is gone or damaged.
        """
        assert self.path is not None, "only a record with a file has tensors"
        tensors = _read_content(self.path)["tensors"]
        found: TensorRecords = _decoded(TensorRecords, tensors, self.path)
        return found


def now() -> str:
    """The time, ISO 8601, UTC."""
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
        content = parse(read_small_file(path))
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"cannot read the record {path}: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RecordError(
            f"{path} is not a record of ckptavg, or is damaged: restore it, or remove it to "
            "continue without its proof"
        )
    # Only now: a file that is not a record has versions of its own.
    if content.get("version") != VERSION:
        raise RecordError(
            f"{path} is a record of version {content.get('version')!r:.20}, but this ckptavg reads "
            f"version {VERSION}: install the ckptavg that wrote it"
        )
    if not isinstance(content.get("tensors"), dict):
        raise RecordError(f"the record {path} is damaged: 'tensors' must be an object")
    return content


def _decoded(kind: Any, content: Any, path: Path) -> Any:
    try:
        return decode(kind, content)
    except DAMAGE as error:
        raise RecordError(f"the record {path} is damaged: {error!r:.200}") from error
