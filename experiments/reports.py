"""From a finished run to its report: a page and the table that is printed."""

from __future__ import annotations

import pathlib
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax import evaluation
from kdjax.methods.generation_task import GenerationTask
from kdjax.methods.language_task import LanguageTask
from kdjax.methods.retrieval_task import RetrievalTask
from kdjax.methods.task import Task

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 3, 16, 32  # samples in a report on text
PICTURES, ANSWERS = 8, 5  # and in one on images and texts


def write(
    task: Task,
    models: Mapping[str, Any],
    path: pathlib.Path,
    first: bool,
    readers: Mapping[str, Task] = types.MappingProxyType({}),
    **facts: Any,
) -> str:
    """Writes the report of a task, and returns its table; both only on the first process.

    Args:
      task: whose test split is reported.
      models: name -> variables; the one called `teacher` has that role, the others are students.
      path: where the page goes.
      first: whether this process writes; all of them must call.
      readers: name -> the task whose networks read a model, where that is another (`Trained.on`).
      **facts: `title`, `curves`, `config`, `environment` and `seconds` of the report.
    """
    roles = {name: "teacher" if name == "teacher" else "student" for name in models}
    if isinstance(task, LanguageTask):
        return _language(task, models, roles, path, first, facts)
    if isinstance(task, RetrievalTask):
        return _retrieval(task, models, roles, path, first, facts)
    if isinstance(task, GenerationTask):
        return _generation(task, models, roles, path, first, facts)
    predictions = {
        name: readers.get(name, task).predict(roles[name], x) for name, x in models.items()
    }
    if not first:
        return ""
    report = evaluation.Report(
        models=predictions,
        labels=task.dataset.splits["test"].arrays()["label"],
        class_names=tuple(task.dataset.class_names),
        **facts,
    )
    evaluation.write_report(path, report)
    return evaluation.summary_table(report)


def _language(task: LanguageTask, models, roles, path, first, facts) -> str:
    teacher = task.reference(models["teacher"])
    scores = {
        name: task.scores(roles[name], x, None if name == "teacher" else teacher)
        for name, x in models.items()
    }
    test = task.dataset.splits["test"].arrays()
    prompts = task.prompts(PROMPTS, min(PROMPT_TOKENS, test["tokens"].shape[1] // 2))
    samples = {
        name: task.sample(roles[name], x, prompts, max_new_tokens=NEW_TOKENS)
        for name, x in models.items()
    }
    if not first:
        return ""
    length = task.dataset.splits["train"].fields["tokens"][0]
    speed = {}
    for stage, curves in facts["curves"].items():
        if "train/examples_per_second" in curves:
            speed[stage] = length * float(np.median(curves["train/examples_per_second"][1]))
    report = evaluation.LanguageReport(
        models=scores,
        tokens=int(test["completion"][:, 1:].sum()),
        prompts=[task.tokenizer.decode(prompt) for prompt in prompts],
        samples=samples,
        speed=speed,
        **facts,
    )
    evaluation.write_language_report(path, report)
    return evaluation.language_table(report)


def _retrieval(task: RetrievalTask, models, roles, path, first, facts) -> str:
    teacher = task.reference(models["teacher"])
    scores, found = {}, {}
    texts = [text for row in task.dataset.texts["test"] for text in row]
    for name, x in models.items():
        scores[name] = task.scores(roles[name], x, None if name == "teacher" else teacher)
        best = np.argsort(-task.predict(roles[name], x)[:PICTURES], axis=1)[:, :ANSWERS]
        found[name] = [[texts[i] for i in row] for row in best]
    if not first:
        return ""
    images = task.dataset.splits["test"].arrays()["image"]
    report = evaluation.RetrievalReport(
        models=scores,
        images=len(images),
        texts=len(texts),
        pictures=images[:PICTURES],
        found=found,
        **facts,
    )
    evaluation.write_retrieval_report(path, report)
    return evaluation.retrieval_table(report)


def _generation(task: GenerationTask, models, roles, path, first, facts) -> str:
    reference = task.reference(models["teacher"])
    scores = {name: task.scores(roles[name], x, reference) for name, x in models.items()}
    if not first:
        return ""
    report = evaluation.GenerationReport(
        models=scores,
        noises=len(reference.ends),
        steps=task.reference_steps,
        **facts,
    )
    evaluation.write_generation_report(path, report)
    return evaluation.generation_table(report)
