"""Nearest neighbours and manifold membership of all rows: FAISS indexes sharded over actors.

An actor holds as many rows as ``neighbors.actor_memory_gib`` allows; where there are more parts than actors they
take turns, so that memory does not grow with the number of rows. A rerun asks only what has no answer yet.
"""

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from synthscale.neighbors.cell_index import cells_for, index_sample_size, train_index
from synthscale.neighbors.distance import Floats, Rows
from synthscale.neighbors.embedding_reader import EmbeddingBlock, EmbeddingReader
from synthscale.neighbors.knn_search import (
    ALL_CELLS,
    FLAT_ROWS,
    SAMPLED_QUERIES,
    UNLIMITED,
    KnnResult,
    Recall,
    choose_probes,
    concatenate_results,
    is_exact,
    merge_nearest,
    probes_to_try,
    radius_recall,
)
from synthscale.neighbors.ray_copy_scan import CopyScan, sample_distinct
from synthscale.neighbors.ray_index_actors import (
    IndexActor,
    IndexPart,
    KnnQuery,
    RadiusKey,
    RadiusQuery,
    SearchResults,
    SetPair,
    SetReferences,
    result_name,
)
from synthscale.runtime.task_pool import TaskPool
from synthscale.tables.layout import Shard

_CELL_NUMBERS = 64
_CORES_AN_ACTOR = 4


class IndexCluster:
    """The actors of a run, and what they are asked."""

    def __init__(
        self, tables: EmbeddingReader, shards: Sequence[Shard], chunks: list[list[Shard]], pool: TaskPool
    ) -> None:
        """Start the actors; about four cores each, so that BLAS can use its threads, or a GPU."""
        self._tables, self._shards, self._chunks, self._pool = tables, shards, chunks, pool
        count = pool.gpus or max(1, min(pool.workers // _CORES_AN_ACTOR, len(shards)))
        # On a single core the tasks that train and sample would wait for the actor's, for ever.
        cpus, gpus = int(pool.workers > count), int(pool.gpus > 0)
        # Ray's SPREAD of single actors is a wish: two raylets may choose the same node.
        places = placement_group([{"CPU": cpus, "GPU": gpus}] * count, "SPREAD") if count > 1 else None
        threads = max(1, pool.workers // count)
        self._places = places
        self._actors = [
            ray.remote(IndexActor)
            .options(
                num_cpus=cpus,
                num_gpus=gpus,
                max_restarts=-1,
                max_task_retries=3,
                scheduling_strategy=PlacementGroupSchedulingStrategy(places, i) if places else "DEFAULT",
            )
            .remote(tables, chunks, threads)
            for i in range(count)
        ]
        self._parts: list[IndexPart] = []

    def hold(self, scanned: CopyScan, memory_bytes: int) -> None:
        """Deal the distinct rows to the actors, in parts that fit in so much memory."""
        self._scan, self._shared = scanned, ray.put(scanned)
        width = self._tables.layout.search[1] - self._tables.layout.search[0]
        rows = max(1, memory_bytes // (4 * (width + _CELL_NUMBERS) + 16))
        count, needed = len(self._actors), -(-sum(scanned.distinct.values()) // rows)
        # As many parts as give every actor the same number; shards in turn, so that no part holds one set alone.
        self.parts = min(len(self._shards), count * -(-needed // count))
        train = ray.remote(_train).options(num_cpus=1)
        trained = tuple(
            (code, train.remote(self._shared, code, index_sample_size(n), cells_for(n)) if n > FLAT_ROWS else None)
            for code, n in scanned.distinct.items()
        )
        sets = SetReferences(ray.put(scanned.copies), trained)
        shards = list(self._shards)
        self._parts = [IndexPart(i, self.parts, shards[i :: self.parts], sets) for i in range(self.parts)]

    def close(self) -> None:
        """End the actors, so that what follows has their cores."""
        for actor in self._actors:
            ray.kill(actor)
        if self._places is not None:
            remove_placement_group(self._places)

    def _actor(self, part: IndexPart) -> Any:
        return self._actors[part.number % len(self._actors)]

    def _for_all(self, method: str, argument: Any, what: str) -> None:
        """Ask every part about every chunk; an actor has done with a part before it turns to its next."""
        have = self._tables.saved(f"{method}-of-{self.parts}")
        turns = range(0, self.parts, len(self._actors))
        items = [
            (part, chunk)
            for start in turns
            for chunk in range(len(self._chunks))
            for part in self._parts[start : start + len(self._actors)]
            if result_name(method, chunk, part.number, self.parts) not in have
        ]

        def submit(item: tuple[IndexPart, int]) -> Any:
            return getattr(self._actor(item[0]), method).remote(*item, argument)

        for _ in self._pool.work(items, submit, what):
            pass

    # All rows.

    @property
    def answers(self) -> SearchResults:
        """Where what the rows found is read."""
        return SearchResults(self._tables, self._chunks, self.parts)

    def search(self, questions: list[KnnQuery], wanted: Sequence[SetPair]) -> dict[SetPair, KnnResult]:
        """Search all distinct rows, keep what they found, and return the relations of the wanted pairs."""
        self._for_all("nearest", questions, "nearest neighbours: chunks")
        if not wanted:
            return {}
        found = [self.answers.relations(chunk) for chunk in range(len(self._chunks))]
        return {pair: concatenate_results([relations[pair] for relations in found]) for pair in wanted}

    def inside(
        self, recalls: dict[SetPair, Recall | None], larger: Collection[int], *, counts: bool
    ) -> dict[RadiusKey, Recall | None]:
        """Find which rows of each set lie inside a real row's k-NN radius, keep it, and return the recalls.

        ``counts`` also finds how many radii these are, and which real rows lie inside a generator's radii; for the
        ``larger`` generators (codes), how many of their rows a real row's radius holds.
        """
        codes = list(self._scan.distinct)
        most: dict[RadiusKey, int] = {(code, 0, False): UNLIMITED if counts and code else 1 for code in codes}
        most |= {(0, code, False): 1 for code in codes if counts and code}
        most |= {(0, code, True): UNLIMITED for code in larger}
        asked = {
            ball: RadiusQuery(r.probes if (r := recalls[ball[:2]]) else ALL_CELLS, count)
            for ball, count in most.items()
        }
        self._for_all("inside", asked, "manifold: chunks")
        measured: dict[RadiusKey, Recall | None] = dict.fromkeys(asked)
        sampled = {ball: covering for ball, covering in asked.items() if recalls[ball[:2]] is not None}
        if sampled:
            exact = {ball: RadiusQuery(ALL_CELLS, covering.most) for ball, covering in sampled.items()}
            found, true = self._sample_inside(sampled), self._sample_inside(exact)
            measured |= {p: radius_recall(found[p], true[p], asked[p].probes) for p in sampled}
        return measured

    # A sample, searched both ways.

    def recalls(self, pairs: Sequence[SetPair], k: int) -> dict[SetPair, Recall | None]:
        """Return how many cells each pair of sets probes and what that finds; None compares all pairs."""
        sizes = self._scan.distinct
        probed = [p for p in pairs if sizes[p[1]] > FLAT_ROWS and not is_exact(sizes[p[0]], sizes[p[1]])]
        tries = {pair: probes_to_try(cells_for(sizes[pair[1]])) for pair in probed}
        recalls: dict[SetPair, Recall | None] = dict.fromkeys(pairs)
        found: dict[SetPair, dict[int, Floats]] = {pair: {} for pair in probed}
        while asked := {pair: KnnQuery(*pair, k, own.pop(0)) for pair, own in tries.items() if own}:
            answers = self._ask_sample(list(asked.values()), self._measured)
            for pair, question in asked.items():
                found[pair][question.probes] = answers[question][0]
                recalls[pair] = recall = choose_probes(found[pair], cells_for(sizes[pair[1]]))
                if recall.probes < cells_for(sizes[pair[1]]):
                    tries[pair] = []
        return recalls

    def sampled(self, pairs: Sequence[SetPair], k: int, counts: dict[int, int]) -> dict[SetPair, KnnResult]:
        """Search so many rows of each set (by code) exactly, over all parts."""
        block = self._sample(counts)
        questions = {pair: KnnQuery(*pair, k, ALL_CELLS) for pair in pairs}
        answers = self._ask_sample(list(questions.values()), block)
        drawn: EmbeddingBlock = ray.get(block)
        return {pair: KnnResult(drawn.of_set(pair[0]).row, *answers[q]) for pair, q in questions.items()}

    @cached_property
    def _measured(self) -> Any:
        return self._sample(dict.fromkeys(self._scan.distinct, SAMPLED_QUERIES))

    def _sample(self, counts: dict[int, int]) -> Any:
        return ray.remote(_sorted_sample).options(num_cpus=1).remote(self._shared, counts)

    def _ask_sample(self, questions: list[KnnQuery], block: Any) -> dict[KnnQuery, tuple[Floats, Rows]]:
        answers = ray.get([self._actor(part).ask.remote(part, block, questions) for part in self._parts])
        return {
            question: merge_nearest([answer[i] for answer in answers], question.k)
            for i, question in enumerate(questions)
        }

    def _sample_inside(self, asked: dict[RadiusKey, RadiusQuery]) -> dict[RadiusKey, NDArray[np.int32]]:
        answers = ray.get([self._actor(p).ask_inside.remote(p, self._measured, asked) for p in self._parts])
        return {
            pair: np.minimum(np.sum([answer[pair] for answer in answers], axis=0), covering.most)
            for pair, covering in asked.items()
        }


def _train(scanned: CopyScan, code: int, rows: int, cells: int) -> NDArray[np.uint8]:
    return train_index(sample_distinct(scanned, {code: rows}).vectors.astype(np.float32), cells)


def _sorted_sample(scanned: CopyScan, counts: dict[int, int]) -> EmbeddingBlock:
    block = sample_distinct(scanned, counts)
    order = np.argsort(block.row)
    return EmbeddingBlock(block.row[order], block.code[order], block.vectors[order])
