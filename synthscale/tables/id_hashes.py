"""Stable 64-bit hashes of ids, used for sampling, fold assignment, mini-batches and bootstrap weights.

An id is hashed to 64 bits with BLAKE2b. `mix` turns a hash into pseudo-random numbers (splitmix64, Steele et al.
2014), one per stream number. A row's random numbers therefore depend on its id and the stream only: not on its row
number, its shard or any other row, and tasks pass no random state to each other. Modules that draw independently
of one another use different stream numbers.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]


def hash_ids(ids: Iterable[str]) -> Hashes:
    """Return the 64-bit BLAKE2b hash of each id (UTF-8): (n,) uint64."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in ids)
    return np.frombuffer(digests, np.uint64)


def mix(hashes: Hashes, stream: int) -> Hashes:
    """Return a pseudo-random 64-bit number for each hash, the same whenever hash and stream are the same.

    Args:
        hashes: uint64 of any shape.
        stream: number of the stream, 0 or more: the result is output ``stream`` of splitmix64 seeded with the
            hash.

    Returns:
        uint64, uniform over 0..2^64-1, of the shape of ``hashes``. Different hashes give different numbers.
    """
    with np.errstate(over="ignore"):
        value = hashes + np.uint64((stream + 1) * 0x9E3779B97F4A7C15 % 2**64)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        result: Hashes = value ^ (value >> np.uint64(31))
    return result


def hash_groups(
    hashes: Hashes, rows: NDArray[np.int64], groups: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> Hashes:
    """Return the hash of each row's group: the smallest hash of the group's members.

    Args:
        hashes: (n,) hashes of the rows' ids.
        rows: (n,) row numbers, ascending.
        groups: row number and group number of each group member, (m,) each; every member is in ``rows``.

    Returns:
        (n,) uint64; a row without a group keeps its own hash.
    """
    result = hashes.copy()
    positions = np.searchsorted(rows, groups[0])
    numbers, index = np.unique(groups[1], return_inverse=True)
    smallest = np.full(len(numbers), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, index, hashes[positions])
    result[positions] = smallest[index]
    return result


def sampling_threshold(wanted: int, population: int) -> np.uint64:
    """Return the threshold for sampling about ``wanted`` of ``population`` rows by hash.

    Rows whose mixed hash is at most the threshold form a sample of that expected size. If ``wanted`` is not
    smaller than ``population``, the threshold is the largest 64-bit number, so every row is in the sample.
    """
    if wanted >= population:
        return np.uint64(2**64 - 1)
    return np.uint64(int(wanted / population * (2**64 - 1)))
