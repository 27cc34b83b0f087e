"""Which checkpoints a merge averages, as its caller said it."""

from collections.abc import Mapping
from dataclasses import dataclass

from ckptavg.errors import RecipeError
from ckptavg.recipes.swad import Swad
from ckptavg.runs.describe import list_epochs
from ckptavg.runs.json_values import Scalar
from ckptavg.runs.selection import select
from ckptavg.runs.sources import Sources, resolve

SWAD = "swad"


@dataclass(frozen=True, slots=True)
class Selection:
    """Conditions that apply one after the other; attributes are the keywords of `merge`."""

    epochs: tuple[int, ...] | None
    last: int | None
    best: int | None
    monitor: str
    mode: str
    window: Swad | None

    def __bool__(self) -> bool:
        return any(c is not None for c in (self.epochs, self.last, self.best, self.window))

    def choose(self, sources: Sources) -> Sources:
        """The checkpoints that are meant; all of them if there is no condition.

        Raises:
            RunError: there are no such checkpoints.
        """
        if not self:
            return sources
        return select(
            resolve(sources),
            epochs=self.epochs,
            last=self.last,
            best=self.best,
            monitor=self.monitor,
            mode=self.mode,
            window=self.window,
        )

    def noted(self) -> Mapping[str, Scalar]:
        """The conditions for a record, each under its keyword."""
        found: dict[str, Scalar] = {}
        if self.epochs is not None:
            found["epochs"] = list_epochs(self.epochs).replace(" ", "")
        found |= {
            name: n for name, n in (("last", self.last), ("best", self.best)) if n is not None
        }
        if self.best is not None or self.window is not None:
            found |= {"monitor": self.monitor, "mode": self.mode}
        if self.window is not None:
            found |= {
                "window": SWAD,
                "n_converge": self.window.n_converge,
                "n_tolerance": self.window.n_tolerance,
                "tolerance_ratio": self.window.tolerance_ratio,
            }
        return found


def as_swad(
    window: Swad | str | None, n_converge: int, n_tolerance: int, tolerance_ratio: float
) -> Swad | None:
    """The window that a name and its numbers stand for.

    Raises:
        RecipeError: there is no window of that name.
        RunError: a number is out of range.
    """
    if window is None or isinstance(window, Swad):
        return window
    if window != SWAD:
        raise RecipeError(f"window is {window!r:.40}, but must be '{SWAD}' (--window)")
    return Swad(n_converge, n_tolerance, tolerance_ratio)
