"""Evaluate the classifier: class-balanced AUC, accuracy, log-loss and calibration of its out-of-fold logits.

Reads logits and classes of rows, returns the ``classifier`` block of metrics.json. Everything is computed from
sums over rows that merge over shards; the sums behind the intervals have bootstrap replicates
(`statistics/bootstrap.py`).
"""

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthscale.statistics.auc import (
    BOOTSTRAP_HALF_WIDTH,
    RankSums,
    auc,
    auc_metric,
    metric_with_interval,
    replicate_standard_error,
    sum_ranks,
    two_sample_test,
)
from synthscale.statistics.bootstrap import REPLICATES
from synthscale.statistics.estimates import NO_CLASSIFIER, Metric, metric_block
from synthscale.statistics.jackknife import binomial_interval

NO_DIFFERENCE = "no interval: the classifier gives every image the same score"
_NO_SPREAD = 1e-9
"""Standard errors below this are rounding errors of sums of equal numbers."""
_BINS = 15
"""Equal-width bins of the probability, for the calibration curve and the expected calibration error."""


@dataclass
class ClassifierSums:
    """Sums over rows, by class (0 real, 1 synthetic), of errors of the out-of-fold logits; merge with ``+``.

    Attributes:
        count: (2,) rows.
        log_loss: (2,) log-loss, nats.
        brier: (2,) squared error of the probability.
        correct: (2,) rows on the right side of 0.5.
        probability: (2,) probability of being synthetic.
        bin_count: (2, bins) rows by bin of the probability.
        bin_probability: (2, bins) probability of being synthetic by bin.
        replicates: (3, 2, REPLICATES) bootstrap-weighted count, log-loss and correct rows.
        ranks: rank sums of the logits, for the AUC.
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
    logit: NDArray[np.float64],
    is_real: NDArray[np.bool_],
    weights: NDArray[np.uint8] | None = None,
    cluster_rows: NDArray[np.number] | None = None,
) -> ClassifierSums:
    """Return the sums over rows; rows with a NaN logit are left out.

    Args:
        logit: (n,) logits of being synthetic.
        is_real: (n,) True for real rows.
        weights: (n, REPLICATES) bootstrap weights; without them the metrics have no intervals.
        cluster_rows: (n,) as in `sum_ranks`.
    """
    sums = ClassifierSums(ranks=sum_ranks(logit, is_real, weights, cluster_rows))
    for label in (0, 1):
        chosen = (is_real == (label == 0)) & ~np.isnan(logit)
        of_class = logit[chosen]
        p = synthetic_probability(of_class)
        loss = np.logaddexp(0.0, -of_class if label else of_class)
        correct = (p >= 0.5) == bool(label)
        sums.count[label] = len(of_class)
        sums.log_loss[label] = loss.sum()
        sums.brier[label] = np.square(p - label).sum()
        sums.correct[label] = correct.sum()
        sums.probability[label] = p.sum()
        bins = np.minimum((p * _BINS).astype(int), _BINS - 1)
        sums.bin_count[label] = np.bincount(bins, minlength=_BINS)
        sums.bin_probability[label] = np.bincount(bins, weights=p, minlength=_BINS)
        if weights is not None:
            sums.replicates[:, label] = np.stack([np.ones(len(of_class)), loss, correct]) @ weights[chosen]
    return sums


def _balanced(sums: ClassifierSums, name: str, replicate: int) -> Metric:
    """Return the class-balanced mean of a sum, with its 95 % bootstrap interval.

    Where no replicate has an error, an accuracy of 0 or 1 gets the mean of the two classes' exact binomial bounds,
    one of 0.5 the error of guessing, and a log-loss no interval: every row of a class then has the same loss.

    Args:
        sums: over all rows.
        name: field of ``sums`` to average.
        replicate: index of the same quantity in ``sums.replicates``.
    """
    value = float((getattr(sums, name) / sums.count).mean())
    with np.errstate(invalid="ignore", divide="ignore"):
        error = replicate_standard_error((sums.replicates[replicate] / sums.replicates[0]).mean(0))
    if not sums.replicates.any():
        # The rows were summed without bootstrap weights.
        return metric_block(value)
    if error < _NO_SPREAD and name != "correct":
        return metric_block(value) | {"reason": NO_DIFFERENCE}
    if error < _NO_SPREAD and value == 0.5:
        # All rows are on one side. Guessing would be right about half of the independent rows of each class.
        error = float(np.sqrt((1 / sums.ranks.clusters).sum())) / 4
    elif error < _NO_SPREAD:
        shares = zip(sums.correct / sums.count, sums.ranks.clusters, strict=True)
        ends = [binomial_interval(float(share), max(1.0, rows)) for share, rows in shares]
        return metric_with_interval(value, *np.mean(ends, axis=0).tolist())
    top = 1.0 if name == "correct" else np.inf
    return metric_with_interval(
        value, value - BOOTSTRAP_HALF_WIDTH * error, value + BOOTSTRAP_HALF_WIDTH * error, (0.0, top)
    )


def metrics_over_repeats(repeats: list[ClassifierSums]) -> dict[str, Any] | None:
    """Return mean and standard deviation over repeats of four metrics; None for a single repeat.

    Args:
        repeats: one entry per repeat (fold assignment), each summed over the same rows.
    """
    if len(repeats) < 2:
        return None
    metrics = {
        "fidelity": [1 - sums.probability[1] / sums.count[1] for sums in repeats],
        "representativeness": [sums.probability[0] / sums.count[0] for sums in repeats],
        "auc": [auc(sums.ranks) for sums in repeats],
        "log_loss": [(sums.log_loss / sums.count).mean() for sums in repeats],
    }
    summary = {
        name: {"mean": float(np.mean(values)), "deviation": float(np.std(values, ddof=1))}
        for name, values in metrics.items()
    }
    return {"count": len(repeats), **summary}


_FIT_KEYS = (
    "strength",
    "repeats",
    "log_loss_by_strength",
    "epoch",
    "log_loss_by_epoch",
    "converged",
    "calibrated",
)
"""Keys that the ``classifier`` block of metrics.json copies from the fit's summary."""


def classifier_metrics(sums: ClassifierSums, head: str, fit: dict[str, Any]) -> dict[str, Any]:
    """Return the ``classifier`` block of metrics.json.

    Args:
        sums: over the generator's rows and the real rows.
        head: ``classifier.head`` of the configuration.
        fit: the fit's summary, as in the marker of the classify stage; without ``folds`` there was no fit, and
            each metric is null with a reason.
    """
    if not fit.get("folds"):
        return {
            "head": head,
            **dict.fromkeys(("strength", "brier", "ece")),
            **{name: metric_block(None, NO_CLASSIFIER) for name in ("auc", "accuracy", "log_loss")},
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
        # Expected calibration error (Guo et al. 2017), with equal weights for the classes.
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
        **{name: fit[name] for name in _FIT_KEYS if fit.get(name) is not None},
    }


def synthetic_probability(logit: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logistic function of logits of being synthetic; NaN stays NaN."""
    return 0.5 * (1.0 + np.tanh(0.5 * logit))
