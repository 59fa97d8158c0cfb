"""The first pass of the neighbors stage: exact copies of each set, and samples of its rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from synthscale.neighbors.copies import (
    ContentKeys,
    Copies,
    content_keys,
    copies_from_pairs,
    equal_pairs,
    vector_hashes,
    vector_keys,
)
from synthscale.neighbors.distance import Rows
from synthscale.neighbors.edges import Codes
from synthscale.neighbors.embedding_reader import EmbeddingBlock, EmbeddingReader
from synthscale.runtime.task_pool import TaskPool
from synthscale.tables.id_hashes import sampling_threshold
from synthscale.tables.layout import Shard

_ROWS_A_REDUCER = 2**22


@dataclass(frozen=True)
class CopyScan:
    """Copies of all sets with the codes of their rows, how many distinct rows each set has, and samples of rows.

    ``samples`` are references to Blocks, whose rows are drawn without regard to their order; see ``sample``.
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
    """Find exact copies (equal file contents or equal vectors) within each set.

    Args:
        tables: the run's.
        chunks: the shards, in groups.
        wanted: rows to sample, by code.
        rows: rows of each set, by code.
        pool: runs the tasks.
    """
    reducers = max(1, -(-sum(rows.values()) // _ROWS_A_REDUCER))
    limits = {code: sampling_threshold(wanted[code], rows[code]) for code in rows}
    task = ray.remote(_scan).options(num_cpus=1, num_returns=reducers + 2)
    parts: list[list[Any]] = []
    samples = []

    def submit(chunk: list[Shard]) -> Any:
        done, drawn, *keys = task.remote(tables, chunk, limits, reducers)
        samples.append(drawn)
        parts.append(keys)
        return done

    for _ in pool.run(chunks, submit, "chunks scanned"):
        pass
    reduce = ray.remote(_pairs).options(num_cpus=1)
    found = ray.get([reduce.remote(*(keys[i] for keys in parts)) for i in range(reducers)])
    copies = copies_from_pairs((left, right) for left, right, _ in found)
    known, first = np.unique(
        np.concatenate([np.concatenate([left, right]) for left, right, _ in found]), return_index=True
    )
    codes = np.concatenate([np.concatenate([code, code]) for _, _, code in found])[first]
    assert np.array_equal(known, copies.row)
    extra = np.bincount(codes[copies.row != copies.representative], minlength=len(rows))
    return CopyScan(copies, codes, {code: n - int(extra[code]) for code, n in rows.items()}, samples)


def _scan(
    tables: EmbeddingReader, chunk: list[Shard], limits: dict[int, np.uint64], reducers: int
) -> tuple[Any, ...]:
    """Return nothing, a sample, and for each reducer the keys, rows and codes that fall to it."""
    block = tables.block(chunk)
    hashes = [
        text
        for shard in chunk
        for text in tables.run.read_shard("embeddings", shard, ["content_hash"]).column("content_hash").to_pylist()
    ]
    keys, rows, codes = [], [], []
    for code, name in enumerate(tables.names):
        own = np.flatnonzero(block.code == code)
        with_file = np.array([i for i in own if hashes[i] is not None], np.int64)
        for chosen, made in (
            (own, vector_keys(block.vectors[own], f"vector/{name}")),
            (with_file, content_keys((hashes[i].encode() for i in with_file), f"content/{name}")),
        ):
            keys.append(made)
            rows.append(block.row[chosen])
            codes.append(block.code[chosen])
    key, row, code_of = np.concatenate(keys), np.concatenate(rows), np.concatenate(codes)
    reducer = key[:, 0] % np.uint64(reducers)
    partitions = [(key[own], row[own], code_of[own]) for own in (reducer == i for i in range(reducers))]
    return None, _sampled(block, limits), *partitions


def _sampled(block: EmbeddingBlock, limits: dict[int, np.uint64]) -> tuple[NDArray[np.uint64], EmbeddingBlock]:
    draws = vector_hashes(block.vectors)
    keep = draws <= np.array([limits[code] for code in range(len(limits))])[block.code]
    return draws[keep], EmbeddingBlock(block.row[keep], block.code[keep], block.vectors[keep])


def _pairs(*parts: tuple[ContentKeys, Rows, Codes]) -> tuple[Rows, Rows, Codes]:
    """Return the pairs of equal rows among those of one reducer, and their sets."""
    keys, rows, codes = (np.concatenate(column) for column in zip(*parts, strict=True))
    left, right = equal_pairs(keys, np.arange(len(rows)))
    return rows[left], rows[right], codes[left]


def sample_distinct(scanned: CopyScan, counts: dict[int, int]) -> EmbeddingBlock:
    """Return, in the order of their draw, so many distinct rows of each set (by code); called in a task."""
    drawn = [part for part in ray.get(scanned.samples) if len(part[0])]
    draws = np.concatenate([d for d, _ in drawn])
    row, code, vectors = (
        np.concatenate([getattr(b, name) for _, b in drawn]) for name in ("row", "code", "vectors")
    )
    order = np.lexsort((row, draws))
    order = order[scanned.copies.are_distinct(row[order])]
    chosen = np.concatenate([order[code[order] == own][:count] for own, count in counts.items()])
    chosen = chosen[np.lexsort((row[chosen], draws[chosen]))]
    return EmbeddingBlock(row[chosen], code[chosen], vectors[chosen])
