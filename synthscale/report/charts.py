"""Geometry of the report's charts: numbers in, places in an SVG of given width out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 40
_LEVELS = 5
_ROUNDING = 1e-9


@dataclass(frozen=True)
class IntervalMark:
    """A line of an interval chart; places are shares of its width, None where unknown."""

    name: str
    text: str
    title: str
    at: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class IntervalChart:
    """One metric of all generators: lines, the reference's place, and the ticks (place, text) of the axis."""

    metric: str
    lines: list[IntervalMark]
    reference: float | None
    ticks: list[tuple[float, str]]


def interval_chart(metric: str, figures: Mapping[str, Mapping[str, Any]], top: float) -> IntervalChart:
    """Place a metric's values and intervals, by generator, on an axis from 0 to ``top``."""

    def place(value: float | None) -> float | None:
        return None if value is None else round(min(max(value / top, 0.0), 1.0), 4)

    lines = []
    for name, own in figures.items():
        text = figure(own.get("value"))
        title = f"{name}: {metric} {text}{interval_text(own)}"
        ends = [place(own.get(end)) for end in ("low", "high")]
        lines.append(IntervalMark(name, text, title, place(own.get("value")), *ends))
    references = [own["reference"] for own in figures.values() if own.get("reference") is not None]
    ticks = [(round(tick / top, 4), f"{tick:g}") for tick in np.linspace(0, 0.5 if top < 1 else 1, 3)]
    return IntervalChart(metric, lines, place(float(np.mean(references))) if references else None, ticks)


def figure(value: float | None) -> str:
    """Return a value as the report writes it."""
    return "n/a" if value is None else f"{value:.3f}"


def interval_text(figures: Mapping[str, Any]) -> str:
    """Return the 95 % interval in words, or why there is none."""
    if figures.get("low") is None:
        return f" ({figures['reason']})" if figures.get("reason") else ""
    return f", 95 % interval {figures['low']:.3f} to {figures['high']:.3f}"


def steps(counts: NDArray[np.int64], largest: float) -> str:
    """Return the outline of a histogram as an SVG path in a box of BINS by 100; shares of ``largest``."""
    heights = 100 - 100 * counts / max(largest, 1e-12)
    path = ["M0 100"]
    for i, height in enumerate(heights.tolist()):
        path.append(f"V{height:.1f}H{i + 1}")
    return "".join([*path, "V100Z"])


def level_of(figures: Mapping[str, Any]) -> int:
    """Return 0 (at its reference, or beyond) to 4 (far below) for a heat map; -1 where unknown."""
    value, reference = figures.get("value"), figures.get("reference")
    if value is None or not reference:
        return -1
    return int(np.clip(np.ceil(_LEVELS * (reference - value) / reference - 0.25 - _ROUNDING), 0, _LEVELS - 1))


def scaled(places: NDArray[np.float64], width: float, height: float, margin: float) -> NDArray[np.float64]:
    """Return points (n, 2) scaled to fit a box; extremes beyond the 0.5 % at either end lie on its border."""
    low, high = np.quantile(places, [0.005, 0.995], axis=0)
    nearly_one = high <= low
    low, high = np.where(nearly_one, places.min(0), low), np.where(nearly_one, places.max(0), high)
    share = np.clip((places - low) / np.where(high > low, high - low, 1.0), 0, 1)
    share[:, high <= low] = 0.5
    size: Sequence[float] = (width - 2 * margin, height - 2 * margin)
    result: NDArray[np.float64] = np.round(margin + share * np.asarray(size), 1)
    return result
