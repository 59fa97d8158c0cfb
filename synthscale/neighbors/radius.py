"""Calibrate the near-duplicate radius: ``threshold`` x median nearest-neighbour distance, or an absolute value.

Arrays in, a `RadiusCalibration` out. The median is taken over the distinct real rows by default: copies of real
images would pull a median over all rows towards zero until nothing is flagged. If only a seeded sample of the
distances was measured, the median comes with a confidence interval.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from synthscale.config import NeighborsConfig
from synthscale.neighbors.copies import Copies
from synthscale.neighbors.distance import Floats
from synthscale.neighbors.knn_search import KnnResult

EXACT_COPIES_ONLY = float(np.nextafter(0.0, 1.0))
"""Smallest positive radius: only rows at distance 0 are near-duplicates. Used if there is no median."""
DATALAB_FLOOR = 1e-6
"""Lower bound on the median in the mode ``datalab`` (cosine distance)."""
_Z = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True)
class RadiusCalibration:
    """A generator's radius and the median that it is based on.

    Attributes:
        median: median nearest-neighbour distance (cosine); None if no row has a neighbour.
        low: lower end of the 95 % interval of the median over all rows; the median itself if all were measured.
        high: upper end of that interval.
        radius: cosine distance below which rows are near-duplicates.
        queries: number of rows whose nearest neighbour was measured.
        rows: number of rows that the median describes; more than ``queries`` if only a sample was measured.
    """

    median: float | None
    low: float | None
    high: float | None
    radius: float
    queries: int
    rows: int

    def summary(self) -> dict[str, Any]:
        """Return the calibration block of metrics.json."""
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
    """The four k-NN searches of a generator's view, of all rows or a sample of queries.

    Attributes:
        real_real: real rows among the real rows.
        real_synthetic: real rows among the generator's rows.
        synthetic_real: the generator's rows among the real rows.
        synthetic_synthetic: the generator's rows among its own rows.
    """

    real_real: KnnResult
    real_synthetic: KnnResult
    synthetic_real: KnnResult
    synthetic_synthetic: KnnResult


def is_median_of_real(config: NeighborsConfig) -> bool:
    """Return True if the median is over the distinct real rows only, False if it is over both sets."""
    return config.mode == "exact" and config.calibrate_on == "real"


def calibrate_radius(view: ViewSearches, rows: int, config: NeighborsConfig, copies: Copies) -> RadiusCalibration:
    """Calibrate the radius of a generator's view.

    Args:
        view: k-NN searches with exact distances, of all rows or a sample.
        rows: number of distinct rows that the median describes: the real ones, or those of both sets.
        config: radius, threshold and mode.
        copies: exact copies within all sets; the mode ``datalab`` counts each of them at distance 0.
    """
    distances, measured = _nearest_distances(view, config, copies)
    finite = np.sort(distances[np.isfinite(distances)])
    m = len(finite)
    if m == 0:
        return RadiusCalibration(None, None, None, config.radius or EXACT_COPIES_ONLY, measured, rows)
    median = float(np.median(finite))
    low = high = median
    if measured < rows:
        # Order statistics around the middle, by the normal approximation of the binomial distribution of ranks,
        # with the finite-population correction, because the sample is drawn without replacement.
        half_ranks = _Z * m * np.sqrt((1 - measured / rows) / max(1, measured)) / 2
        low = float(finite[max(0, int(np.floor(m / 2 - half_ranks)) - 1)])
        high = float(finite[min(m - 1, int(np.ceil(m / 2 + half_ranks)))])
    if config.mode == "datalab":
        median, low, high = (max(value, DATALAB_FLOOR) for value in (median, low, high))
    radius = config.radius if config.radius is not None else config.threshold * median
    # Exact copies (distance 0) are near-duplicates even if the median is 0.
    return RadiusCalibration(median, low, high, max(radius, EXACT_COPIES_ONLY), measured, rows)


def _nearest_distances(view: ViewSearches, config: NeighborsConfig, copies: Copies) -> tuple[Floats, int]:
    """Return the nearest-neighbour distances to take the median of, and the number of distinct rows measured."""
    if is_median_of_real(config):
        return view.real_real.distance[:, 0], len(view.real_real.row)
    real = np.minimum(view.real_real.distance[:, 0], view.real_synthetic.distance[:, 0])
    synthetic = np.minimum(view.synthetic_synthetic.distance[:, 0], view.synthetic_real.distance[:, 0])
    distances = np.concatenate([real, synthetic])
    if config.mode == "datalab":
        counts = copies.counts(np.concatenate([view.real_real.row, view.synthetic_synthetic.row]))
        return np.repeat(np.where(counts > 1, 0.0, distances), counts), len(distances)
    return distances, len(distances)
