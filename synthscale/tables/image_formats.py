"""Image formats that are read, as Pillow names them, and the endings of their files."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
