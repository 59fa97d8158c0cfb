"""The map as a matplotlib figure, for notebooks."""

from typing import Any

from synthscale.errors import ConfigError
from synthscale.report import maps
from synthscale.schemas import REAL
from synthscale.storage import RunDirectory


def figure_of(run: RunDirectory, most: int) -> Any:
    """Draw up to ``most`` rows of a run by PCA; raise ConfigError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plot_projection needs matplotlib: pip install 'synthscale[notebook]'") from error
    sample, vectors = maps.draw(run, most)
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
