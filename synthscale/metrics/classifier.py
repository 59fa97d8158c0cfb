"""How well the classifier tells real from synthetic, and how honest its probabilities are; class-balanced.

Everything is a sum over rows that merges over shards. Ranks come from a sparse histogram of the logits that keeps
11 bits of mantissa: logits closer than 0.05 % count as tied, which bounds its size whatever the number of rows.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthscale.metrics.core import metric
from synthscale.scores import probability

_BINS = 15
_DROPPED_BITS = 12


@dataclass
class ClassifierSums:
    """Sums by class (0 real, 1 synthetic) over out-of-fold logits; two of them add up."""

    count: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    log_loss: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    brier: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    correct: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    bin_count: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, _BINS)))
    bin_probability: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, _BINS)))
    logits: tuple[Counter[int], Counter[int]] = field(default_factory=lambda: (Counter(), Counter()))

    def __add__(self, other: "ClassifierSums") -> "ClassifierSums":
        """Return the sums over both sets of rows."""
        return ClassifierSums(
            self.count + other.count,
            self.log_loss + other.log_loss,
            self.brier + other.brier,
            self.correct + other.correct,
            self.bin_count + other.bin_count,
            self.bin_probability + other.bin_probability,
            (self.logits[0] + other.logits[0], self.logits[1] + other.logits[1]),
        )


def sum_logits(logit: NDArray[np.float64], is_real: NDArray[np.bool_]) -> ClassifierSums:
    """Sum over rows with logits (n,) of being synthetic and classes (n,); NaN logits are left out."""
    sums = ClassifierSums()
    for label in (0, 1):
        own = logit[(is_real == (label == 0)) & ~np.isnan(logit)]
        p = probability(own)
        sums.count[label] = len(own)
        sums.log_loss[label] = np.logaddexp(0.0, -own if label else own).sum()
        sums.brier[label] = np.square(p - label).sum()
        sums.correct[label] = ((p >= 0.5) == bool(label)).sum()
        bins = np.minimum((p * _BINS).astype(int), _BINS - 1)
        sums.bin_count[label] = np.bincount(bins, minlength=_BINS)
        sums.bin_probability[label] = np.bincount(bins, weights=p, minlength=_BINS)
        sums.logits[label].update(dict(zip(*_histogram(own), strict=True)))
    return sums


def _histogram(logit: NDArray[np.float64]) -> tuple[list[int], list[int]]:
    """Count logits by an integer that orders as they do: a float32's bits, sign folded, low bits dropped."""
    bits = logit.astype(np.float32).view(np.int32).astype(np.int64)
    ordered = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    values, counts = np.unique(np.round(ordered / 2**_DROPPED_BITS).astype(np.int64), return_counts=True)
    return values.tolist(), counts.tolist()


def auc(sums: ClassifierSums) -> float:
    """Return the area under the ROC curve: the chance that a synthetic row's logit is above a real row's."""
    keys = sorted(set(sums.logits[0]) | set(sums.logits[1]))
    real = np.array([sums.logits[0][k] for k in keys], np.float64)
    synthetic = np.array([sums.logits[1][k] for k in keys], np.float64)
    below = np.cumsum(real) - real
    return float((synthetic * (below + real / 2)).sum() / (real.sum() * synthetic.sum()))


def classifier_figures(sums: ClassifierSums, head: str, fit: dict[str, Any]) -> dict[str, Any]:
    """Return the ``classifier`` block of metrics.json.

    Args:
        sums: over the generator's view.
        head: the configured head.
        fit: what the fit recorded; empty when there was none.
    """
    reason = "no classifier: too few rows or groups in a class to cross-validate"
    if not fit.get("folds"):
        figures = dict.fromkeys(("strength", "accuracy", "log_loss", "brier", "ece"))
        return {
            "head": head,
            **figures,
            "auc": metric(None, reason),
            "p_value": metric(None, reason),
            "reason": reason,
        }
    share = sums.bin_count / sums.count[:, None]
    mass = share.sum(0) / 2
    mean_probability = (sums.bin_probability / sums.count[:, None]).sum(0) / 2
    return {
        "head": head,
        "strength": fit["strength"],
        "folds": fit["folds"],
        "auc": metric(auc(sums), reference=0.5),
        "accuracy": float((sums.correct / sums.count).mean()),
        "log_loss": float((sums.log_loss / sums.count).mean()),
        "brier": float((sums.brier / sums.count).mean()),
        # Expected calibration error with 15 equal bins (Guo et al. 2017), the classes weighing the same.
        "ece": float(np.abs(share[1] / 2 - mean_probability).sum()),
        "calibration": [
            {
                "bin": b,
                "weight": float(mass[b]),
                "probability": float(mean_probability[b] / mass[b]),
                "synthetic": float(share[1, b] / 2 / mass[b]),
            }
            for b in range(_BINS)
            if mass[b] > 0
        ],
        "log_loss_by_strength": fit["log_loss_by_strength"],
        "converged": fit["converged"],
        "p_value": metric(None, "the two-sample test is not part of this version"),
    }
