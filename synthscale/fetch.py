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
def _archive(uri: str, storage: StorageConfig, pid: int, state: str) -> zipfile.ZipFile:
    # Open handles must not be shared across a fork, so the process id is part of the key; a file that was replaced
    # has another state, and is opened again.
    return zipfile.ZipFile(fsys.filesystem(uri, storage).open(uri, "rb"))


def _open_archive(uri: str, storage: StorageConfig) -> zipfile.ZipFile:
    return _archive(uri, storage, os.getpid(), str(fsys.filesystem(uri, storage).ukey(uri)))


def fetch(uri: str, storage: StorageConfig) -> bytes:
    """Return the bytes at ``uri``; raise ImageFault with the reason when they cannot be had."""
    try:
        if uri.startswith("zip://"):
            member, _, archive = uri.removeprefix("zip://").rpartition("::")
            opened = _open_archive(archive, storage)
            info = opened.getinfo(member)
            _check_size(info.file_size)
            return opened.read(info)
        if not fsys.is_s3(uri):
            _check_size(os.path.getsize(uri))
            with open(uri, "rb") as file:
                return file.read()
        return _fetch_object(uri, storage)
    except (FileNotFoundError, KeyError) as error:
        raise ImageFault(Reason.NOT_FOUND, f"{uri}: not found") from error
    except PermissionError as error:
        raise ImageFault(Reason.ACCESS_DENIED, f"{uri}: access denied") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ImageFault(Reason.CORRUPT, f"{uri}: {error}") from error
    except (OSError, BotoCoreError, ClientError, RuntimeError, ValueError) as error:
        raise ImageFault(Reason.READ_ERROR, f"{uri}: {' '.join(str(error).split())}") from error


def _fetch_object(uri: str, storage: StorageConfig) -> bytes:
    """Read an object with one request, and no more of it than is allowed."""
    try:
        data: bytes = fsys.filesystem(uri, storage).cat_file(uri, start=0, end=MAX_BYTES + 1)
    except OSError as error:
        # S3 has no byte range of an object without bytes.
        cause = error.__cause__
        if isinstance(cause, ClientError) and cause.response["Error"]["Code"] in {"InvalidRange", "416"}:
            return b""
        raise
    _check_size(len(data))
    return data


def _check_size(size_bytes: int) -> None:
    if size_bytes > MAX_BYTES:
        raise ImageFault(Reason.TOO_LARGE, f"{size_bytes} bytes, limit {MAX_BYTES}")
