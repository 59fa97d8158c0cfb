"""The map as a matplotlib figure, for notebooks."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthscale.errors import ConfigError
from synthscale.report import maps
from synthscale.report.sample_reader import RowSample
from synthscale.tables.schemas import REAL


def figure_of(sample: RowSample, vectors: NDArray[np.float64]) -> Any:
    """Return a scatter plot of sampled rows by PCA, coloured by set; raise ConfigError if matplotlib is missing.

    Args:
        sample: ids and sets of n rows.
        vectors: (n, d) their embeddings.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plot_projection needs matplotlib: pip install 'synthscale[notebook]'") from error
    projection = maps.project(vectors)[0]
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.add_subplot()
    for name in sorted(set(sample.sets), key=lambda own: (own != REAL, own)):
        own = [own == name for own in sample.sets]
        # Downwards, as on the page.
        axes.scatter(projection.points[own, 0], -projection.points[own, 1], s=10, alpha=0.7, label=name)
    axes.legend()
    axes.set(title=f"{projection.name} of {len(sample.ids):,} images", xticks=[], yticks=[])
    return figure
