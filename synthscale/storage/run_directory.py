"""The run directory: where each table lies, whole-or-nothing writes, fingerprints and completion markers.

A stage's marker, ``_stages/STAGE.json``, is written when the stage begins (``complete: false``) and again, last,
when its counts are verified. Its fingerprint holds the stage's settings, the versions that affect results and
the digest of the stage before it, so a change anywhere upstream shows in everything downstream.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import pyarrow as pa

from synthscale.config import StorageConfig
from synthscale.errors import ConfigError, ResumeConflict, StorageError
from synthscale.storage import filesystems as fsys
from synthscale.tables.layout import Shard, VectorLayout, shards_of
from synthscale.tables.schemas import conform

STAGES: Final = ("ingest", "embed", "neighbors", "classify", "reduce", "report")

TABLES: Final[Mapping[str, tuple[str, ...]]] = {
    "ingest": ("manifest",),
    "embed": ("embeddings", "failures", "_cached"),
    "neighbors": ("neighbors", "nearest", "groups", "index", "_neighbors"),
    "classify": ("classifier", "predictions", "_train"),
    "reduce": ("scores", "metrics.json", "metrics.parquet"),
    "report": ("report.html",),
}
"""What each stage writes into the run directory."""


def digest(value: Any) -> str:
    """Return a short stable hash of anything that JSON can hold."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


@dataclass(frozen=True)
class Marker:
    """What a stage left behind: whether it is complete, from what it was made, and what it counted."""

    stage: str
    complete: bool
    fingerprint: dict[str, Any]
    counts: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def digest(self) -> str:
        """The fingerprint in short, as the next stage records it."""
        return digest(self.fingerprint)


@dataclass(frozen=True)
class RunDirectory:
    """A run's folder, local or on S3. Small and picklable: workers get it as it is."""

    uri: str
    storage: StorageConfig

    @classmethod
    def open(cls, uri: str, storage: StorageConfig) -> "RunDirectory":
        """Return the run at ``uri``, which may not exist yet; refuse a folder that holds something else."""
        run = cls(fsys.absolute(uri), storage)
        if fsys.is_folder(run.uri, storage):
            if not run.begun() and not _is_empty(run.uri, storage):
                raise ResumeConflict(
                    f"{run.uri}: holds files but no synthscale run; give --output an empty or a new folder"
                )
        elif not fsys.is_s3(run.uri) and fsys.exists(run.uri, storage):
            raise ConfigError(f"{run.uri}: is a file; --output must be a folder")
        return run

    @classmethod
    def existing(cls, uri: str, storage: StorageConfig) -> "RunDirectory":
        """Return the run at ``uri``; raise StorageError when there is none."""
        run = cls(fsys.absolute(uri), storage)
        if not run.begun():
            raise StorageError(f"{run.uri}: no synthscale run here (run.json is missing)")
        return run

    def path(self, *parts: str) -> str:
        """Return the location of something in the run directory."""
        return fsys.join(self.uri, *parts)

    def shards(self) -> list[Shard]:
        """Return the row ranges that every table is cut into, as ingest decided."""
        return shards_of(self.completed("ingest").info["shard_stops"])

    def layout(self) -> VectorLayout:
        """Return what the dimensions of the vectors are for, as embed recorded it."""
        info = self.completed("embed").info
        return VectorLayout(info["dimensions"], tuple(info["search"]), tuple(info["classify"]))

    def begun(self) -> bool:
        """Tell whether a run was started here."""
        return fsys.exists(self.path("run.json"), self.storage)

    # Tables, one file per shard.

    def write_shard(self, table: str, shard: Shard, rows: pa.Table, schema: pa.Schema) -> None:
        """Write one shard of a table, cast to its contract."""
        fsys.write_table(self.path(table, shard.name), conform(rows, schema, table), self.storage)

    def read_shard(self, table: str, shard: Shard, columns: list[str] | None = None) -> pa.Table:
        """Read one shard of a table."""
        return fsys.read_table(self.path(table, shard.name), self.storage, columns)

    def written_shards(self, table: str) -> set[str]:
        """Return the file names of a table's shards that are there."""
        return fsys.file_names(self.path(table), self.storage)

    # Documents.

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON document; NaN and infinity are refused."""
        text = json.dumps(value, indent=1, sort_keys=False, allow_nan=False)
        fsys.write_bytes(self.path(name), text.encode(), self.storage)

    def read_json(self, name: str) -> Any:
        """Read a JSON document; raise StorageError when it is missing or damaged."""
        try:
            return json.loads(fsys.read_bytes(self.path(name), self.storage))
        except ValueError as error:
            raise StorageError(f"{self.path(name)}: damaged: {error}") from error

    # Markers.

    def marker(self, stage: str) -> Marker | None:
        """Return a stage's marker, or None when the stage never began."""
        name = f"_stages/{stage}.json"
        if not fsys.exists(self.path(name), self.storage):
            return None
        try:
            return Marker(**self.read_json(name))
        except TypeError as error:
            raise StorageError(f"{self.path(name)}: damaged, or of another version of synthscale") from error

    def completed(self, stage: str) -> Marker:
        """Return the marker of a stage that must be complete."""
        marker = self.marker(stage)
        if marker is None or not marker.complete:
            raise StorageError(f"{self.uri}: stage {stage} is not complete; run score again to finish it")
        return marker

    def resume(self, stage: str, fingerprint: dict[str, Any]) -> Marker | None:
        """Return the marker of a stage begun with this fingerprint, or None; raise ResumeConflict on another."""
        marker = self.marker(stage)
        if marker is None:
            return None
        # Through JSON, so that tuples and lists compare as they were stored.
        differing = _differences(marker.fingerprint, json.loads(json.dumps(fingerprint)))
        if differing:
            raise ResumeConflict(
                f"{self.uri}: stage {stage} was begun with other {', '.join(differing)}; "
                f"give another --output, or repeat from here with --redo-from {stage}"
            )
        return marker

    def write_marker(self, marker: Marker) -> None:
        """Record a stage's beginning or end."""
        self.write_json(f"_stages/{marker.stage}.json", asdict(marker))

    def forget_from(self, stage: str) -> None:
        """Remove what ``stage`` and all stages after it wrote, markers first."""
        later = STAGES[STAGES.index(stage) :]
        for name in later:
            fsys.remove(self.path("_stages", f"{name}.json"), self.storage)
        for name in later:
            for table in TABLES[name]:
                fsys.remove(self.path(table), self.storage)


def _is_empty(uri: str, storage: StorageConfig) -> bool:
    with fsys.storage_errors(uri, "list"):
        return not fsys.filesystem(uri, storage).ls(uri, detail=False)


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Name the places where two nested mappings differ, for instance ``settings.encoder.name``."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = []
        for key in sorted(set(old) | set(new)):
            names += _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return names
    if old == new:
        return []
    short = len(str(old)) + len(str(new)) < 120
    return [f"{path} ({old} there, {new} now)" if short else path]
