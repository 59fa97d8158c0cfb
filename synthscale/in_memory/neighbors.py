"""The near-duplicate analysis of vectors in memory, in this process: searches, join, groups."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthscale.config import NeighborsConfig
from synthscale.neighbors.cell_index import CellIndex, cells_for, index_sample_size, train_index
from synthscale.neighbors.cells import JoinSample, plan_join, sample_size
from synthscale.neighbors.copies import Copies, vector_hashes
from synthscale.neighbors.distance import Floats, Rows, distances_within, norms
from synthscale.neighbors.edges import Edges, distinct_edges
from synthscale.neighbors.flat_index import FlatIndex
from synthscale.neighbors.groups import near_duplicate_groups
from synthscale.neighbors.join import join_all
from synthscale.neighbors.knn_search import (
    ALL_CELLS,
    FLAT_ROWS,
    SAMPLED_QUERIES,
    UNLIMITED,
    Index,
    KnnResult,
    Recall,
    choose_probes,
    count_radii_containing,
    count_within_radius,
    is_exact,
    probes_to_try,
    radius_recall,
    search_knn,
)
from synthscale.neighbors.radius import RadiusCalibration, ViewSearches, calibrate_radius, is_median_of_real
from synthscale.neighbors.view import (
    K,
    Nearest,
    NeighborView,
    RadiusCounts,
    ViewNeighbors,
    listed_edges,
    nearest_rows,
    neighbors_listed,
    prdc_spreads,
    searches_summary,
)
from synthscale.statistics.jackknife import Blocks
from synthscale.statistics.prdc_variance import sample_rows
from synthscale.statistics.size_matching import matched_sizes
from synthscale.tables.schemas import REAL

_QUERIES = 32768
_NO_COPIES = Copies(np.empty(0, np.int64), np.empty(0, np.int64))


@dataclass(frozen=True)
class Analysis:
    """The edges of all views, each pair once, and every generator's view with its rows' neighbours."""

    edges: Edges
    views: list[NeighborView]
    nearest: dict[str, Nearest]


def analyse(
    vectors: NDArray[np.float32],
    sets: Mapping[str, Rows],
    copies: Copies,
    config: NeighborsConfig,
    *,
    counts: bool = False,
) -> Analysis:
    """Find near-duplicates, nearest rows and manifold indicators.

    Args:
        vectors: (n, d), none zero; a row number is a place in it.
        sets: the rows of ``real`` and of each generator, ascending.
        copies: of all sets.
        config: the radius rule.
        counts: also find what density and recall are made of.
    """
    larger = matched_sizes({name: len(rows) for name, rows in sets.items() if name != REAL})
    distinct = {name: rows[copies.are_distinct(rows)] for name, rows in sets.items()}
    searcher = _Searcher(vectors, distinct, copies, larger)
    code = {name: number for number, name in enumerate([REAL, *(name for name in sets if name != REAL)])}
    k = neighbors_listed(config)
    found = {name: searcher.view(name, k, counts=counts) for name in code if name != REAL}
    radii = {name: searcher.calibrate(name, found[name].searches, config, copies) for name in found}
    joins = _joins(searcher, found, radii, code, config, copies)
    codes = np.zeros(len(vectors), np.int32)
    for name, rows in sets.items():
        codes[rows] = code[name]
    copy_edges = copies.edges(codes[copies.row])
    lookup = MemoryLookup(vectors, norms(vectors))
    is_whole = config.mode == "exact"
    views, nearest = [], {}
    for name in found:
        own = distinct_edges([joins[name], copy_edges.of_view(code[name])])
        groups = near_duplicate_groups(own, radii[name].radius, lookup)
        count = len(sets[REAL]) + len(sets[name])
        summary = searches_summary(found[name].recalls)
        views.append(NeighborView(name, radii[name], groups, count, summary, is_whole, searcher.spreads(name)))
        nearest[name] = nearest_rows(found[name], copies, sets[REAL], sets[name])
    return Analysis(distinct_edges([copy_edges, *joins.values()]), views, nearest)


def search_two_sets(sets: Mapping[str, NDArray[np.float32]], generator: str) -> ViewNeighbors:
    """Return what the searches behind precision, recall, density and coverage find between two sets of vectors."""
    vectors, rows, start = np.concatenate(list(sets.values())), {}, 0
    for name, own in sets.items():
        rows[name] = np.arange(start, start + len(own))
        start += len(own)
    return _Searcher(vectors, rows, _NO_COPIES).view(generator, K, counts=True)


def _joins(
    searcher: "_Searcher",
    found: dict[str, ViewNeighbors],
    radii: dict[str, RadiusCalibration],
    code: dict[str, int],
    config: NeighborsConfig,
    copies: Copies,
) -> dict[str, Edges]:
    """Return each view's edges between distinct rows; views of one radius are joined at once."""
    if config.mode == "datalab":
        return {
            name: listed_edges(found[name].searches, copies, radii[name].radius, (0, code[name])) for name in found
        }
    result: dict[str, Edges] = {}
    for radius in {calibration.radius for calibration in radii.values()}:
        names = [name for name in found if radii[name].radius == radius]
        edges = searcher.join({name: code[name] for name in (REAL, *names)}, radius)
        result |= {name: edges.of_view(code[name]) for name in names}
    return result


@dataclass(frozen=True)
class MemoryLookup:
    """See groups.Lookup: of rows in memory, whose norms are known."""

    vectors: NDArray[np.float32]
    norms: Floats

    def distances(self, a: Rows, b: Rows) -> Floats:
        """See groups.Lookup."""
        return distances_within(self.vectors, self.norms, a, b)

    def draws(self, rows: Rows) -> NDArray[np.uint64]:
        """See groups.Lookup."""
        return vector_hashes(self.vectors[rows])


class _Searcher:
    """Indexes over the distinct rows of each set, and the questions that views put to them."""

    def __init__(
        self, vectors: NDArray[np.float32], sets: Mapping[str, Rows], copies: Copies, larger: Collection[str] = ()
    ) -> None:
        self._vectors, self._sets = vectors, sets
        self._indexes = {name: self._index(rows) for name, rows in sets.items()}
        self._relations: dict[tuple[str, str], KnnResult] = {}
        self._insides: dict[tuple[str, str], RadiusCounts] = {}
        self._larger, self._copies = larger, copies

    def _index(self, rows: Rows) -> Index:
        own = self._vectors[rows]
        if len(rows) <= FLAT_ROWS:
            return FlatIndex(own, rows)
        index = CellIndex(train_index(own[_drawn(own, index_sample_size(len(rows)))], cells_for(len(rows))))
        index.add(own, rows)
        return index

    def view(self, name: str, k: int, *, counts: bool) -> ViewNeighbors:
        """Search a generator's view; ``counts`` adds what density and recall are made of."""
        cross = k if k > K else 1
        searches = ViewSearches(
            self._relation(REAL, REAL, k),
            self._relation(REAL, name, cross),
            self._relation(name, REAL, cross),
            self._relation(name, name, k),
        )
        radii = searches.real_real.radius(K)
        most = UNLIMITED if counts else 1
        real, own = self._inside(REAL, REAL, radii, 1), self._inside(name, REAL, radii, most)
        recalled = self._inside(REAL, name, searches.own_own.radius(K), 1) if counts else None
        held = self._held(name, radii) if name in self._larger else None
        return ViewNeighbors(searches, real, own, recalled, held)

    def _held(self, name: str, radii: Floats) -> RadiusCounts:
        """Count a generator's rows inside each real row's radius, with as many probes as find the nearest."""
        rows, recall = self._sets[REAL], self._relations[REAL, name].recall
        probes, parts = recall.probes if recall else ALL_CELLS, [np.zeros(0, np.int32)]
        index = self._indexes[name]
        counts = self._copies.counts(index.rows)
        for start in range(0, len(rows), _QUERIES):
            part = slice(start, start + _QUERIES)
            vectors = self._vectors[rows[part]]
            parts.append(count_within_radius(index, vectors, rows[part], radii[part], probes, counts))
        return RadiusCounts(rows, np.concatenate(parts), recall)

    def _relation(self, query: str, database: str, k: int) -> KnnResult:
        if (query, database) not in self._relations:
            rows = self._sets[query]
            recall = self._recall(query, database, k)
            distance, neighbor = self._ask(rows, database, k, recall.probes if recall else ALL_CELLS)
            self._relations[query, database] = KnnResult(rows, distance, neighbor, recall)
        return self._relations[query, database]

    def _recall(self, query: str, database: str, k: int) -> Recall | None:
        index = self._indexes[database]
        if isinstance(index, FlatIndex) or is_exact(len(self._sets[query]), len(self._sets[database])):
            return None
        sample = self._sampled(query, SAMPLED_QUERIES)
        found: dict[int, Floats] = {}
        for probes in probes_to_try(index.cells):
            found[probes] = self._ask(sample, database, k, probes)[0]
            recall = choose_probes(found, index.cells)
            if recall.probes < index.cells:
                break
        return recall

    def _ask(self, rows: Rows, database: str, k: int, probes: int) -> tuple[Floats, Rows]:
        distance, neighbor = np.empty((len(rows), k)), np.empty((len(rows), k), np.int64)
        for start in range(0, len(rows), _QUERIES):
            block = rows[start : start + _QUERIES]
            part = slice(start, start + _QUERIES)
            distance[part], neighbor[part] = search_knn(
                self._indexes[database], self._vectors[block], block, k, probes
            )
        return distance, neighbor

    def _inside(self, query: str, database: str, radii: Floats, most: int) -> RadiusCounts:
        if (query, database) not in self._insides:
            rows, recall = self._sets[query], self._relations[query, database].recall

            def ask(asked: Rows, probes: int) -> NDArray[np.int32]:
                blocks = (asked[start : start + _QUERIES] for start in range(0, len(asked), _QUERIES))
                index = self._indexes[database]
                parts = [count_radii_containing(index, self._vectors[b], b, radii, probes, most) for b in blocks]
                return np.concatenate([np.zeros(0, np.int32), *parts])

            if recall is None:
                self._insides[query, database] = RadiusCounts(rows, ask(rows, ALL_CELLS))
            else:
                sample = self._sampled(query, SAMPLED_QUERIES)
                true = ask(sample, ALL_CELLS)
                measured = radius_recall(ask(sample, recall.probes), true, recall.probes)
                self._insides[query, database] = RadiusCounts(rows, ask(rows, recall.probes), measured)
        return self._insides[query, database]

    def _sampled(self, name: str, count: int) -> Rows:
        rows = self._sets[name]
        return np.sort(rows[_drawn(self._vectors[rows], count)])

    def spreads(self, name: str) -> dict[str, Blocks]:
        """Return how precision and coverage spread (manifold.py)."""
        sizes = sample_rows(len(self._sets[REAL]), len(self._sets[name]))
        real, own = (self._sampled(kind, size) for kind, size in zip((REAL, name), sizes, strict=True))
        return prdc_spreads(self._vectors[real], self._vectors[own])

    def calibrate(
        self, name: str, searches: ViewSearches, config: NeighborsConfig, copies: Copies
    ) -> RadiusCalibration:
        """Return a view's radius; from a sample, searched exactly, where the searches themselves are not exact."""
        real, own = len(self._sets[REAL]), len(self._sets[name])
        only_real = is_median_of_real(config)
        rows = real if only_real else real + own
        needed = [searches.real_real] if only_real else list(vars(searches).values())
        if any(relation.recall for relation in needed):
            pairs = [(REAL, REAL)] if only_real else [(REAL, REAL), (REAL, name), (name, REAL), (name, name)]
            sizes = {REAL: real, name: own}
            sample = {q: self._sampled(q, SAMPLED_QUERIES * sizes[q] // rows + 1) for q, _ in pairs}
            exact = [KnnResult(sample[q], *self._ask(sample[q], d, 1, ALL_CELLS)) for q, d in pairs]
            searches = ViewSearches(*(exact * 4)[:4])
        return calibrate_radius(searches, rows, config, copies)

    def join(self, sets: Mapping[str, int], radius: float) -> Edges:
        """Return all edges among the distinct rows of some sets (name: code)."""
        rows = np.concatenate([self._sets[name] for name in sets])
        code = np.concatenate([np.full(len(self._sets[name]), number, np.int32) for name, number in sets.items()])
        own = self._vectors[rows]
        chosen = _drawn(own, sample_size(len(rows)))
        sizes = {number: len(self._sets[name]) for name, number in sets.items()}
        plan = plan_join(JoinSample(own[chosen], rows[chosen], code[chosen]), sizes, radius)
        return join_all(plan, own, rows, code).edges


def _drawn(vectors: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Return the places of a sample that does not depend on the order of the rows, in the order of its draw."""
    draws = vector_hashes(vectors)
    chosen: NDArray[np.intp] = np.argsort(draws, kind="stable")[:count]
    return chosen
