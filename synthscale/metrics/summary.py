"""Puts a generator's sums and facts together to its block of metrics.json."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synthscale import bootstrap, selftest
from synthscale.metrics.classifier import ClassifierSums, classifier_figures, sum_logits
from synthscale.metrics.core import Indicators, Sums, core_metrics, coverage_reference, metric, sum_up
from synthscale.metrics.evidence import (
    AlongSums,
    Evidence,
    confounder_figures,
    confounder_warning,
    direction_figures,
    sum_along,
)
from synthscale.metrics.ranks import RankSums, sum_ranks
from synthscale.neighbors import K
from synthscale.schemas import DIRECTIONS, REAL
from synthscale.scores import ViewRows, quality

NO_IMAGES = "not run: the input is vectors, or neighbors.self_test_images is 0"
_MOST_GROUPED = 0.25
"""A larger share of all rows in one near-duplicate group deserves a look at a radius that is not tight."""
SMALL_CLASS = 200
"""Below this many rows of a class the classifier's metrics deserve a warning."""


@dataclass
class ViewSums:
    """All sums of a generator's view, or of some of its rows; two of them add up."""

    overall: Sums = field(default_factory=Sums)
    by_label: dict[str, Sums] = field(default_factory=dict)
    classifier: ClassifierSums = field(default_factory=ClassifierSums)
    distinct_real: int = 0
    file_facts: RankSums = field(default_factory=RankSums)
    bytes_per_pixel: RankSums = field(default_factory=RankSums)
    along: list[AlongSums] = field(default_factory=lambda: [AlongSums() for _ in range(DIRECTIONS)])

    def __add__(self, other: "ViewSums") -> "ViewSums":
        """Return the sums over both sets of rows."""
        labels = dict.fromkeys([*self.by_label, *other.by_label])
        return ViewSums(
            self.overall + other.overall,
            {name: self.by_label.get(name, Sums()) + other.by_label.get(name, Sums()) for name in labels},
            self.classifier + other.classifier,
            self.distinct_real + other.distinct_real,
            self.file_facts + other.file_facts,
            self.bytes_per_pixel + other.bytes_per_pixel,
            [one + two for one, two in zip(self.along, other.along, strict=True)],
        )


def sum_view(view: ViewRows, scores: pa.Table, evidence: Evidence) -> ViewSums:
    """Sum up some rows of a view.

    Args:
        view: the rows and what is known of them.
        scores: their scores.
        evidence: what is known of them beside their scores.
    """
    is_real = np.asarray(pc.equal(scores.column("real_or_synthetic"), REAL))
    groups = view.groups
    mixed = np.asarray(groups.column("has_real").fill_null(False)) if len(groups) else np.empty(0, np.bool_)
    at = np.searchsorted(view.manifest.column("row").to_numpy(), groups.column("row").to_numpy())
    in_mixed, in_synthetic = np.zeros(len(is_real), np.bool_), np.zeros(len(is_real), np.bool_)
    in_mixed[at[mixed]], in_synthetic[at[~mixed]] = True, True
    rows = Indicators(
        is_real=is_real,
        q=quality(view.logit, is_real),
        q_unadjusted=quality(view.logit + evidence.log_prior, is_real),
        in_synthetic_group=in_synthetic,
        in_mixed_group=in_mixed,
        inside=np.asarray(scores.column("in_real_manifold")),
        covered=np.asarray(scores.column("covered").fill_null(False)),
    )
    drawn = bootstrap.weights(evidence.group_key)
    ids = scores.column("id").to_pylist()
    labels = scores.column("label").to_numpy(zero_copy_only=False)
    is_copy = np.asarray(view.nearest.column("is_copy"))
    return ViewSums(
        sum_up(rows),
        {
            str(label): sum_up(rows, labels == label)
            for label in pc.unique(scores.column("label")).to_pylist()
            if label is not None
        },
        sum_logits(view.logit, is_real, drawn),
        int((is_real & ~is_copy).sum()),
        sum_ranks(evidence.logit_file_facts, is_real, drawn),
        sum_ranks(evidence.bytes_per_pixel, is_real),
        [sum_along(places, is_real, ids) for places in evidence.along.T],
    )


def generator_block(sums: ViewSums, head: str, fit: dict[str, Any], neighbors: dict[str, Any]) -> dict[str, Any]:
    """Return a generator's block of metrics.json.

    Args:
        sums: over the whole view.
        head: the classifier's head.
        fit: what the fit recorded.
        neighbors: what `View.summary` gives, and ``self_test`` where there are images.
    """
    overall = sums.overall
    references = {
        "precision": overall.real_inside / overall.real if overall.real else None,
        "coverage": coverage_reference(sums.distinct_real, int(overall.synthetic), K),
    }
    confounders = confounder_figures(sums.file_facts, sums.bytes_per_pixel, bool(fit.get("folds")))
    self_test = neighbors.get("self_test") or metric(None, NO_IMAGES)
    no_manifold = "fewer than two distinct real rows" if sums.distinct_real < 2 else None
    return {
        "counts": {"real": int(overall.real), "synthetic": int(overall.synthetic)},
        "metrics": core_metrics(overall, references, no_manifold),
        "by_label": {
            label: {
                "counts": {"real": int(s.real), "synthetic": int(s.synthetic)},
                **core_metrics(s, references, no_manifold),
            }
            for label, s in sorted(sums.by_label.items())
        },
        "classifier": {
            **classifier_figures(sums.classifier, head, fit),
            "directions": direction_figures(sums.along, fit.get("directions", [])),
        },
        "neighbors": {
            **neighbors,
            "repeats": {"rows": int(overall.repeats)},
            "copies": {"rows": int(overall.copies)},
            "self_test": self_test,
        },
        "confounders": confounders,
        "warnings": [*filter(None, [confounder_warning(confounders)]), *warnings(sums, fit, neighbors)],
    }


def warnings(sums: ViewSums, fit: dict[str, Any], neighbors: dict[str, Any]) -> list[str]:
    """Return what a reader of the numbers should know first."""
    found = []
    for name, count in (("real", sums.overall.real), ("synthetic", sums.overall.synthetic)):
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
