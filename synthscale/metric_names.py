"""Names of the metrics: the core six, and the optional families."""

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
