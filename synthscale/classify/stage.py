"""Classify: ``embeddings/`` and ``groups/`` -> ``classifier/`` (folds, fitted heads) and ``predictions/``.

Near-duplicate groups are dealt to folds, one Ray Train run fits every fold of every generator, and Ray Data
answers out of fold. A second, small classifier sees the files' facts alone: where it tells the sets apart, the
first may have looked at the file format.
"""

from typing import Any

from synthscale.classify.evaluation import ClassifierSums, metrics_over_deals
from synthscale.classify.ray_fold_tables import ClassifierInput, TrainingReader, plan_all_folds, write_folds
from synthscale.classify.ray_prediction import predict
from synthscale.classify.ray_train import TrainJob, train
from synthscale.classify.training import FoldPlan, bandwidth_sample
from synthscale.errors import StageError
from synthscale.runtime.stage_context import StageContext, StageOutcome
from synthscale.tables.schemas import REAL


def fingerprint(context: StageContext) -> dict[str, Any]:
    """Return what the predictions depend on."""
    return {
        "input": context.run.completed("neighbors").digest,
        "settings": context.config.result_settings("classifier"),
        "versions": {"algorithm": 2},
    }


def run(context: StageContext) -> StageOutcome:
    """Deal the folds, fit all heads, predict every row by the heads that did not see it."""
    plans = plan_all_folds(context)
    write_folds(context, plans)
    tables = TrainingReader.of(context, plans)
    # Precomputed vectors come without files.
    parts: tuple[ClassifierInput, ...] = (
        ("embedding",) if context.vectors is not None else ("embedding", "file_facts")
    )
    done: dict[str, Any] = {}
    if tables.views:
        done = train(context, _job(context, plans, tables, parts))
    rows, sums = predict(context, tables, parts)
    expected = {name: len(plans[name].row) for name in tables.repeats}
    if rows != expected:
        raise StageError(f"classify: rows predicted {rows}, expected {expected}; rerun with --redo-from classify")
    info = {name: _info(name, plan, done, sums.get(name, [])) for name, plan in plans.items()}
    how = {name: done[name] for name in ("workers", "cached") if name in done}
    return StageOutcome({"rows": sum(rows.values())}, {"generators": info, "fit": how})


def _job(
    context: StageContext, plans: dict[str, FoldPlan], tables: TrainingReader, parts: tuple[ClassifierInput, ...]
) -> TrainJob:
    first = next(iter(plans.values()))
    rows = {name: int((~plan.is_real).sum()) for name, plan in plans.items()}
    return TrainJob(
        tables=tables,
        shards=context.shards,
        settings=context.config.classifier,
        sample=bandwidth_sample(first),
        rows={REAL: int(first.is_real.sum()), **rows},
        parts=parts,
    )


def _info(name: str, plan: FoldPlan, done: dict[str, Any], repeats: list[ClassifierSums]) -> dict[str, Any]:
    """What reduce and people need to know of one generator's classifier."""
    views = plan.views(name)
    if not views:
        return {"folds": 0}
    fits = {part: summaries[name] for part, summaries in done["summaries"].items()}
    return {
        "folds": views[0].folds,
        **fits["embedding"],
        "file_facts": fits.get("file_facts"),
        "repeats": metrics_over_deals(repeats),
    }
