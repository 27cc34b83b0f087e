"""Analysis of runs and averages: functions that compute, and plots of their results.

    geometry = ckptavg.analysis.measure_geometry("run")
    geometry.distances().to_frame()

Names are imported when they are first used; the plots are in `ckptavg.analysis.plots`.
"""

import lazy_loader

# The stub beside this file lists every public name with its home.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
