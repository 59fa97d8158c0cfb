"""The page of ``synthscale compare``: generators of several runs on one chart a metric, and their differences."""

import math
from typing import Any

from synthscale.comparisons import Comparison
from synthscale.metrics import CORE_METRICS
from synthscale.report import page
from synthscale.report.charts import interval_chart


def compare_page(comparison: Comparison) -> str:
    """Return a comparison as HTML, one file that needs no network."""
    charts = []
    for metric in CORE_METRICS:
        figures = {own.name: _known(own.figures.get(metric)) for own in comparison.scored}
        charts.append(interval_chart(metric, figures, page.TOPS.get(metric, 1.0)))
    return page.render(
        "compare.html.j2",
        overview=charts,
        **page.pairs([difference.json() for difference in comparison.differences]),
        warnings=comparison.warnings,
    )


def _known(figure: Any) -> dict[str, float | None]:
    if figure is None:
        return {"value": None}
    known = {"value": figure.value, "low": figure.low, "high": figure.high}
    return {name: None if math.isnan(value) else value for name, value in known.items()}
