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
    from ckptavg.analysis.doctor.doctor import DoctorReport, doctor
    from ckptavg.batch_norm import BatchNormReport, update_batch_norm
    from ckptavg.batch_norm.refresh import RefreshReport, merge_into_model, refresh_batch_norm
    from ckptavg.errors import CkptavgError, CkptavgWarning
    from ckptavg.merging.convert import convert
    from ckptavg.merging.merge import MergeReport, merge, run_plan
    from ckptavg.merging.plan import MergePlan, plan_merge
    from ckptavg.merging.verify import Verification, verify
    from ckptavg.models.evaluation import evaluate
    from ckptavg.models.specs import load_model
    from ckptavg.recipes import Recipe
    from ckptavg.recipes.swad import Swad
    from ckptavg.runs.checkpoint import Checkpoint
    from ckptavg.runs.history import EpochLog
    from ckptavg.runs.record import Record
    from ckptavg.runs.run import Run, open_run
    from ckptavg.saving.checkpoint_saver import CheckpointSaver
    from ckptavg.saving.swa import SWA
    from ckptavg.search.soup import SoupReport, soup
    from ckptavg.search.sweep import SweepReport, sweep


_HOMES = {
    "BatchNormReport": "batch_norm",
    "Checkpoint": "runs.checkpoint",
    "CheckpointSaver": "saving.checkpoint_saver",
    "CkptavgError": "errors",
    "CkptavgWarning": "errors",
    "DoctorReport": "analysis.doctor.doctor",
    "EpochLog": "runs.history",
    "MergePlan": "merging.plan",
    "MergeReport": "merging.merge",
    "Recipe": "recipes",
    "Record": "runs.record",
    "RefreshReport": "batch_norm.refresh",
    "Run": "runs.run",
    "SWA": "saving.swa",
    "SoupReport": "search.soup",
    "Swad": "recipes.swad",
    "SweepReport": "search.sweep",
    "Verification": "merging.verify",
    "convert": "merging.convert",
    "doctor": "analysis.doctor.doctor",
    "evaluate": "models.evaluation",
    "load_model": "models.specs",
    "merge": "merging.merge",
    "merge_into_model": "batch_norm.refresh",
    "open_run": "runs.run",
    "plan_merge": "merging.plan",
    "refresh_batch_norm": "batch_norm.refresh",
    "run_plan": "merging.merge",
    "soup": "search.soup",
    "sweep": "search.sweep",
    "update_batch_norm": "batch_norm",
    "verify": "merging.verify",
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
