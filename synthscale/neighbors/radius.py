"""The radius below which rows are near-duplicates: threshold x median nearest-neighbour distance, or absolute.

The median is taken over the distinct real rows, because copies of real images pull a median over all rows towards
zero until nothing is flagged. Where not every distance is known it is that of a seeded sample, with its error.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from synthscale.config import NeighborsConfig
from synthscale.neighbors.copies import Copies
from synthscale.neighbors.distance import Floats
from synthscale.neighbors.knn_search import KnnResult

EXACT_COPIES_ONLY = float(np.nextafter(0.0, 1.0))
"""The radius where there is nothing to calibrate on."""
DATALAB_FLOOR = 1e-6
_Z = 1.959963984540054
"""95 % of a normal distribution."""


@dataclass(frozen=True)
class RadiusCalibration:
    """A generator's radius and what it rests on.

    Attributes:
        median: nearest-neighbour distance; None where no row has a neighbour.
        low, high: 95 % interval of the median of all rows; equal to it when all were measured.
        radius: cosine distance.
        queries: rows whose nearest neighbour was measured.
        rows: rows that they stand for.
    """

    median: float | None
    low: float | None
    high: float | None
    radius: float
    queries: int
    rows: int

    def summary(self) -> dict[str, Any]:
        """Return how the median was found, as metrics.json has it."""
        reason = {} if self.median is not None else {"reason": "too few distinct real rows"}
        return {
            **reason,
            "exact": self.queries == self.rows,
            "queries": self.queries,
            "rows": self.rows,
            "low": self.low,
            "high": self.high,
        }


@dataclass(frozen=True)
class ViewSearches:
    """What the real rows and one generator's find among themselves and in each other; all rows, or a sample."""

    real_real: KnnResult
    real_own: KnnResult
    own_real: KnnResult
    own_own: KnnResult


def is_median_of_real(config: NeighborsConfig) -> bool:
    """Tell whether the median is over the distinct real rows alone, or over both sets."""
    return config.mode == "exact" and config.calibrate_on == "real"


def calibrate_radius(view: ViewSearches, rows: int, config: NeighborsConfig, copies: Copies) -> RadiusCalibration:
    """Return the radius of a generator's view.

    Args:
        view: relations whose distances are exact, over all rows or a sample.
        rows: rows that the median is of: distinct real ones, or those of both sets.
        config: the radius rule.
        copies: of all sets; Datalab counts every one of them, at distance 0.
    """
    distances, measured = _nearest_distances(view, config, copies)
    finite = np.sort(distances[np.isfinite(distances)])
    m = len(finite)
    if m == 0:
        return RadiusCalibration(None, None, None, config.radius or EXACT_COPIES_ONLY, measured, rows)
    median = float(np.median(finite))
    low = high = median
    if measured < rows:
        # Ranks around the middle whose share of the sample is binomial (a sample without replacement: narrower).
        half = _Z * m * np.sqrt((1 - measured / rows) / max(1, measured)) / 2
        low = float(finite[max(0, int(np.floor(m / 2 - half)) - 1)])
        high = float(finite[min(m - 1, int(np.ceil(m / 2 + half)))])
    if config.mode == "datalab":
        median, low, high = (max(value, DATALAB_FLOOR) for value in (median, low, high))
    radius = config.radius if config.radius is not None else config.threshold * median
    # Without distances to calibrate on, exact copies (distance 0) are all that can be said.
    return RadiusCalibration(median, low, high, max(radius, EXACT_COPIES_ONLY), measured, rows)


def _nearest_distances(view: ViewSearches, config: NeighborsConfig, copies: Copies) -> tuple[Floats, int]:
    """Return the distances that the median is of, and how many distinct rows were measured for them."""
    if is_median_of_real(config):
        return view.real_real.distance[:, 0], len(view.real_real.row)
    real = np.minimum(view.real_real.distance[:, 0], view.real_own.distance[:, 0])
    own = np.minimum(view.own_own.distance[:, 0], view.own_real.distance[:, 0])
    distances = np.concatenate([real, own])
    if config.mode == "datalab":
        counts = copies.counts(np.concatenate([view.real_real.row, view.own_own.row]))
        return np.repeat(np.where(counts > 1, 0.0, distances), counts), len(distances)
    return distances, len(distances)
