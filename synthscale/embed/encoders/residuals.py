"""Describe how images were made, by statistics of their spectrum, noise residuals, tones and colours.

Works on torch tensors. An image generator may get the content right and the noise wrong: upsampling leaves traces
in the high frequencies, and in the correlations between neighbouring pixels and between colour channels. The
features are therefore statistics of the residuals of small high-pass filters, the spectral energy per band, and
histograms of luma and chroma.

Sources: rich models of noise residuals (SRM, Fridrich and Kodovsky 2012); spectral traces of upsampling (Durall
et al. 2020, Frank et al. 2020); colour statistics of GAN images (McCloskey and Albright 2018).
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from synthscale.embed.encoders.filters import HALF_RANGE, cosine_matrix, frequency_grid

NOISE_FLOOR = 0.1
"""Added to variances and energies, in squared grey levels: about the rounding noise of 8-bit pixels (1/12).

Blank images then have finite logarithms, and correlations near zero.
"""
TONE_LEVELS = (-96.0, -64.0, -32.0, 0.0, 32.0, 64.0, 96.0)
"""Thresholds of the cumulative histogram of luma, in grey levels from the middle of the range."""
COLOUR_LEVELS = (-48.0, -16.0, -4.0, 4.0, 16.0, 48.0)
"""Thresholds of the cumulative histograms of Co and Cg, in grey levels."""
CHROMA_LEVELS = (4.0, 12.0, 24.0, 48.0, 96.0)
"""Thresholds of the cumulative histogram of max(|Co|, |Cg|), in grey levels."""
CLIPPED_BELOW, CLIPPED_ABOVE = 1.0 - HALF_RANGE, 254.0 - HALF_RANGE
"""Two more thresholds of luma: below the first are black pixels, and at or above the second nearly white ones."""


class BandEnergies:
    """Logarithm of the mean energy in bands of half an octave of radial frequency, from the full 2-D DCT.

    Args:
        size: S, side of the planes in pixels.
        device: torch device of the filters.
    """

    def __init__(self, size: int, device: str) -> None:
        frequency = frequency_grid(size)
        top = frequency.max().item() * 1.001
        edges = [top * 2 ** (-step / 2) for step in range(16)]
        # Frequency 0 is left out: it is the mean, which `tone_statistics` describes. Low bands may be empty.
        edges = [0.5, *sorted(edge for edge in edges if edge >= 1)]
        bands = [((frequency >= low) & (frequency < high)).flatten() for low, high in pairwise(edges)]
        shares = [band / band.sum() for band in bands if band.any()]
        self._average = torch.stack(shares, 1).to(device)
        self._matrix = cosine_matrix(size, size).to(device)

    def __call__(self, planes: Tensor) -> Tensor:
        """Compute the band energies of planes: (B, C, S, S) to (B, C * bands)."""
        energy = (self._matrix @ planes @ self._matrix.T).square().flatten(2)
        return torch.log(energy @ self._average + NOISE_FLOOR).flatten(1)


def halve(planes: Tensor) -> Tensor:
    """Average blocks of 2 x 2 pixels: (B, C, S, S) to (B, C, S / 2, S / 2)."""
    return functional.avg_pool2d(planes, 2)


def residual_statistics(planes: Tensor) -> Tensor:
    """Compute statistics of high-pass residuals: (B, 3, S, S) to (B, 54), 3 residuals x 6 statistics x 3 channels.

    The residuals are the horizontal and vertical first differences, and the output of the square filter
    [1 -2 1] x [1 -2 1] / 4.
    """
    across = planes[..., 1:] - planes[..., :-1]
    down = planes[..., 1:, :] - planes[..., :-1, :]
    second = across[..., 1:] - across[..., :-1]
    square = (second[..., 2:, :] - 2 * second[..., 1:-1, :] + second[..., :-2, :]) / 4
    return torch.cat([_statistics(residual) for residual in (across, down, square)], 1)


def _statistics(residual: Tensor) -> Tensor:
    """Return log power, two measures of the tails, and correlations with the next column and row and a channel."""
    square = residual.square()
    power = square.mean((2, 3)) + NOISE_FLOOR
    magnitude = residual.abs().mean((2, 3)) / power.sqrt()
    tail = (square.square().mean((2, 3)) + NOISE_FLOOR) / power.square()
    right = (residual[..., 1:] * residual[..., :-1]).mean((2, 3)) / power
    lower = (residual[..., 1:, :] * residual[..., :-1, :]).mean((2, 3)) / power
    other_channel = torch.roll(residual, 1, 1)
    channel = (residual * other_channel).mean((2, 3)) / (power * torch.roll(power, 1, 1)).sqrt()
    return torch.cat([torch.log(power), magnitude, torch.log(tail), right, lower, channel], 1)


def tone_statistics(planes: Tensor) -> Tensor:
    """Compute cumulative histograms of luma, Co, Cg and max(|Co|, |Cg|): (B, 3, S, S) to (B, 26)."""
    luma, chroma_orange, chroma_green = planes.unbind(1)
    chroma = torch.maximum(chroma_orange.abs(), chroma_green.abs())
    parts = [
        _shares_below(luma, (*TONE_LEVELS, CLIPPED_BELOW, CLIPPED_ABOVE)),
        _shares_below(chroma_orange, COLOUR_LEVELS),
        _shares_below(chroma_green, COLOUR_LEVELS),
        _shares_below(chroma, CHROMA_LEVELS),
    ]
    return torch.cat(parts, 1)


def _shares_below(plane: Tensor, levels: tuple[float, ...]) -> Tensor:
    """Return the share of pixels below each level: (B, S, S) to (B, len(levels))."""
    flat = plane.flatten(1)
    return torch.stack([(flat < level).to(torch.float32).mean(1) for level in levels], 1)
