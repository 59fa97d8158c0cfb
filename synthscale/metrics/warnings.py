"""Warnings about a generator's metrics: small sets, failed fits, and near-duplicate groups that look wrong."""

from typing import Any

from synthscale.metrics.view_sums import ViewSums
from synthscale.neighbors import self_test as selftest
from synthscale.neighbors.view import K

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
    elif not fit["converged"]:
        texts.append("the classifier did not fully converge: scores may move by more than 1e-5 between machines")
    if fit.get("folds_by_row"):
        texts.append(
            "nearly all images of a class are near-duplicates of one another, so single images were assigned to "
            "folds, not whole groups: near-duplicates may be in different folds, and scores may be too confident"
        )
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


def _is_wide(neighbors: dict[str, Any]) -> bool:
    """Return True if groups may contain different images: chains, or a radius above half the median distance."""
    median, radius = neighbors["median_distance"], neighbors["radius"]
    return bool(neighbors["chains"]) or (median is not None and radius is not None and radius > median / 2)
