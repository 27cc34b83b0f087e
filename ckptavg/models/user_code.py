"""Code of the user, run for the model or the data that a SPEC names, and kept from training."""

import functools
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import keras

from ckptavg.errors import CkptavgError, SpecError, summary
from ckptavg.models.spec_source import check_source, not_found, split, wrong_kind

_MAIN = 'if __name__ == "__main__":'


@dataclass
class _Running:
    """Code of the user that is run for a SPEC.

    Attributes:
        what: what is run, and how.
        refusal: the error that refused a training in it.
    """

    what: str
    refusal: SpecError | None = None


# A context variable: another thread of the process may train meanwhile, and is none of ours.
_running: ContextVar[_Running | None] = ContextVar("ckptavg_running", default=None)


def refuse_training() -> None:
    """Called where a training begins: raises if it begins in code that is run for a SPEC.

    Raises:
        SpecError: a training was begun by importing a file, or calling a function, for a SPEC. It
            might replace the very checkpoints that are to be averaged.
    """
    running = _running.get()
    if running is None:
        return
    frame = _users_frame(traceback.extract_stack())
    running.refusal = SpecError(
        f"{running.what}{_place(frame)}: put fit, and what only it needs, under `{_MAIN}`, so that "
        "the model and the data can be had without a training. Nothing was trained, and no "
        "checkpoint was touched"
    )
    raise running.refusal


def find(spec: str, what: str) -> Any:
    """What a SPEC `file.py:name` or `package.module:name` names, for a file imported once.

    Args:
        spec: the SPEC.
        what: what is wanted: `model`, `data` or `preprocess`.

    Raises:
        SpecError: it leads nowhere; or the file cannot be imported, or trains when it is.
    """
    place, name = split(spec, what)
    check_source(spec, place, name)
    module = _import(spec, place)
    if not hasattr(module, name):
        own = (
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        )
        raise not_found(spec, name, own)
    return getattr(module, name)


def find_or_call(spec: str, what: str) -> Any:
    """What a SPEC names; what it returns, if it is a function.

    Raises:
        SpecError: as `find` does; or the function raises an error, ends the program, or trains with
            a saver; or what is named is a number or a text.
    """
    found = find(spec, what)
    if found is None or isinstance(found, bool | int | float | str | bytes):
        raise wrong_kind(spec, spec.rpartition(":")[2], found)
    # A model can be called, too, but not without inputs.
    if isinstance(found, keras.Model) or not callable(found):
        return found
    try:
        with _kept_from_training(f"{spec} trains when it is called", spec.rpartition(":")[0]):
            return found()
    except CkptavgError:
        raise
    except (Exception, SystemExit) as error:
        raise SpecError(f"{spec} was called and raised {_described(error)}") from error


def _import(spec: str, place: str) -> ModuleType:
    """Imports a file or a module, with its own folder first on the path, as Python would run it."""
    file = Path(place).resolve() if place.endswith(".py") else None
    folder = str(Path.cwd() if file is None else file.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = place if file is None else f"_ckptavg_spec_{file.stem}_{abs(hash(str(file))):x}"
    if name in sys.modules:
        return sys.modules[name]
    try:
        with _kept_from_training(f"{place} trains when it is imported", place), _without_fit():
            return importlib.import_module(name) if file is None else _import_file(name, file)
    except CkptavgError:
        sys.modules.pop(name, None)  # where the file itself had caught the error, it is still there
        raise
    except SystemExit as error:
        raise SpecError(
            f"{place} ends the program when it is imported: {_described(error)}. Put what reads "
            f"the command line, and what trains, under `{_MAIN}`"
        ) from error
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if file is None and missing is not None and f"{place}.".startswith(f"{missing}."):
            raise SpecError(f"in the SPEC '{spec}': there is no module {missing}") from error
        raise SpecError(f"{place} cannot be imported: {_described(error)}") from error


def _import_file(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # the suffix is .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _kept_from_training(what: str, program: str) -> Iterator[None]:
    """Runs code of the user as the program that it belongs to, without arguments.

    Raises:
        SpecError: it began a training, even if it caught the error that refused this.
    """
    running = _Running(what)
    token = _running.set(running)
    arguments, sys.argv = sys.argv, [program]  # not those of ckptavg, which it might parse
    try:
        yield
    except (Exception, SystemExit):
        if running.refusal is None:
            raise
    finally:
        sys.argv = arguments
        _running.reset(token)
    if running.refusal is not None:
        raise running.refusal


@contextmanager
def _without_fit() -> Iterator[None]:
    """Lets `fit` refuse at once in what is imported, before it spends time on a training."""
    train = keras.Model.fit
    own = "fit" in vars(keras.Model)

    @functools.wraps(train)
    def fit(*args: Any, **kwargs: Any) -> Any:
        refuse_training()
        return train(*args, **kwargs)

    keras.Model.fit = fit
    try:
        yield
    finally:
        # A library that wraps `fit` as it is imported has wrapped this one, which stays below it.
        if vars(keras.Model).get("fit") is fit:
            if own:
                keras.Model.fit = train
            else:
                del keras.Model.fit


def _described(error: BaseException) -> str:
    """The error, and where in the user's own code it was raised."""
    frame = _users_frame(traceback.extract_tb(error.__traceback__))
    return summary(error) + _place(frame)


def _users_frame(frames: traceback.StackSummary) -> traceback.FrameSummary | None:
    """The innermost frame in the user's own code."""
    return next((frame for frame in reversed(frames) if _is_users(frame.filename)), None)


def _place(frame: traceback.FrameSummary | None) -> str:
    return f" ({Path(frame.filename).name}, line {frame.lineno})" if frame else ""


def _is_users(filename: str) -> bool:
    # Of ckptavg itself all rooms: a saver that refuses stands in the stack, too.
    own = f"{Path(__file__).parents[1]}{os.sep}"
    return "site-packages" not in filename and not filename.startswith(("<", sys.base_prefix, own))
