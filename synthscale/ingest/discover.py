"""Find the input's rows in image folders, metadata tables, zips or folders with one, or Parquet files of vectors.

Reads listings and tables, not pixels or vectors. The rows of the returned `Dataset` have the manifest's columns
except ``row`` and ``id_hash``.
"""

from synthscale.config import Config
from synthscale.errors import InputError
from synthscale.ingest.dataset import Dataset
from synthscale.ingest.folders import from_folders
from synthscale.ingest.metadata_tables import from_dataset_folder, from_table_file, from_zip
from synthscale.storage import filesystems as fsys

__all__ = ["Dataset", "discover"]


def discover(config: Config) -> Dataset:
    """Return the rows of the input that a configuration names: its folders, or its ``manifest``.

    Raises:
        InputError: the input does not exist, has an unknown format or is invalid.
        StorageError: it cannot be read.
    """
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
