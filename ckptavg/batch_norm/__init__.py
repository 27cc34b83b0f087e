"""BatchNorm statistics of a model, re-estimated from data."""

from ckptavg.batch_norm.passes import BatchNormPass
from ckptavg.batch_norm.report import BatchNormReport, Shift
from ckptavg.batch_norm.updating import update_batch_norm

__all__ = ["BatchNormPass", "BatchNormReport", "Shift", "update_batch_norm"]
