"""What the near-duplicate analysis asks of a search back end: queries, and the protocol that answers them.

Sets are numbered: 0 is the real set, generators follow. A query set is searched in a database set.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.copies import Copies
from synthscale.neighbors.distance import Floats
from synthscale.neighbors.edges import Codes, Edges
from synthscale.neighbors.groups import VectorLookup
from synthscale.neighbors.knn_search import KnnResult
from synthscale.statistics.jackknife import Blocks


class SetPair(NamedTuple):
    """A query set and the database set that it is searched in."""

    query: int
    database: int


@dataclass(frozen=True)
class KnnQuery:
    """A k-NN search of one set in another, probing so many cells of the database's index."""

    query: int
    database: int
    k: int
    probes: int

    @property
    def pair(self) -> SetPair:
        """The two sets."""
        return SetPair(self.query, self.database)


class RadiusKey(NamedTuple):
    """A count of rows within k-NN radii: of the query's own radius, or of the radii of the database's rows."""

    query: int
    database: int
    is_query_radius: bool


class RadiusQuery(NamedTuple):
    """How radii are searched: cells to probe, and the count at which a row's result saturates."""

    probes: int
    most: int


class SearchBackend(Protocol):
    """Searches the distinct rows (exact copies collapsed) of all sets.

    Attributes:
        names: of the sets; a set's code is its position.
        distinct: number of distinct rows of each set.
        copies: exact copies within each set.
        copy_codes: (c,) the set of each row of ``copies``.
    """

    names: Sequence[str]
    distinct: Mapping[int, int]
    copies: Copies
    copy_codes: Codes

    def sample_distances(self, queries: Sequence[KnnQuery]) -> list[Floats]:
        """Return the distances, (m, k), that a fixed sample of each query set finds."""
        ...

    def search(self, queries: Sequence[KnnQuery], wanted: Collection[SetPair]) -> dict[SetPair, KnnResult]:
        """Search all rows and keep the results; return those of the wanted pairs."""
        ...

    def search_sample(self, pairs: Sequence[SetPair], counts: Mapping[int, int]) -> dict[SetPair, KnnResult]:
        """Return the exact nearest neighbour of a sample of so many rows of each query set."""
        ...

    def count_radii(self, queries: Mapping[RadiusKey, RadiusQuery]) -> None:
        """Count rows within radii, for all rows, and keep the counts; the k-NN searches come first."""
        ...

    def sample_radii(self, queries: Mapping[RadiusKey, RadiusQuery]) -> dict[RadiusKey, NDArray[np.int32]]:
        """Return the counts, (m,), of the sample that `sample_distances` takes."""
        ...

    def end_searches(self) -> None:
        """Free what only searches need."""
        ...

    def listed_edges(self, code: int, radius: float) -> Edges:
        """Return the edges that cleanlab Datalab would list in a generator's view."""
        ...

    def join(self, codes: Sequence[int], radius: float) -> tuple[Edges, dict[str, Any]]:
        """Return all edges among the distinct rows of some sets, and how they were found."""
        ...

    def share_deviations(self, codes: Sequence[int]) -> dict[int, dict[str, Blocks]]:
        """Return how each generator's precision, coverage, recall and density vary (prdc_variance.py)."""
        ...

    def lookup(self) -> VectorLookup:
        """Return access to the vectors of single rows, for the diameters of groups."""
        ...


def view_pairs(code: int) -> list[SetPair]:
    """Return the four pairs of sets in a generator's view, in the order of ``ViewSearches``."""
    return [SetPair(0, 0), SetPair(0, code), SetPair(code, 0), SetPair(code, code)]
