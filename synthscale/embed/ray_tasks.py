"""Ray tasks and actors of embed: decode, encode, and write ``embeddings/`` and ``failures/`` of one shard.

``embeddings/`` is written last: a shard is complete if and only if its file is there.

A row's *record* is a dict with the columns `METADATA_COLUMNS` of an image that was decoded, or with ``reason`` and
``detail`` of a failure.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthscale.config import Config
from synthscale.embed.encoder_reader import encoder_spec, load_encoder
from synthscale.embed.image_reader import FILE_COLUMNS, decode_all, files_of
from synthscale.embed.ray_cache_lookup import METADATA_COLUMNS, CachedRows, CacheLookup
from synthscale.ingest.vector_reader import check_vectors, read_vectors
from synthscale.storage.run_directory import RunDirectory
from synthscale.tables.faults import RowFault
from synthscale.tables.layout import Shard, StoredFile, VectorLayout, VectorSource
from synthscale.tables.schemas import FAILURES, REAL, embeddings_schema


@dataclass(frozen=True)
class EmbedJob:
    """Arguments that all tasks and actors of one run of embed share; picklable.

    Attributes:
        config: the run's configuration.
        run: the run directory.
        shards: the shards to embed, by index.
        lookup: rows that are in the embedding cache.
        kept: indices of shards that are written, but lack rows or are to have their failures tried again. Their
            embeddings are kept, and the cache is not asked for them.
    """

    config: Config
    run: RunDirectory
    shards: dict[int, Shard]
    lookup: CacheLookup
    kept: frozenset[int] = frozenset()

    def embedded(self, shard: Shard) -> NDArray[np.int64]:
        """Return the rows of a shard that are in the cache or kept: (m,) offsets from its first row."""
        if shard.index in self.kept:
            rows = self.run.read_shard("embeddings", shard, ["row"])
        else:
            rows = self.lookup.locations(shard)
        offsets: NDArray[np.int64] = rows.column("row").to_numpy() - shard.start
        return offsets

    def read_embedded(self, shard: Shard, dimensions: int) -> CachedRows:
        """Read the rows that `embedded` names, except those that the cache has lost since."""
        if shard.index not in self.kept:
            return self.lookup.read(shard, dimensions)
        rows = self.run.read_shard("embeddings", shard)
        return CachedRows.of(rows, rows.column("row").to_numpy() - shard.start, dimensions)

    def files(self, shard: Shard, at: NDArray[np.int64]) -> list[StoredFile]:
        """Return the image files of some rows of a shard, given their offsets from its first row."""
        manifest = self.run.read_shard("manifest", shard, list(FILE_COLUMNS))
        return files_of(manifest.take(pa.array(at)))


class DecodeTask:
    """Decode the images of a shard that are not embedded yet."""

    def __init__(self, job: EmbedJob, image_size: int) -> None:
        self._job, self._size = job, image_size

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Fetch and decode images of the shard whose index is in ``batch``.

        Returns:
            One row: ``shard`` (index), ``at`` (offsets of the m decoded rows), ``pixels`` (uint8, (m, S, S, 3), as
            one binary value) and ``facts`` (JSON list of m records).
        """
        shard = self._job.shards[batch.column("shard")[0].as_py()]
        at = np.setdiff1d(np.arange(shard.rows), self._job.embedded(shard))
        pixels, records = decode_all(self._job.files(shard, at), self._size, self._job.config)
        return pa.table(
            {
                "shard": [shard.index],
                "at": pa.array([at], pa.list_(pa.int64())),
                "pixels": _as_binary(pixels),
                "facts": [json.dumps(records)],
            }
        )


def _as_binary(pixels: NDArray[np.uint8]) -> pa.Array:
    """Return pixels as one binary value, without a copy: Ray may split a block between rows, never within one."""
    ends = np.array([0, pixels.nbytes], np.int64)
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(ends), pa.py_buffer(pixels)])


class ShardEncoder:
    """Encode decoded images of a shard, add the rows that are embedded already, and write the shard."""

    def __init__(self, job: EmbedJob, layout: VectorLayout, device: str) -> None:
        self._encoder = load_encoder(job.config, device)
        self._job, self._layout = job, layout

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Embed and write the shard that `DecodeTask` decoded into ``batch``; return its tally."""
        shard = self._job.shards[batch.column("shard")[0].as_py()]
        at = np.array(batch.column("at")[0].as_py(), np.int64)
        size = self._encoder.image_size
        pixels = np.frombuffer(batch.column("pixels")[0].as_buffer(), np.uint8).reshape(len(at), size, size, 3)
        rows = _Rows(shard.rows, self._layout.dimensions)
        known = self._job.read_embedded(shard, self._layout.dimensions)
        rows.put(known.at, known.vectors, known.metadata)
        self._embed(rows, at, pixels, json.loads(batch.column("facts")[0].as_py()))
        # Cache entries may have been deleted since the lookup.
        if len(lost := rows.missing()):
            files = self._job.files(shard, lost)
            self._embed(rows, lost, *decode_all(files, size, self._job.config))
        check_vectors(rows.vectors, rows.records, self._layout.search)
        tally, embeddings = write_embedded(self._job.run, shard, rows.vectors, rows.records)
        self._job.lookup.store(shard, embeddings, set(range(len(rows.records))) - set(known.at.tolist()))
        return tally

    def _embed(
        self, rows: "_Rows", at: NDArray[np.int64], pixels: NDArray[np.uint8], records: list[dict[str, Any]]
    ) -> None:
        vectors = np.zeros((len(records), self._layout.dimensions), np.float32)
        usable = np.array([i for i, record in enumerate(records) if "reason" not in record], dtype=np.int64)
        size = self._job.config.encoder.batch_size
        for start in range(0, len(usable), size):
            part = usable[start : start + size]
            vectors[part] = self._encoder.encode(pixels[part])
        rows.put(at, vectors, records)


class EmbedActor(ShardEncoder):
    """A `ShardEncoder` in a process of its own. On CPUs there is one per core, so each computes in one thread."""

    def __init__(self, job: EmbedJob, layout: VectorLayout, device: str) -> None:
        import torch

        if device == "cpu":
            torch.set_num_threads(1)
        super().__init__(job, layout, device)


class _Rows:
    """Rows of a shard while they are being collected: vectors (n, D), and n records, empty until they are set."""

    def __init__(self, n: int, dimensions: int) -> None:
        self.vectors = np.zeros((n, dimensions), np.float32)
        self.records: list[dict[str, Any]] = [{} for _ in range(n)]

    def put(self, at: NDArray[np.int64], vectors: NDArray[np.float32], records: list[dict[str, Any]]) -> None:
        self.vectors[at] = vectors
        for i, record in zip(at.tolist(), records, strict=True):
            self.records[i] = record

    def missing(self) -> NDArray[np.int64]:
        return np.array([i for i, record in enumerate(self.records) if not record], np.int64)


class CachedTask:
    """Write a shard whose rows are all in the cache."""

    def __init__(self, job: EmbedJob, dimensions: int) -> None:
        self._job, self._dimensions = job, dimensions

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Write the shard whose index is in ``batch``; return its tally, or no rows if a cache entry is gone."""
        shard = self._job.shards[batch.column("shard")[0].as_py()]
        cached = self._job.lookup.read(shard, self._dimensions)
        if len(cached.at) < shard.rows:
            return pa.table({"tally": pa.array([], pa.string())})
        order = np.argsort(cached.at)
        records = [cached.metadata[i] for i in order.tolist()]
        return write_embedded(self._job.run, shard, cached.vectors[order], records)[0]


class VectorTask:
    """Read, check and write the precomputed vectors of a shard."""

    def __init__(self, job: EmbedJob, source: VectorSource) -> None:
        self._job, self._source = job, source

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Write the shard whose index is in ``batch``; return its tally."""
        shard = self._job.shards[batch.column("shard")[0].as_py()]
        vectors, records = read_vectors(self._source, shard.start, shard.stop, self._job.config.storage)
        layout = encoder_spec(self._job.config, self._source).layout
        check_vectors(vectors, records, layout.directed(self._job.config.neighbors.metric_in_force))
        return write_embedded(self._job.run, shard, vectors, records)[0]


def write_embedded(
    run: RunDirectory, shard: Shard, vectors: NDArray[np.floating], records: list[dict[str, Any]]
) -> tuple[pa.Table, pa.Table]:
    """Write a shard's failures, then its embeddings, whose file marks the shard as complete.

    Args:
        run: the run directory.
        shard: the shard, of n rows.
        vectors: (n, D); the rows of failures are ignored.
        records: n records.

    Returns:
        One row with the column ``tally``: JSON of the shard's index, and the result of `count_outcomes`. And the
        embeddings as written.
    """
    manifest = run.read_shard("manifest", shard, ["row", "id", "uri", "generator", "fault"])
    records = [
        record if fault is None else RowFault.parse(fault).record()
        for record, fault in zip(records, manifest.column("fault").to_pylist(), strict=True)
    ]
    failed = [i for i, record in enumerate(records) if "reason" in record]
    failures = manifest.take(pa.array(failed, pa.int64())).drop_columns(["generator", "fault"])
    for name in ("reason", "detail"):
        failures = failures.append_column(name, pa.array([records[i][name] for i in failed], pa.string()))
    run.write_shard("failures", shard, failures, FAILURES)
    usable = [i for i, record in enumerate(records) if "reason" not in record]
    flat = pa.array(vectors[usable].reshape(-1))
    columns = {
        "row": manifest.column("row").take(pa.array(usable, pa.int64())),
        "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        **{name: [records[i].get(name) for i in usable] for name in METADATA_COLUMNS},
    }
    schema = embeddings_schema(vectors.shape[1], flat.type)
    embeddings = pa.table(columns, schema=schema)
    run.write_shard("embeddings", shard, embeddings, schema)
    outcomes = _outcomes(manifest.column("generator").to_pylist(), [record.get("reason") for record in records])
    return pa.table({"tally": [json.dumps(outcomes | {"shard": shard.index})]}), embeddings


def count_outcomes(run: RunDirectory, shard: Shard) -> dict[str, dict[str, Any]]:
    """Count the rows of a written shard.

    Returns:
        ``ok`` and ``failed``: rows by set; ``reasons``: failures by set and reason.
    """
    generators = run.read_shard("manifest", shard, ["generator"]).column("generator").to_pylist()
    failures = run.read_shard("failures", shard, ["row", "reason"])
    ok = run.read_shard("embeddings", shard, ["row"]).column("row").to_numpy() - shard.start
    failed = failures.column("row").to_numpy() - shard.start
    reasons = [None] * len(ok) + failures.column("reason").to_pylist()
    return _outcomes([generators[i] for i in np.concatenate([ok, failed]).tolist()], reasons)


def _outcomes(generators: Sequence[str | None], reasons: Sequence[str | None]) -> dict[str, dict[str, Any]]:
    """Count rows by set and outcome, and failures by set and reason; a reason of None is a success."""
    rows = list(zip(generators, reasons, strict=True))
    by_reason: dict[str, Counter[str]] = {}
    for name, reason in rows:
        if reason is not None:
            by_reason.setdefault(name or REAL, Counter())[reason] += 1
    return {
        "ok": dict(Counter(name or REAL for name, reason in rows if reason is None)),
        "failed": dict(Counter(name or REAL for name, reason in rows if reason is not None)),
        "reasons": {name: dict(counts) for name, counts in by_reason.items()},
    }
