"""The core metrics of a generator, from sums that merge over shards.

Let q be the label quality score. fidelity = 1 - mean q over synthetic rows; representativeness = 1 - mean q over
real rows; diversity and freshness = 1 - the share of synthetic rows in near-duplicate groups without and with a
real member (Cleanlab Studio's definitions). precision = share of synthetic rows inside the k-NN radius of some
real row; coverage = share of real rows whose radius holds a synthetic row (Kynkaanniemi et al. 2019, Naeem et al.
2020). All lie in 0..1. ``unadjusted`` puts the class shares back into the odds of q, as in Studio's numbers.

Every sum is kept by the jackknife's block, so that each metric has its 95 % interval (jackknife.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from synthscale.statistics import jackknife
from synthscale.statistics.estimates import NO_CLASSIFIER, Estimate
from synthscale.statistics.jackknife import Blocks
from synthscale.tables.schemas import BLOCKS, REASSIGNMENTS

SMALL = 30
"""A slice with fewer rows of the class that a metric is a mean over says little."""

FIELDS = (
    "real",
    "synthetic",
    "scored",
    "quality_real",
    "quality_synthetic",
    "unadjusted_real",
    "unadjusted_synthetic",
    "repeats",
    "copies",
    "inside",
    "covered",
    "real_inside",
    # Rows times the size of their groups: how many rows go together.
    "grouped_real",
    "grouped_synthetic",
    # Sums of q over the rows outside a block, by the heads that were fitted without it.
    "without_real",
    "without_synthetic",
    # The same by heads of other deals to folds, in the first places.
    "reassigned_real",
    "reassigned_synthetic",
    # Only where their families are asked for: real rows' radii that hold a synthetic row, real rows inside a
    # synthetic row's radius, synthetic rows no nearer to their real row than that is to others, or the same.
    "real_radii",
    "recalled",
    "authentic",
    "identical",
)
_PLACE = {name: i for i, name in enumerate(FIELDS)}


@dataclass
class CoreSums:
    """Sums over some rows of a generator's view, by block: (FIELDS, BLOCKS); two of them add up."""

    values: Blocks = field(default_factory=lambda: np.zeros((len(FIELDS), BLOCKS)))

    def __add__(self, other: "CoreSums") -> "CoreSums":
        """Return the sums over both sets of rows."""
        return CoreSums(self.values + other.values)

    def by_block(self, name: str) -> Blocks:
        """Return one sum by block: (BLOCKS,)."""
        result: Blocks = self.values[_PLACE[name]]
        return result

    def each_block(self) -> list["CoreSums"]:
        """Return the sums of each block by itself; what was fitted without blocks has no part in them."""
        parts = []
        for block in range(BLOCKS):
            values = np.zeros_like(self.values)
            values[:, block] = self.values[:, block]
            for name in ("without_real", "without_synthetic", "reassigned_real", "reassigned_synthetic"):
                values[_PLACE[name]] = 0
            parts.append(CoreSums(values))
        return parts

    def __getitem__(self, name: str) -> float:
        """Return one sum over all blocks."""
        return float(self.by_block(name).sum())


@dataclass(frozen=True)
class Indicators:
    """Per-row values of a generator's view, (n,) each; NaN in q where there is no classifier.

    Where it is not certain whether a row has a property, it counts by the chance.

    Attributes:
        block: of the row's group.
        group_size: rows in its near-duplicate group, 1 where it has none.
        q_without: (n, BLOCKS) q without each block, NaN in the row's own; None where nothing was refitted.
        q_reassigned: (n, REASSIGNMENTS) q under other fold assignments; None where nothing was refitted.
        more: further fields of the sums, by name.
    """

    is_real: NDArray[np.bool_]
    q: NDArray[np.float64]
    q_unadjusted: NDArray[np.float64]
    in_synthetic_group: NDArray[np.bool_] | NDArray[np.float64]
    in_mixed_group: NDArray[np.bool_]
    inside: NDArray[np.bool_]
    covered: NDArray[np.bool_] | NDArray[np.float64]
    block: NDArray[np.int8]
    group_size: NDArray[np.int64]
    q_without: NDArray[np.float64] | None = None
    q_reassigned: NDArray[np.float64] | None = None
    more: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)


def sum_slices(rows: Indicators, slices: NDArray[np.int64], count: int) -> list[CoreSums]:
    """Sum over each of ``count`` slices of the rows; ``slices`` has the slice of each row, -1 for none: (n,)."""
    real, synthetic, scored = rows.is_real, ~rows.is_real, ~np.isnan(rows.q)
    q, unadjusted = np.nan_to_num(rows.q), np.nan_to_num(rows.q_unadjusted)
    columns = {
        "real": real,
        "synthetic": synthetic,
        "scored": scored,
        "quality_real": q * real,
        "quality_synthetic": q * synthetic,
        "unadjusted_real": unadjusted * real,
        "unadjusted_synthetic": unadjusted * synthetic,
        "repeats": synthetic * rows.in_synthetic_group,
        "copies": synthetic & rows.in_mixed_group,
        "inside": synthetic & rows.inside,
        "covered": real * rows.covered,
        "real_inside": real & rows.inside,
        "grouped_real": rows.group_size * real,
        "grouped_synthetic": rows.group_size * synthetic,
        **rows.more,
    }
    own = slices >= 0
    cell = slices[own] * BLOCKS + rows.block[own]
    values = np.zeros((count, len(FIELDS), BLOCKS))
    for name, column in columns.items():
        found = np.bincount(cell, column[own].astype(np.float64), count * BLOCKS)
        values[:, _PLACE[name]] = found.reshape(count, BLOCKS)
    for prefix, refitted in (("without", rows.q_without), ("reassigned", rows.q_reassigned)):
        for name, kind in (("real", real), ("synthetic", synthetic)):
            chosen = own & kind
            for place, column in enumerate([] if refitted is None else np.nan_to_num(refitted[chosen]).T):
                values[:, _PLACE[f"{prefix}_{name}"], place] = np.bincount(slices[chosen], column, count)
    return [CoreSums(part) for part in values]


@dataclass(frozen=True)
class MetricContext:
    """What a slice's metrics need to know of the whole view.

    Attributes:
        references: of precision and coverage.
        no_manifold: why there are no k-NN radii, if there are none.
        spreads: of precision and coverage, (BLOCKS,): deviations in units of a share's standard error over
            independent rows (manifold.py); none where there were too few rows to measure them.
    """

    references: Mapping[str, float | None]
    no_manifold: str | None = None
    spreads: Mapping[str, Blocks] = field(default_factory=dict)


def core_metrics(sums: CoreSums, context: MetricContext) -> dict[str, Estimate]:
    """Return the six core metrics of some rows."""
    return {
        "fidelity": _judged(sums, "synthetic"),
        "representativeness": _judged(sums, "real"),
        "diversity": share(sums, "repeats", "synthetic", is_complement=True, reference=1.0),
        "freshness": share(sums, "copies", "synthetic", is_complement=True, reference=1.0),
        "precision": within(sums, "inside", "precision", context),
        "coverage": within(sums, "covered", "coverage", context),
    }


def _judged(sums: CoreSums, kind: str) -> Estimate:
    """Fidelity or representativeness."""
    count = sums[kind]
    if not count or not sums["scored"]:
        return Estimate.none(f"no {kind} rows" if not count else NO_CLASSIFIER)
    value = 1.0 - sums[f"quality_{kind}"] / count
    total, by_block = sums[f"quality_{kind}"], sums.by_block(kind)
    without = sums.by_block(f"without_{kind}")
    rows = sums.by_block("real") + sums.by_block("synthetic")
    if without.any():
        remaining = count - by_block
        # A slice that lies in one block is never seen without it.
        replicates = 1 - np.divide(without, remaining, out=np.full(BLOCKS, total / count), where=remaining > 0)
        deviations = jackknife.replicate_deviations(value, replicates, rows / rows.sum())
        repeats = sums.by_block(f"reassigned_{kind}")[:REASSIGNMENTS]
        deviations = jackknife.add_variance(deviations, 1 - repeats[repeats > 0] / count)
    else:
        # Heads that were not refitted: each two rows meet twice (see ranks.ERRORS).
        deviations = np.sqrt(2) * jackknife.ratio_deviations(-sums.by_block(f"quality_{kind}"), by_block)
    return _estimate(
        value,
        deviations,
        (count, _independent(sums, kind)),
        is_share=False,
        unadjusted=1.0 - sums[f"unadjusted_{kind}"] / count,
        reference=0.5,
    )


def share(sums: CoreSums, name: str, kind: str, *, is_complement: bool, reference: float | None) -> Estimate:
    """Return the share of a class's rows that have some property, or its complement."""
    count = sums[kind]
    if not count:
        return Estimate.none(f"no {kind} rows")
    found = sums.by_block(kind) - sums.by_block(name) if is_complement else sums.by_block(name)
    deviations = jackknife.ratio_deviations(found, sums.by_block(kind))
    rows = (count, _independent(sums, kind))
    return _estimate(float(found.sum() / count), deviations, rows, is_share=True, reference=reference)


def within(sums: CoreSums, name: str, metric_name: str, context: MetricContext) -> Estimate:
    """Return precision, coverage or recall, whose rows vary together: they share radii, and rows that decide."""
    kind = "synthetic" if metric_name == "precision" else "real"
    count, reference = sums[kind], context.references.get(metric_name)
    if not count or context.no_manifold:
        return Estimate.none(context.no_manifold or f"no {kind} rows")
    value = sums[name] / count
    deviations = jackknife.ratio_deviations(sums.by_block(name), sums.by_block(kind))
    independent = _independent(sums, kind)
    spread = context.spreads.get(metric_name)
    if spread is not None:
        deviations = jackknife.larger_variance(deviations, spread * np.sqrt(value * (1 - value) / count))
        independent /= max(1.0, jackknife.standard_error(spread) ** 2)
    return _estimate(value, deviations, (count, independent), is_share=True, reference=reference)


def _independent(sums: CoreSums, kind: str) -> float:
    """How many independent rows some rows in groups are worth: (sum c)^2 / sum c^2 over group sizes."""
    return sums[kind] ** 2 / sums[f"grouped_{kind}"]


def _estimate(
    value: float, deviations: Blocks, rows: tuple[float, float], *, is_share: bool, **more: float | None
) -> Estimate:
    count, independent = rows
    error = jackknife.standard_error(deviations)
    low, high = jackknife.interval(value, error, independent, is_share=is_share) or (None, None)
    return Estimate(
        value, low, high, None, deviations=deviations, is_small=independent < SMALL and count > 0, **more
    )


def coverage_reference(real: int, synthetic: int, k: int) -> float | None:
    """Return the expected coverage of equal distributions at these sizes: 1 - prod_{j<k} (N-1-j)/(N-1+M-j)."""
    if real <= k:
        return None
    missed = 1.0
    for j in range(k):
        missed *= (real - 1 - j) / (real - 1 + synthetic - j)
    return 1.0 - missed
