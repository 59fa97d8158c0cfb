"""The built-in encoder without weights: reads uint8 pixels, gives layout, gradients and noise statistics.

A vector is [constant | colour layout | oriented gradients | spectrum | tones | noise residuals]. The first three
are the ``search`` range: linear or nearly linear in the pixels at low frequencies, so re-encoding, resizing and
slight noise hardly move them. The others say how the image was made rather than what it shows; the ``classify``
range is everything but the constant. filters.py and residuals.py name the sources.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthscale.embed.encoders.filters import CosineLayout, OrientedGradients, opponent_planes
from synthscale.embed.encoders.residuals import BandEnergies, halve, residual_statistics, tone_statistics
from synthscale.errors import ConfigError

VERSION = 1
# Rows are computed in chunks of one fixed shape, the last one padded: matrix products of other shapes round
# differently, and a row's vector may not depend on its batch. The size bounds the memory of large batches.
CHUNK_PX = 2**16
OCTAVES = 3
# Keeps the search vector of a blank image away from zero and its direction away from noise.
CONSTANT = 0.5
CHROMA_WEIGHT = 3.0
GRADIENT_WEIGHT = 3.0


class DescriptorEncoder:
    """Fixed filters computed by torch; implements `synthscale.encoders.protocol.Encoder`."""

    name = "descriptor"

    def __init__(self, image_size: int = 64, device: str = "cpu") -> None:
        """Prepare the filters for squares of ``image_size`` pixels: a multiple of 16, at least 32."""
        if image_size < 32 or image_size % 16:
            raise ConfigError(
                f"encoder.image_size is {image_size}; descriptor needs a multiple of 16, at least 32"
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
        width = self._search_part(planes).shape[1]
        self.dimensions = width + self._evidence_part(planes).shape[1]
        self.search = (0, width)
        # All but the constant, which tells a classifier nothing.
        self.classify = (1, self.dimensions)

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed ``pixels`` of shape (B, image_size, image_size, 3), RGB; gives shape (B, dimensions)."""
        vectors = np.empty((len(pixels), self.dimensions), dtype=np.float32)
        chunk = np.zeros((self._chunk_rows, self.image_size, self.image_size, 3), dtype=np.uint8)
        with torch.inference_mode():
            for start in range(0, len(pixels), self._chunk_rows):
                rows = pixels[start : start + self._chunk_rows]
                chunk[: len(rows)] = rows
                planes = opponent_planes(torch.from_numpy(chunk).to(self._device))
                parts = torch.cat([self._search_part(planes), self._evidence_part(planes)], 1)
                vectors[start : start + len(rows)] = parts[: len(rows)].cpu().numpy()
        return vectors

    def _search_part(self, planes: Tensor) -> Tensor:
        parts = [
            planes.new_full((len(planes), 1), CONSTANT),
            self._luma(planes[:, :1]),
            CHROMA_WEIGHT * self._chroma(planes[:, 1:]),
            GRADIENT_WEIGHT * self._gradients(planes[:, 0]),
        ]
        return torch.cat(parts, 1)

    def _evidence_part(self, planes: Tensor) -> Tensor:
        parts = [self._bands(planes), tone_statistics(planes)]
        for octave in range(OCTAVES):
            parts.append(residual_statistics(planes))
            if octave + 1 < OCTAVES:
                planes = halve(planes)
        return torch.cat(parts, 1)
