"""What CheckpointSaver is told to keep and to write, checked before training begins."""

from dataclasses import dataclass
from numbers import Integral
from typing import Any

from ckptavg.errors import RecipeError, RunError, SaverError
from ckptavg.recipes.power_profiles import gamma_of
from ckptavg.runs.checkpoint import metric_sign

EXISTING = ("error", "resume", "overwrite")
SAVE_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class KeepBest:
    """How many checkpoints to keep for their metric.

    Attributes:
        monitor: the metric.
        count: number of checkpoints.
        sign: +1 if the metric is to be small, -1 if it is to be large.
    """

    monitor: str
    count: int
    sign: int

    @classmethod
    def of(cls, value: Any) -> "KeepBest | None":
        """Reads `(monitor, count)` or `(monitor, count, mode)`.

        Raises:
            SaverError: it is neither, or the direction of the metric is not known.
        """
        if value is None:
            return None
        if not isinstance(value, tuple | list) or len(value) not in (2, 3):
            raise SaverError(
                f"keep_best is {value!r:.80}, but must be (monitor, count), such as "
                "('val_accuracy', 5), or (monitor, count, 'min' or 'max')"
            )
        monitor, count, mode = (*value, "auto")[:3]
        try:
            return cls(str(monitor), positive("keep_best", count), metric_sign(str(monitor), mode))
        except RunError as error:
            raise SaverError(f"keep_best: {error}") from error


@dataclass(frozen=True, slots=True)
class Options:
    """Options of saving; the arguments of `CheckpointSaver` of the same names.

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
    tracked_sigmas: tuple[float, ...] = ()
    track_freq: int | None = None

    @classmethod
    def of(cls, **given: Any) -> "Options":
        """Checks arguments.

        Raises:
            SaverError: one cannot work.
        """
        one_of("existing", given["existing"], EXISTING)
        one_of("on_error", given["on_error"], ("raise", "warn"))
        if given["save_dtype"] is not None:
            one_of("save_dtype", given["save_dtype"], SAVE_DTYPES)
        for name in ("max_to_keep", "in_flight", "track_freq"):
            if given.get(name) is not None:
                positive(name, given[name])
        sigmas = _sigmas(given.get("tracked_sigmas"))
        if given.get("track_freq") is not None and not sigmas:
            raise SaverError("track_freq is how often tracked_sigmas are noted: give these")
        size = given.pop("max_shard_size")
        if size is not None and not (isinstance(size, int | float) and size > 0):
            raise SaverError(f"max_shard_size is {size!r}, but must be a size in GB")
        return cls(
            **given | {"keep_best": KeepBest.of(given["keep_best"]), "tracked_sigmas": sigmas},
            max_shard_size=None if size is None else int(size * 1024**3),
        )


def _sigmas(value: Any) -> tuple[float, ...]:
    """Lengths of averages to track, each as it is named in files.

    Raises:
        SaverError: they are none, or two have one name.
    """
    if value is None:
        return ()
    if not isinstance(value, tuple | list):
        raise SaverError(
            f"tracked_sigmas is {value!r:.80}, but must be lengths of averages as shares of the "
            "training, such as (0.05, 0.10)"
        )
    try:
        for sigma in value:
            gamma_of(sigma)
    except RecipeError as error:
        raise SaverError(f"tracked_sigmas: {error}") from error
    if len({f"{sigma:.3f}" for sigma in value}) < len(value):
        raise SaverError(
            f"tracked_sigmas are {value!r:.80}, of which two have the same first 3 decimals, by "
            "which files are named: leave one away"
        )
    return tuple(map(float, value))


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Makes sure that an argument is one of some words.

    Raises:
        SaverError: it is not.
    """
    if value not in allowed:
        raise SaverError(f"{name} is {value!r:.80}, but must be one of {', '.join(allowed)}")


def positive(name: str, value: Any) -> int:
    """Makes sure that an argument is a whole number of at least 1.

    Raises:
        SaverError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise SaverError(f"{name} is {value!r:.80}, but must be a whole number from 1 on")
    return int(value)
