"""What a reader of a generator's metrics should know first."""

from typing import Any

from synthscale.metrics.view_sums import ViewSums
from synthscale.neighbors import self_test as selftest
from synthscale.neighbors.view import K

_MOST_GROUPED = 0.25
"""A larger share of all rows in one near-duplicate group deserves a look at a radius that is not tight."""
SMALL_CLASS = 200
"""Below this many rows of a class the classifier's metrics deserve a warning."""


def warnings(sums: ViewSums, fit: dict[str, Any], neighbors: dict[str, Any]) -> list[str]:
    """Return what a reader of the numbers should know first."""
    found = []
    for name, count in (("real", sums.overall["real"]), ("synthetic", sums.overall["synthetic"])):
        if count < SMALL_CLASS:
            found.append(
                f"only {int(count)} {name} rows: fidelity and representativeness are uncertain below {SMALL_CLASS}"
            )
    if not fit.get("folds"):
        found.append("no classifier could be cross-validated: fidelity and representativeness are null")
    elif not fit["converged"]:
        found.append("the classifier did not fully converge: scores may move by more than 1e-5 between machines")
    if sums.distinct_real <= K:
        found.append(f"only {sums.distinct_real} distinct real rows: precision and coverage mean little")
    if neighbors.get("self_test"):
        found += filter(None, [selftest.warning(neighbors["self_test"])])
    if neighbors["share_in_largest"] > _MOST_GROUPED and _is_wide(neighbors):
        found.append(
            f"{neighbors['share_in_largest']:.0%} of all rows are one near-duplicate group, which spans a "
            f"distance of {neighbors['largest_diameter']:.3g} at radius {neighbors['radius'] or 0:.3g}: check "
            "that the radius (neighbors.threshold or neighbors.radius) is not too large"
        )
    elif neighbors["chains"]:
        found.append(
            f"{neighbors['chains']} near-duplicate groups are chains: their ends are no near-duplicates of each "
            "other (column is_chain of groups/)"
        )
    if neighbors["median_distance"] is None:
        found.append("too few distinct real rows to calibrate the radius: only exact copies are near-duplicates")
    elif neighbors["median_distance"] <= 0:
        found.append("half of the distinct real rows have another at distance 0: only exact copies are found")
    return found


def _is_wide(neighbors: dict[str, Any]) -> bool:
    """Tell whether groups are more than copies of one image: chains, or a radius near the ordinary distance."""
    median, radius = neighbors["median_distance"], neighbors["radius"]
    return bool(neighbors["chains"]) or (median is not None and radius is not None and radius > median / 2)
