"""The core metrics of a generator, from sums that merge over shards.

Let q be the label quality score. fidelity = 1 - mean q over synthetic rows; representativeness = 1 - mean q over
real rows; diversity and freshness = 1 - the share of synthetic rows in near-duplicate groups without and with a
real member (Cleanlab Studio's definitions). precision = share of synthetic rows inside the k-NN radius of some
real row; coverage = share of real rows whose radius holds a synthetic row (Kynkaanniemi et al. 2019, Naeem et al.
2020). All lie in 0..1. ``unadjusted`` puts the class shares back into the odds of q, as in Studio's numbers.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Metric = dict[str, Any]

NO_CLASSIFIER = "no classifier: too few rows or groups in a class to cross-validate"
NO_INTERVAL = "no interval: this version does not compute one"


@dataclass
class Sums:
    """Sums over some rows of a generator's view; two of them add up."""

    real: float = 0
    synthetic: float = 0
    scored: float = 0
    quality_real: float = 0
    quality_synthetic: float = 0
    unadjusted_real: float = 0
    unadjusted_synthetic: float = 0
    repeats: float = 0
    copies: float = 0
    inside: float = 0
    covered: float = 0
    real_inside: float = 0

    def __add__(self, other: "Sums") -> "Sums":
        """Return the sums over both sets of rows."""
        return Sums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Indicators:
    """Per-row values of a generator's view, (n,) each; NaN in q where there is no classifier."""

    is_real: NDArray[np.bool_]
    q: NDArray[np.float64]
    q_unadjusted: NDArray[np.float64]
    in_synthetic_group: NDArray[np.bool_]
    in_mixed_group: NDArray[np.bool_]
    inside: NDArray[np.bool_]
    covered: NDArray[np.bool_]


def sum_up(rows: Indicators, chosen: NDArray[np.bool_] | None = None) -> Sums:
    """Sum over all rows, or the chosen ones."""
    keep = np.ones(len(rows.is_real), np.bool_) if chosen is None else chosen
    real, synthetic = keep & rows.is_real, keep & ~rows.is_real
    scored = ~np.isnan(rows.q)
    return Sums(
        real=int(real.sum()),
        synthetic=int(synthetic.sum()),
        scored=int((keep & scored).sum()),
        quality_real=float(rows.q[real & scored].sum()),
        quality_synthetic=float(rows.q[synthetic & scored].sum()),
        unadjusted_real=float(rows.q_unadjusted[real & scored].sum()),
        unadjusted_synthetic=float(rows.q_unadjusted[synthetic & scored].sum()),
        repeats=int((synthetic & rows.in_synthetic_group).sum()),
        copies=int((synthetic & rows.in_mixed_group).sum()),
        inside=int((synthetic & rows.inside).sum()),
        covered=int((real & rows.covered).sum()),
        real_inside=int((real & rows.inside).sum()),
    )


def metric(value: float | None, reason: str | None = None, **more: float | None) -> Metric:
    """Return one metric in the shape of metrics.json: a null value has a reason, and so has a missing interval."""
    if value is None or not np.isfinite(value):
        return {"value": None, "low": None, "high": None, "reason": reason or "undefined"}
    result: Metric = {"value": float(value), "low": None, "high": None}
    result |= {name: float(number) for name, number in more.items() if number is not None and np.isfinite(number)}
    return result | {"reason": NO_INTERVAL}


def core_metrics(
    sums: Sums, references: dict[str, float | None], no_manifold: str | None = None
) -> dict[str, Metric]:
    """Return the six core metrics of some rows.

    Args:
        sums: over those rows.
        references: of precision and coverage, over the whole view.
        no_manifold: why there are no k-NN radii, if there are none.
    """
    scored = sums.scored > 0
    no_synthetic = "no synthetic rows" if sums.synthetic == 0 else None
    no_real = "no real rows" if sums.real == 0 else None
    no_scores = None if scored else NO_CLASSIFIER

    def one_minus(total: float, count: float) -> float | None:
        return 1.0 - total / count if count else None

    def judged(total: float, plain: float, count: float, reason: str | None) -> Metric:
        if reason or no_scores:
            return metric(None, reason or no_scores)
        return metric(one_minus(total, count), unadjusted=one_minus(plain, count), reference=0.5)

    def within(total: float, count: float, reason: str | None, reference: float | None) -> Metric:
        reason = reason or no_manifold
        return metric(None if reason else total / count, reason, reference=reference)

    return {
        "fidelity": judged(sums.quality_synthetic, sums.unadjusted_synthetic, sums.synthetic, no_synthetic),
        "representativeness": judged(sums.quality_real, sums.unadjusted_real, sums.real, no_real),
        "diversity": metric(one_minus(sums.repeats, sums.synthetic), no_synthetic, reference=1.0),
        "freshness": metric(one_minus(sums.copies, sums.synthetic), no_synthetic, reference=1.0),
        "precision": within(sums.inside, sums.synthetic, no_synthetic, references["precision"]),
        "coverage": within(sums.covered, sums.real, no_real, references["coverage"]),
    }


def coverage_reference(real: int, synthetic: int, k: int) -> float | None:
    """Return the expected coverage of equal distributions at these sizes: 1 - prod_{j<k} (N-1-j)/(N-1+M-j)."""
    if real <= k:
        return None
    missed = 1.0
    for j in range(k):
        missed *= (real - 1 - j) / (real - 1 + synthetic - j)
    return 1.0 - missed
