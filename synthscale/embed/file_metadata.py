"""What a file says apart from its picture, as numbers: the features of the confounder check.

If these alone tell real from synthetic, any classifier of pictures may be reading the file format.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthscale.tables.columns import to_float64
from synthscale.tables.image_formats import FORMATS

MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "I;16")
COLUMNS = ("width_px", "height_px", "format", "mode", "bytes", "jpeg_quality")
"""The columns of ``embeddings/`` that hold the facts."""
STATISTICS_COLUMNS = ("brightness", "contrast", "sharpness")
"""Those that hold what is plain of the picture."""
DIMENSIONS = len(FORMATS) + len(MODES) + 5


def metadata_vectors(table: pa.Table) -> NDArray[np.float32] | None:
    """Return (n, DIMENSIONS) numbers from the columns `COLUMNS`; None where there were no files.

    Format and mode are indicators; width, height and aspect ratio are logarithms; then the JPEG quality that the
    quantisation tables are of (0 without), and whether it is known.
    """
    if table.num_rows and table.column("format").null_count == table.num_rows:
        return None
    kinds = [table.column(name).to_numpy(zero_copy_only=False) for name in ("format", "mode")]
    width, height = (np.log(to_float64(table.column(name), 1.0)) for name in ("width_px", "height_px"))
    quality = to_float64(table.column("jpeg_quality"), 0.0)
    columns = [
        *(kinds[0] == name for name in FORMATS),
        *(kinds[1] == name for name in MODES),
        width,
        height,
        width - height,
        quality,
        quality > 0,
    ]
    return np.stack([np.asarray(column, np.float32) for column in columns], 1)


def bytes_per_pixel(table: pa.Table) -> NDArray[np.float64]:
    """Return each file's size over its pixels: (n,); NaN where there was no file."""
    pixels = to_float64(table.column("width_px"), np.nan) * to_float64(table.column("height_px"), np.nan)
    result: NDArray[np.float64] = to_float64(table.column("bytes"), np.nan) / pixels
    return result


def statistics_columns(table: pa.Table) -> dict[str, NDArray[np.float64]]:
    """Return brightness, contrast, sharpness, width, height and aspect ratio: (n,) each, NaN without a picture."""
    values = {name: to_float64(table.column(name), np.nan) for name in STATISTICS_COLUMNS}
    width, height = to_float64(table.column("width_px"), np.nan), to_float64(table.column("height_px"), np.nan)
    return {**values, "width": width, "height": height, "aspect": width / height}
