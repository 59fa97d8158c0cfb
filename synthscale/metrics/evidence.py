"""What stands behind the classifier's figures: file facts that give sets away, and directions that separate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthscale.statistics.auc import RankSums, auc, auc_metric, sum_ranks
from synthscale.statistics.estimates import NO_CLASSIFIER, metric
from synthscale.tables.columns import to_float64
from synthscale.tables.schemas import DISTINCT_REAL, NEAREST_REAL

_IDENTICAL = 1e-12
"""Distances up to this are rounding: one image that was embedded in different batches."""
CONFOUNDED = 0.6
"""An AUC from file facts alone whose interval lies above this deserves a warning."""
_ENDS = 5
"""Examples of each set that are named at either end of a direction."""

End = tuple[float, str]


@dataclass(frozen=True)
class Evidence:
    """What is known of some rows beside their scores, (n,) each; NaN where unknown.

    Attributes:
        log_prior: log of synthetic over real rows that the row's heads are trained on.
        group_key: the key of the row's near-duplicate group.
        logit_file_facts: by the classifier that sees file facts alone.
        bytes_per_pixel: of the file.
        along: (n, a) places along the separating directions.
        fold: in the first deal; none where there is no classifier.
        logit_without: (n, BLOCKS) without each block of the jackknife; None where nothing was refitted.
        logit_matched: (n, 1 + BLOCKS) by heads of the matched subsample, and of that without each block.
        logit_reassigned: (n, REASSIGNMENTS) by heads under other fold assignments.
        matched: ``size`` of the matched subsample, and ``rows`` of the generator; None where it is the smallest.
        fields: further fields of the sums, by name: 0 or 1, or counts.
        values: numbers whose ranks families of metrics are made of, by name.
    """

    log_prior: NDArray[np.float64]
    group_key: NDArray[np.uint64]
    logit_file_facts: NDArray[np.float64]
    bytes_per_pixel: NDArray[np.float64]
    direction_coordinates: NDArray[np.float64]
    fold: NDArray[np.int8] = field(default_factory=lambda: np.empty(0, np.int8))
    logit_without: NDArray[np.float64] | None = None
    logit_matched: NDArray[np.float64] | None = None
    logit_reassigned: NDArray[np.float64] | None = None
    matched: tuple[int, int] | None = None
    fields: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)
    values: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


def row_evidence(
    families: Sequence[str], nearest: pa.Table, is_real: NDArray[np.bool_], real: pa.Table
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return ``fields`` and ``values`` of the families that are made of neighbours.

    Args:
        families: those that are asked for.
        nearest: lines of ``nearest/``.
        is_real: (n,).
        real: ``row``, ascending, and ``distinct_real_distance`` of all real rows.
    """
    fields: dict[str, NDArray[np.float64]] = {}
    values: dict[str, NDArray[np.float64]] = {}
    if "manifold" in families:
        fields |= _manifold_fields(nearest)
    if "copying" in families:
        fields |= _copying_fields(nearest, is_real, real)
        theirs, own = (to_float64(nearest.column(name), np.nan) for name in (DISTINCT_REAL, NEAREST_REAL))
        values[NEAREST_REAL] = np.where(is_real, theirs, own)
    return {"fields": fields, "values": values}


def _manifold_fields(nearest: pa.Table) -> dict[str, NDArray[np.float64]]:
    """The fields that density and recall are made of."""
    recalled = nearest.column("in_synthetic_manifold").fill_null(False)
    return {
        "real_radii": nearest.column("real_radii_containing").fill_null(0).to_numpy().astype(np.float64),
        "recalled": np.asarray(recalled).astype(np.float64),
    }


def _copying_fields(
    nearest: pa.Table, is_real: NDArray[np.bool_], real: pa.Table
) -> dict[str, NDArray[np.float64]]:
    """The fields that authenticity and the share of identical rows are made of."""
    distance = to_float64(nearest.column(NEAREST_REAL), np.inf)
    wanted = nearest.column("nearest_real_row").fill_null(-1).to_numpy()
    at = np.searchsorted(real.column("row").to_numpy(), wanted).clip(max=max(0, real.num_rows - 1))
    theirs = real.column(DISTINCT_REAL).to_numpy()[at]
    synthetic = ~is_real & (wanted >= 0)
    return {
        "authentic": (synthetic & (distance >= theirs)).astype(np.float64),
        "identical": (synthetic & (distance <= _IDENTICAL)).astype(np.float64),
    }


@dataclass
class DirectionSums:
    """Sums over places along one direction, by class; two of them add up.

    Attributes:
        moments: (3, 2): count, sum and sum of squares.
        ends: by class, the examples at the low and the high end, the outermost first.
    """

    moments: NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, 2)))
    ranks: RankSums = field(default_factory=RankSums)
    ends: tuple[tuple[list[End], list[End]], tuple[list[End], list[End]]] = (([], []), ([], []))

    def __add__(self, other: "DirectionSums") -> "DirectionSums":
        """Return the sums over both sets of rows."""
        both = [
            (sorted(low + lower)[:_ENDS], sorted(high + higher, key=_from_the_top)[:_ENDS])
            for (low, high), (lower, higher) in zip(self.ends, other.ends, strict=True)
        ]
        return DirectionSums(self.moments + other.moments, self.ranks + other.ranks, (both[0], both[1]))


def _from_the_top(end: End) -> tuple[float, str]:
    return -end[0], end[1]


def sum_directions(places: NDArray[np.float64], is_real: NDArray[np.bool_], ids: list[str]) -> DirectionSums:
    """Sum over rows with places (n,) along a direction, classes (n,) and ids; NaN is left out."""
    moments, ends = np.zeros((3, 2)), []
    for kind in (0, 1):
        chosen = np.flatnonzero((is_real == (kind == 0)) & ~np.isnan(places))
        own = places[chosen]
        moments[:, kind] = len(own), own.sum(), np.square(own).sum()
        # Ties at the cut must not depend on the order of rows, hence the ids.
        low, high = (_outermost(own, chosen, ids, sign) for sign in (1, -1))
        ends.append((low, high))
    return DirectionSums(moments, sum_ranks(places, is_real), (ends[0], ends[1]))


def _outermost(own: NDArray[np.float64], chosen: NDArray[np.int64], ids: list[str], sign: int) -> list[End]:
    if len(own) > _ENDS:
        chosen, own = (
            part[sign * own <= np.partition(sign * own, _ENDS - 1)[_ENDS - 1]] for part in (chosen, own)
        )
    found = [(float(value), ids[i]) for value, i in zip(own, chosen.tolist(), strict=True)]
    return sorted(found, key=lambda end: (sign * end[0], end[1]))[:_ENDS]


def direction_figures(sums: list[DirectionSums], shares: list[float]) -> list[dict[str, Any]]:
    """Return what metrics.json says of each separating direction, strongest first.

    ``share`` of the logit's change that it holds; the ``auc`` of the place along it alone; the sets' means and
    deviations along it, in standard deviations of the real images; and the ids at its ends.
    """
    figures = []
    for direction_coordinates, share in zip(sums, shares, strict=False):
        count, total, squares = direction_coordinates.moments
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
        names = ("real", "synthetic")
        figures.append(
            {
                "share": share,
                "auc": auc(direction_coordinates.ranks),
                **{
                    name: {
                        "mean": float(mean[kind]),
                        "deviation": float(deviation[kind]),
                        "lowest": [example for _, example in direction_coordinates.ends[kind][0]],
                        "highest": [example for _, example in direction_coordinates.ends[kind][1]],
                    }
                    for kind, name in enumerate(names)
                },
            }
        )
    return figures


def confounder_figures(file_facts: RankSums, bytes_per_pixel: RankSums, classified: bool) -> dict[str, Any]:
    """Return the ``confounders`` block: how well the files alone tell the sets apart.

    ``auc`` is out of fold, of the same kernel classifier, on format, mode, width, height, aspect ratio and JPEG
    quality. ``bytes_per_pixel_auc``, 0.5..1, depends on the picture as well and is for information.
    """
    if not all(bytes_per_pixel.counts):
        reason = "the input is vectors: there are no files to compare"
        return {"auc": metric(None, reason), "bytes_per_pixel_auc": None, "reason": reason}
    size = auc(bytes_per_pixel)
    found = auc_metric(file_facts) if classified else metric(None, NO_CLASSIFIER)
    return {"auc": found, "bytes_per_pixel_auc": max(size, 1 - size)}


def confounder_warning(figures: dict[str, Any]) -> str | None:
    """Return the warning that file facts give the sets away, if they do."""
    low = figures["auc"]["low"]
    if low is None or low <= CONFOUNDED:
        return None
    return (
        f"the files alone (format, size, mode, JPEG quality) tell real from synthetic with an AUC of "
        f"{figures['auc']['value']:.2f}: fidelity partly measures the file format; save both sets alike and score "
        "again"
    )
