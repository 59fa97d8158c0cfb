"""Supported image formats and their file name extensions."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Names of the formats in Pillow; other files fail with the reason ``unsupported``.

The classifier of the confounder check one-hot encodes the formats in this order.
"""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
"""Lower-case extensions by which image files are found in folders and archives."""
