"""Which files of a set are images, archives, or passed over: by their paths, or by their first bytes.

Pure: works on relative paths and bytes; reads nothing.
"""

from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache

from synthscale.tables.image_formats import RARE_SUFFIXES, SUFFIXES, format_of_bytes, readable_formats

ARCHIVE_SUFFIXES = frozenset({".tar", ".zip", ".parquet"})
"""Lower-case extensions of files that contain images."""

_TABLE_NAMES = frozenset({"metadata.csv", "metadata.jsonl"})
_COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
_COMPRESSIONS = frozenset({".gz", ".tgz", ".bz2", ".tbz", ".tbz2", ".xz", ".txz", ".zst", ".lz4"})
_ARRAYS = frozenset({".npy", ".npz", ".pt", ".pth", ".pkl", ".pickle", ".mat", ".h5", ".hdf5", ".safetensors"})
_OTHER = frozenset(
    [
        ".txt",
        ".text",
        ".json",
        ".jsonl",
        ".ndjson",
        ".csv",
        ".tsv",
        ".xml",
        ".yaml",
        ".yml",
        ".toml",
        ".ini",
        ".cfg",
        ".conf",
        ".md",
        ".rst",
        ".html",
        ".htm",
        ".css",
        ".js",
        ".py",
        ".pyc",
        ".ipynb",
        ".sh",
        ".bat",
        ".log",
        ".lock",
        ".db",
        ".sqlite",
        ".sqlite3",
        ".mdb",
        ".lmdb",
        ".xls",
        ".xlsx",
        ".ods",
        ".doc",
        ".docx",
        ".pdf",
        ".svg",
        ".eps",
        ".ai",
        ".psd",
        ".mp4",
        ".mov",
        ".avi",
        ".mkv",
        ".webm",
        ".m4v",
        ".wav",
        ".mp3",
        ".flac",
        ".ogg",
        ".gz",
        ".bz2",
        ".xz",
        ".zst",
        ".7z",
        ".rar",
        ".arrow",
        ".feather",
        ".avro",
        ".orc",
        ".tfrecord",
        ".tfrecords",
        ".index",
        ".idx",
        ".bin",
        ".dat",
        ".ckpt",
        ".onnx",
        ".exe",
        ".dll",
        ".so",
        ".url",
        ".lnk",
        ".part",
        ".crdownload",
        ".tmp",
        ".bak",
        ".sum",
        ".md5",
        ".sha256",
    ]
)
"""Lower-case extensions of files that are not looked into."""
_SYSTEM_NAMES = frozenset(
    {
        *("__macosx", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "lost+found"),
        *("$recycle.bin", "recycler", "recycled", "system volume information", "#recycle", "@recycle", "@eadir"),
        *("#snapshot", "~snapshot", "network trash folder", "temporary items", "__pycache__"),
    }
)
"""Lower-case names of the files and folders that desktop systems and network storage make for themselves."""


class Kind(StrEnum):
    """What a file is taken as; the values of those that are passed over are the words of their note."""

    IMAGE = "images"
    RARE = "images with rare extensions, which are worth a line"
    ARCHIVE = "archives within archives"
    TABLE = "tables within archives"
    UNKNOWN = "files whose names do not say what they are"
    SYSTEM = "hidden and system files"
    OTHER = "files that are no images"
    NOT_UTF8 = "files whose names are no UTF-8, and cannot be written into tables: rename them"
    COMPRESSED_TAR = "compressed tars, which cannot be read in pieces: unpack them, or make plain tars of them"
    ARRAYS = "files of arrays: save images as PNG, or give vectors as a Parquet file with a column embedding"
    UNREADABLE = "images that this Pillow does not read: pip install pillow-heif for .heic"


TAKEN = frozenset({Kind.IMAGE, Kind.RARE})
"""Kinds of images."""


def kinds_of(paths: Sequence[str]) -> list[Kind]:
    """Return the kind of each file by its path relative to the top of its set; ``UNKNOWN`` if only its bytes say.

    Paths are best sorted: what a folder's name says is looked up once for files that follow one another.
    """
    kinds, folder, is_hidden = list[Kind](), "", False
    for path in paths:
        parent, _, name = path.rpartition("/")
        if parent != folder:
            folder, is_hidden = parent, is_system(parent)
        kind = Kind.SYSTEM if is_hidden or _is_system(name) else _kind_of_name(name)
        kinds.append(kind if path.isascii() or _is_utf8(path) else Kind.NOT_UTF8)
    return kinds


def kind_of_bytes(start: bytes) -> Kind:
    """Return the kind of a file by its first bytes."""
    found = format_of_bytes(start)
    if found is None:
        return Kind.OTHER
    return Kind.IMAGE if found in readable_formats() else Kind.UNREADABLE


def suffix_of(path: str) -> str:
    """Return the lower-case extension of a path with its dot; empty if it has none."""
    name = path[path.rfind("/") + 1 :]
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_system(path: str) -> bool:
    """Return True if a file or a folder of its path is hidden, or made by a desktop system or network storage."""
    return any(map(_is_system, path.split("/")))


def _is_system(name: str) -> bool:
    return (name[:1] == "." and name not in {".", ".."}) or name.lower() in _SYSTEM_NAMES


def _kind_of_name(name: str) -> Kind:
    suffix = suffix_of(name)
    if name in _TABLE_NAMES:
        return Kind.TABLE
    if suffix in _COMPRESSIONS and name.lower().endswith(_COMPRESSED_TARS):
        return Kind.COMPRESSED_TAR
    return _kind_of_suffix(suffix)


@lru_cache(maxsize=4096)
def _kind_of_suffix(suffix: str) -> Kind:
    if suffix in SUFFIXES:
        readable = Kind.RARE if suffix in RARE_SUFFIXES else Kind.IMAGE
        return readable if SUFFIXES[suffix] in readable_formats() else Kind.UNREADABLE
    if suffix in ARCHIVE_SUFFIXES:
        return Kind.ARCHIVE
    if suffix in _ARRAYS:
        return Kind.ARRAYS
    return Kind.OTHER if suffix in _OTHER else Kind.UNKNOWN
