"""Self-test of the radius: the share of lightly edited copies of real images that lie within it.

Reads image bytes and their stored vectors, and returns distances; no files. If the radius is too small for the
encoder, a generator that copies its training images looks fresh. The test edits a seeded sample of real images in
three ways that a viewer hardly notices, decodes and embeds the copies as the run does, and reports the share
whose distance from the original is below the radius. Two stronger edits, mirrored and cropped copies, are reported
beside it: many encoders do not find them, and a reader should know.
"""

import hashlib
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from synthscale.embed.edited_copies import ALL_EDITS, EDITS, STRONG_EDITS, edited_pixels
from synthscale.embed.encoders.protocol import Encoder
from synthscale.neighbors.distance import Floats, Rows, half_squared_distance, normalized
from synthscale.neighbors.search_space import SearchSpace
from synthscale.statistics.estimates import Metric, metric_block
from synthscale.statistics.jackknife import binomial_interval
from synthscale.tables.faults import RowFault

WARN_BELOW = 0.9
"""Share of copies found (0..1) below which the run warns."""
_STRONG_NAMES = {"mirror": "mirrored copies", "crop": "copies cropped to 90 % of each side"}


def sample_rows(ids: Sequence[str], rows: Rows, count: int, seed: int) -> Rows:
    """Draw a seeded sample of rows: the ``count`` rows with the smallest BLAKE2b(seed, id), ascending.

    The sample depends neither on the order of rows nor on row numbers. Samples of parts can be merged: the sample
    of their union is the sample of the whole.

    Args:
        ids: (n,) image ids.
        rows: (n,) row numbers of these images.
        count: sample size; all rows are returned if there are fewer.
        seed: key of the hash.
    """
    salt = seed.to_bytes(8, "little")

    def id_hash(pair: tuple[str, int]) -> bytes:
        return hashlib.blake2b(pair[0].encode(), digest_size=16, key=salt).digest()

    sample = heapq.nsmallest(count, zip(ids, rows.tolist(), strict=True), key=id_hash)
    return np.array(sorted(row for _, row in sample), np.int64)


@dataclass(frozen=True)
class SelfTest:
    """Result of the self-test.

    Attributes:
        distances: by name of the edit (`ALL_EDITS`), distances of the copies from their originals, (images,).
        left_out: number of sampled images left out: unreadable, changed since they were embedded, or with a copy
            whose vector is zero.
    """

    distances: dict[str, Floats]
    left_out: int = 0

    def summary(self, radius: float | None) -> Metric:
        """Return the block ``neighbors.self_test`` of metrics.json for a run's radius (None: not calibrated).

        A copy is found if its distance is < radius, or 0. ``value`` is the share of lightly edited copies that are
        found; ``by_strong_edit`` has the shares of strongly edited ones, and ``notes`` says which of them would be
        missed. The copies of one image are not independent, so the 95 % interval treats images as trials: it is
        the interval of Clopper and Pearson (1934), with the sum of the images' shares as the number of successes.
        Among distributions of shares with the same mean, shares of 0 and 1 have the largest variance. The interval
        is therefore right if the copies of an image are found together or not at all, and conservative otherwise.
        """
        if radius is None:
            return metric_block(None, "no radius: too few distinct real rows to calibrate it")
        if not any(len(distances) for distances in self.distances.values()):
            return metric_block(None, "no image of the sample could be read and edited")
        distance = np.stack([self.distances[name] for name in EDITS], axis=1)
        is_found = (distance < radius) | (distance == 0)
        low, high = binomial_interval(float(is_found.mean()), len(is_found))
        shares = {name: float(((own < radius) | (own == 0)).mean()) for name, own in self.distances.items()}
        strong = {name: shares[name] for name in STRONG_EDITS}
        return {
            "value": float(is_found.mean()),
            "low": low,
            "high": high,
            "images": len(is_found),
            "left_out": self.left_out,
            "by_edit": {name: shares[name] for name in EDITS},
            "by_strong_edit": strong,
            "median_distance_by_edit": {name: float(np.median(own)) for name, own in self.distances.items()},
            "notes": [_unseen(name, share) for name, share in strong.items() if share < WARN_BELOW],
        }


def _unseen(edit: str, share: float) -> str:
    missed = "would not be seen" if share < 0.5 else "would not all be seen"
    return (
        f"{_STRONG_NAMES[edit]} of training images {missed}: only {100 * share:.0f} % of those tried are "
        "within the radius of their original"
    )


def warning(summary: Metric) -> str | None:
    """Return a warning if the share of a `SelfTest.summary` is below `WARN_BELOW`, else None."""
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
    space: SearchSpace,
    batch_size: int,
    hashes: Sequence[str] | None = None,
) -> SelfTest:
    """Measure the distances of edited copies from their originals.

    Args:
        images: bytes of each sampled image, or the error of fetching it; consumed one by one.
        originals: (n, D) stored vectors of these images.
        encoder: the encoder of the run.
        space: the space of near-duplicates.
        batch_size: maximum number of copies per encoder batch; it does not change results.
        hashes: stored ``content_hash`` of each image; images whose file has changed since are left out.
    """
    expected = [None] * len(originals) if hashes is None else hashes
    usable = edited_pixels(images, expected, encoder.image_size)
    parts = [np.empty((0, len(ALL_EDITS)))]
    while batch := list(islice(usable, max(1, batch_size // len(ALL_EDITS)))):
        vectors = space(encoder.encode(np.concatenate([pixels for _, pixels in batch])))
        with np.errstate(invalid="ignore"):
            copies = normalized(vectors, space.metric).reshape(len(batch), len(ALL_EDITS), -1)
        own = normalized(space(originals[[i for i, _ in batch]]), space.metric)
        parts.append(half_squared_distance(copies, own[:, None]))
    distance = np.concatenate(parts)
    # A zero vector has no cosine distance. In a run its row would have failed, so the image is left out here.
    distance = distance[np.isfinite(distance).all(axis=1)]
    return SelfTest(dict(zip(ALL_EDITS, distance.T.copy(), strict=True)), len(originals) - len(distance))
