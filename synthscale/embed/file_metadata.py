"""Turn the metadata columns of ``embeddings/`` into features of the confounder check and of the family ``facts``.

The confounder check is a real-vs-synthetic classifier that sees file metadata only. If it separates the sets, the
classifier of the embeddings may use the file format instead of the content.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthscale.tables.columns import to_float64
from synthscale.tables.image_formats import FORMATS

MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "I;16")
"""Colour modes of Pillow that have an indicator of their own; other modes are all zeros."""
COLUMNS = ("width_px", "height_px", "format", "mode", "bytes", "jpeg_quality")
"""Columns of ``embeddings/`` with the file metadata."""
STATISTICS_COLUMNS = ("brightness", "contrast", "sharpness")
"""Columns of ``embeddings/`` with statistics of the decoded pixels (`images.image_statistics`)."""
DIMENSIONS = len(FORMATS) + len(MODES) + 5
"""Length of a metadata vector."""


def metadata_vectors(table: pa.Table) -> NDArray[np.float32] | None:
    """Return the file metadata as classifier features: (n, DIMENSIONS); None if no row has a file.

    The features are, in this order: the one-hot encoded format (`FORMATS`) and colour mode (`MODES`); the
    logarithms of width, height and aspect ratio; the JPEG quality estimated from the quantisation tables (0 if
    unknown); 1 if that quality is known, else 0. A missing width or height counts as 1 px.

    Args:
        table: n rows with the columns `COLUMNS`.
    """
    if table.num_rows and table.column("format").null_count == table.num_rows:
        return None
    formats, modes = (table.column(name).to_numpy(zero_copy_only=False) for name in ("format", "mode"))
    width, height = (np.log(to_float64(table.column(name), 1.0)) for name in ("width_px", "height_px"))
    quality = to_float64(table.column("jpeg_quality"), 0.0)
    columns = [
        *(formats == name for name in FORMATS),
        *(modes == name for name in MODES),
        width,
        height,
        width - height,
        quality,
        quality > 0,
    ]
    return np.stack([np.asarray(column, np.float32) for column in columns], 1)


def bytes_per_pixel(table: pa.Table) -> NDArray[np.float64]:
    """Return the file size divided by the number of pixels: (n,) bytes per pixel; NaN if either is unknown."""
    pixels = to_float64(table.column("width_px"), np.nan) * to_float64(table.column("height_px"), np.nan)
    result: NDArray[np.float64] = to_float64(table.column("bytes"), np.nan) / pixels
    return result


def statistics_columns(table: pa.Table) -> dict[str, NDArray[np.float64]]:
    """Return brightness, contrast, sharpness, width, height (px) and aspect ratio by name.

    Each is (n,), NaN for rows without an image.
    """
    values = {name: to_float64(table.column(name), np.nan) for name in STATISTICS_COLUMNS}
    width, height = to_float64(table.column("width_px"), np.nan), to_float64(table.column("height_px"), np.nan)
    return {**values, "width": width, "height": height, "aspect": width / height}
