"""Dataset metrics, pure: sums that merge over shards, and the figures that are made of them."""

from collections.abc import Mapping
from typing import Any

CORE_METRICS = ("fidelity", "representativeness", "diversity", "freshness", "precision", "coverage")
"""The metrics of every run, in the order in which people are shown them."""

FAMILIES = {
    "manifold": ("density", "recall"),
    "frechet": ("frechet_distance", "frechet_distance_infinity"),
    "kernel": ("kid",),
    "vendi": ("vendi_score",),
    "copying": ("exact_match_share", "authenticity", "privacy_ratio", "privacy_tail"),
    "facts": ("brightness_ks", "contrast_ks", "sharpness_ks", "width_ks", "height_ks", "aspect_ks"),
    "utility": ("utility", "accuracy_synthetic", "accuracy_real"),
    "completeness": ("complete_share", "label_coverage"),
    "stability": (
        *(f"{name}_error" for name in CORE_METRICS),
        *(f"{name}_over_folds" for name in CORE_METRICS),
        *(f"{name}_over_blocks" for name in CORE_METRICS),
    ),
}
"""The metrics beyond the core, by family (`metrics.families`)."""


def warned(generators: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return each warning of metrics.json's generators, once, with the names of those that it concerns."""
    found: dict[str, list[str]] = {}
    for name, block in generators.items():
        for text in block["warnings"]:
            found.setdefault(text, []).append(name)
    return found
