"""Methods: one file a paper, each with a `Config` and a `recipe(task, config)`."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from types import ModuleType
from typing import Any

NAMES = (
    "supervised",
    "kd",
    "plackett_luce",
    "dual_head_kd",
    "sinkd",
    "hard",
    "trg",
    "dho",
    "active_kd",
    "language_model",
    "taid",
    "sequence_kd",
    "gkd",
    "distillm",
    "minillm",
    "opsd",
    "ddk",
    "tgeo_kd",
    "contrastive",
    "cprd",
    "trajectory_regression",
    "boot",
    "mst_distill",
    "diswot",
)


def nearest(name: str, names) -> str:
    """`", did you mean 'x'?"` for a name that is close to one of `names`, else what there is.

    >>> nearest("plackett_luc", NAMES)
    "; did you mean 'plackett_luce'?"
    """
    close = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {sorted(names)}"


def get(name: str) -> ModuleType:
    """The module of a method.

    >>> get("kd").Config().temperature
    4.0
    """
    if name not in NAMES:
        raise ValueError(f"there is no method {name!r}{nearest(name, NAMES)}")
    return importlib.import_module(f"kdjax.methods.{name}")


def check_task(name: str, kind: str) -> None:
    """Refuses a method that tasks of this kind cannot use; `TASKS` of its module says which can.

    >>> check_task("kd", "language")
    Traceback (most recent call last):
    ValueError: kd is for classification tasks; this one is a language task
    """
    kinds = getattr(get(name), "TASKS", ("classification",))
    if kind not in kinds:
        raise ValueError(f"{name} is for {' and '.join(kinds)} tasks; this one is a {kind} task")


def configure(name: str, **fields: Any):
    """The method's config; an unknown field is refused with the nearest valid name.

    >>> configure("kd", temperature=2.0).temperature
    2.0
    """
    config = get(name).Config
    known = [field.name for field in dataclasses.fields(config)]
    for field in fields:
        if field not in known:
            raise ValueError(f"{name} has no field {field!r}{nearest(field, known)}")
    return config(**fields)


def needs(module: ModuleType, config: Any) -> tuple[str, ...]:
    """The roles, besides teacher and student, whose networks a task must bring for a method.

    >>> mst_distill = get("mst_distill")
    >>> needs(mst_distill, mst_distill.Config()), needs(get("kd"), None)
    (('cross_modal_teacher',), ())
    """
    return tuple(getattr(module, "needs", lambda config: ())(config))
