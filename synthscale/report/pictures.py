"""Thumbnails for the report: fetched side by side, re-encoded, and no more than a page should weigh."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from synthscale.config import Config
from synthscale.embed.image_reader import fetch_all, files_of
from synthscale.embed.images import thumbnail_jpeg
from synthscale.tables.faults import RowFault
from synthscale.tables.layout import StoredFile

TILE_PX, POINT_PX = 112, 40
TILES_BYTES, POINTS_BYTES = 3_200_000, 900_000
"""What the pictures of tiles, and of the map's points, may add to a page."""
_AT_A_TIME = 64


@dataclass
class Thumbnails:
    """The pictures of a page: JPEGs in base64, and the place of each id's among them.

    ``missing`` are ids whose picture cannot be read any more, ``left_out`` those that the page had no room for.
    """

    data: list[str] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    left_out: set[str] = field(default_factory=set)
    held_bytes: int = 0

    def add(
        self, ids: Sequence[str], files: dict[str, StoredFile], side_px: int, limit_bytes: int, config: Config
    ) -> None:
        """Add the pictures of ids, the first first, until all are of so many bytes; those that are there stay."""
        wanted = [name for name in dict.fromkeys(ids) if name in files and name not in self.places]
        wanted = [name for name in wanted if name not in self.missing]
        for start in range(0, len(wanted), _AT_A_TIME):
            part = wanted[start : start + _AT_A_TIME]
            if not self.left_out.isdisjoint(wanted[:start]):
                # There is no room for what comes later either.
                self.left_out.update(wanted[start:])
                return
            for name, data in zip(part, fetch_all([files[each] for each in part], config), strict=True):
                self._put(name, data, side_px, limit_bytes)

    def _put(self, name: str, data: bytes | RowFault, side_px: int, limit_bytes: int) -> None:
        try:
            if isinstance(data, RowFault):
                raise data
            text = base64.b64encode(thumbnail_jpeg(data, side_px)).decode()
        except RowFault:
            self.missing.add(name)
            return
        if self.held_bytes + len(text) > limit_bytes:
            self.left_out.add(name)
            return
        self.left_out.discard(name)
        self.held_bytes += len(text)
        self.places[name] = len(self.data)
        self.data.append(text)


def files_by_id(manifest: ds.Dataset, ids: Sequence[str]) -> dict[str, StoredFile]:
    """Return where the images of ids lie; ids without an image (vectors) are left out."""
    wanted = pa.array(sorted(set(ids)), pa.string())
    columns = ["id", "uri", "size_bytes", "etag"]
    found: dict[str, StoredFile] = {}
    for batch in manifest.to_batches(columns=columns):
        rows = pa.Table.from_batches([batch])
        own = rows.filter(pc.and_(pc.is_in(rows.column("id"), wanted), rows.column("uri").is_valid()))
        found.update(zip(own.column("id").to_pylist(), files_of(own), strict=True))
    return found
