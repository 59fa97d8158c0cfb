"""Deals near-duplicate groups to folds: no group is split, and both classes are spread evenly.

Groups go in the order of a keyed hash of their smallest id, so the deal depends neither on row numbers nor on
other generators.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def deal_folds(keys: Sequence[str], is_real: NDArray[np.bool_], folds: int, seed: int) -> NDArray[np.int8] | None:
    """Return each row's fold, shape (n,), or None when no deal leaves both classes in every training part.

    Args:
        keys: the group key of each row: the smallest id among its group's members, or its own id.
        is_real: the class of each row, shape (n,).
        folds: k; lowered, down to 2, until every complement of a fold holds both classes.
        seed: enters the order of the groups.
    """
    index = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    unique, group = list(index), np.array([index[key] for key in keys], np.int64)
    real = np.bincount(group, weights=is_real, minlength=len(unique)).astype(np.float64)
    synthetic = np.bincount(group, weights=~is_real, minlength=len(unique)).astype(np.float64)
    salt = seed.to_bytes(8, "little")
    order = sorted(
        range(len(unique)), key=lambda i: hashlib.blake2b(unique[i].encode(), digest_size=16, key=salt).digest()
    )
    for k in range(folds, 1, -1):
        fold_of_group = _deal(order, real, synthetic, k)
        fold: NDArray[np.int8] = fold_of_group[group]
        if all(is_real[fold != f].any() and (~is_real[fold != f]).any() for f in range(k)):
            return fold
    return None


def _deal(order: list[int], real: NDArray[np.float64], synthetic: NDArray[np.float64], k: int) -> NDArray[np.int8]:
    """Give each group to the fold where it adds least to the spread of the class counts."""
    # Sum over folds of (r_f / R)^2 + (s_f / S)^2 grows by this inner product (and a constant) with each choice.
    share_real, share_synthetic = real / max(real.sum(), 1) ** 2, synthetic / max(synthetic.sum(), 1) ** 2
    load_real, load_synthetic = [0.0] * k, [0.0] * k
    fold_of_group = np.zeros(len(real), np.int8)
    for i in order:
        a, b = share_real[i], share_synthetic[i]
        cost = [a * load_real[f] + b * load_synthetic[f] for f in range(k)]
        best = cost.index(min(cost))
        fold_of_group[i] = best
        load_real[best] += real[i]
        load_synthetic[best] += synthetic[i]
    return fold_of_group
