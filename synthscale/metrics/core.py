"""The six core metrics of a generator, computed from sums that merge over shards.

Takes per-row values in memory (`Indicators`) and returns `Estimate` objects; reads and writes no files.

Let q be the label quality score. fidelity = 1 - mean q over synthetic rows; representativeness = 1 - mean q over
real rows; diversity and freshness = 1 - the share of synthetic rows in near-duplicate groups without and with a
real member (Cleanlab Studio's definitions). precision = share of synthetic rows within the k-NN radius of some
real row; coverage = share of real rows with a synthetic row within their radius (Kynkaanniemi et al. 2019, Naeem
et al. 2020). All lie in 0..1. ``unadjusted`` puts the class sizes back into the odds of q, as in Studio's numbers.

Every sum is kept separately for each jackknife block, which gives each metric its 95 % interval
(``statistics/jackknife.py``).
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
"""A metric that rests on fewer independent rows than this is marked ``small``: too noisy to act on."""

FIELDS = (
    "real",
    "synthetic",
    "scored",
    "quality_real",
    "quality_synthetic",
    "unadjusted_real",
    "unadjusted_synthetic",
    # Synthetic rows in near-duplicate groups without a real member (repeats) and with one (copies).
    "repeats",
    "copies",
    # Synthetic rows within the k-NN radius of a real row; real rows with a synthetic row within theirs; real rows
    # within the radius of another real row.
    "inside",
    "covered",
    "real_inside",
    # Sums over rows of their group's size, that is sums of squared group sizes, for the effective sample size.
    "grouped_real",
    "grouped_synthetic",
    # For each block: the sum of q over the rows outside it, by heads that were fitted without it.
    "without_real",
    "without_synthetic",
    # Sums of q under other fold assignments: entry r of the block axis is reassignment r, and the rest is 0.
    "reassigned_real",
    "reassigned_synthetic",
    # Only with their metric families. real_radii: real rows whose radius contains a synthetic row, summed over
    # synthetic rows. recalled: real rows within a synthetic row's radius. authentic: synthetic rows at least as
    # far from their nearest real row as that is from other real rows. identical: synthetic rows at distance 0.
    "real_radii",
    "recalled",
    "authentic",
    "identical",
)
_FIELD_INDEX = {name: i for i, name in enumerate(FIELDS)}


@dataclass
class CoreSums:
    """Sums over rows of a generator's view, (FIELDS, BLOCKS): by field and jackknife block; merge with ``+``."""

    values: Blocks = field(default_factory=lambda: np.zeros((len(FIELDS), BLOCKS)))

    def __add__(self, other: "CoreSums") -> "CoreSums":
        """Return the sums over both sets of rows."""
        return CoreSums(self.values + other.values)

    def by_block(self, name: str) -> Blocks:
        """Return the sums of one field in each block: (BLOCKS,)."""
        result: Blocks = self.values[_FIELD_INDEX[name]]
        return result

    def each_block(self) -> list["CoreSums"]:
        """Return the sums of each block separately: BLOCKS objects, without the fields of refitted heads."""
        parts = []
        for block in range(BLOCKS):
            values = np.zeros_like(self.values)
            values[:, block] = self.values[:, block]
            for name in ("without_real", "without_synthetic", "reassigned_real", "reassigned_synthetic"):
                values[_FIELD_INDEX[name]] = 0
            parts.append(CoreSums(values))
        return parts

    def __getitem__(self, name: str) -> float:
        """Return the sum of one field over all blocks."""
        return float(self.by_block(name).sum())


@dataclass(frozen=True)
class Indicators:
    """Per-row inputs of the core metrics for a generator's view, each (n,).

    On a matched subsample ``in_synthetic_group`` and ``covered`` are probabilities in 0..1 instead of flags.

    Attributes:
        q: label quality score, 0..1; NaN where there is no classifier.
        q_unadjusted: q with the class sizes in the odds.
        in_synthetic_group: the row is in a near-duplicate group without a real member.
        in_mixed_group: the row is in a near-duplicate group with a real member.
        inside: the row is within the k-NN radius of some (other) real row.
        covered: the real row has a synthetic row within its k-NN radius.
        block: jackknife block of the row's near-duplicate group.
        group_size: number of rows in that group, 1 for a row in no group.
        q_without: (n, BLOCKS) q by heads fitted without each block, NaN in the row's own block; None without
            refits.
        q_reassigned: (n, REASSIGNMENTS) q under other fold assignments; None without refits.
        more: values of further `FIELDS`, by name.
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
    """Return the sums of each of ``count`` slices.

    Args:
        rows: per-row values.
        slices: (n,) index of each row's slice, -1 for rows in no slice.
        count: number of slices.
    """
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
    in_slice = slices >= 0
    cell = slices[in_slice] * BLOCKS + rows.block[in_slice]
    values = np.zeros((count, len(FIELDS), BLOCKS))
    for name, column in columns.items():
        totals = np.bincount(cell, column[in_slice].astype(np.float64), count * BLOCKS)
        values[:, _FIELD_INDEX[name]] = totals.reshape(count, BLOCKS)
    for prefix, refitted in (("without", rows.q_without), ("reassigned", rows.q_reassigned)):
        for name, is_kind in (("real", real), ("synthetic", synthetic)):
            chosen = in_slice & is_kind
            for i, column in enumerate([] if refitted is None else np.nan_to_num(refitted[chosen]).T):
                values[:, _FIELD_INDEX[f"{prefix}_{name}"], i] = np.bincount(slices[chosen], column, count)
    return [CoreSums(part) for part in values]


@dataclass(frozen=True)
class MetricContext:
    """Properties of the whole view that the metrics of each slice need.

    Attributes:
        references: reference values of precision and coverage, by metric name.
        no_manifold: reason why there are no k-NN radii; None where there are.
        spreads: (BLOCKS,) deviations of precision, coverage, recall and density, by name, in units of the
            standard error of a share of independent rows (``statistics/prdc_variance.py``); missing where there
            were too few rows to estimate them.
    """

    references: Mapping[str, float | None]
    no_manifold: str | None = None
    spreads: Mapping[str, Blocks] = field(default_factory=dict)


def core_metrics(sums: CoreSums, context: MetricContext) -> dict[str, Estimate]:
    """Return the six core metrics of a view or a slice, by name."""
    return {
        "fidelity": _mean_quality_metric(sums, "synthetic"),
        "representativeness": _mean_quality_metric(sums, "real"),
        "diversity": share(sums, "repeats", "synthetic", is_complement=True, reference=1.0),
        "freshness": share(sums, "copies", "synthetic", is_complement=True, reference=1.0),
        "precision": within(sums, "inside", "precision", context),
        "coverage": within(sums, "covered", "coverage", context),
    }


def _mean_quality_metric(sums: CoreSums, kind: str) -> Estimate:
    """Return 1 - mean q and its interval: fidelity (of synthetic rows) or representativeness (of real)."""
    count = sums[kind]
    if not count or not sums["scored"]:
        return Estimate.undefined(f"no {kind} rows" if not count else NO_CLASSIFIER)
    value = 1.0 - sums[f"quality_{kind}"] / count
    total, by_block = sums[f"quality_{kind}"], sums.by_block(kind)
    without = sums.by_block(f"without_{kind}")
    rows = sums.by_block("real") + sums.by_block("synthetic")
    if without.any():
        remaining = count - by_block
        # A slice that lies wholly in one block has no rows left without it: that replicate is the value itself.
        replicates = 1 - np.divide(without, remaining, out=np.full(BLOCKS, total / count), where=remaining > 0)
        deviations = jackknife.replicate_deviations(value, replicates, rows / rows.sum())
        reassigned = sums.by_block(f"reassigned_{kind}")[:REASSIGNMENTS]
        deviations = jackknife.add_variance(deviations, 1 - reassigned[reassigned > 0] / count)
    else:
        # Without refits the heads are held fixed, which misses about half of the variance: each row also helps to
        # train the heads that score rows of other folds (see BOOTSTRAP_HALF_WIDTH in statistics/auc.py).
        deviations = np.sqrt(2) * jackknife.ratio_deviations(-sums.by_block(f"quality_{kind}"), by_block)
    return _estimate(
        value,
        deviations,
        (count, _effective_rows(sums, kind)),
        is_share=False,
        unadjusted=1.0 - sums[f"unadjusted_{kind}"] / count,
        reference=0.5,
    )


def share(sums: CoreSums, name: str, kind: str, *, is_complement: bool, reference: float | None) -> Estimate:
    """Return the share of a class's rows that have a property, or its complement, with a 95 % interval.

    Args:
        sums: sums over the rows.
        name: field that counts the rows with the property.
        kind: class of the rows, ``real`` or ``synthetic``.
        is_complement: return 1 - share.
        reference: value of an ideal generator, if there is one.
    """
    count = sums[kind]
    if not count:
        return Estimate.undefined(f"no {kind} rows")
    counted = sums.by_block(kind) - sums.by_block(name) if is_complement else sums.by_block(name)
    deviations = jackknife.ratio_deviations(counted, sums.by_block(kind))
    rows = (count, _effective_rows(sums, kind))
    return _estimate(float(counted.sum() / count), deviations, rows, is_share=True, reference=reference)


def within(sums: CoreSums, name: str, metric_name: str, context: MetricContext) -> Estimate:
    """Return precision, coverage or recall with a 95 % interval.

    Rows are not independent here, since they share k-NN radii. The variance is therefore the larger of the
    jackknife's and that of ``context.spreads``, and the effective sample size is divided by the design effect.

    Args:
        sums: sums over the rows.
        name: field that counts the rows.
        metric_name: ``precision`` (over synthetic rows), ``coverage`` or ``recall`` (over real rows).
        context: references and spreads.
    """
    kind = "synthetic" if metric_name == "precision" else "real"
    count, reference = sums[kind], context.references.get(metric_name)
    if not count or context.no_manifold:
        return Estimate.undefined(context.no_manifold or f"no {kind} rows")
    value = sums[name] / count
    deviations = jackknife.ratio_deviations(sums.by_block(name), sums.by_block(kind))
    independent = _effective_rows(sums, kind)
    spread = context.spreads.get(metric_name)
    if spread is not None:
        deviations = jackknife.larger_variance(deviations, spread * np.sqrt(value * (1 - value) / count))
        independent /= max(1.0, jackknife.standard_error(spread) ** 2)
    return _estimate(value, deviations, (count, independent), is_share=True, reference=reference)


def _effective_rows(sums: CoreSums, kind: str) -> float:
    """Return Kish's effective sample size (sum c)^2 / sum c^2 over the sizes c of near-duplicate groups."""
    return sums[kind] ** 2 / sums[f"grouped_{kind}"]


def _estimate(
    value: float, deviations: Blocks, rows: tuple[float, float], *, is_share: bool, **more: float | None
) -> Estimate:
    """Return the estimate with its interval; ``rows`` has the number of rows and the effective number."""
    count, independent = rows
    error = jackknife.standard_error(deviations)
    low, high = jackknife.interval(value, error, independent, is_share=is_share) or (None, None)
    return Estimate(
        value, low, high, None, deviations=deviations, is_small=independent < SMALL and count > 0, **more
    )


def coverage_reference(real: int, synthetic: int, k: int) -> float | None:
    """Return the expected coverage of equal distributions, 1 - prod_{j<k} (N-1-j)/(N-1+M-j).

    Args:
        real: N, distinct real rows; None is returned where there are at most k.
        synthetic: M, synthetic rows.
        k: neighbours that define the radius.
    """
    if real <= k:
        return None
    missed = 1.0
    for j in range(k):
        missed *= (real - 1 - j) / (real - 1 + synthetic - j)
    return 1.0 - missed
