"""What an image shows, by fixed filters: colour planes, cosine layout, oriented gradients; tensors in and out.

Everything here is a fixed function of the pixels: nothing is learned and nothing depends on other images.

Sources: YCoCg (Malvar and Sullivan 2003); colour layout as low cosine coefficients (MPEG-7 ColorLayout,
Kasutani and Yamada 2001); gradient orientation pooled over soft cells (GIST, Oliva and Torralba 2001; HOG,
Dalal and Triggs 2005).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

HALF_RANGE = 128.0


def opponent_planes(pixels: Tensor) -> Tensor:
    """Turn uint8 RGB (B, S, S, 3) into float planes Y - 128, Co, Cg of shape (B, 3, S, S), in grey levels.

    The coefficients are quarters and halves, so the planes are exact in float32, and thresholds on them give the
    same answer on every device.
    """
    red, green, blue = pixels.to(torch.float32).unbind(-1)
    luma = (red + 2 * green + blue) / 4 - HALF_RANGE
    return torch.stack([luma, (red - blue) / 2, (2 * green - red - blue) / 4], 1)


def cosine_matrix(rows: int, size: int) -> Tensor:
    """Give the first ``rows`` vectors of the orthonormal DCT-II of length ``size``, shape (rows, size)."""
    phase = torch.arange(rows, dtype=torch.float64)[:, None] * (torch.arange(size, dtype=torch.float64) + 0.5)
    matrix = torch.cos(math.pi / size * phase) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.to(torch.float32)


def frequency_grid(rows: int) -> Tensor:
    """Give the radial frequency, in half-cycles per image, of each of (rows, rows) cosine coefficients."""
    index = torch.arange(rows, dtype=torch.float32)
    return torch.hypot(index[:, None], index[None, :])


class CosineLayout:
    """Low cosine coefficients of planes, weighted by frequency ** ``exponent`` so that no octave dominates.

    Natural images have amplitudes near 1 / frequency. The mean (frequency 0) is weighted by ``mean_weight``,
    because cosine between vectors that keep their full mean measures little but brightness.
    """

    def __init__(self, size: int, cutoff: float, exponent: float, mean_weight: float, device: str) -> None:
        rows = math.ceil(cutoff)
        frequency = frequency_grid(rows)
        keep = frequency < cutoff
        weight = torch.where(frequency > 0, frequency**exponent, mean_weight)[keep]
        self._matrix = cosine_matrix(rows, size).to(device)
        self._kept = keep.flatten().nonzero()[:, 0].to(device)
        # Dividing by the side makes a coefficient independent of the image size; 1.0 is half the grey range.
        self._weight = (weight / (size * HALF_RANGE)).to(device)

    def __call__(self, planes: Tensor) -> Tensor:
        """Map (B, C, S, S) to (B, C * kept coefficients)."""
        coefficients = (self._matrix @ planes @ self._matrix.T).flatten(2)
        return (coefficients[..., self._kept] * self._weight).flatten(1)


class OrientedGradients:
    """Mean gradient towards each of ``directions`` in soft square cells of a reduced luma plane.

    Rectified projections replace hard orientation bins: they are linear but for the rectification, so slight noise
    moves them slightly. No contrast normalisation, which would amplify the noise of flat areas.
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
        """Map (B, S, S) to (B, directions * cells * cells); 1.0 is half the grey range per reduced pixel."""
        small = functional.adaptive_avg_pool2d(luma[:, None] / HALF_RANGE, self._grid_px)
        padded = functional.pad(small, (1, 1, 1, 1), mode="replicate")
        across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
        down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
        towards = torch.relu(across * self._cos + down * self._sin)
        return (self._window @ towards @ self._window.T).flatten(1)
