"""Embed stage: read ``manifest/``, write ``embeddings/`` and ``failures/``, with Ray Data, one block per shard.

Tasks fetch, decode and resize a shard's images to uint8 at the encoder's size; actors load the encoder, compute
the vectors and write the shard. The driver receives counts only, but on one machine it encodes small sets itself.
A rerun keeps the shards that are written. Precomputed vectors are checked and written in the same way, without
decoding.
"""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import PIL
import ray
import ray.data

import synthscale
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
from synthscale.runtime.stage_context import StageContext, StageOutcome
from synthscale.storage import filesystems as fsys
from synthscale.storage.embedding_cache import EmbeddingCache
from synthscale.storage.run_directory import digest
from synthscale.tables.faults import Reason
from synthscale.tables.layout import Shard
from synthscale.tables.schemas import REAL

_MOST_GPU_ACTORS = 64
"""Most GPU actors requested from a cluster that has fewer GPUs and may add nodes."""
_ONE_PROCESS_ROWS = 1500
"""Up to this many images, one process encodes on CPUs: it is done before a second one has loaded torch."""
_LONG_ROWS = 1000
"""From this many images on, a progress bar is shown."""
RETRIED = {Reason.NOT_FOUND, Reason.ACCESS_DENIED, Reason.READ_ERROR}
"""Failures that may be temporary: a rerun embeds the shards that have any of them again."""


def fingerprint(context: StageContext, encoder: EncoderSpec) -> dict[str, Any]:
    """Return everything the embeddings depend on, as JSON values: manifest, encoder settings and versions."""
    return {"input": context.run.completed("ingest").digest, **_encoder_fingerprint(context, encoder)}


def _encoder_fingerprint(context: StageContext, encoder: EncoderSpec) -> dict[str, Any]:
    """Return everything an embedding depends on except the image: settings, encoder and library versions."""
    import torch

    return {
        "settings": context.config.result_settings("encoder"),
        "encoder": encoder.fingerprint,
        "versions": {
            "synthscale": synthscale.__version__,
            "facts": 2,
            "torch": ".".join(torch.__version__.split(".")[:2]),
            "pillow": ".".join(PIL.__version__.split(".")[:2]),
        },
    }


def run(context: StageContext, encoder: EncoderSpec) -> StageOutcome:
    """Embed the shards that are not written yet, and verify the row counts.

    Shards with failures that a retry may mend (`RETRIED`) are embedded again.

    Raises:
        TooManyFailures: more than ``max_failure_fraction`` of a set could not be read.
        InputError: no row of a set could be read.
        StageError: the rows of both tables do not add up to the rows of the manifest.
    """
    written = context.run.written_shards("embeddings")
    done = {shard: count_outcomes(context.run, shard) for shard in context.shards if shard.name in written}
    # Files that could not be read before may be readable now.
    done = {shard: tally for shard, tally in done.items() if not RETRIED & tally["reasons"].keys()}
    todo = [shard for shard in context.shards if shard not in done]
    tallies = list(done.values())
    if todo:
        tallies += _stream(context, todo, encoder)
    ok, failed, reasons = (
        sum((Counter[str](tally[name]) for tally in tallies), Counter[str]())
        for name in ("ok", "failed", "reasons")
    )
    rows = context.shards[-1].stop
    if ok.total() + failed.total() != rows:
        raise StageError(
            f"embed: the manifest has {rows:,} rows, but {ok.total():,} were embedded and {failed.total():,} "
            "failed; rerun with --redo-from embed"
        )
    sets = [REAL, *context.generators]
    counts = {
        "rows": rows,
        "ok": ok.total(),
        "failed": failed.total(),
        "reasons": dict(sorted(reasons.items())),
        "sets": {name: {"ok": ok[name], "failed": failed[name]} for name in sets},
    }
    _check_failures(context, counts)
    layout = encoder.layout
    info = {"dimensions": layout.dimensions, "search": layout.search, "classify": layout.classify}
    return StageOutcome(counts, info)


def _check_failures(context: StageContext, counts: dict[str, Any]) -> None:
    limit = context.config.max_failure_fraction
    for name, tally in counts["sets"].items():
        total = tally["ok"] + tally["failed"]
        if tally["failed"] > limit * total:
            reasons = ", ".join(f"{reason} {n}" for reason, n in counts["reasons"].items())
            raise TooManyFailures(
                f"{name}: {tally['failed']:,} of {total:,} rows could not be read, more than max_failure_fraction "
                f"{limit:g} allows ({reasons}); see {context.run.path('failures')}"
            )
        if tally["ok"] == 0:
            raise InputError(
                f"{name}: none of the {total:,} rows could be read; see {context.run.path('failures')}"
            )


def _stream(context: StageContext, todo: list[Shard], encoder: EncoderSpec) -> list[dict[str, Any]]:
    """Call `_tallies`, with Ray Data's progress bars shown for large sets if the terminal shows progress."""
    settings = ray.data.DataContext.get_current()
    before = settings.enable_progress_bars
    # Only this stage can take hours, so a person at a terminal is shown its progress.
    rows = sum(shard.rows for shard in todo)
    settings.enable_progress_bars |= context.show_progress and rows >= _LONG_ROWS
    try:
        return _tallies(context, todo, encoder)
    finally:
        settings.enable_progress_bars = before


def _cache_lookup(context: StageContext, encoder: EncoderSpec) -> CacheLookup:
    """Return the lookup in the configured cache; without a cache, or with precomputed vectors, an empty one."""
    storage = context.config.storage
    if storage.cache is None or context.vectors is not None:
        return CacheLookup(context.run, None)
    uri = fsys.join(storage.cache, digest(_encoder_fingerprint(context, encoder)))
    return CacheLookup(context.run, EmbeddingCache(uri, storage, encoder.layout.dimensions))


def _tallies(context: StageContext, todo: list[Shard], encoder: EncoderSpec) -> list[dict[str, Any]]:
    """Embed ``todo`` and return the tally of each shard; fully cached shards are written without decoding."""
    lookup = _cache_lookup(context, encoder)
    job = EmbedJob(context.config, context.run, {shard.index: shard for shard in todo}, lookup)
    if context.vectors is not None:
        written = _shard_dataset(todo).map_batches(VectorTask(job, context.vectors), **_ONE_SHARD)
        return _collect(written.iter_rows())
    cached = job.lookup.find(todo)
    if cached:
        rows = sum(shard.rows for shard in todo)
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
        batches = decoded.iter_batches(**_ONE_SHARD)
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
