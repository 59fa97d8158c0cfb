"""Decode image files to square RGB pixels, file metadata, pixel statistics and thumbnails.

Works on bytes in memory; a file that cannot be decoded raises RowFault with a reason. The rules of decoding:

- The first frame of an animation is used, and the EXIF orientation is applied.
- Transparent pixels are composited over white. 16-bit and float grey values are scaled by the range of their type
  (16-bit: value / 257; float: from 0..1 if no value exceeds 1, else from 0..255), so that they are not clipped to
  white. Pillow converts palette, grey, CMYK, YCbCr and Lab images to RGB.
- The image is resized to a square, ignoring its aspect ratio, with Pillow's antialiased bicubic filter, as
  Clean-FID does (Parmar et al. 2022, "On aliased resizing"). Large JPEGs are decoded at a reduced size of at least
  twice the target.
"""

import hashlib
import io
import struct
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from synthscale.tables.faults import Reason, RowFault
from synthscale.tables.image_formats import (
    GIT_LFS_POINTER,
    PLUGINS,
    SNIFF_BYTES,
    format_of_bytes,
    readable_formats,
)

MAX_PIXELS = 64_000_000
"""Maximum width x height in pixels: 192 MB as 8-bit RGB. Larger images are refused before they are decoded."""

# Pillow's format plugins and its EXIF reader raise these on damaged bytes.
_DAMAGE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, MemoryError, struct.error)


@dataclass(frozen=True)
class FileMetadata:
    """Properties of an image file, as stored in ``embeddings/``.

    Attributes:
        width_px: width in the file, before EXIF rotation.
        height_px: height in the file, before EXIF rotation.
        format: Pillow's name of the format, one of image_formats.FORMATS.
        mode: Pillow's colour mode in the file, such as ``RGB`` or ``P``.
        bytes: size of the file.
        jpeg_quality: libjpeg's quality setting, 1..100, estimated; None for other formats.
        content_hash: BLAKE2b of the file, 128 bits in hexadecimal.
    """

    width_px: int
    height_px: int
    format: str
    mode: str
    bytes: int
    jpeg_quality: int | None
    content_hash: str


def decode(data: bytes, image_size: int) -> tuple[NDArray[np.uint8], FileMetadata]:
    """Decode an image file by the rules in the module's docstring.

    Args:
        data: content of the file.
        image_size: S, side in pixels of the square.

    Returns:
        RGB pixels, (S, S, 3) uint8, and the metadata of the file.

    Raises:
        RowFault: the file is empty, unsupported, damaged, truncated or too large.
    """
    if not data:
        raise RowFault(Reason.EMPTY, "the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=readable_formats())
    except UnidentifiedImageError as error:
        raise RowFault(Reason.UNSUPPORTED, _unsupported(data)) from error
    except Image.DecompressionBombError as error:
        raise RowFault(Reason.TOO_LARGE, str(error)) from error
    except _DAMAGE_ERRORS as error:
        raise RowFault(Reason.CORRUPT, str(error)) from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise RowFault(Reason.TOO_LARGE, f"{image.width}x{image.height} pixels, limit {MAX_PIXELS}")
        # Reduced decoding of JPEGs changes the size and mode of `image`, so its metadata is taken first.
        metadata = _file_metadata(image, data)
        try:
            return _resized_square(image, image_size), metadata
        except _DAMAGE_ERRORS as error:
            truncated = "truncated" in str(error) or "not enough image data" in str(error)
            raise RowFault(Reason.TRUNCATED if truncated else Reason.CORRUPT, str(error)) from error


def _unsupported(data: bytes) -> str:
    if data.startswith(GIT_LFS_POINTER):
        return "a pointer of Git LFS in place of the image: fetch the images with git lfs pull"
    found = format_of_bytes(data[:SNIFF_BYTES])
    if found is not None and found not in readable_formats():
        return f"this Pillow does not read {found} files{PLUGINS.get(found, '')}"
    return f"not a readable {', '.join(readable_formats())} file"


def _resized_square(image: Image.Image, image_size: int) -> NDArray[np.uint8]:
    # draft has an effect on JPEG only: libjpeg decodes at 1/2, 1/4 or 1/8 of the size, but never below twice the
    # target, so that the antialiased filter still sees enough pixels.
    image.draft("RGB" if image.mode in {"RGB", "YCbCr"} else None, (2 * image_size, 2 * image_size))
    image.load()
    upright = ImageOps.exif_transpose(image)
    rgb = to_rgb(upright)
    resized = rgb.resize((image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.uint8)


_LEVELS = np.arange(256) / 255
"""The 8-bit grey levels on the scale 0..1."""


def image_statistics(pixels: NDArray[np.uint8]) -> dict[str, float]:
    """Return brightness, contrast and sharpness of decoded pixels, as an encoder gets them.

    All are statistics of the luma (ITU-R BT.601, scaled to 0..1, rounded to 8 bits by Pillow).

    Args:
        pixels: (S, S, 3) uint8, RGB.

    Returns:
        ``brightness``: the mean, 0..1. ``contrast``: the standard deviation, 0..0.5. ``sharpness``: the variance
        of the 4-neighbour Laplacian, 0..16 (Pech-Pacheco et al. 2000; low for blurred images); 0 if the image is
        smaller than 3 x 3 pixels.
    """
    luma = np.asarray(Image.fromarray(pixels).convert("L"))
    counts = np.bincount(luma.ravel(), minlength=256) / luma.size
    mean = float(counts @ _LEVELS)
    wide = luma.astype(np.int16)
    laplacian = wide[:-2, 1:-1] + wide[2:, 1:-1] + wide[1:-1, :-2] + wide[1:-1, 2:] - 4 * wide[1:-1, 1:-1]
    edges = laplacian.ravel().astype(np.float32) / 255
    return {
        "brightness": mean,
        "contrast": float(np.sqrt(counts @ np.square(_LEVELS - mean))),
        "sharpness": float(edges @ edges / max(1, edges.size) - edges.mean() ** 2) if edges.size else 0.0,
    }


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB by the rules in the module's docstring."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode in {"I", "F"}:
        return _grey_to_rgb(image)
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _grey_to_rgb(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        values = np.nan_to_num(values, nan=0.0, posinf=255.0, neginf=0.0)
        scaled = values * 255.0 if values.max(initial=0.0) <= 1.0 else values
    else:
        # Pillow opens some 16-bit files in the 32-bit mode "I". Values above 16 bits are scaled as 32-bit grey.
        scaled = values / 257.0 if values.max(initial=0.0) <= 65535 else values / 65536.0 / 257.0
    grey = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return Image.fromarray(grey, mode="L").convert("RGB")


def _file_metadata(image: Image.Image, data: bytes) -> FileMetadata:
    return FileMetadata(
        width_px=image.width,
        height_px=image.height,
        format=str(image.format),
        mode=image.mode,
        bytes=len(data),
        jpeg_quality=_jpeg_quality(image),
        content_hash=hashlib.blake2b(data, digest_size=16).hexdigest(),
    )


_LUMA_MEAN_50 = 57.625
"""Mean of the standard luminance quantisation table (ITU-T T.81, Annex K), which libjpeg uses at quality 50."""


def _jpeg_quality(image: Image.Image) -> int | None:
    """Estimate libjpeg's quality setting, 1..100, from the luminance quantisation table; None if not a JPEG."""
    tables = getattr(image, "quantization", None)
    if image.format != "JPEG" or not tables:
        return None
    scale = 100.0 * float(np.mean(tables[min(tables)])) / _LUMA_MEAN_50
    quality = (200.0 - scale) / 2.0 if scale <= 100.0 else 5000.0 / scale
    return int(np.clip(round(quality), 1, 100))


def thumbnail_jpeg(data: bytes, side_px: int) -> bytes:
    """Re-encode an image as a small upright JPEG, with its aspect ratio and without metadata.

    Args:
        data: content of the image file.
        side_px: longer side of the thumbnail. Smaller images are enlarged to it.

    Raises:
        RowFault: the image cannot be decoded.
    """
    # Decoding to pixels raises RowFault for every file that could not be embedded.
    decode(data, 8)
    with Image.open(io.BytesIO(data), formats=readable_formats()) as image:
        image.draft("RGB", (2 * side_px, 2 * side_px))
        upright = to_rgb(ImageOps.exif_transpose(image))
    is_small = upright.width < side_px and upright.height < side_px
    scale = side_px / max(upright.width, upright.height)
    size = (max(1, round(upright.width * scale)), max(1, round(upright.height * scale)))
    # Tiny images (digits, CIFAR) are enlarged without smoothing, so that their pixels can be seen.
    thumbnail = upright.resize(size, Image.Resampling.NEAREST if is_small else Image.Resampling.BICUBIC)
    # Otherwise Pillow writes the comment of the original into the new file.
    thumbnail.info.clear()
    out = io.BytesIO()
    thumbnail.save(out, "JPEG", quality=75)
    return out.getvalue()
