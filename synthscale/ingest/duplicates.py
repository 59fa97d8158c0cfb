"""Rows of tables that cannot stay as they are: those of no class, and ids that occur more than once.

Takes and returns all rows of the input, copied to temporary files in pieces where any of them changes; of vectors,
only those of repeated ids are read.
"""

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from synthscale.config import StorageConfig
from synthscale.ingest.checks import duplicate_ids
from synthscale.ingest.dataset import Dataset
from synthscale.ingest.spool import Spool
from synthscale.ingest.table_columns import count_of
from synthscale.ingest.vector_reader import read_vectors
from synthscale.tables.faults import Reason
from synthscale.tables.layout import VectorSource

_CHUNK_ROWS = 65_536
"""Rows processed at a time; bounds memory and does not change the result."""
_VECTOR_ROWS = 4_096
"""Vectors read at a time, as above."""


def settle_rows(dataset: Dataset, storage: StorageConfig) -> Dataset:
    """Remove the rows of no class, and give every row an id of its own.

    Of the rows with the same id, the first one stays as it is. Another one that is equal to it in all columns and
    in its vector is removed. One that differs becomes the failure ``duplicate_id``, under an id with its number.

    Returns:
        The data set, unchanged if there is no such row; otherwise with a note on each kind, and with the removed
        rows in ``vectors.dropped``.
    """
    if dataset.rows.num_rows == 0:
        return dataset
    is_classless = _is_classless(dataset.rows)
    dropped = set(np.flatnonzero(is_classless).tolist())
    ids = dataset.rows.column("id")
    names = duplicate_ids(ids)
    renamed = dict[int, str]()
    notes = list(dataset.notes)
    if names:
        same, different = _compare(dataset, set(names), dropped, storage)
        renamed = _new_ids(ids, different)
        dropped |= set(same)
        if same:
            notes.append(
                f"{count_of(len(same), 'row')} left out, equal to another one with the same id "
                f"(first: {ids[same[0]].as_py()})"
            )
        if different:
            notes.append(
                f"{count_of(len(different), 'row')} failed as duplicate_id: another row with the id differs "
                f"(first: {ids[different[0]].as_py()})"
            )
    if not dropped and not renamed:
        return dataset
    vectors = dataset.vectors
    if vectors is not None:
        vectors = replace(vectors, dropped=sorted(dropped))
    return replace(dataset, rows=_changed(dataset.rows, dropped, renamed), vectors=vectors, notes=notes)


def _is_classless(rows: pa.Table) -> NDArray[np.bool_]:
    parts = [pc.is_null(chunk).to_numpy(zero_copy_only=False) for chunk in rows.column("real_or_synthetic").chunks]
    return np.concatenate([np.empty(0, np.bool_), *parts])


def _compare(
    dataset: Dataset, names: set[str], dropped: set[int], storage: StorageConfig
) -> tuple[list[int], list[int]]:
    """Return the rows that equal the first one with their id, and those that differ from it; both ascending."""
    rows, wanted = dataset.rows, pa.array(sorted(names))
    first: dict[str, bytes] = {}
    same, different = list[int](), list[int]()
    for start in range(0, rows.num_rows, _CHUNK_ROWS):
        piece = rows.slice(start, _CHUNK_ROWS)
        at = pc.indices_nonzero(pc.is_in(piece.column("id").combine_chunks(), wanted)).to_numpy()
        at = np.array([i for i in at.tolist() if start + i not in dropped], np.int64)
        if not len(at):
            continue
        vectors = _vector_hashes(dataset.vectors, at + start, storage)
        for i, row, vector in zip(at.tolist(), piece.take(pa.array(at)).to_pylist(), vectors, strict=True):
            content = hashlib.blake2b(repr(row).encode("utf-8", "replace") + vector, digest_size=16).digest()
            if row["id"] not in first:
                first[row["id"]] = content
            else:
                (same if first[row["id"]] == content else different).append(start + i)
    return same, different


def _vector_hashes(source: VectorSource | None, rows: NDArray[np.int64], storage: StorageConfig) -> list[bytes]:
    """Return a hash of the vector of each row, given ascending row numbers; empty ones if there are no vectors."""
    if source is None:
        return [b""] * len(rows)
    hashes = []
    for part in np.split(rows, np.flatnonzero(np.diff(rows // _VECTOR_ROWS)) + 1):
        start, stop = int(part[0]), int(part[-1]) + 1
        vectors, facts = read_vectors(source, start, stop, storage)
        for i in (part - start).tolist():
            hashes.append(hashlib.blake2b(vectors[i].tobytes() + repr(facts[i]).encode(), digest_size=16).digest())
    return hashes


def _new_ids(ids: pa.ChunkedArray, rows: list[int]) -> dict[int, str]:
    """Return an id for each row that no other row has: its own with its number among the rows of that id."""
    numbers, result = Counter[str](), dict[int, str]()
    for row in rows:
        name = ids[row].as_py()
        numbers[name] += 1
        result[row] = f"{name} (duplicate {numbers[name]})"
    # A row may have such an id already.
    while taken := set(
        pc.unique(ids.filter(pc.is_in(ids, pa.array(list(result.values()), pa.string())))).to_pylist()
    ):
        result = {row: f"{name}'" if name in taken else name for row, name in result.items()}
    return result


def _changed(rows: pa.Table, dropped: set[int], renamed: dict[int, str]) -> pa.Table:
    """Return the rows without some, and with the ids and faults of others, memory-mapped from a temporary file."""
    gone, others = np.array(sorted(dropped), np.int64), np.array(sorted(renamed), np.int64)
    with Spool() as spool:
        for start in range(0, rows.num_rows, _CHUNK_ROWS):
            piece = rows.slice(start, _CHUNK_ROWS)
            here = others[(others >= start) & (others < start + len(piece))]
            if len(here):
                piece = _with_faults(piece, {row - start: renamed[row] for row in here.tolist()})
            kept = np.ones(len(piece), np.bool_)
            kept[gone[(gone >= start) & (gone < start + len(piece))] - start] = False
            spool.add(piece.filter(pa.array(kept)))
        return spool.rows()


def _with_faults(rows: pa.Table, names: dict[int, str]) -> pa.Table:
    """Return rows with new ids, and the fault of a duplicate, at some positions."""
    ids = rows.column("id").to_pylist()
    has_faults = "fault" in rows.column_names
    faults = rows.column("fault").to_pylist() if has_faults else [None] * len(rows)
    for at, name in names.items():
        faults[at] = f"{Reason.DUPLICATE_ID.value}: another row has the id {ids[at]!r} and differs"
        ids[at] = name
    rows = rows.set_column(rows.column_names.index("id"), "id", pa.array(ids, pa.string()))
    column = pa.array(faults, pa.string())
    if not has_faults:
        return rows.append_column("fault", column)
    return rows.set_column(rows.column_names.index("fault"), "fault", column)
