"""Tiles: an image with its id, label and score, and the nearest real image beside it in the larger view."""

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from synthscale.report.pictures import Thumbnails
from synthscale.report.redaction import Redaction

GALLERIES = {
    "unrealistic": (
        "Most unrealistic synthetic images",
        "The highest scores: to the classifier these look most synthetic. What do they have in common?",
    ),
    "realistic": (
        "Most realistic synthetic images",
        "The lowest scores: to the classifier these look most like real ones.",
    ),
    "unrepresented": (
        "Least represented real images",
        "Real images that look least like anything this generator makes: what it should make more of.",
    ),
    "nearest": (
        "Synthetic images closest to a real one",
        "Each with its nearest real image in the larger view; at distance 0 it is a copy.",
    ),
}


@dataclass(frozen=True)
class Tile:
    """One image as the page shows it; pictures are places in the album, or None, which ``why`` explains."""

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
    """Makes tiles of rows of scores."""

    def __init__(self, album: Thumbnails, with_file: set[str], redaction: Redaction, shows_images: bool) -> None:
        """Take the pictures, the ids that have an image at all, and what must not be shown."""
        self._album, self._with_file, self._redaction = album, with_file, redaction
        self._shows_images = shows_images

    def tiles(self, rows: Iterable[Mapping[str, Any]]) -> list[Tile]:
        """Return a tile for each row."""
        return [self.tile(row) for row in rows]

    def tile(self, row: Mapping[str, Any]) -> Tile:
        """Return the tile of a row of scores."""
        nearest = row.get("nearest_real_id")
        return Tile(
            name=self._redaction.name(row["id"]),
            short=posixpath.basename(row["id"].rstrip("/")),
            label=row.get("label") or "",
            kind=row["real_or_synthetic"],
            score=row.get("label_quality_score"),
            distance=row.get("distance_to_nearest_neighbor"),
            picture=self._album.places.get(row["id"]),
            why=self._why(row["id"]),
            nearest="" if nearest is None else self._redaction.name(nearest),
            nearest_distance=row.get("distance_to_nearest_real"),
            nearest_picture=None if nearest is None else self._album.places.get(nearest),
            nearest_why="" if nearest is None else self._why(nearest),
        )

    def _why(self, name: str) -> str:
        if name in self._album.places:
            return ""
        if not self._shows_images:
            return "pictures left out"
        if name not in self._with_file:
            return "no picture"
        return "no room for it" if name in self._album.left_out else "picture missing"
