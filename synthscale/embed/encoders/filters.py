"""Describe the content of images by fixed filters: colour planes, cosine layout, oriented gradients.

Works on torch tensors. Every feature is a fixed function of an image's own pixels: nothing is learned, and nothing
depends on other images.

Sources: YCoCg (Malvar and Sullivan 2003); colour layout as low cosine coefficients (MPEG-7 ColorLayout,
Kasutani and Yamada 2001); gradient orientation pooled over soft cells (GIST, Oliva and Torralba 2001; HOG,
Dalal and Triggs 2005).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

HALF_RANGE = 128.0
"""Half the range of 8-bit grey levels: the zero of the luma plane, and the unit of layout and gradients."""


def opponent_planes(pixels: Tensor) -> Tensor:
    """Convert uint8 RGB, (B, S, S, 3), to float planes Y - 128, Co and Cg, (B, 3, S, S), in grey levels.

    The coefficients of YCoCg are quarters and halves, so the planes are exact in float32, and a comparison with a
    threshold gives the same result on every device.
    """
    red, green, blue = pixels.to(torch.float32).unbind(-1)
    luma = (red + 2 * green + blue) / 4 - HALF_RANGE
    return torch.stack([luma, (red - blue) / 2, (2 * green - red - blue) / 4], 1)


def cosine_matrix(rows: int, size: int) -> Tensor:
    """Return the first ``rows`` basis vectors of the orthonormal DCT-II of length ``size``: (rows, size)."""
    phase = torch.arange(rows, dtype=torch.float64)[:, None] * (torch.arange(size, dtype=torch.float64) + 0.5)
    matrix = torch.cos(math.pi / size * phase) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.to(torch.float32)


def frequency_grid(rows: int) -> Tensor:
    """Return the radial frequency of each 2-D cosine coefficient: (rows, rows), in half-cycles per image."""
    index = torch.arange(rows, dtype=torch.float32)
    return torch.hypot(index[:, None], index[None, :])


class CosineLayout:
    """Low-frequency cosine coefficients of planes, weighted so that no octave dominates.

    Coefficients are multiplied by frequency ** ``exponent``, because natural images have amplitudes near
    1 / frequency. The mean (frequency 0) is multiplied by ``mean_weight``: with the full mean, the cosine of two
    vectors would measure little but brightness.

    Args:
        size: S, side of the planes in pixels.
        cutoff: frequency in half-cycles per image below which coefficients are kept.
        exponent: of the frequency weight.
        mean_weight: weight of the mean.
        device: torch device of the filters.
    """

    def __init__(self, size: int, cutoff: float, exponent: float, mean_weight: float, device: str) -> None:
        rows = math.ceil(cutoff)
        frequency = frequency_grid(rows)
        keep = frequency < cutoff
        weight = torch.where(frequency > 0, frequency**exponent, mean_weight)[keep]
        self._matrix = cosine_matrix(rows, size).to(device)
        self._kept = keep.flatten().nonzero()[:, 0].to(device)
        # Dividing by the side makes coefficients independent of the image size; 1.0 is then half the grey range.
        self._weight = (weight / (size * HALF_RANGE)).to(device)

    def __call__(self, planes: Tensor) -> Tensor:
        """Compute the coefficients of planes: (B, C, S, S) to (B, C * kept coefficients)."""
        coefficients = (self._matrix @ planes @ self._matrix.T).flatten(2)
        return (coefficients[..., self._kept] * self._weight).flatten(1)


class OrientedGradients:
    """Mean gradient towards each direction in overlapping square cells of a reduced luma plane.

    Gradients are projected on each direction and rectified, instead of being counted in orientation bins: this is
    linear except for the rectification, so slight noise changes it slightly. There is no contrast normalisation,
    which would amplify the noise of flat areas.

    Args:
        grid_px: side in pixels that the luma plane is reduced to by averaging.
        cells: cells per side; their windows are triangular and overlap (bilinear interpolation).
        directions: number of directions, equally spaced over the full circle.
        device: torch device of the filters.
    """

    def __init__(self, grid_px: int, cells: int, directions: int, device: str) -> None:
        self._grid_px = grid_px
        angle = torch.arange(directions) * (2 * math.pi / directions)
        self._cos = torch.cos(angle)[:, None, None].to(device)
        self._sin = torch.sin(angle)[:, None, None].to(device)
        position = (torch.arange(grid_px) + 0.5) / grid_px * cells - 0.5
        position = position.clamp(0, cells - 1)
        window = (1 - (position[None, :] - torch.arange(cells)[:, None]).abs()).clamp_min(0)
        self._window = (window / window.sum(1, keepdim=True)).to(device)

    def __call__(self, luma: Tensor) -> Tensor:
        """Compute the mean gradients of luma planes: (B, S, S) to (B, directions * cells * cells).

        The unit is half the grey range per pixel of the reduced plane.
        """
        small = functional.adaptive_avg_pool2d(luma[:, None] / HALF_RANGE, self._grid_px)
        padded = functional.pad(small, (1, 1, 1, 1), mode="replicate")
        across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
        down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
        rectified = torch.relu(across * self._cos + down * self._sin)
        return (self._window @ rectified @ self._window.T).flatten(1)
