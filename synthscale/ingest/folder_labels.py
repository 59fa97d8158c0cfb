"""Labels from folder names: the folder that contains an image, unless every class has the same folder below it.

Pure: works on paths.
"""

from collections.abc import Sequence

_DEPTH = 3
"""Levels of folders above an image that are looked at."""
_MOST_NAMES = 10_000
"""Distinct names of a level that are kept; more are labels all the same, but not counted."""
_GENERIC = frozenset(
    {"images", "image", "imgs", "img", "jpegs", "jpeg", "jpg", "pngs", "png", "photos", "pictures"}
)
"""Names of a folder that say nothing of its images, where only one class could show it."""


class FolderLabels:
    """Which level of folders above the images of a set gives their labels; level 1 is the containing folder.

    ``class/cat1.png`` has its label at level 1. If all images are in folders of one name below folders of several
    (``cat/images/1.png``, ``dog/images/2.png``), the upper folders are the classes.
    """

    def __init__(self) -> None:
        """Begin without images."""
        self._names: list[set[str]] = [set() for _ in range(_DEPTH)]
        self._reach = _DEPTH
        self._last: str | None = None

    def add(self, paths: Sequence[str]) -> None:
        """Take note of images by their paths relative to the top of their set or archive."""
        for path in paths:
            folder = path.rpartition("/")[0]
            if folder == self._last:
                continue
            self._last = folder
            parts = folder.split("/")[::-1] if folder else []
            self._reach = min(self._reach, len(parts))
            for names, part in zip(self._names, parts, strict=False):
                # Keys of S3 may have empty parts.
                if part and len(names) < _MOST_NAMES:
                    names.add(part)

    @property
    def level(self) -> int:
        """The level of the labels, from 1."""
        level = 1
        while level < self._reach and len(self._names[level - 1]) == 1:
            level += 1
        if len(self._names[level - 1]) > 1:
            return level
        # One class at most: its name is that of the images' folder, unless that says nothing.
        (name,) = self._names[0] or {""}
        return 2 if self._reach >= 2 and name.lower() in _GENERIC else 1

    @property
    def names(self) -> set[str]:
        """The distinct labels."""
        return self._names[self.level - 1]


def label_at(path: str, level: int) -> str | None:
    """Return the name of the folder at a level above an image; None if there is none."""
    parts = path.rsplit("/", level + 1)
    return parts[-level - 1] or None if len(parts) > level else None
