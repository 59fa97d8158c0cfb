"""``score_features``: the main job on vectors in memory, in this process, without Ray. The same pure modules."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray

from synthscale import tables
from synthscale.classifier import FoldPlan, TrainingRows, bandwidth_rows, fit_generators, plan_folds
from synthscale.config import Config, check_generator_name
from synthscale.copies import collapse, equal_pairs, vector_keys
from synthscale.errors import InputError
from synthscale.groups import Groups
from synthscale.memory_search import analyse
from synthscale.metrics.summary import generator_block, sum_view
from synthscale.schemas import REAL, SYNTHETIC
from synthscale.scores import ViewRows, score_rows
from synthscale.search import Rows


@dataclass(frozen=True)
class FeatureScores:
    """What ``score_features`` gives.

    Attributes:
        metrics: as ``metrics.json["generators"]``.
    """

    metrics: dict[str, Any]
    _scores: dict[str, pd.DataFrame]

    def scores(self, generator: str | None = None) -> pd.DataFrame:
        """Return one generator's rows and all real rows with the columns of ``scores/``."""
        if generator is None and len(self._scores) == 1:
            return next(iter(self._scores.values()))
        if generator not in self._scores:
            raise InputError(f"name a generator: {', '.join(self._scores)}")
        return self._scores[generator]


def score_features(
    features: ArrayLike,
    real_or_synthetic: Sequence[str],
    *,
    generator: Sequence[str | None] | None = None,
    labels: Sequence[Any] | None = None,
    ids: Sequence[str] | None = None,
    config: Config | None = None,
) -> FeatureScores:
    """Score embeddings that are already in memory.

    Args:
        features: (n, D) finite numbers; no row all zero.
        real_or_synthetic: n times ``real`` or ``synthetic``.
        generator: the generator of each synthetic row; one called ``synthetic`` when not given.
        labels: a label for each row, for the metrics by label.
        ids: unique ids; the row numbers when not given (results then depend on the order of the rows).
        config: the sections ``neighbors`` and ``classifier`` are used.

    Raises:
        InputError: the input cannot be scored; the message names the rows.
    """
    config = config or Config()
    vectors, kinds, names, unique_ids = _checked(features, real_or_synthetic, generator, labels, ids)
    n = len(vectors)
    sets = {name: np.flatnonzero(names == name) for name in dict.fromkeys([REAL, *names])}
    copies = collapse(equal_pairs(vector_keys(vectors[own], name), own) for name, own in sets.items())
    analysis = analyse(vectors, sets, copies, config.neighbors)
    later = copies.later(dict(enumerate(unique_ids)))
    is_copy = np.isin(np.arange(n), later)
    groups = {view.generator: view.groups for view in analysis.views}
    plans = {
        name: _plan(near.row, unique_ids, kinds == REAL, is_copy, groups[name], config)
        for name, near in analysis.nearest.items()
    }
    logits, fits = _classify(vectors, plans, unique_ids, is_copy, kinds == REAL, config)
    manifest = pa.table(
        {
            "row": np.arange(n),
            "id": unique_ids,
            "uri": pa.nulls(n, pa.string()),
            "image_filename": pa.nulls(n, pa.string()),
            "label": pa.array(_texts(labels, n), pa.string()),
            "real_or_synthetic": pa.array(kinds.tolist(), pa.string()),
        }
    )
    metrics, scores = {}, {}
    for view in analysis.views:
        name, plan = view.generator, plans[view.generator]
        nearest = tables.nearest(name, analysis.nearest[name], later)
        nearest = nearest.take(pa.array(np.argsort(nearest.column("row").to_numpy())))
        rows = ViewRows(manifest.take(pa.array(plan.row)), nearest, tables.groups(name, view.groups), logits[name])
        table = score_rows(rows, unique_ids, view.median_distance)
        sums = sum_view(rows, table, plan.log_prior)
        fit = {"folds": plan.folds, **(fits[name].summary() if name in fits else {})}
        metrics[name] = generator_block(sums, config.classifier.head, fit, view.summary())
        scores[name] = table.to_pandas()
    return FeatureScores(metrics, scores)


def _texts(labels: Sequence[Any] | None, n: int) -> list[str | None]:
    return [None] * n if labels is None else [None if pd.isna(label) else str(label) for label in labels]


def _checked(
    features: ArrayLike,
    real_or_synthetic: Sequence[str],
    generator: Sequence[str | None] | None,
    labels: Sequence[Any] | None,
    ids: Sequence[str] | None,
) -> tuple[NDArray[np.float32], NDArray[np.str_], NDArray[np.object_], list[str]]:
    try:
        vectors = np.asarray(features, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"features must be numbers, in vectors of equal length: {error}") from error
    if vectors.ndim != 2 or vectors.shape[0] == 0 or vectors.shape[1] == 0:
        raise InputError(f"features must be an (n, D) array with rows and columns, got shape {vectors.shape}")
    kinds = np.asarray([str(kind) for kind in real_or_synthetic])
    n = len(vectors)
    for name, values in (("real_or_synthetic", kinds), ("generator", generator), ("labels", labels), ("ids", ids)):
        if values is not None and len(values) != n:
            raise InputError(f"{name} has {len(values)} entries for {n} rows of features")
    unknown = sorted(set(kinds.tolist()) - {REAL, SYNTHETIC})
    if unknown:
        raise InputError(f"real_or_synthetic must be 'real' or 'synthetic', found {unknown[:3]}")
    for kind in (REAL, SYNTHETIC):
        if kind not in kinds:
            raise InputError(f"there are no {kind} rows; both real and synthetic rows are needed")
    for reason, bad in (
        ("hold NaN or infinity", ~np.isfinite(vectors).all(axis=1)),
        ("are all zeros and have no direction", ~(vectors != 0).any(axis=1)),
    ):
        if bad.any():
            raise InputError(f"features: {int(bad.sum())} rows {reason}, the first is row {int(np.argmax(bad))}")
    given = generator if generator is not None else [SYNTHETIC] * n
    names = np.array(
        [REAL if k == REAL else (SYNTHETIC if pd.isna(g) else str(g)) for k, g in zip(kinds, given, strict=True)],
        object,
    )
    for name in dict.fromkeys(names[kinds == SYNTHETIC].tolist()):
        try:
            check_generator_name(name)
        except ValueError as error:
            raise InputError(str(error)) from error
    unique_ids = [str(i) for i in ids] if ids is not None else [f"{i:012d}" for i in range(n)]
    twice = [name for name, count in Counter(unique_ids).items() if count > 1]
    if twice:
        raise InputError(f"ids must be unique; {', '.join(twice[:5])} occur more than once")
    return vectors, kinds, names, unique_ids


def _plan(
    rows: Rows,
    ids: list[str],
    is_real: NDArray[np.bool_],
    is_copy: NDArray[np.bool_],
    groups: Groups,
    config: Config,
) -> FoldPlan:
    rows = np.sort(rows)
    members = (groups.row, groups.near_duplicate_id)
    plan = plan_folds(rows, [ids[row] for row in rows], is_real[rows], members, config.classifier)
    return plan.with_copies(is_copy[rows])


def _classify(
    vectors: NDArray[np.float32],
    plans: dict[str, FoldPlan],
    ids: list[str],
    is_copy: NDArray[np.bool_],
    is_real: NDArray[np.bool_],
    config: Config,
) -> tuple[dict[str, NDArray[np.float64]], dict[str, Any]]:
    """Out-of-fold logits of each view's rows (NaN without a classifier), and the fits."""
    logits = {name: np.full(len(plan.row), np.nan) for name, plan in plans.items()}
    usable = {name: plan.folds for name, plan in plans.items() if plan.folds}
    if not usable:
        return logits, {}
    n = len(vectors)
    folds = {name: np.full(n, -1, np.int8) for name in usable}
    for name in usable:
        folds[name][plans[name].row] = plans[name].fold
    rows = TrainingRows(np.arange(n), torch.from_numpy(vectors), folds, is_real, is_copy)
    first = next(iter(plans.values()))
    sample = bandwidth_rows(first, [ids[row] for row in first.row])
    feature_map, fits = fit_generators(rows, usable, sample, config.classifier)
    for name in usable:
        features = feature_map(torch.from_numpy(vectors[plans[name].row]))
        # As in a run, where predictions/ holds float32.
        logit = fits[name].heads.out_of_fold_logits(features, plans[name].fold)
        logits[name] = logit.astype(np.float32).astype(np.float64)
    return logits, fits
