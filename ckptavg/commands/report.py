"""`report`: what the command is called; `ckptavg.analysis.write_report` is its other name."""

from ckptavg.analysis.report.write import write_report as report

__all__ = ["report"]
