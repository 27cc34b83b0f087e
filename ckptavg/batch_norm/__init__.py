"""BatchNorm statistics of a model, re-estimated from data."""

from ckptavg.batch_norm.batch_norm_pass import BatchNormPass
from ckptavg.batch_norm.report import BatchNormReport, Shift
from ckptavg.batch_norm.update import update_batch_norm

__all__ = ["BatchNormPass", "BatchNormReport", "Shift", "update_batch_norm"]
