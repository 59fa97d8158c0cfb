"""Platt scaling of out-of-fold logits, cross-fitted, and kept only where it helps.

Over-confident heads, and classes of very unequal size, leave logits that are too large or off centre. Each fold's
slope and offset (Platt 1999; the slope alone is temperature scaling, Guo et al. 2017) are fitted to the other
folds' out-of-fold logits by class-balanced log-loss. They are used where that lowers the log-loss of the fold left
out, over all folds, by more than a little: with few groups they would only add noise.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from synthscale.workers import ReduceSum

_RATIO = 1.03
_SMALLEST, _LARGEST = 1e-4, 1e2
"""Logits are counted in bins of this relative width between these sizes; each bin answers by its mean."""
_HALF = int(np.log(_LARGEST / _SMALLEST) / np.log(_RATIO)) + 2
_RIDGE = 1e-3
"""Pulls slope and offset towards 1 and 0, so that separable classes do not run away."""
_GAIN = 1e-3
"""Nats by which the log-loss must fall, and no less than by one standard error."""

Logits = Iterable[tuple[bool, NDArray[np.float64], NDArray[np.int8]]]
"""Rows of one class after another: whether synthetic, out-of-fold logits (n, deals), folds (n, deals)."""


@dataclass(frozen=True)
class Calibration:
    """What to do to logits: those of deal i and fold f become slope[i, f] x logit + offset[i, f].

    Attributes:
        slope: (deals, k).
        offset: (deals, k).
        log_loss: class-balanced, of the logits as they were and as scaled.
        error: standard error of their difference, rows taken as independent.
    """

    slope: NDArray[np.float64]
    offset: NDArray[np.float64]
    log_loss: tuple[float, float]
    error: float

    @property
    def helps(self) -> bool:
        """Whether the scaled logits are clearly better."""
        return self.log_loss[0] - self.log_loss[1] > max(_GAIN, self.error)

    def __call__(self, logits: NDArray[np.float64], fold: NDArray[np.int8]) -> NDArray[np.float64]:
        """Return logits (n, deals) scaled by their folds, or as they are where that does not help."""
        if not self.helps:
            return logits
        return self.slopes(fold) * logits + self.offset[np.arange(logits.shape[1]), fold]

    def slopes(self, fold: NDArray[np.int8]) -> NDArray[np.float64]:
        """Return what logits with folds (n, deals) are multiplied by: (n, deals)."""
        if not self.helps:
            return np.ones(fold.shape)
        return self.slope[np.arange(fold.shape[1]), fold]

    def summary(self) -> dict[str, Any]:
        """Return the means of slope and offset, the log-losses and whether they are used, for JSON."""
        return {
            "used": self.helps,
            "slope": float(self.slope.mean()),
            "offset": float(self.offset.mean()),
            "log_loss_before": self.log_loss[0],
            "log_loss_after": self.log_loss[1],
        }


def fit_calibration(logits: Logits, deals: int, folds: int, reduce_sum: ReduceSum) -> Calibration:
    """Fit slopes and offsets over all workers: one pass, by histograms.

    Args:
        logits: this worker's rows.
        deals: deals to folds.
        folds: k.
        reduce_sum: adds a float64 tensor over workers.
    """
    # Counts and sums of logits by deal, fold, class and bin.
    bins = np.zeros((2, deals, folds, 2, 2 * _HALF + 1))
    for synthetic, values, fold in logits:
        for i in range(deals):
            at = np.ravel_multi_index((fold[:, i].astype(np.int64), _bin(values[:, i])), (folds, bins.shape[-1]))
            shape, size = (folds, bins.shape[-1]), folds * bins.shape[-1]
            bins[0, i, :, int(synthetic)] += np.bincount(at, minlength=size).reshape(shape)
            bins[1, i, :, int(synthetic)] += np.bincount(at, values[:, i], size).reshape(shape)
    count, total = reduce_sum(torch.from_numpy(bins)).numpy()
    mean = total / np.maximum(count, 1)
    slope, offset = np.ones((deals, folds)), np.zeros((deals, folds))
    before, after = _loss(mean), np.zeros_like(mean)
    for i in range(deals):
        for f in range(folds):
            slope[i, f], offset[i, f] = _platt(count[i, np.arange(folds) != f], mean[i, np.arange(folds) != f])
            after[i, f] = _loss(slope[i, f] * mean[i, f] + offset[i, f])
    rows = count.sum((0, 1, 3))
    sums = [(count * values).sum((0, 1, 3)) / rows for values in (before, after, np.square(after - before))]
    # By class; deals repeat the rows.
    variance = (sums[2] - np.square(sums[1] - sums[0])) / (rows / deals)
    error = float(np.sqrt(np.maximum(variance, 0).sum()) / 2)
    return Calibration(slope, offset, (float(sums[0].mean()), float(sums[1].mean())), error)


def _bin(logits: NDArray[np.float64]) -> NDArray[np.int64]:
    size = np.clip(np.abs(logits), _SMALLEST, _LARGEST)
    step = 1 + (np.log(size / _SMALLEST) / np.log(_RATIO)).astype(np.int64)
    result: NDArray[np.int64] = _HALF + np.where(
        np.abs(logits) <= _SMALLEST, 0, np.sign(logits).astype(np.int64) * step
    )
    return result


def _loss(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-loss of logits (..., 2, b) by class: real, synthetic."""
    return np.logaddexp(0.0, np.array([[1.0], [-1.0]]) * logits)


def _platt(count: NDArray[np.float64], mean: NDArray[np.float64]) -> tuple[float, float]:
    """Slope and offset for histograms (folds, 2, b); a slope below 0 would read noise backwards and becomes 0."""
    weight = count / np.maximum(count.sum((0, 2), keepdims=True), 1) / 2
    sign = np.array([[1.0], [-1.0]])

    def value(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margin = sign * (point[0] * mean + point[1])
        away = point - [1.0, 0.0]
        slope = weight * sign * 0.5 * (1 + np.tanh(margin / 2))
        gradient = np.array([(slope * mean).sum(), slope.sum()]) + 2 * _RIDGE * away
        return float((weight * np.logaddexp(0.0, margin)).sum() + _RIDGE * away @ away), gradient

    options = {"ftol": 1e-15, "gtol": 1e-10}
    bounds = [(0.0, None), (None, None)]
    found = minimize(value, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return (float(found[0]), float(found[1])) if found[0] > 0 else (0.0, 0.0)
