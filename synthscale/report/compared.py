"""The page of ``synthscale compare``: generators of several runs on one chart a metric, and their differences."""

import math
from typing import Any

from synthscale.metric_names import CORE_METRICS
from synthscale.metrics.comparison import Comparison
from synthscale.report import page


def compare_page(comparison: Comparison) -> str:
    """Return a comparison as HTML, one file that needs no network."""
    figures = {
        own.name: {metric: _known(own.figures.get(metric)) for metric in CORE_METRICS} for own in comparison.scored
    }
    return page.render(
        "compare.html.j2",
        overview=page.overview(figures),
        **page.pairs([difference.json() for difference in comparison.differences]),
        warnings=comparison.warnings,
    )


def _known(figure: Any) -> dict[str, float | None]:
    if figure is None:
        return {"value": None}
    known = {"value": figure.value, "low": figure.low, "high": figure.high}
    return {name: None if math.isnan(value) else value for name, value in known.items()}
