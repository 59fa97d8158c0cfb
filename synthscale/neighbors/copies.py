"""Exact copies: group the rows of a set that have equal file contents or equal vectors.

Arrays in, arrays out. Only rows that have a copy are stored, so a set without copies needs no memory, whatever its
size.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.components import component_minimum
from synthscale.neighbors.distance import Rows
from synthscale.neighbors.edges import Codes, Edges
from synthscale.tables.id_hashes import Hashes

ContentKeys = NDArray[np.uint64]
"""128-bit hashes of file contents or vectors, (n, 2): rows with equal hashes are copies."""


def content_keys(parts: Iterable[bytes], name: str) -> ContentKeys:
    """Hash each byte string to 128 bits, (n, 2), with BLAKE2b.

    Args:
        parts: n byte strings.
        name: salt, such as the name of the set; equal strings have equal hashes only under the same salt.
    """
    salt = hashlib.blake2b(name.encode(), digest_size=16).digest()
    digests = b"".join(hashlib.blake2b(part, digest_size=16, key=salt).digest() for part in parts)
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)


def vector_keys(vectors: NDArray[np.floating], name: str) -> ContentKeys:
    """Hash each vector (n, d), as float32, to 128 bits, (n, 2), salted with ``name``; -0 and 0 are equal."""
    plain = vectors.astype(np.float32) + np.float32(0)
    return content_keys((vector.tobytes() for vector in plain), name)


def equal_pairs(keys: ContentKeys, rows: Rows) -> tuple[Rows, Rows]:
    """Return pairs (left, right), (p,) each, that link each row to the next one with an equal key."""
    order = np.lexsort((rows, keys[:, 1], keys[:, 0]))
    ordered = keys[order]
    same = (ordered[1:] == ordered[:-1]).all(axis=1)
    return rows[order[:-1][same]], rows[order[1:][same]]


@dataclass(frozen=True)
class Copies:
    """Rows that have an exact copy in their own set, over all sets together. Rows not listed have none.

    Attributes:
        row: (c,) row numbers, ascending; includes the representatives.
        representative: (c,) smallest row of each row's copies, itself included.
    """

    row: Rows
    representative: Rows

    def representatives(self, rows: Rows) -> Rows:
        """Return the representative of each row: (n,); the row itself if it has no copy."""
        position, is_listed = self._at(rows)
        result = rows.copy()
        result[is_listed] = self.representative[position[is_listed]]
        return result

    def are_distinct(self, rows: Rows) -> NDArray[np.bool_]:
        """Return, for each row, whether it is its own representative: (n,)."""
        same: NDArray[np.bool_] = self.representatives(rows) == rows
        return same

    def counts(self, rows: Rows) -> NDArray[np.int64]:
        """Return the number of copies of each row, itself included: (n,), at least 1."""
        position, is_listed = self._at(rows)
        result = np.ones(len(rows), np.int64)
        _, group, count = np.unique(self.representative, return_inverse=True, return_counts=True)
        result[is_listed] = count[group[position[is_listed]]]
        return result

    def another(self, rows: Rows) -> Rows:
        """Return, for each row, another row that is an exact copy of it, or -1: (n,)."""
        position, is_listed = self._at(rows)
        result = np.full(len(rows), -1, np.int64)
        result[is_listed] = self._other[position[is_listed]]
        return result

    def _at(self, rows: Rows) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Return the position of each row in ``self.row``, and whether it is listed: (n,) each."""
        if len(self.row) == 0:
            return np.zeros(len(rows), np.intp), np.zeros(len(rows), np.bool_)
        position = np.minimum(np.searchsorted(self.row, rows), len(self.row) - 1)
        return position, self.row[position] == rows

    @cached_property
    def _other(self) -> Rows:
        """For each listed row another copy: its representative or, for a representative, the last copy."""
        is_representative = self.row == self.representative
        last = np.zeros(len(self.row), np.int64)
        last[np.searchsorted(self.row, self.representative[~is_representative])] = self.row[~is_representative]
        return np.where(is_representative, last, self.representative)

    def edges(self, codes: Codes) -> Edges:
        """Return one edge of distance 0 from each copy to its representative.

        Args:
            codes: (c,) set code of each listed row.
        """
        copy = self.row != self.representative
        return Edges(
            self.representative[copy], self.row[copy], np.zeros(int(copy.sum())), codes[copy], codes[copy]
        )

    def smallest(self, hashes: Hashes) -> Hashes:
        """Return the hashes (n,) of rows 0 to n - 1, for representatives the smallest of their copies."""
        result = hashes.copy()
        np.minimum.at(result, self.representative, hashes[self.row])
        return result

    def redundant_rows(self, ids: Mapping[int, str]) -> Rows:
        """Return the rows that are copies of a row with a smaller id, ascending: all but one row of each group.

        Args:
            ids: id of each listed row.
        """
        first: dict[int, int] = {}
        for row, representative in zip(self.row.tolist(), self.representative.tolist(), strict=True):
            smallest = first.setdefault(representative, row)
            if ids[row] < ids[smallest]:
                first[representative] = row
        return np.setdiff1d(self.row, np.fromiter(first.values(), np.int64, len(first)))


def copies_from_pairs(pairs: Iterable[tuple[Rows, Rows]]) -> Copies:
    """Build `Copies` from pairs of equal rows: the connected components of the pairs."""
    all_pairs = list(pairs)
    left = np.concatenate([np.empty(0, np.int64), *(pair[0] for pair in all_pairs)])
    right = np.concatenate([np.empty(0, np.int64), *(pair[1] for pair in all_pairs)])
    rows = np.unique(np.concatenate([left, right]))
    return Copies(rows, component_minimum(rows, left, right))
