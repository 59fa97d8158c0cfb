"""Delete tables of a run directory, but only files with names that synthscale gives.

A file of the user's in a table's folder stays, and so does its folder. Working folders, whose names begin with
``_``, hold intermediate files of engines under any name and are deleted as a whole.
"""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from synthscale.config import StorageConfig
from synthscale.storage import filesystems as fsys

_SHARD = r"part-\d{6,}\.parquet"
_OTHER_NAMES: Final[Mapping[str, str]] = {
    "classifier": rf"{_SHARD}|(embedding|file_facts)\.(npz|json|state)",
    "index": r"part-\d{5,}-of-\d{5,}\.[^/]+\.faiss|space\.json",
    "scores": rf"generator=[^/]+/{_SHARD}",
}
"""Regular expressions of the paths in folders that hold other files than shards of one table."""
_TEMPORARY = re.compile(r"(.*/)?\.([^/]+)\.[0-9a-f]{8}\.tmp")
"""Path of an unfinished file, which a killed process leaves: folder, and name of the finished file."""


def is_working_folder(name: str) -> bool:
    """Return True if a table's name is that of a folder for a stage's working files."""
    return name.startswith("_")


def is_owned(table: str, path: str) -> bool:
    """Return True if synthscale gives files of a table this name.

    Args:
        table: name of the table.
        path: of the file, relative to the table's folder.
    """
    if unfinished := _TEMPORARY.fullmatch(path):
        path = f"{unfinished[1] or ''}{unfinished[2]}"
    return re.fullmatch(_OTHER_NAMES.get(table, _SHARD), path) is not None


def remove_owned(run: str, name: str, storage: StorageConfig) -> None:
    """Delete a table, or a file such as ``report.html``, from a run directory.

    Args:
        run: path or URI of the run directory.
        name: of the table or file.
        storage: S3 settings.
    """
    uri = fsys.join(run, name)
    if is_working_folder(name):
        fsys.remove(uri, storage)
    elif "." in name:
        # A folder of this name is not ours.
        if not fsys.is_folder(uri, storage):
            fsys.remove(uri, storage)
    elif fsys.is_s3(uri):
        _remove_objects(uri, name, storage)
    else:
        _remove_local_files(uri, name)


def _remove_objects(uri: str, table: str, storage: StorageConfig) -> None:
    top = f"{uri.removeprefix('s3://')}/"
    paths = [info.path for info in fsys.list_files(uri, storage)]
    owned = [path for path in paths if is_owned(table, path.removeprefix(top))]
    if len(owned) == len(paths):
        fsys.remove(uri, storage)
    elif owned:
        with fsys.storage_errors(uri, "remove"):
            fsys.filesystem(uri, storage).rm(owned)


def _remove_local_files(path: str, table: str) -> None:
    with fsys.storage_errors(path, "remove"):
        for folder, _, names in os.walk(path, topdown=False):
            for name in names:
                file = os.path.join(folder, name)
                if is_owned(table, os.path.relpath(file, path)):
                    os.unlink(file)
            # It stays if it is not empty, or a link.
            with suppress(OSError):
                os.rmdir(folder)
