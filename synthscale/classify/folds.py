"""Assign near-duplicate groups to folds: no group is split, and both classes are spread evenly.

Reads hashes and classes of rows, returns fold numbers; `training.py` calls it once for each repeat. Groups are
visited in the order of a seeded hash, so the assignment depends neither on row numbers nor on other generators:
first groups of several rows, each to the fold where it adds least to the spread of the class counts (greedy), then
single rows, which fill the folds up evenly.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

from synthscale.tables.id_hashes import Hashes, mix

_FEW_GROUPS = 10
"""Up to this many groups, all 2^(n-1) assignments to two folds are tried where the greedy one fails: 512 for ten.
Each further group would double that number."""


def assign_folds(keys: Hashes, is_real: NDArray[np.bool_], folds: int, seed: int) -> NDArray[np.int8] | None:
    """Return the fold of each row: (n,) int8, or None if no assignment leaves both classes in every training part.

    Args:
        keys: (n,) the hash of each row's near-duplicate group (`id_hashes.hash_groups`).
        is_real: (n,) the class of each row.
        folds: k; lowered, down to 2, until the rows outside every fold include both classes.
        seed: of the order in which groups are assigned.
    """
    unique, group, size = np.unique(keys, return_inverse=True, return_counts=True)
    kinds = (is_real.astype(np.float64), (~is_real).astype(np.float64))
    counts = np.stack([np.bincount(group, kind, len(unique)) for kind in kinds]).astype(np.float64)
    order = np.lexsort((unique, mix(mix(unique, 0), seed)))
    several, single = order[size[order] > 1], order[size[order] == 1]
    for k in range(folds, 1, -1):
        fold_of_group = np.zeros(len(unique), np.int8)
        load = _assign_greedily(several, counts, k, fold_of_group)
        for kind in (0, 1):
            of_class = single[counts[kind, single] > 0]
            fold_of_group[of_class] = _level_folds(load[kind], len(of_class))
        fold: NDArray[np.int8] = fold_of_group[group]
        inside = np.stack([np.bincount(fold[of_class], minlength=k) for of_class in (is_real, ~is_real)])
        if (inside < inside.sum(1, keepdims=True)).all():
            return fold
    if 1 < len(unique) <= _FEW_GROUPS:
        halves = _best_two_folds(order, counts)
        return None if halves is None else halves[group]
    return None


def _best_two_folds(order: NDArray[np.int64], counts: NDArray[np.float64]) -> NDArray[np.int8] | None:
    """Return the most even assignment of a few groups to two folds with both classes, by exhaustive search."""
    best, least = None, np.inf
    for choice in itertools.product((0, 1), repeat=len(order) - 1):
        fold = np.zeros(len(order), np.int8)
        fold[order[1:]] = choice
        share = counts[:, fold == 1].sum(1) / np.maximum(counts.sum(1), 1)
        unevenness = float(np.square(share - 0.5).sum())
        if (share > 0).all() and (share < 1).all() and unevenness < least:
            best, least = fold, unevenness
    return best


def _assign_greedily(
    order: NDArray[np.int64], counts: NDArray[np.float64], k: int, fold_of_group: NDArray[np.int8]
) -> NDArray[np.float64]:
    """Set the folds of groups, one after another; return the number of rows in each fold by class: (2, k)."""
    # The sum over folds of (r_f / R)^2 + (s_f / S)^2 grows by this product (and a constant) with each choice.
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1) ** 2
    real, synthetic = [0.0] * k, [0.0] * k
    group_share, group_counts = share[:, order].T.tolist(), counts[:, order].T.tolist()
    for i, (a, b), (r, s) in zip(order.tolist(), group_share, group_counts, strict=True):
        cost = [a * real[f] + b * synthetic[f] for f in range(k)]
        best = cost.index(min(cost))
        fold_of_group[i] = best
        real[best] += r
        synthetic[best] += s
    return np.array([real, synthetic])


def _level_folds(load: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Return the folds of n single rows, each assigned to the emptiest fold, the lowest-numbered on ties."""
    k = len(load)
    # No fold gets more rows than the emptiest one needs to reach the level of equally full folds.
    height = min(n, int(np.ceil((n + load.sum()) / k - load.min())) + 1)
    level = load[:, None] + np.arange(height)
    fold = np.repeat(np.arange(k), height)
    chosen: NDArray[np.int64] = fold[np.lexsort((fold, level.ravel()))[:n]]
    return chosen
