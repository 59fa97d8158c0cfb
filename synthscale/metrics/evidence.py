"""Diagnostics of the classifier: AUC from file metadata alone, and the directions that separate the sets.

Takes columns of ``nearest/`` and ``predictions/`` in memory and returns per-row values (`RowEvidence`), mergeable
sums of them, and the blocks ``confounders`` and ``directions`` of ``metrics.json``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthscale.statistics.auc import RankSums, auc, auc_metric, sum_ranks
from synthscale.statistics.estimates import NO_CLASSIFIER, metric_block, without_interval
from synthscale.statistics.size_matching import RowHashes
from synthscale.tables.columns import to_float64
from synthscale.tables.schemas import DISTINCT_REAL, MANIFOLD_REAL, MANIFOLD_REAL_ROW, NEAREST_REAL

_IDENTICAL = 1e-12
"""Cosine distances up to this count as 0: rounding between batches that embedded the same image."""
CONFOUNDER_AUC_LIMIT = 0.6
"""The run warns if the lower end of the 95 % interval of the AUC from file metadata alone exceeds this."""
_ENDS = 5
"""Number of example ids shown for each set at each end of a direction."""

End = tuple[float, str]
"""Coordinate and id of a row at one end of a direction."""


@dataclass(frozen=True)
class RowEvidence:
    """Per-row values that metrics need beside the scores, each (n,); NaN where unknown.

    Attributes:
        log_prior: log(synthetic / real) of the rows that the row's heads were trained on.
        hashes: of the rows' ids, near-duplicate components and clusters.
        logit_file_facts: out-of-fold logit of the classifier that sees file metadata alone.
        bytes_per_pixel: file size over width x height.
        direction_coordinates: (n, a) coordinates along the separating directions.
        fold: fold in the first fold assignment; empty where there is no classifier.
        logit_without: (n, BLOCKS) logits by heads fitted without each jackknife block; None without refits.
        logit_matched: (n, 1 + BLOCKS) logits by heads fitted to the matched subsample, and to it without each
            block; None where there are none.
        logit_reassigned: (n, REASSIGNMENTS) logits under other fold assignments; None without refits.
        matched_size: rows of the matched subsample; None for the smallest generator.
        sizes: numbers of real and of synthetic rows of the whole view.
        fields: values of further fields of `CoreSums`, by name: 0 or 1, or counts.
        values: values for metrics that need only their distribution (histograms), by name.
    """

    log_prior: NDArray[np.float64]
    hashes: RowHashes
    logit_file_facts: NDArray[np.float64]
    bytes_per_pixel: NDArray[np.float64]
    direction_coordinates: NDArray[np.float64]
    fold: NDArray[np.int8] = field(default_factory=lambda: np.empty(0, np.int8))
    logit_without: NDArray[np.float64] | None = None
    logit_matched: NDArray[np.float64] | None = None
    logit_reassigned: NDArray[np.float64] | None = None
    matched_size: int | None = None
    sizes: tuple[int, int] = (0, 0)
    fields: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)
    values: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


def row_evidence(
    families: Sequence[str], nearest: pa.Table, is_real: NDArray[np.bool_], real: pa.Table
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return ``fields`` and ``values`` of `RowEvidence` for the families computed from nearest neighbours.

    Args:
        families: requested families.
        nearest: n rows of ``nearest/``.
        is_real: (n,) True for real rows.
        real: columns ``row`` (ascending) and ``distinct_real_distance`` of all real rows.
    """
    fields: dict[str, NDArray[np.float64]] = {}
    values: dict[str, NDArray[np.float64]] = {}
    if "manifold" in families:
        fields |= _manifold_fields(nearest)
    if "copying" in families:
        fields |= _copying_fields(nearest, is_real, real)
        among_real, to_real = (to_float64(nearest.column(name), np.nan) for name in (DISTINCT_REAL, MANIFOLD_REAL))
        values[MANIFOLD_REAL] = np.where(is_real, among_real, to_real)
    return {"fields": fields, "values": values}


def _manifold_fields(nearest: pa.Table) -> dict[str, NDArray[np.float64]]:
    """Return the fields from which density and recall are computed."""
    recalled = nearest.column("in_synthetic_manifold").fill_null(False)
    return {
        "real_radii": nearest.column("real_radii_containing").fill_null(0).to_numpy().astype(np.float64),
        "recalled": np.asarray(recalled).astype(np.float64),
    }


def _copying_fields(
    nearest: pa.Table, is_real: NDArray[np.bool_], real: pa.Table
) -> dict[str, NDArray[np.float64]]:
    """Return the fields from which authenticity and exact_match_share are computed."""
    distance = to_float64(nearest.column(MANIFOLD_REAL), np.inf)
    nearest_row = nearest.column(MANIFOLD_REAL_ROW).fill_null(-1).to_numpy()
    at = np.searchsorted(real.column("row").to_numpy(), nearest_row).clip(max=max(0, real.num_rows - 1))
    among_real = real.column(DISTINCT_REAL).to_numpy()[at]
    synthetic = ~is_real & (nearest_row >= 0)
    return {
        "authentic": (synthetic & (distance >= among_real)).astype(np.float64),
        "identical": (synthetic & (to_float64(nearest.column(NEAREST_REAL), np.inf) <= _IDENTICAL)).astype(
            np.float64
        ),
    }


@dataclass
class DirectionSums:
    """Sums over coordinates along one direction, by class (0 real, 1 synthetic); merge with ``+``.

    Attributes:
        moments: (3, 2) count, sum and sum of squares by class.
        ranks: histograms of the coordinates, for the AUC.
        ends: by class, the examples with the lowest and the highest coordinates, the most extreme first.
    """

    moments: NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, 2)))
    ranks: RankSums = field(default_factory=RankSums)
    ends: tuple[tuple[list[End], list[End]], tuple[list[End], list[End]]] = (([], []), ([], []))

    def __add__(self, other: "DirectionSums") -> "DirectionSums":
        """Return the sums over both sets of rows."""
        merged = [
            (sorted(low + lower)[:_ENDS], sorted(high + higher, key=_from_the_top)[:_ENDS])
            for (low, high), (lower, higher) in zip(self.ends, other.ends, strict=True)
        ]
        return DirectionSums(self.moments + other.moments, self.ranks + other.ranks, (merged[0], merged[1]))


def _from_the_top(end: End) -> tuple[float, str]:
    return -end[0], end[1]


def sum_directions(coordinates: NDArray[np.float64], is_real: NDArray[np.bool_], ids: list[str]) -> DirectionSums:
    """Return the sums over rows along one direction.

    Args:
        coordinates: (n,) coordinate of each row; rows with NaN are left out.
        is_real: (n,) True for real rows.
        ids: n ids.
    """
    moments, ends = np.zeros((3, 2)), []
    for kind in (0, 1):
        chosen = np.flatnonzero((is_real == (kind == 0)) & ~np.isnan(coordinates))
        values = coordinates[chosen]
        moments[:, kind] = len(values), values.sum(), np.square(values).sum()
        # Ties are broken by id, so that the examples do not depend on the order of rows.
        low, high = (_extremes(values, chosen, ids, sign) for sign in (1, -1))
        ends.append((low, high))
    return DirectionSums(moments, sum_ranks(coordinates, is_real), (ends[0], ends[1]))


def _extremes(values: NDArray[np.float64], chosen: NDArray[np.int64], ids: list[str], sign: int) -> list[End]:
    """Return the `_ENDS` lowest (sign 1) or highest (-1) values of the rows ``chosen``, the most extreme first."""
    if len(values) > _ENDS:
        chosen, values = (
            part[sign * values <= np.partition(sign * values, _ENDS - 1)[_ENDS - 1]] for part in (chosen, values)
        )
    examples = [(float(value), ids[i]) for value, i in zip(values, chosen.tolist(), strict=True)]
    return sorted(examples, key=lambda end: (sign * end[0], end[1]))[:_ENDS]


def direction_figures(sums: list[DirectionSums], shares: list[float]) -> list[dict[str, Any]]:
    """Return the block ``directions`` of metrics.json, the strongest direction first.

    Args:
        sums: sums along each direction.
        shares: share of the logit's total change along each direction, 0..1.

    Returns:
        For each direction its ``share``, the ``auc`` of its coordinate alone, and for each set the mean and
        deviation of the coordinate (in standard deviations of the real images) and the ids of the extremes.
    """
    figures = []
    for direction, share in zip(sums, shares, strict=False):
        count, total, squares = direction.moments
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
        names = ("real", "synthetic")
        figures.append(
            {
                "share": share,
                "auc": auc(direction.ranks),
                **{
                    name: {
                        "mean": float(mean[kind]),
                        "deviation": float(deviation[kind]),
                        "lowest": [example for _, example in direction.ends[kind][0]],
                        "highest": [example for _, example in direction.ends[kind][1]],
                    }
                    for kind, name in enumerate(names)
                },
            }
        )
    return figures


def confounder_figures(file_facts: RankSums, bytes_per_pixel: RankSums, classified: bool) -> dict[str, Any]:
    """Return the block ``confounders`` of metrics.json: how well file metadata alone separates the sets.

    ``auc`` is the out-of-fold AUC of the same kernel classifier on format, mode, width, height, aspect ratio and
    JPEG quality. ``bytes_per_pixel_auc``, 0.5..1, also depends on the image content and is for information only.

    Args:
        file_facts: histograms of the logits of the classifier of file metadata. Its independent rows are files,
            not clusters of pictures that resemble one another.
        bytes_per_pixel: histograms of bytes per pixel.
        classified: whether a classifier could be fitted.
    """
    if not all(bytes_per_pixel.counts):
        reason = "the input is vectors: there are no image files to compare"
        return {"auc": metric_block(None, reason), "bytes_per_pixel_auc": None, "reason": reason}
    size_auc = auc(bytes_per_pixel)
    file_auc = metric_block(None, NO_CLASSIFIER)
    if classified:
        file_auc = without_interval(auc_metric(file_facts), float(file_facts.clusters.min()))
    return {"auc": file_auc, "bytes_per_pixel_auc": max(size_auc, 1 - size_auc)}


def confounder_warning(figures: dict[str, Any]) -> str | None:
    """Return a warning if file metadata alone separates the sets, else None."""
    low = figures["auc"]["low"]
    if low is None or low <= CONFOUNDER_AUC_LIMIT:
        return None
    return (
        f"the files alone (format, size, mode, JPEG quality) separate real from synthetic with an AUC of "
        f"{figures['auc']['value']:.2f}: fidelity partly measures the file format; save both sets in the same "
        "format and size, then score again"
    )
