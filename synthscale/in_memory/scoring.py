"""``score_features``: scores embeddings in memory, in this process, without Ray.

Uses the same array code as a run, so it gives the same numbers; reads and writes no files.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from synthscale.classify.training import FoldPlan, NearDuplicates, plan_folds
from synthscale.config import Config
from synthscale.errors import InputError
from synthscale.generator_names import check_generator_name
from synthscale.in_memory.classify import ClassifierOutput, classify, vector_families
from synthscale.in_memory.neighbors import Analysis, MemoryRows, analyse_rows
from synthscale.metrics.evidence import RowEvidence, row_evidence
from synthscale.metrics.scores import ViewRows, score_rows
from synthscale.metrics.slices import choose_slices, count_values
from synthscale.metrics.summary import ViewFacts, generator_metrics
from synthscale.metrics.view_sums import sum_view
from synthscale.neighbors import arrow_tables
from synthscale.neighbors.copies import copies_from_pairs, equal_pairs, vector_keys
from synthscale.neighbors.view import NeighborView
from synthscale.statistics.size_matching import matched_sizes
from synthscale.tables.columns import to_float64
from synthscale.tables.id_hashes import Hashes, hash_ids
from synthscale.tables.layout import VectorLayout
from synthscale.tables.schemas import DISTINCT_REAL, REAL, SYNTHETIC


@dataclass(frozen=True)
class FeatureScores:
    """Result of `score_features`.

    Attributes:
        metrics: block of each generator, by name, as ``metrics.json["generators"]``.
    """

    metrics: dict[str, Any]
    _scores: dict[str, pd.DataFrame]

    def scores(self, generator: str | None = None) -> pd.DataFrame:
        """Return the scores of one generator's rows and all real rows, with the columns of ``scores/``.

        Args:
            generator: name of the generator; may be omitted if there is only one.

        Raises:
            InputError: there is no such generator, or several and none is named.
        """
        if generator is None and len(self._scores) == 1:
            return next(iter(self._scores.values()))
        if generator not in self._scores:
            raise InputError(f"scores: generator must be one of {', '.join(self._scores)}; got {generator!r}")
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
        features: (n, D) finite numbers. Distances are Euclidean, with each column scaled by the distinct real
            rows; with ``neighbors.metric: cosine``, for embeddings, near-duplicates are compared by direction, and
            no row may be all zeros.
        real_or_synthetic: n strings, ``real`` or ``synthetic``.
        generator: generator of each synthetic row; by default all are of one called ``synthetic``.
        labels: label of each row, for the metrics by label; None where a row has none.
        ids: n unique ids; by default the row numbers, which makes results depend on the order of the rows.
        config: the sections ``neighbors``, ``classifier`` and ``metrics`` are used, without ``metrics.slice_by``.

    Raises:
        InputError: the input cannot be scored; the message names the argument and the first such row.
    """
    config = config or Config()
    vectors, kinds, names, unique_ids = _validated(features, real_or_synthetic, generator, labels, ids)
    d = vectors.shape[1]
    # Features are columns: they may have different units, and their directions need not mean anything.
    layout = VectorLayout(d, (0, d), (0, d), scaled=True, columns=True)
    directed = layout.directed(config.neighbors.metric_in_force)
    _check_vectors(vectors, has_directions=directed is not None)
    sets = {name: np.flatnonzero(names == name) for name in dict.fromkeys([REAL, *names])}
    copies = copies_from_pairs(equal_pairs(vector_keys(vectors[rows], name), rows) for name, rows in sets.items())
    families, keys = config.metrics.families, hash_ids(unique_ids)
    data = MemoryRows(vectors, sets, copies, keys)
    analysis = analyse_rows(data, config.neighbors, layout, counts="manifold" in families)
    copy_rows = copies.redundant_rows(dict(enumerate(unique_ids)))
    plans = _plans(analysis, keys, kinds == REAL, np.isin(np.arange(len(vectors)), copy_rows), config)
    texts = _texts(labels, len(vectors))
    classified = classify(vectors, plans, config)
    from_vectors = vector_families(vectors, plans, texts, config.metrics)
    manifest = _manifest(unique_ids, texts, kinds)
    sizes = matched_sizes({name: len(rows) for name, rows in sets.items() if name != REAL})
    metrics, scores = {}, {}
    for view in analysis.views:
        name, plan = view.generator, plans[view.generator]
        nearest = arrow_tables.nearest(name, analysis.nearest[name], copy_rows).sort_by("row")
        rows, groups = manifest.take(pa.array(plan.row)), arrow_tables.groups(name, view.groups)
        view_rows = ViewRows(rows, nearest, groups, classified[name].logit)
        facts = ViewFacts(
            config.classifier.head,
            classified[name].fit,
            _neighbors_block(view, analysis),
            families,
            from_vectors[name],
            _label_completeness([texts[row] for row in plan.row.tolist()], plan.is_real),
            sizes.get(name),
        )
        metrics[name], scores[name] = _score_view(view_rows, plan, classified[name], facts)
    return FeatureScores(metrics, scores)


def _plans(
    analysis: Analysis, keys: Hashes, is_real: NDArray[np.bool_], is_copy: NDArray[np.bool_], config: Config
) -> dict[str, FoldPlan]:
    """Assign the rows of each generator's view to folds."""
    plans = {}
    for view in analysis.views:
        rows, found = np.sort(analysis.nearest[view.generator].row), view.groups
        members = NearDuplicates(found.row, found.component_id, found.cluster_id)
        plans[view.generator] = plan_folds(
            rows, keys[rows], is_real[rows], is_copy[rows], members, config.classifier
        )
    return plans


def _neighbors_block(view: NeighborView, analysis: Analysis) -> dict[str, Any]:
    """Return a view's block ``neighbors`` as the stage records it, without a self-test."""
    spaces = dict(zip(("space", "manifold_space"), (own.summary() for own in analysis.spaces), strict=True))
    return {**view.summary(), **spaces, "spreads": view.spreads}


def _manifest(ids: list[str], labels: list[str | None], kinds: NDArray[np.str_]) -> pa.Table:
    """Return the rows with the columns of ``manifest/`` that scores need."""
    return pa.table(
        {
            "row": np.arange(len(ids)),
            "id": ids,
            "uri": pa.nulls(len(ids), pa.string()),
            "image_filename": pa.nulls(len(ids), pa.string()),
            "label": pa.array(labels, pa.string()),
            "real_or_synthetic": pa.array(kinds.tolist(), pa.string()),
        }
    )


def _score_view(
    view: ViewRows, plan: FoldPlan, classified: ClassifierOutput, facts: ViewFacts
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return a generator's block of ``metrics.json`` and its scores."""
    real = pa.table(
        {
            "row": plan.row[plan.is_real],
            "id": view.manifest.column("id").filter(pa.array(plan.is_real)),
            DISTINCT_REAL: to_float64(view.nearest.column(DISTINCT_REAL), np.inf)[plan.is_real],
        }
    )
    scores = score_rows(view, real, facts.neighbors["median_distance"])
    unknown = np.full(len(plan.row), np.nan)
    fold = plan.fold[:, 0] if plan.fold.shape[1] else np.empty(0, np.int8)
    evidence = RowEvidence(
        plan.log_prior,
        plan.hashes,
        unknown,
        unknown,
        classified.direction_coordinates,
        fold,
        classified.refitted.without,
        classified.refitted.matched,
        classified.refitted.reassigned,
        facts.matched_size,
        (int(plan.is_real.sum()), int((~plan.is_real).sum())),
        **row_evidence(facts.families, view.nearest, plan.is_real, real),
    )
    sums = sum_view(view, scores, evidence, [choose_slices("label", count_values(scores.column("label")))])
    return generator_metrics(sums, facts).block, scores.to_pandas()


def _label_completeness(labels: list[str | None], is_real: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the counts of the completeness family, from labels only (a run counts nulls in every user column)."""
    real, synthetic = ([labels[i] for i in np.flatnonzero(is_real == kind)] for kind in (True, False))
    has_labels = any(label is not None for label in [*real, *synthetic])
    nulls, seen = synthetic.count(None) if has_labels else 0, set(synthetic) - {None}
    return {
        "rows": len(synthetic),
        "complete": len(synthetic) - nulls,
        "failed": 0,
        "nulls": {"label": nulls} if has_labels else {},
        "labelled": len(real) - real.count(None),
        "seen": sum(label in seen for label in real),
    }


def _texts(labels: Sequence[Any] | None, n: int) -> list[str | None]:
    return [None] * n if labels is None else [None if pd.isna(label) else str(label) for label in labels]


def _validated(
    features: ArrayLike,
    real_or_synthetic: Sequence[str],
    generator: Sequence[str | None] | None,
    labels: Sequence[Any] | None,
    ids: Sequence[str] | None,
) -> tuple[NDArray[np.float32], NDArray[np.str_], NDArray[np.object_], list[str]]:
    """Return vectors (n, D), classes (n,), set names (n,) and n ids; raise InputError where they are invalid."""
    try:
        vectors = np.asarray(features, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"features must be an array of numbers with rows of equal length: {error}") from error
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
            raise InputError(f"real_or_synthetic has no {kind} rows; both real and synthetic rows are needed")
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
    repeated = [name for name, count in Counter(unique_ids).items() if count > 1]
    if repeated:
        raise InputError(f"ids must be unique; {', '.join(repeated[:5])} occur more than once")
    return vectors, kinds, names, unique_ids


def _check_vectors(vectors: NDArray[np.float32], *, has_directions: bool) -> None:
    """Raise InputError if a row cannot be compared; rows of zeros cannot, if directions are compared."""
    checks = [("contain NaN or infinity", ~np.isfinite(vectors).all(axis=1))]
    if has_directions:
        checks.append(("are all zeros, for which cosine distance is undefined", ~(vectors != 0).any(axis=1)))
    for reason, bad in checks:
        if bad.any():
            raise InputError(
                f"features: {int(bad.sum()):,} of {len(vectors):,} rows {reason}; the first is row "
                f"{int(np.argmax(bad))}"
            )
