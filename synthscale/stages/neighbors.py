"""Neighbors: ``embeddings/`` -> ``neighbors/`` (edges), ``nearest/``, ``groups/`` and ``index/``, over Ray.

    scan    exact copies collapse; samples are drawn            (copy_scan)
    search  nearest rows and manifold, indexes in actors        (index_actors)
    join    all pairs within the radius, cells in tasks         (cell_join)
    write   groups, and the tables by shard                     (here)

What is computed, and why, stands in ``synthscale.neighbors``, ``cells``, ``join`` and ``relations``. The driver
holds edges, copies and groups, and no row that has none.
"""

import logging
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from synthscale import filesystems as fsys
from synthscale import selftest, tables
from synthscale.cell_index import index_sample_size
from synthscale.cells import sample_size
from synthscale.config import Config
from synthscale.copies import Copies
from synthscale.edges import Edges, distinct_edges
from synthscale.embedding import encoder_for, fetch_all
from synthscale.groups import near_duplicate_groups
from synthscale.metrics.core import Metric
from synthscale.neighbors import (
    Found,
    Inside,
    View,
    listed_edges,
    nearest_rows,
    neighbors_listed,
    searches_summary,
)
from synthscale.radius import Calibration, Searches, calibrate
from synthscale.relations import ALL_CELLS, FLAT_ROWS, SAMPLED_QUERIES, Recall, Relation
from synthscale.schemas import GROUPS, NEAREST, NEIGHBORS, REAL, Shard, shards_of
from synthscale.search import Floats, Rows, distances_within, norms
from synthscale.selftest import SelfTest
from synthscale.stages.cell_join import CellJoin
from synthscale.stages.context import Outcome, StageContext
from synthscale.stages.copy_scan import Scan, scan
from synthscale.stages.index_actors import Deal, IndexCluster, Pair, Question, load_inside, load_relations
from synthscale.stages.row_blocks import FOLDER, Crew, Tables, grouped

logger = logging.getLogger(__name__)

_CHUNK_ROWS = (2048, 32768)
_ANCHORS = 65536


def fingerprint(context: StageContext) -> dict[str, Any]:
    """Return what edges and groups depend on."""
    return {
        "input": context.run.completed("embed").digest,
        "settings": context.config.result_settings("neighbors"),
        "versions": {"algorithm": 2},
    }


def run(context: StageContext) -> Outcome:
    """Find near-duplicates, nearest rows and manifold indicators for every generator's view."""
    return _Job(context).work()


@dataclass
class _Found:
    """What the stage knows so far, by the generators' codes."""

    recalls: dict[Pair, Recall | None] = field(default_factory=dict)
    inside: dict[int, Recall | None] = field(default_factory=dict)
    radii: dict[int, Calibration] = field(default_factory=dict)
    edges: dict[int, Edges] = field(default_factory=dict)
    joins: list[dict[str, Any]] = field(default_factory=list)


class _Job:
    """One run of the stage."""

    def __init__(self, context: StageContext) -> None:
        self.context, self.config = context, context.config.neighbors
        names = (REAL, *context.generators)
        self.tables = Tables(context.run, context.layout, names)
        self.codes = list(range(len(names)))
        cpus = max(1, context.cpus)
        self.crew = Crew(cpus, 0, context.tell)
        self.gpu_crew = Crew(context.gpus or cpus, context.gpus, context.tell)
        self.chunks = grouped(context.shards, int(np.clip(context.shards[-1].stop // 8, *_CHUNK_ROWS)))
        self.memory_bytes = int(self.config.actor_memory_gib * 2**30)
        self.k = neighbors_listed(self.config)

    def work(self) -> Outcome:
        test = _start_self_test(self.context, self.tables, self.chunks)
        embedded = self.context.run.completed("embed").counts["sets"]
        rows = {code: int(embedded[name]["ok"]) for code, name in enumerate(self.tables.names)}
        is_datalab = self.config.mode == "datalab"
        scanned = scan(self.tables, self.chunks, _sampled(rows), rows, self.crew, datalab=is_datalab)
        found = _Found()
        deal = self._search(scanned, found)
        self._join(scanned, found, deal)
        views = self._groups(scanned, found, rows)
        edges = distinct_edges([scanned.copies.edges(scanned.codes), *found.edges.values()])
        self._write(scanned, found, deal, edges, views)
        fsys.remove(self.context.run.path(FOLDER), self.context.run.storage)
        tested = None if test is None else ray.get(test)
        info = {
            "views": {v.generator: {**v.summary(), "self_test": _summary(tested, v)} for v in views.values()},
            "joins": found.joins,
            "index_parts": deal.parts,
        }
        return Outcome({"rows": sum(rows.values()), "edges": len(edges)}, info)

    # Nearest neighbours, and the radii that follow from them.

    def _search(self, scanned: Scan, found: _Found) -> Deal:
        cross = self.k if self.config.mode == "datalab" else 1
        asked = {(0, 0): self.k}
        for code in self.codes[1:]:
            asked |= {(0, code): cross, (code, 0): cross, (code, code): self.k}
        cluster = IndexCluster(
            self.tables, self.context.shards, self.chunks, scanned, self.gpu_crew, self.memory_bytes
        )
        for k in dict.fromkeys(asked.values()):
            found.recalls |= cluster.recalls([pair for pair, own in asked.items() if own == k], k)
        questions = [
            Question(*pair, k, r.probes if (r := found.recalls[pair]) else ALL_CELLS) for pair, k in asked.items()
        ]
        needed = {code: self._calibrating(code) for code in self.codes[1:]}
        exact = [pair for pair in asked if found.recalls[pair] is None]
        wanted = {pair for pairs in needed.values() if set(pairs) <= set(exact) for pair in pairs}
        nearest = cluster.search(questions, sorted(wanted))
        found.inside = cluster.inside(found.recalls)
        for code, pairs in needed.items():
            n = sum(scanned.distinct[query] for query in {pair[0] for pair in pairs})
            if set(pairs) <= wanted:
                relations = {pair: _only_distances(np.concatenate(nearest[pair])) for pair in pairs}
            else:
                counts = {q: SAMPLED_QUERIES * scanned.distinct[q] // n + 1 for q in {pair[0] for pair in pairs}}
                relations = cluster.sampled(pairs, 1, counts)
            searches = Searches(*([relations[pair] for pair in pairs] * 4)[:4])
            found.radii[code] = calibrate(searches, n, self.config)
        cluster.close()
        return cluster.deal

    def _calibrating(self, code: int) -> list[Pair]:
        """Return the pairs of sets whose distances a generator's radius follows from."""
        if self.config.mode == "exact" and self.config.calibrate_on == "real":
            return [(0, 0)]
        return [(0, 0), (0, code), (code, 0), (code, code)]

    # Edges and groups.

    def _join(self, scanned: Scan, found: _Found, deal: Deal) -> None:
        if self.config.mode == "datalab":
            task = ray.remote(_listed).options(num_cpus=1)
            for code, calibration in found.radii.items():
                parts = [
                    task.remote(self.tables, i, deal, code, calibration.radius) for i in range(len(self.chunks))
                ]
                found.edges[code] = distinct_edges(ray.get(parts))
            return
        # One join for all views of a radius: by default there is one radius, that of the real rows.
        for number, radius in enumerate(dict.fromkeys(c.radius for c in found.radii.values())):
            codes = [code for code, calibration in found.radii.items() if calibration.radius == radius]
            cells = CellJoin(
                self.tables,
                self.context.shards,
                scanned,
                self.gpu_crew,
                self.memory_bytes,
                f"{number}-{radius:.17g}",
            )
            edges, summary = cells.run([0, *codes], radius)
            found.joins.append(summary)
            found.edges |= {code: edges.of_view(code) for code in codes}

    def _groups(self, scanned: Scan, found: _Found, rows: dict[int, int]) -> dict[int, View]:
        copies = scanned.copies.edges(scanned.codes)
        distances = _Distances(self.tables, self.chunks, self.crew)
        views = {}
        for code, radius in found.radii.items():
            edges = distinct_edges([found.edges[code], copies.of_view(code)])
            groups = near_duplicate_groups(edges, radius.radius, distances)
            pairs = [(0, 0), (0, code), (code, 0), (code, code)]
            recalls = [*(found.recalls[pair] for pair in pairs), found.inside[0], found.inside[code]]
            name = self.tables.names[code]
            views[code] = View(name, radius, groups, rows[0] + rows[code], searches_summary(recalls))
        return views

    # The tables, by shard.

    def _write(self, scanned: Scan, found: _Found, deal: Deal, edges: Edges, views: dict[int, View]) -> None:
        copies = ray.put(scanned.copies)
        shared = np.unique(scanned.copies.representative)
        pick = ray.remote(_pick).options(num_cpus=1)
        chosen = [shared[(shared >= c[0].start) & (shared < c[-1].stop)] for c in self.chunks]
        picked = [pick.remote(self.tables, i, deal, own) for i, own in enumerate(chosen) if len(own)]
        ids = ray.remote(_ids).options(num_cpus=1)
        held = [
            scanned.copies.row[(scanned.copies.row >= c[0].start) & (scanned.copies.row < c[-1].stop)]
            for c in self.chunks
        ]
        named = ray.get(
            [ids.remote(self.tables, c, own) for c, own in zip(self.chunks, held, strict=True) if len(own)]
        )
        later = ray.put(scanned.copies.later({row: name for part in named for row, name in part.items()}))
        sure = {pair: recall is None for pair, recall in found.recalls.items()}
        task = ray.remote(_write_chunk).options(num_cpus=1)

        def submit(i: int) -> Any:
            low, high = self.chunks[i][0].start, self.chunks[i][-1].stop
            own_edges = edges[slice(*np.searchsorted(edges.left, [low, high]))]
            groups = {
                code: tables.groups(
                    view.generator, view.groups, slice(*np.searchsorted(view.groups.row, [low, high]))
                )
                for code, view in views.items()
            }
            return task.remote(
                self.tables, self.chunks[i], i, deal, copies, later, sure, own_edges, groups, *picked
            )

        for _ in self.crew.work(range(len(self.chunks)), submit, "tables written: chunks"):
            pass


def _sampled(rows: dict[int, int]) -> dict[int, int]:
    """Return how many rows of each set the plans and measurements want to see."""
    share = sample_size(sum(rows.values())) / sum(rows.values())
    return {
        code: max(index_sample_size(n) if n > FLAT_ROWS else 0, SAMPLED_QUERIES, int(np.ceil(share * n)))
        for code, n in rows.items()
    }


def _only_distances(distance: Floats) -> Relation:
    return Relation(np.arange(len(distance)), distance, np.zeros(distance.shape, np.int64))


# Tasks.


def _listed(known: Tables, chunk: int, deal: Deal, code: int, radius: float) -> Edges:
    relations = load_relations(known, chunk, deal)
    pairs = [(0, 0), (0, code), (code, 0), (code, code)]
    return listed_edges(Searches(*(relations[pair] for pair in pairs)), radius, (0, code))


def _ids(known: Tables, chunk: list[Shard], rows: Rows) -> dict[int, str]:
    parts = [known.run.read_shard("manifest", shard, ["row", "id"]) for shard in chunk]
    table = pa.concat_tables(parts).slice(0)
    at = rows - chunk[0].start
    return dict(zip(rows.tolist(), table.column("id").take(pa.array(at)).to_pylist(), strict=True))


_Picked = tuple[dict[Pair, Relation], dict[int, Inside]]


def _pick(known: Tables, chunk: int, deal: Deal, rows: Rows) -> _Picked:
    """Return what the given rows of a chunk found."""
    relations, insides = _answers(known, chunk, deal)
    picked = {}
    for pair, relation in relations.items():
        own = np.isin(relation.row, rows)
        picked[pair] = Relation(relation.row[own], relation.distance[own], relation.neighbor[own])
    return picked, {code: _inside_of(inside, rows) for code, inside in insides.items()}


def _inside_of(inside: Inside, rows: Rows) -> Inside:
    own = np.isin(inside.row, rows)
    return Inside(inside.row[own], inside.is_inside[own])


def _answers(known: Tables, chunk: int, deal: Deal) -> _Picked:
    insides = {
        code: Inside(rows, is_inside) for code, (rows, is_inside) in load_inside(known, chunk, deal).items()
    }
    return load_relations(known, chunk, deal), insides


def _write_chunk(
    known: Tables,
    chunk: list[Shard],
    number: int,
    deal: Deal,
    copies: Copies,
    later: Rows,
    sure: dict[Pair, bool],
    edges: Edges,
    groups: dict[int, pa.Table],
    *picked: _Picked,
) -> None:
    """Write a chunk's shards of the three tables; ``picked`` holds what representatives elsewhere found."""
    relations, insides = _merged([_answers(known, number, deal), *picked])
    block = known.rows(chunk)
    real = block.row[block.code == 0]
    parts = []
    for code in groups:
        pairs = [(0, 0), (0, code), (code, 0), (code, code)]
        found = Found(
            Searches(*(replace(relations[p], recall=None if sure[p] else _NOT_EXACT) for p in pairs)),
            insides[0],
            insides[code],
        )
        own = block.row[block.code == code]
        parts.append(tables.nearest(known.names[code], nearest_rows(found, copies, real, own), later))
    nearest = pa.concat_tables(parts)
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
            known.run.write_shard(name, shard, table.slice(low, high - low), schema)


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


class _Distances:
    """Looks up distances of rows from anchors, for the diameters of groups: two passes over the rows' shards."""

    def __init__(self, known: Tables, chunks: list[list[Shard]], crew: Crew) -> None:
        self._known, self._chunks, self._crew = known, chunks, crew
        self._stops = np.array([chunk[-1].stop for chunk in chunks])

    def __call__(self, rows: Rows, anchors: Rows) -> Floats:
        """Return the distance of rows[i] and anchors[i]."""
        out = np.empty(len(rows))
        unique, which = np.unique(anchors, return_inverse=True)
        # A bounded number of anchors at a time; each is one vector.
        for start in range(0, len(unique), _ANCHORS):
            part = unique[start : start + _ANCHORS]
            own = np.flatnonzero((which >= start) & (which < start + len(part)))
            out[own] = self._from(rows[own], which[own] - start, part)
        return out

    def _from(self, rows: Rows, which: NDArray[np.intp], anchors: Rows) -> Floats:
        fetch = ray.remote(_vectors).options(num_cpus=1)
        measure = ray.remote(_measure).options(num_cpus=1)
        held = [fetch.remote(self._known, self._chunks[i], anchors[own]) for i, own in self._by_chunk(anchors)]
        out = np.empty(len(rows))

        def submit(item: tuple[int, NDArray[np.intp]]) -> Any:
            chunk, own = item
            return measure.remote(self._known, self._chunks[chunk], rows[own], which[own], *held)

        for (_, own), distance in self._crew.work(self._by_chunk(rows), submit, "diameters of groups: chunks"):
            out[own] = distance
        return out

    def _by_chunk(self, rows: Rows) -> list[tuple[int, NDArray[np.intp]]]:
        chunk = np.searchsorted(self._stops, rows, side="right")
        return [(int(i), np.flatnonzero(chunk == i)) for i in np.unique(chunk)]


def _vectors(known: Tables, chunk: list[Shard], rows: Rows) -> NDArray[np.floating]:
    shards = [s for s in chunk if np.searchsorted(rows, s.start) < np.searchsorted(rows, s.stop)]
    block = known.block(shards)
    return block.vectors[np.searchsorted(block.row, rows)]


def _measure(
    known: Tables, chunk: list[Shard], rows: Rows, which: NDArray[np.intp], *anchors: NDArray[np.floating]
) -> Floats:
    ordered, back = np.unique(rows, return_inverse=True)
    own = _vectors(known, chunk, ordered)
    both = np.concatenate([own, *anchors])
    return distances_within(both, norms(both), back, which + len(own))


# The self-test of the radius.


def _start_self_test(context: StageContext, known: Tables, chunks: list[list[Shard]]) -> Any:
    """Start embedding edited copies of sampled real images; None where there are no images."""
    count = context.config.neighbors.self_test_images
    if context.vectors is not None or count == 0:
        return None
    pick = ray.remote(_real_images).options(num_cpus=1)
    parts = [pick.remote(known, chunk, count) for chunk in chunks]
    return ray.remote(_self_test).options(num_cpus=1).remote(context.config, known, count, *parts)


def _real_images(known: Tables, chunk: list[Shard], count: int) -> pa.Table:
    """Return id, row, uri and content_hash of the chunk's part of the sample."""
    parts = []
    for shard in chunk:
        embedded = known.run.read_shard("embeddings", shard, ["row", "content_hash"])
        manifest = known.run.read_shard("manifest", shard, ["row", "id", "uri", "generator"])
        at = pa.array(embedded.column("row").to_numpy() - shard.start)
        mine = manifest.take(at).append_column("content_hash", embedded.column("content_hash"))
        parts.append(mine.filter(mine.column("generator").is_null()).drop_columns("generator"))
    return _drawn(pa.concat_tables(parts), count)


def _drawn(images: pa.Table, count: int) -> pa.Table:
    rows = images.column("row").to_numpy()
    chosen = selftest.sample_rows(images.column("id").to_pylist(), rows, count, seed=0)
    return images.filter(pa.array(np.isin(rows, chosen)))


def _self_test(config: Config, known: Tables, count: int, *parts: pa.Table) -> SelfTest:
    images = _drawn(pa.concat_tables(parts), count)
    rows = images.column("row").to_numpy()
    shards = known.run.completed("ingest").info["shard_stops"]
    wanted = [s for s in shards_of(shards) if ((rows >= s.start) & (rows < s.stop)).any()]
    pieces = [known.run.read_shard("embeddings", shard, ["row", "vector"]) for shard in wanted]
    table = pa.concat_tables(pieces)
    vectors = tables.vectors(table, (0, known.layout.dimensions))
    originals = vectors[np.searchsorted(table.column("row").to_numpy(), rows)]
    return selftest.run_self_test(
        fetch_all(images.column("uri").to_pylist(), config),
        originals.astype(np.float32),
        encoder_for(config),
        config.encoder.batch_size,
        images.column("content_hash").to_pylist(),
    )


def _summary(test: SelfTest | None, view: View) -> Metric | None:
    return None if test is None else test.summary(view.summary()["radius"])
