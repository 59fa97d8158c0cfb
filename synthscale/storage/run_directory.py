"""The run directory: locations of tables, atomic writes, and the marker and fingerprint of each stage.

A stage's marker, ``_stages/STAGE.json``, is written when the stage starts (``complete: false``), and again as the
last step, after its counts are verified. Its fingerprint contains the stage's settings, the version of its
algorithm, and the digest of the previous stage's marker, so a change in one stage changes the fingerprints of all
later stages.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import pyarrow as pa

from synthscale.config import StorageConfig
from synthscale.errors import ConfigError, ResumeConflict, StorageError
from synthscale.storage import filesystems as fsys
from synthscale.storage.objects import check_reachable
from synthscale.storage.owned_files import is_working_folder, remove_owned
from synthscale.tables.layout import Shard, VectorLayout, shards_of
from synthscale.tables.schemas import SCHEMA_VERSION, conform

STAGES: Final = ("ingest", "embed", "neighbors", "classify", "reduce", "report")

TABLES: Final[Mapping[str, tuple[str, ...]]] = {
    "ingest": ("manifest", "vectors"),
    "embed": ("embeddings", "failures", "_cached"),
    "neighbors": ("neighbors", "nearest", "groups", "index", "_neighbors"),
    "classify": ("classifier", "predictions", "_train"),
    "reduce": ("scores", "metrics.json", "metrics.parquet"),
    "report": ("report.html",),
}
"""Tables (folders) and files that each stage writes; folders with ``_`` are for its working files."""

LEASE: Final = "lease.json"
"""Which driver writes to the run; `storage.lease` reads and writes it."""
_START_FILES: Final = re.compile(rf"{re.escape(LEASE)}|\.({re.escape(LEASE)}|run\.json)\.[0-9a-f]{{8}}\.tmp")
"""Files that a driver may leave when it is killed before it writes ``run.json``."""


def digest(value: Any) -> str:
    """Return a 96-bit hash (24 hex digits) of a JSON value; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


@dataclass(frozen=True)
class Marker:
    """Record of a stage, stored as ``_stages/STAGE.json``.

    Attributes:
        stage: one of `STAGES`.
        complete: True once the stage has finished and its counts are verified.
        fingerprint: settings, versions and inputs that the results depend on.
        counts: verified numbers of rows, failures and the like.
        info: facts that later stages or people need.
        seconds: run time of the stage.
    """

    stage: str
    complete: bool
    fingerprint: dict[str, Any]
    counts: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def digest(self) -> str:
        """Hash of the fingerprint, which the next stage includes in its own fingerprint."""
        return digest(self.fingerprint)


@dataclass(frozen=True)
class RunDirectory:
    """A run's folder, local or on S3; small and picklable, so that tasks receive it as an argument.

    Attributes:
        uri: absolute path or ``s3://`` URI of the folder.
        storage: S3 settings.
    """

    uri: str
    storage: StorageConfig

    @classmethod
    def open(cls, uri: str, storage: StorageConfig) -> "RunDirectory":
        """Return the run directory at ``uri``, which need not exist yet; nothing is written.

        Raises:
            ResumeConflict: the folder contains files but no run, or a run of another schema version, or its
                ``run.json`` is another program's.
            ConfigError: ``uri`` is a file.
            StorageError: ``uri`` is on a server that does not answer.
        """
        run = cls(fsys.absolute(uri), storage)
        check_reachable(run.uri, storage)
        if fsys.is_folder(run.uri, storage):
            if run.is_started():
                run.check_ownership()
            elif not _is_empty(run.uri, storage):
                raise ResumeConflict(
                    f"{run.uri}: contains files but no synthscale run; set --output to an empty or new folder"
                )
        elif not fsys.is_s3(run.uri) and fsys.exists(run.uri, storage):
            raise ConfigError(f"{run.uri}: is a file; --output must be a folder")
        return run

    @classmethod
    def existing(cls, uri: str, storage: StorageConfig) -> "RunDirectory":
        """Return the run directory at ``uri``.

        Raises:
            StorageError: there is no run, or its server does not answer.
            ResumeConflict: the run has another schema version, or ``run.json`` is another program's.
        """
        run = cls(fsys.absolute(uri), storage)
        check_reachable(run.uri, storage)
        if not run.is_started():
            raise StorageError(f"{run.uri}: no synthscale run here (run.json is missing)")
        run.check_ownership()
        return run

    def check_ownership(self) -> None:
        """Raise ResumeConflict unless ``run.json`` has a run id and the schema version of this synthscale."""
        document = self.read_json("run.json")
        run_id = document.get("run_id") if isinstance(document, dict) else None
        if not (isinstance(run_id, str) and run_id):
            raise ResumeConflict(
                f"{self.uri}: its run.json was not written by synthscale (it has no run id); "
                "set --output to an empty or new folder"
            )
        # The first version wrote no schema version.
        found = document.get("schema_version", 1)
        if found != SCHEMA_VERSION:
            age = "an older" if found == 1 else "another"
            raise ResumeConflict(
                f"{self.uri}: written by {age} version of synthscale (schema {found}, here {SCHEMA_VERSION}); "
                "set --output to a new folder and score again, or read this run with the version that wrote it"
            )

    def path(self, *parts: str) -> str:
        """Return the location of a file or folder in the run directory."""
        return fsys.join(self.uri, *parts)

    def shards(self) -> list[Shard]:
        """Return the shards of every table, as ingest recorded them."""
        return shards_of(self.completed("ingest").info["shard_stops"])

    def layout(self) -> VectorLayout:
        """Return which dimensions the search and the classifier use, as embed recorded it."""
        info: dict[str, Any] = self.completed("embed").info
        ranges = {name: tuple(info[name]) for name in ("search", "classify")}
        return VectorLayout(**{**info, **ranges})

    def is_started(self) -> bool:
        """Return True if a run was started here, that is if ``run.json`` exists."""
        return fsys.exists(self.path("run.json"), self.storage)

    # Tables, one file per shard.

    def write_shard(self, table: str, shard: Shard, rows: pa.Table, schema: pa.Schema) -> None:
        """Write one shard of a table, cast to ``schema``; raise SchemaError if it does not conform."""
        fsys.write_table(self.path(table, shard.name), conform(rows, schema, table), self.storage)

    def read_shard(self, table: str, shard: Shard, columns: list[str] | None = None) -> pa.Table:
        """Read one shard of a table, or some of its columns."""
        root = None if fsys.is_s3(self.uri) else self.uri
        return fsys.read_table(self.path(table, shard.name), self.storage, columns, root)

    def written_shards(self, table: str) -> set[str]:
        """Return the file names in a table's folder, whose shards are `Shard.name`; empty before the first one."""
        return fsys.file_names(self.path(table), self.storage)

    # JSON documents.

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON document; raise ValueError for NaN and infinity, which JSON does not have."""
        text = json.dumps(value, indent=1, sort_keys=False, allow_nan=False)
        fsys.write_bytes(self.path(name), text.encode(), self.storage)

    def read_json(self, name: str) -> Any:
        """Read a JSON document; raise StorageError if it is missing or damaged."""
        try:
            return json.loads(fsys.read_bytes(self.path(name), self.storage))
        except (ValueError, RecursionError) as error:
            raise StorageError(f"{self.path(name)}: damaged: {error}") from error

    # Markers.

    def marker(self, stage: str) -> Marker | None:
        """Return a stage's marker; None if the stage was never started. Raise StorageError if it is damaged."""
        path = self.path("_stages", f"{stage}.json")
        if not fsys.exists(path, self.storage):
            return None
        data = fsys.read_bytes(path, self.storage)
        try:
            marker = Marker(**json.loads(data))
        except (ValueError, TypeError, RecursionError) as error:
            raise _damaged_marker(path, stage) from error
        if not all(isinstance(value, dict) for value in (marker.fingerprint, marker.counts, marker.info)):
            raise _damaged_marker(path, stage)
        return marker

    def completed(self, stage: str) -> Marker:
        """Return the marker of a completed stage; raise StorageError if the stage is not complete."""
        marker = self.marker(stage)
        if marker is None or not marker.complete:
            raise StorageError(f"{self.uri}: stage {stage} is not complete; run score again to finish it")
        return marker

    def matching_marker(self, stage: str, fingerprint: dict[str, Any]) -> Marker | None:
        """Return the marker of a stage that was started with this fingerprint; None if it was never started.

        Raises:
            ResumeConflict: the stage was started with another fingerprint; the message names the differences.
        """
        marker = self.marker(stage)
        if marker is None:
            return None
        # The JSON round trip turns tuples into lists, as in the stored fingerprint.
        differing = _differences(marker.fingerprint, json.loads(json.dumps(fingerprint)))
        if differing:
            raise ResumeConflict(
                f"{self.uri}: stage {stage} was started with different {', '.join(differing)}; "
                f"choose another --output, or recompute from this stage with --redo-from {stage}"
            )
        return marker

    def write_marker(self, marker: Marker) -> None:
        """Write a stage's marker, when the stage starts and when it is complete."""
        self.write_json(f"_stages/{marker.stage}.json", asdict(marker))

    def remove_from(self, stage: str) -> None:
        """Delete the output of ``stage`` and all later stages, but no file with a name that is not synthscale's.

        Markers are deleted first: if the process is killed in between, no marker says that deleted tables are
        complete, and the next run deletes what is left of them (`remove_output`).

        Raises:
            ResumeConflict: the folder is not a run of this version.
        """
        if not self.is_started():
            return
        self.check_ownership()
        later = STAGES[STAGES.index(stage) :]
        for name in later:
            fsys.remove(self.path("_stages", f"{name}.json"), self.storage)
        for name in later:
            self.remove_output(name)

    def remove_output(self, stage: str) -> None:
        """Delete the tables and files of one stage, without its marker."""
        for name in TABLES[stage]:
            remove_owned(self.uri, name, self.storage)

    def remove_working_files(self, stage: str) -> None:
        """Delete the working folders of one stage."""
        for name in TABLES[stage]:
            if is_working_folder(name):
                remove_owned(self.uri, name, self.storage)


def _damaged_marker(path: str, stage: str) -> StorageError:
    return StorageError(
        f"{path}: damaged, or written by another version of synthscale; "
        f"recompute from this stage with --redo-from {stage}"
    )


def _is_empty(uri: str, storage: StorageConfig) -> bool:
    """Return True if a folder has no files but those of a driver that has only just started there."""
    paths = fsys.attempt(uri, "list", storage, lambda: fsys.filesystem(uri, storage).ls(uri, detail=False))
    return all(_START_FILES.fullmatch(path.rstrip("/").rpartition("/")[2]) for path in paths)


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return the paths at which two nested mappings differ, for instance ``settings.encoder.name``."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = []
        for key in sorted(set(old) | set(new)):
            names += _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return names
    if old == new:
        return []
    is_short = len(str(old)) + len(str(new)) < 120
    return [f"{path} (was {old}, now {new})" if is_short else path]
