"""``score_features``: the main job on vectors in memory, in this process, without Ray. The same pure modules."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from synthscale import tables
from synthscale.classifier import fit_classifier
from synthscale.config import Config, check_generator_name
from synthscale.copies import collapse, equal_pairs, vector_keys
from synthscale.directions import find_directions
from synthscale.errors import InputError
from synthscale.keys import id_keys
from synthscale.memory_search import analyse
from synthscale.metrics.classifier import spread, sum_logits
from synthscale.metrics.evidence import Evidence
from synthscale.metrics.slices import count, slicing
from synthscale.metrics.summary import Known, generator_figures
from synthscale.metrics.view import sum_view
from synthscale.problem import View, columns_of
from synthscale.schemas import DIRECTIONS, REAL, SYNTHETIC
from synthscale.scores import ViewRows, score_rows
from synthscale.training import FoldPlan, Training, VectorBlock, bandwidth_sample, plan_folds


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
    families = config.metrics.families
    analysis = analyse(vectors, sets, copies, config.neighbors, counts="manifold" in families)
    later = copies.later(dict(enumerate(unique_ids)))
    is_copy = np.isin(np.arange(n), later)
    groups = {view.generator: view.groups for view in analysis.views}
    keys, plans = id_keys(unique_ids), {}
    for name, near in analysis.nearest.items():
        rows, members = np.sort(near.row), (groups[name].row, groups[name].near_duplicate_id)
        plans[name] = plan_folds(rows, keys[rows], kinds[rows] == REAL, is_copy[rows], members, config.classifier)
    answers = _classify(vectors, plans, config)
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
    real_ids = manifest.filter(pc.equal(manifest.column("real_or_synthetic"), REAL)).select(["row", "id"])
    metrics, scores = {}, {}
    for view in analysis.views:
        name, plan = view.generator, plans[view.generator]
        nearest = tables.nearest(name, analysis.nearest[name], later)
        nearest = nearest.take(pa.array(np.argsort(nearest.column("row").to_numpy())))
        logit = answers[name].logit
        own = ViewRows(manifest.take(pa.array(plan.row)), nearest, tables.groups(name, view.groups), logit)
        table = score_rows(own, real_ids, view.median_distance)
        unknown = np.full(len(plan.row), np.nan)
        fold = plan.fold[:, 0] if plan.fold.shape[1] else np.empty(0, np.int8)
        answer = answers[name]
        evidence = Evidence(plan.log_prior, plan.group, unknown, unknown, answer.along, fold, answer.without)
        sums = sum_view(own, table, evidence, [slicing("label", count(manifest.column("label")))])
        neighbors = {**view.summary(), "spreads": view.spreads}
        metrics[name] = generator_figures(sums, Known(config.classifier.head, answer.fit, neighbors)).block
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


@dataclass
class _Answers:
    """What a generator's classifier says of its view's rows (NaN without one), and how it was fitted."""

    logit: NDArray[np.float64]
    along: NDArray[np.float64]
    without: NDArray[np.float64] | None
    fit: dict[str, Any]


def _classify(vectors: NDArray[np.float32], plans: dict[str, FoldPlan], config: Config) -> dict[str, _Answers]:
    answers = {
        name: _Answers(np.full(n, np.nan), np.full((n, DIRECTIONS), np.nan), None, {"folds": 0})
        for name, n in ((name, len(plan.row)) for name, plan in plans.items())
    }
    views = [view for name, plan in plans.items() for view in plan.views(name)]
    if not views:
        return answers
    blocks = _blocks(vectors, plans, views)
    first = next(iter(plans.values()))
    training = Training(
        views,
        vectors.shape[1],
        lambda name: [block for block in blocks if name in (None, block.name)],
        bandwidth_sample(first),
        {block.name: len(block.key) for block in blocks},
        is_refitted=True,
    )
    model, fits = fit_classifier(training, config.classifier)
    model = replace(model, directions=find_directions(model, training))
    for name, summary in model.summaries(fits).items():
        plan, rows = plans[name], vectors[plans[name].row]
        deals, along = model.answers(name, rows, plan.fold)
        repeats = [sum_logits(logit, plan.is_real) for logit in deals.T] if deals.shape[1] > 1 else []
        answers[name] = _Answers(
            # As in a run, where predictions/ holds float32.
            deals.mean(1).astype(np.float32).astype(np.float64),
            along,
            _as_stored(model.without_blocks(name, rows, plan.fold[:, 0], plan.block)),
            {"folds": plan.views(name)[0].folds, **summary, "repeats": spread(repeats)},
        )
    return answers


def _as_stored(logits: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    return None if logits is None else logits.astype(np.float16).astype(np.float64)


def _blocks(vectors: NDArray[np.float32], plans: dict[str, FoldPlan], views: list[View]) -> list[VectorBlock]:
    """Return the rows of each set."""
    blocks = []
    first = next(iter(plans.values()))
    columns = columns_of(views)
    for kind, plan in [(REAL, first), *((name, plans[name]) for name in columns)]:
        own = plan.is_real == (kind == REAL)
        fold, block = (np.full((int(own.sum()), len(views)), -1, np.int8) for _ in range(2))
        for name, own_columns in columns.items():
            if kind in (REAL, name):
                # The real rows have one order in every view.
                there = plans[name].is_real == (kind == REAL)
                fold[:, own_columns] = plans[name].fold[there]
                block[:, own_columns] = plans[name].block[there, None]
        blocks.append(VectorBlock(kind, vectors[plan.row[own]], fold, plan.key[own], plan.is_copy[own], block))
    return blocks
