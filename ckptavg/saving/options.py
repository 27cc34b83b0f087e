"""What CheckpointSaver is asked to write and to keep, checked before training begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from ckptavg.errors import RecipeError, RunError, SaverError
from ckptavg.recipes.power_profiles import gamma_of
from ckptavg.runs.selection import metric_sign

EXISTING = ("error", "resume", "overwrite")
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
        try:
            sign = metric_sign(str(monitor), mode)
        except RunError as error:
            raise SaverError(f"keep_best: {error}") from error
        return cls(str(monitor), integer("keep_best", count), sign)


@dataclass(frozen=True, slots=True)
class Options:
    """Options of saving: the arguments of `CheckpointSaver` of the same names.

    Attributes:
        max_shard_size: in bytes.
    """

    existing: str
    max_to_keep: int | None
    keep_best: KeepBest | None
    include_optimizer: bool
    save_dtype: str | None
    max_shard_size: int | None
    on_error: str
    in_flight: int
    tracked_sigmas: tuple[float, ...]
    track_freq: int | None

    @classmethod
    def of(
        cls,
        *,
        existing: str = "error",
        max_to_keep: int | None = None,
        keep_best: KeepBestArgument | None = None,
        include_optimizer: bool = False,
        save_dtype: str | None = None,
        max_shard_size: float | None = None,
        on_error: str = "raise",
        in_flight: int = 1,
        tracked_sigmas: Sequence[float] | None = None,
        track_freq: int | None = None,
    ) -> "Options":
        """Checks arguments.

        Raises:
            SaverError: an argument cannot work.
        """
        if save_dtype is not None:
            one_of("save_dtype", save_dtype, SAVE_DTYPES)
        if track_freq is not None and not tracked_sigmas:
            raise SaverError(
                "track_freq says how often the averages of tracked_sigmas are saved: pass "
                "tracked_sigmas too"
            )
        size = max_shard_size
        if size is not None and not (isinstance(size, int | float) and size > 0):
            raise SaverError(f"max_shard_size is {size!r}, but must be a size in GB")
        return cls(
            existing=one_of("existing", existing, EXISTING),
            max_to_keep=None if max_to_keep is None else integer("max_to_keep", max_to_keep),
            keep_best=None if keep_best is None else KeepBest.of(keep_best),
            include_optimizer=include_optimizer,
            save_dtype=save_dtype,
            max_shard_size=None if size is None else int(size * 1024**3),
            on_error=one_of("on_error", on_error, ("raise", "warn")),
            in_flight=integer("in_flight", in_flight),
            tracked_sigmas=() if tracked_sigmas is None else _sigmas(tracked_sigmas),
            track_freq=None if track_freq is None else integer("track_freq", track_freq),
        )


def _sigmas(value: Any) -> tuple[float, ...]:
    """Widths of averages to track.

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


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """Returns an argument that must be one of some words.

    Raises:
        SaverError: the argument is something else.
    """
    if value not in allowed:
        raise SaverError(f"{name} is {value!r:.80}, but must be one of {', '.join(allowed)}")
    return value


def integer(name: str, value: Any, least: int = 1) -> int:
    """Returns an argument that must be an integer and at least `least`.

    Raises:
        SaverError: the argument is something else.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise SaverError(f"{name} is {value!r:.80}, but must be an integer >= {least}")
    return int(value)
