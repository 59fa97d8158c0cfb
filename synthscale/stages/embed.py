"""Embed: ``manifest/`` -> ``embeddings/`` and ``failures/``, streamed by Ray Data, one block per shard.

A task fetches, decodes and resizes a shard's images to uint8 at the encoder's size; an actor that holds the
encoder turns them into vectors and writes the shard. Written shards are not repeated by a rerun. Precomputed
vectors take the same way without decoding. Only counts come back to the driver.
"""

import json
from collections import Counter
from typing import Any

import numpy as np
import PIL
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray

import synthscale
from synthscale.config import Config
from synthscale.embedding import FILE_COLUMNS, EncoderFacts, decode_all, encoder_for, files_of
from synthscale.errors import ConfigError, InputError, StageError, TooManyFailures
from synthscale.schemas import FAILURES, REAL, Layout, Reason, Shard, embeddings_schema
from synthscale.stages.context import Outcome, StageContext
from synthscale.storage import RunDirectory
from synthscale.vectors import VectorSource, check_vectors, read_rows

_MOST_GPU_ACTORS = 64
_ONE_ACTOR_ROWS = 1500
_LONG_ROWS = 1000
RETRIED = {Reason.NOT_FOUND, Reason.ACCESS_DENIED, Reason.THROTTLED, Reason.READ_ERROR}
_FACTS = tuple(name for name in embeddings_schema(1).names if name not in {"row", "vector"})


def fingerprint(context: StageContext, encoder: EncoderFacts) -> dict[str, Any]:
    """Return what the embeddings depend on."""
    import torch

    return {
        "input": context.run.completed("ingest").digest,
        "settings": context.config.result_settings("encoder"),
        "encoder": encoder.fingerprint,
        "versions": {
            "synthscale": synthscale.__version__,
            "facts": 2,
            "torch": ".".join(torch.__version__.split(".")[:2]),
            "pillow": ".".join(PIL.__version__.split(".")[:2]),
        },
    }


def run(context: StageContext, encoder: EncoderFacts) -> Outcome:
    """Embed the shards that are not there yet; verify that every row ended in exactly one of the two tables."""
    written = context.run.written_shards("embeddings")
    done = {shard: _tally(context.run, shard) for shard in context.shards if shard.name in written}
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
    return Outcome(counts, info)


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


def _stream(context: StageContext, todo: list[Shard], encoder: EncoderFacts) -> list[dict[str, Any]]:
    settings = ray.data.DataContext.get_current()
    quiet = settings.enable_progress_bars
    # The one stage that can take hours; a person at a terminal sees how far it is.
    rows = sum(shard.stop - shard.start for shard in todo)
    settings.enable_progress_bars |= context.show_progress and rows >= _LONG_ROWS
    block_bytes = settings.target_max_block_size
    try:
        return _tallies(context, todo, encoder)
    finally:
        settings.enable_progress_bars, settings.target_max_block_size = quiet, block_bytes


def _tallies(context: StageContext, todo: list[Shard], encoder: EncoderFacts) -> list[dict[str, Any]]:
    items = ray.data.from_items([{"shard": shard.index} for shard in todo], override_num_blocks=len(todo))
    shards = {shard.index: shard for shard in todo}
    if context.vectors is not None:
        task = _VectorTask(context.config, context.run, shards, context.vectors)
        done = items.map_batches(task, batch_size=1, batch_format="pyarrow")
    else:
        done = _embed_images(context, items, shards, encoder)
    return [json.loads(row["tally"]) for row in done.iter_rows()]


def _embed_images(
    context: StageContext, items: ray.data.Dataset, shards: dict[int, Shard], encoder: EncoderFacts
) -> ray.data.Dataset:
    image_size = encoder.image_size or 0
    # A shard's pixels must stay one block: its actor writes them as one file.
    largest = max(shard.stop - shard.start for shard in shards.values())
    settings = ray.data.DataContext.get_current()
    settings.target_max_block_size = max(128 * 2**20, 2 * largest * image_size**2 * 3)
    device = device_for(context)
    decoded = items.map_batches(
        _DecodeTask(context.config, context.run, shards, image_size), batch_size=1, batch_format="pyarrow"
    )
    return decoded.map_batches(
        _EmbedActor,
        fn_constructor_args=(context.config, context.run, shards, encoder.layout, device),
        batch_size=None,
        batch_format="numpy",
        compute=actor_pool(context, device, len(shards), sum(s.stop - s.start for s in shards.values())),
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


class _DecodeTask:
    """Shard number -> its rows as uint8 pixels with file facts, or with the reason why there are none."""

    def __init__(self, config: Config, run: RunDirectory, shards: dict[int, Shard], image_size: int) -> None:
        self._config, self._run, self._shards, self._size = config, run, shards, image_size

    def __call__(self, batch: pa.Table) -> dict[str, NDArray[Any]]:
        shard = self._shards[batch.column("shard")[0].as_py()]
        manifest = self._run.read_shard("manifest", shard, ["row", *FILE_COLUMNS])
        pixels, facts = decode_all(files_of(manifest), self._size, self._config)
        return {
            "shard": np.full(manifest.num_rows, shard.index),
            "pixels": pixels,
            "facts": np.array([json.dumps(fact) for fact in facts], dtype=object),
        }


class _EmbedActor:
    """Pixels of a shard -> its embeddings and failures, written; gives the counts."""

    def __init__(
        self, config: Config, run: RunDirectory, shards: dict[int, Shard], layout: Layout, device: str
    ) -> None:
        import torch

        if device == "cpu":
            torch.set_num_threads(1)
        self._encoder = encoder_for(config, device)
        self._batch_size = config.encoder.batch_size
        self._run, self._shards, self._layout = run, shards, layout

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, list[str]]:
        shard = self._shards[int(batch["shard"][0])]
        facts = [json.loads(text) for text in batch["facts"]]
        if len(facts) != shard.stop - shard.start:
            raise StageError(f"embed: Ray split {shard.name}; give a smaller storage.shard_rows")
        vectors = np.zeros((len(facts), self._layout.dimensions), np.float32)
        good = np.array([i for i, fact in enumerate(facts) if "reason" not in fact], dtype=np.int64)
        for start in range(0, len(good), self._batch_size):
            part = good[start : start + self._batch_size]
            vectors[part] = self._encoder.encode(batch["pixels"][part])
        check_vectors(vectors, facts, self._layout.search)
        write_embedded(self._run, shard, vectors, facts)
        return {"tally": [json.dumps(_tally(self._run, shard))]}


class _VectorTask:
    """Shard number -> its precomputed vectors, checked and written; gives the counts."""

    def __init__(self, config: Config, run: RunDirectory, shards: dict[int, Shard], source: VectorSource) -> None:
        self._config, self._run, self._shards, self._source = config, run, shards, source

    def __call__(self, batch: pa.Table) -> pa.Table:
        shard = self._shards[batch.column("shard")[0].as_py()]
        vectors, facts = read_rows(self._source, shard.start, shard.stop, self._config.storage)
        check_vectors(vectors, facts, (0, vectors.shape[1]))
        write_embedded(self._run, shard, vectors, facts)
        return pa.table({"tally": [json.dumps(_tally(self._run, shard))]})


def write_embedded(
    run: RunDirectory, shard: Shard, vectors: NDArray[np.floating], facts: list[dict[str, Any]]
) -> None:
    """Write a shard's failures and then, as the sign that it is done, its embeddings."""
    manifest = run.read_shard("manifest", shard, ["row", "id", "uri"])
    bad = [i for i, fact in enumerate(facts) if "reason" in fact]
    failures = manifest.take(pa.array(bad, pa.int64()))
    for name in ("reason", "detail"):
        failures = failures.append_column(name, pa.array([facts[i][name] for i in bad], pa.string()))
    run.write_shard("failures", shard, failures, FAILURES)
    good = [i for i, fact in enumerate(facts) if "reason" not in fact]
    flat = pa.array(vectors[good].reshape(-1))
    columns = {
        "row": manifest.column("row").take(pa.array(good, pa.int64())),
        "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        **{name: [facts[i].get(name) for i in good] for name in _FACTS},
    }
    schema = embeddings_schema(vectors.shape[1], flat.type)
    run.write_shard("embeddings", shard, pa.table(columns, schema=schema), schema)


def _tally(run: RunDirectory, shard: Shard) -> dict[str, dict[str, int]]:
    """Count, from what was written, a shard's rows by set and its failures by reason."""
    manifest = run.read_shard("manifest", shard, ["row", "generator"])
    sets = dict(zip(manifest.column("row").to_pylist(), manifest.column("generator").to_pylist(), strict=True))
    failures = run.read_shard("failures", shard, ["row", "reason"]).to_pydict()
    ok = run.read_shard("embeddings", shard, ["row"]).column("row").to_pylist()
    by_set = Counter(f"ok:{sets[row] or REAL}" for row in ok)
    by_set.update(f"failed:{sets[row] or REAL}" for row in failures["row"])
    return {"by_set": dict(by_set), "reasons": dict(Counter(failures["reason"]))}
