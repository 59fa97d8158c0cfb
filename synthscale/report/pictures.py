"""Thumbnails of the report: reads images, re-encodes them as small JPEGs and keeps within a byte budget."""

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
"""Longer side of the thumbnails of tiles and of the map's points, in pixels."""
TILES_BYTES, POINTS_BYTES = 3_200_000, 900_000
"""Budget of base64 text for the thumbnails of tiles and of the map's points; it keeps the page below 5 MB."""
_BATCH = 64
"""Images that are fetched together; fetching stops after the batch in which the budget is spent."""


@dataclass
class Thumbnails:
    """Thumbnails of a page.

    Attributes:
        data: JPEG files as base64 text.
        index: id -> position of its thumbnail in ``data``.
        missing: ids whose image can no longer be read, or has changed since the run.
        left_out: ids without a thumbnail because the byte budget was spent.
        held_bytes: length of all texts in ``data``.
    """

    data: list[str] = field(default_factory=list)
    index: dict[str, int] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    left_out: set[str] = field(default_factory=set)
    held_bytes: int = 0

    def add(
        self, ids: Sequence[str], files: dict[str, StoredFile], side_px: int, limit_bytes: int, config: Config
    ) -> None:
        """Add thumbnails in order until the byte budget is spent; ids that already have one keep it.

        Args:
            ids: ids in order of priority; those without a file are ignored.
            files: location of the image of each id.
            side_px: longer side of the thumbnails.
            limit_bytes: budget for all thumbnails of the page, including those added before.
            config: settings of the storage.
        """
        pending = [name for name in dict.fromkeys(ids) if name in files and name not in self.index]
        pending = [name for name in pending if name not in self.missing]
        for start in range(0, len(pending), _BATCH):
            batch = pending[start : start + _BATCH]
            if not self.left_out.isdisjoint(pending[:start]):
                # The budget is spent, so do not fetch the others.
                self.left_out.update(pending[start:])
                return
            contents = fetch_all([files[name] for name in batch], config)
            for name, data in zip(batch, contents, strict=True):
                self._encode(name, data, side_px, limit_bytes)

    def _encode(self, name: str, data: bytes | RowFault, side_px: int, limit_bytes: int) -> None:
        """Add the thumbnail of one image, or record why it has none."""
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
        self.index[name] = len(self.data)
        self.data.append(text)


def files_by_id(manifest: ds.Dataset, ids: Sequence[str]) -> dict[str, StoredFile]:
    """Look up the image files of ids in the manifest; ids without an image (vectors) are left out."""
    wanted = pa.array(sorted(set(ids)), pa.string())
    columns = ["id", "uri", "size_bytes", "etag"]
    files: dict[str, StoredFile] = {}
    for batch in manifest.to_batches(columns=columns):
        rows = pa.Table.from_batches([batch])
        matching = rows.filter(pc.and_(pc.is_in(rows.column("id"), wanted), rows.column("uri").is_valid()))
        files.update(zip(matching.column("id").to_pylist(), files_of(matching), strict=True))
    return files
