"""``validate`` and ``status``: what a run would do, and how far one has come. No cluster is started."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synthscale.config import Config
from synthscale.embed.encoder_reader import encoder_spec, load_encoder, spec_of
from synthscale.embed.encoders import Encoder
from synthscale.embed.image_reader import decode_all, files_of
from synthscale.errors import InputError
from synthscale.ingest.checks import check_metrics, check_rows
from synthscale.ingest.control import hold_out
from synthscale.ingest.discover import Dataset, discover
from synthscale.ingest.vector_reader import check_vectors, read_rows
from synthscale.storage import filesystems as fsys
from synthscale.storage.run_directory import STAGES, RunDirectory
from synthscale.tables.layout import VectorLayout, shards_of
from synthscale.tables.schemas import REAL

SAMPLE = 8
"""Images of each set that ``validate`` embeds."""


@dataclass(frozen=True)
class Plan:
    """What ``validate`` found out."""

    sets: dict[str, int]
    encoder: str
    dimensions: int
    tried: int
    faults: list[str]
    seconds: float | None
    disk_bytes: int
    notes: list[str]


def validate(config: Config) -> Plan:
    """Resolve a configuration, try its input and output, and estimate time and disk on this machine.

    Raises:
        ConfigError, InputError, StorageError: the run could not be carried out.
    """
    config.check_runnable()
    assert config.output is not None
    dataset = discover(config)
    check_rows(dataset.rows)
    if config.control:
        dataset = replace(dataset, rows=hold_out(dataset.rows))
    check_metrics(config, dataset.rows)
    check_writable(config)
    names = pc.fill_null(dataset.rows.column("generator").cast(pa.string()), REAL)
    sets = {entry["values"]: entry["counts"] for entry in pc.value_counts(names).to_pylist()}
    encoder = None if dataset.vectors is not None else load_encoder(config)
    facts = spec_of(encoder) if encoder is not None else encoder_spec(config, dataset.vectors)
    chosen = [i for name in sets for i in _spread(np.flatnonzero(pc.equal(names, name).to_numpy()))]
    seconds_a_row, faults = _try_rows(config, dataset, chosen, encoder)
    if len(faults) == len(chosen):
        raise InputError(f"none of {len(chosen)} rows tried could be used; the first: {faults[0]}")
    n = dataset.rows.num_rows
    return Plan(
        sets,
        facts.fingerprint,
        facts.layout.dimensions,
        len(chosen),
        faults,
        None if seconds_a_row is None else seconds_a_row * n,
        n * _bytes_a_row(facts.layout),
        dataset.notes,
    )


def _bytes_a_row(layout: VectorLayout) -> int:
    """Return what an image leaves at the output: its embedding, its place in the index, its lines of tables."""
    width = layout.search[1] - layout.search[0]
    return 4 * layout.dimensions + 4 * (width + 64) + 400


def _spread(rows: Any) -> list[int]:
    """A handful of rows, spread evenly over a set."""
    picked: list[int] = rows[np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int)].tolist()
    return picked


def _try_rows(
    config: Config, dataset: Dataset, rows: list[int], encoder: Encoder | None
) -> tuple[float | None, list[str]]:
    """Read and embed some rows; return seconds a row (None for vectors) and what went wrong."""
    tried = dataset.rows.take(rows)
    ids = tried.column("id").to_pylist()
    if encoder is None:
        assert dataset.vectors is not None
        facts: list[dict[str, Any]] = []
        for row in rows:
            vector, fact = read_rows(dataset.vectors, row, row + 1, config.storage)
            check_vectors(vector, fact, (0, vector.shape[1]))
            facts += fact
        return None, [f"{name}: {f['detail']}" for name, f in zip(ids, facts, strict=True) if "reason" in f]
    start = time.perf_counter()
    pixels, facts = decode_all(files_of(tried), encoder.image_size, config)
    encoder.encode(pixels)
    seconds = (time.perf_counter() - start) / len(rows)
    return seconds, [f"{name}: {f['detail']}" for name, f in zip(ids, facts, strict=True) if "reason" in f]


def check_writable(config: Config) -> None:
    """Raise StorageError unless something can be written to, and removed from, the output's place."""
    assert config.output is not None
    run = RunDirectory.open(config.output, config.storage)
    probe = run.path(".synthscale-probe")
    # The topmost of what the probe makes is removed with all below it.
    made = Path(probe)
    while not fsys.is_s3(probe) and not made.parent.exists():
        made = made.parent
    fsys.write_bytes(probe, b"", config.storage)
    fsys.remove(probe if fsys.is_s3(probe) else str(made), config.storage)


@dataclass(frozen=True)
class StageStatus:
    """How far a stage has come."""

    stage: str
    state: str
    detail: str


def status(uri: str, config: Config) -> list[StageStatus]:
    """Return the state of every stage of a run; raise StorageError when there is no run."""
    run = RunDirectory.existing(uri, config.storage)
    found = []
    for stage in STAGES:
        marker = run.marker(stage)
        if marker is None:
            found.append(StageStatus(stage, "waiting", ""))
        elif marker.complete:
            counts = ", ".join(f"{v:,} {k}" for k, v in marker.counts.items() if isinstance(v, int))
            found.append(StageStatus(stage, "done", f"{counts} in {marker.seconds:.1f} s"))
        else:
            found.append(StageStatus(stage, "begun", _partial(run, stage)))
    return found


def _partial(run: RunDirectory, stage: str) -> str:
    if stage == "neighbors" and fsys.is_folder(run.path("_neighbors"), run.storage):
        kept = len(fsys.list_files(run.path("_neighbors"), run.storage))
        return f"{kept:,} finished pieces of work are kept; the rest will be resumed"
    if stage != "embed":
        return "will start again"
    stops = run.completed("ingest").info["shard_stops"]
    written = run.written_shards("embeddings")
    done = sum(shard.stop - shard.start for shard in shards_of(stops) if shard.name in written)
    return f"{done:,} of {stops[-1]:,} rows embedded; the rest will be resumed"
