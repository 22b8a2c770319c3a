"""Methods to compare RAda with, one file each."""

from rada.methods.linear_probe import linear_probe

__all__ = ["linear_probe"]
