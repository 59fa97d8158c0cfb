"""Deals near-duplicate groups to folds: no group is split, and both classes are spread evenly.

Groups go in the order of a seeded hash of their keys, so the deal depends neither on row numbers nor on other
generators: groups of several rows first, each to the fold where it adds least to the spread of the class counts;
then single rows fill the folds up evenly.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

from synthscale.tables.id_hashes import Hashes, mix

_FEW_GROUPS = 10
"""So many groups are dealt to two folds by trying all ways, where dealing them in turn fails."""


def assign_folds(keys: Hashes, is_real: NDArray[np.bool_], folds: int, seed: int) -> NDArray[np.int8] | None:
    """Return each row's fold, shape (n,), or None when no deal leaves both classes in every training part.

    Args:
        keys: the key of each row's group (`keys.group_keys`), shape (n,).
        is_real: the class of each row, shape (n,).
        folds: k; lowered, down to 2, until every complement of a fold holds both classes.
        seed: enters the order of the groups.
    """
    unique, group, size = np.unique(keys, return_inverse=True, return_counts=True)
    kinds = (is_real.astype(np.float64), (~is_real).astype(np.float64))
    counts = np.stack([np.bincount(group, kind, len(unique)) for kind in kinds]).astype(np.float64)
    order = np.lexsort((unique, mix(mix(unique, 0), seed)))
    several, single = order[size[order] > 1], order[size[order] == 1]
    for k in range(folds, 1, -1):
        fold_of_group = np.zeros(len(unique), np.int8)
        load = _deal_several(several, counts, k, fold_of_group)
        for kind in (0, 1):
            own = single[counts[kind, single] > 0]
            fold_of_group[own] = _fill_up(load[kind], len(own))
        fold: NDArray[np.int8] = fold_of_group[group]
        inside = np.stack([np.bincount(fold[own], minlength=k) for own in (is_real, ~is_real)])
        if (inside < inside.sum(1, keepdims=True)).all():
            return fold
    if 1 < len(unique) <= _FEW_GROUPS:
        halves = _two_halves(order, counts)
        return None if halves is None else halves[group]
    return None


def _two_halves(order: NDArray[np.int64], counts: NDArray[np.float64]) -> NDArray[np.int8] | None:
    """Return the fold of each of a few groups in the most even of all deals to two folds with both classes."""
    best, least = None, np.inf
    for choice in itertools.product((0, 1), repeat=len(order) - 1):
        fold = np.zeros(len(order), np.int8)
        fold[order[1:]] = choice
        share = counts[:, fold == 1].sum(1) / np.maximum(counts.sum(1), 1)
        unevenness = float(np.square(share - 0.5).sum())
        if (share > 0).all() and (share < 1).all() and unevenness < least:
            best, least = fold, unevenness
    return best


def _deal_several(
    order: NDArray[np.int64], counts: NDArray[np.float64], k: int, fold_of_group: NDArray[np.int8]
) -> NDArray[np.float64]:
    """Deal groups in order, by setting their folds; return the rows in each fold by class: (2, k)."""
    # The sum over folds of (r_f / R)^2 + (s_f / S)^2 grows by this product (and a constant) with each choice.
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1) ** 2
    real, synthetic = [0.0] * k, [0.0] * k
    own_share, own_counts = share[:, order].T.tolist(), counts[:, order].T.tolist()
    for i, (a, b), (r, s) in zip(order.tolist(), own_share, own_counts, strict=True):
        cost = [a * real[f] + b * synthetic[f] for f in range(k)]
        best = cost.index(min(cost))
        fold_of_group[i] = best
        real[best] += r
        synthetic[best] += s
    return np.array([real, synthetic])


def _fill_up(load: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Return the folds of n single rows, each given to the emptiest fold, the first of them on ties."""
    k = len(load)
    # The last row comes to lie no higher than if all folds were level in the end.
    height = min(n, int(np.ceil((n + load.sum()) / k - load.min())) + 1)
    places = load[:, None] + np.arange(height)
    fold = np.repeat(np.arange(k), height)
    chosen: NDArray[np.int64] = fold[np.lexsort((fold, places.ravel()))[:n]]
    return chosen
