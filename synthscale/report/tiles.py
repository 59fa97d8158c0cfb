"""Tiles of the galleries: an image with its id, label and scores, and the nearest real image for enlarging."""

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from synthscale.report.pictures import Thumbnails
from synthscale.report.redaction import Redaction

GALLERIES = {
    "unrealistic": (
        "Most unrealistic synthetic images",
        "The highest scores: the classifier is most certain that these are synthetic. What do they share?",
    ),
    "realistic": (
        "Most realistic synthetic images",
        "The lowest scores: the classifier takes these for real images.",
    ),
    "unrepresented": (
        "Least represented real images",
        "Real images that are least like this generator's images. It should make more images like these.",
    ),
    "nearest": (
        "Synthetic images closest to a real one",
        "Enlarge an image to see its nearest real image next to it. At distance 0 it is a copy.",
    ),
}
"""Gallery key (see `choice.EXTREMES`) -> title and explanation."""


@dataclass(frozen=True)
class Tile:
    """One image as the page shows it.

    Attributes:
        name: id without local folders.
        short: last part of the id.
        label: empty if unknown.
        kind: ``real`` or ``synthetic``.
        score: label quality score, 0..1; None if unknown.
        distance: distance to the nearest other image; None if unknown.
        picture: position of the thumbnail in `Thumbnails.data`; None if there is none.
        why: reason why there is no thumbnail, else empty.
        nearest: id of the nearest real image without local folders; empty if unknown.
        nearest_distance: distance to it; None if unknown.
        nearest_picture: position of its thumbnail; None if there is none.
        nearest_why: reason why it has no thumbnail, else empty.
    """

    name: str
    short: str
    label: str
    kind: str
    score: float | None
    distance: float | None
    picture: int | None
    why: str
    nearest: str
    nearest_distance: float | None
    nearest_picture: int | None
    nearest_why: str


class Tiler:
    """Converts rows of ``scores/`` to tiles."""

    def __init__(
        self, thumbnails: Thumbnails, ids_with_file: set[str], redaction: Redaction, shows_images: bool
    ) -> None:
        """Keep what all tiles share.

        Args:
            thumbnails: thumbnails of the page.
            ids_with_file: ids that have an image file; vectors have none.
            redaction: removes local folders from ids.
            shows_images: False if the page has no images by request.
        """
        self._thumbnails, self._ids_with_file, self._redaction = thumbnails, ids_with_file, redaction
        self._shows_images = shows_images

    def tiles(self, rows: Iterable[Mapping[str, Any]]) -> list[Tile]:
        """Return a tile for each row."""
        return [self.tile(row) for row in rows]

    def tile(self, row: Mapping[str, Any]) -> Tile:
        """Return the tile of one row."""
        nearest = row.get("nearest_real_id")
        return Tile(
            name=self._redaction.name(row["id"]),
            short=posixpath.basename(row["id"].rstrip("/")),
            label=row.get("label") or "",
            kind=row["real_or_synthetic"],
            score=row.get("label_quality_score"),
            distance=row.get("distance_to_nearest_neighbor"),
            picture=self._thumbnails.index.get(row["id"]),
            why=self._why_missing(row["id"]),
            nearest="" if nearest is None else self._redaction.name(nearest),
            nearest_distance=row.get("distance_to_nearest_real"),
            nearest_picture=None if nearest is None else self._thumbnails.index.get(nearest),
            nearest_why="" if nearest is None else self._why_missing(nearest),
        )

    def _why_missing(self, name: str) -> str:
        """Return why an id has no thumbnail; empty if it has one."""
        if name in self._thumbnails.index:
            return ""
        if not self._shows_images:
            return "pictures left out"
        if name not in self._ids_with_file:
            return "no image file"
        return "left out: page is full" if name in self._thumbnails.left_out else "picture missing"
