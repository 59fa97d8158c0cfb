"""Ingest stage: number the rows of the input, split them into shards and write them to ``manifest/``.

Takes the rows that `discover` found and `check_rows` accepted, and copies one shard per thread into memory. On a
rerun the input is discovered again, and the run is refused if the files have changed.
"""

import math
import posixpath
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
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
from synthscale.tables.layout import Shard, VectorSource
from synthscale.tables.schemas import CONTROL, MANIFEST_COLUMNS, REAL, SYNTHETIC

ALGORITHM_VERSION = 2
"""Part of the fingerprint. Raise it when the same input gives other rows, ids, labels or another order."""
_S3_THREADS = 16
"""Threads that read or write shards on S3."""
_PLACE = ["id", "uri"]
"""Columns that say which image a row is, and where."""
_BLOCK_BYTES = 2**28
"""Maximum size of a shard's decoded pixels (256 MiB), which a decoding task passes to an encoder as one block."""


def fingerprint(context: StageContext, dataset: Dataset, *, except_failed: bool = False) -> dict[str, Any]:
    """Return the values that the manifest depends on: the input's settings and the digest of its contents.

    The listing of a folder also changes with an image that failed and has been replaced for ``--retry-failed``.
    If the manifest says that nothing else has changed, the digest stays that of the run's beginning.

    Args:
        context: the run.
        dataset: its input, as it is now.
        except_failed: as in `check_unchanged`.

    Raises:
        ResumeConflict: the input has changed since the run began.
    """
    settings, digest = context.config.result_settings("input"), dataset.digest
    marker = context.run.marker("ingest")
    if marker is not None and marker.complete and marker.fingerprint.get("settings") == settings:
        recorded = str(marker.fingerprint.get("found"))
        if recorded != digest:
            if not _has_same_images(context, dataset):
                before, now = context.shards[-1].stop, dataset.rows.num_rows
                raise ResumeConflict(
                    f"{context.run.uri}: its input has changed since it began ({before:,} rows, now {now:,}); "
                    "restore its files, choose another --output, or start again with --redo-from ingest"
                )
            check_unchanged(context, dataset, except_failed=except_failed)
            digest = recorded
    return {"settings": settings, "found": digest, "versions": {"algorithm": ALGORITHM_VERSION}}


def _has_same_images(context: StageContext, dataset: Dataset) -> bool:
    """Return True if the input is folders that list the images of the manifest, whatever their sizes and etags."""
    rows = dataset.rows
    if dataset.vectors is not None or dataset.is_table or rows.column("etag").null_count:
        return False
    if rows.num_rows != context.shards[-1].stop:
        return False

    def is_same(shard: Shard) -> bool:
        before, now = context.run.read_shard("manifest", shard, _PLACE), rows.slice(shard.start, shard.rows)
        return all(pc.all(pc.equal(before.column(name), now.column(name))).as_py() for name in _PLACE)

    with ThreadPoolExecutor(_S3_THREADS) as pool:
        return all(pool.map(is_same, context.shards))


def run(context: StageContext, dataset: Dataset) -> StageOutcome:
    """Write the manifest.

    Args:
        context: the run.
        dataset: rows that passed ``check_rows``.

    Returns:
        Counts of rows in all and by class. Info: ``shard_stops`` (row after the last of each shard), generator
        names, notes and the location of precomputed vectors.
    """
    rows = rename_clashing_columns(dataset.rows)
    n = rows.num_rows
    size = context.config.storage.shard_rows or _shard_rows(context, dataset, n)
    shards = [Shard(i, start, min(start + size, n)) for i, start in enumerate(range(0, n, size))]

    def write(shard: Shard) -> None:
        piece = rows.slice(shard.start, shard.rows)
        piece = piece.append_column("row", pa.array(np.arange(shard.start, shard.stop)))
        if "fault" not in piece.column_names:
            piece = piece.append_column("fault", pa.nulls(shard.rows, pa.string()))
        piece = piece.append_column("id_hash", pa.array(hash_ids(piece.column("id").to_pylist())))
        context.run.write_shard("manifest", shard, piece, MANIFEST_COLUMNS)

    # Threads hide the latency of object storage. Local runs use few, as each has its own compression buffers.
    with ThreadPoolExecutor(_S3_THREADS if fsys.is_s3(context.run.uri) else 2) as pool:
        for first in range(0, len(shards), 1024):
            list(pool.map(write, shards[first : first + 1024]))
    kinds = {kind: pc.sum(pc.equal(rows.column("real_or_synthetic"), kind)).as_py() for kind in (REAL, SYNTHETIC)}
    generators = [name for name in pc.unique(rows.column("generator")).to_pylist() if name is not None]
    # The control comes last in reports, wherever its rows are.
    generators.sort(key=lambda name: name == CONTROL)
    info = {
        "shard_stops": [shard.stop for shard in shards],
        "generators": generators,
        "notes": dataset.notes,
        "sets": [own.to_json() for own in dataset.sets],
        "vectors": None if dataset.vectors is None else vars(_copied_vectors(context, dataset)),
    }
    return StageOutcome({"rows": n, "real": kinds[REAL], "synthetic": kinds[SYNTHETIC]}, info)


def _copied_vectors(context: StageContext, dataset: Dataset) -> VectorSource:
    """Return the location of the vectors, after copying files that were converted into the run directory."""
    source = dataset.vectors
    assert source is not None
    if dataset.converted is None:
        return source
    files = []
    for path in source.files:
        if path.startswith(dataset.converted.name):
            copy = context.run.path("vectors", posixpath.basename(path))
            fsys.write_with_callback(copy, partial(shutil.copyfile, path), context.run.storage)
            path = copy
        files.append(path)
    return replace(source, files=files)


def check_unchanged(context: StageContext, dataset: Dataset, *, except_failed: bool = False) -> None:
    """Check that images, those that a metadata table names or a folder lists, have the etags of the manifest.

    Args:
        context: the run.
        dataset: its input, as it is now.
        except_failed: whether files of rows in ``failures/`` may differ, since they are about to be tried again.

    Raises:
        ResumeConflict: files have changed since the run began.
    """
    tried = context.run.written_shards("failures") if except_failed else set()

    def count_changed(shard: Shard) -> tuple[int, str]:
        before = context.run.read_shard("manifest", shard, ["row", "uri", "etag"])
        now = dataset.rows.column("etag").slice(shard.start, shard.rows)
        # Files that have been added or deleted since have a null etag; embed reports those that it cannot read.
        changed = pc.fill_null(pc.not_equal(before.column("etag"), now), False)
        if shard.name in tried:
            failed = context.run.read_shard("failures", shard, ["row"]).column("row")
            changed = pc.and_not(changed, pc.is_in(before.column("row"), failed.combine_chunks()))
        uris = before.column("uri").filter(changed)
        return len(uris), uris[0].as_py() if len(uris) else ""

    with ThreadPoolExecutor(_S3_THREADS) as pool:
        changed = [item for item in pool.map(count_changed, context.shards) if item[0]]
    if changed:
        remedy = (
            "" if except_failed else ", or, if only images that failed have changed, try these with --retry-failed"
        )
        raise ResumeConflict(
            f"{context.run.uri}: {sum(count for count, _ in changed):,} images have changed since the run began "
            f"(first: {changed[0][1]}); choose another --output, start again with --redo-from ingest{remedy}"
        )


def _shard_rows(context: StageContext, dataset: Dataset, n: int) -> int:
    if dataset.vectors is not None:
        return vector_shard_rows(n)
    return default_shard_rows(n, context.config.encoder.image_size)


def vector_shard_rows(n: int) -> int:
    """Return the number of rows per shard of n precomputed vectors: about n / 32, within 64..16,384.

    The upper limit is higher than for images: there are no pixel blocks, and few large files are read fastest.
    """
    return min(16384, max(64, math.ceil(n / 32)))


def default_shard_rows(n: int, image_size: int | None = None) -> int:
    """Return the number of rows per shard of n images: about n / 32, within 64..1,024.

    A small set is split into up to 32 shards, so that tasks can share it; a large set has full shards, so that
    there are few files. Large images lower the limit, to a minimum of 16 rows: a shard's RGB pixels at
    ``image_size`` (default 224) stay below ``_BLOCK_BYTES``.
    """
    pixels_bytes = (image_size or 224) ** 2 * 3
    return min(1024, max(16, _BLOCK_BYTES // pixels_bytes), max(64, math.ceil(n / 32)))
