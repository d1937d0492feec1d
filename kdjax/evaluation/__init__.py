"""How good a student is, how faithful, and how sure one can be of either.

Numpy arrays in, numbers, tables and one HTML page out; nothing here knows how a model was trained.
"""

from kdjax.evaluation.environment import environment
from kdjax.evaluation.fidelity import (
    RankCorrelation,
    Transfer,
    agreement,
    agreement_matrix,
    kl_to_teacher,
    per_class_transfer,
    rank_correlation,
    scores,
)
from kdjax.evaluation.metrics import (
    Bins,
    accuracy,
    brier,
    confusion_matrix,
    entropy,
    expected_calibration_error,
    nll,
    per_class_accuracy,
    reliability_bins,
    top_k_accuracy,
)
from kdjax.evaluation.plots import (
    arms_plot,
    heat_map,
    learning_curves,
    png,
    reliability_diagram,
    svg,
    transfer_plot,
)
from kdjax.evaluation.records import Record, arms, curves, read_record, read_records, write_record
from kdjax.evaluation.report import Report, summary_table, write_report
from kdjax.evaluation.statistics import PairedTest, Summary, holm, paired_test, summary
from kdjax.evaluation.tables import comparison_table, markdown_table, text_table

__all__ = [
    "Bins",
    "PairedTest",
    "RankCorrelation",
    "Record",
    "Report",
    "Summary",
    "Transfer",
    "accuracy",
    "agreement",
    "agreement_matrix",
    "arms",
    "arms_plot",
    "brier",
    "comparison_table",
    "confusion_matrix",
    "curves",
    "entropy",
    "environment",
    "expected_calibration_error",
    "heat_map",
    "holm",
    "kl_to_teacher",
    "learning_curves",
    "markdown_table",
    "nll",
    "paired_test",
    "per_class_accuracy",
    "per_class_transfer",
    "png",
    "rank_correlation",
    "read_record",
    "read_records",
    "reliability_bins",
    "reliability_diagram",
    "scores",
    "summary",
    "summary_table",
    "svg",
    "text_table",
    "top_k_accuracy",
    "transfer_plot",
    "write_record",
    "write_report",
]
