"""The errors that ckptavg raises for what its user can mend."""


class CkptavgError(Exception):
    """Root of every error that ckptavg raises on purpose.

    Messages say what was expected, what came, and what to do. Anything else that escapes from
    ckptavg is a mistake of ckptavg.
    """


class RunError(CkptavgError, ValueError):
    """A directory is no run, holds no checkpoints, or lacks the ones asked for."""


class RecordError(CkptavgError, ValueError):
    """The record of a checkpoint cannot be read."""


class FormatError(CkptavgError, ValueError):
    """A file is not a checkpoint of the format that its name says, or is damaged."""


class MismatchError(CkptavgError, ValueError):
    """Checkpoints do not belong to the same model."""


class RecipeError(CkptavgError, ValueError):
    """Coefficients or rules do not describe an average of the checkpoints."""


class IntegrityError(CkptavgError, ValueError):
    """The bytes of a checkpoint are not those that were saved, or cannot be averaged."""


class OutputError(CkptavgError, OSError):
    """The output cannot be written where it was asked for, or is there already."""


class ResourceError(CkptavgError, OSError):
    """Memory or disk do not suffice for the work."""


class MemoryLimitError(ResourceError):
    """Work needs more memory than it may use.

    Attributes:
        least: bytes that would do.
    """

    def __init__(self, least: int, limit: int) -> None:
        super().__init__(
            f"a memory limit of {limit:,} bytes is too low: at least {least:,} bytes are needed"
        )
        self.least = least


class SpecError(CkptavgError, ValueError):
    """A model or data SPEC does not lead to a model or to data."""


class ModelError(CkptavgError, ValueError):
    """A model lacks what the work needs, or does not fit the checkpoint."""


class DataError(CkptavgError, ValueError):
    """The data are empty, or the model rejects them."""


class NonFiniteError(DataError):
    """NaN or infinity, or what is beyond a dtype, came up where a model met its data."""


class SaverError(CkptavgError, ValueError):
    """CheckpointSaver was configured or used in a way that cannot work."""


class CkptavgWarning(UserWarning):
    """What was done may not be what was meant."""


def first_line(error: BaseException) -> str:
    """The gist of an error of Keras or HDF5, which like to explain at length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
