"""Utility of synthetic images for training: how well a label classifier trained on them works on real images.

Range: balanced accuracies in 0..1, chance 1 / labels; their ratio is 1 if synthetic images are as good for
training as real ones, and may exceed 1. "Train on synthetic, test on real" (Esteban et al. 2017), as in the
classification accuracy score (Ravuri and Vinyals 2019), compared with the out-of-fold accuracy of a classifier
trained on real images, on the same rows.

Formula: the classifier is multi-class ridge regression on standardised embeddings, in closed form: targets +1 for
a row's own label and -1 for the others, with equal weight of each label in means, deviations and the mean loss.
The ridge is d / n, the same prior for sets of all sizes. A fixed ridge of 1e-3 nearly interpolates where n is
about d, and more rows made it worse (CIFAR-10 in 1,280 dimensions: 0.46 with 200 rows, 0.41 with 800; with d / n
0.52 and 0.59).

At scale: the metric is computed on a sample of `embedding_families.SAMPLE_ROWS` rows of each set; a fit passes
over it twice in blocks and holds d^2 numbers. Accuracies grow with n, so the two samples should be about equal.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve
from scipy.sparse import csr_array

from synthscale.tables.id_hashes import Hashes

LEAST_ROWS = 5
"""A label with fewer rows than this in either set is left out."""
_BLOCK_ROWS = 4096
"""Rows converted to float64 at a time."""
_CONSTANT = 1e-6
"""A dimension whose deviation is below this share of its mean is ignored: it may be float32 rounding."""

Labels = Sequence[Any] | NDArray[Any]
"""(n,) strings or numbers; None or NaN where a row has no label."""


@dataclass(frozen=True)
class Utility:
    """Balanced accuracies on real rows of label classifiers trained on either set.

    Standard errors are over the sampling of clusters of near-duplicate real test rows, with the fitted classifiers
    held fixed.

    Attributes:
        real: balanced accuracy (mean over labels of the recall) when trained on other real rows, out of fold.
        synthetic: balanced accuracy on the same rows when trained on all synthetic rows.
        ratio: synthetic / real; NaN where real is 0.
        real_error: standard error of ``real``.
        synthetic_error: standard error of ``synthetic``.
        difference_error: standard error of synthetic - real, paired over rows.
        ratio_error: standard error of the ratio, paired over rows, by linearisation.
        labels: labels with enough rows in both sets, sorted.
        rows: number of real test rows.
        clusters: number of their clusters of near-duplicates.
        effective_rows: effective sample size, at most ``clusters`` (Kish: (sum c)^2 / sum c^2 over their sizes c).
        synthetic_rows: number of synthetic training rows.
    """

    real: float
    synthetic: float
    ratio: float
    real_error: float
    synthetic_error: float
    difference_error: float
    ratio_error: float
    labels: tuple[str, ...]
    rows: int
    clusters: int
    effective_rows: float
    synthetic_rows: int

    @property
    def difference(self) -> float:
        """Difference ``synthetic`` - ``real``, -1 to 1."""
        return self.synthetic - self.real

    @property
    def chance(self) -> float:
        """Balanced accuracy of random guesses."""
        return 1 / len(self.labels)


def utility(
    real: NDArray[np.floating],
    real_labels: Labels | None,
    real_fold: NDArray[np.integer],
    synthetic: NDArray[np.floating],
    synthetic_labels: Labels | None,
    real_cluster: Hashes | None = None,
) -> Utility | str:
    """Return the accuracies of label classifiers trained on either set, or the reason why there are none.

    Labels with fewer than `LEAST_ROWS` rows in a set, or with real rows in one fold only, are left out. The result
    does not depend on the order of rows.

    Args:
        real: (n, d) embeddings of any float type.
        real_labels: (n,) labels, or None.
        real_fold: (n,) fold of each row; near-duplicates share a fold, so no row is predicted from its copy.
        synthetic: (m, d) embeddings.
        synthetic_labels: (m,) labels, or None.
        real_cluster: (n,) hash of each row's cluster of near-duplicates, for errors; None: each row is its own.
    """
    texts = [_texts(labels) for labels in (real_labels, synthetic_labels)]
    for name, set_texts in zip(("real", "synthetic"), texts, strict=True):
        if not any(text is not None for text in set_texts):
            return f"no labels in the {name} set"
    names = _shared_labels(texts[0], real_fold, texts[1])
    if len(names) < 2:
        return f"fewer than two labels with {LEAST_ROWS} rows in each set and real rows in two folds"
    code, synthetic_code = (_codes(set_texts, names) for set_texts in texts)
    test_rows, synthetic_rows = np.flatnonzero(code >= 0), np.flatnonzero(synthetic_code >= 0)
    truth, fold = code[test_rows], real_fold[test_rows]
    by_real = np.empty_like(truth)
    for number in np.unique(fold):
        in_fold = fold == number
        head = _fit(real, test_rows[~in_fold], truth[~in_fold])
        by_real[in_fold] = head.predict(real, test_rows[in_fold])
    by_synthetic = _fit(synthetic, synthetic_rows, synthetic_code[synthetic_rows]).predict(real, test_rows)
    cluster = np.arange(len(code), dtype=np.uint64) if real_cluster is None else real_cluster
    strata = _Strata.of(truth, cluster[test_rows])
    return _compared(by_real == truth, by_synthetic == truth, strata, tuple(names), len(synthetic_rows))


def _texts(labels: Labels | None) -> list[str | None]:
    if labels is None:
        return []
    # pandas marks missing strings with NaN, which is the only value unequal to itself.
    return [None if value is None or value != value else str(value) for value in labels]


def _shared_labels(real: list[str | None], fold: NDArray[np.integer], synthetic: list[str | None]) -> list[str]:
    """Return the labels with enough rows in both sets and real rows in two folds, sorted."""
    counts = Counter(real), Counter(synthetic)
    folds = Counter(text for text, _ in set(zip(real, fold.tolist(), strict=True)))
    known = {text for text in real if text is not None}
    return sorted(t for t in known if min(counts[0][t], counts[1][t]) >= LEAST_ROWS and folds[t] > 1)


def _codes(texts: list[str | None], names: list[str]) -> NDArray[np.int64]:
    """Return the index of each row's label in ``names``, -1 for rows that are not used: (n,)."""
    index = {name: i for i, name in enumerate(names)}
    return np.array([-1 if text is None else index.get(text, -1) for text in texts], np.int64)


@dataclass(frozen=True)
class _Head:
    """Linear classifier: predicts the label whose direction, a column of (d, labels), has the largest product."""

    centre: NDArray[np.float64]
    directions: NDArray[np.float64]

    def predict(self, vectors: NDArray[np.floating], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the predicted label codes of the given rows of (n, d)."""
        codes = [((vectors[b] - self.centre) @ self.directions).argmax(1) for b in _blocks(rows)]
        return np.concatenate(codes)


def _fit(vectors: NDArray[np.floating], rows: NDArray[np.int64], code: NDArray[np.int64]) -> _Head:
    """Fit a head to the given rows of (n, d); every code 0..labels-1 must occur."""
    counts = np.bincount(code)
    labels, d = len(counts), vectors.shape[1]
    sums = np.zeros((labels, d))
    for block, codes in zip(_blocks(rows), _blocks(code), strict=True):
        member = csr_array((np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(labels, len(codes)))
        sums += member @ vectors[block].astype(np.float64)
    means = sums / counts[:, None]
    centre = means.mean(axis=0)
    weight = 1 / (labels * counts)
    covariance = np.zeros((d, d))
    for block, codes in zip(_blocks(rows), _blocks(code), strict=True):
        z = (vectors[block] - centre) * np.sqrt(weight[codes])[:, None]
        covariance += z.T @ z
    deviation = np.sqrt(covariance.diagonal())
    # A dimension that is constant here may vary in the test rows: dividing by rounding error would amplify it.
    scale = np.divide(1.0, deviation, out=np.zeros(d), where=deviation > _CONSTANT * np.abs(centre))
    independent = 1 / float((counts * weight**2).sum())
    # The product of the weighted targets with the rows is 2 / labels times the label means. The factor does not
    # change the argmax, nor do the intercepts, which are equal for all labels.
    system = covariance * scale * scale[:, None]
    system.flat[:: d + 1] += d / independent
    directions = solve(system, ((means - centre) * scale).T, assume_a="pos", overwrite_a=True)
    return _Head(centre, directions * scale[:, None])


def _blocks(values: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(values), _BLOCK_ROWS):
        yield values[start : start + _BLOCK_ROWS]


@dataclass(frozen=True)
class _Strata:
    """Label codes (n,) and cluster numbers (n,) of the test rows."""

    code: NDArray[np.int64]
    cluster: NDArray[np.int64]

    @classmethod
    def of(cls, code: NDArray[np.int64], cluster: Hashes) -> "_Strata":
        return cls(code, np.unique(cluster, return_inverse=True)[1])

    def mean(self, values: NDArray[np.float64]) -> tuple[float, float]:
        """Return the mean over labels of the mean of values (n,), and its standard error over clusters.

        The error is that of a stratified mean with clusters as units; a cluster may span labels.
        """
        counts = np.bincount(self.code)
        means = np.bincount(self.code, values) / counts
        # The part of each row in the error of the balanced mean, corrected for the mean of its label.
        influence = (values - means[self.code]) / np.sqrt(counts * (counts - 1.0))[self.code] / len(counts)
        return float(means.mean()), float(np.sqrt(np.square(np.bincount(self.cluster, influence)).sum()))


def _compared(
    by_real: NDArray[np.bool_],
    by_synthetic: NDArray[np.bool_],
    strata: _Strata,
    labels: tuple[str, ...],
    synthetic_rows: int,
) -> Utility:
    """Return accuracies and errors from whether each test row (n,) was predicted correctly."""
    real_hits, synthetic_hits = by_real.astype(np.float64), by_synthetic.astype(np.float64)
    (real, real_error), (synthetic, synthetic_error) = (strata.mean(hits) for hits in (real_hits, synthetic_hits))
    ratio = synthetic / real if real > 0 else math.nan
    sizes = np.bincount(strata.cluster).astype(np.float64)
    return Utility(
        real=real,
        synthetic=synthetic,
        ratio=ratio,
        real_error=real_error,
        synthetic_error=synthetic_error,
        difference_error=strata.mean(synthetic_hits - real_hits)[1],
        ratio_error=strata.mean(synthetic_hits - ratio * real_hits)[1] / real if real > 0 else math.nan,
        labels=labels,
        rows=len(real_hits),
        clusters=len(sizes),
        effective_rows=float(sizes.sum() ** 2 / np.square(sizes).sum()),
        synthetic_rows=synthetic_rows,
    )
