"""Search spaces: which vectors are compared for near-duplicates and for the manifold metrics, and by which metric.

Near-duplicates are vectors of nearly the same direction (images, embeddings) or rows with small differences in
every column (tables). The manifold metrics (precision, recall, density, coverage, authenticity, privacy) use the
Euclidean distance over all dimensions, as their papers do. Arrays in, arrays out.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthscale.config import NeighborsConfig
from synthscale.neighbors.distance import Floats
from synthscale.statistics.column_moments import ColumnMoments
from synthscale.tables.layout import DistanceMetric, VectorLayout

NEAR_DUPLICATES, MANIFOLD = "near_duplicates", "manifold"
"""Names of the two spaces."""
_LARGEST = 1e15
"""Largest absolute value in a Euclidean space; larger ones are cut off there. The square of 1e20 is infinite in
float32, and sums with it are NaN, so that one corrupt row would hide the near-duplicates of all others."""


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """Map from stored vectors to the vectors that a search compares.

    Attributes:
        name: `NEAR_DUPLICATES` or `MANIFOLD`.
        metric: metric of the comparison.
        dimensions: (start, stop) of the stored dimensions that are used.
        center: (d,) subtracted from them, which changes no Euclidean distance and makes float32 exact enough; None
            for ``cosine``.
        scale: (d,) factors that they are multiplied by afterwards, 0 for constant columns; None: not scaled, as
            where all columns are constant.
    """

    name: str
    metric: DistanceMetric
    dimensions: tuple[int, int]
    center: Floats | None = None
    scale: Floats | None = None

    def __call__(self, stored: NDArray[np.floating]) -> NDArray[np.floating]:
        """Map vectors (n, D) as stored to vectors (n, d): as stored for ``cosine``, else bounded and float32."""
        vectors = stored[:, self.dimensions[0] : self.dimensions[1]]
        if self.center is None:
            return vectors
        moved = vectors - self.center
        scaled = moved if self.scale is None else moved * self.scale
        return np.clip(scaled, -_LARGEST, _LARGEST).astype(np.float32)

    @property
    def width(self) -> int:
        """Number of dimensions, d."""
        return self.dimensions[1] - self.dimensions[0]

    def summary(self) -> dict[str, Any]:
        """Return metric, dimensions and scaling for metrics.json and the terminal."""
        constant = 0 if self.scale is None else int((self.scale == 0).sum())
        return {
            "metric": self.metric,
            "dimensions": self.width - constant,
            "scaled": self.scale is not None,
            "constant_dimensions": constant,
        }

    def recipe(self) -> dict[str, Any]:
        """Return all that is needed to map other vectors to the space, as JSON-compatible values."""
        arrays = {"center": self.center, "scale": self.scale}
        listed = {name: None if array is None else array.tolist() for name, array in arrays.items()}
        return {"metric": self.metric, "dimensions": list(self.dimensions), **listed}


def search_spaces(
    layout: VectorLayout, config: NeighborsConfig, real: ColumnMoments
) -> tuple[SearchSpace, SearchSpace]:
    """Return the spaces of near-duplicates and of the manifold metrics; one object if they are the same.

    Args:
        layout: properties of the stored vectors.
        config: the section ``neighbors``.
        real: moments of the distinct real rows' stored vectors, (D,).
    """
    metric = layout.metric(config.metric_in_force)
    everything = (0, layout.dimensions)
    manifold = _euclidean(MANIFOLD, everything, real, scaled=layout.scaled)
    if metric == "cosine":
        return SearchSpace(NEAR_DUPLICATES, metric, layout.search), manifold
    near = _euclidean(NEAR_DUPLICATES, layout.search, real, scaled=layout.columns)
    is_same = layout.search == everything and layout.columns == layout.scaled
    return near, near if is_same else manifold


def _euclidean(name: str, dimensions: tuple[int, int], real: ColumnMoments, *, scaled: bool) -> SearchSpace:
    chosen = slice(*dimensions)
    scale = real.inverse_deviations()[chosen] if scaled else None
    if scale is not None and not scale.any():
        # Without a column that varies all distances would be 0, and every row a copy of the real ones.
        scale = None
    return SearchSpace(name, "euclidean", dimensions, real.mean[chosen], scale)
