"""FAISS indexes of every set, sharded over actors: nearest neighbours and manifold membership of all rows.

A part is some of the shards; an actor holds one part at a time, as many rows as ``neighbors.actor_memory_gib``
allows. Where there are more parts than actors they take turns (waves), so that memory does not grow with the
number of rows. Parts are written under ``index/`` for later queries, and read back from there. Queries go to every part by chunk;
what a chunk found is kept, so that a rerun asks only what is missing.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import ray
from numpy.typing import NDArray

from synthscale import filesystems as fsys
from synthscale.cell_index import CellIndex, cells_for, index_sample_size, train_index
from synthscale.copies import Copies
from synthscale.neighbors import K
from synthscale.relations import (
    ALL_CELLS,
    FLAT_ROWS,
    SAMPLED_QUERIES,
    Index,
    Recall,
    Relation,
    compares_all,
    inside_recall,
    merge_nearest,
    probes_to_try,
    search,
    search_inside,
    tune,
)
from synthscale.schemas import Shard
from synthscale.search import FlatIndex, Floats, Rows
from synthscale.shortlist import shortlist_for
from synthscale.stages.copy_scan import Scan, sample
from synthscale.stages.row_blocks import Block, Crew, Tables, grouped

_CELL_NUMBERS = 64
_CORES_AN_ACTOR = 4

Pair = tuple[int, int]
"""Codes of the set that asks and the set that is searched."""


@dataclass(frozen=True)
class Question:
    """What one set asks of another: k nearest, through so many cells."""

    query: int
    database: int
    k: int
    probes: int


@dataclass(frozen=True)
class Part:
    """Some of the shards, which one actor holds at a time."""

    number: int
    of: int
    shards: list[Shard]

    @property
    def name(self) -> str:
        """Names the part's files under ``index/``."""
        return f"part-{self.number:05d}-of-{self.of:05d}"


@dataclass(frozen=True)
class Deal:
    """How parts are dealt to actors; it names what chunks found, so that another deal mixes nothing up."""

    parts: int
    actors: int

    @property
    def waves(self) -> int:
        """How many turns the actors take."""
        return -(-self.parts // self.actors)

    def folder(self, what: str) -> str:
        """Return where answers to one kind of question lie."""
        return f"{what}-{self.parts}-{self.actors}"

    def name(self, what: str, chunk: int, wave: int) -> str:
        """Return the name of a chunk's answers from one wave."""
        return f"{self.folder(what)}/chunk-{chunk:06d}-wave-{wave:04d}"


class IndexCluster:
    """The actors of a run, and what they are asked."""

    def __init__(
        self,
        tables: Tables,
        shards: Sequence[Shard],
        chunks: list[list[Shard]],
        scanned: Scan,
        crew: Crew,
        memory_bytes: int,
    ) -> None:
        """Start the actors; about four cores each, so that BLAS can use its threads, or a GPU."""
        self._tables, self._chunks, self._scan, self._crew = tables, chunks, scanned, crew
        count = crew.gpus or max(1, min(crew.workers // _CORES_AN_ACTOR, len(shards)))
        width = tables.layout.search[1] - tables.layout.search[0]
        rows = max(1, memory_bytes // (4 * (width + _CELL_NUMBERS) + 16))
        needed = -(-sum(scanned.distinct.values()) // rows)
        # As many parts as fill whole waves; every other shard, so that no part holds one set alone.
        parts = min(len(shards), count * max(1, -(-needed // count)))
        self._parts = [Part(i, parts, list(shards[i::parts])) for i in range(parts)]
        self.deal = Deal(parts, count)
        self._copies = ray.put(scanned.copies)
        train = ray.remote(_train).options(num_cpus=1)
        trained = {
            code: train.remote(scanned, code, index_sample_size(n), cells_for(n)) if n > FLAT_ROWS else None
            for code, n in scanned.distinct.items()
        }
        actor = ray.remote(_IndexActor).options(
            num_cpus=1, num_gpus=1 if crew.gpus else 0, max_restarts=-1, max_task_retries=3
        )
        threads = max(1, crew.workers // count)
        self._actors = [
            actor.remote(tables, self._copies, chunks, list(trained.items()), threads, crew.gpus)
            for _ in range(count)
        ]

    def close(self) -> None:
        """End the actors, so that what follows has their cores."""
        for actor in self._actors:
            ray.kill(actor)

    def _waves(self) -> Iterator[tuple[int, list[tuple[Any, Part]]]]:
        """Yield (wave, its actors with the part that each holds)."""
        count = len(self._actors)
        for wave, start in enumerate(range(0, len(self._parts), count)):
            yield wave, list(zip(self._actors, self._parts[start : start + count], strict=False))

    def _is_exact(self, pair: Pair) -> bool:
        sizes = self._scan.distinct
        return sizes[pair[1]] <= FLAT_ROWS or compares_all(sizes[pair[0]], sizes[pair[1]])

    # Recall, from a sample that is searched both ways.

    def sampled(self, pairs: Sequence[Pair], k: int, counts: dict[int, int]) -> dict[Pair, Relation]:
        """Search some rows of each set (by code) exactly, over all parts."""
        questions = [Question(*pair, k, ALL_CELLS) for pair in pairs]
        rows, answers = self._ask_sample(questions, counts)
        return {
            pair: Relation(rows[pair[0]], *answers[question])
            for pair, question in zip(pairs, questions, strict=True)
        }

    def recalls(self, pairs: Sequence[Pair], k: int) -> dict[Pair, Recall | None]:
        """Return how many cells each pair of sets probes and what that finds; None compares all pairs."""
        probed = [pair for pair in pairs if not self._is_exact(pair)]
        if not probed:
            return dict.fromkeys(pairs)
        cells = {pair: cells_for(self._scan.distinct[pair[1]]) for pair in probed}
        tries = {pair: probes_to_try(cells[pair]) for pair in probed}
        questions = {pair: [Question(*pair, k, probes) for probes in tries[pair]] for pair in probed}
        asked = [question for own in questions.values() for question in own]
        _, answers = self._ask_sample(asked, dict.fromkeys(self._scan.distinct, SAMPLED_QUERIES))
        recalls: dict[Pair, Recall | None] = dict.fromkeys(pairs)
        for pair, own in questions.items():
            recalls[pair] = tune({question.probes: answers[question][0] for question in own}, cells[pair])
        return recalls

    def _ask_sample(
        self, questions: list[Question], counts: dict[int, int]
    ) -> tuple[dict[int, Rows], dict[Question, tuple[Floats, Rows]]]:
        block = ray.remote(_sorted_sample).options(num_cpus=1).remote(self._scan, counts)
        found: dict[Question, list[tuple[Floats, Rows]]] = {question: [] for question in questions}
        for _, actors in self._waves():
            for answers in ray.get([actor.nearest.remote(part, block, questions) for actor, part in actors]):
                for question, answer in zip(questions, answers, strict=True):
                    found[question].append(answer)
        sampled: Block = ray.get(block)
        rows = {code: sampled.row[sampled.code == code] for code in self._scan.distinct}
        return rows, {question: merge_nearest(parts, question.k) for question, parts in found.items()}

    # All rows, chunk by chunk.

    def search(self, questions: list[Question], wanted: Sequence[Pair]) -> dict[Pair, list[Floats]]:
        """Search all distinct rows; keep what each chunk found; return the distances of the wanted pairs."""
        save = ray.remote(_save_nearest).options(num_cpus=1)
        have = self._tables.saved(self.deal.folder("nearest"))
        distances: dict[Pair, list[Floats]] = {pair: [] for pair in wanted}
        for wave, actors in self._waves():
            todo = [i for i in range(len(self._chunks)) if self.deal.name("nearest", i, wave) not in have]

            def submit(chunk: int, wave: int = wave, actors: Any = actors) -> Any:
                block = self._read(chunk)
                answers = [actor.nearest.remote(part, block, questions) for actor, part in actors]
                return save.remote(
                    self._tables, self.deal.name("nearest", chunk, wave), block, questions, *answers
                )

            for _ in self._crew.work(todo, submit, f"nearest neighbours, part {wave + 1}: chunks"):
                pass
        if wanted:
            for i in range(len(self._chunks)):
                relations = load_relations(self._tables, i, self.deal)
                for pair in wanted:
                    distances[pair].append(relations[pair].distance)
        return distances

    def inside(self, recalls: dict[Pair, Recall | None]) -> dict[int, Recall | None]:
        """Find which rows of each set lie inside a real row's k-NN radius, keep it, and return the recalls."""
        probes = {code: r.probes if (r := recalls[code, 0]) else ALL_CELLS for code in self._scan.distinct}
        sampled = [code for code in probes if recalls[code, 0] is not None]
        save = ray.remote(_save_inside).options(num_cpus=1)
        have = self._tables.saved(self.deal.folder("inside"))
        block = (
            ray.remote(_sorted_sample)
            .options(num_cpus=1)
            .remote(self._scan, dict.fromkeys(self._scan.distinct, SAMPLED_QUERIES))
        )
        tried: list[list[dict[int, NDArray[np.bool_]]]] = []
        for wave, actors in self._waves():
            todo = [i for i in range(len(self._chunks)) if self.deal.name("inside", i, wave) not in have]

            def submit(chunk: int, wave: int = wave, actors: Any = actors) -> Any:
                queries = self._read(chunk)
                answers = [actor.inside.remote(part, queries, probes, self.deal) for actor, part in actors]
                return save.remote(self._tables, self.deal.name("inside", chunk, wave), queries, *answers)

            for _ in self._crew.work(todo, submit, f"manifold, part {wave + 1}: chunks"):
                pass
            if sampled:
                for by in (probes, dict.fromkeys(probes, ALL_CELLS)):
                    asked = [actor.inside.remote(part, block, by, self.deal) for actor, part in actors]
                    tried.append(ray.get(asked))
        measured: dict[int, Recall | None] = dict.fromkeys(probes)
        for code in sampled:
            found, true = (
                np.logical_or.reduce([answer[code] for answers in tried[i::2] for answer in answers])
                for i in (0, 1)
            )
            measured[code] = inside_recall(found, true, probes[code])
        return measured

    def _read(self, chunk: int) -> Any:
        return ray.remote(_read).options(num_cpus=0).remote(self._tables, self._chunks[chunk], self._copies)


class _IndexActor:
    """The indexes of one part: of every set, its distinct rows there."""

    def __init__(
        self,
        tables: Tables,
        copies: Copies,
        chunks: list[list[Shard]],
        trained: list[tuple[int, Any]],
        threads: int,
        gpus: int,
    ) -> None:
        faiss.omp_set_num_threads(threads)
        self._tables, self._copies, self._chunks = tables, copies, chunks
        self._trained = {code: None if ref is None else ray.get(ref) for code, ref in trained}
        self._shortlist = shortlist_for(gpus)
        self._part: Part | None = None
        self._indexes: dict[int, Index] = {}
        self._radii: Floats | None = None

    def _hold(self, part: Part) -> None:
        """Hold a part: read what was saved of it, or build and save it."""
        if part == self._part:
            return
        self._indexes, self._radii, self._part = {}, None, None
        flat: dict[int, list[Block]] = {}
        for code, trained in self._trained.items():
            path = self._path(part, code)
            if trained is None:
                flat[code] = []
            elif fsys.exists(path, self._tables.run.storage):
                self._indexes[code] = self._read(path, trained)
            else:
                self._indexes[code] = CellIndex(trained, self._shortlist)
        fresh = [
            code for code, index in self._indexes.items() if isinstance(index, CellIndex) and not len(index.rows)
        ]
        if flat or fresh:
            for shards in grouped(part.shards, 8192):
                block = self._tables.block(shards, self._copies)
                for code in fresh:
                    own = block.of_set(code)
                    self._indexes[code].add(own.vectors, own.row)  # type: ignore[union-attr]
                for code, kept in flat.items():
                    kept.append(block.of_set(code))
        for code, blocks in flat.items():
            vectors, rows = (np.concatenate([getattr(b, name) for b in blocks]) for name in ("vectors", "row"))
            self._indexes[code] = FlatIndex(vectors, rows)
        for code in [*flat, *fresh]:
            fsys.write_with(self._path(part, code), self._indexes[code].write, self._tables.run.storage)
        self._part = part

    def _path(self, part: Part, code: int) -> str:
        return self._tables.run.path("index", f"{part.name}.{self._tables.names[code]}.faiss")

    def _read(self, path: str, trained: NDArray[np.uint8]) -> CellIndex:
        with tempfile.TemporaryDirectory() as folder:
            local = path
            if fsys.is_s3(path):
                local = os.path.join(folder, "index")
                fsys.filesystem(path, self._tables.run.storage).get_file(path, local)
            return CellIndex.read(local, self._shortlist)

    def nearest(self, part: Part, block: Block, questions: list[Question]) -> list[tuple[Floats, Rows]]:
        self._hold(part)
        answers = []
        for question in questions:
            own = block.of_set(question.query)
            answers.append(
                search(self._indexes[question.database], own.vectors, own.row, question.k, question.probes)
            )
        return answers

    def _read_radii(self, deal: Deal) -> Floats:
        """Return the k-NN radii of this part's real rows, from what the chunks found."""
        rows = self._indexes[0].rows
        radii = np.full(len(rows), -np.inf)
        order = np.argsort(rows)
        for chunk, shards in enumerate(self._chunks):
            low, high = np.searchsorted(rows[order], [shards[0].start, shards[-1].stop])
            if low < high:
                own = order[low:high]
                relation = load_relations(self._tables, chunk, deal)[0, 0]
                radii[own] = relation.radius(K)[np.searchsorted(relation.row, rows[own])]
        return radii

    def inside(self, part: Part, block: Block, probes: dict[int, int], deal: Deal) -> dict[int, NDArray[np.bool_]]:
        self._hold(part)
        if self._radii is None:
            self._radii = self._read_radii(deal)
        result = {}
        for code, count in probes.items():
            own = block.of_set(code)
            result[code] = search_inside(self._indexes[0], own.vectors, own.row, self._radii, count)
        return result


def _train(scanned: Scan, code: int, rows: int, cells: int) -> NDArray[np.uint8]:
    return train_index(sample(scanned, {code: rows}).vectors.astype(np.float32), cells)


def _sorted_sample(scanned: Scan, counts: dict[int, int]) -> Block:
    block = sample(scanned, counts)
    order = np.argsort(block.row)
    return Block(block.row[order], block.code[order], block.vectors[order])


def _read(tables: Tables, shards: list[Shard], copies: Copies) -> Block:
    return tables.block(shards, copies)


# What a chunk's rows found.


def _save_nearest(
    tables: Tables, name: str, block: Block, questions: list[Question], *answers: list[tuple[Floats, Rows]]
) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    for i, question in enumerate(questions):
        distance, neighbor = merge_nearest([answer[i] for answer in answers], question.k)
        key = f"{question.query}-{question.database}"
        arrays[f"{key}-row"] = block.row[block.code == question.query]
        arrays[f"{key}-distance"], arrays[f"{key}-neighbor"] = distance, neighbor
    tables.save(name, arrays)


def load_relations(tables: Tables, chunk: int, deal: Deal) -> dict[Pair, Relation]:
    """Return what a chunk's rows found in each set, merged over the waves."""
    parts = [tables.load(deal.name("nearest", chunk, wave)) for wave in range(deal.waves)]
    relations = {}
    for key in (name.removesuffix("-row") for name in parts[0] if name.endswith("-row")):
        query, database = (int(code) for code in key.split("-"))
        answers = [(part[f"{key}-distance"], part[f"{key}-neighbor"]) for part in parts]
        row = parts[0][f"{key}-row"]
        relations[query, database] = Relation(row, *merge_nearest(answers, answers[0][0].shape[1]))
    return relations


def _save_inside(tables: Tables, name: str, block: Block, *answers: dict[int, NDArray[np.bool_]]) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    for code in answers[0]:
        arrays[f"{code}-row"] = block.row[block.code == code]
        arrays[f"{code}-inside"] = np.logical_or.reduce([answer[code] for answer in answers])
    tables.save(name, arrays)


def load_inside(tables: Tables, chunk: int, deal: Deal) -> dict[int, tuple[Rows, NDArray[np.bool_]]]:
    """Return which of a chunk's rows lie inside the real manifold, by set."""
    parts = [tables.load(deal.name("inside", chunk, wave)) for wave in range(deal.waves)]
    codes = [int(name.removesuffix("-row")) for name in parts[0] if name.endswith("-row")]
    return {
        code: (parts[0][f"{code}-row"], np.logical_or.reduce([part[f"{code}-inside"] for part in parts]))
        for code in codes
    }
