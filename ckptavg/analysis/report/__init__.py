"""A report on a run, and on an average of it, as one HTML page."""

from ckptavg.analysis.report.write import RunReport, write_report

__all__ = ["RunReport", "write_report"]
