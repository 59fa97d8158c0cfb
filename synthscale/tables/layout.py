"""Small picklable records that locate data: stored files, shards of rows, dimensions, precomputed vectors."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StoredFile:
    """Where an image lies, and what the manifest knows of its file; None is unknown."""

    uri: str
    size_bytes: int | None = None
    etag: str | None = None


@dataclass(frozen=True)
class Shard:
    """A range of rows, ``start <= row < stop``, that is one file of each table."""

    index: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The file's name in every table's folder."""
        return f"part-{self.index:06d}.parquet"


def shards_of(stops: list[int]) -> list[Shard]:
    """Return the shards that end at the given rows, ascending."""
    return [Shard(i, start, stop) for i, (start, stop) in enumerate(zip([0, *stops[:-1]], stops, strict=True))]


@dataclass(frozen=True)
class VectorLayout:
    """What the dimensions of a run's vectors are for."""

    dimensions: int
    search: tuple[int, int]
    classify: tuple[int, int]


@dataclass(frozen=True)
class VectorSource:
    """Where precomputed vectors lie: Parquet files in row order, and the columns that hold the numbers.

    ``half`` tells that they are float16, and are kept so.
    """

    files: list[str]
    file_rows: list[int]
    columns: list[str]
    dimensions: int
    half: bool = False
