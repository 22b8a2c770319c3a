"""The benchmark: method x data set x shots x seed, each cell once, and one page from all."""

from rada.bench.cells import Cell
from rada.bench.plan import Plan, load_plan
from rada.bench.run import RunSummary, run_plan

__all__ = ["Cell", "Plan", "RunSummary", "load_plan", "run_plan"]
