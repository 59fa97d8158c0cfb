"""Warnings about a generator's metrics: small sets, failed fits, and near-duplicate groups that look wrong."""

from collections.abc import Mapping
from typing import Any

from synthscale.metrics.view_sums import ViewSums
from synthscale.neighbors import self_test as selftest
from synthscale.neighbors.view import K

_SEPARATED_AUC = 0.9
"""Lower end of the AUC's interval above which the sets are clearly different."""
_MOST_GROUPED = 0.25
"""Share of all rows in one near-duplicate group above which the run warns that the radius may be too large."""
SMALL_CLASS = 200
"""Rows of a class below which the run warns that fidelity and representativeness are uncertain."""


def warnings(sums: ViewSums, fit: dict[str, Any], neighbors: dict[str, Any]) -> list[str]:
    """Return the warnings of a generator's block of ``metrics.json``.

    Args:
        sums: sums over its whole view.
        fit: summary of the classifier's fit.
        neighbors: summary of its near-duplicate groups.
    """
    texts = []
    for name, count in (("real", sums.overall["real"]), ("synthetic", sums.overall["synthetic"])):
        if count < SMALL_CLASS:
            texts.append(
                f"only {int(count)} {name} images: fidelity and representativeness are uncertain below "
                f"{SMALL_CLASS}"
            )
    if not fit.get("folds"):
        texts.append(
            "no classifier could be cross-validated (too few images in a class): fidelity and representativeness "
            "have no value"
        )
    elif fit.get("folds_by_row"):
        texts.append(
            "nearly all images of a class are near-duplicates of one another, so folds were assigned image by "
            "image: near-duplicates may be in different folds, and the scores may be too confident"
        )
    if fit.get("folds") and not fit["converged"]:
        texts.append("the classifier did not fully converge: scores may move by more than 1e-5 between machines")
    if sums.distinct_real <= K:
        texts.append(f"only {sums.distinct_real} distinct real images: precision and coverage mean little")
    if neighbors.get("self_test"):
        texts += filter(None, [selftest.warning(neighbors["self_test"])])
    if neighbors["share_in_largest"] > _MOST_GROUPED and _is_wide(neighbors):
        texts.append(
            f"{neighbors['share_in_largest']:.0%} of all images are in one near-duplicate group, whose diameter "
            f"is {neighbors['largest_diameter']:.3g} at radius {neighbors['radius'] or 0:.3g}: check that the "
            "radius (neighbors.threshold or neighbors.radius) is not too large"
        )
    elif neighbors["chains"]:
        texts.append(
            f"{neighbors['chains']} near-duplicate groups are chains: the images at their ends are not "
            "near-duplicates of each other (column is_chain of groups/)"
        )
    if constant := neighbors["space"]["constant_dimensions"]:
        counted = "1 column is" if constant == 1 else f"{constant} columns are"
        texts.append(f"{counted} constant in the real set and left out of distances")
    if neighbors["median_distance"] is None:
        texts.append(
            "too few distinct real images to calibrate the radius: only exact copies count as near-duplicates"
        )
    elif neighbors["median_distance"] <= 0:
        texts.append(
            "half of the distinct real images have another one at distance 0: only exact copies count as "
            "near-duplicates"
        )
    return texts


def blind_precision(metrics: Mapping[str, Mapping[str, Any]], auc: Mapping[str, Any]) -> str | None:
    """Return what to say where precision misses a difference that the classifier sees clearly; None elsewhere.

    In the space of some encoders, images of a poor generator lie closer to real ones than real images do.

    Args:
        metrics: the core metrics of a generator, as in metrics.json.
        auc: the AUC of its classifier.
    """
    precision = metrics["precision"]
    value, reference = precision["value"], precision.get("reference")
    if auc.get("low") is None or auc["low"] < _SEPARATED_AUC or value is None or reference is None:
        return None
    if value < reference:
        return None
    return (
        f"precision ({value:.2f}) cannot see this difference in this encoder's space: the classifier tells the "
        f"sets apart (AUC {auc['value']:.2f}), yet as many synthetic images as real ones are near a real one"
    )


def _is_wide(neighbors: dict[str, Any]) -> bool:
    """Return True if groups may contain different images: chains, or a radius above half the median distance."""
    median, radius = neighbors["median_distance"], neighbors["radius"]
    return bool(neighbors["chains"]) or (median is not None and radius is not None and radius > median / 2)
