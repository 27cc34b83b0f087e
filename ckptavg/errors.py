"""The exceptions and the warning of ckptavg."""

import re
import warnings
from numbers import Integral

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_VALUES = re.compile(r", value=\[.*")
_LONGEST = 600


class CkptavgError(Exception):
    """Base class of every error that ckptavg raises on purpose.

    The message says what was expected, what was found and what to do. Any other exception that
    escapes is a bug in ckptavg.
    """


class RunError(CkptavgError, ValueError):
    """Not a run directory, or it lacks the requested checkpoints."""


class RecordError(CkptavgError, ValueError):
    """The record of a checkpoint is missing, damaged or of an unknown version."""


class FormatError(CkptavgError, ValueError):
    """Not an intact checkpoint of the expected format, or a format that cannot be written."""


class MismatchError(CkptavgError, ValueError):
    """The checkpoints do not come from the same model, or cannot be averaged together."""


class RecipeError(CkptavgError, ValueError):
    """The coefficients or options do not describe an average of the checkpoints."""


class IntegrityError(CkptavgError, ValueError):
    """The bytes of a checkpoint are not those that were saved, or contain NaN or infinity."""


class OutputError(CkptavgError, OSError):
    """The output exists already, or cannot be written to the requested place."""


class ResourceError(CkptavgError, OSError):
    """Not enough memory or disk space."""


class ThreadLimitError(ResourceError):
    """The system allows no more threads."""

    def __init__(self) -> None:
        super().__init__(
            "the system allows no more threads (ulimit -u, or memory): end other programs, or "
            "raise the limit"
        )


class MemoryLimitError(ResourceError):
    """The work needs more memory than its limit allows.

    Attributes:
        least: the lowest limit, in bytes, under which the work would run.
    """

    def __init__(self, least: int, limit: int) -> None:
        super().__init__(
            f"a memory limit of {limit:,} bytes is too low: at least {least:,} bytes are needed"
        )
        self.least = least


class SpecError(CkptavgError, ValueError):
    """A model or data SPEC does not resolve to a model or to data."""


class ModelError(CkptavgError, ValueError):
    """The model lacks what the work needs, or does not fit the checkpoint."""


class DataError(CkptavgError, ValueError):
    """The data are empty, or the model rejects them."""


class NonFiniteError(DataError):
    """A computation with the model and the data gave NaN, infinity or an overflow."""


class SaverError(CkptavgError, ValueError):
    """`CheckpointSaver` was configured or used in a way that cannot work."""


class CkptavgWarning(UserWarning):
    """Category of every warning of ckptavg: the result may not be what was intended."""


def check_count(
    name: str, value: object, error: type[CkptavgError], least: int = 1, *, optional: bool = True
) -> None:
    """Raises `error` unless an argument is an integer >= `least`, or None where it is optional."""
    # True is an integer to Python, but never meant as a number.
    whole = isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
    if not whole and not (optional and value is None):
        raise error(f"{name} is {value!r:.80}, but must be an integer >= {least}")


def check_type(
    name: str,
    value: object,
    kinds: type | tuple[type, ...],
    expected: str,
    *,
    optional: bool = False,
) -> None:
    """Raises TypeError, with what was expected, for an argument of another type.

    None passes where the argument is optional, and a bool is no number.
    """
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError(f"{name} is {value!r:.80}, but must be {expected}")


def summary(error: BaseException) -> str:
    """The type of an error and what its message tells; those of Keras and HDF5 run over many lines.

    That is the first line. Keras' reasons follow after headings and before lists and values.
    """
    text = _COLOUR.sub("", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = lines[:1]
    if told and (told[0].endswith(":") or told[0].startswith("Exception encountered when")):
        told = lines[:2]
    told += [line for line in lines[1:] if line.startswith("Exception encountered: ")][:1]
    message = " ".join(_VALUES.sub(">", line) for line in told)
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST].rpartition(' ')[0]} ..."
    return ": ".join(filter(None, (type(error).__name__, message)))


def warn(message: str, depth: int = 2) -> None:
    """Gives a `CkptavgWarning`, in the name of a caller: 1 is the function that gives it."""
    warnings.warn(message, CkptavgWarning, stacklevel=depth + 1)
