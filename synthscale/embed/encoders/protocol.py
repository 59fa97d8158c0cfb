"""Protocol of the encoders: uint8 pixels in, float32 vectors out."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Encoder(Protocol):
    """Maps batches of square RGB images to vectors.

    Encoders are deterministic, and the vector of an image does not depend on the other images of its batch.

    Attributes:
        name: ``encoder.name`` in the configuration, for instance ``descriptor``.
        image_size: side in pixels of the square images that ``encode`` takes.
        dimensions: D, length of a vector.
        search: (start, stop) of the dimensions that cosine distances are computed from (never all zero).
        classify: (start, stop) of the dimensions that the real-vs-synthetic classifier sees.
        scaled: whether the dimensions have different units (`VectorLayout.scaled`).
        fingerprint: text that differs for encoders that give different vectors for the same pixels.
    """

    name: str
    image_size: int
    dimensions: int
    search: tuple[int, int]
    classify: tuple[int, int]
    scaled: bool
    fingerprint: str

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed images: (B, image_size, image_size, 3) RGB to (B, D)."""
        ...
