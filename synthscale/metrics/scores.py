"""Per-example scores of a generator's view: the rows of ``scores/``.

Takes Arrow tables in memory that are aligned by row (``manifest/``, ``nearest/``, ``groups/``, logits) and returns
the table; reads and writes no files. Runs use it per shard and `score_features` for a whole view.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from synthscale.classify.evaluation import synthetic_probability
from synthscale.tables.schemas import MANIFEST_COLUMNS, REAL, SCORES, SYNTHETIC

COPY_DISTANCE = 1e-8
"""Distances up to this count as 0 in near_duplicate_score, as in cleanlab."""


@dataclass(frozen=True)
class ViewRows:
    """Rows of one generator's view, sorted by row number.

    Attributes:
        manifest: n rows of ``manifest/``.
        nearest: n rows of ``nearest/``.
        groups: rows of ``groups/``: only rows that are in a near-duplicate group.
        logit: (n,) out-of-fold logits of being synthetic; NaN where no classifier could be fitted.
    """

    manifest: pa.Table
    nearest: pa.Table
    groups: pa.Table
    logit: NDArray[np.float64]


def quality(logit: NDArray[np.float64], is_real: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the label quality score q, the probability of the row's own class, for arrays of logits.

    The metrics use this vectorised form: the jackknife needs q for one column of logits per refitted head, and
    cleanlab scores one column at a time. The column of ``scores/`` comes from cleanlab (`label_quality_scores`); a
    test checks that the two agree within 1e-12.

    Args:
        logit: logits of being synthetic, (n,) or (n, heads).
        is_real: True for real rows; broadcast against ``logit``.

    Returns:
        q in 0..1, in the shape of ``logit``; NaN where the logit is NaN.
    """
    return synthetic_probability(np.where(is_real, -logit, logit))


def label_quality_scores(logit: NDArray[np.float64], is_real: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return cleanlab's label quality scores (self-confidence) of the classes real and synthetic.

    Args:
        logit: (n,) logits of being synthetic.
        is_real: (n,) True for real rows.

    Returns:
        (n,) scores in 0..1; NaN where the logit is NaN.
    """
    scores = np.full(len(logit), np.nan)
    known = ~np.isnan(logit)
    # cleanlab rejects empty input.
    if not known.any():
        return scores
    # Importing cleanlab takes 1.6 s of CPU time and 110 MiB (it loads scikit-learn and, if installed, datasets),
    # so only processes that score rows import it.
    from cleanlab.rank import get_label_quality_scores

    is_synthetic = (~is_real[known]).astype(np.int64)
    pred_probs = np.column_stack([synthetic_probability(-logit[known]), synthetic_probability(logit[known])])
    scores[known] = get_label_quality_scores(is_synthetic, pred_probs, method="self_confidence")
    return scores


def near_duplicate_score(distance: NDArray[np.float64], median: float | None) -> NDArray[np.float64]:
    """Return 1 - exp(-distance / median), in 0..1, as in cleanlab Datalab.

    Args:
        distance: (n,) distances to the nearest neighbour.
        median: median nearest-neighbour distance of the real images; None where unknown.

    Returns:
        (n,) scores: 0 at distances up to `COPY_DISTANCE`, otherwise NaN where the distance or median is unknown.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        score = 1.0 - np.exp(-distance / (np.nan if median is None else median))
    return np.where(distance <= COPY_DISTANCE, 0.0, score)


def score_rows(view: ViewRows, real_ids: pa.Table, median: float | None) -> pa.Table:
    """Return the scores of rows of a view, with the columns of ``scores/`` followed by the user's columns.

    Args:
        view: n rows.
        real_ids: columns ``row`` (ascending) and ``id`` of all real rows, to look up the nearest one of each row.
        median: median nearest-neighbour distance, the unit of near_duplicate_score; None where unknown.
    """
    manifest, nearest = view.manifest, view.nearest
    is_real = np.asarray(pc.equal(manifest.column("real_or_synthetic").cast(pa.string()), REAL))
    q = label_quality_scores(view.logit, is_real)
    known = ~np.isnan(q)
    predicted = np.where(view.logit >= 0, SYNTHETIC, REAL)
    given = np.where(is_real, REAL, SYNTHETIC)
    distance = nearest.column("nn_distance").to_numpy().astype(np.float64)
    duplicate_score = near_duplicate_score(distance, median)
    group = _group_of(manifest.column("row").to_numpy(), view.groups)
    columns = {
        "id": manifest.column("id"),
        "image_filename": manifest.column("image_filename"),
        "uri": manifest.column("uri"),
        "label": manifest.column("label"),
        "real_or_synthetic": pa.array(given, pa.string()),
        "label_quality_score": pa.array(q, mask=~known),
        "label_issue_score": pa.array(1.0 - q, mask=~known),
        "predicted": pa.array(predicted, pa.string(), mask=~known),
        "is_label_issue": pa.array(predicted != given, mask=~known),
        "is_near_duplicate": group >= 0,
        "near_duplicate_id": pa.array(group, mask=group < 0),
        "near_duplicate_score": pa.array(duplicate_score, mask=np.isnan(duplicate_score)),
        "distance_to_nearest_neighbor": pa.array(distance, mask=np.isnan(distance)),
        "nearest_real_id": _ids_of(nearest.column("nearest_real_row"), real_ids),
        "distance_to_nearest_real": nearest.column("nearest_real_distance").cast(pa.float64()),
        "in_real_manifold": nearest.column("in_real_manifold"),
        "covered": nearest.column("covered"),
    }
    for name in manifest.column_names:
        if name not in MANIFEST_COLUMNS.names:
            columns[name] = manifest.column(name)
    ordered = [columns[name] for name in SCORES.names] + [c for n, c in columns.items() if n not in SCORES.names]
    return pa.table(ordered, names=[*SCORES.names, *(n for n in columns if n not in SCORES.names)])


def _ids_of(rows: pa.ChunkedArray, real_ids: pa.Table) -> pa.ChunkedArray:
    """Return the ids of real row numbers; null stays null."""
    known = rows.is_valid().to_numpy()
    at = np.searchsorted(real_ids.column("row").to_numpy(), rows.fill_null(-1).to_numpy())
    return real_ids.column("id").take(pa.array(at, mask=~known))


def _group_of(rows: NDArray[np.int64], groups: pa.Table) -> NDArray[np.int64]:
    """Return the near-duplicate group of each row, -1 for none: (n,)."""
    result = np.full(len(rows), -1, np.int64)
    result[np.searchsorted(rows, groups.column("row").to_numpy())] = groups.column("near_duplicate_id").to_numpy()
    return result
