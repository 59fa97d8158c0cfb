"""First passes of the neighbors stage on Ray: exact copies within each set, samples, moments of the real rows.

Read the shards of ``embeddings/`` twice, in one task per group of shards. Write no files; samples stay in Ray's
object store.
"""

from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import ray

from synthscale.neighbors.copies import (
    ContentKeys,
    Copies,
    content_keys,
    copies_from_pairs,
    equal_pairs,
    vector_keys,
)
from synthscale.neighbors.distance import Rows
from synthscale.neighbors.edges import Codes
from synthscale.neighbors.embedding_reader import EmbeddingBlock, EmbeddingReader, concatenate_blocks
from synthscale.neighbors.search_space import SearchSpace
from synthscale.runtime.task_pool import TaskPool
from synthscale.statistics.column_moments import ColumnMoments
from synthscale.tables.id_hashes import sampling_threshold
from synthscale.tables.layout import Shard

_ROWS_PER_REDUCER = 2**22
"""Rows per task that finds equal content keys; memory per task grows with it."""


@dataclass(frozen=True)
class CopyScan:
    """Exact copies, numbers of distinct rows, and samples.

    Attributes:
        copies: exact copies within all sets.
        codes: (c,) set code of each row of ``copies``.
        distinct: number of distinct rows of each set, by set code.
        samples: Ray references to blocks of sampled rows, with stored vectors; see `sample_distinct`.
    """

    copies: Copies
    codes: Codes
    distinct: dict[int, int]
    samples: list[Any]


def scan_copies(
    tables: EmbeddingReader,
    chunks: list[list[Shard]],
    wanted: dict[int, int],
    rows: dict[int, int],
    pool: TaskPool,
) -> CopyScan:
    """Find exact copies (equal file contents or equal vectors) within each set, and sample its rows.

    Args:
        tables: reads the run's embeddings.
        chunks: groups of shards, one task each.
        wanted: number of rows to sample from each set, by set code.
        rows: number of rows of each set, by set code.
        pool: runs the tasks.
    """
    reducers = max(1, -(-sum(rows.values()) // _ROWS_PER_REDUCER))
    limits = {code: sampling_threshold(wanted[code], rows[code]) for code in rows}
    task = ray.remote(_scan).options(num_cpus=1, num_returns=reducers + 2)
    parts: list[list[Any]] = []
    samples = []

    def submit(chunk: list[Shard]) -> Any:
        done, drawn, *keys = task.remote(tables, chunk, limits, reducers)
        samples.append(drawn)
        parts.append(keys)
        return done

    for _ in pool.run(chunks, submit, "exact copies: shard groups scanned,"):
        pass
    reduce = ray.remote(_pairs).options(num_cpus=1)
    pairs = ray.get([reduce.remote(*(keys[i] for keys in parts)) for i in range(reducers)])
    copies = copies_from_pairs((left, right) for left, right, _ in pairs)
    paired, first = np.unique(
        np.concatenate([np.concatenate([left, right]) for left, right, _ in pairs]), return_index=True
    )
    codes = np.concatenate([np.concatenate([code, code]) for _, _, code in pairs])[first]
    assert np.array_equal(paired, copies.row)
    extra = np.bincount(codes[copies.row != copies.representative], minlength=len(rows))
    return CopyScan(copies, codes, {code: n - int(extra[code]) for code, n in rows.items()}, samples)


def _scan(
    tables: EmbeddingReader, chunk: list[Shard], limits: dict[int, np.uint64], reducers: int
) -> tuple[Any, ...]:
    """Scan a group of shards. Return None, a sample, and for each reducer its keys, rows and set codes.

    The driver waits for the first result (None) alone, so that it does not fetch the others.
    """
    block = tables.stored(chunk)
    hashes = [
        text
        for shard in chunk
        for text in tables.run.read_shard("embeddings", shard, ["content_hash"]).column("content_hash").to_pylist()
    ]
    keys, rows, codes = [], [], []
    for code, name in enumerate(tables.names):
        members = np.flatnonzero(block.code == code)
        with_file = np.array([i for i in members if hashes[i] is not None], np.int64)
        for chosen, key_part in (
            (members, vector_keys(block.vectors[members], f"vector/{name}")),
            (with_file, content_keys((hashes[i].encode() for i in with_file), f"content/{name}")),
        ):
            keys.append(key_part)
            rows.append(block.row[chosen])
            codes.append(block.code[chosen])
    key, row, code_of = np.concatenate(keys), np.concatenate(rows), np.concatenate(codes)
    reducer = key[:, 0] % np.uint64(reducers)
    partitions = [(key[mine], row[mine], code_of[mine]) for mine in (reducer == i for i in range(reducers))]
    # Rows whose hash is at most the limit of their set are a sample.
    drawn = block.take(block.id_hash <= np.array([limits[code] for code in range(len(limits))])[block.code])
    return None, drawn, *partitions


def _pairs(*parts: tuple[ContentKeys, Rows, Codes]) -> tuple[Rows, Rows, Codes]:
    """Return pairs of equal rows among those of one reducer, and their set codes: (p,) each."""
    keys, rows, codes = (np.concatenate(column) for column in zip(*parts, strict=True))
    left, right = equal_pairs(keys, np.arange(len(rows)))
    return rows[left], rows[right], codes[left]


def moments_of_real(
    tables: EmbeddingReader, chunks: list[list[Shard]], copies: Copies, pool: TaskPool
) -> ColumnMoments:
    """Return the moments of the distinct real rows' stored vectors, (D,)."""
    task, shared = ray.remote(_moments).options(num_cpus=1), ray.put(copies)

    def submit(number: int) -> Any:
        return task.remote(tables, chunks[number], shared)

    parts = dict(pool.run(range(len(chunks)), submit, "moments of real rows: shard groups,"))
    # In the order of the shards, so that the sum does not depend on which task ends first.
    moments: ColumnMoments = reduce(add, (parts[number] for number in range(len(chunks))))
    return moments


def _moments(tables: EmbeddingReader, chunk: list[Shard], copies: Copies) -> ColumnMoments:
    return ColumnMoments.of(tables.stored(chunk, copies).of_set(0).vectors)


def sample_distinct(scanned: CopyScan, counts: dict[int, int], space: SearchSpace | None = None) -> EmbeddingBlock:
    """Return a random sample of distinct rows, in ascending order of their ids' hashes. Call it in a Ray task.

    Args:
        scanned: result of `scan_copies`.
        counts: number of rows to take from each set, by set code; all sampled rows if there are fewer.
        space: the vectors are mapped to it; None returns them as stored.
    """
    block = concatenate_blocks([part for part in ray.get(scanned.samples) if len(part.row)])
    block = block.take(np.lexsort((block.row, block.id_hash)))
    # Copies are drawn once, by the smallest of their hashes.
    row, first = np.unique(scanned.copies.representatives(block.row), return_index=True)
    block = replace(block.take(first), row=row)
    block = block.take(np.argsort(first))
    places = np.concatenate([np.flatnonzero(block.code == number)[:count] for number, count in counts.items()])
    sample = block.take(np.sort(places))
    return sample if space is None else sample.in_space(space)
