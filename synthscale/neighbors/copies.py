"""Exact copies: rows of a set with equal file contents or equal vectors stand for one another.

Only rows that have a copy are held, so a set without copies costs nothing whatever its size.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.distance import Rows
from synthscale.neighbors.edges import Codes, Edges
from synthscale.neighbors.groups import component_minimum

ContentKeys = NDArray[np.uint64]
"""Keys of rows, (n, 2): rows with equal keys are copies."""


def content_keys(parts: Iterable[bytes], name: str) -> ContentKeys:
    """Return a 128-bit key for each byte string of one set; equal strings of equal sets share it."""
    salt = hashlib.blake2b(name.encode(), digest_size=16).digest()
    digests = b"".join(hashlib.blake2b(part, digest_size=16, key=salt).digest() for part in parts)
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)


def vector_keys(vectors: NDArray[np.floating], name: str) -> ContentKeys:
    """Return a key for each vector, (n, d), that equal vectors of the set share; -0 and 0 are equal."""
    plain = vectors.astype(np.float32) + np.float32(0)
    return content_keys((vector.tobytes() for vector in plain), name)


def vector_hashes(vectors: NDArray[np.floating]) -> NDArray[np.uint64]:
    """Return a number for each vector, (n, d), by which samples are drawn: the rows with the smallest are taken.

    It depends on nothing but the vector: a sample does not change with the order of the rows or with other sets.
    """
    numbers: NDArray[np.uint64] = vector_keys(vectors, "sample")[:, 0]
    return numbers


def equal_pairs(keys: ContentKeys, rows: Rows) -> tuple[Rows, Rows]:
    """Return pairs of rows that connect all rows of equal keys: (p,) each."""
    order = np.lexsort((rows, keys[:, 1], keys[:, 0]))
    ordered = keys[order]
    same = (ordered[1:] == ordered[:-1]).all(axis=1)
    return rows[order[:-1][same]], rows[order[1:][same]]


@dataclass(frozen=True)
class Copies:
    """Rows that have an exact copy in their own set, ascending, and each one's representative: the smallest row.

    A representative is among the rows, as its own. Rows that are not here are distinct. All sets are together.
    """

    row: Rows
    representative: Rows

    def representatives(self, rows: Rows) -> Rows:
        """Return the representative of each row, itself where it has no copy."""
        at, known = self._at(rows)
        result = rows.copy()
        result[known] = self.representative[at[known]]
        return result

    def are_distinct(self, rows: Rows) -> NDArray[np.bool_]:
        """Tell which rows are their own representatives."""
        same: NDArray[np.bool_] = self.representatives(rows) == rows
        return same

    def counts(self, rows: Rows) -> NDArray[np.int64]:
        """Return how many rows equal each row, itself included."""
        at, known = self._at(rows)
        result = np.ones(len(rows), np.int64)
        _, own, count = np.unique(self.representative, return_inverse=True, return_counts=True)
        result[known] = count[own[at[known]]]
        return result

    def another(self, rows: Rows) -> Rows:
        """Return for each row another exact copy of it, or -1."""
        at, known = self._at(rows)
        result = np.full(len(rows), -1, np.int64)
        result[known] = self._other[at[known]]
        return result

    def _at(self, rows: Rows) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        if len(self.row) == 0:
            return np.zeros(len(rows), np.intp), np.zeros(len(rows), np.bool_)
        at = np.minimum(np.searchsorted(self.row, rows), len(self.row) - 1)
        return at, self.row[at] == rows

    @cached_property
    def _other(self) -> Rows:
        """For each held row another one: its representative, and for that the last of its copies."""
        own = self.row == self.representative
        last = np.zeros(len(self.row), np.int64)
        last[np.searchsorted(self.row, self.representative[~own])] = self.row[~own]
        return np.where(own, last, self.representative)

    def edges(self, codes: Codes) -> Edges:
        """Return one edge of distance 0 from each copy to its representative; codes: (n,), the rows' sets."""
        copy = self.row != self.representative
        return Edges(
            self.representative[copy], self.row[copy], np.zeros(int(copy.sum())), codes[copy], codes[copy]
        )

    def later(self, ids: Mapping[int, str]) -> Rows:
        """Return the rows that equal another of a smaller id: one of each kind is left out."""
        kept: dict[int, int] = {}
        for row, representative in zip(self.row.tolist(), self.representative.tolist(), strict=True):
            best = kept.setdefault(representative, row)
            if ids[row] < ids[best]:
                kept[representative] = row
        return np.setdiff1d(self.row, np.fromiter(kept.values(), np.int64, len(kept)))


def copies_from_pairs(pairs: Iterable[tuple[Rows, Rows]]) -> Copies:
    """Return the copies that pairs of equal rows make."""
    listed = list(pairs)
    left = np.concatenate([np.empty(0, np.int64), *(pair[0] for pair in listed)])
    right = np.concatenate([np.empty(0, np.int64), *(pair[1] for pair in listed)])
    rows = np.unique(np.concatenate([left, right]))
    return Copies(rows, component_minimum(rows, left, right))
