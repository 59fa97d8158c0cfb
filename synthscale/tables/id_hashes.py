"""Numbers that stand for ids: what is drawn, dealt or weighted by them depends on no row number and no other row.

A key is 64 bits of BLAKE2b of an id. `mixed` turns keys into fresh random numbers (splitmix64, Steele et al.
2014), one stream for each number, so that folds, samples, batches and bootstrap weights need no generator that is
passed from row to row.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]


def hash_ids(ids: Iterable[str]) -> Hashes:
    """Return the key of each id: (n,)."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in ids)
    return np.frombuffer(digests, np.uint64)


def mix(keys: Hashes, stream: int) -> Hashes:
    """Return a random 64-bit number for each key, the same for the same key and stream; shape as the keys."""
    with np.errstate(over="ignore"):
        value = keys + np.uint64((stream + 1) * 0x9E3779B97F4A7C15 % 2**64)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        result: Hashes = value ^ (value >> np.uint64(31))
    return result


def hash_groups(
    keys: Hashes, rows: NDArray[np.int64], groups: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> Hashes:
    """Return the key of each row's group: the smallest key among its members, its own where it has no group.

    Args:
        keys: (n,) of the rows.
        rows: (n,) row numbers, ascending.
        groups: member rows and the group of each.
    """
    result = keys.copy()
    at = np.searchsorted(rows, groups[0])
    names, own = np.unique(groups[1], return_inverse=True)
    smallest = np.full(len(names), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, own, keys[at])
    result[at] = smallest[own]
    return result


def sampling_threshold(wanted: int, population: int) -> np.uint64:
    """Return the number below which about ``wanted`` of ``population`` draws lie."""
    if wanted >= population:
        return np.uint64(2**64 - 1)
    return np.uint64(int(wanted / population * (2**64 - 1)))
