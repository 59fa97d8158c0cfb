"""The families of metrics that are made of per-row values: manifold, copying, facts, completeness, stability.

- **recall** = share of real rows inside the k-NN radius of some synthetic row, 0..1 (Kynkaanniemi et al. 2019);
  **density** = mean number of real rows' radii that hold a synthetic row, over k; 1 for equal distributions,
  unbounded (Naeem et al. 2020). k = 5, as for precision and coverage.
- **exact_match_share** = share of synthetic rows at distance 0 from a real one. **authenticity** = share of rows
  that are farther from their nearest real row than that is from the other, distinct real ones (Alaa et al. 2022:
  the complement of the data-copying share). It has no fixed null and depends on the dimensions: see a control.
- **privacy_ratio** = median distance of synthetic rows to their nearest real one, over that of real rows to their
  nearest other; **privacy_tail** = share of synthetic rows nearer to a real one than 95 % of real rows are (0.05
  for equal distributions of equal size).
- **NAME_ks** = two-sample Kolmogorov-Smirnov statistic of a fact of the images, 0..1, with its asymptotic p-value.
- **complete_share** = share of the generator's rows that could be used and have no null in the label or in the
  user's columns; **label_coverage** = share of labelled real rows whose label occurs among the synthetic ones.
- **METRIC_error** = standard error of a core metric; **METRIC_over_folds**, **METRIC_over_blocks** = its standard
  deviation over the folds of the classifier, and over 20 random blocks of the rows.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import kstwobign

from synthscale.metric_names import CORE_METRICS
from synthscale.metrics.core import CoreSums, MetricContext, core_metrics, share, within
from synthscale.statistics import jackknife
from synthscale.statistics.auc import RankSums, value_of
from synthscale.statistics.estimates import Estimate

FACTS = ("brightness", "contrast", "sharpness", "width", "height", "aspect")
_TAIL = 0.05
_NO_INTERVAL = "no interval: a figure of ranks"
_SPREAD = "no interval: it is a spread itself"

Family = dict[str, Estimate]


def manifold_family(sums: CoreSums, context: MetricContext, k: int, distinct: int) -> Family:
    """Return density and recall; ``distinct`` synthetic rows have radii."""
    found = {"recall": within(sums, "recalled", "recall", context)}
    if distinct < 2:
        found = {"recall": Estimate.none("fewer than two distinct synthetic rows")}
    count = sums["synthetic"]
    if not count or context.no_manifold:
        return {"density": Estimate.none(context.no_manifold or "no synthetic rows"), **found}
    value = sums["real_radii"] / count / k
    if count**2 <= sums["grouped_synthetic"]:
        # One row, or one group of them.
        return {"density": Estimate(value, reference=1.0, is_small=True), **found}
    deviations = jackknife.ratio_deviations(sums.by_block("real_radii") / k, sums.by_block("synthetic"))
    spread = context.spreads.get("density")
    if spread is not None:
        deviations = jackknife.larger_variance(deviations, spread * value / math.sqrt(count))
    away = jackknife.ERRORS * jackknife.standard_error(deviations)
    density = Estimate(value, max(0.0, value - away), value + away, reference=1.0, deviations=deviations)
    return {"density": density, **found}


def copying_family(sums: CoreSums, distances: RankSums) -> Family:
    """Return what tells copies of real rows; ``distances`` are those to the nearest (other) real row."""
    exact = share(sums, "identical", "synthetic", is_complement=False, reference=0.0)
    authentic = share(sums, "authentic", "synthetic", is_complement=False, reference=None)
    names = ("privacy_ratio", "privacy_tail")
    real, synthetic = distances.fine
    if not real or not synthetic:
        privacy = dict.fromkeys(names, Estimate.none("fewer than two real rows, or no synthetic ones"))
    else:
        medians = [_quantile(counts, 0.5) for counts in (real, synthetic)]
        tail = _quantile(real, _TAIL)
        near = sum(count for code, count in synthetic.items() if value_of(code) < tail) / synthetic.total()
        ratio = medians[1] / medians[0] if medians[0] > 0 else math.nan
        privacy = {
            "privacy_ratio": _plain(ratio, "half of the real rows have another at distance 0", 1.0),
            "privacy_tail": _plain(near, "undefined", _TAIL),
        }
    return {"exact_match_share": exact, "authenticity": authentic, **privacy}


def _quantile(counts: Mapping[int, int], q: float) -> float:
    codes = sorted(counts)
    total = np.cumsum([counts[code] for code in codes])
    return value_of(codes[int(np.searchsorted(total, q * total[-1]))])


def _plain(value: float, reason: str, reference: float) -> Estimate:
    if not math.isfinite(value):
        return Estimate.none(reason)
    return Estimate(value, reason=_NO_INTERVAL, reference=reference)


def facts_family(values: Mapping[str, RankSums]) -> tuple[Family, dict[str, float]]:
    """Return the Kolmogorov-Smirnov statistic of each fact, and the p-values of those that are known."""
    found, p_values = {}, {}
    for fact in FACTS:
        real, synthetic = values[fact].fine if fact in values else ({}, {})
        if not real or not synthetic:
            found[f"{fact}_ks"] = Estimate.none("the input is vectors: there are no pictures to compare")
            continue
        codes = sorted({*real, *synthetic})
        below = [np.cumsum([counts.get(code, 0) for code in codes]) for counts in (real, synthetic)]
        n, m = (float(total[-1]) for total in below)
        statistic = float(np.abs(below[0] / n - below[1] / m).max())
        found[f"{fact}_ks"] = _plain(statistic, "undefined", 0.0)
        p_values[f"{fact}_ks"] = float(kstwobign.sf(statistic * math.sqrt(n * m / (n + m))))
    return found, p_values


def completeness_family(complete: Mapping[str, Any]) -> Family:
    """Return how complete the generator's rows and labels are.

    Args:
        complete: ``rows`` of the generator, and how many of them are ``complete``; ``labelled`` real rows, and the
            ``seen`` ones among them, whose label some synthetic row has.
    """
    labelled, seen = complete["labelled"], complete["seen"]
    there = Estimate.none("no labels in the real set")
    if labelled:
        low, high = jackknife.binomial_interval(seen / labelled, labelled)
        there = Estimate(seen / labelled, low, high, reference=1.0)
    value = complete["complete"] / complete["rows"]
    low, high = jackknife.binomial_interval(value, complete["rows"])
    return {"complete_share": Estimate(value, low, high, reference=1.0), "label_coverage": there}


def stability_family(sums: CoreSums, folds: list[CoreSums], context: MetricContext) -> Family:
    """Return how the core metrics spread: their standard errors, over folds, and over blocks of rows."""
    whole = core_metrics(sums, context)
    blocks = [core_metrics(part, context) for part in sums.each_block()]
    parts = [core_metrics(part, context) for part in folds]
    found = {}
    for name in CORE_METRICS:
        deviations = whole[name].deviations
        error = math.nan if deviations is None else jackknife.standard_error(deviations)
        reason = whole[name].reason or "no standard error"
        found[f"{name}_error"] = _spread(error, reason)
        for word, slices in (("folds", parts), ("blocks", blocks)):
            values = [value for part in slices if (value := part[name].value) is not None]
            deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
            found[f"{name}_over_{word}"] = _spread(deviation, f"fewer than two {word} have a value")
    return found


def _spread(value: float, reason: str) -> Estimate:
    return Estimate(value, reason=_SPREAD) if math.isfinite(value) else Estimate.none(reason)
