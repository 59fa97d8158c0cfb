"""Find the input's rows in image folders, metadata tables, zips or folders with one, or Parquet files of vectors.

Reads listings and tables, not pixels or vectors. The rows of the returned `Dataset` have the manifest's columns
except ``row`` and ``id_hash``.
"""

from dataclasses import replace

import pyarrow as pa

from synthscale.config import Config
from synthscale.errors import InputError, StorageError
from synthscale.ingest.dataset import Dataset
from synthscale.ingest.duplicates import settle_rows
from synthscale.ingest.folders import from_folders
from synthscale.ingest.intake import intakes_of_table, label_notes
from synthscale.ingest.metadata_tables import from_dataset_folder, from_table_files, from_zip
from synthscale.storage import filesystems as fsys
from synthscale.storage.fetch import input_folders
from synthscale.storage.retries import is_empty_or_missing, is_transient, retrying

__all__ = ["Dataset", "discover"]


def discover(config: Config, *, is_resumed: bool = False) -> Dataset:
    """Return the rows of the input that a configuration names: its folders, or its ``manifest``.

    Args:
        config: the configuration of the run.
        is_resumed: whether the run has found its input before. A server that does not answer, or an empty mount
            point, is then no wrong setting: it is waited for as any transient error.

    Raises:
        InputError: the input does not exist, has an unknown format or is invalid.
        StorageError: it cannot be read.
        StorageUnavailable: it cannot be read at the moment.
    """
    if not is_resumed:
        return _discover(config)
    uris = [config.real, *config.synthetic.values()] if config.manifest is None else [config.manifest]
    folders = input_folders(config)

    def is_outage(error: BaseException) -> bool:
        if isinstance(error, InputError):
            return any(is_empty_or_missing(folder) for folder in folders)
        return type(error) is StorageError and is_transient(error.__cause__)

    return retrying(
        lambda: _discover(config), ", ".join(map(str, uris)), "read", config.storage.retry_s, is_outage
    )


def _discover(config: Config) -> Dataset:
    if config.manifest is None:
        return from_folders(config)
    uri = fsys.absolute(config.manifest)
    storage = config.storage
    if not fsys.exists(uri, storage):
        raise InputError(f"{uri}: not found")
    try:
        if uri.lower().endswith(".zip"):
            dataset = from_zip(uri, config)
        elif fsys.is_folder(uri, storage):
            dataset = from_dataset_folder(uri, config)
        else:
            dataset = from_table_files([uri], config)
        dataset = settle_rows(dataset, storage)
    except (pa.ArrowException, UnicodeError, OverflowError) as error:
        # Parquet files may declare types that their values do not have, such as text that is not UTF-8.
        raise InputError(f"{uri}: not a readable table: {' '.join(str(error).split())[:300]}") from error
    sets = intakes_of_table(dataset.rows, uri)
    return replace(dataset, sets=sets, notes=[*dataset.notes, *label_notes(sets)])
