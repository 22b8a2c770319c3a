"""Evaluating predictions: metrics, paired comparison, spread over seeds, provenance of a result."""

from rada.evaluation.comparison import (
    Comparison,
    PairedDifference,
    compare,
    paired_difference,
)
from rada.evaluation.evaluation import Evaluation
from rada.evaluation.metrics import (
    ECE_BINS,
    ClassAccuracy,
    Metrics,
    evaluate_logits,
    harmonic_mean,
    wilson_interval,
)
from rada.evaluation.provenance import Timer, command_line, environment
from rada.evaluation.sharing import shareable, shown_name
from rada.evaluation.spread import Spread, aggregate_runs, mean_std

__all__ = [
    "ECE_BINS",
    "ClassAccuracy",
    "Comparison",
    "Evaluation",
    "Metrics",
    "PairedDifference",
    "Spread",
    "Timer",
    "aggregate_runs",
    "command_line",
    "compare",
    "environment",
    "evaluate_logits",
    "harmonic_mean",
    "mean_std",
    "paired_difference",
    "shareable",
    "shown_name",
    "wilson_interval",
]
