"""Lightly edited copies of images: what the self-test of the radius looks for."""

import hashlib
import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from synthscale.embed.images import decode, to_rgb
from synthscale.tables.faults import Reason, RowFault
from synthscale.tables.image_formats import FORMATS

_STRIP_PX = 2**20  # bounds the memory of a large picture's noise


_SMALL_PX = 32


def _reencode(image: Image.Image) -> bytes:
    return _encoded(image, "JPEG", quality=75)


def _resize(image: Image.Image) -> bytes:
    # Three quarters of a picture of a few pixels is another picture.
    factor = 0.75 if min(image.size) >= _SMALL_PX else 1.5
    size = (max(1, round(factor * image.width)), max(1, round(factor * image.height)))
    return _encoded(image.resize(size, Image.Resampling.BICUBIC), "PNG", compress_level=0)


def _disturb(image: Image.Image) -> bytes:
    pixels = np.array(image, np.uint8)
    # The noise belongs to the picture, whatever its file and its place in the sample.
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


EDITS: Mapping[str, Edit] = {"reencode": _reencode, "resize": _resize, "disturb": _disturb}
"""Upright RGB picture -> encoded bytes of a copy: JPEG of quality 75; 3/4 of each side (3/2 where a side is under
32 px); 2 % brighter with Gaussian noise of 2 grey levels. The last two are lossless PNG. The same picture always
gives the same copies."""


def edited_copies(data: bytes, content_hash: str | None = None) -> dict[str, bytes]:
    """Return the encoded copies of an image by the names of the edits; raise RowFault.

    Args:
        data: the bytes of the image's file.
        content_hash: that of `FileFacts`, if the file must still be the one that was embedded.
    """
    _, facts = decode(data, 8)  # the same refusals as for embedding
    if content_hash is not None and facts.content_hash != content_hash:
        raise RowFault(Reason.NOT_FOUND, "the file has changed since it was embedded")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            picture = to_rgb(ImageOps.exif_transpose(image))
        # Pillow would write the original's comment and colour profile into the copies.
        picture.info.clear()
        return {name: edit(picture) for name, edit in EDITS.items()}
    except (OSError, MemoryError) as error:  # a JPEG has no side above 65,500 px
        raise RowFault(Reason.TOO_LARGE, f"no edited copy can be made: {error}") from error


def _edited_pixels(
    images: Iterable[bytes | RowFault], hashes: Sequence[str | None], image_size: int
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield the place of each usable image, and its copies as pixels (edits, S, S, 3)."""
    for i, (data, content_hash) in enumerate(zip(images, hashes, strict=True)):
        try:
            if isinstance(data, RowFault):
                continue
            copies = edited_copies(data, content_hash)
            pixels = np.stack([decode(copies[name], image_size)[0] for name in EDITS])
        except RowFault:
            continue
        yield i, pixels
