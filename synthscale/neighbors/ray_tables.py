"""The last step of the neighbors stage: ``neighbors/``, ``nearest/`` and ``groups/``, a chunk of shards a task."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from synthscale.neighbors import arrow_tables
from synthscale.neighbors.copies import Copies
from synthscale.neighbors.distance import Rows
from synthscale.neighbors.edges import Edges
from synthscale.neighbors.embedding_reader import EmbeddingReader
from synthscale.neighbors.knn_search import KnnResult, Recall
from synthscale.neighbors.radius import ViewSearches
from synthscale.neighbors.ray_index_actors import RadiusKey, SearchResults, SetPair, view_pairs
from synthscale.neighbors.view import NeighborView, RadiusCounts, ViewNeighbors, nearest_rows
from synthscale.runtime.task_pool import TaskPool
from synthscale.tables.layout import Shard
from synthscale.tables.schemas import GROUPS, NEAREST, NEIGHBORS

_Picked = tuple[dict[SetPair, KnnResult], dict[RadiusKey, RadiusCounts]]


@dataclass(frozen=True)
class _Shared:
    """What the tasks of all chunks are told.

    Attributes:
        copies: of all sets.
        later: the rows that equal one of a smaller id.
        sure: of each pair of sets, whether all pairs of rows were compared.
    """

    copies: Copies
    later: Rows
    sure: dict[SetPair, bool]


def write_tables(
    answers: SearchResults,
    copies: Copies,
    recalls: dict[SetPair, Recall | None],
    edges: Edges,
    views: dict[int, NeighborView],
    pool: TaskPool,
) -> None:
    """Write the three tables.

    Args:
        answers: what the rows found, by chunk.
        copies: of all sets.
        recalls: of the searches; None where all pairs were compared.
        edges: of all views, each once, ascending.
        views: by the generators' codes.
        pool: runs the tasks.
    """
    pick, ids = ray.remote(_pick).options(num_cpus=1), ray.remote(_ids).options(num_cpus=1)
    held = [(i, chunk, _of_chunk(copies.row, chunk)) for i, chunk in enumerate(answers.chunks)]
    with_copies = [(i, chunk, rows) for i, chunk, rows in held if len(rows)]
    # What representatives found holds for their copies, in whatever shard these are.
    picked = [pick.remote(answers, i, np.intersect1d(rows, copies.representative)) for i, _, rows in with_copies]
    named = ray.get([ids.remote(answers.tables, chunk, rows) for _, chunk, rows in with_copies])
    later = copies.later({row: name for part in named for row, name in part.items()})
    shared = ray.put(_Shared(copies, later, {pair: recall is None for pair, recall in recalls.items()}))
    task = ray.remote(_write_chunk).options(num_cpus=1)

    def submit(number: int) -> Any:
        chunk = answers.chunks[number]
        bounds = [chunk[0].start, chunk[-1].stop]
        own_edges = edges[slice(*np.searchsorted(edges.left, bounds))]
        groups = {
            code: arrow_tables.groups(
                view.generator, view.groups, slice(*np.searchsorted(view.groups.row, bounds))
            )
            for code, view in views.items()
        }
        return task.remote(answers, number, shared, own_edges, groups, *picked)

    for _ in pool.work(range(len(answers.chunks)), submit, "tables written: chunks"):
        pass


def _of_chunk(rows: Rows, chunk: Sequence[Shard]) -> Rows:
    return rows[slice(*np.searchsorted(rows, [chunk[0].start, chunk[-1].stop]))]


def _ids(run_tables: EmbeddingReader, chunk: list[Shard], rows: Rows) -> dict[int, str]:
    table = pa.concat_tables(run_tables.run.read_shard("manifest", shard, ["id"]) for shard in chunk)
    at = rows - chunk[0].start
    return dict(zip(rows.tolist(), table.column("id").take(pa.array(at)).to_pylist(), strict=True))


def _pick(answers: SearchResults, chunk: int, rows: Rows) -> _Picked:
    """Return what the given rows of a chunk found."""
    picked = {}
    for pair, relation in answers.relations(chunk).items():
        own = np.isin(relation.row, rows)
        picked[pair] = KnnResult(relation.row[own], relation.distance[own], relation.neighbor[own])
    insides = {}
    for ball, inside in answers.inside(chunk).items():
        own = np.isin(inside.row, rows)
        insides[ball] = RadiusCounts(inside.row[own], inside.count[own])
    return picked, insides


def _write_chunk(
    answers: SearchResults,
    number: int,
    shared: _Shared,
    edges: Edges,
    groups: dict[int, pa.Table],
    *picked: _Picked,
) -> None:
    """Write a chunk's shards of the three tables; ``picked`` holds what representatives elsewhere found."""
    relations, insides = _merged([(answers.relations(number), answers.inside(number)), *picked])
    chunk, names = answers.chunks[number], answers.tables.names
    block = answers.tables.rows(chunk)
    real = block.row[block.code == 0]
    views = []
    for code in groups:
        searches = ViewSearches(
            *(replace(relations[p], recall=None if shared.sure[p] else _NOT_EXACT) for p in view_pairs(code))
        )
        own = block.row[block.code == code]
        seen = ViewNeighbors(
            searches,
            insides[0, 0, False],
            insides[code, 0, False],
            insides.get((0, code, False)),
            insides.get((0, code, True)),
        )
        found = nearest_rows(seen, shared.copies, real, own)
        views.append(arrow_tables.nearest(names[code], found, shared.later))
    nearest = pa.concat_tables(views)
    nearest = nearest.take(pa.array(np.argsort(nearest.column("row").to_numpy(), kind="stable")))
    members = pa.concat_tables(groups.values())
    members = members.take(pa.array(np.argsort(members.column("row").to_numpy(), kind="stable")))
    for table, key, name, schema in (
        (arrow_tables.edges(edges), "left", "neighbors", NEIGHBORS),
        (nearest, "row", "nearest", NEAREST),
        (members, "row", "groups", GROUPS),
    ):
        rows = table.column(key).to_numpy()
        for shard in chunk:
            low, high = np.searchsorted(rows, [shard.start, shard.stop])
            answers.tables.run.write_shard(name, shard, table.slice(low, high - low), schema)


_NOT_EXACT = Recall(0.0, 0.0, 0, 0)


def _merged(parts: list[_Picked]) -> _Picked:
    """Put together what rows of a chunk and representatives of copies found, each row once."""
    relations, insides = {}, {}
    for pair in parts[0][0]:
        row = np.concatenate([p[0][pair].row for p in parts])
        row, first = np.unique(row, return_index=True)
        distance = np.concatenate([p[0][pair].distance for p in parts])[first]
        neighbor = np.concatenate([p[0][pair].neighbor for p in parts])[first]
        relations[pair] = KnnResult(row, distance, neighbor)
    for ball in parts[0][1]:
        row, first = np.unique(np.concatenate([p[1][ball].row for p in parts]), return_index=True)
        insides[ball] = RadiusCounts(row, np.concatenate([p[1][ball].count for p in parts])[first])
    return relations, insides
