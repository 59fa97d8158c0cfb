"""The last step of the neighbors stage: ``neighbors/``, ``nearest/`` and ``groups/``, a chunk of shards a task."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from synthscale import tables
from synthscale.copies import Copies
from synthscale.edges import Edges
from synthscale.neighbors import Found, Inside, View, nearest_rows
from synthscale.radius import Searches
from synthscale.relations import Recall, Relation
from synthscale.schemas import GROUPS, NEAREST, NEIGHBORS, Shard
from synthscale.search import Rows
from synthscale.stages.index_actors import Pair, load_inside, load_relations
from synthscale.stages.row_blocks import Crew, Tables

_Picked = tuple[dict[Pair, Relation], dict[int, Inside]]


def write_tables(
    run_tables: Tables,
    chunks: list[list[Shard]],
    parts: int,
    copies: Copies,
    recalls: dict[Pair, Recall | None],
    edges: Edges,
    views: dict[int, View],
    crew: Crew,
) -> None:
    """Write the three tables.

    Args:
        run_tables: the run's.
        chunks: the shards, in groups.
        parts: of the index, whose answers are read.
        copies: of all sets.
        recalls: of the searches; None where all pairs were compared.
        edges: of all views, each once, ascending.
        views: by the generators' codes.
        crew: runs the tasks.
    """
    shared = ray.put(copies)
    pick, ids = ray.remote(_pick).options(num_cpus=1), ray.remote(_ids).options(num_cpus=1)
    held = [(i, chunk, _of_chunk(copies.row, chunk)) for i, chunk in enumerate(chunks)]
    with_copies = [(i, chunk, rows) for i, chunk, rows in held if len(rows)]
    # What representatives found holds for their copies, in whatever shard these are.
    picked = [
        pick.remote(run_tables, i, parts, np.intersect1d(rows, copies.representative))
        for i, _, rows in with_copies
    ]
    named = ray.get([ids.remote(run_tables, chunk, rows) for _, chunk, rows in with_copies])
    later = ray.put(copies.later({row: name for part in named for row, name in part.items()}))
    sure = {pair: recall is None for pair, recall in recalls.items()}
    task = ray.remote(_write_chunk).options(num_cpus=1)

    def submit(number: int) -> Any:
        chunk = chunks[number]
        bounds = [chunk[0].start, chunk[-1].stop]
        own_edges = edges[slice(*np.searchsorted(edges.left, bounds))]
        groups = {
            code: tables.groups(view.generator, view.groups, slice(*np.searchsorted(view.groups.row, bounds)))
            for code, view in views.items()
        }
        return task.remote(run_tables, chunk, number, parts, shared, later, sure, own_edges, groups, *picked)

    for _ in crew.work(range(len(chunks)), submit, "tables written: chunks"):
        pass


def _of_chunk(rows: Rows, chunk: Sequence[Shard]) -> Rows:
    return rows[slice(*np.searchsorted(rows, [chunk[0].start, chunk[-1].stop]))]


def _ids(run_tables: Tables, chunk: list[Shard], rows: Rows) -> dict[int, str]:
    parts = [run_tables.run.read_shard("manifest", shard, ["row", "id"]) for shard in chunk]
    table = pa.concat_tables(parts).slice(0)
    at = rows - chunk[0].start
    return dict(zip(rows.tolist(), table.column("id").take(pa.array(at)).to_pylist(), strict=True))


def _pick(run_tables: Tables, chunk: int, parts: int, rows: Rows) -> _Picked:
    """Return what the given rows of a chunk found."""
    relations, insides = (load_relations(run_tables, chunk, parts), load_inside(run_tables, chunk, parts))
    picked = {}
    for pair, relation in relations.items():
        own = np.isin(relation.row, rows)
        picked[pair] = Relation(relation.row[own], relation.distance[own], relation.neighbor[own])
    return picked, {code: _inside_of(inside, rows) for code, inside in insides.items()}


def _inside_of(inside: Inside, rows: Rows) -> Inside:
    own = np.isin(inside.row, rows)
    return Inside(inside.row[own], inside.is_inside[own])


def _write_chunk(
    run_tables: Tables,
    chunk: list[Shard],
    number: int,
    parts: int,
    copies: Copies,
    later: Rows,
    sure: dict[Pair, bool],
    edges: Edges,
    groups: dict[int, pa.Table],
    *picked: _Picked,
) -> None:
    """Write a chunk's shards of the three tables; ``picked`` holds what representatives elsewhere found."""
    relations, insides = _merged(
        [(load_relations(run_tables, number, parts), load_inside(run_tables, number, parts)), *picked]
    )
    block = run_tables.rows(chunk)
    real = block.row[block.code == 0]
    views = []
    for code in groups:
        pairs = [(0, 0), (0, code), (code, 0), (code, code)]
        found = Found(
            Searches(*(replace(relations[p], recall=None if sure[p] else _NOT_EXACT) for p in pairs)),
            insides[0],
            insides[code],
        )
        own = block.row[block.code == code]
        views.append(tables.nearest(run_tables.names[code], nearest_rows(found, copies, real, own), later))
    nearest = pa.concat_tables(views)
    nearest = nearest.take(pa.array(np.argsort(nearest.column("row").to_numpy(), kind="stable")))
    members = pa.concat_tables(groups.values())
    members = members.take(pa.array(np.argsort(members.column("row").to_numpy(), kind="stable")))
    for table, key, name, schema in (
        (tables.edges(edges), "left", "neighbors", NEIGHBORS),
        (nearest, "row", "nearest", NEAREST),
        (members, "row", "groups", GROUPS),
    ):
        rows = table.column(key).to_numpy()
        for shard in chunk:
            low, high = np.searchsorted(rows, [shard.start, shard.stop])
            run_tables.run.write_shard(name, shard, table.slice(low, high - low), schema)


_NOT_EXACT = Recall(0.0, 0.0, 0, 0)


def _merged(parts: list[_Picked]) -> _Picked:
    """Put together what rows of a chunk and representatives of copies found, each row once."""
    relations, insides = {}, {}
    for pair in parts[0][0]:
        row = np.concatenate([p[0][pair].row for p in parts])
        row, first = np.unique(row, return_index=True)
        distance = np.concatenate([p[0][pair].distance for p in parts])[first]
        neighbor = np.concatenate([p[0][pair].neighbor for p in parts])[first]
        relations[pair] = Relation(row, distance, neighbor)
    for code in parts[0][1]:
        row, first = np.unique(np.concatenate([p[1][code].row for p in parts]), return_index=True)
        insides[code] = Inside(row, np.concatenate([p[1][code].is_inside for p in parts])[first])
    return relations, insides
