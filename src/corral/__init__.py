"""Corral: idle GPUs and CPUs of many owners, lent by the hour as ready Ray clusters."""

__version__ = "0.1.0"
