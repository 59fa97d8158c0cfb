"""Metrics in plain words: what a value says of the images, and how far it is from what could be wished."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MEANING = {
    "fidelity": "Can the synthetic images be told from real ones? 0.5: no; 0: always.",
    "representativeness": "Is the real data matched by the synthetic? 0.5: fully; 0: real images stand out.",
    "diversity": "Share of synthetic images that do not repeat one another.",
    "freshness": "Share of synthetic images that do not repeat a real one.",
    "precision": "Share of synthetic images that lie among the real ones.",
    "coverage": "Share of real images that have a synthetic one near.",
}
"""The metrics that the report leads with, and what each asks."""

_TOLD = (
    (0.45, "cannot be told from real ones"),
    (0.35, "are hard to tell from real ones"),
    (0.2, "can often be told from real ones"),
    (0.05, "can mostly be told from real ones"),
    (0.0, "can nearly always be told from real ones"),
)
_MATCHED = (
    (0.45, "are matched by synthetic ones"),
    (0.35, "are mostly matched by synthetic ones"),
    (0.2, "are partly matched by synthetic ones"),
    (0.05, "are mostly unlike any synthetic one"),
    (0.0, "are nearly all unlike any synthetic one"),
)
_SHARES = {
    "diversity": ("synthetic image", "repeats another", "repeat another"),
    "freshness": ("synthetic image", "repeats a real one", "repeat a real one"),
    "precision": ("synthetic image", "lies apart from all real ones", "lie apart from all real ones"),
    "coverage": ("real image", "has no synthetic one near", "have no synthetic one near"),
}
_ALL_FINE = {
    "precision": "every synthetic image lies among real ones",
    "coverage": "every real image has a synthetic one near",
}
EVIDENCE = {
    "fidelity": "unrealistic",
    "representativeness": "unrepresented",
    "diversity": "repeated",
    "freshness": "copied",
    "precision": "unrealistic",
    "coverage": "unrepresented",
}
"""The gallery that shows what stands behind a metric."""
_FINE, _POOR = 0.05, 0.25
_ROUNDING = 1e-9
_WIDE = 0.5
"""Intervals longer than this share of the reference say little."""
_FINE_TOLD, _POOR_TOLD = 0.1, 0.5
"""Of fidelity and representativeness, whose scale is steep near 0.5."""


@dataclass(frozen=True)
class Reading:
    """A metric in words.

    ``level`` is good, fair or poor, by how far it is below its reference; none where the interval is too long.
    """

    metric: str
    words: str
    level: str
    gap: float


def reading(metric: str, figures: Mapping[str, Any]) -> Reading:
    """Return what a metric's figures (value, reference, reason) say."""
    value = figures.get("value")
    if value is None:
        return Reading(metric, f"{metric} is not known: {figures.get('reason', 'no value')}", "none", 0.0)
    reference = figures.get("reference") or 1.0
    gap = max(0.0, (reference - value) / reference)
    fine, poor = (_FINE, _POOR) if metric in _SHARES else (_FINE_TOLD, _POOR_TOLD)
    level = "good" if gap <= fine + _ROUNDING else "fair" if gap <= poor + _ROUNDING else "poor"
    words = _words(metric, float(value))
    if figures.get("low") is not None and figures["high"] - figures["low"] > _WIDE * reference:
        level, words = "none", f"{words}; too few images to be sure"
    return Reading(metric, words, level, gap)


def readings(metrics: Mapping[str, Mapping[str, Any]]) -> list[Reading]:
    """Return the readings of a generator's metrics, what is furthest from its reference first."""
    found = [reading(name, metrics[name]) for name in MEANING if name in metrics]
    return sorted(found, key=lambda each: -each.gap)


def _words(metric: str, value: float) -> str:
    if metric == "fidelity":
        return "synthetic images " + next(words for least, words in _TOLD if value >= least)
    if metric == "representativeness":
        return "real images " + next(words for least, words in _MATCHED if value >= least)
    if value >= 1 and metric in _ALL_FINE:
        return _ALL_FINE[metric]
    what, one, many = _SHARES[metric]
    return one_in(1.0 - value, what, one, many)


def one_in(share: float, what: str, one: str, many: str) -> str:
    """Say a share as people do: ``1 in 8 synthetic images repeats another``."""
    if share <= 0:
        return f"no {what} {one}"
    if share >= 0.995:
        return f"all but a few {what}s {many}" if share < 1 else f"every {what} {one}"
    if share < 1 / 1000:
        return f"fewer than 1 in 1,000 {what}s {many}"
    if share >= 0.4 - _ROUNDING:
        return f"{round(10 * share)} in 10 {what}s {many}" if share < 0.945 else f"nearly all {what}s {many}"
    return f"1 in {round(1 / share):,} {what}s {one}"
