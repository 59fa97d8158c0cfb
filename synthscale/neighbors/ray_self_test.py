"""The self-test of the radius: edited copies of sampled real images are embedded beside the search."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import ray

from synthscale.config import Config
from synthscale.embed.encoder_reader import load_encoder
from synthscale.embed.image_reader import FILE_COLUMNS, fetch_all, files_of
from synthscale.neighbors import self_test as selftest
from synthscale.neighbors.embedding_reader import EmbeddingReader
from synthscale.neighbors.self_test import SelfTest
from synthscale.runtime.stage_context import StageContext
from synthscale.tables.columns import vector_matrix
from synthscale.tables.layout import Shard, shards_of


def start_self_test(
    context: StageContext, known: EmbeddingReader, chunks: list[list[Shard]]
) -> Callable[[], SelfTest | None]:
    """Start embedding edited copies of sampled real images; the result waits for them (None: no images)."""
    count = context.config.neighbors.self_test_images
    if context.vectors is not None or count == 0:
        return lambda: None
    if context.is_local and not context.gpus:
        # The driver has torch loaded already, and idles while its workers search.
        pool = ThreadPoolExecutor(1)
        result = pool.submit(_self_test_here, context.config, known, count, chunks)
        return result.result
    pick = ray.remote(_real_images).options(num_cpus=1)
    parts = [pick.remote(known, chunk, count) for chunk in chunks]
    task = ray.remote(_self_test).options(num_cpus=1, num_gpus=1 if context.gpus else 0)
    reference = task.remote(context.config, known, count, *parts)
    return lambda: ray.get(reference)


def _self_test_here(config: Config, known: EmbeddingReader, count: int, chunks: list[list[Shard]]) -> SelfTest:
    return _self_test(config, known, count, *(_real_images(known, chunk, count) for chunk in chunks))


def _real_images(known: EmbeddingReader, chunk: list[Shard], count: int) -> pa.Table:
    """Return id, row, uri and content_hash of the chunk's part of the sample."""
    parts = []
    for shard in chunk:
        embedded = known.run.read_shard("embeddings", shard, ["row", "content_hash"])
        manifest = known.run.read_shard("manifest", shard, ["row", "id", "generator", *FILE_COLUMNS])
        at = pa.array(embedded.column("row").to_numpy() - shard.start)
        mine = manifest.take(at).append_column("content_hash", embedded.column("content_hash"))
        parts.append(mine.filter(mine.column("generator").is_null()).drop_columns("generator"))
    return _drawn(pa.concat_tables(parts), count)


def _drawn(images: pa.Table, count: int) -> pa.Table:
    rows = images.column("row").to_numpy()
    chosen = selftest.sample_rows(images.column("id").to_pylist(), rows, count, seed=0)
    return images.filter(pa.array(np.isin(rows, chosen)))


def _self_test(config: Config, known: EmbeddingReader, count: int, *parts: pa.Table) -> SelfTest:
    images = _drawn(pa.concat_tables(parts), count)
    rows = images.column("row").to_numpy()
    shards = known.run.completed("ingest").info["shard_stops"]
    wanted = [s for s in shards_of(shards) if ((rows >= s.start) & (rows < s.stop)).any()]
    pieces = [known.run.read_shard("embeddings", shard, ["row", "vector"]) for shard in wanted]
    table = pa.concat_tables(pieces)
    vectors = vector_matrix(table, (0, known.layout.dimensions))
    originals = vectors[np.searchsorted(table.column("row").to_numpy(), rows)]
    return selftest.run_self_test(
        fetch_all(files_of(images), config),
        originals.astype(np.float32),
        load_encoder(config, "cuda" if ray.get_gpu_ids() else "cpu"),
        config.encoder.batch_size,
        images.column("content_hash").to_pylist(),
    )
