"""KID as torch-fidelity computes it: the unbiased MMD of random subsets, re-stated from the published formula.

Binkowski et al. 2018, section 4 and appendix D: k(x, y) = (x.y / d + 1)^3; subsets of rows drawn without
replacement from either set, whatever rows resemble each other; the mean over subsets. Nothing here is shared with
the package.
"""

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def polynomial_mmd(x: Matrix, y: Matrix) -> float:
    """The unbiased estimator of the squared MMD (Gretton et al. 2012, lemma 6) over all pairs of rows."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    n, m, d = len(x), len(y), x.shape[1]
    xx, yy, xy = ((a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    return float(
        (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1)) - 2 * xy.mean()
    )


def subset_kid(x: Matrix, y: Matrix, subsets: int, size: int, rng: np.random.Generator) -> tuple[float, float]:
    """Mean over random subsets, and the standard error of that mean as an estimate of KID over all rows."""
    values = [
        polynomial_mmd(x[rng.choice(len(x), size, replace=False)], y[rng.choice(len(y), size, replace=False)])
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(subsets))
