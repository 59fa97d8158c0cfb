"""Encoded bytes to square RGB pixels, in one documented way, with typed faults.

- First frame of animations; EXIF rotation applied.
- Alpha, and transparent palettes, are laid over white. 16-bit and float grey is scaled by the range of its type
  (16-bit: value / 257; float: 0..1 when no value exceeds 1, else 0..255), never clipped to white. Palette, grey,
  CMYK, YCbCr and Lab go through Pillow's conversion.
- The picture is squashed to a square with Pillow's antialiased bicubic filter (as Clean-FID does: Parmar et al.
  2022, "On aliased resizing"). Large JPEGs are decoded at a reduced size that is at least twice the target.
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
from synthscale.tables.image_formats import FORMATS

MAX_PIXELS = 64_000_000
"""Larger pictures are refused before they are decoded."""

# What Pillow's plugins and its EXIF reader are known to raise on damaged bytes.
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, MemoryError, struct.error)


@dataclass(frozen=True)
class FileMetadata:
    """What the file itself says, apart from the picture."""

    width_px: int
    height_px: int
    format: str
    mode: str
    bytes: int
    jpeg_quality: int | None
    content_hash: str


def decode(data: bytes, image_size: int) -> tuple[NDArray[np.uint8], FileMetadata]:
    """Decode ``data`` to pixels of shape (image_size, image_size, 3) and its facts; raise RowFault."""
    if not data:
        raise RowFault(Reason.EMPTY, "the file has no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise RowFault(Reason.UNSUPPORTED, f"no {', '.join(FORMATS)} image") from error
    except Image.DecompressionBombError as error:
        raise RowFault(Reason.TOO_LARGE, str(error)) from error
    except _BROKEN as error:
        raise RowFault(Reason.CORRUPT, str(error)) from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise RowFault(Reason.TOO_LARGE, f"{image.width}x{image.height} pixels, limit {MAX_PIXELS}")
        facts = _facts(image, data)
        try:
            return _square(image, image_size), facts
        except _BROKEN as error:
            truncated = "truncated" in str(error) or "not enough image data" in str(error)
            raise RowFault(Reason.TRUNCATED if truncated else Reason.CORRUPT, str(error)) from error


def _square(image: Image.Image, image_size: int) -> NDArray[np.uint8]:
    # draft only touches JPEG: it decodes at 1/2, 1/4 or 1/8 size, still above what the antialiased resize needs.
    image.draft("RGB" if image.mode in {"RGB", "YCbCr"} else None, (2 * image_size, 2 * image_size))
    image.load()
    upright = ImageOps.exif_transpose(image)
    rgb = to_rgb(upright)
    resized = rgb.resize((image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.uint8)


_LEVELS = np.arange(256) / 255


def image_statistics(pixels: NDArray[np.uint8]) -> dict[str, float]:
    """Return brightness, contrast and sharpness of pixels (S, S, 3), as an encoder sees them.

    Of the luma (ITU-R BT.601, 0..1): its mean (0..1), its standard deviation (0..0.5), and the variance of its
    Laplacian over four neighbours (0..16; Pech-Pacheco et al. 2000: low is blurred).
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
    """Convert any mode to RGB as the module's docstring says."""
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
        # Mode "I" is how Pillow opens some 16-bit files; true 32-bit grey is rescaled by its 16 high bits.
        scaled = values / 257.0 if values.max(initial=0.0) <= 65535 else values / 65536.0 / 257.0
    grey = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return Image.fromarray(grey, mode="L").convert("RGB")


def _facts(image: Image.Image, data: bytes) -> FileMetadata:
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
"""Mean of the standard luminance quantisation table (ITU-T T.81, Annex K) at quality 50."""


def _jpeg_quality(image: Image.Image) -> int | None:
    """Estimate libjpeg's quality setting (1..100) from the luminance quantisation table."""
    tables = getattr(image, "quantization", None)
    if image.format != "JPEG" or not tables:
        return None
    scale = 100.0 * float(np.mean(tables[min(tables)])) / _LUMA_MEAN_50
    quality = (200.0 - scale) / 2.0 if scale <= 100.0 else 5000.0 / scale
    return int(np.clip(round(quality), 1, 100))


def thumbnail_jpeg(data: bytes, side_px: int) -> bytes:
    """Re-encode an image as a small JPEG that keeps its proportions and no metadata; raise RowFault."""
    decode(data, 8)  # the same refusals as for embedding
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        image.draft("RGB", (2 * side_px, 2 * side_px))
        picture = to_rgb(ImageOps.exif_transpose(image))
    small = picture.width < side_px and picture.height < side_px
    scale = side_px / max(picture.width, picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # Tiny pictures (digits, CIFAR) are enlarged without smoothing, so that their pixels can be seen.
    picture = picture.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC)
    # Pillow would write the original's comment into the new file.
    picture.info.clear()
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=75)
    return out.getvalue()
