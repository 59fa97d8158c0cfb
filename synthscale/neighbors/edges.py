"""Edges between near-duplicate rows, with the set that each end belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.distance import Floats, Rows

Codes = NDArray[np.int32]
"""Numbers of sets: 0 is the real one, generators follow."""

KINDS = ("real-real", "real-synthetic", "synthetic-synthetic")


@dataclass(frozen=True)
class Edges:
    """Pairs of rows, their cosine distances and their sets: five arrays of equal length."""

    left: Rows
    right: Rows
    distance: Floats
    left_code: Codes
    right_code: Codes

    def __len__(self) -> int:
        return len(self.left)

    def __getitem__(self, chosen: NDArray[np.bool_] | NDArray[np.intp] | slice) -> "Edges":
        """Return some of the edges."""
        return Edges(*(getattr(self, f.name)[chosen] for f in fields(self)))

    @property
    def kind(self) -> NDArray[np.int64]:
        """Place in KINDS: how many ends are synthetic."""
        number: NDArray[np.int64] = (self.left_code != 0).astype(np.int64) + (self.right_code != 0)
        return number

    def of_view(self, code: int) -> "Edges":
        """Return the edges between real rows and those of one generator."""
        known = [(codes == 0) | (codes == code) for codes in (self.left_code, self.right_code)]
        return self[known[0] & known[1]]

    def ends(self) -> tuple[Rows, Codes]:
        """Return the rows that have an edge, ascending, and their sets."""
        rows, first = np.unique(np.concatenate([self.left, self.right]), return_index=True)
        return rows, np.concatenate([self.left_code, self.right_code])[first]


def empty_edges() -> Edges:
    """Return edges of which there are none."""
    rows, codes = np.empty(0, np.int64), np.empty(0, np.int32)
    return Edges(rows, rows, np.empty(0), codes, codes)


def distinct_edges(parts: Sequence[Edges]) -> Edges:
    """Return all edges once, left < right, ascending."""
    one = Edges(
        *(np.concatenate([getattr(part, f.name) for part in (empty_edges(), *parts)]) for f in fields(Edges))
    )
    turned = one.left > one.right
    left, right = np.where(turned, one.right, one.left), np.where(turned, one.left, one.right)
    codes = np.where(turned, one.right_code, one.left_code), np.where(turned, one.left_code, one.right_code)
    order = np.lexsort((one.distance, right, left))
    ordered = Edges(left, right, one.distance, *codes)[order]
    first = np.ones(len(ordered), np.bool_)
    first[1:] = (ordered.left[1:] != ordered.left[:-1]) | (ordered.right[1:] != ordered.right[:-1])
    return ordered[first]
