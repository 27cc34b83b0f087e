from .batch_norm_pass import BatchNormPass as BatchNormPass
from .options import BatchNormOptions as BatchNormOptions
from .report import BatchNormReport as BatchNormReport
from .report import Shift as Shift
from .update import update_batch_norm as update_batch_norm
