"""Embed: ``manifest/`` -> ``embeddings/`` and ``failures/``, streamed by Ray Data, one block per shard.

A task fetches, decodes and resizes a shard's images to uint8 at the encoder's size; an actor that holds the
encoder turns them into vectors and writes the shard. Written shards are not repeated by a rerun. Precomputed
vectors take the same way without decoding. Only counts come back to the driver.
"""

import json
from collections import Counter
from typing import Any

import PIL
import ray
import ray.data

import synthscale
from synthscale.embed.encoder_reader import EncoderSpec
from synthscale.embed.ray_cache_lookup import CacheLookup
from synthscale.embed.ray_tasks import CachedTask, DecodeTask, EmbedActor, EmbedJob, VectorTask, count_outcomes
from synthscale.errors import ConfigError, InputError, StageError, TooManyFailures
from synthscale.runtime.stage_context import StageContext, StageOutcome
from synthscale.storage import filesystems as fsys
from synthscale.storage.embedding_cache import EmbeddingCache
from synthscale.storage.run_directory import digest
from synthscale.tables.faults import Reason
from synthscale.tables.layout import Shard
from synthscale.tables.schemas import REAL

_MOST_GPU_ACTORS = 64
_ONE_ACTOR_ROWS = 1500
_LONG_ROWS = 1000
RETRIED = {Reason.NOT_FOUND, Reason.ACCESS_DENIED, Reason.THROTTLED, Reason.READ_ERROR}


def fingerprint(context: StageContext, encoder: EncoderSpec) -> dict[str, Any]:
    """Return what the embeddings depend on."""
    return {"input": context.run.completed("ingest").digest, **_how(context, encoder)}


def _how(context: StageContext, encoder: EncoderSpec) -> dict[str, Any]:
    """What an image's embedding depends on, beside the image."""
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
    """Embed the shards that are not there yet; verify that every row ended in exactly one of the two tables."""
    written = context.run.written_shards("embeddings")
    done = {shard: count_outcomes(context.run, shard) for shard in context.shards if shard.name in written}
    # What was not there, or not to be had, may be now.
    done = {shard: tally for shard, tally in done.items() if not RETRIED & tally["reasons"].keys()}
    todo = [shard for shard in context.shards if shard not in done]
    tallies = list(done.values())
    if todo:
        tallies += _stream(context, todo, encoder)
    by_set, reasons = Counter[str](), Counter[str]()
    for tally in tallies:
        by_set.update(tally["by_set"])
        reasons.update(tally["reasons"])
    rows = context.shards[-1].stop
    ok = sum(n for key, n in by_set.items() if key.startswith("ok:"))
    failed = sum(n for key, n in by_set.items() if key.startswith("failed:"))
    if ok + failed != rows:
        raise StageError(
            f"embed: {rows} rows went in, {ok} came out and {failed} failed; rerun with --redo-from embed"
        )
    sets = [REAL, *context.generators]
    counts = {
        "rows": rows,
        "ok": ok,
        "failed": failed,
        "reasons": dict(sorted(reasons.items())),
        "sets": {name: {"ok": by_set[f"ok:{name}"], "failed": by_set[f"failed:{name}"]} for name in sets},
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
                f"{name}: {tally['failed']} of {total} rows could not be used, more than max_failure_fraction "
                f"{limit:g} allows ({reasons}); see {context.run.path('failures')}"
            )
        if tally["ok"] == 0:
            raise InputError(f"{name}: no row could be used; see {context.run.path('failures')}")


def _stream(context: StageContext, todo: list[Shard], encoder: EncoderSpec) -> list[dict[str, Any]]:
    settings = ray.data.DataContext.get_current()
    quiet = settings.enable_progress_bars
    # The one stage that can take hours; a person at a terminal sees how far it is.
    rows = sum(shard.stop - shard.start for shard in todo)
    settings.enable_progress_bars |= context.show_progress and rows >= _LONG_ROWS
    try:
        return _tallies(context, todo, encoder)
    finally:
        settings.enable_progress_bars = quiet


def _earlier(context: StageContext, encoder: EncoderSpec) -> CacheLookup:
    """Return what earlier runs kept of images that were embedded in this way."""
    storage = context.config.storage
    if storage.cache is None or context.vectors is not None:
        return CacheLookup(context.run, None)
    uri = fsys.join(storage.cache, digest(_how(context, encoder)))
    return CacheLookup(context.run, EmbeddingCache(uri, storage, encoder.layout.dimensions))


def _tallies(context: StageContext, todo: list[Shard], encoder: EncoderSpec) -> list[dict[str, Any]]:
    job = EmbedJob(context.config, context.run, {shard.index: shard for shard in todo}, _earlier(context, encoder))
    if context.vectors is not None:
        return _told(_items(todo).map_batches(VectorTask(job, context.vectors), **_A_SHARD))
    found = job.earlier.find(todo)
    if found:
        rows = sum(shard.stop - shard.start for shard in todo)
        context.on_progress(f"embed: {sum(found.values()):,} of {rows:,} embeddings are those of earlier runs")
    whole = [shard for shard in todo if found.get(shard.index) == shard.stop - shard.start]
    tallies = []
    if whole:
        tallies = _told(_items(whole).map_batches(CachedTask(job, encoder.layout.dimensions), **_A_SHARD))
    done = {tally["shard"] for tally in tallies}
    rest = [shard for shard in todo if shard.index not in done]
    if rest:
        tallies += _told(_embed_images(context, job, rest, encoder))
    job.earlier.forget()
    return tallies


_A_SHARD: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}


def _items(shards: list[Shard]) -> ray.data.Dataset:
    return ray.data.from_items([{"shard": shard.index} for shard in shards], override_num_blocks=len(shards))


def _told(done: ray.data.Dataset) -> list[dict[str, Any]]:
    return [json.loads(row["tally"]) for row in done.iter_rows()]


def _embed_images(
    context: StageContext, job: EmbedJob, shards: list[Shard], encoder: EncoderSpec
) -> ray.data.Dataset:
    device = device_for(context)
    decoded = _items(shards).map_batches(DecodeTask(job, encoder.image_size or 0), **_A_SHARD)
    return decoded.map_batches(
        EmbedActor,
        fn_constructor_args=(job, encoder.layout, device),
        **_A_SHARD,
        compute=actor_pool(context, device, len(shards), sum(s.stop - s.start for s in shards)),
        num_gpus=1 if device == "cuda" else None,
        num_cpus=None if device == "cuda" else 1,
    )


def device_for(context: StageContext) -> str:
    """Return the device that actors encode on: a GPU where Ray sees one, unless the configuration says."""
    device = context.config.encoder.device
    if device == "cuda" and context.gpus == 0 and context.is_local:
        raise ConfigError("encoder.device is cuda, but Ray sees no GPU here; use auto or cpu")
    return ("cuda" if context.gpus else "cpu") if device == "auto" else device


def actor_pool(context: StageContext, device: str, shards: int, rows: int) -> ray.data.ActorPoolStrategy:
    """Return how many actors encode ``rows`` images in ``shards`` shards."""
    if device == "cuda":
        # A cluster may start with no GPU node and grow: asking for more actors is what makes it grow.
        most = max(context.gpus, 1 if context.is_local else min(shards, _MOST_GPU_ACTORS))
        return ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(most, shards)))
    # On CPUs Ray fuses the task into the actor (their resources are equal): every core decodes and encodes, and no
    # pixel passes through the object store.
    # A few hundred images are done before a second actor has loaded torch.
    wanted = context.cpus if rows > _ONE_ACTOR_ROWS else 1
    return ray.data.ActorPoolStrategy(size=max(1, min(wanted, shards)))
