"""What CheckpointSaver is asked to write and to keep, checked before training begins."""

from dataclasses import dataclass
from typing import Any

from ckptavg.errors import RecipeError, RunError, SaverError, check_count
from ckptavg.recipes.power_profiles import gamma_of
from ckptavg.runs.selection import metric_sign

EXISTING = ("error", "resume", "overwrite")
ON_ERROR = ("raise", "warn")
SAVE_DTYPES = ("float32", "bfloat16", "float16")

KeepBestArgument = tuple[str, int] | tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class KeepBest:
    """How many checkpoints to keep because of a metric.

    Attributes:
        monitor: the metric.
        count: number of checkpoints.
        sign: +1 if lower values are better, -1 if higher ones are.
    """

    monitor: str
    count: int
    sign: int

    @classmethod
    def of(cls, value: Any) -> "KeepBest":
        """Reads `(monitor, count)` or `(monitor, count, mode)`.

        Raises:
            SaverError: the value is neither, or the direction of the metric is unknown.
        """
        if not isinstance(value, tuple | list) or len(value) not in (2, 3):
            raise SaverError(
                f"keep_best is {value!r:.80}, but must be (monitor, count), such as "
                "('val_accuracy', 5), or (monitor, count, 'min' or 'max')"
            )
        monitor, count, mode = (*value, "auto")[:3]
        check_count("keep_best", count, SaverError, optional=False)
        try:
            return cls(str(monitor), count, metric_sign(str(monitor), mode))
        except RunError as error:
            raise SaverError(f"keep_best: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of saving: the arguments of `CheckpointSaver` of the same names.

    Raises:
        SaverError: an argument cannot work.
    """

    existing: str = "error"
    max_to_keep: int | None = None
    keep_best: KeepBest | None = None
    include_optimizer: bool = False
    save_dtype: str | None = None
    max_shard_size: float | None = None
    on_error: str = "raise"
    in_flight: int = 1
    tracked_sigmas: tuple[float, ...] = ()
    track_freq: int | None = None

    @property
    def shard_bytes(self) -> int | None:
        """Bytes in a shard; None for a single file."""
        return None if self.max_shard_size is None else int(self.max_shard_size * 1024**3)

    def __post_init__(self) -> None:
        _check_one_of("existing", self.existing, EXISTING)
        _check_one_of("on_error", self.on_error, ON_ERROR)
        if self.save_dtype is not None:
            _check_one_of("save_dtype", self.save_dtype, SAVE_DTYPES)
        check_count("max_to_keep", self.max_to_keep, SaverError)
        check_count("in_flight", self.in_flight, SaverError, optional=False)
        check_count("track_freq", self.track_freq, SaverError)
        size = self.max_shard_size
        if size is not None and not (isinstance(size, int | float) and size > 0):
            raise SaverError(f"max_shard_size is {size!r}, but must be a number of GB above 0")
        if self.track_freq is not None and not self.tracked_sigmas:
            raise SaverError(
                "track_freq says how often the averages of tracked_sigmas are saved: pass "
                "tracked_sigmas too"
            )


def sigmas_of(value: Any) -> tuple[float, ...]:
    """Reads the widths of averages to track.

    Raises:
        SaverError: a value is not a width, or two of them would share a file name.
    """
    if not isinstance(value, tuple | list):
        raise SaverError(
            f"tracked_sigmas is {value!r:.80}, but must be widths of averages as fractions of the "
            "training, such as (0.05, 0.10)"
        )
    try:
        for sigma in value:
            gamma_of(sigma)
    except RecipeError as error:
        raise SaverError(f"tracked_sigmas: {error}") from error
    if len({f"{sigma:.3f}" for sigma in value}) < len(value):
        raise SaverError(
            f"tracked_sigmas is {value!r:.80}, but two of the values have the same first 3 "
            "decimals, which name their files: omit one"
        )
    return tuple(map(float, value))


def _check_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SaverError(f"{name} is {value!r:.80}, but must be one of {', '.join(allowed)}")
