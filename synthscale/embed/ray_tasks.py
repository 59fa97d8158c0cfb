"""The tasks and actors of embed: what is done with a shard's rows, from their bytes to the two tables.

``embeddings/`` is written after ``failures/``, as the sign that a shard is done.
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
from synthscale.embed.encoder_reader import load_encoder
from synthscale.embed.image_reader import FILE_COLUMNS, decode_all, files_of
from synthscale.embed.ray_cache_lookup import METADATA_COLUMNS, CacheLookup
from synthscale.ingest.vector_reader import check_vectors, read_rows
from synthscale.storage.run_directory import RunDirectory
from synthscale.tables.layout import Shard, StoredFile, VectorLayout, VectorSource
from synthscale.tables.schemas import FAILURES, REAL, embeddings_schema


@dataclass(frozen=True)
class EmbedJob:
    """What tasks and actors are told."""

    config: Config
    run: RunDirectory
    shards: dict[int, Shard]
    earlier: CacheLookup

    def files(self, shard: Shard, at: NDArray[np.int64]) -> list[StoredFile]:
        """Where the images at some places of a shard lie."""
        manifest = self.run.read_shard("manifest", shard, list(FILE_COLUMNS))
        return files_of(manifest.take(pa.array(at)))


class DecodeTask:
    """Shard number -> those of its rows that no earlier run embedded: uint8 pixels, and facts or faults."""

    def __init__(self, job: EmbedJob, image_size: int) -> None:
        self._job, self._size = job, image_size

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Fetch and decode the rows of the shard that is numbered in ``batch``; give one row for all of them."""
        shard = self._job.shards[batch.column("shard")[0].as_py()]
        found = self._job.earlier.places(shard).column("row").to_numpy() - shard.start
        at = np.setdiff1d(np.arange(shard.stop - shard.start), found)
        pixels, facts = decode_all(self._job.files(shard, at), self._size, self._job.config)
        return pa.table(
            {
                "shard": [shard.index],
                "at": pa.array([at], pa.list_(pa.int64())),
                "pixels": _as_one(pixels),
                "facts": [json.dumps(facts)],
            }
        )


def _as_one(pixels: NDArray[np.uint8]) -> pa.Array:
    """Return pixels as one binary value, without a copy: Ray may cut a block between rows, never within one."""
    ends = np.array([0, pixels.nbytes], np.int64)
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(ends), pa.py_buffer(pixels)])


class EmbedActor:
    """Pixels of a shard -> its embeddings and failures, written; gives the counts."""

    def __init__(self, job: EmbedJob, layout: VectorLayout, device: str) -> None:
        import torch

        if device == "cpu":
            torch.set_num_threads(1)
        self._encoder = load_encoder(job.config, device)
        self._job, self._layout = job, layout

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Encode, complete and write the shard whose pixels ``batch`` holds."""
        shard = self._job.shards[batch.column("shard")[0].as_py()]
        at = np.array(batch.column("at")[0].as_py(), np.int64)
        size = self._encoder.image_size
        pixels = np.frombuffer(batch.column("pixels")[0].as_buffer(), np.uint8).reshape(len(at), size, size, 3)
        rows = _Rows(shard.stop - shard.start, self._layout.dimensions)
        known = self._job.earlier.known(shard, self._layout.dimensions)
        rows.put(known.at, known.vectors, known.facts)
        self._embed(rows, at, pixels, json.loads(batch.column("facts")[0].as_py()))
        # What the cache had and has no more.
        if len(lost := rows.missing()):
            files = self._job.files(shard, lost)
            self._embed(rows, lost, *decode_all(files, size, self._job.config))
        check_vectors(rows.vectors, rows.facts, self._layout.search)
        tally = write_embedded(self._job.run, shard, rows.vectors, rows.facts)
        self._job.earlier.keep(shard, set(range(len(rows.facts))) - set(known.at.tolist()))
        return tally

    def _embed(
        self, rows: "_Rows", at: NDArray[np.int64], pixels: NDArray[np.uint8], facts: list[dict[str, Any]]
    ) -> None:
        vectors = np.zeros((len(facts), self._layout.dimensions), np.float32)
        good = np.array([i for i, fact in enumerate(facts) if "reason" not in fact], dtype=np.int64)
        size = self._job.config.encoder.batch_size
        for start in range(0, len(good), size):
            part = good[start : start + size]
            vectors[part] = self._encoder.encode(pixels[part])
        rows.put(at, vectors, facts)


class _Rows:
    """A shard's rows as they come together: vectors (n, D), and facts or the reason why there are none."""

    def __init__(self, n: int, dimensions: int) -> None:
        self.vectors = np.zeros((n, dimensions), np.float32)
        self.facts: list[dict[str, Any]] = [{} for _ in range(n)]

    def put(self, at: NDArray[np.int64], vectors: NDArray[np.float32], facts: list[dict[str, Any]]) -> None:
        self.vectors[at] = vectors
        for place, fact in zip(at.tolist(), facts, strict=True):
            self.facts[place] = fact

    def missing(self) -> NDArray[np.int64]:
        return np.array([i for i, fact in enumerate(self.facts) if not fact], np.int64)


class CachedTask:
    """Shard number -> its rows, all of which an earlier run embedded, written; gives the counts, or nothing."""

    def __init__(self, job: EmbedJob, dimensions: int) -> None:
        self._job, self._dimensions = job, dimensions

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Write the shard that is numbered in ``batch``; where part of the cache is gone, give no tally."""
        shard = self._job.shards[batch.column("shard")[0].as_py()]
        known = self._job.earlier.known(shard, self._dimensions)
        if len(known.at) < shard.stop - shard.start:
            return pa.table({"tally": pa.array([], pa.string())})
        order = np.argsort(known.at)
        facts = [known.facts[i] for i in order.tolist()]
        return write_embedded(self._job.run, shard, known.vectors[order], facts)


class VectorTask:
    """Shard number -> its precomputed vectors, checked and written; gives the counts."""

    def __init__(self, job: EmbedJob, source: VectorSource) -> None:
        self._job, self._source = job, source

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Check and write the shard that is numbered in ``batch``."""
        shard = self._job.shards[batch.column("shard")[0].as_py()]
        vectors, facts = read_rows(self._source, shard.start, shard.stop, self._job.config.storage)
        check_vectors(vectors, facts, (0, vectors.shape[1]))
        return write_embedded(self._job.run, shard, vectors, facts)


def write_embedded(
    run: RunDirectory, shard: Shard, vectors: NDArray[np.floating], facts: list[dict[str, Any]]
) -> pa.Table:
    """Write a shard's failures, then its embeddings, whose file marks the shard as done.

    Returns:
        A table with one row and the column ``tally``: JSON with the shard's index and what `count_outcomes` gives.
    """
    manifest = run.read_shard("manifest", shard, ["row", "id", "uri", "generator"])
    bad = [i for i, fact in enumerate(facts) if "reason" in fact]
    failures = manifest.take(pa.array(bad, pa.int64())).drop_columns(["generator"])
    for name in ("reason", "detail"):
        failures = failures.append_column(name, pa.array([facts[i][name] for i in bad], pa.string()))
    run.write_shard("failures", shard, failures, FAILURES)
    good = [i for i, fact in enumerate(facts) if "reason" not in fact]
    flat = pa.array(vectors[good].reshape(-1))
    columns = {
        "row": manifest.column("row").take(pa.array(good, pa.int64())),
        "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        **{name: [facts[i].get(name) for i in good] for name in METADATA_COLUMNS},
    }
    schema = embeddings_schema(vectors.shape[1], flat.type)
    run.write_shard("embeddings", shard, pa.table(columns, schema=schema), schema)
    outcomes = _outcomes(manifest.column("generator").to_pylist(), [fact.get("reason") for fact in facts])
    return pa.table({"tally": [json.dumps(outcomes | {"shard": shard.index})]})


def count_outcomes(run: RunDirectory, shard: Shard) -> dict[str, dict[str, int]]:
    """Count the rows by set and the failures by reason of a shard that an earlier run wrote."""
    generators = run.read_shard("manifest", shard, ["generator"]).column("generator").to_pylist()
    failures = run.read_shard("failures", shard, ["row", "reason"])
    ok = run.read_shard("embeddings", shard, ["row"]).column("row").to_numpy() - shard.start
    failed = failures.column("row").to_numpy() - shard.start
    reasons = [None] * len(ok) + failures.column("reason").to_pylist()
    return _outcomes([generators[i] for i in np.concatenate([ok, failed]).tolist()], reasons)


def _outcomes(generators: Sequence[str | None], reasons: Sequence[str | None]) -> dict[str, dict[str, int]]:
    """Count rows as ``ok:SET`` and ``failed:SET``, and failures by reason; a reason of None is a success."""
    by_set = Counter(
        f"{'ok' if reason is None else 'failed'}:{name or REAL}"
        for name, reason in zip(generators, reasons, strict=True)
    )
    return {"by_set": dict(by_set), "reasons": dict(Counter(filter(None, reasons)))}
