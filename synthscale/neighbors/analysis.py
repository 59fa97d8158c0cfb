"""The near-duplicate analysis: what is searched, in which order, and what follows from it.

The same description serves vectors in memory and a run on Ray; a `SearchBackend` does the searching. Sets have
numbers (codes): 0 is the real set, generators follow. Every generator's view (its rows and the real rows) is
analysed as if it were alone; the search of the real set in itself is shared.

    search    nearest rows within and across sets, in the space of near-duplicates
    manifold  k-NN radii, and rows within them, in the space of the manifold metrics (search_space.py)
    radius    median nearest-neighbour distance x threshold
    join      all pairs within the radius, one join for all views that share a radius
    groups    connected components of each view, their groups and clusters
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from synthscale.config import NeighborsConfig
from synthscale.neighbors.cell_index import cells_for
from synthscale.neighbors.distance import Floats
from synthscale.neighbors.edges import Edges, distinct_edges
from synthscale.neighbors.groups import ViewEdges, near_duplicate_groups
from synthscale.neighbors.knn_search import (
    ALL_CELLS,
    FLAT_ROWS,
    SAMPLED_QUERIES,
    UNLIMITED,
    KnnResult,
    Recall,
    choose_probes,
    is_exact,
    probes_to_try,
    radius_recall,
)
from synthscale.neighbors.radius import RadiusCalibration, ViewSearches, calibrate_radius, is_median_of_real
from synthscale.neighbors.search_backend import (
    KnnQuery,
    RadiusKey,
    RadiusQuery,
    SearchBackend,
    SetPair,
    view_pairs,
)
from synthscale.neighbors.view import (
    DATALAB_K,
    K,
    ManifoldNeighbors,
    NeighborView,
    RadiusCounts,
    ViewNeighbors,
    searches_summary,
)
from synthscale.statistics.size_matching import matched_sizes


@dataclass(frozen=True)
class ManifoldSearches:
    """Recall of the searches of the manifold metrics.

    Attributes:
        recalls: recall of each k-NN search; None where all pairs were compared.
        radius_recalls: recall of each count of rows within radii; None where all pairs were compared.
    """

    recalls: dict[SetPair, Recall | None]
    radius_recalls: dict[RadiusKey, Recall | None]


@dataclass(frozen=True)
class SearchSummary:
    """Measured recall of each search, and each generator's radius.

    Attributes:
        recalls: recall of each search for near-duplicates; None where all pairs were compared.
        manifold: recall of the searches of the manifold metrics.
        calibrations: each generator's radius, by code.
        larger: generators that are larger than the smallest one; for them the synthetic rows within each real
            row's radius are counted, so that coverage can be given at matched size.
    """

    recalls: dict[SetPair, Recall | None]
    manifold: ManifoldSearches
    calibrations: dict[int, RadiusCalibration]
    larger: frozenset[int]

    def of_view(self, code: int) -> list[Recall | None]:
        """Return the recalls of all searches in a generator's view."""
        members = {0, code}
        found = [self.recalls[pair] for pair in view_pairs(code)]
        found += [own for pair, own in self.manifold.recalls.items() if set(pair) <= members]
        return found + [
            own for key, own in self.manifold.radius_recalls.items() if {key.query, key.database} <= members
        ]


@dataclass(frozen=True)
class ViewsAnalysis:
    """The analysis of all generators.

    Attributes:
        searches: recalls and radii.
        edges: near-duplicate pairs of all views, each once, exact copies included.
        views: the generators' views, by code.
        joins: a summary of each join: radius, method and estimated cost.
    """

    searches: SearchSummary
    edges: Edges
    views: dict[int, NeighborView]
    joins: list[dict[str, Any]]


def analyse_views(
    near: SearchBackend,
    manifold: Callable[[], SearchBackend] | None,
    config: NeighborsConfig,
    rows: Mapping[int, int],
    *,
    counts_manifold: bool = False,
    on_phase: Callable[[str], None] = lambda phase: None,
) -> ViewsAnalysis:
    """Search, calibrate the radii, join and group.

    Args:
        near: searches the space of near-duplicates.
        manifold: returns the back end of the space of the manifold metrics; called once the searches for
            near-duplicates have ended, which may have shared resources. None if it is the same space.
        config: the section ``neighbors``.
        rows: rows of each set, copies included.
        counts_manifold: also count what density and recall need.
        on_phase: called at the end of the phases ``search``, ``manifold``, ``join`` and ``groups``.
    """
    larger = frozenset(matched_sizes({code: n for code, n in rows.items() if code}))
    recalls, calibrations = search_near_duplicates(near, config, K if manifold is None else 1)
    on_phase("search")
    other, known = near, recalls
    if manifold is not None:
        other, known = manifold(), {}
    searched = search_manifold(other, larger, counts_manifold=counts_manifold, known=known)
    other.end_searches()
    on_phase("manifold")
    edges, joins = _join(near, config, calibrations)
    on_phase("join")
    deviations, lookup = other.share_deviations(list(calibrations)), near.lookup()
    searches = SearchSummary(recalls, searched, calibrations, larger)
    copies, views = near.copies.edges(near.copy_codes), {}
    for code, calibration in calibrations.items():
        found = replace(edges[code], edges=distinct_edges([edges[code].edges, copies.of_view(code)]))
        views[code] = NeighborView(
            near.names[code],
            calibration,
            near_duplicate_groups(found, near.copies, lookup),
            rows[0] + rows[code],
            searches_summary(searches.of_view(code)),
            config.mode == "exact",
            deviations[code],
        )
    on_phase("groups")
    listed = distinct_edges([copies, *(found.edges for found in edges.values())])
    return ViewsAnalysis(searches, listed, views, joins)


def search_near_duplicates(
    backend: SearchBackend, config: NeighborsConfig, k_within: int
) -> tuple[dict[SetPair, Recall | None], dict[int, RadiusCalibration]]:
    """Search nearest rows and calibrate the radii; the back end keeps the results.

    Args:
        backend: searches the space of near-duplicates.
        config: the section ``neighbors``.
        k_within: number of neighbours within each set: 1, or more if they also give k-NN radii.

    Returns:
        The recall of each search, None where all pairs were compared, and each generator's radius.
    """
    generators = [code for code in backend.distinct if code]
    # Only the nearest row is needed, except in mode datalab, which lists ten neighbours of each row.
    within, across = (DATALAB_K, DATALAB_K) if config.mode == "datalab" else (k_within, 1)
    wanted_k = {SetPair(0, 0): within}
    for code in generators:
        wanted_k |= dict(zip(view_pairs(code)[1:], (across, across, within), strict=True))
    recalls = _measure_recalls(backend, wanted_k)
    pairs = {code: view_pairs(code)[:1] if is_median_of_real(config) else view_pairs(code) for code in generators}
    exact = {code: all(recalls[pair] is None for pair in own) for code, own in pairs.items()}
    results = backend.search(
        _queries(wanted_k, recalls), {pair for code, own in pairs.items() if exact[code] for pair in own}
    )
    calibrations = {
        code: _calibrate(backend, config, own, results if exact[code] else None) for code, own in pairs.items()
    }
    return recalls, calibrations


def search_manifold(
    backend: SearchBackend,
    larger: Collection[int],
    *,
    counts_manifold: bool,
    known: Mapping[SetPair, Recall | None],
) -> ManifoldSearches:
    """Search k-NN radii and count the rows within them; the back end keeps the results.

    Args:
        backend: searches the space of the manifold metrics.
        larger: as in `SearchSummary`.
        counts_manifold: also count what density and recall need.
        known: recall of the searches that the back end has made already; empty if it has made none.
    """
    recalls = dict(known)
    if not known:
        wanted_k = {SetPair(0, 0): K}
        for code in (code for code in backend.distinct if code):
            wanted_k[SetPair(code, 0)] = 1
            if counts_manifold:
                wanted_k[SetPair(code, code)] = K
        counted = {SetPair(0, code): 1 for code in backend.distinct if code}
        recalls = _measure_recalls(backend, wanted_k | counted)
        backend.search(_queries(wanted_k, recalls), ())
    return ManifoldSearches(recalls, _count_radii(backend, recalls, larger, counts_manifold=counts_manifold))


def _queries(wanted_k: Mapping[SetPair, int], recalls: Mapping[SetPair, Recall | None]) -> list[KnnQuery]:
    return [
        KnnQuery(*pair, k, recall.probes if (recall := recalls[pair]) else ALL_CELLS)
        for pair, k in wanted_k.items()
    ]


def _calibrate(
    backend: SearchBackend,
    config: NeighborsConfig,
    pairs: Sequence[SetPair],
    exact: Mapping[SetPair, KnnResult] | None,
) -> RadiusCalibration:
    """Return a view's radius from exact results, or from a sample that is searched exactly."""
    query_sets = {pair.query for pair in pairs}
    n = sum(backend.distinct[query] for query in query_sets)
    if exact is None:
        counts = {query: SAMPLED_QUERIES * backend.distinct[query] // n + 1 for query in query_sets}
        exact = backend.search_sample(pairs, counts)
    # If the median is over the real rows only, there is one pair, and its result fills the three unused fields.
    searches = ViewSearches(*([exact[pair] for pair in pairs] * 4)[:4])
    return calibrate_radius(searches, n, config, backend.copies)


def _measure_recalls(backend: SearchBackend, wanted_k: Mapping[SetPair, int]) -> dict[SetPair, Recall | None]:
    """Return the chosen probes and measured recall of each pair of sets; None where all pairs are compared.

    A sample of queries first probes all cells, which gives the true neighbours, and then increasing numbers of
    cells until the required recall is reached (`choose_probes`).

    Args:
        backend: searches the samples.
        wanted_k: number of neighbours of each pair of sets.
    """
    sizes = backend.distinct
    probed = [
        pair
        for pair in wanted_k
        if sizes[pair.database] > FLAT_ROWS and not is_exact(sizes[pair.query], sizes[pair.database])
    ]
    cells = {pair: cells_for(sizes[pair.database]) for pair in probed}
    tries = {pair: probes_to_try(cells[pair]) for pair in probed}
    recalls: dict[SetPair, Recall | None] = dict.fromkeys(wanted_k)
    distances: dict[SetPair, dict[int, Floats]] = {pair: {} for pair in probed}
    while queries := [KnnQuery(*pair, wanted_k[pair], left.pop(0)) for pair, left in tries.items() if left]:
        for query, found in zip(queries, backend.sample_distances(queries), strict=True):
            pair = query.pair
            distances[pair][query.probes] = found
            recalls[pair] = recall = choose_probes(distances[pair], cells[pair])
            if recall.probes < cells[pair]:
                tries[pair] = []
    return recalls


def _count_radii(
    backend: SearchBackend,
    recalls: Mapping[SetPair, Recall | None],
    larger: Collection[int],
    *,
    counts_manifold: bool,
) -> dict[RadiusKey, Recall | None]:
    """Count the rows within k-NN radii, and return the measured recall of each count.

    ``RadiusKey(code, 0, False)``, real radii that contain the set's rows: precision, its reference, and density.
    ``RadiusKey(0, code, True)``, the generator's rows within real radii: coverage, also at matched size.
    ``RadiusKey(0, code, False)``, the generator's radii that contain real rows: recall.
    """
    most: dict[RadiusKey, int] = {}
    for code in backend.distinct:
        most[RadiusKey(code, 0, False)] = UNLIMITED if counts_manifold and code else 1
    for code in (code for code in backend.distinct if code):
        most[RadiusKey(0, code, True)] = UNLIMITED if code in larger else 1
        if counts_manifold:
            most[RadiusKey(0, code, False)] = 1
    queries = {}
    for key, limit in most.items():
        recall = recalls[SetPair(key.query, key.database)]
        queries[key] = RadiusQuery(recall.probes if recall else ALL_CELLS, limit)
    backend.count_radii(queries)
    measured: dict[RadiusKey, Recall | None] = dict.fromkeys(queries)
    probed = {
        key: query for key, query in queries.items() if recalls[SetPair(key.query, key.database)] is not None
    }
    if probed:
        found = backend.sample_radii(probed)
        true = backend.sample_radii({key: RadiusQuery(ALL_CELLS, query.most) for key, query in probed.items()})
        measured |= {key: radius_recall(found[key], true[key], query.probes) for key, query in probed.items()}
    return measured


def _join(
    backend: SearchBackend, config: NeighborsConfig, calibrations: Mapping[int, RadiusCalibration]
) -> tuple[dict[int, ViewEdges], list[dict[str, Any]]]:
    """Return each view's edges between distinct rows, and the summary of each join."""
    if config.mode == "datalab":
        # As in cleanlab, groups of real and synthetic rows stay together.
        listed = {
            code: ViewEdges(backend.listed_edges(code, own.radius), own.radius, is_split=False)
            for code, own in calibrations.items()
        }
        return listed, []
    edges: dict[int, ViewEdges] = {}
    joins = []
    # By default there is one radius, that of the real rows.
    for radius in dict.fromkeys(own.radius for own in calibrations.values()):
        codes = [code for code, own in calibrations.items() if own.radius == radius]
        joined, summary = backend.join([0, *codes], radius)
        joins.append(summary)
        for code in codes:
            edges[code] = ViewEdges(joined.edges.of_view(code), radius, joined.is_whole)
            if not joined.is_whole:
                edges[code] = replace(edges[code], near_real=backend.rows_near_real(code, radius))
    return edges, joins


def view_neighbors(
    code: int,
    results: Mapping[SetPair, KnnResult],
    manifold: tuple[Mapping[SetPair, KnnResult], Mapping[RadiusKey, RadiusCounts]],
    searches: SearchSummary,
) -> ViewNeighbors:
    """Return what the searches found for one generator's view.

    Args:
        code: the generator.
        results: nearest rows in the space of near-duplicates.
        manifold: nearest rows and radius counts in the space of the manifold metrics.
        searches: recalls, and the generators whose counts are complete.
    """
    found, counts = manifold
    return ViewNeighbors(
        ViewSearches(*(replace(results[pair], recall=searches.recalls[pair]) for pair in view_pairs(code))),
        ManifoldNeighbors(
            found[SetPair(0, 0)],
            found[SetPair(code, 0)],
            found.get(SetPair(code, code)),
            counts[RadiusKey(0, 0, False)],
            counts[RadiusKey(code, 0, False)],
            counts[RadiusKey(0, code, True)],
            code in searches.larger,
            counts.get(RadiusKey(0, code, False)),
        ),
    )
