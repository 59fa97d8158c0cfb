"""The per-example table: one generator's rows and all real rows, with every score, in the shape of ``scores/``.

Pure: takes tables that are aligned by row and gives the table; the same for a shard of a run and for
``score_features``.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from synthscale.classify.evaluation import probability
from synthscale.tables.schemas import MANIFEST_COLUMNS, REAL, SCORES, SYNTHETIC

COPY_DISTANCE = 1e-8
"""Distances up to this count as 0 in near_duplicate_score, as in cleanlab."""


@dataclass(frozen=True)
class ViewRows:
    """What is known of some rows of one generator's view, sorted by row: tables of equal length.

    ``groups`` holds only the member rows; a null ``logit`` means that no classifier could be fitted.
    """

    manifest: pa.Table
    nearest: pa.Table
    groups: pa.Table
    logit: NDArray[np.float64]


def quality(logit: NDArray[np.float64], is_real: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the label quality score q: the probability of the label that the row has (``cleanlab.rank``)."""
    return probability(np.where(is_real, -logit, logit))


def near_duplicate_score(distance: NDArray[np.float64], median: float | None) -> NDArray[np.float64]:
    """Return 1 - exp(-distance / median), 0 for copies; NaN where either is unknown (cleanlab Datalab)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        score = 1.0 - np.exp(-distance / (np.nan if median is None else median))
    return np.where(distance <= COPY_DISTANCE, 0.0, score)


def score_rows(view: ViewRows, real_ids: pa.Table, median: float | None) -> pa.Table:
    """Return the scores of some rows.

    Args:
        view: the rows and what is known of them.
        real_ids: ``row``, ascending, and ``id`` of all real rows, for the nearest one of each row.
        median: the median distance that near_duplicate_score is measured by.
    """
    manifest, nearest = view.manifest, view.nearest
    is_real = np.asarray(pc.equal(manifest.column("real_or_synthetic").cast(pa.string()), REAL))
    q = quality(view.logit, is_real)
    known = ~np.isnan(q)
    predicted = np.where(view.logit >= 0, SYNTHETIC, REAL)
    given = np.where(is_real, REAL, SYNTHETIC)
    distance = nearest.column("nn_distance").to_numpy().astype(np.float64)
    duplicate = near_duplicate_score(distance, median)
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
        "near_duplicate_score": pa.array(duplicate, mask=np.isnan(duplicate)),
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
    """Return the ids of real rows; null stays null."""
    known = rows.is_valid().to_numpy()
    at = np.searchsorted(real_ids.column("row").to_numpy(), rows.fill_null(-1).to_numpy())
    return real_ids.column("id").take(pa.array(at, mask=~known))


def _group_of(rows: NDArray[np.int64], groups: pa.Table) -> NDArray[np.int64]:
    """Each row's near-duplicate group, or -1."""
    result = np.full(len(rows), -1, np.int64)
    result[np.searchsorted(rows, groups.column("row").to_numpy())] = groups.column("near_duplicate_id").to_numpy()
    return result
