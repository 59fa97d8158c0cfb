"""Radius join on Ray: partition rows into buckets of cells on disk, then join each bucket in its own tasks.

Reads the shards of ``embeddings/``. Writes checkpoints under ``_neighbors/join-N/``: the plan, one Parquet file
per group of shards with a row group per bucket, and the edges of each finished task. A rerun repeats only tasks
whose files are missing. A task has at most two pieces of a bucket in memory.
"""

import io
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from synthscale.neighbors.candidate_filter import filter_for
from synthscale.neighbors.cells import JoinPlan, JoinSample, plan_join, sample_size
from synthscale.neighbors.copies import Copies
from synthscale.neighbors.edges import Edges, distinct_edges
from synthscale.neighbors.embedding_reader import EmbeddingBlock, EmbeddingReader, group_shards
from synthscale.neighbors.join import JoinPiece, JoinResult, hub_edges, join, join_all, place_rows
from synthscale.neighbors.ray_copy_scan import CopyScan, sample_distinct
from synthscale.neighbors.search_space import SearchSpace
from synthscale.runtime.task_pool import TaskPool
from synthscale.storage import filesystems as fsys
from synthscale.tables.layout import Shard
from synthscale.tables.plain_data import from_npz, to_npz

logger = logging.getLogger(__name__)

_BUCKETS_PER_WORKER = 4
"""Minimum number of buckets per worker, to balance the load."""


@dataclass(frozen=True)
class JoinTask:
    """Join of two pieces of a bucket, or of one piece with itself.

    A piece is the bucket's rows in some of the files that `_write_buckets` wrote.

    Attributes:
        bucket: number of the bucket.
        one: numbers of the scattered files of the first piece.
        other: those of the second piece; None joins the first with itself.
    """

    bucket: int
    one: tuple[int, ...]
    other: tuple[int, ...] | None

    @property
    def name(self) -> str:
        """Name of the file with the task's edges."""
        other = "self" if self.other is None else f"{self.other[0]:06d}"
        return f"edges-{self.bucket:06d}-{self.one[0]:06d}-{other}"


@dataclass(frozen=True)
class JoinFiles:
    """Checkpoint files of one join, and access to the embeddings.

    Attributes:
        tables: reads the run's embeddings and stores checkpoints.
        folder: folder of this join under ``_neighbors/``.
    """

    tables: EmbeddingReader
    folder: str

    @property
    def space(self) -> SearchSpace:
        """The space of near-duplicates."""
        assert self.tables.space is not None
        return self.tables.space

    def path(self, name: str) -> str:
        """Return the path of a file of the join."""
        return self.tables.path(self.folder, name)

    def save(self, name: str, edges: Edges, *, is_whole: bool, **more: Any) -> None:
        """Save edges, the flag whether all pairs are listed, and further arrays by keyword."""
        arrays = {f.name: getattr(edges, f.name) for f in fields(Edges)}
        self.tables.save(f"{self.folder}/{name}", arrays | {"is_whole": np.array(is_whole)} | more)

    def load(self, name: str) -> dict[str, Any]:
        """Load the arrays that `save` wrote."""
        return self.tables.load(f"{self.folder}/{name}")

    def saved(self) -> set[str]:
        """Return the names of all saved arrays of this join."""
        return {name.rpartition("/")[2] for name in self.tables.saved(self.folder)}


@dataclass(frozen=True)
class Bucketed:
    """Join plan with its cells grouped into buckets.

    Attributes:
        plan: the plan.
        buckets: number of buckets, each a contiguous range of cells.
        piece_rows: maximum number of entries (one per row and cell) of a bucket's piece.
    """

    plan: JoinPlan
    buckets: int
    piece_rows: int


class CellJoin:
    """Joins the distinct rows of some sets at one radius, on Ray."""

    def __init__(
        self, files: JoinFiles, shards: Sequence[Shard], scanned: CopyScan, pool: TaskPool, memory_bytes: int
    ) -> None:
        """Prepare a join.

        Args:
            files: checkpoint files; not shared with any other join.
            shards: all shards of the run.
            scanned: exact copies and samples.
            pool: runs the tasks.
            memory_bytes: memory that one task may use.
        """
        self._files, self._shards, self._scan, self._pool = files, shards, ray.put(scanned), pool
        self._copies, self._distinct = ray.put(scanned.copies), scanned.distinct
        # Two pieces are in memory at a time, and half of the memory is left to products and pairs.
        self._piece_rows = max(1024, memory_bytes // 8 // (4 * files.space.width + 400))

    def run(self, codes: Sequence[int], radius: float) -> tuple[JoinResult, dict[str, Any]]:
        """Join sets by their distinct rows.

        Args:
            codes: set codes.
            radius: distance.

        Returns:
            The edges and whether they are all pairs, and a summary: the radius, the fields of `JoinCost`
            and ``all_pairs_listed``.
        """
        sizes = {code: self._distinct[code] for code in codes}
        if sum(sizes.values()) <= self._piece_rows:
            task = ray.remote(_join_directly).options(num_cpus=1, num_gpus=1 if self._pool.gpus else 0)
            estimate = ray.get(task.remote(self._files, list(self._shards), self._scan, sizes, radius))
            names = ["edges-all"]
        else:
            estimate, names = self._run_in_buckets(sizes, radius)
        parts = [self._files.load(name) for name in names]
        whole = all(bool(part["is_whole"]) for part in parts)
        edges = distinct_edges([Edges(*(part[f.name] for f in fields(Edges))) for part in parts])
        return JoinResult(edges, whole), {"radius": radius, **estimate, "all_pairs_listed": whole}

    def _run_in_buckets(self, sizes: dict[int, int], radius: float) -> tuple[dict[str, Any], list[str]]:
        plan_task = ray.remote(_plan).options(num_cpus=1)
        bucketed: Bucketed = ray.get(
            plan_task.remote(self._files, self._scan, sizes, radius, self._piece_rows, self._pool.workers)
        )
        plan, shared = bucketed.plan, ray.put(bucketed)
        groups = group_shards(self._shards, bucketed.piece_rows // 4)
        tasks = _tasks(self._write_buckets(shared, groups, list(sizes)), bucketed.piece_rows)
        logger.info(
            "join within radius %.3g: %d buckets, %d tasks; %s",
            radius,
            bucketed.buckets,
            len(tasks),
            plan.estimate,
        )
        saved = self._files.saved()
        todo = [task for task in tasks if task.name not in saved]
        work = ray.remote(_join_bucket).options(num_cpus=1, num_gpus=1 if self._pool.gpus else 0)

        def submit(task: JoinTask) -> Any:
            return work.remote(self._files, shared, task)

        for _ in self._pool.run(todo, submit, f"near-duplicates, {plan.cells:,} cells: tasks"):
            pass
        return asdict(plan.estimate), [*map(_stars_name, range(len(groups))), *(task.name for task in tasks)]

    def _write_buckets(self, bucketed: Any, groups: list[list[Shard]], codes: list[int]) -> list[dict[int, int]]:
        """Write rows by bucket; return, for each group of shards, the number of entries of each bucket."""
        task = ray.remote(_write_buckets).options(num_cpus=1)
        saved = self._files.saved()
        counts: dict[int, dict[int, int]] = {}
        for number in (number for number in range(len(groups)) if _stars_name(number) in saved):
            stars = self._files.load(_stars_name(number))
            counts[number] = dict(zip(stars["bucket"].tolist(), stars["entries"].tolist(), strict=True))
        todo = [number for number in range(len(groups)) if number not in counts]

        def submit(number: int) -> Any:
            return task.remote(self._files, bucketed, number, groups[number], self._copies, codes)

        for number, count in self._pool.run(todo, submit, "rows assigned to cells: groups"):
            counts[number] = count
        return [counts[number] for number in range(len(groups))]


def _stars_name(number: int) -> str:
    """Return the name of the file with a shard group's hub edges and its number of entries per bucket.

    The edges of a hub form a star: each absorbed row is connected to the pivot alone.
    """
    return f"stars-{number:06d}"


def _tasks(counts: list[dict[int, int]], piece_rows: int) -> list[JoinTask]:
    """Return the tasks of all buckets; a bucket that is too large for one task is split into pieces.

    Args:
        counts: for each group of shards, the number of entries of each bucket.
        piece_rows: maximum number of entries of a piece.
    """
    tasks = []
    for bucket in sorted({bucket for group in counts for bucket in group}):
        pieces: list[list[int]] = []
        size = 0
        for number, group in enumerate(counts):
            entries = group.get(bucket, 0)
            if entries == 0:
                continue
            if not pieces or size + entries > piece_rows:
                pieces.append([])
                size = 0
            pieces[-1].append(number)
            size += entries
        for i, one in enumerate(pieces):
            tasks.append(JoinTask(bucket, tuple(one), None))
            tasks += [JoinTask(bucket, tuple(one), tuple(other)) for other in pieces[i + 1 :]]
    return tasks


# The functions below run in Ray tasks.


def _sample_for(scanned: CopyScan, sizes: dict[int, int], space: SearchSpace) -> JoinSample:
    """Return the sample that the join is planned on: the same fraction of every set."""
    rows = sum(sizes.values())
    share = sample_size(rows) / rows
    block = sample_distinct(scanned, {code: int(np.ceil(share * size)) for code, size in sizes.items()}, space)
    return JoinSample(block.vectors.astype(np.float32), block.row, block.code)


def _join_directly(
    files: JoinFiles, shards: list[Shard], scanned: CopyScan, sizes: dict[int, int], radius: float
) -> dict[str, Any]:
    """Join sets that fit one task, without buckets; save the edges and return the estimated cost."""
    plan = plan_join(_sample_for(scanned, sizes, files.space), sizes, radius, files.space.metric)
    block = _rows_of_sets(files.tables.block(shards, scanned.copies), list(sizes))
    joined = join_all(plan, block.vectors, block.row, block.code, _candidate_filter())
    files.save("edges-all", joined.edges, is_whole=joined.is_whole)
    return asdict(plan.estimate)


def _plan(
    files: JoinFiles, scanned: CopyScan, sizes: dict[int, int], radius: float, piece_rows: int, workers: int
) -> Bucketed:
    """Return the saved plan of this join, whose checkpoints remain valid, or make a plan and save it."""
    path, storage = files.path("plan.npz"), files.tables.run.storage
    if fsys.exists(path, storage):
        saved: Bucketed = from_npz(Bucketed, fsys.read_bytes(path, storage), path)
        return saved
    plan = plan_join(_sample_for(scanned, sizes, files.space), sizes, radius, files.space.metric)
    entries = sum(sizes.values()) * (1 + plan.estimate.visits_per_row)
    wanted = max(_BUCKETS_PER_WORKER * workers, int(np.ceil(entries / (piece_rows / 2))))
    bucketed = Bucketed(plan, min(plan.cells, wanted), piece_rows)
    fsys.write_bytes(path, to_npz(bucketed), storage)
    return bucketed


def _write_buckets(
    files: JoinFiles, bucketed: Bucketed, number: int, shards: list[Shard], copies: Copies, codes: list[int]
) -> dict[int, int]:
    """Write a shard group's entries, one row group per bucket, and its hub edges; return entries per bucket."""
    plan = bucketed.plan
    block = _rows_of_sets(files.tables.block(shards, copies), codes)
    piece = place_rows(plan, block.vectors, block.row, block.code)
    bucket = piece.cell.astype(np.int64) * bucketed.buckets // plan.cells
    sink = io.BytesIO()
    numbers, starts = np.unique(bucket, return_index=True)
    ends = [*starts[1:].tolist(), len(bucket)]
    schema = pa.schema(
        [
            ("row", pa.int64()),
            ("label", pa.int64()),
            ("code", pa.int32()),
            ("cell", pa.int32()),
            ("home", pa.bool_()),
            ("vector", pa.list_(pa.from_numpy_dtype(block.vectors.dtype), block.vectors.shape[1])),
        ],
        metadata={"buckets": ",".join(map(str, numbers.tolist()))},
    )
    with pq.ParquetWriter(sink, schema, compression="none", use_dictionary=False) as writer:
        for start, end in zip(starts.tolist(), ends, strict=True):
            writer.write_table(_entry_table(piece, slice(start, end), schema), row_group_size=end - start)
    fsys.write_bytes(files.path(f"scattered-{number:06d}.parquet"), sink.getvalue(), files.tables.run.storage)
    entries = np.array(ends, np.int64) - starts
    stars = hub_edges(plan, piece)
    files.save(_stars_name(number), stars, is_whole=len(stars) == 0, bucket=numbers, entries=entries)
    return dict(zip(numbers.tolist(), entries.tolist(), strict=True))


def _entry_table(piece: JoinPiece, part: slice, schema: pa.Schema) -> pa.Table:
    """Return a range of a piece's entries as a table, with the vector of each entry."""
    row_index = piece.row_index[part]
    flat = pa.array(piece.vectors[row_index].reshape(-1))
    columns = {
        "row": piece.row[row_index],
        "label": piece.label[row_index],
        "code": piece.code[row_index],
        "cell": piece.cell[part],
        "home": piece.home[part],
        "vector": pa.FixedSizeListArray.from_arrays(flat, piece.vectors.shape[1]),
    }
    return pa.table(columns, schema=schema)


def _join_bucket(files: JoinFiles, bucketed: Bucketed, task: JoinTask) -> None:
    """Join two pieces of a bucket, or one with itself, and save the edges."""
    one = _read_piece(files, task.bucket, task.one)
    other = None if task.other is None else _read_piece(files, task.bucket, task.other)
    joined = join(bucketed.plan, one, other, _candidate_filter())
    files.save(task.name, joined.edges, is_whole=joined.is_whole)


def _read_piece(files: JoinFiles, bucket: int, numbers: tuple[int, ...]) -> JoinPiece:
    """Read a bucket's entries from several scattered files; each entry becomes a row of the piece."""
    parts = []
    for number in numbers:
        path = files.path(f"scattered-{number:06d}.parquet")
        with fsys.storage_errors(path, "read"), fsys.open_file(path, files.tables.run.storage) as opened:
            file = pq.ParquetFile(opened)
            buckets = file.schema_arrow.metadata[b"buckets"].decode().split(",")
            parts.append(file.read_row_group(buckets.index(str(bucket))))
    table = pa.concat_tables(parts)
    vector = table.column("vector").combine_chunks()
    width = vector.type.list_size
    vectors = vector.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    row, label, code, cell, home = (
        table.column(name).to_numpy() for name in ("row", "label", "code", "cell", "home")
    )
    order = np.argsort(cell, kind="stable")
    return JoinPiece(vectors, row, code, label, order, cell[order], home[order])


def _rows_of_sets(block: EmbeddingBlock, codes: list[int]) -> EmbeddingBlock:
    member = np.isin(block.code, codes)
    return block if member.all() else block.take(member)


def _candidate_filter() -> Any:
    return filter_for(len(ray.get_gpu_ids()))
