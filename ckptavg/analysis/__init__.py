"""Looking at runs and averages: functions that compute, and plots of what they give.

    geometry = ckptavg.analysis.measure_geometry("run")
    geometry.distances().to_frame()

Names are imported when they are first used; the plots are in `ckptavg.analysis.plots`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckptavg.analysis.frames import doctor_frame, run_frame, soup_frame, sweep_frame
    from ckptavg.analysis.geometry.geometry import Geometry
    from ckptavg.analysis.geometry.measure import measure_geometry
    from ckptavg.analysis.geometry.trajectory import Trajectory
    from ckptavg.analysis.loss_surface.evaluate import loss_line, loss_plane
    from ckptavg.analysis.loss_surface.results import LossLine, LossPlane
    from ckptavg.analysis.report import RunReport, write_report
    from ckptavg.analysis.statistics_shift import BatchNormShift, batch_norm_shift
    from ckptavg.analysis.tables import LayerTable, PairTable, Series

_HOMES = {
    "BatchNormShift": "statistics_shift",
    "Geometry": "geometry.geometry",
    "LayerTable": "tables",
    "LossLine": "loss_surface.results",
    "LossPlane": "loss_surface.results",
    "PairTable": "tables",
    "RunReport": "report",
    "Series": "tables",
    "Trajectory": "geometry.trajectory",
    "batch_norm_shift": "statistics_shift",
    "doctor_frame": "frames",
    "loss_line": "loss_surface.evaluate",
    "loss_plane": "loss_surface.evaluate",
    "measure_geometry": "geometry.measure",
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
