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
from synthscale import objects
from synthscale.config import StorageConfig
from synthscale.images import ImageFault
from synthscale.schemas import Reason, Stored

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


def fetch(stored: Stored, storage: StorageConfig) -> bytes:
    """Return the bytes of a file; raise ImageFault with the reason when they cannot be had, or are other ones."""
    uri = stored.uri
    try:
        if uri.startswith("zip://"):
            member, _, archive = uri.removeprefix("zip://").rpartition("::")
            opened = _open_archive(archive, storage)
            info = opened.getinfo(member)
            _check_size(info.file_size)
            return opened.read(info)
        if not fsys.is_s3(uri):
            return _read_file(stored)
        return objects.get(stored, storage, MAX_BYTES)
    except (FileNotFoundError, KeyError) as error:
        raise ImageFault(Reason.NOT_FOUND, f"{uri}: not found") from error
    except PermissionError as error:
        raise ImageFault(Reason.ACCESS_DENIED, f"{uri}: access denied") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ImageFault(Reason.CORRUPT, f"{uri}: {error}") from error
    except (OSError, BotoCoreError, ClientError, RuntimeError, ValueError) as error:
        raise ImageFault(Reason.READ_ERROR, f"{uri}: {' '.join(str(error).split())}") from error


def _read_file(stored: Stored) -> bytes:
    size = os.path.getsize(stored.uri)
    _check_size(size)
    if stored.size_bytes is not None and size != stored.size_bytes:
        detail = f"{stored.uri}: has changed since it was listed ({size} bytes, were {stored.size_bytes})"
        raise ImageFault(Reason.CHANGED, detail)
    with open(stored.uri, "rb") as file:
        return file.read()


def _check_size(size_bytes: int) -> None:
    if size_bytes > MAX_BYTES:
        raise ImageFault(Reason.TOO_LARGE, f"{size_bytes} bytes, limit {MAX_BYTES}")
