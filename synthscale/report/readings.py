"""Describes metric values in a sentence, with a level by the distance to the reference.

Pure functions over a generator's block ``metrics`` of metrics.json.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from synthscale.statistics.estimates import TOO_FEW_INDEPENDENT

MEANING = {
    "fidelity": "Can synthetic images be told apart from real ones? 0.5: no; 0: always.",
    "representativeness": "Does the synthetic set match the real images? 0.5: fully; 0: real images stand out.",
    "diversity": "Share of synthetic images that do not repeat one another.",
    "unique_share": "Different synthetic images, as a share of all: what is left when repeats are removed.",
    "freshness": "Share of synthetic images that do not repeat a real one.",
    "precision": "Share of synthetic images that are near a real one.",
    "coverage": "Share of real images that have a synthetic one near them.",
}
"""Metric -> what it means, in the order of the report."""

_FIDELITY_WORDS = (
    (0.45, "cannot be told apart from real ones"),
    (0.35, "are hard to tell apart from real ones"),
    (0.2, "can often be told apart from real ones"),
    (0.05, "can mostly be told apart from real ones"),
    (0.0, "can nearly always be told apart from real ones"),
)
"""(smallest value, words), the largest value first."""
_REPRESENTATIVENESS_WORDS = (
    (0.45, "are matched by synthetic ones"),
    (0.35, "are mostly matched by synthetic ones"),
    (0.2, "are partly matched by synthetic ones"),
    (0.05, "mostly differ from all synthetic ones"),
    (0.0, "nearly all differ from all synthetic ones"),
)
"""(smallest value, words), the largest value first."""
_SHARE_WORDS = {
    "diversity": ("synthetic image", "repeats another", "repeat another"),
    "freshness": ("synthetic image", "repeats a real one", "repeat a real one"),
    "unique_share": ("synthetic image", "is a repeat", "are repeats"),
    "precision": ("synthetic image", "is far from all real ones", "are far from all real ones"),
    "coverage": ("real image", "has no synthetic one near it", "have no synthetic one near them"),
}
"""Metric -> what is counted, and what is wrong with one or with several of them."""
_AS_EXPECTED_WORDS = {
    "diversity": ("synthetic images repeat one another {} more often than real images do", "no", "hardly"),
    "unique_share": ("there are {} more repeats than among real images", "no", "hardly any"),
    "freshness": ("synthetic images repeat real ones {} more often than real images do", "no", "hardly"),
    "precision": ("{} as many synthetic images are near a real one as real images are", "at least", "about"),
    "coverage": (
        "{} as many real images have a synthetic one near them as an ideal generator of this size would give",
        "at least",
        "about",
    ),
}
"""Metric -> words for a value near a reference below 1, and what to insert if it is at or above it, or below."""
_COMPLEMENTS = ("diversity", "unique_share", "freshness")
"""Metrics whose words near the reference speak of the rest, 1 - value: the images that repeat."""
_REFERENCE_WORDS = {
    "diversity": "of real images {}",
    "unique_share": "among real images {}",
    "freshness": "of real images {}",
    "precision": "of real images {}",
    "coverage": "with an ideal generator of this size {}",
}
"""Metric -> the reference in words, with its share of such images, where it is below 1."""
_PERFECT_WORDS = {
    "precision": "every synthetic image is near a real one",
    "coverage": "every real image has a synthetic one near it",
}
"""Words for a value of 1 where "no image is far from ..." would be a double negative."""
EVIDENCE = {
    "fidelity": "unrealistic",
    "representativeness": "unrepresented",
    "diversity": "repeated",
    "unique_share": "repeated",
    "freshness": "copied",
    "precision": "unrealistic",
    "coverage": "unrepresented",
}
"""Metric -> key of the gallery that shows the images behind its value."""
_GOOD_GAP, _FAIR_GAP = 0.05, 0.25
"""Largest gap, as a fraction of the reference, at which a share is ``good`` or ``fair``."""
_CLASSIFIER_GOOD_GAP, _CLASSIFIER_FAIR_GAP = 0.1, 0.5
"""The same for fidelity and representativeness, whose scale is steep near 0.5."""
_SHOWN_REFERENCE = 0.995
"""Reference of a share below which words compare with it; above, it rounds to all images."""
_ROUNDING = 1e-9
"""Tolerance that keeps a value on a limit on its better side in spite of floating-point rounding."""
_WIDE_INTERVAL = 0.5
"""Length of a 95 % interval, as a fraction of the reference, above which the value gets no level."""


@dataclass(frozen=True)
class Reading:
    """A metric's value as a sentence.

    Attributes:
        metric: name of the metric.
        words: the sentence, without a capital and a full stop.
        level: ``good``, ``fair`` or ``poor`` by the gap; ``none`` without a value, if there are too few images to
            be sure, or if the metric cannot see the difference between the sets.
        gap: how far the value is below its reference, as a fraction of the reference, 0..1.
    """

    metric: str
    words: str
    level: str
    gap: float


def reading(metric: str, figures: Mapping[str, Any]) -> Reading:
    """Describe one metric.

    Args:
        metric: name of a core metric.
        figures: its block of metrics.json: ``value`` and optionally ``low``, ``high``, ``reference`` (default 1),
            ``reason`` and ``note``, which replaces the words.
    """
    value = figures.get("value")
    if value is None:
        reason = figures.get("reason", "no value")
        return Reading(metric, f"{metric} could not be computed: {reason}", "none", 0.0)
    if "note" in figures:
        return Reading(metric, figures["note"], "none", 0.0)
    reference = 1.0 if figures.get("reference") is None else float(figures["reference"])
    # A reference of 0 (every real image repeats another, say) leaves nothing to fall below.
    gap = max(0.0, (reference - value) / reference) if reference > 0 else 0.0
    is_share = metric in _SHARE_WORDS
    good, fair = (_GOOD_GAP, _FAIR_GAP) if is_share else (_CLASSIFIER_GOOD_GAP, _CLASSIFIER_FAIR_GAP)
    level = "good" if gap <= good + _ROUNDING else "fair" if gap <= fair + _ROUNDING else "poor"
    words = _words(metric, float(value), reference, is_good=level == "good")
    if figures.get("low") is None and figures.get("reason") == TOO_FEW_INDEPENDENT:
        level, words = "none", f"{words}; too few independent images to be sure"
    elif figures.get("low") is not None and figures["high"] - figures["low"] > _WIDE_INTERVAL * (reference or 1.0):
        level, words = "none", f"{words}; too few images to be sure"
    return Reading(metric, words, level, gap)


def readings(metrics: Mapping[str, Mapping[str, Any]]) -> list[Reading]:
    """Describe the core metrics of a generator, the one furthest below its reference first."""
    described = [reading(name, metrics[name]) for name in MEANING if name in metrics]
    return sorted(described, key=lambda metric_reading: -metric_reading.gap)


def _words(metric: str, value: float, reference: float, *, is_good: bool) -> str:
    if metric == "fidelity":
        return "synthetic images " + next(words for least, words in _FIDELITY_WORDS if value >= least)
    if metric == "representativeness":
        return "real images " + next(words for least, words in _REPRESENTATIVENESS_WORDS if value >= least)
    if value >= 1 and metric in _PERFECT_WORDS:
        return _PERFECT_WORDS[metric]
    if reference >= _SHOWN_REFERENCE:
        return share_words(1.0 - value, *_SHARE_WORDS[metric])
    if is_good:
        words, above, below = _AS_EXPECTED_WORDS[metric]
        shown = 1.0 - value if metric in _COMPLEMENTS else value
        return f"{words.format(above if value >= reference else below)} ({100 * shown:.0f} %)"
    words = share_words(1.0 - value, *_SHARE_WORDS[metric])
    return f"{words} ({_REFERENCE_WORDS[metric].format(_fraction(1.0 - reference))})"


def _fraction(share: float) -> str:
    """Express a share as a fraction, such as ``1 in 8``, or as tenths where it is larger."""
    return f"{round(10 * share)} in 10" if share >= 0.4 - _ROUNDING else f"1 in {round(1 / share):,}"


def share_words(share: float, noun: str, singular: str, plural: str) -> str:
    """Express a share as a count that people can picture, such as ``1 in 8 synthetic images repeats another``.

    Args:
        share: 0..1.
        noun: what is counted, in the singular.
        singular: predicate for one of them.
        plural: predicate for several.
    """
    if share <= 0:
        return f"no {noun} {singular}"
    if share >= 0.995:
        return f"all but a few {noun}s {plural}" if share < 1 else f"every {noun} {singular}"
    if share < 1 / 1000:
        return f"fewer than 1 in 1,000 {noun}s {plural}"
    if share >= 0.4 - _ROUNDING:
        return f"{round(10 * share)} in 10 {noun}s {plural}" if share < 0.945 else f"nearly all {noun}s {plural}"
    return f"1 in {round(1 / share):,} {noun}s {singular}"
