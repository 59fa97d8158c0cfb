"""Edges between near-duplicate rows, as parallel arrays with the set code of each end. Arrays in, arrays out."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.distance import Floats, Rows

Codes = NDArray[np.int32]
"""Set codes: 0 is the real set, generators follow from 1."""

KINDS = ("real-real", "real-synthetic", "synthetic-synthetic")
"""Kinds of edges, indexed by the number of synthetic ends."""


@dataclass(frozen=True)
class Edges:
    """Edge list: e pairs of rows with their cosine distances.

    Attributes:
        left: (e,) row number of one end.
        right: (e,) row number of the other end.
        distance: (e,) cosine distance.
        left_code: (e,) set code of ``left``.
        right_code: (e,) set code of ``right``.
    """

    left: Rows
    right: Rows
    distance: Floats
    left_code: Codes
    right_code: Codes

    def __len__(self) -> int:
        return len(self.left)

    def __getitem__(self, chosen: NDArray[np.bool_] | NDArray[np.intp] | slice) -> "Edges":
        """Return the edges that a mask, indices or a slice select."""
        return Edges(*(getattr(self, f.name)[chosen] for f in fields(self)))

    @property
    def kind(self) -> NDArray[np.int64]:
        """Index into `KINDS`, (e,): the number of synthetic ends."""
        number: NDArray[np.int64] = (self.left_code != 0).astype(np.int64) + (self.right_code != 0)
        return number

    def of_view(self, code: int) -> "Edges":
        """Return the edges whose ends are real rows or rows of one generator (by set code)."""
        member = [(codes == 0) | (codes == code) for codes in (self.left_code, self.right_code)]
        return self[member[0] & member[1]]

    def ends(self) -> tuple[Rows, Codes]:
        """Return the rows that have an edge, ascending, and their set codes: (n,) each."""
        rows, first = np.unique(np.concatenate([self.left, self.right]), return_index=True)
        return rows, np.concatenate([self.left_code, self.right_code])[first]


def empty_edges() -> Edges:
    """Return an empty edge list."""
    rows, codes = np.empty(0, np.int64), np.empty(0, np.int32)
    return Edges(rows, rows, np.empty(0), codes, codes)


def distinct_edges(parts: Sequence[Edges]) -> Edges:
    """Concatenate edge lists and remove duplicates; left < right, sorted by (left, right)."""
    merged = Edges(
        *(np.concatenate([getattr(part, f.name) for part in (empty_edges(), *parts)]) for f in fields(Edges))
    )
    is_reversed = merged.left > merged.right
    left, right = (
        np.where(is_reversed, merged.right, merged.left),
        np.where(is_reversed, merged.left, merged.right),
    )
    codes = (
        np.where(is_reversed, merged.right_code, merged.left_code),
        np.where(is_reversed, merged.left_code, merged.right_code),
    )
    order = np.lexsort((merged.distance, right, left))
    ordered = Edges(left, right, merged.distance, *codes)[order]
    is_first = np.ones(len(ordered), np.bool_)
    is_first[1:] = (ordered.left[1:] != ordered.left[:-1]) | (ordered.right[1:] != ordered.right[:-1])
    return ordered[is_first]
