"""What a command takes when it is not named: the last checkpoint of a run, the model of a file."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ckptavg.errors import FormatError, SpecError
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.proof import check_model_file
from ckptavg.runs.record_files import find_record
from ckptavg.runs.run import is_run, open_run
from ckptavg.storage.background import wait_for_writes

if TYPE_CHECKING:
    import keras


def checkpoint_file(path: str | Path) -> Path:
    """A checkpoint file; for a run, its last checkpoint.

    Raises:
        FormatError: there is no such file.
        RunError: the run holds no checkpoint.
    """
    wait_for_writes()
    path = Path(path)
    if is_run(path):
        path = open_run(path).checkpoints[-1].path
    if not path.is_file():
        raise FormatError(f"there is no checkpoint {path}")
    return path


def check_evaluated(what: str, model: object, data: object, eval_data: object) -> None:
    """Refuses a model and training data that nothing is evaluated with.

    Args:
        what: what they are for, for the message.
        model: the model, or its SPEC.
        data: training data, or their SPEC.
        eval_data: held-out data, or their SPEC.

    Raises:
        SpecError: there is one of the first, but no held-out data.
    """
    if eval_data is None and (model is not None or data is not None):
        raise SpecError(
            f"a model and training data are for {what}: pass --eval-data SPEC, too (in Python "
            "eval_data=)"
        )


def model_or_that_of(
    model: "keras.Model | str | Path | None", checkpoint: Path
) -> "keras.Model | str | Path":
    """The model that was given, or the SPEC of the one that a checkpoint comes with.

    Raises:
        SpecError: no model was given, and the checkpoint comes with none.
        IntegrityError: the configuration that it comes with was changed since.
    """
    if model is not None:
        return model
    if checkpoint.suffix == ".keras":
        return checkpoint
    found = check_model_file(Checkpoint(checkpoint, find_record(checkpoint)))
    if found is not None:
        return os.path.relpath(found)
    raise SpecError(
        f"{checkpoint} comes with no model configuration: pass --model SPEC (in Python model=)"
    )
