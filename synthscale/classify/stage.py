"""Classify stage: assign folds, fit the classifiers and predict every row out of fold.

Reads ``embeddings/``, ``groups/``, ``nearest/`` and ``manifest/``; writes ``classifier/`` (folds, fitted heads)
and ``predictions/``. Near-duplicate components are assigned to folds, one Ray Train run fits every fold of every
generator, and Ray Data predicts. A second, small classifier sees only file metadata: if it separates the sets,
the first one may have learnt the file format (the confounder check).
"""

from typing import Any

from synthscale.classify.evaluation import ClassifierSums, metrics_over_repeats
from synthscale.classify.ray_fold_tables import ClassifierInput, TrainingReader, plan_all_folds, write_folds
from synthscale.classify.ray_prediction import predict
from synthscale.classify.ray_train import TrainJob, train
from synthscale.classify.training import FoldPlan, bandwidth_sample
from synthscale.errors import StageError
from synthscale.runtime.stage_context import StageContext, StageOutcome
from synthscale.tables.schemas import REAL

ALGORITHM_VERSION = 3
"""Part of the fingerprint. Raise it when the same embeddings and groups give other folds or logits."""


def fingerprint(context: StageContext) -> dict[str, Any]:
    """Return what predictions depend on: the neighbors stage, the settings and the algorithm's version."""
    return {
        "input": context.run.completed("neighbors").digest,
        "settings": context.config.result_settings("classifier"),
        "versions": {"algorithm": ALGORITHM_VERSION},
    }


def run(context: StageContext) -> StageOutcome:
    """Assign folds, fit all heads, and predict every row by the heads fitted without its fold.

    Raises:
        StageError: the number of predicted rows is not the number of rows with a fold.
    """
    plans = plan_all_folds(context)
    write_folds(context, plans)
    tables = TrainingReader.of(context, plans)
    # Precomputed vectors come without files, and so without file metadata.
    sources: tuple[ClassifierInput, ...] = (
        ("embedding",) if context.vectors is not None else ("embedding", "file_facts")
    )
    fit: dict[str, Any] = {}
    if tables.views:
        fit = train(context, _job(context, plans, tables, sources))
    rows, sums = predict(context, tables, sources)
    expected = {name: len(plans[name].row) for name in tables.repeats}
    if rows != expected:
        raise StageError(
            f"classify: predicted rows by generator {rows}, expected {expected}; rerun with --redo-from classify"
        )
    info = {name: _info(name, plan, fit, sums.get(name, [])) for name, plan in plans.items()}
    placement = {name: fit[name] for name in ("workers", "cached") if name in fit}
    return StageOutcome({"rows": sum(rows.values())}, {"generators": info, "fit": placement})


def _job(
    context: StageContext, plans: dict[str, FoldPlan], tables: TrainingReader, sources: tuple[ClassifierInput, ...]
) -> TrainJob:
    first = next(iter(plans.values()))
    rows = {name: int((~plan.is_real).sum()) for name, plan in plans.items()}
    return TrainJob(
        tables=tables,
        shards=context.shards,
        settings=context.config.classifier,
        sample=bandwidth_sample(first),
        rows={REAL: int(first.is_real.sum()), **rows},
        sources=sources,
    )


def _info(name: str, plan: FoldPlan, fit: dict[str, Any], repeats: list[ClassifierSums]) -> dict[str, Any]:
    """Return one generator's entry in the stage's marker, which the reduce stage copies to metrics.json."""
    views = plan.views(name)
    if not views:
        return {"folds": 0}
    fits = {source: summaries[name] for source, summaries in fit["summaries"].items()}
    return {
        "folds": views[0].folds,
        "folds_by_row": plan.is_by_row,
        **fits["embedding"],
        "file_facts": fits.get("file_facts"),
        "repeats": metrics_over_repeats(repeats),
    }
