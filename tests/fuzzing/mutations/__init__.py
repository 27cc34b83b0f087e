"""Changes to the files of a checkpoint or run, made where their formats keep what matters."""

import json
import os
from collections.abc import Callable, Mapping
from enum import Enum, auto
from pathlib import Path
from random import Random

from tests.fuzzing.mutations import hdf5, json_trees, safetensors, tables, zips
from tests.fuzzing.mutations.plain import change_bytes

Files = Mapping[str, bytes]
"""The contents of files by their names."""


class Special(Enum):
    """What stands where a file should."""

    NOTHING = auto()
    PIPE = auto()
    FOLDER = auto()
    LOOP = auto()
    ENDLESS = auto()
    SPARSE = auto()

    def make(self, path: Path) -> None:
        """Puts it in the place of a file."""
        path.unlink()
        match self:
            case Special.PIPE:
                os.mkfifo(path)
            case Special.FOLDER:
                path.mkdir()
            case Special.LOOP:
                path.symlink_to(path)
            case Special.ENDLESS:
                path.symlink_to("/dev/zero")
            case Special.SPARSE:
                path.touch()
                os.truncate(path, 20 * 1024**3)


_BY_SUFFIX: dict[str, Callable[[Random, bytes], bytes]] = {
    ".h5": hdf5.change,
    ".hdf5": hdf5.change,
    ".keras": zips.change,
    ".npz": zips.change,
    ".safetensors": safetensors.change,
    ".index": tables.change,
    ".jsonl": json_trees.change_lines,
    ".journal": json_trees.change_lines,
    ".json": json_trees.change,
}
_STRUCTURED = 0.8
"""Share of the changes that know the format; the others are of any bytes."""


def mutate(random: Random, files: Files, victims: Mapping[str, int]) -> dict[str, bytes | Special]:
    """Changes one file, or two that belong together.

    Args:
        random: decides everything.
        files: all of them.
        victims: those that may change, with their weights.

    Returns:
        The new contents of what was changed, or what is in its place.
    """
    name = random.choices(list(victims), list(victims.values()))[0]
    content = files[name]
    if random.random() < 0.015:
        return {name: _replaced(random, name, files)}
    index = next((other for other in files if other.endswith(".index")), None)
    if ".data-" in name and index and random.random() < 0.5:
        return tables.change_data(random, files, name, index)
    for suffix, change in _BY_SUFFIX.items():
        if name.endswith(suffix) and random.random() < _STRUCTURED:
            return {name: change(random, content)}
    return {name: change_bytes(random, content)}


def _replaced(random: Random, name: str, files: Files) -> bytes | Special:
    """Something else than a file, another file of the folder, or one far too deep or long."""
    if random.random() < 0.4:
        return random.choice(list(Special))
    deep = b"[" * 100_000 + b"]" * 100_000
    twice = files[name] * 2
    long = json.dumps({"format": "x" * 1_000_000}).encode()
    return random.choice((b"", b"\n", deep, twice, long, random.choice(list(files.values()))))
