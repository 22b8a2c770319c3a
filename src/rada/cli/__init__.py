"""The command line: one file a command; heavy imports stay inside the functions."""

from rada.cli.app import main

__all__ = ["main"]
