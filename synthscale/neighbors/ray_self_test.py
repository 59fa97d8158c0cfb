"""Run the self-test of the near-duplicate radius on Ray, beside the k-NN searches.

A seeded sample of real images is read again and edited, the edited copies are embedded with the run's encoder, and
their distances from the originals are returned as a `SelfTest` (self_test.py). Reads ``manifest/`` and
``embeddings/`` and the images themselves; writes nothing.
"""

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
from synthscale.neighbors.search_space import SearchSpace
from synthscale.neighbors.self_test import SelfTest
from synthscale.runtime.stage_context import StageContext
from synthscale.storage.fetch import input_folders
from synthscale.tables.columns import vector_matrix
from synthscale.tables.layout import Shard, shards_of


def start_self_test(
    context: StageContext, reader: EmbeddingReader, space: SearchSpace, chunks: list[list[Shard]]
) -> Callable[[], SelfTest | None]:
    """Start the self-test in the background, and return a function that waits for its result.

    Args:
        context: configuration and resources of the stage.
        reader: reads the run's embeddings.
        space: the space of near-duplicates.
        chunks: all shards of the run, in groups of one task each.

    Returns:
        A function without arguments. It returns None if there is nothing to test: the run's vectors were
        precomputed, or ``neighbors.self_test_images`` is 0.
    """
    count = context.config.neighbors.self_test_images
    if context.vectors is not None or count == 0:
        return lambda: None
    if context.has_only_local_cpus:
        # The driver has already loaded torch, and is idle while its workers search.
        pool = ThreadPoolExecutor(1)
        result = pool.submit(_self_test_in_process, context.config, reader, space, count, chunks)
        return result.result
    sample_task = ray.remote(_sample_real_images).options(num_cpus=1)
    parts = [sample_task.remote(reader, chunk, count) for chunk in chunks]
    task = ray.remote(_self_test).options(num_cpus=1, num_gpus=1 if context.gpus else 0)
    reference = task.remote(context.config, reader, space, count, *parts)
    return lambda: ray.get(reference)


def _self_test_in_process(
    config: Config, reader: EmbeddingReader, space: SearchSpace, count: int, chunks: list[list[Shard]]
) -> SelfTest:
    """Run the self-test in this process."""
    return _self_test(
        config, reader, space, count, *(_sample_real_images(reader, chunk, count) for chunk in chunks)
    )


def _sample_real_images(reader: EmbeddingReader, chunk: list[Shard], count: int) -> pa.Table:
    """Return id, row, uri and content_hash of a sample of ``count`` embedded real images of the chunk."""
    parts = []
    for shard in chunk:
        embedded = reader.run.read_shard("embeddings", shard, ["row", "content_hash"])
        manifest = reader.run.read_shard("manifest", shard, ["row", "id", "generator", *FILE_COLUMNS])
        position = pa.array(embedded.column("row").to_numpy() - shard.start)
        images = manifest.take(position).append_column("content_hash", embedded.column("content_hash"))
        parts.append(images.filter(images.column("generator").is_null()).drop_columns("generator"))
    return _sampled(pa.concat_tables(parts), count)


def _sampled(images: pa.Table, count: int) -> pa.Table:
    """Draw ``count`` images by `self_test.sample_rows`; the sample of chunks' samples is that of all images."""
    rows = images.column("row").to_numpy()
    chosen = selftest.sample_rows(images.column("id").to_pylist(), rows, count, seed=0)
    return images.filter(pa.array(np.isin(rows, chosen)))


def _self_test(
    config: Config, reader: EmbeddingReader, space: SearchSpace, count: int, *parts: pa.Table
) -> SelfTest:
    """Sample ``count`` images from the samples of all chunks, and measure the distances of their edited copies."""
    images = _sampled(pa.concat_tables(parts), count)
    rows = images.column("row").to_numpy()
    stops = reader.run.completed("ingest").info["shard_stops"]
    shards = [s for s in shards_of(stops) if ((rows >= s.start) & (rows < s.stop)).any()]
    table = pa.concat_tables([reader.run.read_shard("embeddings", shard, ["row", "vector"]) for shard in shards])
    vectors = vector_matrix(table, (0, reader.layout.dimensions))
    originals = vectors[np.searchsorted(table.column("row").to_numpy(), rows)]
    return selftest.run_self_test(
        fetch_all(files_of(images), config, input_folders(config)),
        originals.astype(np.float32),
        load_encoder(config, "cuda" if ray.get_gpu_ids() else "cpu"),
        space,
        config.encoder.batch_size,
        images.column("content_hash").to_pylist(),
    )
