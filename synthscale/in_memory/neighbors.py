"""The near-duplicate analysis of vectors in memory: the back end of neighbors/analysis.py without Ray."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthscale.config import NeighborsConfig
from synthscale.neighbors.analysis import analyse_views, view_neighbors
from synthscale.neighbors.cell_index import CellIndex, cells_for, index_sample_size, train_index
from synthscale.neighbors.cells import JoinSample, plan_join, sample_size
from synthscale.neighbors.copies import Copies
from synthscale.neighbors.distance import Floats, Rows, distances_within, divisors, normalized
from synthscale.neighbors.edges import Codes, Edges
from synthscale.neighbors.flat_index import FlatIndex
from synthscale.neighbors.groups import RowAccess
from synthscale.neighbors.join import JoinResult, join_all
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
from synthscale.neighbors.search_space import SearchSpace, search_spaces
from synthscale.neighbors.view import (
    K,
    Nearest,
    NeighborView,
    RadiusCounts,
    listed_edges,
    nearest_rows,
)
from synthscale.statistics.column_moments import ColumnMoments
from synthscale.statistics.jackknife import Blocks
from synthscale.statistics.prdc_variance import sample_rows, share_deviations
from synthscale.tables.id_hashes import Hashes, hash_ids
from synthscale.tables.layout import VectorLayout
from synthscale.tables.schemas import REAL

_QUERIES = 32768
"""Maximum number of queries of one search call; bounds the memory of its result."""


@dataclass(frozen=True)
class Analysis:
    """Result of `analyse_vectors`.

    Attributes:
        edges: near-duplicate pairs of all views, each once.
        views: radius and groups of each generator's view.
        nearest: nearest neighbours of the rows of each view, by generator.
        spaces: space of near-duplicates, and space of the manifold metrics.
    """

    edges: Edges
    views: list[NeighborView]
    nearest: dict[str, Nearest]
    spaces: tuple[SearchSpace, SearchSpace]


def analyse_vectors(
    vectors: NDArray[np.float32],
    sets: Mapping[str, Rows],
    copies: Copies,
    config: NeighborsConfig,
    *,
    counts: bool = False,
    layout: VectorLayout | None = None,
) -> Analysis:
    """Find near-duplicates, nearest rows and the k-NN indicators of precision and coverage.

    Args:
        vectors: (n, d), none zero if directions are compared; a row number is an index into it.
        sets: ascending rows of ``real`` and of each generator.
        copies: exact copies within each set.
        config: the section ``neighbors``.
        counts: also count what density and recall need.
        layout: what the dimensions are; by default those of an embedding.
    """
    n, d = vectors.shape
    data = MemoryRows(vectors, sets, copies, hash_ids(map(str, range(n))))
    return analyse_rows(data, config, layout or VectorLayout(d, (0, d), (0, d)), counts=counts)


def analyse_rows(
    data: "MemoryRows", config: NeighborsConfig, layout: VectorLayout, *, counts: bool = False
) -> Analysis:
    """Analyse rows with ids; see `analyse_vectors`, whose rows have their numbers for ids."""
    sets, copies = data.sets, data.copies
    spaces = search_spaces(layout, config, ColumnMoments.of(data.vectors[data.distinct[0]]))
    near = MemoryBackend(data, spaces[0])
    manifold = near if spaces[0] is spaces[1] else MemoryBackend(data, spaces[1])
    analysis = analyse_views(
        near,
        None if manifold is near else lambda: manifold,
        config,
        {code: len(sets[name]) for code, name in enumerate(data.names)},
        counts_manifold=counts,
    )
    nearest = {
        view.generator: nearest_rows(
            view_neighbors(code, near.results, (manifold.results, manifold.counts), analysis.searches),
            copies,
            sets[REAL],
            sets[view.generator],
        )
        for code, view in analysis.views.items()
    }
    return Analysis(analysis.edges, list(analysis.views.values()), nearest, spaces)


@dataclass(frozen=True)
class MemoryRows:
    """Rows in memory, as they are before any search space.

    Attributes:
        vectors: (n, D).
        sets: ascending rows of ``real`` and of each generator.
        copies: exact copies within each set.
        id_hashes: (n,) hashes of the rows' ids.
        names: names of the sets, ``real`` first; a set's code is its position.
        distinct: the distinct rows of each set, by code.
        hashes: (n,) hashes that draw samples: those of the ids, of copies the smallest.
        by_hash: the distinct rows of each set in the order of ``hashes``.
    """

    vectors: NDArray[np.float32]
    sets: Mapping[str, Rows]
    copies: Copies
    id_hashes: Hashes
    names: tuple[str, ...] = field(init=False)
    distinct: dict[int, Rows] = field(init=False)
    hashes: Hashes = field(init=False)
    by_hash: dict[int, Rows] = field(init=False)

    def __post_init__(self) -> None:
        names = (REAL, *(name for name in self.sets if name != REAL))
        distinct = {
            code: self.sets[name][self.copies.are_distinct(self.sets[name])] for code, name in enumerate(names)
        }
        hashes = self.copies.smallest(self.id_hashes)
        ordered = {code: rows[np.argsort(hashes[rows], kind="stable")] for code, rows in distinct.items()}
        found = {"names": names, "distinct": distinct, "hashes": hashes, "by_hash": ordered}
        for name, value in found.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class MemoryAccess:
    """Implements `groups.RowAccess` on vectors of a space, (n, d), and the rows that they belong to."""

    vectors: NDArray[np.floating]
    lengths: Floats
    data: MemoryRows

    def distances(self, a: Rows, b: Rows) -> Floats:
        """See `groups.RowAccess`."""
        return distances_within(self.vectors, self.lengths, a, b)

    def id_hashes(self, rows: Rows) -> Hashes:
        """See `groups.RowAccess`."""
        return self.data.id_hashes[rows]


class MemoryBackend:
    """Implements `SearchBackend` in this process, with one index per set."""

    def __init__(self, data: MemoryRows, space: SearchSpace) -> None:
        """Index the distinct rows of each set in a search space."""
        self.names: Sequence[str] = data.names
        self.copies = data.copies
        self._data, self._space = data, space
        self._vectors = space(data.vectors)
        self._rows = data.distinct
        self.distinct: Mapping[int, int] = {code: len(rows) for code, rows in self._rows.items()}
        codes = np.zeros(len(data.vectors), np.int32)
        for code, name in enumerate(self.names):
            codes[data.sets[name]] = code
        self.copy_codes: Codes = codes[self.copies.row]
        self._indexes = {code: self._index(code) for code in self._rows}
        self.results: dict[SetPair, KnnResult] = {}
        self.counts: dict[RadiusKey, RadiusCounts] = {}

    def _index(self, code: int) -> Index:
        rows, metric = self._rows[code], self._space.metric
        own = self._vectors[rows]
        if len(rows) <= FLAT_ROWS:
            return FlatIndex(own, rows, metric)
        sample = self._vectors[self._data.by_hash[code][: index_sample_size(len(rows))]]
        index = CellIndex(train_index(sample, cells_for(len(rows)), metric), metric=metric)
        index.add(own, rows)
        return index

    # Searches.

    def sample_distances(self, queries: Sequence[KnnQuery]) -> list[Floats]:
        """See `SearchBackend`."""
        return [self._knn(self._recall_sample(query.query), query)[0] for query in queries]

    def search(self, queries: Sequence[KnnQuery], wanted: Collection[SetPair]) -> dict[SetPair, KnnResult]:
        """See `SearchBackend`."""
        for query in queries:
            rows = self._rows[query.query]
            self.results[query.pair] = KnnResult(rows, *self._knn(rows, query))
        return {pair: self.results[pair] for pair in wanted}

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
            self.counts[key] = RadiusCounts(rows, self._count(rows, key, query))

    def sample_radii(self, queries: Mapping[RadiusKey, RadiusQuery]) -> dict[RadiusKey, NDArray[np.int32]]:
        """See `SearchBackend`."""
        return {key: self._count(self._recall_sample(key.query), key, query) for key, query in queries.items()}

    def _count(self, rows: Rows, key: RadiusKey, query: RadiusQuery) -> NDArray[np.int32]:
        index, parts = self._indexes[key.database], [np.zeros(0, np.int32)]
        if key.is_query_radius:
            result = self.results[SetPair(key.query, key.query)]
            radii = result.radius(K)[np.searchsorted(result.row, rows)]
            weights = self.copies.counts(index.rows)
            for part in _slices(len(rows)):
                parts.append(
                    count_within_radius(
                        index,
                        self._vectors[rows[part]],
                        rows[part],
                        radii[part],
                        weights,
                        query,
                    )
                )
        else:
            result = self.results[SetPair(key.database, key.database)]
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
        searches = ViewSearches(*(self.results[pair] for pair in view_pairs(code)))
        return listed_edges(searches, self.copies, radius, (0, code))

    def join(self, codes: Sequence[int], radius: float) -> tuple[JoinResult, dict[str, Any]]:
        """See `SearchBackend`."""
        rows = np.concatenate([self._rows[code] for code in codes])
        code_of_row = np.concatenate([np.full(len(self._rows[code]), code, np.int32) for code in codes])
        own = self._vectors[rows]
        chosen = np.argsort(self._data.hashes[rows], kind="stable")[: sample_size(len(rows))]
        sizes = {code: len(self._rows[code]) for code in codes}
        sample = JoinSample(own[chosen], rows[chosen], code_of_row[chosen])
        plan = plan_join(sample, sizes, radius, self._space.metric)
        return join_all(plan, own, rows, code_of_row), {"radius": radius, **asdict(plan.estimate)}

    def rows_near_real(self, code: int, radius: float) -> Rows:
        """See `SearchBackend`."""
        found = self.results[SetPair(code, 0)]
        return found.row[found.distance[:, 0] < radius]

    def share_deviations(self, codes: Sequence[int]) -> dict[int, dict[str, Blocks]]:
        """See `SearchBackend`."""
        found = {}
        for code in codes:
            counts = sample_rows(self.distinct[0], self.distinct[code])
            rows = [self._sample(number, count) for number, count in zip((0, code), counts, strict=True)]
            real, own = (normalized(self._vectors[part], self._space.metric) for part in rows)
            hashes = self._data.hashes
            found[code] = share_deviations(real, own, (hashes[rows[0]], hashes[rows[1]]), K)
        return found

    def lookup(self) -> RowAccess:
        """See `SearchBackend`."""
        return MemoryAccess(self._vectors, divisors(self._vectors, self._space.metric), self._data)

    # Samples that do not depend on the order of the rows.

    def _sample(self, code: int, count: int) -> Rows:
        return np.sort(self._data.by_hash[code][:count])

    def _recall_sample(self, code: int) -> Rows:
        return self._sample(code, SAMPLED_QUERIES)


def _slices(n: int) -> list[slice]:
    return [slice(start, start + _QUERIES) for start in range(0, n, _QUERIES)]
