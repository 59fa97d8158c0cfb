"""Names of generators: which are allowed, how paths and ids contain them, and how the command line gives them.

A name may have slashes, blanks and any letters: ``org/model-1.0``, ``SDXL (turbo)``. Metrics, tables and reports
show it as it is. Folders (``scores/generator=NAME/``) and ids (``NAME/cat/1.png``) contain its `path_name`,
percent-encoded as Hive partitions are: pyarrow, pandas, DuckDB and polars read the name itself back.
"""

import os
import unicodedata
from typing import Final
from urllib.parse import quote

UNNAMED: Final = "synthetic"
"""Name of a synthetic set that the command line or a table does not name."""
_RESERVED: Final = ("real", ".", "..", "__HIVE_DEFAULT_PARTITION__")
"""Names with a meaning of their own: the real set, folders, and what readers of partitions take for null."""
_MAX_FOLDER_BYTES: Final = 255
"""Longest folder name in bytes of common file systems."""
_UNPRINTABLE: Final = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories of control characters, surrogates (bytes that are no UTF-8), and line and paragraph ends."""


def path_name(name: str) -> str:
    """Return a generator's name as folders and ids contain it: all but ``A-Za-z0-9_.-~`` percent-encoded.

    Different names have different path names, and `urllib.parse.unquote` returns the name.
    """
    return quote(name, safe="")


def partition(name: str) -> str:
    """Return the folder of a generator in ``scores/``: ``generator=`` and its path name."""
    return f"generator={path_name(name)}"


def check_generator_name(name: str) -> None:
    """Raise ValueError, with a message that says why, unless a generator can have this name."""
    if not name.strip():
        raise ValueError(f"generator name {name!r}: expected more than blanks")
    if any(unicodedata.category(character) in _UNPRINTABLE for character in name):
        raise ValueError(
            f"generator name {name!a}: contains control characters or bytes that are not UTF-8; rename it"
        )
    if name in _RESERVED:
        raise ValueError(f"generator name {name!r}: is reserved; rename it")
    if (size := len(partition(name))) > _MAX_FOLDER_BYTES:
        raise ValueError(
            f"generator name {name[:40]!r}...: its folder's name would have {size} bytes, more than "
            f"{_MAX_FOLDER_BYTES}; shorten it"
        )


def split_synthetic(text: str) -> tuple[str, str]:
    """Split ``[NAME=]URI``, as the command line has it, into name and URI.

    Paths may contain ``=`` and names may contain ``/``, so the text is a URI as a whole if it exists as a local
    path, has no ``=``, or begins with ``/``, ``./``, ``../``, ``~`` or a scheme such as ``s3://``. Otherwise the
    name is what is before the first ``=``; a name with ``/`` is one only if the rest exists as a local path or has
    a scheme. A set without a name is called `UNNAMED`.
    """
    name, separator, uri = text.partition("=")
    is_uri = not separator or not name or text.startswith(("/", "./", "../", "~")) or "://" in name
    if is_uri or os.path.exists(text):
        return UNNAMED, text
    if "/" in name and "://" not in uri and not os.path.exists(os.path.expanduser(uri)):
        return UNNAMED, text
    return name, uri
