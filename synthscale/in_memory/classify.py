"""The classifier, and the metrics that are made of embeddings, for vectors in memory, in this process."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthscale.classify.classifier import fit_classifier
from synthscale.classify.directions import find_directions
from synthscale.classify.evaluation import metrics_over_deals, sum_classifier_errors
from synthscale.classify.logistic_loss import FoldView, view_columns
from synthscale.classify.model import RefittedLogits
from synthscale.classify.training import FoldPlan, TrainingData, VectorBlock, bandwidth_sample
from synthscale.config import Config, MetricsConfig
from synthscale.metrics.embedding_families import (
    PARTS,
    Families,
    VectorRows,
    VectorSums,
    VendiMap,
    embedding_families,
    fold_from_hash,
    requested_families,
)
from synthscale.statistics.size_matching import matched_sizes
from synthscale.tables.schemas import DIRECTIONS, REAL


@dataclass
class ClassifierOutput:
    """What a generator's classifier says of its view's rows (NaN without one), and how it was fitted."""

    logit: NDArray[np.float64]
    direction_coordinates: NDArray[np.float64]
    refitted: RefittedLogits
    fit: dict[str, Any]


def classify(
    vectors: NDArray[np.float32], plans: dict[str, FoldPlan], config: Config
) -> dict[str, ClassifierOutput]:
    """Fit every generator's heads and answer its view's rows out of fold."""
    answers = {
        name: ClassifierOutput(
            np.full(n, np.nan), np.full((n, DIRECTIONS), np.nan), RefittedLogits(), {"folds": 0}
        )
        for name, n in ((name, len(plan.row)) for name, plan in plans.items())
    }
    views = [view for name, plan in plans.items() for view in plan.views(name)]
    if not views:
        return answers
    sizes = matched_sizes({name: int((~plan.is_real).sum()) for name, plan in plans.items()})
    blocks = _blocks(vectors, plans, views, sizes)
    first = next(iter(plans.values()))
    training = TrainingData(
        views,
        vectors.shape[1],
        lambda name: [block for block in blocks if name in (None, block.name)],
        bandwidth_sample(first),
        {block.name: len(block.key) for block in blocks},
        is_refitted=True,
        matched=frozenset(sizes),
    )
    model, fits = fit_classifier(training, config.classifier)
    model = replace(model, directions=find_directions(model, training))
    for name, summary in model.summaries(fits).items():
        plan, rows = plans[name], vectors[plans[name].row]
        logits, direction_coordinates = model.answers(name, rows, plan.fold)
        repeats = [sum_classifier_errors(logit, plan.is_real) for logit in logits.T] if logits.shape[1] > 1 else []
        answers[name] = ClassifierOutput(
            # As in a run, where predictions/ holds float32.
            logits.mean(1).astype(np.float32).astype(np.float64),
            direction_coordinates,
            _as_stored(model.refitted(name, rows, plan.fold[:, 0], plan.block(sizes.get(name)))),
            {"folds": plan.views(name)[0].folds, **summary, "repeats": metrics_over_deals(repeats)},
        )
    return answers


def _as_stored(found: RefittedLogits) -> RefittedLogits:
    return RefittedLogits(
        *(
            None if logits is None else logits.astype(np.float16).astype(np.float64)
            for logits in (found.without, found.matched, found.reassigned)
        )
    )


def _blocks(
    vectors: NDArray[np.float32], plans: dict[str, FoldPlan], views: list[FoldView], sizes: dict[str, int]
) -> list[VectorBlock]:
    """Return the rows of each set."""
    blocks = []
    first = next(iter(plans.values()))
    columns = view_columns(views)
    for kind, plan in [(REAL, first), *((name, plans[name]) for name in columns)]:
        own = plan.is_real == (kind == REAL)
        fold, block = (np.full((int(own.sum()), len(views)), -1, np.int8) for _ in range(2))
        for name, own_columns in columns.items():
            if kind in (REAL, name):
                # The real rows have one order in every view.
                there = plans[name].is_real == (kind == REAL)
                fold[:, own_columns] = plans[name].fold[there]
                block[:, own_columns] = plans[name].block(sizes.get(name))[there, None]
        blocks.append(VectorBlock(kind, vectors[plan.row[own]], fold, plan.key[own], plan.is_copy[own], block))
    return blocks


def vector_families(
    vectors: NDArray[np.float32], plans: dict[str, FoldPlan], labels: Sequence[str | None], settings: MetricsConfig
) -> dict[str, Families]:
    """Return each generator's metrics of the families that are made of embeddings."""
    wanted = requested_families(settings.families)
    if not wanted:
        return {name: {} for name in plans}
    parts = PARTS if settings.frechet_infinity else 1
    found = {}
    for name, plan in plans.items():
        sums = {}
        for kind in (REAL, name):
            own = plan.is_real == (kind == REAL)
            fold = plan.fold[own, :1] if plan.fold.shape[1] else fold_from_hash(plan.key[own])[:, None]
            label = [labels[row] for row in plan.row[own].tolist()]
            rows = VectorRows(
                vectors[plan.row[own]], plan.key[own], (plan.key if kind == REAL else plan.group)[own], label, fold
            )
            sums[kind] = VectorSums.of(rows, len(rows.key), parts)
        moments = None
        if "vendi" in wanted:
            features = VendiMap.of(sums[REAL])
            real, own = (features.moment(vectors[plan.row[plan.is_real == kind]]) for kind in (True, False))
            moments = (real, own)
        found[name] = embedding_families((sums[REAL], sums[name]), moments, 0, wanted)
    return found
