"""Bytes of one image by its URI: a local file, an S3 object, or a member of a zip file on either.

A zip member is written as fsspec writes it, ``zip://MEMBER::PATH``. Failures come as ImageFault with a reason,
because a row's failure is data; nothing here stops a run.
"""

import os
import zipfile
import zlib
from functools import lru_cache

from botocore.exceptions import BotoCoreError, ClientError

from synthscale import filesystems as fsys
from synthscale.config import StorageConfig
from synthscale.images import ImageFault
from synthscale.schemas import Reason

MAX_BYTES = 512 * 1024 * 1024
"""Larger files are refused before they are read."""


def zip_uri(archive: str, member: str) -> str:
    """Return the URI of a member of a zip file."""
    return f"zip://{member}::{archive}"


@lru_cache(maxsize=4)
def _archive(uri: str, storage: StorageConfig, pid: int) -> zipfile.ZipFile:
    # Open handles must not be shared across a fork, so the process id is part of the key.
    return zipfile.ZipFile(fsys.filesystem(uri, storage).open(uri, "rb"))


def open_archive(uri: str, storage: StorageConfig) -> zipfile.ZipFile:
    """Return a zip file, opened once per process; foreign errors pass through."""
    return _archive(uri, storage, os.getpid())


def fetch(uri: str, storage: StorageConfig) -> bytes:
    """Return the bytes at ``uri``; raise ImageFault with the reason when they cannot be had."""
    try:
        if uri.startswith("zip://"):
            member, _, archive = uri.removeprefix("zip://").rpartition("::")
            info = open_archive(archive, storage).getinfo(member)
            _check_size(info.file_size)
            return open_archive(archive, storage).read(info)
        if not fsys.is_s3(uri):
            _check_size(os.path.getsize(uri))
            with open(uri, "rb") as file:
                return file.read()
        data: bytes = fsys.filesystem(uri, storage).cat_file(uri)
        return data
    except (FileNotFoundError, KeyError) as error:
        raise ImageFault(Reason.NOT_FOUND, f"{uri}: not found") from error
    except PermissionError as error:
        raise ImageFault(Reason.ACCESS_DENIED, f"{uri}: access denied") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ImageFault(Reason.CORRUPT, f"{uri}: {error}") from error
    except (OSError, BotoCoreError, ClientError, RuntimeError) as error:
        raise ImageFault(Reason.READ_ERROR, f"{uri}: {' '.join(str(error).split())}") from error


def _check_size(size_bytes: int) -> None:
    if size_bytes > MAX_BYTES:
        raise ImageFault(Reason.TOO_LARGE, f"{size_bytes} bytes, limit {MAX_BYTES}")
