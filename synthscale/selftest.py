"""The radius's self-test: whether lightly edited copies of real images lie within the radius of their originals.

Where the radius is too small for the encoder, a generator that copies its training images looks fresh. So a
seeded sample of real images is edited in three ways that a viewer hardly sees, the copies go through the run's own
decoding and encoder, and the share of them within the radius is reported. Pure: takes the images' bytes and the
vectors that the run stored of them, gives distances.
"""

import hashlib
import heapq
import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy.special import betaincinv

from synthscale.encoders.protocol import Encoder
from synthscale.images import FORMATS, ImageFault, decode, to_rgb
from synthscale.metrics.estimate import Metric, metric
from synthscale.schemas import Reason
from synthscale.search import Floats, Rows, cosine_distance, unit

WARN_BELOW = 0.9
"""A radius that finds a smaller share of the copies deserves a warning."""

_STRIP_PX = 2**20  # bounds the memory of a large picture's noise


def sample_rows(ids: Sequence[str], rows: Rows, count: int, seed: int) -> Rows:
    """Return the ``count`` rows with the smallest BLAKE2b(seed, id), or all where there are fewer; ascending.

    ``ids`` are those of ``rows``, (n,) each. Which images are taken depends neither on the rows' order nor on
    their numbers, and the sample of a whole is the sample of its parts' samples.
    """
    salt = seed.to_bytes(8, "little")

    def key(pair: tuple[str, int]) -> bytes:
        return hashlib.blake2b(pair[0].encode(), digest_size=16, key=salt).digest()

    taken = heapq.nsmallest(count, zip(ids, rows.tolist(), strict=True), key=key)
    return np.array(sorted(row for _, row in taken), np.int64)


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
    """Return the encoded copies of an image by the names of the edits; raise ImageFault.

    Args:
        data: the bytes of the image's file.
        content_hash: that of `FileFacts`, if the file must still be the one that was embedded.
    """
    _, facts = decode(data, 8)  # the same refusals as for embedding
    if content_hash is not None and facts.content_hash != content_hash:
        raise ImageFault(Reason.NOT_FOUND, "the file has changed since it was embedded")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            picture = to_rgb(ImageOps.exif_transpose(image))
        # Pillow would write the original's comment and colour profile into the copies.
        picture.info.clear()
        return {name: edit(picture) for name, edit in EDITS.items()}
    except (OSError, MemoryError) as error:  # a JPEG has no side above 65,500 px
        raise ImageFault(Reason.TOO_LARGE, f"no edited copy can be made: {error}") from error


@dataclass(frozen=True)
class SelfTest:
    """Cosine distances of each edit's copies from their originals, (images,); how many images were not usable."""

    distances: dict[str, Floats]
    left_out: int = 0

    def summary(self, radius: float | None) -> Metric:
        """Return the block ``neighbors.self_test`` of metrics.json for a run's radius (None: not calibrated).

        A copy is found when its distance is < radius, or 0. ``value`` is the share found of all copies. Copies of
        one image are not independent, so the 95 % interval counts images: Clopper and Pearson's (1934), the sum of
        the images' shares being the successes of as many trials. Of all shares with one mean, those that are 0 or
        1 vary most: it fits images whose copies are found together or not at all, and is wide for others.
        """
        if radius is None:
            return metric(None, "no radius: too few distinct real rows to calibrate it")
        if not any(len(distances) for distances in self.distances.values()):
            return metric(None, "no image of the sample could be read and edited again")
        distance = np.stack(list(self.distances.values()), axis=1)
        found = (distance < radius) | (distance == 0)
        low, high = _interval(int(found.sum()) / found.shape[1], len(found))
        shares, medians = found.mean(axis=0).tolist(), np.median(distance, axis=0).tolist()
        return {
            "value": float(found.mean()),
            "low": low,
            "high": high,
            "images": len(found),
            "left_out": self.left_out,
            "by_edit": dict(zip(self.distances, shares, strict=True)),
            "median_distance_by_edit": dict(zip(self.distances, medians, strict=True)),
        }


def _interval(successes: float, trials: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a share; ``successes`` need not be whole."""
    low = betaincinv(successes, trials - successes + 1, 0.025) if successes > 0 else 0.0
    high = betaincinv(successes + 1, trials - successes, 0.975) if successes < trials else 1.0
    return float(low), float(high)


def warning(summary: Metric) -> str | None:
    """Return what the reader of a `SelfTest.summary` must know, if its share is below WARN_BELOW."""
    if summary["value"] is None or summary["value"] >= WARN_BELOW:
        return None
    worst, share = min(summary["by_edit"].items(), key=lambda item: item[1])
    return (
        f"the radius finds only {100 * summary['value']:.1f} % of lightly edited copies of real images (worst: "
        f"{worst}, {100 * share:.1f} %), so a generator that copies its training images could look fresh: raise "
        "neighbors.threshold (or neighbors.radius, if you set it), or use a finer encoder; see docs/metrics.md"
    )


def run_self_test(
    images: Iterable[bytes | ImageFault],
    originals: NDArray[np.float32],
    encoder: Encoder,
    batch_size: int,
    hashes: Sequence[str] | None = None,
) -> SelfTest:
    """Measure how far edited copies lie from their originals, on the encoder's search dimensions.

    Args:
        images: the bytes of each image of the sample, or the fault met in fetching them; read one after another.
        originals: the vectors that the run stored of these images, (n, D).
        encoder: the run's.
        batch_size: copies encoded at a time; never changes results.
        hashes: the ``content_hash`` that the run stored of each image; those that have changed are left out.
    """
    known = [None] * len(originals) if hashes is None else hashes
    usable, search = _edited_pixels(images, known, encoder.image_size), slice(*encoder.search)
    parts = [np.empty((0, len(EDITS)))]
    while batch := list(islice(usable, max(1, batch_size // len(EDITS)))):
        vectors = encoder.encode(np.concatenate([pixels for _, pixels in batch]))[:, search]
        with np.errstate(invalid="ignore"):
            copies = unit(vectors).reshape(len(batch), len(EDITS), -1)
        parts.append(cosine_distance(copies, unit(originals[[i for i, _ in batch], search])[:, None]))
    distance = np.concatenate(parts)
    # A copy without a direction would be a failed row of a run, neither fresh nor a duplicate.
    distance = distance[np.isfinite(distance).all(axis=1)]
    return SelfTest(dict(zip(EDITS, distance.T.copy(), strict=True)), len(originals) - len(distance))


def _edited_pixels(
    images: Iterable[bytes | ImageFault], hashes: Sequence[str | None], image_size: int
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield the place of each usable image, and its copies as pixels (edits, S, S, 3)."""
    for i, (data, content_hash) in enumerate(zip(images, hashes, strict=True)):
        try:
            if isinstance(data, ImageFault):
                continue
            copies = edited_copies(data, content_hash)
            pixels = np.stack([decode(copies[name], image_size)[0] for name in EDITS])
        except ImageFault:
            continue
        yield i, pixels
