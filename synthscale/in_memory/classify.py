"""Classifier and embedding-based metric families for vectors in memory, in this process, without Ray.

Takes arrays and fold assignments and returns logits and metrics; reads and writes no files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthscale.classify.classifier import fit_classifier
from synthscale.classify.directions import find_directions
from synthscale.classify.evaluation import metrics_over_repeats, sum_classifier_errors
from synthscale.classify.fold_views import FoldView, view_columns
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
    """Out-of-fold output of a generator's classifier on the n rows of its view.

    Attributes:
        logit: (n,) logit of being synthetic, the mean over fold assignments; NaN without a classifier.
        direction_coordinates: (n, DIRECTIONS) coordinates along the separating directions; NaN without one.
        refitted: logits by heads refitted without jackknife blocks, to the matched subsample, and with other fold
            assignments.
        fit: summary of the fit for metrics.json; ``folds`` is 0 without a classifier.
    """

    logit: NDArray[np.float64]
    direction_coordinates: NDArray[np.float64]
    refitted: RefittedLogits
    fit: dict[str, Any]


def classify(
    vectors: NDArray[np.float32], plans: dict[str, FoldPlan], config: Config
) -> dict[str, ClassifierOutput]:
    """Fit every generator's heads and return their out-of-fold outputs.

    Args:
        vectors: (N, D) embeddings of all rows.
        plans: fold assignment of each generator's view.
        config: the sections ``classifier`` and ``metrics`` are used.
    """
    outputs = {
        name: ClassifierOutput(
            np.full(n, np.nan), np.full((n, DIRECTIONS), np.nan), RefittedLogits(), {"folds": 0}
        )
        for name, n in ((name, len(plan.row)) for name, plan in plans.items())
    }
    views = [view for name, plan in plans.items() for view in plan.views(name)]
    if not views:
        return outputs
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
        logits, direction_coordinates = model.predict(name, rows, plan.fold)
        repeats = [sum_classifier_errors(logit, plan.is_real) for logit in logits.T] if logits.shape[1] > 1 else []
        outputs[name] = ClassifierOutput(
            # Rounded to float32, as predictions/ stores it in a run, so that both give the same numbers.
            logits.mean(1).astype(np.float32).astype(np.float64),
            direction_coordinates,
            _as_stored(model.predict_refits(name, rows, plan.fold[:, 0], plan.block(sizes.get(name)))),
            {
                "folds": plan.views(name)[0].folds,
                "folds_by_row": plan.is_by_row,
                **summary,
                "repeats": metrics_over_repeats(repeats),
            },
        )
    return outputs


def _as_stored(refitted: RefittedLogits) -> RefittedLogits:
    """Round refitted logits to float16, as predictions/ stores them in a run."""
    return RefittedLogits(
        *(
            None if logits is None else logits.astype(np.float16).astype(np.float64)
            for logits in (refitted.without, refitted.matched, refitted.reassigned)
        )
    )


def _blocks(
    vectors: NDArray[np.float32], plans: dict[str, FoldPlan], views: list[FoldView], sizes: dict[str, int]
) -> list[VectorBlock]:
    """Return the training rows of each set, with their folds and jackknife blocks in every view: (rows, views)."""
    blocks = []
    first = next(iter(plans.values()))
    columns = view_columns(views)
    for kind, plan in [(REAL, first), *((name, plans[name]) for name in columns)]:
        in_set = plan.is_real == (kind == REAL)
        fold = np.full((int(in_set.sum()), len(views)), -1, np.int8)
        block = np.full((int(in_set.sum()), len(views)), -1, np.int16)
        for name, view_indices in columns.items():
            if kind in (REAL, name):
                # Real rows are in the same order in every view, so they can be assigned by position.
                in_view = plans[name].is_real == (kind == REAL)
                fold[:, view_indices] = plans[name].fold[in_view]
                block[:, view_indices] = plans[name].block(sizes.get(name))[in_view, None]
        blocks.append(
            VectorBlock(kind, vectors[plan.row[in_set]], fold, plan.key[in_set], plan.is_copy[in_set], block)
        )
    return blocks


def vector_families(
    vectors: NDArray[np.float32], plans: dict[str, FoldPlan], labels: Sequence[str | None], settings: MetricsConfig
) -> dict[str, Families]:
    """Return each generator's metrics of the requested families that are computed from embeddings.

    Args:
        vectors: (N, D) embeddings of all rows.
        plans: fold assignment of each generator's view.
        labels: label of each of the N rows, None where it has none.
        settings: requested families and options.
    """
    requested = requested_families(settings.families)
    if not requested:
        return {name: {} for name in plans}
    parts = PARTS if settings.frechet_infinity else 1
    families = {}
    for name, plan in plans.items():
        sums = {}
        for kind in (REAL, name):
            in_set = plan.is_real == (kind == REAL)
            key, row = plan.key[in_set], plan.row[in_set]
            fold = plan.fold[in_set, :1] if plan.fold.shape[1] else fold_from_hash(key)[:, None]
            cluster = plan.hashes.cluster[in_set]
            part_key = key if kind == REAL else cluster
            label = [labels[i] for i in row.tolist()]
            rows = VectorRows(vectors[row], key, cluster[:, None], part_key, label, fold)
            sums[kind] = VectorSums.of(rows, len(rows.key), parts)
        moments = None
        if "vendi" in requested:
            features = VendiMap.of(sums[REAL])
            real, synthetic = (features.moment(vectors[plan.row[plan.is_real == kind]]) for kind in (True, False))
            moments = (real, synthetic)
        families[name] = embedding_families((sums[REAL], sums[name]), moments, 0, requested)
    return families
