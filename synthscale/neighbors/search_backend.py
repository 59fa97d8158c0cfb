"""Interface between the near-duplicate analysis and its search back ends: queries and the protocol.

Sets are numbered (codes): 0 is the real set, generators follow. Each row of a query set is searched among the rows
of a database set.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.copies import Copies
from synthscale.neighbors.distance import Floats, Rows
from synthscale.neighbors.edges import Codes, Edges
from synthscale.neighbors.groups import RowAccess
from synthscale.neighbors.join import JoinResult
from synthscale.neighbors.knn_search import KnnResult
from synthscale.statistics.jackknife import Blocks


class SetPair(NamedTuple):
    """Codes of a query set and of the database set that is searched."""

    query: int
    database: int


@dataclass(frozen=True)
class KnnQuery:
    """A k-NN search of the rows of one set in another (or the same) set.

    Attributes:
        query: code of the query set.
        database: code of the database set.
        k: number of neighbours.
        probes: number of cells of the database's index to probe.
    """

    query: int
    database: int
    k: int
    probes: int

    @property
    def pair(self) -> SetPair:
        """The two sets."""
        return SetPair(self.query, self.database)


class RadiusKey(NamedTuple):
    """A count, for each query row, of database rows within k-NN radii.

    Attributes:
        query: code of the query set.
        database: code of the database set.
        is_query_radius: True counts the database rows within the query's own radius, False the database rows whose
            radius contains the query.
    """

    query: int
    database: int
    is_query_radius: bool


class RadiusQuery(NamedTuple):
    """Options of a radius count.

    Attributes:
        probes: number of cells to probe.
        most: count at which a query's result saturates.
    """

    probes: int
    most: int


class SearchBackend(Protocol):
    """Searches the distinct rows (exact copies collapsed) of all sets, in one search space.

    Attributes:
        names: names of the sets; a set's code is its position.
        distinct: number of distinct rows of each set, by code.
        copies: exact copies within each set.
        copy_codes: (c,) set code of each row of ``copies``.
    """

    names: Sequence[str]
    distinct: Mapping[int, int]
    copies: Copies
    copy_codes: Codes

    def sample_distances(self, queries: Sequence[KnnQuery]) -> list[Floats]:
        """Return the k-NN distances, (m, k), of a fixed sample of each query set, to measure recall."""
        ...

    def search(self, queries: Sequence[KnnQuery], wanted: Collection[SetPair]) -> dict[SetPair, KnnResult]:
        """Search all rows and keep the results; return only the results of the wanted pairs."""
        ...

    def search_sample(self, pairs: Sequence[SetPair], counts: Mapping[int, int]) -> dict[SetPair, KnnResult]:
        """Return the exact nearest neighbour of each of ``counts[code]`` sampled rows of the query sets."""
        ...

    def count_radii(self, queries: Mapping[RadiusKey, RadiusQuery]) -> None:
        """Count rows within k-NN radii, for all rows, and keep the counts. `search` must have found the radii."""
        ...

    def sample_radii(self, queries: Mapping[RadiusKey, RadiusQuery]) -> dict[RadiusKey, NDArray[np.int32]]:
        """Return the radius counts, (m,), of the same sample as in `sample_distances`."""
        ...

    def end_searches(self) -> None:
        """Free the resources of the searches (index actors)."""
        ...

    def listed_edges(self, code: int, radius: float) -> Edges:
        """Return the edges that cleanlab Datalab would list in a generator's view."""
        ...

    def join(self, codes: Sequence[int], radius: float) -> tuple[JoinResult, dict[str, Any]]:
        """Join the distinct rows of some sets (see join.py); also return a summary of the join."""
        ...

    def rows_near_real(self, code: int, radius: float) -> Rows:
        """Return the generator's distinct rows whose nearest real row, as searched, is within the radius."""
        ...

    def share_deviations(self, codes: Sequence[int]) -> dict[int, dict[str, Blocks]]:
        """Return the deviations of each generator's precision, coverage, recall and density (prdc_variance.py)."""
        ...

    def lookup(self) -> RowAccess:
        """Return access to single rows, for diameters and clusters."""
        ...


def view_pairs(code: int) -> list[SetPair]:
    """Return the four pairs of sets in a generator's view, in the order of ``ViewSearches``."""
    return [SetPair(0, 0), SetPair(0, code), SetPair(code, 0), SetPair(code, code)]
