"""Geometry of the report's charts: converts metric values, counts and points to SVG coordinates.

Pure functions; the templates draw what they return.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 40
"""Bins of the score histogram over 0..1; also the width of its SVG box, which report.html.j2 repeats."""
_LEVELS = 5
"""Shades of the label table, including the blank one; report.css defines their colours."""
_ROUNDING = 1e-9
"""Tolerance that keeps a value on a level's limit at the lower level in spite of floating-point rounding."""


@dataclass(frozen=True)
class IntervalMark:
    """One row of an interval chart: the value of a generator and its 95 % interval.

    Attributes:
        name: the generator.
        text: the value as text.
        title: tooltip with metric, value and interval.
        at: position of the value as a fraction of the axis, 0..1; None if unknown.
        low: position of the lower end of the interval; None if unknown.
        high: position of the upper end; None if unknown.
        reference: position of the reference; None if there is none.
    """

    name: str
    text: str
    title: str
    at: float | None
    low: float | None
    high: float | None
    reference: float | None


@dataclass(frozen=True)
class IntervalChart:
    """Values of one metric for all generators, with 95 % intervals on a common axis.

    Attributes:
        metric: name of the metric.
        lines: one row for each generator.
        ticks: (position, text) of each tick of the axis.
    """

    metric: str
    lines: list[IntervalMark]
    ticks: list[tuple[float, str]]


def interval_chart(metric: str, figures: Mapping[str, Mapping[str, Any]], top: float) -> IntervalChart:
    """Return the chart of one metric, with values and intervals on an axis from 0 to ``top``.

    Args:
        metric: name of the metric.
        figures: for each generator its block of metrics.json: ``value`` and optionally ``low``, ``high``,
            ``reference`` and ``reason``.
        top: value at the end of the axis; larger values are drawn there.
    """

    def position(value: float | None) -> float | None:
        return None if value is None else round(min(max(value / top, 0.0), 1.0), 4)

    lines = []
    for name, block in figures.items():
        text = value_text(block.get("value"))
        expected = "" if block.get("reference") is None else f", reference {value_text(block['reference'])}"
        title = f"{name}: {metric} {text}{interval_text(block)}{expected}"
        places = [position(block.get(key)) for key in ("value", "low", "high", "reference")]
        lines.append(IntervalMark(name, text, title, *places))
    ticks = [(round(tick / top, 4), f"{tick:g}") for tick in np.linspace(0, 0.5 if top < 1 else 1, 3)]
    return IntervalChart(metric, lines, ticks)


def value_text(value: float | None) -> str:
    """Format a metric value with three decimals; ``n/a`` for None."""
    return "n/a" if value is None else f"{value:.3f}"


def interval_text(figures: Mapping[str, Any]) -> str:
    """Format a metric's 95 % interval, or the reason why it has none, as text to append to its value."""
    if figures.get("low") is None:
        return f" ({figures['reason']})" if figures.get("reason") else ""
    low, high = figures["low"], figures["high"]
    # As many digits as it takes to show that the interval has a width.
    digits = next((n for n in range(3, 8) if f"{low:.{n}f}" != f"{high:.{n}f}"), 3)
    return f", 95 % interval {low:.{digits}f} to {high:.{digits}f}"


def histogram_path(counts: NDArray[np.int64], largest: float) -> str:
    """Return the outline of a histogram as an SVG path in a box of BINS by 100 units.

    Args:
        counts: (BINS,) heights of the bins, in any unit.
        largest: height, in the same unit, that fills the box.
    """
    heights = 100 - 100 * counts / max(largest, 1e-12)
    path = ["M0 100"]
    for i, height in enumerate(heights.tolist()):
        path.append(f"V{height:.1f}H{i + 1}")
    return "".join([*path, "V100Z"])


def heat_level(figures: Mapping[str, Any]) -> int:
    """Return how far a value is below its reference: 0 (at or above it) to 4 (far below); -1 if unknown."""
    value, reference = figures.get("value"), figures.get("reference")
    if value is None or not reference:
        return -1
    return int(np.clip(np.ceil(_LEVELS * (reference - value) / reference - 0.25 - _ROUNDING), 0, _LEVELS - 1))


def scale_to_box(points: NDArray[np.float64], width: float, height: float, margin: float) -> NDArray[np.float64]:
    """Scale points to a box, each axis on its own.

    The 0.5 % and 99.5 % quantiles of an axis lie on the border, and points beyond them are moved to it, so that
    outliers do not compress the others. Where these quantiles are equal, minimum and maximum are used.

    Args:
        points: (n, 2) coordinates.
        width: width of the box.
        height: height of the box.
        margin: free space on each side.

    Returns:
        (n, 2) coordinates in the box, rounded to one decimal.
    """
    low, high = np.quantile(points, [0.005, 0.995], axis=0)
    is_degenerate = high <= low
    low, high = np.where(is_degenerate, points.min(0), low), np.where(is_degenerate, points.max(0), high)
    fraction = np.clip((points - low) / np.where(high > low, high - low, 1.0), 0, 1)
    fraction[:, high <= low] = 0.5
    size: Sequence[float] = (width - 2 * margin, height - 2 * margin)
    scaled: NDArray[np.float64] = np.round(margin + fraction * np.asarray(size), 1)
    return scaled
