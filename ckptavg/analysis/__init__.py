"""Looking at runs and averages: functions that compute, and plots of what they give.

    geometry = ckptavg.analysis.measure_geometry("run")
    geometry.distances().to_frame()

Names are imported when they are first used; the plots are in `ckptavg.analysis.plots`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckptavg.analysis.frames import doctor_frame, run_frame, soup_frame, sweep_frame
    from ckptavg.analysis.geometry import Geometry
    from ckptavg.analysis.loss_surface import loss_line, loss_plane
    from ckptavg.analysis.measuring import measure_geometry
    from ckptavg.analysis.moving_statistics import BatchNormShift, batch_norm_shift
    from ckptavg.analysis.report import RunReport, write_report
    from ckptavg.analysis.surfaces import LossLine, LossPlane
    from ckptavg.analysis.tables import LayerTable, PairTable, Series
    from ckptavg.analysis.trajectory import Trajectory

_HOMES = {
    "BatchNormShift": "moving_statistics",
    "Geometry": "geometry",
    "LayerTable": "tables",
    "LossLine": "surfaces",
    "LossPlane": "surfaces",
    "PairTable": "tables",
    "RunReport": "report",
    "Series": "tables",
    "Trajectory": "trajectory",
    "batch_norm_shift": "moving_statistics",
    "doctor_frame": "frames",
    "loss_line": "loss_surface",
    "loss_plane": "loss_surface",
    "measure_geometry": "measuring",
    "run_frame": "frames",
    "soup_frame": "frames",
    "sweep_frame": "frames",
    "write_report": "report",
}

__all__ = [
    "BatchNormShift",
    "Geometry",
    "LayerTable",
    "LossLine",
    "LossPlane",
    "PairTable",
    "RunReport",
    "Series",
    "Trajectory",
    "batch_norm_shift",
    "doctor_frame",
    "loss_line",
    "loss_plane",
    "measure_geometry",
    "run_frame",
    "soup_frame",
    "sweep_frame",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ckptavg.analysis' has no attribute '{name}'")
    return getattr(importlib.import_module(f"ckptavg.analysis.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
