"""Files that are no tables, by their suffix or first bytes, and what to do with them.

Pure: works on names and bytes.
"""

from synthscale.errors import InputError
from synthscale.tables.image_formats import GIT_LFS_POINTER

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq")
"""Suffixes of the tables that can be read, in lower case; ``.txt`` and ``.tab`` are read as CSV too."""
_ADVICE = {
    ".xlsx": "an Excel workbook; save the sheet as CSV UTF-8 (File, Save As) and name that file",
    ".ods": "a spreadsheet; save the sheet as CSV with UTF-8 and name that file",
    ".npz": "NumPy arrays without ids and classes; write a Parquet file with the columns id, real_or_synthetic "
    "and "
    "embedding (pandas: DataFrame({'id': ids, 'real_or_synthetic': kinds, 'embedding': list(array)})"
    ".to_parquet(...))",
    ".json": "JSON; write one object a line (JSON Lines, suffix .jsonl), for example with jq -c '.[]'",
    ".gz": "compressed; decompress it first (gunzip), or write Parquet, which is compressed",
    ".tgz": "a compressed tar file; decompress it first (gunzip) and give the .tar to --real or --synthetic",
    ".tar": "a tar file; give it to --real or --synthetic NAME=FILE",
    ".pkl": "a pickle, which could run code; write Parquet (pandas: frame.to_parquet())",
    ".h5": "an HDF5 file; write Parquet (pandas: frame.to_parquet())",
    ".feather": "an Arrow file; write Parquet (pandas: frame.to_parquet())",
    ".sqlite": "a database; export the table as CSV",
}
for _same, _suffixes in {
    ".xlsx": (".xls", ".xlsm", ".xlsb"),
    ".npz": (".npy", ".pt", ".pth", ".safetensors", ".mat"),
    ".gz": (".bz2", ".xz", ".zst"),
    ".pkl": (".pickle", ".joblib"),
    ".h5": (".hdf5", ".hdf"),
    ".feather": (".arrow", ".ipc"),
    ".sqlite": (".db", ".duckdb", ".sqlite3"),
    ".json": (".geojson",),
}.items():
    _ADVICE |= dict.fromkeys(_suffixes, _ADVICE[_same])
_MAGIC = {
    b"PK\x03\x04": ".xlsx",
    b"\xd0\xcf\x11\xe0": ".xls",
    b"\x93NUMPY": ".npz",
    b"\x1f\x8b": ".gz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"BZh": ".bz2",
    b"\xfd7zXZ": ".xz",
    b"\x89HDF": ".h5",
    b"ARROW1": ".feather",
    b"SQLite format 3": ".sqlite",
    b"PAR1": ".parquet",
}
"""First bytes of files that are not what the suffix of a table says."""


def advice(suffix: str) -> str:
    """Return what to do with a file of a suffix, in lower case, that no table has; follows the file's name."""
    if suffix in _ADVICE:
        return f"is {_ADVICE[suffix]}; tables are {', '.join(TABLE_SUFFIXES)}"
    return f"expected a {', '.join(TABLE_SUFFIXES)} or .zip file, or a folder"


def check_content(head: bytes, source: str, suffix: str) -> None:
    """Raise InputError with what to do if the first bytes of a file are not those of a table with this suffix."""
    if head.startswith(GIT_LFS_POINTER):
        raise InputError(
            f"{source}: is a Git LFS pointer, not the file itself; run git lfs pull in its folder, and again"
        )
    if not head.strip():
        raise InputError(f"{source}: is empty")
    found = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    is_parquet = suffix in {".parquet", ".pq"}
    if found == ".parquet" and not is_parquet:
        raise InputError(f"{source}: is a Parquet file; rename it to end with .parquet")
    if found not in {None, ".parquet"}:
        raise InputError(f"{source}: is {_ADVICE[str(found)]}")
