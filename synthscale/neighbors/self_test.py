"""The radius's self-test: whether lightly edited copies of real images lie within the radius of their originals.

Where the radius is too small for the encoder, a generator that copies its training images looks fresh. So a
seeded sample of real images is edited in three ways that a viewer hardly sees, the copies go through the run's own
decoding and encoder, and the share of them within the radius is reported. Pure: takes the images' bytes and the
vectors that the run stored of them, gives distances.
"""

import hashlib
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from synthscale.embed.edited_copies import EDITS, _edited_pixels
from synthscale.embed.encoders.protocol import Encoder
from synthscale.neighbors.distance import Floats, Rows, cosine_distance, unit
from synthscale.statistics.estimates import Metric, metric_block
from synthscale.statistics.jackknife import binomial_interval
from synthscale.tables.faults import RowFault

WARN_BELOW = 0.9
"""A radius that finds a smaller share of the copies deserves a warning."""


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
            return metric_block(None, "no radius: too few distinct real rows to calibrate it")
        if not any(len(distances) for distances in self.distances.values()):
            return metric_block(None, "no image of the sample could be read and edited again")
        distance = np.stack(list(self.distances.values()), axis=1)
        found = (distance < radius) | (distance == 0)
        low, high = binomial_interval(float(found.mean()), len(found))
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
    images: Iterable[bytes | RowFault],
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
