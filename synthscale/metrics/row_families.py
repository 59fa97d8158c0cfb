"""Metric families computed from per-row values: manifold, copying, facts, completeness, stability.

Takes sums that merge over shards (`CoreSums`, `RankSums`) and returns `Estimate` objects by metric name; reads and
writes no files.

- **recall** = share of real rows within the k-NN radius of some synthetic row, 0..1 (Kynkaanniemi et al. 2019);
  **density** = mean number of real rows whose k-NN radius contains a synthetic row, divided by k; 1 for equal
  distributions, unbounded (Naeem et al. 2020). k = 5, as for precision and coverage.
- **exact_match_share** = share of synthetic rows at distance 0 from a real one. **authenticity** = share of
  synthetic rows at least as far from their nearest real row as that real row is from the other, distinct real ones
  (Alaa et al. 2022: the complement of the data-copying share). Its value for equal distributions depends on the
  dimensions, so compare it with a control.
- **privacy_ratio** = median distance of synthetic rows to their nearest real row, divided by the median distance
  of real rows to their nearest other real row; **privacy_tail** = share of synthetic rows nearer to a real row
  than 95 % of real rows are (0.05 for equal distributions of equal size).
- **NAME_ks** = two-sample Kolmogorov-Smirnov statistic of an image property, 0..1, with its asymptotic p-value.
- **complete_share** = share of the generator's rows that could be read and have no null in the label or in the
  user's columns; **label_coverage** = share of labelled real rows whose label occurs among the synthetic ones.
- **METRIC_error** = standard error of a core metric; **METRIC_over_folds**, **METRIC_over_blocks** = its standard
  deviation over the folds of the classifier, and over 20 random blocks of the rows.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import kstwobign

from synthscale.metric_names import CORE_METRICS
from synthscale.metrics.core import SMALL, CoreSums, MetricContext, core_metrics, share, within
from synthscale.statistics import jackknife
from synthscale.statistics.auc import RankSums, value_of
from synthscale.statistics.estimates import Estimate

FACTS = ("brightness", "contrast", "sharpness", "width", "height", "aspect")
"""Image properties that the family ``facts`` compares."""
_TAIL = 0.05
"""Quantile of the distances among real rows that privacy_tail compares with."""
_NO_INTERVAL = "no interval: this metric is computed from quantiles or a distribution"
_SPREAD = "no interval: this number is itself a spread"

Family = dict[str, Estimate]


def manifold_family(sums: CoreSums, context: MetricContext, k: int, distinct: int) -> Family:
    """Return density and recall.

    Args:
        sums: sums over the whole view.
        context: references and spreads of the view.
        k: neighbours that define a radius.
        distinct: number of distinct synthetic rows; recall needs at least two.
    """
    recall = {"recall": within(sums, "recalled", "recall", context)}
    if distinct < 2:
        recall = {"recall": Estimate.undefined("fewer than two distinct synthetic rows")}
    count = sums["synthetic"]
    if not count or context.no_manifold:
        return {"density": Estimate.undefined(context.no_manifold or "no synthetic rows"), **recall}
    value = sums["real_radii"] / count / k
    clusters = sums["clusters_synthetic"]
    deviations = jackknife.ratio_deviations(sums.by_block("real_radii") / k, sums.by_block("synthetic"))
    spread = context.spreads.get("density")
    if spread is not None:
        deviations = jackknife.larger_variance(deviations, spread * value / math.sqrt(count))
    margin = jackknife.T_HALF_WIDTH * jackknife.standard_error(deviations)
    density = Estimate(value, reference=1.0, deviations=deviations, is_small=clusters < SMALL)
    # Where no row lies within a radius, nothing is known about the spread.
    if margin > 0:
        density = replace(density, low=max(0.0, value - margin), high=value + margin)
    return {"density": density.from_clusters(clusters), **recall}


def copying_family(sums: CoreSums, distances: RankSums) -> Family:
    """Return exact_match_share, authenticity, privacy_ratio and privacy_tail.

    Args:
        sums: sums over the whole view.
        distances: histograms, by class, of the distance to the nearest (other) real row.
    """
    exact = share(sums, "identical", "synthetic", is_complement=False, reference=0.0)
    authentic = share(sums, "authentic", "synthetic", is_complement=False, reference=None)
    names = ("privacy_ratio", "privacy_tail")
    real, synthetic = distances.fine
    if not real or not synthetic:
        privacy = dict.fromkeys(names, Estimate.undefined("fewer than two real rows, or no synthetic ones"))
    else:
        medians = [_quantile(counts, 0.5) for counts in (real, synthetic)]
        tail = _quantile(real, _TAIL)
        near = sum(count for code, count in synthetic.items() if value_of(code) < tail) / synthetic.total()
        ratio = medians[1] / medians[0] if medians[0] > 0 else math.nan
        privacy = {
            "privacy_ratio": Estimate.without_interval(
                ratio, _NO_INTERVAL, "half of the real rows have another real row at distance 0", 1.0
            ),
            "privacy_tail": Estimate.without_interval(near, _NO_INTERVAL, "undefined", _TAIL),
        }
    return {"exact_match_share": exact, "authenticity": authentic, **privacy}


def _quantile(counts: Mapping[int, int], q: float) -> float:
    """Return the q-quantile of a histogram by code (`RankSums.fine`)."""
    codes = sorted(counts)
    total = np.cumsum([counts[code] for code in codes])
    return value_of(codes[int(np.searchsorted(total, q * total[-1]))])


def facts_family(values: Mapping[str, RankSums]) -> tuple[Family, dict[str, float]]:
    """Return the Kolmogorov-Smirnov statistic of each image property, and the asymptotic p-values.

    Args:
        values: histograms by class of each property; a missing one gives a null metric and no p-value.
    """
    metrics, p_values = {}, {}
    for fact in FACTS:
        real, synthetic = values[fact].fine if fact in values else ({}, {})
        if not real or not synthetic:
            metrics[f"{fact}_ks"] = Estimate.undefined("the input is vectors: there are no images to compare")
            continue
        codes = sorted({*real, *synthetic})
        below = [np.cumsum([counts.get(code, 0) for code in codes]) for counts in (real, synthetic)]
        n, m = (float(total[-1]) for total in below)
        statistic = float(np.abs(below[0] / n - below[1] / m).max())
        metrics[f"{fact}_ks"] = Estimate.without_interval(statistic, _NO_INTERVAL, "undefined", 0.0)
        p_values[f"{fact}_ks"] = float(kstwobign.sf(statistic * math.sqrt(n * m / (n + m))))
    return metrics, p_values


def completeness_family(complete: Mapping[str, Any]) -> Family:
    """Return complete_share and label_coverage, with exact binomial intervals.

    Args:
        complete: numbers of rows: ``rows`` of the generator, the ``complete`` ones among them, ``labelled`` real
            rows, and the ``seen`` ones among these, whose label some synthetic row has.
    """
    labelled, seen = complete["labelled"], complete["seen"]
    label_coverage = Estimate.undefined("no labels in the real set")
    if labelled:
        low, high = jackknife.binomial_interval(seen / labelled, labelled)
        label_coverage = Estimate(seen / labelled, low, high, reference=1.0)
    value = complete["complete"] / complete["rows"]
    low, high = jackknife.binomial_interval(value, complete["rows"])
    return {"complete_share": Estimate(value, low, high, reference=1.0), "label_coverage": label_coverage}


def stability_family(sums: CoreSums, folds: list[CoreSums], context: MetricContext) -> Family:
    """Return the spread of each core metric: standard error, and standard deviation over folds and over blocks.

    Args:
        sums: sums over the whole view.
        folds: sums over the rows of each fold of the classifier.
        context: references and spreads of the view.
    """
    whole = core_metrics(sums, context)
    blocks = [core_metrics(part, context) for part in sums.each_block()]
    parts = [core_metrics(part, context) for part in folds]
    metrics = {}
    for name in CORE_METRICS:
        deviations = whole[name].deviations
        error = math.nan if deviations is None else jackknife.standard_error(deviations)
        reason = whole[name].reason or "no standard error"
        metrics[f"{name}_error"] = _spread_estimate(error, reason)
        for word, slices in (("folds", parts), ("blocks", blocks)):
            values = [value for part in slices if (value := part[name].value) is not None]
            deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
            metrics[f"{name}_over_{word}"] = _spread_estimate(deviation, f"fewer than two {word} have a value")
    return metrics


def _spread_estimate(value: float, reason: str) -> Estimate:
    return Estimate(value, reason=_SPREAD) if math.isfinite(value) else Estimate.undefined(reason)
