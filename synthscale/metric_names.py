"""Names of all metrics: the core metrics, and the optional families (docs/metrics.md defines each)."""

CORE_METRICS = (
    "fidelity",
    "representativeness",
    "diversity",
    "unique_share",
    "freshness",
    "precision",
    "coverage",
)
"""Metrics of every run, in the order in which reports show them."""

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
"""Optional metrics by family, in the order in which reports show them (setting ``metrics.families``)."""
