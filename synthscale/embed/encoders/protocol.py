"""What every encoder promises; reads uint8 pixels, gives float32 vectors."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Encoder(Protocol):
    """Maps a batch of square RGB images to vectors; deterministic, and independent of the batch's make-up.

    Attributes:
        name: as in the configuration, for instance ``descriptor``.
        image_size: side in pixels of the square images that ``encode`` takes.
        dimensions: D, the length of a vector.
        search: half-open range of the dimensions that serve neighbour search (never all zero).
        classify: half-open range of the dimensions that serve the real-vs-synthetic classifier.
        fingerprint: text that changes whenever the same pixels would give other vectors.
    """

    name: str
    image_size: int
    dimensions: int
    search: tuple[int, int]
    classify: tuple[int, int]
    fingerprint: str

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed ``pixels`` of shape (B, image_size, image_size, 3), RGB; gives shape (B, D)."""
        ...
