"""What can be averaged: runs, files, patterns and folders, resolved to checkpoints."""

import glob
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ckptavg.errors import RunError
from ckptavg.formats import READ_SUFFIXES, STATE_FILE, read_state, suffix_of
from ckptavg.formats.tensorflow.paths import checkpoint_path
from ckptavg.runs.checkpoint import Checkpoint, TrackedCheckpoint
from ckptavg.runs.numbering import epochs_in, natural_key
from ckptavg.runs.run import Run, finding, is_run, open_run
from ckptavg.runs.selection import training_order
from ckptavg.storage.background import wait_for_writes
from ckptavg.storage.files import TEMPORARY_PREFIX, is_file

Sources = Run | Checkpoint | str | Path | Iterable["Run | Checkpoint | str | Path"]
"""What can be averaged: a run or its directory, a checkpoint or its file, a pattern such as
`ckpt/*.weights.h5`, a folder of checkpoints, or several of these."""

_SAVED_MODEL = "saved_model.pb"
_SHARDS = (
    (re.compile(r"(.+)_\d{5}\.weights\.h5"), ".weights.json"),
    (re.compile(r"(.+)-\d{5}-of-\d{5}\.safetensors"), ".safetensors.index.json"),
)
"""Names of shards, and the suffix of the index that lists them."""


@finding()
def resolve(sources: Sources, *, tracked: bool = False) -> tuple[Checkpoint, ...]:
    """The checkpoints that a caller means, those of a folder or a pattern in natural order.

    Args:
        sources: what was named.
        tracked: whether to include the averages that a run has tracked.

    Raises:
        RunError: a directory holds no checkpoints, or checkpoints of several kinds; a file is
            missing or cannot be read; nothing was named, or a set, which has no order.
        RecordError: a record is damaged.
    """
    wait_for_writes()
    # A run that the caller opened is taken as it was then.
    if isinstance(sources, Run):
        return (*sources.checkpoints, *(sources.averages if tracked else ()))
    if isinstance(sources, Checkpoint):
        return (sources,)
    if isinstance(sources, str | Path):
        if is_run(sources):
            return resolve(open_run(sources), tracked=tracked)
        return _resolve_path(Path(sources))
    # Bytes iterate as integers, which no one means.
    if not isinstance(sources, Iterable) or isinstance(sources, bytes):
        raise RunError(
            f"expected a run, a checkpoint file or several, but got {type(sources).__name__}"
        )
    # In which order a set iterates changes from process to process.
    if isinstance(sources, set | frozenset):
        raise RunError("checkpoints in a set have no order: pass a list, in the order of training")
    named = list(sources)
    files = [Path(source) for source in named if isinstance(source, str | Path)]
    # The epochs in names are found by comparing them, so files are taken together.
    if len(files) == len(named) > 1 and all(file.is_file() for file in files):
        return _opened(files)
    found = tuple(c for source in named for c in resolve(source, tracked=tracked))
    if not found:
        raise RunError("there is no checkpoint to average: name a run or checkpoint files")
    return found


@finding()
def resolve_averages(sources: Sources) -> tuple[TrackedCheckpoint, ...]:
    """The tracked averages that a caller means: those of a run, or files that hold some.

    Raises:
        RunError: there are none.
    """
    if isinstance(sources, Sequence) and not isinstance(sources, str) and len(sources) == 1:
        return resolve_averages(sources[0])
    if isinstance(sources, str | Path) and is_run(sources):
        sources = open_run(sources)
    # Not those of several runs: averages of two trainings do not combine to one of either.
    found = sources.averages if isinstance(sources, Run) else resolve(sources)
    averages = tuple(c for c in found if isinstance(c, TrackedCheckpoint))
    if not averages or len(averages) < len(found):
        others = [c.path for c in found if not isinstance(c, TrackedCheckpoint)]
        place = sources.directory if isinstance(sources, Run) else others[0]
        raise RunError(
            f"{place} holds no averages tracked during training, which posthoc-ema combines: "
            "name one run whose CheckpointSaver had tracked_sigmas, such as (0.05, 0.10)"
        )
    return averages


def _resolve_path(path: Path) -> tuple[Checkpoint, ...]:
    if path.is_dir():
        if (path / STATE_FILE).is_file():
            return tuple(map(Checkpoint.open, read_state(path)))
        return _in_folder(path)
    # A file may really be called `a[1].h5`: what exists is not taken for a pattern.
    if glob.has_magic(str(path)) and not Checkpoint.exists(checkpoint_path(path)):
        return _matching(str(path))
    return (Checkpoint.open(path),)


def _matching(pattern: str) -> tuple[Checkpoint, ...]:
    names = glob.glob(pattern)  # noqa: PTH207 (Path.glob knows no absolute patterns)
    found = _checkpoints_among(map(Path, names))
    if not found:
        raise RunError(f"no checkpoint matches {pattern}: to match a literal '[', write '[[]'")
    checkpoints = _in_order(found)
    averages = [c for c in checkpoints if _is_average(c)]
    if averages and len(averages) < len(checkpoints):
        raise RunError(
            f"{pattern} matches {averages[0].path}, which is an average, besides checkpoints of a "
            "training: use a narrower pattern"
        )
    return checkpoints


def _is_average(checkpoint: Checkpoint) -> bool:
    record = checkpoint.record
    return record is not None and (bool(record.sources) or record.ema is not None)


def _in_folder(folder: Path) -> tuple[Checkpoint, ...]:
    """The checkpoints of a folder that Keras' `ModelCheckpoint` filled, without averages in it."""
    paths = _checkpoints_among(folder.iterdir())
    if not paths:
        if is_file(folder / _SAVED_MODEL):
            variables = folder / "variables" / "variables"
            raise RunError(f"{folder} is a SavedModel: name its variables, {variables}")
        raise RunError(
            f"{folder} holds no checkpoints: expected a run of CheckpointSaver, or files with the "
            f"suffix {', '.join(READ_SUFFIXES)}"
        )
    kinds = Counter(map(suffix_of, paths))
    if len(kinds) > 1:
        listed = ", ".join(f"{count} of {kind or 'TensorFlow'}" for kind, count in kinds.items())
        raise RunError(
            f"{folder} holds checkpoints of several formats ({listed}): name them by a pattern "
            f"such as '{folder}/*{paths[0].suffix}'"
        )
    found = tuple(checkpoint for checkpoint in _in_order(paths) if not _is_average(checkpoint))
    if not found:
        raise RunError(f"{folder} holds only averages, no checkpoints of a training")
    # Keras users keep a `best` or `last` beside numbered ones: it would be averaged twice.
    numbered = [c for c in found if re.search(r"\d", stem(c.path))]
    if numbered and len(numbered) < len(found):
        odd = next(c for c in found if c not in numbered)
        raise RunError(
            f"{folder} holds {odd.path.name} besides numbered checkpoints, and it may be a copy of "
            f"one of them: name them by a pattern such as '{folder}/*[0-9]*'"
        )
    return found


def _in_order(paths: Iterable[Path]) -> tuple[Checkpoint, ...]:
    """Checkpoints by epoch where all are known, else by the numbers in their names, else by names.

    Names are no order of training, but one that does not change; `select` asks for more.
    """
    found = _opened(sorted(paths, key=lambda path: natural_key(str(path))))
    order = training_order(found)
    if order is None:
        return found
    return tuple(found[n] for n in sorted(range(len(found)), key=order.__getitem__))


def _opened(paths: Sequence[Path]) -> tuple[Checkpoint, ...]:
    """Checkpoints, in this order, with the epochs in their names."""
    epochs = epochs_in([stem(path) for path in paths])
    if epochs is None:
        return tuple(map(Checkpoint.open, paths))
    return tuple(map(Checkpoint.open, paths, epochs))


def _checkpoints_among(paths: Iterable[Path]) -> list[Path]:
    return [
        checkpoint_path(path)
        for path in dict.fromkeys(paths)
        if suffix_of(path)
        and not path.name.startswith(TEMPORARY_PREFIX)
        and not _is_shard(path)
        and path.is_file()
    ]


def _is_shard(path: Path) -> bool:
    for pattern, index in _SHARDS:
        match = pattern.fullmatch(path.name)
        if match and path.with_name(match[1] + index).is_file():
            return True
    return False


def stem(path: Path) -> str:
    """The name of a checkpoint without the suffix of its format."""
    return path.name.removesuffix(suffix_of(path))
