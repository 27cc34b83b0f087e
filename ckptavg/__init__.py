"""Average the checkpoints of a Keras training run after the run.

    saver = ckptavg.CheckpointSaver("run", start_epoch=16, lr_schedule="constant", swa_lr=0.01)
    model.fit(x, y, epochs=30, callbacks=[saver])

    ckptavg.merge("run", "swa.weights.h5")
    model.load_weights("swa.weights.h5")
    ckptavg.update_batch_norm(model, x)

Importing ckptavg imports neither TensorFlow nor Keras; the names that need them import them when
they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ckptavg.version import __version__

if TYPE_CHECKING:
    from ckptavg.batch_norm import BatchNormReport, update_batch_norm
    from ckptavg.checkpoints import Checkpoint
    from ckptavg.conversion import convert
    from ckptavg.errors import CkptavgError, CkptavgWarning
    from ckptavg.evaluation import evaluate
    from ckptavg.history import EpochLog
    from ckptavg.merging import MergeReport, merge, run_plan
    from ckptavg.plan import MergePlan, plan_merge
    from ckptavg.recipes import Recipe
    from ckptavg.record import Record
    from ckptavg.refresh import RefreshReport, merge_into_model, refresh_batch_norm
    from ckptavg.run import Run, open_run
    from ckptavg.saver import CheckpointSaver
    from ckptavg.search.doctor import DoctorReport, doctor
    from ckptavg.search.soup import SoupReport, soup
    from ckptavg.search.sweep import SweepReport, sweep
    from ckptavg.specs import load_model
    from ckptavg.swa import SWA
    from ckptavg.swad import Swad
    from ckptavg.verification import Verification, verify


_HOMES = {
    "BatchNormReport": "batch_norm",
    "Checkpoint": "checkpoints",
    "CheckpointSaver": "saver",
    "CkptavgError": "errors",
    "CkptavgWarning": "errors",
    "DoctorReport": "search.doctor",
    "EpochLog": "history",
    "MergePlan": "plan",
    "MergeReport": "merging",
    "Recipe": "recipes",
    "Record": "record",
    "RefreshReport": "refresh",
    "Run": "run",
    "SWA": "swa",
    "SoupReport": "search.soup",
    "Swad": "swad",
    "SweepReport": "search.sweep",
    "Verification": "verification",
    "convert": "conversion",
    "doctor": "search.doctor",
    "evaluate": "evaluation",
    "load_model": "specs",
    "merge": "merging",
    "merge_into_model": "refresh",
    "open_run": "run",
    "plan_merge": "plan",
    "refresh_batch_norm": "refresh",
    "run_plan": "merging",
    "soup": "search.soup",
    "sweep": "search.sweep",
    "update_batch_norm": "batch_norm",
    "verify": "verification",
}

_MODULES = ("analysis", "tf_keras")
"""Reached as attributes too: `ckptavg.tf_keras.CheckpointSaver`, where tf_keras is installed."""

__all__ = [
    "SWA",
    "BatchNormReport",
    "Checkpoint",
    "CheckpointSaver",
    "CkptavgError",
    "CkptavgWarning",
    "DoctorReport",
    "EpochLog",
    "MergePlan",
    "MergeReport",
    "Recipe",
    "Record",
    "RefreshReport",
    "Run",
    "SoupReport",
    "Swad",
    "SweepReport",
    "Verification",
    "__version__",
    "convert",
    "doctor",
    "evaluate",
    "load_model",
    "merge",
    "merge_into_model",
    "open_run",
    "plan_merge",
    "refresh_batch_norm",
    "run_plan",
    "soup",
    "sweep",
    "update_batch_norm",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"ckptavg.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'ckptavg' has no attribute '{name}'")
    return getattr(importlib.import_module(f"ckptavg.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
