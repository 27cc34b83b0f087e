"""The file `checkpoint`, in which TensorFlow lists the checkpoints beside it."""

import os
import re
from pathlib import Path

from ckptavg.errors import FormatError
from ckptavg.formats.tensorflow.paths import has_index
from ckptavg.storage.open_file import read_small_file

STATE_FILE = "checkpoint"
_SIZE_LIMIT = 4 * 1024 * 1024
_LATEST, _ALL = "model_checkpoint_path", "all_model_checkpoint_paths"

_FIELD = re.compile(
    r"""\s* (?P<name>\w+) \s*:\s* (?: "(?P<double>(?:[^"\\\n]|\\.)*)"
    | '(?P<single>(?:[^'\\\n]|\\.)*)' | [-+.\w]+ )""",
    re.VERBOSE,
)
_ESCAPE = re.compile(rb"""\\(?:([0-7]{1,3})|x([0-9a-fA-F]{1,2})|([abfnrtv\\'"?]))""")
_ESCAPED = dict(zip(b"abfnrtv", b"\a\b\f\n\r\t\v", strict=True))


def read_state(folder: Path) -> list[Path]:
    """The prefixes of the checkpoints in a folder, oldest first, by TensorFlow's own list.

    Checkpoints that no longer exist are omitted.

    Raises:
        FormatError: the list is missing or damaged, it names a checkpoint outside the folder, or
            none of its checkpoints exists.
    """
    file = folder / STATE_FILE
    latest, others = _parse(file)
    listed = [*(path for path in others if path not in latest), *latest[-1:]]
    found = [
        prefix
        for prefix in dict.fromkeys(_locate(file, path) for path in listed)
        if has_index(prefix)
    ]
    if not found:
        raise FormatError(
            f"{file} lists {len(listed)} checkpoints, but none of them exists: "
            "name the folder that holds them"
        )
    return found


def _parse(file: Path) -> tuple[list[str], list[str]]:
    """The values of the two fields that name checkpoints."""
    found: dict[str, list[str]] = {_LATEST: [], _ALL: []}
    text = _read(file)
    position, end = 0, len(text.rstrip())
    while position < end:
        field = _FIELD.match(text, position)
        value = (field["double"] or field["single"] or "") if field else ""
        if field is None or (field["name"] in found and not value):
            line = text.count("\n", 0, position) + 1
            raise FormatError(
                f"{file} is not a list of checkpoints as TensorFlow writes it: see line {line}"
            )
        if field["name"] in found:
            found[field["name"]].append(os.fsdecode(_ESCAPE.sub(_unescaped, value.encode())))
        position = field.end()
    return found[_LATEST], found[_ALL]


def _read(file: Path) -> str:
    try:
        return read_small_file(file, _SIZE_LIMIT).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"cannot read the list of checkpoints {file}: {error}") from error


def _unescaped(match: re.Match[bytes]) -> bytes:
    octal, hexadecimal, letter = match.groups()
    if octal or hexadecimal:
        return bytes([int(octal, 8) & 0xFF if octal else int(hexadecimal, 16)])
    return bytes([_ESCAPED.get(letter[0], letter[0])])


def _locate(file: Path, listed: str) -> Path:
    """Where a listed checkpoint lies: always in the folder of the list."""
    root = Path(os.path.normpath(file.parent.absolute()))
    target = Path(os.path.normpath(root / listed))
    if root in target.parents:
        return file.parent / target.relative_to(root)
    here = file.parent / target.name
    # An absolute path to another folder was written before the folder was moved or copied.
    if Path(listed).is_absolute() and (has_index(here) or not has_index(target)):
        return here
    raise FormatError(
        f"refusing {file}: it names the checkpoint {listed!r}, which is not in its folder"
    )
