"""The near-duplicate analysis: what is searched, in which order, and what follows from it.

The same description serves vectors in memory and a run on Ray; a `SearchBackend` does the searching. Sets have
numbers (codes): 0 is the real set, generators follow. Every generator's view (its rows and the real rows) is
analysed as if it were alone; the search of the real set in itself is shared.

    search    k-NN within and across sets, recall where not all pairs are compared, rows within k-NN radii
    radius    median nearest-neighbour distance x threshold
    join      all pairs within the radius, one join for all views that share a radius
    groups    connected components of each view
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from synthscale.config import NeighborsConfig
from synthscale.neighbors.cell_index import cells_for
from synthscale.neighbors.distance import Floats
from synthscale.neighbors.edges import Edges, distinct_edges
from synthscale.neighbors.groups import near_duplicate_groups
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
from synthscale.neighbors.view import NeighborView, RadiusCounts, ViewNeighbors, neighbors_listed, searches_summary
from synthscale.statistics.size_matching import matched_sizes


@dataclass(frozen=True)
class SearchSummary:
    """Measured recall of each search, and each generator's radius.

    Attributes:
        recalls: recall of each k-NN search; None where all pairs were compared.
        radius_recalls: recall of each count of rows within radii; None where all pairs were compared.
        calibrations: each generator's radius, by code.
    """

    recalls: dict[SetPair, Recall | None]
    radius_recalls: dict[RadiusKey, Recall | None]
    calibrations: dict[int, RadiusCalibration]

    def of_view(self, code: int) -> list[Recall | None]:
        """Return the recalls of all searches in a generator's view."""
        counts = [own for key, own in self.radius_recalls.items() if {key.query, key.database} <= {0, code}]
        return [*(self.recalls[pair] for pair in view_pairs(code)), *counts]


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
    backend: SearchBackend,
    config: NeighborsConfig,
    rows: Mapping[int, int],
    *,
    counts_manifold: bool = False,
    on_phase: Callable[[str], None] = lambda phase: None,
) -> ViewsAnalysis:
    """Search, calibrate the radii, join and group.

    Args:
        backend: searches the sets.
        config: the section ``neighbors``.
        rows: rows of each set, copies included.
        counts_manifold: also count what density and recall need.
        on_phase: called at the end of the phases ``search``, ``join`` and ``groups``.
    """
    larger = matched_sizes({code: n for code, n in rows.items() if code})
    searches = search_views(backend, config, larger, counts_manifold=counts_manifold)
    backend.end_searches()
    on_phase("search")
    edges, joins = _join(backend, config, searches.calibrations)
    on_phase("join")
    deviations, lookup = backend.share_deviations(list(searches.calibrations)), backend.lookup()
    copies, views = backend.copies.edges(backend.copy_codes), {}
    for code, calibration in searches.calibrations.items():
        own = distinct_edges([edges[code], copies.of_view(code)])
        views[code] = NeighborView(
            backend.names[code],
            calibration,
            near_duplicate_groups(own, calibration.radius, lookup),
            rows[0] + rows[code],
            searches_summary(searches.of_view(code)),
            config.mode == "exact",
            deviations[code],
        )
    on_phase("groups")
    return ViewsAnalysis(searches, distinct_edges([copies, *edges.values()]), views, joins)


def search_views(
    backend: SearchBackend, config: NeighborsConfig, larger: Collection[int], *, counts_manifold: bool
) -> SearchSummary:
    """Run all searches; the back end keeps their results.

    Args:
        backend: searches the sets.
        config: the section ``neighbors``.
        larger: generators that are larger than the smallest one; for them the synthetic rows within each real
            row's radius are counted, so that coverage can be given at matched size.
        counts_manifold: also count what density and recall need.
    """
    generators = [code for code in backend.distinct if code]
    k = neighbors_listed(config)
    # Across sets only the nearest row is needed, except in mode datalab, which uses all k neighbours.
    cross = k if config.mode == "datalab" else 1
    wanted_k = {SetPair(0, 0): k}
    for code in generators:
        wanted_k |= dict(zip(view_pairs(code)[1:], (cross, cross, k), strict=True))
    recalls: dict[SetPair, Recall | None] = {}
    for each in dict.fromkeys(wanted_k.values()):
        recalls |= _measure_recalls(backend, [pair for pair, own in wanted_k.items() if own == each], each)
    queries = [
        KnnQuery(*pair, own, recall.probes if (recall := recalls[pair]) else ALL_CELLS)
        for pair, own in wanted_k.items()
    ]
    pairs = {code: view_pairs(code)[:1] if is_median_of_real(config) else view_pairs(code) for code in generators}
    exact = {code: all(recalls[pair] is None for pair in own) for code, own in pairs.items()}
    results = backend.search(queries, {pair for code, own in pairs.items() if exact[code] for pair in own})
    radius_recalls = _count_radii(backend, recalls, larger, counts_manifold=counts_manifold)
    calibrations = {
        code: _calibrate(backend, config, own, results if exact[code] else None) for code, own in pairs.items()
    }
    return SearchSummary(recalls, radius_recalls, calibrations)


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


def _measure_recalls(backend: SearchBackend, pairs: Sequence[SetPair], k: int) -> dict[SetPair, Recall | None]:
    """Return the chosen probes and measured recall of each pair of sets; None where all pairs are compared.

    A sample of queries first probes all cells, which gives the true neighbours, and then increasing numbers of
    cells until the required recall is reached (`choose_probes`).
    """
    sizes = backend.distinct
    probed = [
        pair
        for pair in pairs
        if sizes[pair.database] > FLAT_ROWS and not is_exact(sizes[pair.query], sizes[pair.database])
    ]
    cells = {pair: cells_for(sizes[pair.database]) for pair in probed}
    tries = {pair: probes_to_try(cells[pair]) for pair in probed}
    recalls: dict[SetPair, Recall | None] = dict.fromkeys(pairs)
    distances: dict[SetPair, dict[int, Floats]] = {pair: {} for pair in probed}
    while queries := [KnnQuery(*pair, k, left.pop(0)) for pair, left in tries.items() if left]:
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
    ``RadiusKey(0, code, False)``, the generator's radii that contain real rows: recall.
    ``RadiusKey(0, code, True)``, the generator's rows within real radii: coverage at matched size.
    """
    most: dict[RadiusKey, int] = {}
    for code in backend.distinct:
        most[RadiusKey(code, 0, False)] = UNLIMITED if counts_manifold and code else 1
    for code in backend.distinct:
        if counts_manifold and code:
            most[RadiusKey(0, code, False)] = 1
        if code in larger:
            most[RadiusKey(0, code, True)] = UNLIMITED
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
) -> tuple[dict[int, Edges], list[dict[str, Any]]]:
    """Return each view's edges between distinct rows, and the summary of each join."""
    if config.mode == "datalab":
        return {code: backend.listed_edges(code, own.radius) for code, own in calibrations.items()}, []
    edges: dict[int, Edges] = {}
    joins = []
    # By default there is one radius, that of the real rows.
    for radius in dict.fromkeys(own.radius for own in calibrations.values()):
        codes = [code for code, own in calibrations.items() if own.radius == radius]
        joined, summary = backend.join([0, *codes], radius)
        joins.append(summary)
        edges |= {code: joined.of_view(code) for code in codes}
    return edges, joins


def view_neighbors(
    code: int,
    results: Mapping[SetPair, KnnResult],
    counts: Mapping[RadiusKey, RadiusCounts],
    recalls: Mapping[SetPair, Recall | None],
) -> ViewNeighbors:
    """Return what the searches found for one generator's view."""
    return ViewNeighbors(
        ViewSearches(*(replace(results[pair], recall=recalls[pair]) for pair in view_pairs(code))),
        counts[RadiusKey(0, 0, False)],
        counts[RadiusKey(code, 0, False)],
        counts.get(RadiusKey(0, code, False)),
        counts.get(RadiusKey(0, code, True)),
    )
