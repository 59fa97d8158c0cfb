"""Embed stage: read ``manifest/``, write ``embeddings/`` and ``failures/``, with Ray Data, one block per shard.

Tasks fetch, decode and resize a shard's images to uint8 at the encoder's size; actors load the encoder, compute
the vectors and write the shard. The driver receives counts only, but on one machine it encodes small sets itself.
A rerun keeps the shards that are written, with their failures; ``--retry-failed`` tries these again. Precomputed
vectors are checked and written in the same way, without decoding.
"""

import json
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any

import PIL
import pyarrow as pa
import ray
import ray.data

from synthscale.embed.encoder_reader import EncoderSpec
from synthscale.embed.ray_cache_lookup import CacheLookup
from synthscale.embed.ray_tasks import (
    CachedTask,
    DecodeTask,
    EmbedActor,
    EmbedJob,
    ShardEncoder,
    VectorTask,
    count_outcomes,
)
from synthscale.errors import ConfigError, InputError, StageError, TooManyFailures
from synthscale.ingest.file_stats import add_file_stats
from synthscale.runtime.stage_context import StageContext, StageOutcome
from synthscale.storage import filesystems as fsys
from synthscale.storage.embedding_cache import EmbeddingCache
from synthscale.storage.run_directory import digest
from synthscale.tables.layout import Shard
from synthscale.tables.schemas import MANIFEST_COLUMNS, REAL

ALGORITHM_VERSION = 3
"""Part of the fingerprint and of the cache's location. Raise it when the same file gives other pixels or file
metadata; each encoder has its own version of what it makes of the pixels."""
_MOST_GPU_ACTORS = 64
"""Most GPU actors requested from a cluster that has fewer GPUs and may add nodes."""
_ONE_PROCESS_ROWS = 1500
"""Up to this many images, one process encodes on CPUs: it is done before a second one has loaded torch."""
_LONG_ROWS = 1000
"""From this many images on, a progress bar is shown."""
_BEFORE_RETRY = "_stages/embed-before-retry.json"
"""Counts of the finished stage while its failures are tried again: what the later stages were computed from."""
_READ_THREADS = 16
"""Shards of ``failures/`` read in parallel."""


def fingerprint(context: StageContext, encoder: EncoderSpec) -> dict[str, Any]:
    """Return everything the embeddings depend on, as JSON values: manifest, encoder settings and versions."""
    return {"input": context.run.completed("ingest").digest, **_encoder_fingerprint(context, encoder)}


def _encoder_fingerprint(context: StageContext, encoder: EncoderSpec) -> dict[str, Any]:
    """Return everything an embedding depends on except the image: settings, encoder and versions.

    Of the libraries only Pillow counts, by its major and minor version: it decodes and resizes, and its minor
    releases bring other codecs, which may change pixels by a grey level. A classifier could tell sets apart by
    that. Versions of torch change vectors by rounding alone, as devices do, which do not count either.
    """
    versions: dict[str, Any] = {"algorithm": ALGORITHM_VERSION}
    if context.vectors is None:
        versions["pillow"] = ".".join(PIL.__version__.split(".")[:2])
    return {
        "settings": context.config.result_settings("encoder"),
        "encoder": encoder.fingerprint,
        "versions": versions,
    }


def reopen(context: StageContext, fingerprint: dict[str, Any]) -> bool:
    """Prepare `run` to try the rows in ``failures/`` again. Return False, after a line of text, if there are none.

    Files may have come or been mended since they were listed: the manifest takes their present sizes and etags. If
    the stage was complete, its marker says so no longer, and `run` decides what happens to later stages.
    """
    run = context.run
    written = run.written_shards("failures")
    shards = [shard for shard in context.shards if shard.name in written]
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        failed = list(pool.map(lambda shard: run.read_shard("failures", shard, ["row"]).num_rows, shards))
    if context.vectors is not None or not any(failed):
        what = "precomputed vectors do not change" if any(failed) else "no row has failed"
        context.on_progress(f"embed: {what}: --retry-failed has nothing to try again")
        return False
    context.on_progress(f"embed: {sum(failed):,} rows that failed are tried again")
    for shard in (shard for shard, count in zip(shards, failed, strict=True) if count):
        _update_files(context, shard)
    marker = run.matching_marker("embed", fingerprint)
    if marker is not None and marker.complete:
        run.write_json(_BEFORE_RETRY, marker.counts)
        run.write_marker(replace(marker, complete=False))
    return True


def _update_files(context: StageContext, shard: Shard) -> None:
    """Write the present sizes and etags of a shard's failed rows to ``manifest/``; missing files keep theirs."""
    manifest = context.run.read_shard("manifest", shard)
    at = context.run.read_shard("failures", shard, ["row"]).column("row").to_numpy() - shard.start
    (found,) = add_file_stats([manifest.take(pa.array(at))], context.config.storage)
    updated = manifest
    for name in ("size_bytes", "etag"):
        values = manifest.column(name).to_pylist()
        for position, value in zip(at.tolist(), found.column(name).to_pylist(), strict=True):
            # Members of archives keep their sizes, which only their archive says.
            if value is not None:
                values[position] = value
        place = manifest.column_names.index(name)
        updated = updated.set_column(place, name, pa.array(values, manifest.schema.field(name).type))
    if not updated.equals(manifest):
        context.run.write_shard("manifest", shard, updated, MANIFEST_COLUMNS)


def run(context: StageContext, encoder: EncoderSpec, *, retry_failed: bool = False) -> StageOutcome:
    """Embed the shards that are not written yet, and verify the row counts.

    Args:
        context: the run.
        encoder: properties of its vectors.
        retry_failed: also try the failed rows of written shards again, after `reopen`. No embedding is removed or
            recomputed. If a row is embedded now, the output of all later stages is removed.

    Raises:
        TooManyFailures: more than ``max_failure_fraction`` of a set could not be read.
        InputError: no row of a set could be read.
        StorageUnavailable: images could not be read for a reason that may pass.
        StageError: the rows of both tables do not add up to the rows of the manifest.
    """
    written = context.run.written_shards("embeddings")
    outcomes = {shard: count_outcomes(context.run, shard) for shard in context.shards if shard.name in written}
    done = {
        shard: tally
        for shard, tally in outcomes.items()
        # A shard lacks rows if the process died between the tables of a retry.
        if not (retry_failed and tally["failed"]) and _rows_in(tally) == shard.rows
    }
    todo = [shard for shard in context.shards if shard not in done]
    tallies = list(done.values())
    if todo:
        kept = frozenset(shard.index for shard in todo if shard in outcomes)
        tallies += _stream(context, todo, encoder, kept)
    ok, failed = (
        sum((Counter[str](tally[name]) for tally in tallies), Counter[str]()) for name in ("ok", "failed")
    )
    rows = context.shards[-1].stop
    if ok.total() + failed.total() != rows:
        raise StageError(
            f"embed: the manifest has {rows:,} rows, but {ok.total():,} were embedded and {failed.total():,} "
            "failed; rerun with --redo-from embed"
        )
    sets = [REAL, *context.generators]
    reasons = {
        name: sum((Counter[str](tally["reasons"].get(name, {})) for tally in tallies), Counter[str]())
        for name in sets
    }
    counts = {
        "rows": rows,
        "ok": ok.total(),
        "failed": failed.total(),
        "reasons": dict(sorted(sum(reasons.values(), Counter[str]()).items())),
        "sets": {
            name: {"ok": ok[name], "failed": failed[name], "reasons": dict(sorted(reasons[name].items()))}
            for name in sets
        },
    }
    _remove_outdated(context, counts)
    _check_failures(context, counts)
    layout = encoder.layout
    return StageOutcome(counts, asdict(layout))


def _rows_in(tally: dict[str, dict[str, int]]) -> int:
    return sum(tally["ok"].values()) + sum(tally["failed"].values())


def _remove_outdated(context: StageContext, counts: dict[str, Any]) -> None:
    """Remove the output of later stages if the failures that were tried again give other results for them."""
    run = context.run
    if not fsys.exists(run.path(_BEFORE_RETRY), run.storage):
        return
    before = run.read_json(_BEFORE_RETRY)
    gained = counts["ok"] - before["ok"]
    context.on_progress(f"embed: {gained:,} of {before['failed']:,} rows that failed could be read now")
    if gained:
        run.remove_from("neighbors")
    elif counts != before:
        # Only reasons have changed, which metrics.json counts.
        run.remove_from("reduce")
    fsys.remove(run.path(_BEFORE_RETRY), run.storage)


def _check_failures(context: StageContext, counts: dict[str, Any]) -> None:
    """Raise TooManyFailures, or InputError for a set without a row, that names each such set and its reasons."""
    limit = context.config.max_failure_fraction
    remedy = f"see {context.run.path('failures')}; when these files are in order, add --retry-failed"
    too_many = []
    for name, tally in counts["sets"].items():
        total = tally["ok"] + tally["failed"]
        if tally["failed"] > limit * total:
            reasons = ", ".join(f"{reason} {n:,}" for reason, n in tally["reasons"].items())
            too_many.append(f"{name}: {tally['failed']:,} of {total:,} rows could not be read ({reasons})")
        elif tally["ok"] == 0:
            raise InputError(f"{name}: none of the {total:,} rows could be read; {remedy}")
    if too_many:
        raise TooManyFailures(f"{'; '.join(too_many)}: more than max_failure_fraction {limit:g} allows; {remedy}")


def _stream(
    context: StageContext, todo: list[Shard], encoder: EncoderSpec, kept: frozenset[int]
) -> list[dict[str, Any]]:
    """Call `_tallies`, with Ray Data's progress bars shown for large sets if the terminal shows progress."""
    settings = ray.data.DataContext.get_current()
    before = settings.enable_progress_bars
    # Only this stage can take hours, so a person at a terminal is shown its progress.
    rows = sum(shard.rows for shard in todo)
    settings.enable_progress_bars |= context.show_progress and rows >= _LONG_ROWS
    try:
        return _tallies(context, todo, encoder, kept)
    finally:
        settings.enable_progress_bars = before


def _cache_lookup(context: StageContext, encoder: EncoderSpec) -> CacheLookup:
    """Return the lookup in the configured cache; without a cache, or with precomputed vectors, an empty one."""
    storage = context.config.storage
    if storage.cache is None or context.vectors is not None:
        return CacheLookup(context.run, None)
    uri = fsys.join(storage.cache, digest(_encoder_fingerprint(context, encoder)))
    return CacheLookup(context.run, EmbeddingCache(uri, storage, encoder.layout.dimensions))


def _tallies(
    context: StageContext, todo: list[Shard], encoder: EncoderSpec, kept: frozenset[int]
) -> list[dict[str, Any]]:
    """Embed ``todo`` and return the tally of each shard; fully cached shards are written without decoding."""
    lookup = _cache_lookup(context, encoder)
    job = EmbedJob(context.config, context.run, {shard.index: shard for shard in todo}, lookup, kept)
    if context.vectors is not None:
        written = _shard_dataset(todo).map_batches(VectorTask(job, context.vectors), **_ONE_SHARD)
        return _collect(written.iter_rows())
    new = [shard for shard in todo if shard.index not in kept]
    cached = job.lookup.find(new)
    if cached:
        rows = sum(shard.rows for shard in new)
        context.on_progress(f"embed: {sum(cached.values()):,} of {rows:,} embeddings are in the cache")
    fully_cached = [shard for shard in todo if cached.get(shard.index) == shard.rows]
    tallies = []
    if fully_cached:
        task = CachedTask(job, encoder.layout.dimensions)
        tallies = _collect(_shard_dataset(fully_cached).map_batches(task, **_ONE_SHARD).iter_rows())
    done = {tally["shard"] for tally in tallies}
    rest = [shard for shard in todo if shard.index not in done]
    if rest:
        tallies += _embed_images(context, job, rest, encoder)
    job.lookup.remove_locations()
    return tallies


_ONE_SHARD: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}


def _shard_dataset(shards: list[Shard]) -> ray.data.Dataset:
    return ray.data.from_items([{"shard": shard.index} for shard in shards], override_num_blocks=len(shards))


def _collect(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [json.loads(row["tally"]) for row in rows]


def _embed_images(
    context: StageContext, job: EmbedJob, shards: list[Shard], encoder: EncoderSpec
) -> list[dict[str, Any]]:
    device, rows = device_for(context), sum(shard.rows for shard in shards)
    decoded = _shard_dataset(shards).map_batches(DecodeTask(job, encoder.image_size or 0), **_ONE_SHARD)
    if context.is_local and device == "cpu" and rows <= _ONE_PROCESS_ROWS:
        # The driver has already loaded torch, which takes a new process seconds.
        encode = ShardEncoder(job, encoder.layout, device)
        # If encode raises, the iterator must be closed while Ray runs: later it would start another one.
        with closing(iter(decoded.iter_batches(**_ONE_SHARD))) as batches:
            return _collect(row for batch in batches for row in encode(batch).to_pylist())
    written = decoded.map_batches(
        EmbedActor,
        fn_constructor_args=(job, encoder.layout, device),
        **_ONE_SHARD,
        compute=actor_pool(context, device, len(shards), rows),
        num_gpus=1 if device == "cuda" else None,
        num_cpus=None if device == "cuda" else 1,
    )
    return _collect(written.iter_rows())


def device_for(context: StageContext) -> str:
    """Return the device of the actors, ``cuda`` or ``cpu``; with ``auto``, ``cuda`` if Ray reports a GPU.

    Raises:
        ConfigError: ``cuda`` is configured, but this machine has no GPU. (A cluster may add one later.)
    """
    device = context.config.encoder.device
    if device == "cuda" and context.gpus == 0 and context.is_local:
        raise ConfigError("encoder.device is cuda, but Ray finds no GPU on this machine; use auto or cpu")
    return ("cuda" if context.gpus else "cpu") if device == "auto" else device


def actor_pool(context: StageContext, device: str, shards: int, rows: int) -> ray.data.ActorPoolStrategy:
    """Return the Ray actor pool that encodes ``rows`` images in ``shards`` shards.

    There is one actor per CPU core or GPU, but no more than there are shards. From a cluster, up to
    `_MOST_GPU_ACTORS` GPU actors are requested even if it has fewer GPUs. Small sets get one CPU actor.
    """
    if device == "cuda":
        # A cluster may start without a GPU node: requesting more actors makes its autoscaler add nodes.
        most = max(context.gpus, 1 if context.is_local else min(shards, _MOST_GPU_ACTORS))
        return ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(most, shards)))
    # On CPUs Ray fuses the decode task into the actor (both need one CPU), so every core decodes and encodes, and
    # no pixels pass through the object store.
    wanted = context.cpus if rows > _ONE_PROCESS_ROWS else 1
    return ray.data.ActorPoolStrategy(size=max(1, min(wanted, shards)))
