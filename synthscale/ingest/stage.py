"""Ingest: the rows that the input names -> ``manifest/``, numbered and cut into shards.

Checks what only the whole set can tell: unique ids, both classes, generator names. The rows are mapped from disk
and pass through memory shard by shard; a rerun looks again, and is refused where it finds other files.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synthscale.errors import ResumeConflict
from synthscale.ingest.checks import rename_clashing_columns
from synthscale.ingest.discover import Dataset
from synthscale.runtime.stage_context import StageContext, StageOutcome
from synthscale.storage import filesystems as fsys
from synthscale.tables.id_hashes import hash_ids
from synthscale.tables.layout import Shard
from synthscale.tables.schemas import CONTROL, MANIFEST_COLUMNS, REAL, SYNTHETIC

_WRITERS = 16
_BLOCK_BYTES = 2**28
"""Largest block of pixels, a shard's, that passes from a decoding task to an encoder."""


def fingerprint(context: StageContext, dataset: Dataset) -> dict[str, Any]:
    """Return what the manifest depends on: the input's settings and the state of what was found there."""
    return {"settings": context.config.result_settings("input"), "found": dataset.digest}


def run(context: StageContext, dataset: Dataset) -> StageOutcome:
    """Write the manifest of rows that ``check_rows`` has passed."""
    rows = rename_clashing_columns(dataset.rows)
    n = rows.num_rows
    size = context.config.storage.shard_rows or _shard_rows(context, dataset, n)
    shards = [Shard(i, start, min(start + size, n)) for i, start in enumerate(range(0, n, size))]

    def write(shard: Shard) -> None:
        piece = rows.slice(shard.start, shard.stop - shard.start)
        piece = piece.append_column("row", pa.array(np.arange(shard.start, shard.stop)))
        piece = piece.append_column("id_hash", pa.array(hash_ids(piece.column("id").to_pylist())))
        context.run.write_shard("manifest", shard, piece, MANIFEST_COLUMNS)

    # Threads hide the latency of object storage; each holds a compressor.
    with ThreadPoolExecutor(_WRITERS if fsys.is_s3(context.run.uri) else 2) as pool:
        for first in range(0, len(shards), 1024):
            list(pool.map(write, shards[first : first + 1024]))
    kinds = {kind: pc.sum(pc.equal(rows.column("real_or_synthetic"), kind)).as_py() for kind in (REAL, SYNTHETIC)}
    generators = [name for name in pc.unique(rows.column("generator")).to_pylist() if name is not None]
    # The control is shown last, wherever its rows stand.
    generators.sort(key=lambda name: name == CONTROL)
    info = {
        "shard_stops": [shard.stop for shard in shards],
        "generators": generators,
        "notes": dataset.notes,
        "vectors": None if dataset.vectors is None else vars(dataset.vectors),
    }
    return StageOutcome({"rows": n, "real": kinds[REAL], "synthetic": kinds[SYNTHETIC]}, info)


def refuse_changed(context: StageContext, dataset: Dataset) -> None:
    """Raise ResumeConflict where files that a table names are not those that the run began with."""

    def changed(shard: Shard) -> tuple[int, str]:
        before = context.run.read_shard("manifest", shard, ["uri", "etag"])
        now = dataset.rows.column("etag").slice(shard.start, shard.stop - shard.start)
        # Neither what was not there and has come, nor what is gone: they are told of when they are read.
        uris = before.column("uri").filter(pc.fill_null(pc.not_equal(before.column("etag"), now), False))
        return len(uris), uris[0].as_py() if len(uris) else ""

    with ThreadPoolExecutor(_WRITERS) as pool:
        found = [each for each in pool.map(changed, context.shards) if each[0]]
    if found:
        raise ResumeConflict(
            f"{context.run.uri}: {sum(count for count, _ in found)} images have changed since the run began, "
            f"the first is {found[0][1]}; give another --output, or repeat from here with --redo-from ingest"
        )


def _shard_rows(context: StageContext, dataset: Dataset, n: int) -> int:
    if dataset.vectors is not None:
        return vector_shard_rows(n)
    return default_shard_rows(n, context.config.encoder.image_size)


def vector_shard_rows(n: int) -> int:
    """Return rows per shard of precomputed vectors: no pixels limit them, and few large files are read fastest."""
    return min(16384, max(64, math.ceil(n / 32)))


def default_shard_rows(n: int, image_size: int | None = None) -> int:
    """Return rows per shard: shards enough to share out a small set, few files for a large one, small blocks."""
    pixels_bytes = (image_size or 224) ** 2 * 3
    return min(1024, max(16, _BLOCK_BYTES // pixels_bytes), max(64, math.ceil(n / 32)))
