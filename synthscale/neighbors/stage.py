"""Neighbors: ``embeddings/`` -> ``neighbors/`` (edges), ``nearest/``, ``groups/`` and ``index/``, over Ray.

    scan    exact copies collapse; samples are drawn            (copy_scan)
    search  nearest rows and manifold, indexes in actors        (index_actors)
    join    all pairs within the radius, cells in tasks         (cell_join)
    write   groups, and the tables by shard                     (neighbor_tables)

What is computed, and why, stands in ``synthscale.neighbors``, ``cells``, ``join`` and ``relations``. The driver
holds edges, copies and groups, and no row that has none.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from synthscale.neighbors.cell_index import index_sample_size
from synthscale.neighbors.cells import sample_size
from synthscale.neighbors.copies import Copies
from synthscale.neighbors.edges import Edges, distinct_edges
from synthscale.neighbors.embedding_reader import FOLDER, EmbeddingReader, group_shards
from synthscale.neighbors.groups import near_duplicate_groups
from synthscale.neighbors.knn_search import ALL_CELLS, FLAT_ROWS, SAMPLED_QUERIES, Recall
from synthscale.neighbors.radius import RadiusCalibration, ViewSearches, calibrate_radius, is_median_of_real
from synthscale.neighbors.ray_cell_join import CellJoin, JoinFiles
from synthscale.neighbors.ray_copy_scan import CopyScan, sample_distinct, scan_copies
from synthscale.neighbors.ray_index_actors import KnnQuery, RadiusKey, SearchResults, SetPair, view_pairs
from synthscale.neighbors.ray_index_cluster import IndexCluster
from synthscale.neighbors.ray_row_lookup import RowLookup
from synthscale.neighbors.ray_self_test import start_self_test
from synthscale.neighbors.ray_tables import write_tables
from synthscale.neighbors.self_test import SelfTest
from synthscale.neighbors.view import NeighborView, listed_edges, neighbors_listed, prdc_spreads, searches_summary
from synthscale.runtime.stage_context import StageContext, StageOutcome
from synthscale.runtime.task_pool import TaskPool
from synthscale.statistics.jackknife import Blocks
from synthscale.statistics.prdc_variance import SAMPLE_ROWS, sample_rows
from synthscale.statistics.size_matching import matched_sizes
from synthscale.storage import filesystems as fsys
from synthscale.tables.schemas import REAL

_CHUNK_ROWS = (2048, 32768)


def fingerprint(context: StageContext) -> dict[str, Any]:
    """Return what edges and groups depend on."""
    return {
        "input": context.run.completed("embed").digest,
        "settings": context.config.result_settings("neighbors"),
        "manifold_counts": "manifold" in context.config.metrics.families,
        "versions": {"algorithm": 3},
    }


def run(context: StageContext) -> StageOutcome:
    """Find near-duplicates, nearest rows and manifold indicators for every generator's view."""
    return _Neighbors(context).work()


@dataclass
class _State:
    """What the stage knows so far, by the generators' codes."""

    recalls: dict[SetPair, Recall | None] = field(default_factory=dict)
    inside: dict[RadiusKey, Recall | None] = field(default_factory=dict)
    radii: dict[int, RadiusCalibration] = field(default_factory=dict)
    edges: dict[int, Edges] = field(default_factory=dict)
    joins: list[dict[str, Any]] = field(default_factory=list)


class _Clock:
    """How long each phase took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def stop(self, phase: str) -> None:
        now = time.monotonic()
        self.seconds[phase], self._last = round(now - self._last, 3), now


class _Neighbors:
    """One run of the stage."""

    def __init__(self, context: StageContext) -> None:
        self.context, self.config = context, context.config.neighbors
        names = (REAL, *context.generators)
        self.tables = EmbeddingReader(context.run, context.layout, names)
        self.codes = list(range(len(names)))
        cpus = max(1, context.cpus)
        self.pool = TaskPool(cpus, 0, context.tell)
        self.gpu_pool = TaskPool(context.gpus or cpus, context.gpus, context.tell)
        self.chunks = group_shards(context.shards, int(np.clip(context.shards[-1].stop // 8, *_CHUNK_ROWS)))
        self.memory_bytes = int(self.config.actor_memory_gib * 2**30)
        self.k = neighbors_listed(self.config)
        embedded = context.run.completed("embed").counts["sets"]
        sizes = matched_sizes({name: int(embedded[name]["ok"]) for name in context.generators})
        self.larger = [names.index(name) for name in sizes]
        self.counts = "manifold" in context.config.metrics.families

    def work(self) -> StageOutcome:
        test = start_self_test(self.context, self.tables, self.chunks)
        # Their processes start while the rows are scanned.
        cluster = IndexCluster(self.tables, self.context.shards, self.chunks, self.gpu_pool)
        embedded = self.context.run.completed("embed").counts["sets"]
        rows = {code: int(embedded[name]["ok"]) for code, name in enumerate(self.tables.names)}
        found, clock = _State(), _Clock()
        scanned = scan_copies(self.tables, self.chunks, _sampled(rows), rows, self.pool)
        clock.stop("scan")
        answers = self._search(cluster, scanned, found)
        clock.stop("search")
        self._join(scanned, found, answers)
        clock.stop("join")
        spread = self._spreads(scanned)
        views = self._groups(scanned, found, rows, spread)
        clock.stop("groups")
        edges = distinct_edges([scanned.copies.edges(scanned.codes), *found.edges.values()])
        write_tables(answers, scanned.copies, found.recalls, edges, views, self.pool)
        fsys.remove(self.context.run.path(FOLDER), self.context.run.storage)
        clock.stop("write")
        tested = test()
        info = {
            "views": {view.generator: _summary(view, tested) for view in views.values()},
            "joins": found.joins,
            "index_parts": answers.parts,
            "seconds": clock.seconds,
        }
        return StageOutcome({"rows": sum(rows.values()), "edges": len(edges)}, info)

    # Nearest neighbours, and the radii that follow from them.

    def _search(self, cluster: IndexCluster, scanned: CopyScan, found: _State) -> SearchResults:
        cross = self.k if self.config.mode == "datalab" else 1
        asked = {(0, 0): self.k}
        for code in self.codes[1:]:
            asked |= {(0, code): cross, (code, 0): cross, (code, code): self.k}
        cluster.hold(scanned, self.memory_bytes)
        for k in dict.fromkeys(asked.values()):
            found.recalls |= cluster.recalls([pair for pair, own in asked.items() if own == k], k)
        questions = [
            KnnQuery(*pair, k, r.probes if (r := found.recalls[pair]) else ALL_CELLS) for pair, k in asked.items()
        ]
        needed = {code: self._calibrating(code) for code in self.codes[1:]}
        exact = [pair for pair in asked if found.recalls[pair] is None]
        wanted = {pair for pairs in needed.values() if set(pairs) <= set(exact) for pair in pairs}
        nearest = cluster.search(questions, sorted(wanted))
        found.inside = cluster.inside(found.recalls, self.larger, counts=self.counts)
        for code, pairs in needed.items():
            n = sum(scanned.distinct[query] for query in {pair[0] for pair in pairs})
            if set(pairs) <= wanted:
                relations = {pair: nearest[pair] for pair in pairs}
            else:
                counts = {q: SAMPLED_QUERIES * scanned.distinct[q] // n + 1 for q in {pair[0] for pair in pairs}}
                relations = cluster.sampled(pairs, 1, counts)
            searches = ViewSearches(*([relations[pair] for pair in pairs] * 4)[:4])
            found.radii[code] = calibrate_radius(searches, n, self.config, scanned.copies)
        cluster.close()
        return cluster.answers

    def _calibrating(self, code: int) -> list[SetPair]:
        """Return the pairs of sets whose distances a generator's radius follows from."""
        return [(0, 0)] if is_median_of_real(self.config) else view_pairs(code)

    # Edges and groups.

    def _join(self, scanned: CopyScan, found: _State, answers: SearchResults) -> None:
        if self.config.mode == "datalab":
            task, shared = ray.remote(_listed).options(num_cpus=1), ray.put(scanned.copies)
            for code, calibration in found.radii.items():
                listed = [
                    task.remote(answers, i, shared, code, calibration.radius) for i in range(len(self.chunks))
                ]
                found.edges[code] = distinct_edges(ray.get(listed))
            return
        # One join for all views of a radius: by default there is one radius, that of the real rows.
        for number, radius in enumerate(dict.fromkeys(c.radius for c in found.radii.values())):
            codes = [code for code, calibration in found.radii.items() if calibration.radius == radius]
            files = JoinFiles(self.tables, f"join-{number}-{radius:.17g}")
            cells = CellJoin(files, self.context.shards, scanned, self.gpu_pool, self.memory_bytes)
            edges, summary = cells.run([0, *codes], radius)
            found.joins.append(summary)
            found.edges |= {code: edges.of_view(code) for code in codes}

    def _spreads(self, scanned: CopyScan) -> dict[int, dict[str, Blocks]]:
        """Return how every generator's precision and coverage spread."""
        task, codes = ray.remote(_spread).options(num_cpus=1), self.codes[1:]
        shared = ray.put(scanned)
        return dict(zip(codes, ray.get([task.remote(shared, code) for code in codes]), strict=True))

    def _groups(
        self, scanned: CopyScan, found: _State, rows: dict[int, int], spread: dict[int, dict[str, Blocks]]
    ) -> dict[int, NeighborView]:
        copies = scanned.copies.edges(scanned.codes)
        lookup = RowLookup(self.tables, self.chunks, self.pool)
        views = {}
        for code, radius in found.radii.items():
            edges = distinct_edges([found.edges[code], copies.of_view(code)])
            groups = near_duplicate_groups(edges, radius.radius, lookup)
            insides = [recall for pair, recall in found.inside.items() if set(pair[:2]) <= {0, code}]
            recalls = [*(found.recalls[pair] for pair in view_pairs(code)), *insides]
            name = self.tables.names[code]
            count, is_whole = rows[0] + rows[code], self.config.mode == "exact"
            views[code] = NeighborView(
                name, radius, groups, count, searches_summary(recalls), is_whole, spread[code]
            )
        return views


def _sampled(rows: dict[int, int]) -> dict[int, int]:
    """Return how many rows of each set the plans and measurements want to see."""
    share = sample_size(sum(rows.values())) / sum(rows.values())
    return {
        code: max(
            index_sample_size(n) if n > FLAT_ROWS else 0, SAMPLED_QUERIES, SAMPLE_ROWS, int(np.ceil(share * n))
        )
        for code, n in rows.items()
    }


# Tasks.


def _listed(answers: SearchResults, chunk: int, copies: Copies, code: int, radius: float) -> Edges:
    relations = answers.relations(chunk)
    searches = ViewSearches(*(relations[pair] for pair in view_pairs(code)))
    return listed_edges(searches, copies, radius, (0, code))


def _spread(scanned: CopyScan, code: int) -> dict[str, Blocks]:
    counts = dict(zip((0, code), sample_rows(scanned.distinct[0], scanned.distinct[code]), strict=True))
    drawn = sample_distinct(scanned, counts)
    return prdc_spreads(drawn.of_set(0).vectors, drawn.of_set(code).vectors)


def _summary(view: NeighborView, test: SelfTest | None) -> dict[str, Any]:
    summary = view.summary()
    return {
        **summary,
        "spreads": {name: spread.tolist() for name, spread in view.spreads.items()},
        "self_test": None if test is None else test.summary(summary["radius"]),
    }
