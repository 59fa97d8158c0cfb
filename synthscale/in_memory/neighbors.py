"""The near-duplicate analysis of vectors in memory: the back end of neighbors/analysis.py without Ray."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthscale.config import NeighborsConfig
from synthscale.neighbors.analysis import SearchSummary, analyse_views, search_views, view_neighbors
from synthscale.neighbors.cell_index import CellIndex, cells_for, index_sample_size, train_index
from synthscale.neighbors.cells import JoinSample, plan_join, sample_size
from synthscale.neighbors.copies import Copies, vector_hashes
from synthscale.neighbors.distance import Floats, Rows, distances_within, norms
from synthscale.neighbors.edges import Codes, Edges
from synthscale.neighbors.flat_index import FlatIndex
from synthscale.neighbors.groups import VectorLookup
from synthscale.neighbors.join import join_all
from synthscale.neighbors.knn_search import (
    ALL_CELLS,
    FLAT_ROWS,
    SAMPLED_QUERIES,
    Index,
    KnnResult,
    count_radii_containing,
    count_within_radius,
    search_knn,
)
from synthscale.neighbors.radius import ViewSearches
from synthscale.neighbors.search_backend import KnnQuery, RadiusKey, RadiusQuery, SetPair, view_pairs
from synthscale.neighbors.view import (
    K,
    Nearest,
    NeighborView,
    RadiusCounts,
    ViewNeighbors,
    listed_edges,
    nearest_rows,
    prdc_deviations,
)
from synthscale.statistics.jackknife import Blocks
from synthscale.statistics.prdc_variance import sample_rows
from synthscale.tables.schemas import REAL

_QUERIES = 32768
"""Maximum number of queries of one search call; bounds the memory of its result."""
_NO_COPIES = Copies(np.empty(0, np.int64), np.empty(0, np.int64))


@dataclass(frozen=True)
class Analysis:
    """Result of `analyse_vectors`.

    Attributes:
        edges: near-duplicate pairs of all views, each once.
        views: radius and groups of each generator's view.
        nearest: nearest neighbours of the rows of each view, by generator.
    """

    edges: Edges
    views: list[NeighborView]
    nearest: dict[str, Nearest]


def analyse_vectors(
    vectors: NDArray[np.float32],
    sets: Mapping[str, Rows],
    copies: Copies,
    config: NeighborsConfig,
    *,
    counts: bool = False,
) -> Analysis:
    """Find near-duplicates, nearest rows and the k-NN indicators of precision and coverage.

    Args:
        vectors: (n, d), none zero; a row number is an index into it.
        sets: ascending rows of ``real`` and of each generator.
        copies: exact copies within each set.
        config: the section ``neighbors``.
        counts: also count what density and recall need.
    """
    backend = MemoryBackend(vectors, sets, copies)
    analysis = analyse_views(
        backend,
        config,
        {code: len(sets[name]) for code, name in enumerate(backend.names)},
        counts_manifold=counts,
    )
    nearest = {
        view.generator: nearest_rows(
            backend.neighbors(code, analysis.searches), copies, sets[REAL], sets[view.generator]
        )
        for code, view in analysis.views.items()
    }
    return Analysis(analysis.edges, list(analysis.views.values()), nearest)


def search_two_sets(sets: Mapping[str, NDArray[np.float32]]) -> ViewNeighbors:
    """Run the searches of precision, recall, density and coverage for ``real`` and one other set of vectors."""
    vectors, rows, start = np.concatenate(list(sets.values())), {}, 0
    for name, own in sets.items():
        rows[name] = np.arange(start, start + len(own))
        start += len(own)
    backend = MemoryBackend(vectors, rows, _NO_COPIES)
    return backend.neighbors(1, search_views(backend, NeighborsConfig(), (), counts_manifold=True))


@dataclass(frozen=True)
class MemoryLookup:
    """Implements `groups.VectorLookup` on an array of vectors, (n, d), and their norms, (n,)."""

    vectors: NDArray[np.float32]
    norms: Floats

    def distances(self, a: Rows, b: Rows) -> Floats:
        """See `groups.VectorLookup`."""
        return distances_within(self.vectors, self.norms, a, b)

    def row_hashes(self, rows: Rows) -> NDArray[np.uint64]:
        """See `groups.VectorLookup`."""
        return vector_hashes(self.vectors[rows])


class MemoryBackend:
    """Implements `SearchBackend` in this process, with one index per set."""

    def __init__(self, vectors: NDArray[np.float32], sets: Mapping[str, Rows], copies: Copies) -> None:
        """Index the distinct rows of each set.

        Args:
            vectors: (n, d), none zero.
            sets: ascending rows of ``real`` and of each generator.
            copies: exact copies within each set.
        """
        self.names: Sequence[str] = [REAL, *(name for name in sets if name != REAL)]
        self.copies = copies
        self._vectors = vectors
        self._rows = {code: sets[name][copies.are_distinct(sets[name])] for code, name in enumerate(self.names)}
        self.distinct: Mapping[int, int] = {code: len(rows) for code, rows in self._rows.items()}
        codes = np.zeros(len(vectors), np.int32)
        for code, name in enumerate(self.names):
            codes[sets[name]] = code
        self.copy_codes: Codes = codes[copies.row]
        self._by_hash = {code: rows[_first_by_hash(vectors[rows], len(rows))] for code, rows in self._rows.items()}
        self._indexes = {code: self._index(code) for code in self._rows}
        self._results: dict[SetPair, KnnResult] = {}
        self._counts: dict[RadiusKey, RadiusCounts] = {}

    def _index(self, code: int) -> Index:
        rows = self._rows[code]
        own = self._vectors[rows]
        if len(rows) <= FLAT_ROWS:
            return FlatIndex(own, rows)
        sample = self._vectors[self._by_hash[code][: index_sample_size(len(rows))]]
        index = CellIndex(train_index(sample, cells_for(len(rows))))
        index.add(own, rows)
        return index

    def neighbors(self, code: int, searches: SearchSummary) -> ViewNeighbors:
        """Return what the searches found for a generator's view."""
        return view_neighbors(code, self._results, self._counts, searches.recalls)

    # Searches.

    def sample_distances(self, queries: Sequence[KnnQuery]) -> list[Floats]:
        """See `SearchBackend`."""
        return [self._knn(self._recall_sample(query.query), query)[0] for query in queries]

    def search(self, queries: Sequence[KnnQuery], wanted: Collection[SetPair]) -> dict[SetPair, KnnResult]:
        """See `SearchBackend`."""
        for query in queries:
            rows = self._rows[query.query]
            self._results[query.pair] = KnnResult(rows, *self._knn(rows, query))
        return {pair: self._results[pair] for pair in wanted}

    def search_sample(self, pairs: Sequence[SetPair], counts: Mapping[int, int]) -> dict[SetPair, KnnResult]:
        """See `SearchBackend`."""
        samples = {code: self._sample(code, count) for code, count in counts.items()}
        return {
            pair: KnnResult(samples[pair.query], *self._knn(samples[pair.query], KnnQuery(*pair, 1, ALL_CELLS)))
            for pair in pairs
        }

    def _knn(self, rows: Rows, query: KnnQuery) -> tuple[Floats, Rows]:
        distance, neighbor = np.empty((len(rows), query.k)), np.empty((len(rows), query.k), np.int64)
        index = self._indexes[query.database]
        for part in _slices(len(rows)):
            distance[part], neighbor[part] = search_knn(
                index, self._vectors[rows[part]], rows[part], query.k, query.probes
            )
        return distance, neighbor

    def count_radii(self, queries: Mapping[RadiusKey, RadiusQuery]) -> None:
        """See `SearchBackend`."""
        for key, query in queries.items():
            rows = self._rows[key.query]
            self._counts[key] = RadiusCounts(rows, self._count(rows, key, query))

    def sample_radii(self, queries: Mapping[RadiusKey, RadiusQuery]) -> dict[RadiusKey, NDArray[np.int32]]:
        """See `SearchBackend`."""
        return {key: self._count(self._recall_sample(key.query), key, query) for key, query in queries.items()}

    def _count(self, rows: Rows, key: RadiusKey, query: RadiusQuery) -> NDArray[np.int32]:
        index, parts = self._indexes[key.database], [np.zeros(0, np.int32)]
        if key.is_query_radius:
            result = self._results[SetPair(key.query, key.query)]
            radii = result.radius(K)[np.searchsorted(result.row, rows)]
            weights = self.copies.counts(index.rows)
            for part in _slices(len(rows)):
                parts.append(
                    count_within_radius(
                        index, self._vectors[rows[part]], rows[part], radii[part], query.probes, weights
                    )
                )
        else:
            result = self._results[SetPair(key.database, key.database)]
            radii = result.radius(K)[np.searchsorted(result.row, index.rows)]
            for part in _slices(len(rows)):
                parts.append(
                    count_radii_containing(
                        index, self._vectors[rows[part]], rows[part], radii, query.probes, query.most
                    )
                )
        return np.concatenate(parts)

    def end_searches(self) -> None:
        """See `SearchBackend`."""

    # Edges and groups.

    def listed_edges(self, code: int, radius: float) -> Edges:
        """See `SearchBackend`."""
        searches = ViewSearches(*(self._results[pair] for pair in view_pairs(code)))
        return listed_edges(searches, self.copies, radius, (0, code))

    def join(self, codes: Sequence[int], radius: float) -> tuple[Edges, dict[str, Any]]:
        """See `SearchBackend`."""
        rows = np.concatenate([self._rows[code] for code in codes])
        code_of_row = np.concatenate([np.full(len(self._rows[code]), code, np.int32) for code in codes])
        own = self._vectors[rows]
        chosen = _first_by_hash(own, sample_size(len(rows)))
        sizes = {code: len(self._rows[code]) for code in codes}
        plan = plan_join(JoinSample(own[chosen], rows[chosen], code_of_row[chosen]), sizes, radius)
        return join_all(plan, own, rows, code_of_row).edges, {"radius": radius, **asdict(plan.estimate)}

    def share_deviations(self, codes: Sequence[int]) -> dict[int, dict[str, Blocks]]:
        """See `SearchBackend`."""
        found = {}
        for code in codes:
            real, own = sample_rows(self.distinct[0], self.distinct[code])
            found[code] = prdc_deviations(
                self._vectors[self._sample(0, real)], self._vectors[self._sample(code, own)]
            )
        return found

    def lookup(self) -> VectorLookup:
        """See `SearchBackend`."""
        return MemoryLookup(self._vectors, norms(self._vectors))

    # Samples that do not depend on the order of the rows.

    def _sample(self, code: int, count: int) -> Rows:
        return np.sort(self._by_hash[code][:count])

    def _recall_sample(self, code: int) -> Rows:
        return self._sample(code, SAMPLED_QUERIES)


def _slices(n: int) -> list[slice]:
    return [slice(start, start + _QUERIES) for start in range(0, n, _QUERIES)]


def _first_by_hash(vectors: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Return the indices of the ``count`` vectors with the smallest hashes, in the order of their hashes."""
    chosen: NDArray[np.intp] = np.argsort(vector_hashes(vectors), kind="stable")[:count]
    return chosen
