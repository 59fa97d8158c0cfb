"""A metric with its interval, and its shape in metrics.json."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from synthscale.statistics.jackknife import Blocks

Metric = dict[str, Any]

NO_CLASSIFIER = "no classifier: too few rows or groups in a class to cross-validate"
NO_INTERVAL = "no interval: too few rows or groups"


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95 % interval.

    Attributes:
        value: None where it is undefined; ``reason`` then says why.
        reason: why there is no value, or no interval.
        deviations: (BLOCKS,) numbers whose squares add up to its variance (jackknife.py).
        is_small: whether it rests on too few rows to say much.
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
    def none(cls, reason: str) -> "Estimate":
        """Return an undefined metric."""
        return cls(None, reason=reason)

    def metric(self) -> Metric:
        """Return it in the shape of metrics.json."""
        if self.value is None:
            return metric(None, self.reason)
        result = metric(self.value, unadjusted=self.unadjusted, reference=self.reference)
        if self.low is not None and self.high is not None:
            result |= {"low": self.low, "high": self.high}
            result.pop("reason")
        elif self.reason:
            result["reason"] = self.reason
        return result | ({"small": True} if self.is_small else {})


def metric(value: float | None, reason: str | None = None, **more: float | None) -> Metric:
    """Return one metric in the shape of metrics.json: a null value has a reason, and so has a missing interval."""
    if value is None or not np.isfinite(value):
        return {"value": None, "low": None, "high": None, "reason": reason or "undefined"}
    result: Metric = {"value": float(value), "low": None, "high": None}
    result |= {name: float(number) for name, number in more.items() if number is not None and np.isfinite(number)}
    return result | {"reason": NO_INTERVAL}
