"""How good a student is, how faithful, and how sure one can be of either.

Numpy arrays in, numbers, tables and one HTML page out; nothing here knows how a model was trained.
"""

from kdjax.evaluation.alignment import gradient_cosine, linear_cka, minibatch_cka, rbf_cka
from kdjax.evaluation.calibration import TemperatureFit, fit_temperature
from kdjax.evaluation.concordance import Concordance, concordance_index
from kdjax.evaluation.detection import CenterPrecision, Objects, center_ap
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
from kdjax.evaluation.generation_report import (
    GenerationReport,
    generation_table,
    write_generation_report,
)
from kdjax.evaluation.language_report import (
    LanguageReport,
    language_table,
    write_language_report,
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
from kdjax.evaluation.retrieval import (
    Ranks,
    Recalls,
    map_at_r,
    mean_rank,
    median_rank,
    recall_at_k,
    rerank,
    retrieval_ranks,
    rsum,
)
from kdjax.evaluation.retrieval_report import (
    RetrievalReport,
    retrieval_table,
    write_retrieval_report,
)
from kdjax.evaluation.segmentation import (
    class_mean,
    dice,
    dice_score,
    iou,
    iou_score,
    pixel_accuracy,
    segmentation_confusion,
)
from kdjax.evaluation.statistics import PairedTest, Summary, holm, paired_test, summary
from kdjax.evaluation.tables import (
    arms_table,
    claims_table,
    comparison_table,
    markdown_table,
    text_table,
)

__all__ = [
    "Bins",
    "CenterPrecision",
    "Concordance",
    "GenerationReport",
    "LanguageReport",
    "Objects",
    "PairedTest",
    "RankCorrelation",
    "Ranks",
    "Recalls",
    "Record",
    "Report",
    "RetrievalReport",
    "Summary",
    "TemperatureFit",
    "Transfer",
    "accuracy",
    "agreement",
    "agreement_matrix",
    "arms",
    "arms_plot",
    "arms_table",
    "brier",
    "center_ap",
    "claims_table",
    "class_mean",
    "comparison_table",
    "concordance_index",
    "confusion_matrix",
    "curves",
    "dice",
    "dice_score",
    "entropy",
    "environment",
    "expected_calibration_error",
    "fit_temperature",
    "generation_table",
    "gradient_cosine",
    "heat_map",
    "holm",
    "iou",
    "iou_score",
    "kl_to_teacher",
    "language_table",
    "learning_curves",
    "linear_cka",
    "map_at_r",
    "markdown_table",
    "mean_rank",
    "median_rank",
    "minibatch_cka",
    "nll",
    "paired_test",
    "per_class_accuracy",
    "per_class_transfer",
    "pixel_accuracy",
    "png",
    "rank_correlation",
    "rbf_cka",
    "read_record",
    "read_records",
    "recall_at_k",
    "reliability_bins",
    "reliability_diagram",
    "rerank",
    "retrieval_ranks",
    "retrieval_table",
    "rsum",
    "scores",
    "segmentation_confusion",
    "summary",
    "summary_table",
    "svg",
    "text_table",
    "top_k_accuracy",
    "transfer_plot",
    "write_generation_report",
    "write_language_report",
    "write_record",
    "write_report",
    "write_retrieval_report",
]
