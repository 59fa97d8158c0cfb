"""A metric with its 95 % interval, and the form it takes in metrics.json."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from synthscale.statistics.jackknife import Blocks

Metric = dict[str, Any]
"""One metric in metrics.json: ``value``, ``low``, ``high``, and others where they apply (docs/metrics.md)."""

NO_CLASSIFIER = "no classifier: too few rows in a class to cross-validate"
NO_INTERVAL = "no interval: too few rows or groups"
TOO_FEW_INDEPENDENT = "too_few_independent"
"""Reason of a missing interval: fewer than `FEWEST_CLUSTERS` independent rows on a side."""
FEWEST_CLUSTERS = 10
"""Clusters of near-duplicates, on either side, below which no metric has an interval: a spread over fewer units is
itself too uncertain."""
_ROUNDING = 1e-6
"""Sums of fractions that add up to a whole number of clusters are off by less."""


def is_too_few(clusters: float) -> bool:
    """Return whether ``clusters``, a sum of fractions, is less than `FEWEST_CLUSTERS`."""
    return clusters < FEWEST_CLUSTERS - _ROUNDING


def without_interval(metric: Metric, clusters: float) -> Metric:
    """Return a metric in the form of metrics.json, without its interval if there are too few clusters."""
    if metric["value"] is None or not is_too_few(clusters):
        return metric
    return {**metric, "low": None, "high": None, "reason": TOO_FEW_INDEPENDENT}


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95 % interval.

    Attributes:
        value: the metric; None if it is undefined.
        low: lower end of the interval; None if there is no interval.
        high: upper end of the interval; None if there is no interval.
        reason: why there is no value, or no interval.
        unadjusted: the metric from odds that include the class sizes, instead of balanced ones; fidelity and
            representativeness only.
        reference: the value that an ideal generator would get, where one is known.
        deviations: (BLOCKS,) numbers whose squares add up to the variance (statistics/jackknife.py).
        is_small: whether the metric is computed from too few independent rows to be reliable.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None
    unadjusted: float | None = None
    reference: float | None = None
    deviations: Blocks | None = None
    is_small: bool = False

    @classmethod
    def undefined(cls, reason: str) -> "Estimate":
        """Create an undefined metric."""
        return cls(None, reason=reason)

    @classmethod
    def without_interval(
        cls, value: float, reason: str, if_undefined: str, reference: float | None = None
    ) -> "Estimate":
        """Create a metric without an interval and say why; it is undefined if the value is not finite.

        Args:
            value: the metric.
            reason: why it has no interval.
            if_undefined: why it is not finite, if so.
            reference: the value that an ideal generator would get, where one is known.
        """
        if not math.isfinite(value):
            return cls.undefined(if_undefined)
        return cls(value, reason=reason, reference=reference)

    def from_clusters(self, clusters: float) -> "Estimate":
        """Return the estimate, without its interval if it rests on fewer than `FEWEST_CLUSTERS` clusters.

        A metric that never has an interval keeps its own reason.
        """
        if self.value is None or self.reason is not None or not is_too_few(clusters):
            return self
        return replace(self, low=None, high=None, reason=TOO_FEW_INDEPENDENT)

    def to_json(self) -> Metric:
        """Return the estimate in the form of metrics.json."""
        if self.value is None:
            return metric_block(None, self.reason)
        result = metric_block(self.value, unadjusted=self.unadjusted, reference=self.reference)
        if self.low is not None and self.high is not None:
            result |= {"low": self.low, "high": self.high}
            result.pop("reason")
        elif self.reason:
            result["reason"] = self.reason
        return result | ({"small": True} if self.is_small else {})


def metric_block(value: float | None, reason: str | None = None, **more: float | None) -> Metric:
    """Return a metric without an interval in the form of metrics.json.

    Args:
        value: the metric; None or not finite if it is undefined.
        reason: why it is undefined.
        **more: further numbers, such as ``reference``; those that are None or not finite are left out.

    Returns:
        ``value``, ``low`` and ``high`` (None), and ``reason``: that of a missing value, or else `NO_INTERVAL`.
    """
    if value is None or not np.isfinite(value):
        return {"value": None, "low": None, "high": None, "reason": reason or "undefined"}
    result: Metric = {"value": float(value), "low": None, "high": None}
    result |= {name: float(number) for name, number in more.items() if number is not None and np.isfinite(number)}
    return result | {"reason": NO_INTERVAL}
