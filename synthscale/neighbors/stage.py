"""Neighbors: ``embeddings/`` -> ``neighbors/`` (edges), ``nearest/``, ``groups/`` and ``index/``, over Ray.

    scan      find exact copies, draw samples, choose the search spaces   ray_copy_scan, search_space
    analyse   k-NN searches, radius, join, groups (neighbors/analysis.py) ray_index_cluster, ray_cell_join
    write     the three tables, by shard                                  ray_tables

The self-test of the radius runs at the same time. The driver holds only edges, exact copies and groups, so its
memory does not grow with rows that have none of these; on one machine it searches small sets itself.
"""

import time
from typing import Any

import numpy as np

from synthscale.neighbors.analysis import analyse_views
from synthscale.neighbors.cell_index import index_sample_size
from synthscale.neighbors.cells import sample_size
from synthscale.neighbors.embedding_reader import EmbeddingReader, group_shards
from synthscale.neighbors.knn_search import FLAT_ROWS, SAMPLED_QUERIES
from synthscale.neighbors.ray_backend import RayBackend
from synthscale.neighbors.ray_copy_scan import moments_of_real, scan_copies
from synthscale.neighbors.ray_index_cluster import IndexProcesses
from synthscale.neighbors.ray_self_test import start_self_test
from synthscale.neighbors.ray_tables import SavedSearches, write_tables
from synthscale.neighbors.search_space import SearchSpace, search_spaces
from synthscale.neighbors.self_test import SelfTest
from synthscale.neighbors.view import NeighborView
from synthscale.runtime.stage_context import StageContext, StageOutcome
from synthscale.runtime.task_pool import TaskPool
from synthscale.statistics.prdc_variance import SAMPLE_ROWS
from synthscale.tables.schemas import REAL

ALGORITHM_VERSION = 4
"""Part of the fingerprint. Raise it when the same embeddings give other edges, groups or nearest rows."""
_SPACE_FILE = "space.json"
"""File in ``index/``: how stored vectors are mapped to those of the indexes."""
_CHUNK_ROWS = (2048, 32768)
"""Smallest and largest number of rows of a chunk, the unit of a search task; about 8 chunks in between."""


def fingerprint(context: StageContext) -> dict[str, Any]:
    """Return what edges and groups depend on."""
    return {
        "input": context.run.completed("embed").digest,
        "settings": context.config.result_settings("neighbors"),
        "manifold_counts": "manifold" in context.config.metrics.families,
        "versions": {"algorithm": ALGORITHM_VERSION},
    }


def run(context: StageContext) -> StageOutcome:
    """Find near-duplicates, nearest rows and the k-NN indicators for every generator's view."""
    names = (REAL, *context.generators)
    embedded = context.run.completed("embed").counts["sets"]
    rows = {code: int(embedded[name]["ok"]) for code, name in enumerate(names)}
    reader = EmbeddingReader(context.run, context.layout, names)
    chunks = group_shards(context.shards, int(np.clip(context.shards[-1].stop // 8, *_CHUNK_ROWS)))
    pool = TaskPool(context.cpus, 0, context.on_progress)
    gpu_pool = TaskPool(context.gpus or context.cpus, context.gpus, context.on_progress)

    clock = _Clock()
    in_process = context.has_only_local_cpus and sum(rows.values()) <= FLAT_ROWS
    # The actors' processes start while the rows are scanned.
    processes = IndexProcesses(reader, context.shards, chunks, gpu_pool, in_process=in_process)
    scanned = scan_copies(reader, chunks, _sample_sizes(rows), rows, pool)
    moments = moments_of_real(reader, chunks, scanned.copies, pool)
    spaces = search_spaces(context.layout, context.config.neighbors, moments)
    self_test = start_self_test(context, reader, spaces[0], chunks)
    clock.stop("scan")

    memory_bytes = int(context.config.neighbors.actor_memory_gib * 2**30)
    backends = [RayBackend(processes, spaces[0], scanned, pool, memory_bytes)]

    def manifold() -> RayBackend:
        backends.append(RayBackend(processes, spaces[1], scanned, pool, memory_bytes))
        return backends[-1]

    found = analyse_views(
        backends[0],
        None if spaces[0] is spaces[1] else manifold,
        context.config.neighbors,
        rows,
        counts_manifold="manifold" in context.config.metrics.families,
        on_phase=clock.stop,
    )
    near = backends[0].results
    saved = SavedSearches(near, near if len(backends) == 1 else backends[1].results)
    write_tables(saved, scanned.copies, found.searches, found.edges, found.views, pool)
    context.run.write_json(f"index/{_SPACE_FILE}", spaces[0].recipe())
    clock.stop("write")
    # If it fails, the next run has the searches' files: they are removed after the stage's marker is written.
    tested = self_test()
    info = {
        "views": {view.generator: _summary(view, spaces, tested) for view in found.views.values()},
        "joins": found.joins,
        "index_parts": saved.near.parts,
        "seconds": clock.seconds,
    }
    return StageOutcome({"rows": sum(rows.values()), "edges": len(found.edges)}, info)


class _Clock:
    """Wall-clock seconds of each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def stop(self, phase: str) -> None:
        now = time.monotonic()
        self.seconds[phase], self._last = round(now - self._last, 3), now


def _sample_sizes(rows: dict[int, int]) -> dict[int, int]:
    """Return how many rows of each set to sample: enough for k-means, recall, join plan and subsample variance."""
    share = sample_size(sum(rows.values())) / sum(rows.values())
    return {
        code: max(
            index_sample_size(n) if n > FLAT_ROWS else 0, SAMPLED_QUERIES, SAMPLE_ROWS, int(np.ceil(share * n))
        )
        for code, n in rows.items()
    }


def _summary(view: NeighborView, spaces: tuple[SearchSpace, SearchSpace], test: SelfTest | None) -> dict[str, Any]:
    summary = view.summary()
    return {
        **summary,
        "space": spaces[0].summary(),
        "manifold_space": spaces[1].summary(),
        "spreads": {name: spread.tolist() for name, spread in view.spreads.items()},
        "self_test": None if test is None else test.summary(summary["radius"]),
    }
