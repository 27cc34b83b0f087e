"""The version of ckptavg."""

__version__ = "0.1.0"
