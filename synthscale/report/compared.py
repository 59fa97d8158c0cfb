"""HTML page of ``synthscale compare``: one chart per core metric, and the table of differences.

Returns the page as text and writes nothing; cli.py writes it.
"""

import math

from synthscale.metric_names import CORE_METRICS
from synthscale.metrics.comparison import Comparison, MetricValue
from synthscale.report import page


def compare_page(comparison: Comparison) -> str:
    """Return a comparison as one HTML file that loads nothing from the network."""
    figures = {
        scored.name: {metric: _figure(scored.figures.get(metric)) for metric in CORE_METRICS}
        for scored in comparison.scored
    }
    return page.render(
        "compare.html.j2",
        overview=page.overview(figures),
        **page.comparison_pairs([difference.json() for difference in comparison.differences]),
        warnings=comparison.warnings,
    )


def _figure(value: MetricValue | None) -> dict[str, float | None]:
    """Return value and interval as in ``metrics.json``: NaN becomes None."""
    if value is None:
        return {"value": None}
    numbers = {"value": value.value, "low": value.low, "high": value.high}
    return {name: None if math.isnan(number) else number for name, number in numbers.items()}
