"""The core metrics of a generator, computed from sums that merge over shards.

Takes per-row values in memory (`Indicators`) and returns `Estimate` objects; reads and writes no files.

Let q be the label quality score. fidelity = 1 - mean q over synthetic rows; representativeness = 1 - mean q over
real rows; diversity and freshness = 1 - the share of synthetic rows in near-duplicate groups without and with a
real member (Cleanlab Studio's definitions). unique_share = near-duplicate components with a synthetic row, single
rows included, over synthetic rows: the share that is left when repeats are removed. precision = share of synthetic
rows within the k-NN radius of some real row; coverage = share of real rows with a synthetic row within their
radius (Kynkaanniemi et al. 2019, Naeem et al. 2020). All lie in 0..1. ``unadjusted`` puts the class sizes back
into the odds of q, as in Studio's numbers.

Every sum is kept separately for each jackknife block, which gives each metric its 95 % interval
(``statistics/jackknife.py``). Each metric has a reference: the same share among the real rows, or a closed form.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

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
    # Synthetic rows in near-duplicate groups without a real member (repeats) and with one (copies); near-duplicate
    # components with a synthetic row, each counted in fractions of 1 / its synthetic rows.
    "repeats",
    "copies",
    "components",
    # The same among the real rows, for the references: rows that would be repeats in a set of the generator's
    # size, rows near another real row, and components in a set of that size.
    "real_repeats",
    "real_near",
    "real_components",
    # Synthetic rows within the k-NN radius of a real row; real rows with a synthetic row within theirs; real rows
    # within the radius of another real row.
    "inside",
    "covered",
    "real_inside",
    # Clusters of near-duplicates, each counted in fractions of 1 / its rows of the class.
    "clusters_real",
    "clusters_synthetic",
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

    On a matched subsample ``in_synthetic_group`` and ``covered`` are probabilities in 0..1 instead of flags, and
    ``components`` and ``cluster_rows`` are expectations.

    Attributes:
        q: label quality score, 0..1; NaN where there is no classifier.
        q_unadjusted: q with the class sizes in the odds.
        in_synthetic_group: the row is in a near-duplicate group without a real member.
        in_mixed_group: the row is in a near-duplicate group with a real member.
        near_real: the row is a near-duplicate of another real row.
        components: 1 / the number of rows of its class in the row's component.
        real_repeats, real_components: for real rows, what ``in_synthetic_group`` and ``components`` would be in a
            set of the generator's size.
        inside: the row is within the k-NN radius of some (other) real row.
        covered: the real row has a synthetic row within its k-NN radius.
        block: jackknife block of the row's cluster of near-duplicates.
        cluster_rows: number of rows of the row's class in that cluster, 1 for a row without near-duplicates; on a
            matched subsample, the expected number.
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
    near_real: NDArray[np.bool_]
    components: NDArray[np.float64]
    real_repeats: NDArray[np.float64]
    real_components: NDArray[np.float64]
    inside: NDArray[np.bool_]
    covered: NDArray[np.bool_] | NDArray[np.float64]
    block: NDArray[np.int8]
    cluster_rows: NDArray[np.float64]
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
        "components": synthetic * rows.components,
        "real_repeats": real * rows.real_repeats,
        "real_near": real & rows.near_real,
        "real_components": real * rows.real_components,
        "inside": synthetic & rows.inside,
        "covered": real * rows.covered,
        "real_inside": real & rows.inside,
        "clusters_real": real / rows.cluster_rows,
        "clusters_synthetic": synthetic / rows.cluster_rows,
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
        references: reference values by metric name; `view_references`, or the control's.
        clusters: number of clusters of near-duplicates of the class that has fewer in the whole view; with too
            few, no metric has an interval.
        no_manifold: reason why there are no k-NN radii; None where there are.
        spreads: (BLOCKS,) deviations of precision, coverage, recall and density, by name, in units of the
            standard error of a share of independent rows (``statistics/prdc_variance.py``); missing where there
            were too few rows to estimate them.
    """

    references: Mapping[str, float | None]
    clusters: float = math.inf
    no_manifold: str | None = None
    spreads: Mapping[str, Blocks] = field(default_factory=dict)


def view_references(sums: CoreSums, distinct_real: int, k: int) -> dict[str, float | None]:
    """Return the references of a view: what real images would have in place of the generator's, by metric.

    Args:
        sums: sums over the whole view, or its matched subsample.
        distinct_real: number of distinct real rows.
        k: neighbours that define the k-NN radius.
    """
    real, synthetic = sums["real"], int(sums["synthetic"])
    shares = dict.fromkeys(("diversity", "unique_share", "freshness", "precision"), math.nan)
    if real:
        shares = {
            "diversity": 1 - sums["real_repeats"] / real,
            "unique_share": sums["real_components"] / real,
            "freshness": 1 - sums["real_near"] / real,
            "precision": sums["real_inside"] / real,
        }
    known = {name: share if math.isfinite(share) else None for name, share in shares.items()}
    return {**known, "coverage": coverage_reference(distinct_real, synthetic, k)}


def clusters_of_view(sums: CoreSums) -> float:
    """Return the number of clusters of near-duplicates of the class that has fewer."""
    return min(sums["clusters_real"], sums["clusters_synthetic"])


def core_metrics(sums: CoreSums, context: MetricContext) -> dict[str, Estimate]:
    """Return the core metrics of a view or a slice, by name."""
    metrics = {
        "fidelity": _mean_quality_metric(sums, "synthetic"),
        "representativeness": _mean_quality_metric(sums, "real"),
        "diversity": share(sums, "repeats", "synthetic", is_complement=True),
        "unique_share": share(sums, "components", "synthetic", is_complement=False),
        "freshness": share(sums, "copies", "synthetic", is_complement=True),
        "precision": within(sums, "inside", "precision", context),
        "coverage": within(sums, "covered", "coverage", context),
    }
    references = {"fidelity": 0.5, "representativeness": 0.5, **context.references}
    return {
        name: replace(estimate, reference=references.get(name)).from_clusters(context.clusters)
        for name, estimate in metrics.items()
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
    other = "real" if kind == "synthetic" else "synthetic"
    clusters = sums[f"clusters_{kind}"]
    estimate = _estimate(value, deviations, clusters, other_clusters=sums[f"clusters_{other}"])
    estimate = estimate.from_clusters(clusters)
    return replace(estimate, unadjusted=1.0 - sums[f"unadjusted_{kind}"] / count)


def share(
    sums: CoreSums, name: str, kind: str, *, is_complement: bool, reference: float | None = None
) -> Estimate:
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
    clusters = sums[f"clusters_{kind}"]
    estimate = _estimate(float(counted.sum() / count), deviations, clusters)
    return replace(estimate, reference=reference).from_clusters(clusters)


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
    count = sums[kind]
    if not count or context.no_manifold:
        return Estimate.undefined(context.no_manifold or f"no {kind} rows")
    value = sums[name] / count
    deviations = jackknife.ratio_deviations(sums.by_block(name), sums.by_block(kind))
    independent = sums[f"clusters_{kind}"]
    spread = context.spreads.get(metric_name)
    if spread is not None:
        deviations = jackknife.larger_variance(deviations, spread * np.sqrt(value * (1 - value) / count))
        independent /= max(1.0, jackknife.standard_error(spread) ** 2)
    estimate = _estimate(value, deviations, independent)
    return estimate.from_clusters(sums[f"clusters_{kind}"])


def _estimate(
    value: float, deviations: Blocks, clusters: float, *, other_clusters: float | None = None
) -> Estimate:
    """Return the estimate with its interval; arguments as in `jackknife.interval`."""
    error = jackknife.standard_error(deviations)
    low, high = jackknife.interval(value, error, clusters, other_clusters=other_clusters) or (None, None)
    return Estimate(value, low, high, None, deviations=deviations, is_small=clusters < SMALL)


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
