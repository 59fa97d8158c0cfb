"""Platt scaling of out-of-fold logits, cross-fitted.

Over-confident heads, and classes of very unequal size, leave logits that are too large or off centre, and a
strength that is a little too strong leaves them too small. Each fold's slope and offset (Platt 1999; the slope
alone is temperature scaling, Guo et al. 2017) are fitted to the other folds' out-of-fold logits by
class-balanced log-loss. So fidelity hardly depends on which of two near strengths was chosen: unscaled, that
choice is half of its variance between data sets. Scaled logits are set aside only where they are clearly worse,
which takes few groups.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synthscale.classify.fit_context import ReduceSum

_RATIO = 1.03
_SMALLEST, _LARGEST = 1e-4, 1e2
"""Logits are counted in bins of this relative width between these sizes; each bin answers by its mean."""
_HALF = int(np.log(_LARGEST / _SMALLEST) / np.log(_RATIO)) + 2
_RIDGE = 1.0
"""Pulls slope and offset towards 1 and 0, as if that were known to about 0.5, so that few rows or separable
classes do not run away."""
_STEPS = 60
_CLOSE = 1e-10

Logits = Iterable[tuple[bool, NDArray[np.float64], NDArray[np.int8]]]
"""Rows of one class after another: whether synthetic, out-of-fold logits (n, deals), folds (n, deals; -1: left
out)."""


@dataclass(frozen=True)
class PlattScaling:
    """What to do to logits: those of deal i and fold f become slope[i, f] x logit + offset[i, f].

    Attributes:
        slope: (deals, k).
        offset: (deals, k).
        log_loss: class-balanced, of the logits as they were and as scaled.
        by_deal: (deals,) the latter, of each deal.
        error: standard error of their difference, rows taken as independent.
    """

    slope: NDArray[np.float64]
    offset: NDArray[np.float64]
    log_loss: tuple[float, float]
    error: float
    by_deal: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    @property
    def is_used(self) -> bool:
        """Whether logits are scaled: unless that makes them clearly worse."""
        return self.log_loss[1] - self.log_loss[0] <= self.error

    def __call__(self, logits: NDArray[np.float64], fold: NDArray[np.int8]) -> NDArray[np.float64]:
        """Return logits (n, deals) scaled by their folds, or as they are where that would be worse."""
        if not self.is_used:
            return logits
        return self.slopes(fold) * logits + self.offset[np.arange(logits.shape[1]), fold]

    def slopes(self, fold: NDArray[np.int8]) -> NDArray[np.float64]:
        """Return what logits with folds (n, deals) are multiplied by: (n, deals)."""
        if not self.is_used:
            return np.ones(fold.shape)
        return self.slope[np.arange(fold.shape[1]), fold]

    def summary(self) -> dict[str, Any]:
        """Return the means of slope and offset, the log-losses and whether they are used, for JSON."""
        return {
            "used": self.is_used,
            "slope": float(self.slope.mean()),
            "offset": float(self.offset.mean()),
            "log_loss_before": self.log_loss[0],
            "log_loss_after": self.log_loss[1],
        }


def fit_platt_scaling(logits: Logits, repeats: int, folds: int, reduce_sum: ReduceSum) -> PlattScaling:
    """Fit slopes and offsets over all workers: one pass, by histograms.

    Args:
        logits: this worker's rows.
        repeats: deals to folds.
        folds: k.
        reduce_sum: adds a float64 tensor over workers.
    """
    # Counts and sums of logits by deal, fold, class and bin.
    bins = np.zeros((2, repeats, folds, 2, 2 * _HALF + 1))
    for synthetic, values, fold in logits:
        for i in range(repeats):
            seen = fold[:, i] >= 0
            own = values[seen, i]
            at = np.ravel_multi_index((fold[seen, i].astype(np.int64), _bin(own)), (folds, bins.shape[-1]))
            shape, size = (folds, bins.shape[-1]), folds * bins.shape[-1]
            bins[0, i, :, int(synthetic)] += np.bincount(at, minlength=size).reshape(shape)
            bins[1, i, :, int(synthetic)] += np.bincount(at, own, size).reshape(shape)
    count, total = reduce_sum(torch.from_numpy(bins)).numpy()
    mean = total / np.maximum(count, 1)
    others = count.sum(1, keepdims=True) - count
    slope, offset = _platt(others, (total.sum(1, keepdims=True) - total) / np.maximum(others, 1))
    before, after = _loss(mean), _loss(slope[..., None, None] * mean + offset[..., None, None])
    rows = np.maximum(count.sum((0, 1, 3)), 1)
    sums = [(count * values).sum((0, 1, 3)) / rows for values in (before, after, np.square(after - before))]
    # By class; deals repeat the rows.
    variance = (sums[2] - np.square(sums[1] - sums[0])) / (rows / repeats)
    error = float(np.sqrt(np.maximum(variance, 0).sum()) / 2)
    each = (count * after).sum((1, 3)) / np.maximum(count.sum((1, 3)), 1)
    return PlattScaling(slope, offset, (float(sums[0].mean()), float(sums[1].mean())), error, each.mean(1))


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


def _platt(count: NDArray[np.float64], mean: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Slopes and offsets of many fits at once, by Newton's method; a slope below 0 would read noise backwards.

    Both arguments are histograms (..., 2, b); the results are (...).
    """
    rows = np.maximum(count.sum(-1), 1)
    weight = count / rows[..., None] / 2
    ridge = _RIDGE / rows.min(-1)
    sign = np.array([[1.0], [-1.0]])
    mode = np.array([1.0, 0.0])

    def loss(at: NDArray[np.float64]) -> NDArray[np.float64]:
        margin = sign * (at[..., 0, None, None] * mean + at[..., 1, None, None])
        fit = (weight * np.logaddexp(0.0, margin)).sum((-2, -1))
        return np.asarray(fit + ridge * np.square(at - mode).sum(-1))

    point = np.broadcast_to(mode, (*rows.shape[:-1], 2)).copy()
    value = loss(point)
    for _ in range(_STEPS):
        p = 0.5 * (1 + np.tanh(sign * (point[..., 0, None, None] * mean + point[..., 1, None, None]) / 2))
        slope, bend = weight * sign * p, weight * p * (1 - p)
        gradient = np.stack([(slope * mean).sum((-2, -1)), slope.sum((-2, -1))], -1)
        gradient += 2 * ridge[..., None] * (point - mode)
        cross = (bend * mean).sum((-2, -1))
        first, last = (bend * mean * mean).sum((-2, -1)) + 2 * ridge, bend.sum((-2, -1)) + 2 * ridge
        inverse = np.stack([np.stack([last, -cross], -1), np.stack([-cross, first], -1)], -2)
        step = -(inverse @ gradient[..., None])[..., 0] / (first * last - cross * cross)[..., None]
        if np.abs(step).max(initial=0.0) < _CLOSE:
            break
        # Far from the optimum a whole step may go too far: halve it where the loss does not fall.
        trial = loss(point + step)
        for _ in range(_STEPS):
            worse = trial > value + 1e-15
            if not worse.any():
                break
            step[worse] /= 2
            trial = loss(point + step)
        point, value = point + step, trial
    readable = point[..., 0] > 0
    return np.where(readable, point[..., 0], 0.0), np.where(readable, point[..., 1], 0.0)
