"""Calibrate out-of-fold logits by Platt scaling: cross-fitted slopes, and one offset for all folds.

Reads out-of-fold logits and folds, returns a `PlattScaling` with a slope for each repeat and fold and an offset
for each repeat.

Over-confident heads, and classes of very unequal size, give logits that are too large or off centre; an L2
strength that is a little too strong gives logits that are too small. Each fold's slope (Platt 1999; temperature
scaling, Guo et al. 2017) is fitted to the out-of-fold logits of the other folds by class-balanced log-loss.
Fidelity then hardly depends on which of two neighbouring strengths was chosen; unscaled, that choice makes up half
of its variance between data sets.

The offset minimises the class-balanced log-loss of all rows, without a penalty. Where its derivative is zero, the
mean quality scores of both classes are equal, and so are fidelity and representativeness. A ridge penalty would
add 4 x ridge x offset to their difference; an offset for each fold, fitted to the other folds, leaves up to 0.01
with 64 rows of a class. On new rows the log-loss is no higher than with such offsets (simulated), as one number
for all rows has little to overfit.

The slope stays 1 only if scaling raises the log-loss by more than one standard error, which happens only with few
groups. The offset applies in either case.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synthscale.classify.fit_context import ReduceSum

_BIN_RATIO = 1.03
_MIN_LOGIT, _MAX_LOGIT = 1e-4, 1e2
"""Histogram of logits: bins of this relative width between these magnitudes, each represented by its mean logit.
Wider bins would blur the fit; the histogram, not the number of rows, sets its cost."""
_BINS_PER_SIGN = int(np.log(_MAX_LOGIT / _MIN_LOGIT) / np.log(_BIN_RATIO)) + 2
_RIDGE = 1.0
"""Ridge penalty that pulls the slope towards 1, like a Gaussian prior with a standard deviation of about 0.5.
Without it the slope diverges for separable classes and is erratic for few rows."""
_OFFSET_RIDGE = 1e-9
"""Ridge penalty of the offset that is fitted beside a slope: too small to move it, it only makes the Newton step
finite where the logits are so large that the loss has no curvature in float64."""
_MAX_STEPS = 60
"""Limit of the Newton steps, and of the halvings of one step."""
_STEP_TOLERANCE = 1e-10
_GAP_TOLERANCE = 1e-12
"""The offset is found where the mean quality scores of the classes differ by less than this."""

Logits = Iterable[tuple[bool, NDArray[np.float64], NDArray[np.int8]]]
"""Blocks of rows of one class: whether they are synthetic, out-of-fold logits (n, repeats) and folds (n, repeats;
-1: the row is left out)."""


@dataclass(frozen=True)
class PlattScaling:
    """Scale logits linearly: those of repeat i and fold f become slope[i, f] x logit + offset[i].

    Attributes:
        slope: (repeats, k).
        offset: (repeats,) offset of the scaled logits.
        shift: (repeats,) offset of the unscaled logits, which applies where slopes are not used.
        log_loss: class-balanced log-loss (nats) of the unscaled and the scaled logits, each with its offset; mean
            over repeats.
        error: standard error of the difference of the two, with rows taken as independent.
        log_loss_by_repeat: (repeats,) log-loss after scaling.
    """

    slope: NDArray[np.float64]
    offset: NDArray[np.float64]
    shift: NDArray[np.float64]
    log_loss: tuple[float, float]
    error: float
    log_loss_by_repeat: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    @property
    def is_used(self) -> bool:
        """Whether slopes are used: true unless scaling raises the log-loss by more than a standard error."""
        return self.log_loss[1] - self.log_loss[0] <= self.error

    def coefficients(self, *, is_scaled: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return slopes, (repeats, k), and offsets, (repeats,), with the fitted slopes or with slopes of 1."""
        return (self.slope, self.offset) if is_scaled else (np.ones_like(self.slope), self.shift)

    def __call__(self, logits: NDArray[np.float64], fold: NDArray[np.int8]) -> NDArray[np.float64]:
        """Return the calibrated logits: (n, repeats).

        Args:
            logits: (n, repeats), out of fold.
            fold: (n, repeats).
        """
        _, offset = self.coefficients(is_scaled=self.is_used)
        return self.slopes(fold) * logits + offset

    def slopes(self, fold: NDArray[np.int8]) -> NDArray[np.float64]:
        """Return the slope that applies to each logit, given its fold: (n, repeats) -> (n, repeats)."""
        slope, _ = self.coefficients(is_scaled=self.is_used)
        return slope[np.arange(fold.shape[1]), fold]

    def summary(self) -> dict[str, Any]:
        """Return the block ``calibrated`` of metrics.json: mean slope and offset, log-losses, whether used."""
        slope, offset = self.coefficients(is_scaled=self.is_used)
        return {
            "used": self.is_used,
            "slope": float(slope.mean()),
            "offset": float(offset.mean()),
            "log_loss_before": self.log_loss[0],
            "log_loss_after": self.log_loss[1],
        }


def fit_platt_scaling(logits: Logits, repeats: int, folds: int, reduce_sum: ReduceSum) -> PlattScaling:
    """Fit slopes and offsets from histograms of the logits of all workers, in one pass.

    Args:
        logits: this worker's rows.
        repeats: number of fold assignments.
        folds: k.
        reduce_sum: all-reduce over workers.
    """
    # Counts and sums of logits by repeat, fold, class and bin.
    bins = np.zeros((2, repeats, folds, 2, 2 * _BINS_PER_SIGN + 1))
    for synthetic, values, fold in logits:
        for i in range(repeats):
            seen = fold[:, i] >= 0
            logit = values[seen, i]
            at = np.ravel_multi_index((fold[seen, i].astype(np.int64), _bin(logit)), (folds, bins.shape[-1]))
            shape, size = (folds, bins.shape[-1]), folds * bins.shape[-1]
            bins[0, i, :, int(synthetic)] += np.bincount(at, minlength=size).reshape(shape)
            bins[1, i, :, int(synthetic)] += np.bincount(at, logit, size).reshape(shape)
    count, total = reduce_sum(torch.from_numpy(bins)).numpy()
    is_used = count.any((0, 1, 2))
    count, total = count[..., is_used], total[..., is_used]
    mean = total / np.maximum(count, 1)
    other_folds = count.sum(1, keepdims=True) - count
    other_mean = (total.sum(1, keepdims=True) - total) / np.maximum(other_folds, 1)
    slope = _fit_slopes(other_folds, other_mean)
    scaled = slope[..., None, None] * mean
    shift, offset = _fit_offsets(count, mean), _fit_offsets(count, scaled)
    before, after = (_loss(z + by[:, None, None, None]) for z, by in ((mean, shift), (scaled, offset)))
    rows = np.maximum(count.sum((0, 1, 3)), 1)
    sums = [(count * values).sum((0, 1, 3)) / rows for values in (before, after, np.square(after - before))]
    # Variance by class. Each row is counted once per repeat, so the independent rows are rows / repeats.
    variance = (sums[2] - np.square(sums[1] - sums[0])) / (rows / repeats)
    error = float(np.sqrt(np.maximum(variance, 0).sum()) / 2)
    by_class = (count * after).sum((1, 3)) / np.maximum(count.sum((1, 3)), 1)
    return PlattScaling(
        slope, offset, shift, (float(sums[0].mean()), float(sums[1].mean())), error, by_class.mean(1)
    )


def _bin(logits: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the histogram bin of each logit: bins are logarithmic in its magnitude, the middle one holds zero."""
    size = np.clip(np.abs(logits), _MIN_LOGIT, _MAX_LOGIT)
    step = 1 + (np.log(size / _MIN_LOGIT) / np.log(_BIN_RATIO)).astype(np.int64)
    result: NDArray[np.int64] = _BINS_PER_SIGN + np.where(
        np.abs(logits) <= _MIN_LOGIT, 0, np.sign(logits).astype(np.int64) * step
    )
    return result


def _loss(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the log-loss of each logit: (..., 2, b), classes real and synthetic on the last axis but one."""
    return np.logaddexp(0.0, np.array([[1.0], [-1.0]]) * logits)


def _fit_offsets(count: NDArray[np.float64], logit: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the offset of each repeat at which the mean quality scores of both classes are equal: (repeats,).

    Newton's method, with bisection where a step leaves the interval that must hold the solution. The offset is 0
    where a class has no rows, and where the classes are so far apart that both means are 1 without it.

    Args:
        count: (repeats, k, 2, b) rows by fold, class and bin.
        logit: (repeats, k, 2, b) logit of each.
    """
    rows = count.sum((1, 3))
    has_both = (rows > 0).all(-1)
    weight = count / np.maximum(rows, 1)[:, None, :, None] * has_both[:, None, None, None]
    # At these ends no logit is on the synthetic side, or none on the real side.
    low, high = -logit.max((1, 2, 3)), -logit.min((1, 2, 3))
    offset = np.zeros(len(count))
    for _ in range(2 * _MAX_STEPS):
        p = 0.5 * (1 + np.tanh((logit + offset[:, None, None, None]) / 2))
        mean = (weight * p).sum((1, 3))
        gap = np.where(has_both, mean.sum(-1) - 1, 0.0)
        if np.abs(gap).max(initial=0.0) < _GAP_TOLERANCE:
            break
        low, high = np.where(gap < 0, offset, low), np.where(gap > 0, offset, high)
        with np.errstate(invalid="ignore", divide="ignore"):
            newton = offset - gap / (weight * p * (1 - p)).sum((1, 2, 3))
        is_inside = (newton > low) & (newton < high)
        moved = np.where(is_inside, newton, (low + high) / 2)
        offset = np.where(np.abs(gap) < _GAP_TOLERANCE, offset, moved)
    return offset


def _fit_slopes(count: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the slopes, (...), of many Platt fits at once, by Newton's method with step halving.

    Each fit has an offset of its own beside the slope, which is not returned. A slope that is not positive becomes
    0, since a negative one would only invert noise; it stays 1 where a class has no rows.

    Args:
        count: (..., 2, b) rows by class and bin.
        mean: (..., 2, b) mean logit of each.
    """
    rows = count.sum(-1)
    weight = count / np.maximum(rows, 1)[..., None] / 2 * (rows > 0).all(-1)[..., None, None]
    ridge = np.stack([_RIDGE / np.maximum(rows.min(-1), 1), np.full(rows.shape[:-1], _OFFSET_RIDGE)], -1)
    sign = np.array([[1.0], [-1.0]])
    prior_mean = np.array([1.0, 0.0])

    def loss(at: NDArray[np.float64]) -> NDArray[np.float64]:
        margin = sign * (at[..., 0, None, None] * mean + at[..., 1, None, None])
        fit = (weight * np.logaddexp(0.0, margin)).sum((-2, -1))
        return np.asarray(fit + (ridge * np.square(at - prior_mean)).sum(-1))

    point = np.broadcast_to(prior_mean, ridge.shape).copy()
    value = loss(point)
    for _ in range(_MAX_STEPS):
        p = 0.5 * (1 + np.tanh(sign * (point[..., 0, None, None] * mean + point[..., 1, None, None]) / 2))
        slope, curvature = weight * sign * p, weight * p * (1 - p)
        gradient = np.stack([(slope * mean).sum((-2, -1)), slope.sum((-2, -1))], -1)
        gradient += 2 * ridge * (point - prior_mean)
        cross = (curvature * mean).sum((-2, -1))
        first = (curvature * mean * mean).sum((-2, -1)) + 2 * ridge[..., 0]
        last = curvature.sum((-2, -1)) + 2 * ridge[..., 1]
        inverse = np.stack([np.stack([last, -cross], -1), np.stack([-cross, first], -1)], -2)
        step = -(inverse @ gradient[..., None])[..., 0] / (first * last - cross * cross)[..., None]
        if np.abs(step).max(initial=0.0) < _STEP_TOLERANCE:
            break
        # Far from the optimum a full Newton step may overshoot: halve it where the loss does not fall.
        trial = loss(point + step)
        for _ in range(_MAX_STEPS):
            worse = trial > value + 1e-15
            if not worse.any():
                break
            step[worse] /= 2
            trial = loss(point + step)
        point, value = point + step, trial
    result: NDArray[np.float64] = np.maximum(point[..., 0], 0.0)
    return result
