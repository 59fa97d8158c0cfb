"""How well the classifier tells real from synthetic, and how honest its probabilities are; class-balanced.

Everything is a sum over rows that merges over shards, and each sum has its bootstrap replicates (bootstrap.py).
"""

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthscale.statistics.auc import (
    ERRORS,
    RankSums,
    auc,
    auc_metric,
    certain_up_to,
    independent_rows,
    interval,
    standard_error,
    sum_ranks,
    two_sample_test,
)
from synthscale.statistics.bootstrap import REPLICATES
from synthscale.statistics.estimates import NO_CLASSIFIER, Metric, metric

_BINS = 15


@dataclass
class ClassifierSums:
    """Sums by class (0 real, 1 synthetic) over out-of-fold logits; two of them add up.

    Attributes:
        count, log_loss, brier, correct, probability: (2,); the last is of being synthetic.
        bin_count, bin_probability: (2, bins).
        replicates: (3, 2, REPLICATES): weighted count, log-loss and correct answers.
        ranks: of the logits.
    """

    count: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    log_loss: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    brier: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    correct: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    probability: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    bin_count: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, _BINS)))
    bin_probability: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, _BINS)))
    replicates: NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, 2, REPLICATES)))
    ranks: RankSums = field(default_factory=RankSums)

    def __add__(self, other: "ClassifierSums") -> "ClassifierSums":
        """Return the sums over both sets of rows."""
        return ClassifierSums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def sum_classifier_errors(
    logit: NDArray[np.float64], is_real: NDArray[np.bool_], weights: NDArray[np.uint8] | None = None
) -> ClassifierSums:
    """Sum over rows with logits (n,) of being synthetic and classes (n,); NaN logits are left out.

    ``weights``, (n, REPLICATES), are the bootstrap's; without them figures have no intervals.
    """
    sums = ClassifierSums(ranks=sum_ranks(logit, is_real, weights))
    for label in (0, 1):
        chosen = (is_real == (label == 0)) & ~np.isnan(logit)
        own = logit[chosen]
        p = probability(own)
        loss = np.logaddexp(0.0, -own if label else own)
        correct = (p >= 0.5) == bool(label)
        sums.count[label] = len(own)
        sums.log_loss[label] = loss.sum()
        sums.brier[label] = np.square(p - label).sum()
        sums.correct[label] = correct.sum()
        sums.probability[label] = p.sum()
        bins = np.minimum((p * _BINS).astype(int), _BINS - 1)
        sums.bin_count[label] = np.bincount(bins, minlength=_BINS)
        sums.bin_probability[label] = np.bincount(bins, weights=p, minlength=_BINS)
        if weights is not None:
            sums.replicates[:, label] = np.stack([np.ones(len(own)), loss, correct]) @ weights[chosen]
    return sums


def _balanced(sums: ClassifierSums, name: str, replicate: int) -> Metric:
    """A class-balanced mean with its 95 % interval; for a share of 0 or 1 the mean of the classes' exact ones."""
    value = float((getattr(sums, name) / sums.count).mean())
    with np.errstate(invalid="ignore", divide="ignore"):
        error = standard_error((sums.replicates[replicate] / sums.replicates[0]).mean(0))
    if not sums.replicates.any():
        # Nothing drawn at all: there were no weights.
        return metric(value)
    if name == "correct" and value in (0.0, 1.0):
        bound = float(np.mean([certain_up_to(independent_rows(drawn)) for drawn in sums.replicates[0]]))
        return interval(value, *((bound, 1.0) if value else (0.0, 1 - bound)))
    top = 1.0 if name == "correct" else np.inf
    return interval(value, value - ERRORS * error, value + ERRORS * error, (0.0, top))


def metrics_over_deals(repeats: list[ClassifierSums]) -> dict[str, Any] | None:
    """Return mean and standard deviation of the figures over deals to folds; None for one deal."""
    if len(repeats) < 2:
        return None
    figures = {
        "fidelity": [1 - d.probability[1] / d.count[1] for d in repeats],
        "representativeness": [d.probability[0] / d.count[0] for d in repeats],
        "auc": [auc(d.ranks) for d in repeats],
        "log_loss": [(d.log_loss / d.count).mean() for d in repeats],
    }
    summary = {
        name: {"mean": float(np.mean(values)), "deviation": float(np.std(values, ddof=1))}
        for name, values in figures.items()
    }
    return {"count": len(repeats), **summary}


_OF_THE_FIT = (
    "strength",
    "repeats",
    "log_loss_by_strength",
    "epoch",
    "log_loss_by_epoch",
    "converged",
    "calibrated",
)


def classifier_figures(sums: ClassifierSums, head: str, fit: dict[str, Any]) -> dict[str, Any]:
    """Return the ``classifier`` block of metrics.json.

    Args:
        sums: over the generator's view.
        head: the configured head.
        fit: what the fit recorded; empty when there was none.
    """
    if not fit.get("folds"):
        return {
            "head": head,
            **dict.fromkeys(("strength", "brier", "ece")),
            **{name: metric(None, NO_CLASSIFIER) for name in ("auc", "accuracy", "log_loss")},
            "p_value": {"value": None, "reason": NO_CLASSIFIER},
            "reason": NO_CLASSIFIER,
        }
    share = sums.bin_count / sums.count[:, None]
    mass = share.sum(0) / 2
    mean_probability = (sums.bin_probability / sums.count[:, None]).sum(0) / 2
    return {
        "head": head,
        "folds": fit["folds"],
        "auc": auc_metric(sums.ranks),
        "accuracy": _balanced(sums, "correct", 2),
        "log_loss": _balanced(sums, "log_loss", 1),
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
        "p_value": two_sample_test(sums.ranks),
        **{name: fit[name] for name in _OF_THE_FIT if fit.get(name) is not None},
    }


def probability(logit: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probability of being synthetic; NaN stays NaN."""
    return 0.5 * (1.0 + np.tanh(0.5 * logit))
