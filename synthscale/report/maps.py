"""Two-dimensional projections of a sample of embeddings: PCA, and UMAP if umap-learn is installed."""

import importlib.util
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthscale.report.charts import scale_to_box

WIDTH, HEIGHT = 720.0, 480.0
"""Size of the map in SVG units."""
_MARGIN = 8.0
"""Distance of the outermost points from the border, in SVG units, so that circles are not cut off."""
_NEIGHBORS = 15
"""UMAP's n_neighbors (its default). Samples of at most this many rows get no UMAP."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class MapProjection:
    """A projection of n rows.

    Attributes:
        name: name of the method.
        points: (n, 2) coordinates in a box of WIDTH by HEIGHT.
        shown: explained variance ratio of each axis, in 0..1; None for UMAP.
    """

    name: str
    points: NDArray[np.float64]
    shown: tuple[float, float] | None


def project(vectors: NDArray[np.float64]) -> list[MapProjection]:
    """Return the PCA of row-normalised vectors (n, d), and their UMAP if umap-learn is installed and n > 15."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    centred = unit - unit.mean(0)
    left, values, right = np.linalg.svd(centred, full_matrices=False)
    # Singular values of equal rows are rounding errors, which scaling would blow up to the size of the map.
    values[values <= _ROUNDING * np.sqrt(len(vectors))] = 0
    coordinates = np.zeros((len(vectors), 2))
    axes = min(2, len(values))
    # The sign of a singular vector is arbitrary, so its largest component is made positive.
    signs = np.sign(right[np.arange(axes), np.abs(right[:axes]).argmax(1)])
    coordinates[:, :axes] = left[:, :axes] * values[:axes] * np.where(signs == 0, 1, signs)
    total = max(float((values**2).sum()), 1e-300)
    ratios = [float(value**2) / total for value in values[:2]] + [0.0, 0.0]
    projections = [MapProjection("PCA", scale_to_box(coordinates, WIDTH, HEIGHT, _MARGIN), (ratios[0], ratios[1]))]
    if importlib.util.find_spec("umap") is not None and len(vectors) > _NEIGHBORS:
        import umap

        reduced = umap.UMAP(n_neighbors=_NEIGHBORS, metric="cosine", random_state=0, n_jobs=1).fit_transform(unit)
        points = scale_to_box(np.asarray(reduced, np.float64), WIDTH, HEIGHT, _MARGIN)
        projections.append(MapProjection("UMAP", points, None))
    return projections
