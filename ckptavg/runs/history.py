"""The history of a run: what Keras logged for every epoch of a training, saved or not."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ckptavg.errors import RecordError
from ckptavg.formats.strict_json import parse
from ckptavg.runs.json_values import DAMAGE, decode, encode
from ckptavg.storage.open_file import read_small_file

HISTORY_FILE = "history.jsonl"


@dataclass(frozen=True, slots=True)
class EpochLog:
    """What Keras logged for one epoch.

    Attributes:
        epoch: 1-based.
        step: optimizer steps taken when it ended; None where the model has no optimizer.
        learning_rate: the one that Keras logged, else that at the end of the epoch.
        metrics: those of training, and those of validation as `val_...`.
        time: when the epoch ended, ISO 8601, UTC.
    """

    epoch: int
    step: int | None
    learning_rate: float | None
    metrics: Mapping[str, float]
    time: str

    def to_line(self) -> str:
        """The line of the history file, strict JSON."""
        return json.dumps(encode(self), allow_nan=False) + "\n"


def read_history(path: Path) -> tuple[EpochLog, ...]:
    """Reads a history file, without a last line that was cut off.

    Returns:
        The epochs in order; none where there is no such file.

    Raises:
        RecordError: a line is damaged.
    """
    try:
        # What follows the last line end was torn off.
        lines = read_small_file(path).split(b"\n")[:-1]
    # Runs of versions without a history.
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise RecordError(f"cannot read the history {path}: {error}") from error
    logs: list[EpochLog] = []
    for place, line in enumerate(lines, 1):
        try:
            logs.append(decode(EpochLog, parse(line)))
        except DAMAGE as error:
            raise RecordError(
                f"line {place} of the history {path} is damaged: {error!r:.200}. Remove the line "
                "or the file: checkpoints do not depend on it"
            ) from error
    return tuple(logs)
