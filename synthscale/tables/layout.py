"""Picklable records that locate data: image files, shards of rows, vector dimensions, precomputed vectors."""

from dataclasses import dataclass, field
from typing import Literal

DistanceMetric = Literal["cosine", "euclidean"]
"""How rows are compared: by direction, or by difference (neighbors/distance.py)."""


@dataclass(frozen=True)
class StoredFile:
    """Location of an image file and what the manifest records about it; None means unknown.

    Attributes:
        uri: local path or ``s3://`` URI of the file, or of a member of an archive.
        size_bytes: size when it was listed.
        etag: S3 ETag when it was listed; for a local file its modification time and size.
        fault: why the row cannot be used whatever its image, as in the manifest's column; None if it can.
    """

    uri: str
    size_bytes: int | None = None
    etag: str | None = None
    fault: str | None = None


@dataclass(frozen=True)
class Shard:
    """Range of rows, ``start <= row < stop``, stored as one file of each table."""

    index: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    @property
    def name(self) -> str:
        """File name of the shard in every table's folder; names sort by index."""
        return f"part-{self.index:06d}.parquet"


def shards_of(stops: list[int]) -> list[Shard]:
    """Return consecutive shards from row 0, given the end (exclusive) of each shard, ascending."""
    return [Shard(i, start, stop) for i, (start, stop) in enumerate(zip([0, *stops[:-1]], stops, strict=True))]


@dataclass(frozen=True)
class VectorLayout:
    """Dimensions of a run's vectors, and the half-open ranges of them that are used.

    Attributes:
        dimensions: D, length of a stored vector.
        search: (start, stop) of the dimensions that are compared for near-duplicates.
        classify: (start, stop) of the dimensions that the classifier sees.
        scaled: whether the dimensions have different units, so that a Euclidean distance over all of them needs
            each scaled by the real rows: columns of a table, and features of hand-crafted filters.
        columns: whether the dimensions are columns of a table. Near-duplicates are then rows with small
            differences; otherwise they are vectors of nearly the same direction.
    """

    dimensions: int
    search: tuple[int, int]
    classify: tuple[int, int]
    scaled: bool = False
    columns: bool = False

    def metric(self, choice: str) -> DistanceMetric:
        """Return the metric of near-duplicates for the setting ``neighbors.metric``."""
        is_euclidean = choice == "euclidean" or (choice == "auto" and self.columns)
        return "euclidean" if is_euclidean else "cosine"

    def directed(self, choice: str) -> tuple[int, int] | None:
        """Return the dimensions whose direction is compared, which must not be all zeros; None if it is not."""
        return self.search if self.metric(choice) == "cosine" else None


@dataclass(frozen=True)
class VectorSource:
    """Location of precomputed vectors: Parquet files in row order.

    Attributes:
        files: local paths or ``s3://`` URIs.
        file_rows: number of rows of each file.
        columns: one list column of vectors, or one scalar column for each dimension.
        dimensions: D, length of a vector.
        half: whether the vectors are float16; they are then stored as float16 in ``embeddings/``.
        lists: whether the column holds lists; a column ``embedding`` always does.
        dropped: rows of the files that are no rows of the run, ascending, counted over all files.
    """

    files: list[str]
    file_rows: list[int]
    columns: list[str]
    dimensions: int
    half: bool = False
    lists: bool = False
    dropped: list[int] = field(default_factory=list)

    @property
    def holds_lists(self) -> bool:
        """Whether the vectors are lists in one column, not numbers in columns."""
        return self.lists or self.columns == ["embedding"]
