"""Supported image formats, their file name extensions and the first bytes of their files."""

from contextlib import suppress
from functools import lru_cache

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "AVIF", "HEIF")
"""Names of the formats in Pillow; other files fail with the reason ``unsupported``.

The classifier of the confounder check one-hot encodes the formats in this order. AVIF needs a Pillow with
it, as its wheels are, and HEIF (``.heic``) the package pillow-heif (`readable_formats`).
"""

_PLAIN = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
RARE_SUFFIXES = {
    **dict.fromkeys((".jfif", ".jpe", ".jfi", ".jif", ".pjpeg", ".pjp"), "JPEG"),
    ".mpo": "JPEG",
    ".apng": "PNG",
    ".dib": "BMP",
    **dict.fromkeys((".avif", ".avifs"), "AVIF"),
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIF"),
}
"""Plug-in by lower-case extension, of those that are worth a line when they are read."""
SUFFIXES = {**_PLAIN, **RARE_SUFFIXES}
"""Plug-in by lower-case extension: image files in folders and archives are found by it."""
PLUGINS = {"HEIF": " (pip install pillow-heif)", "AVIF": " (install a Pillow that was built with AVIF)"}
"""What reads a format that Pillow does not."""
SNIFF_BYTES = 32
"""First bytes of a file that `format_of_bytes` needs."""
GIT_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
"""First bytes of the small text that takes a file's place until ``git lfs pull``."""

_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}
"""Sizes of the header that follows a BMP file's first 14 bytes."""


@lru_cache(maxsize=1)
def readable_formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this Pillow and its plug-ins open; what opens JPEG opens MPO too."""
    from PIL import Image

    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def format_of_bytes(start: bytes) -> str | None:
    """Return the format of a file that begins with ``start`` (`SNIFF_BYTES` bytes); None if it is no image."""
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "WEBP"
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if start[4:8] == b"ftyp":
        brand = start[8:12]
        if brand in {b"avif", b"avis"}:
            return "AVIF"
        if brand in {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
            return "HEIF"
    if start.startswith(b"BM") and int.from_bytes(start[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return None
