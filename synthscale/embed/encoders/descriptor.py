"""The built-in encoder: hand-crafted image features without learned weights, computed by torch.

A vector is the concatenation [constant | colour layout | oriented gradients | spectrum | tones | noise residuals].
The first three parts are the ``search`` range. They are linear or nearly linear in the pixels at low frequencies,
so re-encoding, resizing and slight noise hardly change them. The other parts describe how the image was made, not
what it shows. The ``classify`` range is everything but the constant. filters.py and residuals.py compute the parts
and cite their sources.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthscale.embed.encoders.filters import CosineLayout, OrientedGradients, opponent_planes
from synthscale.embed.encoders.residuals import BandEnergies, halve, residual_statistics, tone_statistics
from synthscale.errors import ConfigError

VERSION = 1
"""Part of the fingerprint. Raise it when the same pixels give other vectors."""
CHUNK_PX = 2**16
"""Pixels per chunk of images, 16 images of 64 px; bounds the memory of large batches.

All chunks have the same shape, and the last one is padded: matrix products of other shapes round differently, but
an image's vector must not depend on its batch.
"""
OCTAVES = 3
"""Scales at which noise residuals are computed; each halves the image of the one before."""
CONSTANT = 0.5
"""First component of every vector. It keeps the search vector of a blank image from being zero, and its direction
from being determined by noise."""
CHROMA_WEIGHT = 3.0
"""Weight of the layout of the chroma planes relative to that of the luma plane."""
GRADIENT_WEIGHT = 3.0
"""Weight of the oriented gradients relative to the layout of the luma plane."""


class DescriptorEncoder:
    """Encoder of fixed filters; implements `synthscale.embed.encoders.protocol.Encoder`."""

    name = "descriptor"
    scaled = True

    def __init__(self, image_size: int = 64, device: str = "cpu") -> None:
        """Build the filters for square images.

        Args:
            image_size: side of the images in pixels, a multiple of 16 and at least 32.
            device: torch device that the filters are applied on.

        Raises:
            ConfigError: ``image_size`` is not such a number.
        """
        if image_size < 32 or image_size % 16:
            raise ConfigError(
                f"encoder.image_size is {image_size}; the descriptor needs a multiple of 16, at least 32"
            )
        self.image_size = image_size
        self.fingerprint = f"descriptor-{VERSION}/{image_size}"
        self._device = device
        self._chunk_rows = max(1, CHUNK_PX // image_size**2)
        self._luma = CosineLayout(image_size, 9.0, 0.7, 0.3, device)
        self._chroma = CosineLayout(image_size, 4.6, 0.7, 0.3, device)
        self._gradients = OrientedGradients(16, 4, 8, device)
        self._bands = BandEnergies(image_size, device)
        blank = torch.zeros((1, image_size, image_size, 3), dtype=torch.uint8, device=device)
        planes = opponent_planes(blank)
        search_dimensions = self._content_features(planes).shape[1]
        self.dimensions = search_dimensions + self._trace_features(planes).shape[1]
        self.search = (0, search_dimensions)
        # The constant is left out: it carries no information for a classifier.
        self.classify = (1, self.dimensions)

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed images: (B, image_size, image_size, 3) RGB to (B, dimensions)."""
        vectors = np.empty((len(pixels), self.dimensions), dtype=np.float32)
        chunk = np.zeros((self._chunk_rows, self.image_size, self.image_size, 3), dtype=np.uint8)
        with torch.inference_mode():
            for start in range(0, len(pixels), self._chunk_rows):
                rows = pixels[start : start + self._chunk_rows]
                chunk[: len(rows)] = rows
                planes = opponent_planes(torch.from_numpy(chunk).to(self._device))
                features = torch.cat([self._content_features(planes), self._trace_features(planes)], 1)
                vectors[start : start + len(rows)] = features[: len(rows)].cpu().numpy()
        return vectors

    def _content_features(self, planes: Tensor) -> Tensor:
        """Compute the search range from opponent planes (B, 3, S, S): what the image shows."""
        parts = [
            planes.new_full((len(planes), 1), CONSTANT),
            self._luma(planes[:, :1]),
            CHROMA_WEIGHT * self._chroma(planes[:, 1:]),
            GRADIENT_WEIGHT * self._gradients(planes[:, 0]),
        ]
        return torch.cat(parts, 1)

    def _trace_features(self, planes: Tensor) -> Tensor:
        """Compute the rest of a vector from opponent planes (B, 3, S, S): how the image was made."""
        parts = [self._bands(planes), tone_statistics(planes)]
        for octave in range(OCTAVES):
            parts.append(residual_statistics(planes))
            if octave + 1 < OCTAVES:
                planes = halve(planes)
        return torch.cat(parts, 1)
