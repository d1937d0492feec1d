"""The engine: updates, programs, stages and recipes, run from a journal."""

from kdjax.training.checkpoint import CheckpointError, load_variables, save_variables
from kdjax.training.interrupts import Interrupted
from kdjax.training.journal import Recipe, run
from kdjax.training.lock import WorkdirInUse
from kdjax.training.loop import Settings
from kdjax.training.loss_scale import LossScale
from kdjax.training.metrics import MetricWriter, read_metrics
from kdjax.training.nonfinite import NonFiniteLoss
from kdjax.training.population import prefixed, together
from kdjax.training.profiling import Profile
from kdjax.training.progress import Display
from kdjax.training.sharding import Layout, gather, make_mesh
from kdjax.training.stage import (
    Combined,
    Compute,
    Context,
    Deferred,
    Evaluation,
    Outcome,
    Program,
    Stage,
    Stream,
    Term,
    Update,
    Validation,
    divide,
    made,
    mean,
)

__all__ = [
    "CheckpointError",
    "Combined",
    "Compute",
    "Context",
    "Deferred",
    "Display",
    "Evaluation",
    "Interrupted",
    "Layout",
    "LossScale",
    "MetricWriter",
    "NonFiniteLoss",
    "Outcome",
    "Profile",
    "Program",
    "Recipe",
    "Settings",
    "Stage",
    "Stream",
    "Term",
    "Update",
    "Validation",
    "WorkdirInUse",
    "divide",
    "gather",
    "load_variables",
    "made",
    "make_mesh",
    "mean",
    "prefixed",
    "read_metrics",
    "run",
    "save_variables",
    "together",
]
