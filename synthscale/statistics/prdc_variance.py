"""How far precision and coverage vary between data sets, from disjoint subsamples of both sets.

Rows do not enter these shares independently: one real row's radius holds many synthetic rows, and one synthetic
row lies in many radii. Measured, their variance is 0.9 to 7 times that of as many independent rows, and the
jackknife is no help (it is 2 to 5 times too large: a row is uncovered only if every row that covers it is left
out). But both shares stay as they are when both sets shrink together, so the spread of the shares of small
disjoint subsamples, each searched by itself, tells that of the whole (subsampling: Politis and Romano 1994). It
is given in units of a share's standard error over independent rows, the root of survey sampling's design effect.
"""

import numpy as np
from numpy.typing import NDArray

from synthscale.statistics.jackknife import Blocks
from synthscale.tables.id_hashes import Hashes, mix
from synthscale.tables.schemas import BLOCKS

_STREAM = 30_000
_PARTS = ((2000, 20), (600, 10), (0, 5))
"""Rows of the smaller set, and the parts that it is then cut into; fewer parts are cut in several ways."""
_FEWEST_ROWS = 8
_ROUNDING = 1e-12
SAMPLE_ROWS = 4096
"""Rows of the larger set that are looked at, at most."""


def sample_rows(real: int, synthetic: int) -> tuple[int, int]:
    """Return how many distinct rows of each set to sample: in the sets' proportion."""
    largest = max(real, synthetic)
    share = min(1.0, SAMPLE_ROWS / largest)
    return int(np.ceil(real * share)), int(np.ceil(synthetic * share))


def share_deviations(
    real: NDArray[np.float64], synthetic: NDArray[np.float64], keys: tuple[Hashes, Hashes], k: int
) -> dict[str, Blocks]:
    """Return the deviations of the shares, (BLOCKS,) each, whose squares add up to a design effect.

    Args:
        real: (n, d) distinct real rows of length 1, or a sample of them.
        synthetic: (m, d), of length 1, in the sets' proportion.
        keys: (n,) and (m,) hashes of the rows, by which they are dealt to subsamples.
        k: neighbours that make a radius.

    Returns:
        ``precision``, ``coverage``, ``recall`` and ``density``; without those that cannot be measured: too few
        rows, or shares of 0 or 1.
    """
    parts = next(parts for rows, parts in _PARTS if min(len(real), len(synthetic)) >= rows)
    if min(len(real), len(synthetic)) < parts * _FEWEST_ROWS:
        return {}
    shares = []
    for cut in range(BLOCKS // parts):
        own = [mix(key, _STREAM + cut) % np.uint64(parts) for key in keys]
        for part in range(parts):
            inside = [x[of == part] for x, of in zip((real, synthetic), own, strict=True)]
            if len(inside[0]) <= k or len(inside[1]) == 0:
                return {}
            shares.append(_shares(inside[0], inside[1], k))
    found = {}
    by_cut = np.array(shares).reshape(-1, parts, 4)
    rows = {"precision": len(synthetic), "coverage": len(real), "recall": len(real), "density": len(synthetic)}
    for i, (name, count) in enumerate(rows.items()):
        share = by_cut[..., i]
        mean = share.mean()
        # Density is no share: its deviations are relative to it.
        unit_variance = mean**2 if name == "density" else mean * (1 - mean)
        if not unit_variance > 0:
            continue
        away = (share - share.mean(1, keepdims=True)).ravel() / np.sqrt((parts - 1) * len(share))
        found[name] = away * np.sqrt(count / parts / unit_variance)
    return found


def _shares(real: NDArray[np.float64], synthetic: NDArray[np.float64], k: int) -> list[float]:
    """Precision, coverage, recall and density of unit rows; all pairs."""
    across = 1 - real @ synthetic.T
    # A copy of a row at the radius is inside whatever the rounding.
    inside = across <= _radius(real, k)[:, None] + _ROUNDING
    recalled = across <= _radius(synthetic, k)[None, :] + _ROUNDING
    shares = (inside.any(0), inside.any(1), recalled.any(1), inside.sum(0) / k)
    return [float(share.mean()) for share in shares]


def _radius(units: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """The distance of each row's k-th neighbour, or of the last there is."""
    if len(units) < 2:
        return np.full(len(units), -np.inf)
    own = 1 - units @ units.T
    np.fill_diagonal(own, np.inf)
    last = min(k, len(units) - 1) - 1
    return np.partition(own, last, axis=1)[:, last]
