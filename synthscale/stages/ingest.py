"""Ingest: the rows that the input names -> ``manifest/``, numbered and cut into shards.

Checks what only the whole set can tell: unique ids, both classes, generator names. The rows are mapped from disk
and pass through memory shard by shard; a rerun looks again, and is refused where it finds other files.
"""

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synthscale import filesystems as fsys
from synthscale.config import Config, check_generator_name
from synthscale.errors import ConfigError, InputError, ResumeConflict
from synthscale.metrics.gates import generators_of
from synthscale.metrics.slices import can_slice
from synthscale.schemas import CONTROL, MANIFEST_COLUMNS, REAL, SCORES, SYNTHETIC, Shard
from synthscale.sources import Dataset
from synthscale.sources.spool import mapped_keys
from synthscale.stages.context import Outcome, StageContext

_WRITERS = 16
_SORTED = 2**21
"""Keys of ids that are sorted at a time."""
_BLOCK_BYTES = 2**28
"""Largest block of pixels, a shard's, that passes from a decoding task to an encoder."""


def fingerprint(context: StageContext, dataset: Dataset) -> dict[str, Any]:
    """Return what the manifest depends on: the input's settings and the state of what was found there."""
    return {"settings": context.config.result_settings("input"), "found": dataset.digest}


def run(context: StageContext, dataset: Dataset) -> Outcome:
    """Write the manifest of rows that ``check_rows`` has passed."""
    rows = rename_clashing_columns(dataset.rows)
    n = rows.num_rows
    size = context.config.storage.shard_rows or _shard_rows(context, dataset, n)
    shards = [Shard(i, start, min(start + size, n)) for i, start in enumerate(range(0, n, size))]

    def write(shard: Shard) -> None:
        piece = rows.slice(shard.start, shard.stop - shard.start)
        numbers = pa.array(np.arange(shard.start, shard.stop))
        context.run.write_shard("manifest", shard, piece.append_column("row", numbers), MANIFEST_COLUMNS)

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
    return Outcome({"rows": n, "real": kinds[REAL], "synthetic": kinds[SYNTHETIC]}, info)


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


def rename_clashing_columns(rows: pa.Table) -> pa.Table:
    """Give a user's column that bears the name of one of ours in ``scores/`` the prefix ``user_``."""
    ours = (set(SCORES.names) - set(MANIFEST_COLUMNS.names)) | {"row"}
    names = list(rows.column_names)
    for i, name in enumerate(names):
        if name in ours:
            while name in ours or name in names:
                name = f"user_{name}"
            names[i] = name
    return rows.rename_columns(names)


def check_metrics(config: Config, rows: pa.Table) -> None:
    """Raise ConfigError where ``metrics.slice_by`` or a gate names what the input has not."""
    rows = rename_clashing_columns(rows)
    there = ["label", *(name for name in rows.column_names if name not in MANIFEST_COLUMNS.names)]
    missing = [name for name in config.metrics.slice_by if name not in there]
    if missing:
        raise ConfigError(
            f"metrics.slice_by: the input has no column {', '.join(missing)}; there are {', '.join(there)}"
        )
    for name in config.metrics.slice_by:
        if not can_slice(rows.schema.field(name).type):
            raise ConfigError(f"metrics.slice_by: {name} holds {rows.schema.field(name).type}, not plain values")
    generators = {name for name in pc.unique(rows.column("generator")).to_pylist() if name is not None}
    for text, generator in generators_of(config.gates):
        if generator not in generators:
            raise ConfigError(
                f"gate {text!r}: there is no generator {generator}; there are {', '.join(sorted(generators))}"
            )


def check_rows(rows: pa.Table) -> None:
    """Raise InputError when the set as a whole cannot be scored, naming what is wrong."""
    if rows.num_rows == 0:
        raise InputError("the input has no rows")
    ids = rows.column("id")
    if ids.null_count:
        raise InputError(f"{ids.null_count} rows have no id")
    twice = _twice(ids)
    if twice:
        more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
        raise InputError(f"duplicate ids: {', '.join(twice[:5])}{more}; every row needs an id of its own")
    kinds = set(pc.unique(rows.column("real_or_synthetic")).to_pylist())
    for kind in (REAL, SYNTHETIC):
        if kind not in kinds:
            raise InputError(f"the input has no {kind} rows; both real and synthetic rows are needed")
    for name in pc.unique(rows.column("generator")).to_pylist():
        if name is not None:
            try:
                check_generator_name(name)
            except ValueError as error:
                raise InputError(str(error)) from error


def _twice(ids: pa.ChunkedArray) -> list[str]:
    """Return the ids that more than one row has; the keys of all are on disk, and sorted a range at a time."""
    keys = mapped_keys(ids)
    ranges = max(1, len(keys) // _SORTED)
    found = [np.empty(0, np.uint64)]
    for own in range(ranges):
        spans = (keys[start : start + _SORTED] for start in range(0, len(keys), _SORTED))
        order = np.sort(np.concatenate([span[span % np.uint64(ranges) == own] for span in spans]))
        found.append(np.unique(order[1:][order[1:] == order[:-1]]))
    same = np.concatenate(found)
    if not len(same):
        return []
    counts = Counter[str]()
    for start in range(0, len(keys), _SORTED):
        mask = pa.array(np.isin(keys[start : start + _SORTED], same))
        counts.update(ids.slice(start, _SORTED).filter(mask).to_pylist())
    return [name for name, count in counts.items() if count > 1]
