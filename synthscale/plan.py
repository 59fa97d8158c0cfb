"""``validate`` checks and estimates a run before it starts; ``status`` returns the progress of a run.

Neither starts Ray. ``validate`` reads a few images of each set, and writes and removes an empty file at the
output. ``status`` reads the run's lease and markers and lists its files.
"""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import binom

from synthscale.config import Config
from synthscale.embed.encoder_reader import encoder_spec, load_encoder, spec_of
from synthscale.embed.encoders import Encoder
from synthscale.embed.image_reader import decode_all, files_of
from synthscale.errors import InputError, TooManyFailures
from synthscale.ingest.checks import check_metrics, check_places, check_rows
from synthscale.ingest.control import hold_out
from synthscale.ingest.discover import Dataset, discover
from synthscale.ingest.vector_reader import check_vectors, read_vectors
from synthscale.storage import filesystems as fsys
from synthscale.storage.lease import EXPIRES_AFTER_S, lease_state
from synthscale.storage.run_directory import STAGES, RunDirectory
from synthscale.tables.faults import RowFault
from synthscale.tables.layout import VectorLayout, shards_of
from synthscale.tables.schemas import REAL

SAMPLE = 8
"""Number of images of each set that ``validate`` reads and embeds."""
_CONTINUE = "run the same score command again to continue"


_RARE = 0.01
"""Probability below which the failures among the rows tried are taken for too many in the set.

At the default limit, 1 % of a set, one failure in eight rows is likely (8 %) and two are not (0.3 %). With half or
double the value this stays so.
"""


@dataclass(frozen=True)
class Tries:
    """Outcomes of the rows of a set that ``validate`` read.

    Attributes:
        rows: how many were read.
        faults: for each that could not be read, its id and what is wrong with it.
    """

    rows: int
    faults: list[str]


@dataclass(frozen=True)
class Plan:
    """Result of ``validate``.

    Attributes:
        sets: number of rows by set: ``real`` and the generators.
        encoder: fingerprint of the encoder.
        dimensions: dimensions of an embedding.
        tries: for each set, the outcomes of the rows that were read.
        seconds: estimated time to embed all rows on one core of this machine; None for precomputed vectors.
        disk_bytes: estimated size of the run directory.
        lines: what each set gave, and what was passed over or is worth a line.
        max_failure_fraction: the largest share of a set's rows that may fail.
    """

    sets: dict[str, int]
    encoder: str
    dimensions: int
    tries: dict[str, Tries]
    seconds: float | None
    disk_bytes: int
    lines: list[str]
    max_failure_fraction: float = 0.0

    @property
    def tried(self) -> int:
        """Number of rows that were read."""
        return sum(tries.rows for tries in self.tries.values())

    @property
    def faults(self) -> list[str]:
        """For each row that could not be read, its id and what is wrong with it."""
        return [fault for tries in self.tries.values() for fault in tries.faults]

    def check_failures(self) -> None:
        """Check that `score` would not end because too many rows of a set cannot be read.

        It is sure to if more rows failed here than the whole set may have. It is expected to if so many of the
        rows tried would fail in fewer than `_RARE` of all draws from a set with the largest share allowed.

        Raises:
            InputError: none of the rows tried of a set could be read.
            TooManyFailures: too many could not.
        """
        limit = self.max_failure_fraction
        for name, tries in self.tries.items():
            failed = len(tries.faults)
            if failed == tries.rows:
                raise InputError(
                    f"{name}: none of the {failed} rows tried could be read; the first: {tries.faults[0]}"
                )
            is_rare = failed > 0 and float(binom.sf(failed - 1, tries.rows, limit)) < _RARE
            if failed > limit * self.sets[name] or is_rare:
                raise TooManyFailures(
                    f"{name}: {failed} of {tries.rows} rows tried could not be read, more than "
                    f"max_failure_fraction {limit:g} allows; the first: {tries.faults[0]}"
                )


def validate(config: Config) -> Plan:
    """Check that a run can start, by reading a few rows and writing to the output, and estimate its time and size.

    Whether enough of these rows could be read is for `Plan.check_failures` to say.

    Args:
        config: the configuration of the run.

    Raises:
        ConfigError, InputError, StorageError: the run could not be carried out.
        ResumeConflict: the output contains another run, or this run with other settings or inputs.
    """
    config.check_runnable()
    check_places(config)
    assert config.output is not None
    run = RunDirectory.open(config.output, config.storage)
    dataset = discover(config)
    check_rows(dataset.rows)
    if config.control:
        dataset = replace(dataset, rows=hold_out(dataset.rows))
    check_metrics(config, dataset.rows)
    if run.is_started():
        # It imports Ray, which a new run is checked without.
        from synthscale.pipeline import check_resumable

        check_resumable(config, dataset)
    check_writable(config)
    names = pc.fill_null(dataset.rows.column("generator").cast(pa.string()), REAL)
    sets = {entry["values"]: entry["counts"] for entry in pc.value_counts(names).to_pylist()}
    encoder = None if dataset.vectors is not None else load_encoder(config)
    spec = spec_of(encoder) if encoder is not None else encoder_spec(config, dataset.vectors)
    chosen = [i for name in sets for i in _evenly_spaced(np.flatnonzero(pc.equal(names, name).to_numpy()))]
    seconds_per_row, faults = _try_rows(config, dataset, chosen, encoder)
    set_names = names.take(pa.array(chosen)).to_pylist()
    tries = {
        name: Tries(
            set_names.count(name),
            [fault for own, fault in zip(set_names, faults, strict=True) if own == name and fault is not None],
        )
        for name in sets
    }
    n = dataset.rows.num_rows
    return Plan(
        sets,
        spec.fingerprint,
        spec.layout.dimensions,
        tries,
        None if seconds_per_row is None else seconds_per_row * n,
        n * _bytes_per_row(spec.layout),
        dataset.lines(),
        config.max_failure_fraction,
    )


def _bytes_per_row(layout: VectorLayout) -> int:
    """Estimate the bytes of a row in the run directory: embedding, index entry and table rows."""
    width = layout.search[1] - layout.search[0]
    return 4 * layout.dimensions + 4 * (width + 64) + 400


def _evenly_spaced(rows: Any) -> list[int]:
    """Return up to `SAMPLE` of the given row numbers, evenly spaced."""
    picked: list[int] = rows[np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int)].tolist()
    return picked


def _try_rows(
    config: Config, dataset: Dataset, rows: list[int], encoder: Encoder | None
) -> tuple[float | None, list[str | None]]:
    """Read and embed rows; return seconds per row (None for vectors), and a line or None for each row's fault."""
    tried = dataset.rows.take(rows)
    ids = tried.column("id").to_pylist()
    if encoder is None:
        assert dataset.vectors is not None
        directed = encoder_spec(config, dataset.vectors).layout.directed(config.neighbors.metric_in_force)
        metadata: list[dict[str, Any]] = []
        for row in rows:
            vector, row_metadata = read_vectors(dataset.vectors, row, row + 1, config.storage)
            check_vectors(vector, row_metadata, directed)
            metadata += row_metadata
        known = tried.column("fault").to_pylist() if "fault" in tried.column_names else []
        for found, fault in zip(metadata, known, strict=False):
            if fault is not None:
                found |= RowFault.parse(fault).record()
        return None, _fault_lines(ids, metadata)
    start = time.perf_counter()
    pixels, metadata = decode_all(files_of(tried), encoder.image_size, config)
    encoder.encode(pixels)
    seconds = (time.perf_counter() - start) / len(rows)
    return seconds, _fault_lines(ids, metadata)


def _fault_lines(ids: list[str], metadata: list[dict[str, Any]]) -> list[str | None]:
    return [f"{name}: {m['detail']}" if "reason" in m else None for name, m in zip(ids, metadata, strict=True)]


def check_writable(config: Config) -> None:
    """Write an empty file to the output directory and remove it; raise StorageError if that fails."""
    assert config.output is not None
    run = RunDirectory.open(config.output, config.storage)
    probe = run.path(".synthscale-probe")
    # Writing also creates missing parent folders, so the topmost created one is removed with its content.
    created = Path(probe)
    while not fsys.is_s3(probe) and not os.path.exists(created.parent):
        created = created.parent
    fsys.write_bytes(probe, b"", config.storage)
    fsys.remove(probe if fsys.is_s3(probe) else str(created), config.storage)


@dataclass(frozen=True)
class StageStatus:
    """Progress of a stage.

    Attributes:
        stage: name of the stage.
        state: ``waiting``, ``begun`` or ``done``.
        detail: counts and duration, or how much is finished.
    """

    stage: str
    state: str
    detail: str


def status(uri: str, config: Config) -> list[StageStatus]:
    """Return the progress of every stage of a run.

    Args:
        uri: the run directory.
        config: configuration, of which the S3 settings are used.

    Raises:
        StorageError: there is no run at ``uri``.
        ResumeConflict: the run has another schema version.
    """
    run = RunDirectory.existing(uri, config.storage)
    lines = []
    for stage in STAGES:
        marker = run.marker(stage)
        if marker is None:
            lines.append(StageStatus(stage, "waiting", ""))
        elif marker.complete:
            counts = ", ".join(f"{v:,} {k}" for k, v in marker.counts.items() if isinstance(v, int))
            lines.append(StageStatus(stage, "done", f"{counts} in {marker.seconds:.1f} s"))
        else:
            lines.append(StageStatus(stage, "begun", _partial_progress(run, stage)))
    return lines


def driver_line(uri: str, config: Config) -> str:
    """Return one line that says whether a driver is writing a run: where, since when and its last heartbeat.

    Args:
        uri: the run directory.
        config: configuration, of which the S3 settings are used.

    Raises:
        StorageError: there is no run at ``uri``.
        ResumeConflict: the run has another schema version.
    """
    run = RunDirectory.existing(uri, config.storage)
    lease = lease_state(run)
    if lease is None:
        last = run.marker(STAGES[-1])
        is_finished = last is not None and last.complete
        return "not running, finished" if is_finished else f"not running, not finished; {_CONTINUE}"
    if lease.holder is None:
        return f"not known: lease.json is damaged; the next run replaces it once it is {EXPIRES_AFTER_S:.0f} s old"
    if lease.is_abandoned:
        return f"was interrupted on {lease.holder}, last heartbeat {lease.holder.heartbeat}; {_CONTINUE}"
    return f"running on {lease.holder} since {lease.holder.started} (heartbeat {lease.age_s:.0f} s ago)"


def _partial_progress(run: RunDirectory, stage: str) -> str:
    """Return how much of an interrupted stage is finished, in words."""
    if stage == "neighbors" and fsys.is_folder(run.path("_neighbors"), run.storage):
        kept = len(fsys.list_files(run.path("_neighbors"), run.storage))
        return f"{kept:,} finished parts are kept; the next run does the rest"
    if stage != "embed":
        return "not finished; the next run starts this stage again"
    stops = run.completed("ingest").info["shard_stops"]
    written = run.written_shards("embeddings")
    done = sum(shard.rows for shard in shards_of(stops) if shard.name in written)
    return f"{done:,} of {stops[-1]:,} rows embedded; the next run does the rest"
