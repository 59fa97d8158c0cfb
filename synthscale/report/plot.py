"""The map of embeddings as a matplotlib figure, for notebooks."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthscale.errors import ConfigError
from synthscale.report import maps
from synthscale.report.sample_reader import RowSample
from synthscale.tables.schemas import REAL


def projection_figure(sample: RowSample, vectors: NDArray[np.float64]) -> Any:
    """Return a scatter plot of sampled rows by PCA, coloured by set; raise ConfigError if matplotlib is missing.

    Args:
        sample: ids and sets of n rows.
        vectors: (n, d) embeddings of the rows.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plot_projection needs matplotlib: pip install 'synthscale[notebook]'") from error
    projection = maps.project(vectors)[0]
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.add_subplot()
    for name in sorted(set(sample.sets), key=lambda set_name: (set_name != REAL, set_name)):
        in_set = [set_name == name for set_name in sample.sets]
        # In SVG, y grows downwards; negate it so that the figure looks like the page.
        axes.scatter(projection.points[in_set, 0], -projection.points[in_set, 1], s=10, alpha=0.7, label=name)
    axes.legend()
    axes.set(title=f"{projection.name} of {len(sample.ids):,} images", xticks=[], yticks=[])
    return figure
