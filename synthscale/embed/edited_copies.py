"""Make edited copies of images for the radius self-test (neighbors/self_test.py).

Takes the encoded bytes of images, and returns the copies as encoded bytes or as decoded pixels. The self-test
measures how many of the copies lie within the near-duplicate radius of their originals.
"""

import hashlib
import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from synthscale.embed.images import decode, to_rgb
from synthscale.tables.faults import Reason, RowFault
from synthscale.tables.image_formats import readable_formats

_STRIP_PX = 2**20
"""Pixels that noise is added to at once. Bounds memory: the float32 noise of a strip takes 12 MiB."""

_SMALL_PX = 32
"""Shorter side in pixels below which `_resize` enlarges an image: shrinking so few pixels changes the content."""


def _reencode(image: Image.Image) -> bytes:
    return _encoded(image, "JPEG", quality=75)


def _resize(image: Image.Image) -> bytes:
    factor = 0.75 if min(image.size) >= _SMALL_PX else 1.5
    size = (max(1, round(factor * image.width)), max(1, round(factor * image.height)))
    return _encoded(image.resize(size, Image.Resampling.BICUBIC), "PNG", compress_level=0)


def _disturb(image: Image.Image) -> bytes:
    pixels = np.array(image, np.uint8)
    # Seeded by the pixels, so that an image gets the same noise in every file format and every sample.
    rng = np.random.default_rng(int.from_bytes(hashlib.blake2b(pixels.data, digest_size=16).digest(), "little"))
    height = max(1, _STRIP_PX // image.width)
    for start in range(0, image.height, height):
        strip = pixels[start : start + height]
        noise = rng.standard_normal(strip.shape, dtype=np.float32)
        strip[...] = np.clip(np.rint(strip * np.float32(1.02) + np.float32(2.0) * noise), 0, 255)
    return _encoded(Image.fromarray(pixels), "PNG", compress_level=0)


def _encoded(image: Image.Image, format: str, **options: int) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


Edit = Callable[[Image.Image], bytes]


def _mirror(image: Image.Image) -> bytes:
    return _encoded(ImageOps.mirror(image), "PNG", compress_level=0)


def _crop(image: Image.Image) -> bytes:
    left, top = (int(_CROPPED / 2 * side) for side in image.size)
    box = (left, top, max(left + 1, image.width - left), max(top + 1, image.height - top))
    return _encoded(image.crop(box), "PNG", compress_level=0)


_CROPPED = 0.1
"""Share of each side that `_crop` removes."""

EDITS: Mapping[str, Edit] = {"reencode": _reencode, "resize": _resize, "disturb": _disturb}
"""Light edits by name, which a viewer hardly notices.

Each maps an upright RGB image to the encoded bytes of a copy, deterministically.

- ``reencode``: JPEG of quality 75.
- ``resize``: each side times 3/4, or times 3/2 if the shorter side is below 32 px; lossless PNG.
- ``disturb``: 2 % brighter, plus Gaussian noise with a standard deviation of 2 grey levels; lossless PNG.
"""
STRONG_EDITS: Mapping[str, Edit] = {"mirror": _mirror, "crop": _crop}
"""Edits by name that change the layout of an image, which many encoders do not overlook; as `EDITS`.

- ``mirror``: left and right swapped; lossless PNG.
- ``crop``: the middle 90 % of each side; lossless PNG.
"""
ALL_EDITS: Mapping[str, Edit] = {**EDITS, **STRONG_EDITS}
"""All edits, the light ones first."""


def edited_copies(data: bytes, content_hash: str | None = None) -> dict[str, bytes]:
    """Return one encoded copy of an image for each edit in `ALL_EDITS`, by the edit's name.

    Args:
        data: content of the image file.
        content_hash: ``FileMetadata.content_hash`` of the file when it was embedded; None skips the comparison.

    Raises:
        RowFault: the image cannot be decoded or is too large to be saved as a JPEG, or its hash differs.
    """
    # Decoding to pixels raises RowFault for every file that could not be embedded.
    _, metadata = decode(data, 8)
    if content_hash is not None and metadata.content_hash != content_hash:
        raise RowFault(Reason.NOT_FOUND, "the file has changed since it was embedded")
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(data), formats=readable_formats()) as image,
        ):
            upright = to_rgb(ImageOps.exif_transpose(image))
        # Otherwise Pillow writes the comment and the colour profile of the original into the copies.
        upright.info.clear()
        return {name: edit(upright) for name, edit in ALL_EDITS.items()}
    except (OSError, MemoryError) as error:
        # Pillow raises OSError for a JPEG with a side above 65,500 px.
        raise RowFault(Reason.TOO_LARGE, f"an edited copy could not be made: {error}") from error


def edited_pixels(
    images: Iterable[bytes | RowFault], hashes: Sequence[str | None], image_size: int
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Decode the edited copies of each image; skip images that cannot be read or have changed.

    Args:
        images: content of each image file, or the RowFault raised when it was fetched.
        hashes: ``content_hash`` of each image when it was embedded; None skips the comparison.
        image_size: S, side in pixels of the decoded squares.

    Yields:
        The position of an image in ``images``, and its copies, in the order of `ALL_EDITS`:
        (len(ALL_EDITS), S, S, 3).
    """
    for i, (data, content_hash) in enumerate(zip(images, hashes, strict=True)):
        try:
            if isinstance(data, RowFault):
                continue
            copies = edited_copies(data, content_hash)
            pixels = np.stack([decode(copies[name], image_size)[0] for name in ALL_EDITS])
        except RowFault:
            continue
        yield i, pixels
