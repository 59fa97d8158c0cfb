"""How an image was made, by statistics: spectrum, noise residuals, tones; tensors in and out.

A generator may paint the right things with the wrong noise: its upsampling leaves its mark on the high octaves
and on how neighbouring pixels and colour channels go together. So these numbers look at the residuals of small
high-pass filters, at spectral energy per band, and at histograms of tone and colour.

Sources: rich models of noise residuals (SRM, Fridrich and Kodovsky 2012); spectral traces of upsampling (Durall
et al. 2020, Frank et al. 2020); colour statistics of GAN images (McCloskey and Albright 2018).
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from synthscale.embed.encoders.filters import HALF_RANGE, cosine_matrix, frequency_grid

# Variances are floored at about the rounding noise of 8-bit pixels (1/12 grey level squared), so that blank images
# give finite logarithms and correlations near zero.
NOISE_FLOOR = 0.1
TONE_LEVELS = (-96.0, -64.0, -32.0, 0.0, 32.0, 64.0, 96.0)
COLOUR_LEVELS = (-48.0, -16.0, -4.0, 4.0, 16.0, 48.0)
CHROMA_LEVELS = (4.0, 12.0, 24.0, 48.0, 96.0)
CLIPPED_BELOW, CLIPPED_ABOVE = 1.0 - HALF_RANGE, 254.0 - HALF_RANGE


class BandEnergies:
    """Log energy per half-octave of radial frequency, from the full cosine transform."""

    def __init__(self, size: int, device: str) -> None:
        frequency = frequency_grid(size)
        top = frequency.max().item() * 1.001
        edges = [top * 2 ** (-step / 2) for step in range(16)]
        # Frequency 0 is the mean, which the tones describe; a band may hold no coefficient at the low end.
        edges = [0.5, *sorted(edge for edge in edges if edge >= 1)]
        bands = [((frequency >= low) & (frequency < high)).flatten() for low, high in pairwise(edges)]
        shares = [band / band.sum() for band in bands if band.any()]
        self._average = torch.stack(shares, 1).to(device)
        self._matrix = cosine_matrix(size, size).to(device)

    def __call__(self, planes: Tensor) -> Tensor:
        """Map (B, C, S, S) to (B, C * bands)."""
        energy = (self._matrix @ planes @ self._matrix.T).square().flatten(2)
        return torch.log(energy @ self._average + NOISE_FLOOR).flatten(1)


def halve(planes: Tensor) -> Tensor:
    """Average 2x2 pixels: (B, C, S, S) to (B, C, S / 2, S / 2)."""
    return functional.avg_pool2d(planes, 2)


def residual_statistics(planes: Tensor) -> Tensor:
    """Describe three high-pass residuals of (B, 3, S, S); gives (B, 54): 3 residuals x 3 channels x 6 numbers.

    The residuals are the first differences across and down and the square filter [1 -2 1] x [1 -2 1] / 4.
    """
    across = planes[..., 1:] - planes[..., :-1]
    down = planes[..., 1:, :] - planes[..., :-1, :]
    bend = across[..., 1:] - across[..., :-1]
    square = (bend[..., 2:, :] - 2 * bend[..., 1:-1, :] + bend[..., :-2, :]) / 4
    return torch.cat([_describe(residual) for residual in (across, down, square)], 1)


def _describe(residual: Tensor) -> Tensor:
    """Log power, two measures of the tails, and correlations with the next column, row and channel."""
    square = residual.square()
    power = square.mean((2, 3)) + NOISE_FLOOR
    magnitude = residual.abs().mean((2, 3)) / power.sqrt()
    tail = (square.square().mean((2, 3)) + NOISE_FLOOR) / power.square()
    right = (residual[..., 1:] * residual[..., :-1]).mean((2, 3)) / power
    lower = (residual[..., 1:, :] * residual[..., :-1, :]).mean((2, 3)) / power
    mates = torch.roll(residual, 1, 1)
    channel = (residual * mates).mean((2, 3)) / (power * torch.roll(power, 1, 1)).sqrt()
    return torch.cat([torch.log(power), magnitude, torch.log(tail), right, lower, channel], 1)


def tone_statistics(planes: Tensor) -> Tensor:
    """Give cumulative histograms of luma, both chromas and colourfulness of (B, 3, S, S), shape (B, 26)."""
    luma, orange, green = planes.unbind(1)
    chroma = torch.maximum(orange.abs(), green.abs())
    parts = [
        _shares_below(luma, (*TONE_LEVELS, CLIPPED_BELOW, CLIPPED_ABOVE)),
        _shares_below(orange, COLOUR_LEVELS),
        _shares_below(green, COLOUR_LEVELS),
        _shares_below(chroma, CHROMA_LEVELS),
    ]
    return torch.cat(parts, 1)


def _shares_below(plane: Tensor, levels: tuple[float, ...]) -> Tensor:
    flat = plane.flatten(1)
    return torch.stack([(flat < level).to(torch.float32).mean(1) for level in levels], 1)
