"""Finds the rows of a data set: image folders, metadata tables, Studio-style zips and folders, vector tables.

Reads listings and tables, never pixels or vectors. Gives an Arrow table with the manifest's columns but ``row``.
"""

from synthscale.config import Config
from synthscale.errors import InputError
from synthscale.ingest.dataset import Dataset
from synthscale.ingest.folders import from_folders
from synthscale.ingest.metadata_tables import from_dataset_folder, from_table_file, from_zip
from synthscale.storage import filesystems as fsys

__all__ = ["Dataset", "discover"]


def discover(config: Config) -> Dataset:
    """Resolve a configuration's input to rows; raise InputError or StorageError when that cannot be done."""
    if config.manifest is None:
        return from_folders(config)
    uri = fsys.absolute(config.manifest)
    storage = config.storage
    if not fsys.exists(uri, storage):
        raise InputError(f"{uri}: not found")
    if uri.lower().endswith(".zip"):
        return from_zip(uri, storage)
    if fsys.is_folder(uri, storage):
        return from_dataset_folder(uri, storage)
    return from_table_file(uri, storage)
