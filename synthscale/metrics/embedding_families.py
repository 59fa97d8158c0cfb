"""The families of metrics that are made of embeddings: Frechet distance, KID, Vendi score, utility.

Moments are of all rows and add up over shards; KID and utility look at a sample of 20,000 rows of each set,
drawn by key. The Vendi score takes a second pass, since its features need the real rows' moments.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from scipy.stats import t

from synthscale.metrics.frechet import Moments, extrapolated, frechet_distance
from synthscale.metrics.kernel import kid
from synthscale.metrics.utility import utility
from synthscale.metrics.vendi import FourierMap, SecondMoment, fourier_map
from synthscale.statistics import jackknife
from synthscale.statistics.estimates import Estimate
from synthscale.tables.id_hashes import Hashes, mix, sampling_threshold

VECTOR_FAMILIES = ("frechet", "kernel", "vendi", "utility")
SAMPLE_ROWS = 20_000
PARTS = 12
"""Random parts that the extrapolated Frechet distance is made of."""
_STREAM = 50_000
_PART_STREAM = 50_001
_FOLDS, _FOLD_STREAM = 5, 50_002
_BLOCKS, _BLOCK_ROWS = (10, 20), 1000
_BANDWIDTH_ROWS = 1024
_VENDI_FEATURES = 512

NO_FRECHET_INTERVAL = "no interval: one distance has none; metrics.frechet_infinity gives one"
NO_VENDI_INTERVAL = "no interval: the score depends on all rows at once"


@dataclass(frozen=True)
class VectorRows:
    """Some rows of one set.

    Attributes:
        vectors: (n, d).
        key: (n,) of their ids.
        group: (n,) of synthetic rows' near-duplicate groups, which parts and samples do not split; of real rows
            the same as ``key``, for their groups differ between generators' views.
        label: n labels or None.
        fold: (n, G) of real rows, in each generator's view.
    """

    vectors: NDArray[np.floating]
    key: Hashes
    group: Hashes
    label: Sequence[str | None]
    fold: NDArray[np.int8]

    def take(self, chosen: NDArray[np.int64]) -> "VectorRows":
        """Return some of the rows."""
        label = [self.label[i] for i in chosen.tolist()]
        return VectorRows(self.vectors[chosen], self.key[chosen], self.group[chosen], label, self.fold[chosen])


@dataclass
class VectorSums:
    """Moments of a set, by random part, and a sample of its rows; two of them add up."""

    moments: list[Moments]
    sample: VectorRows

    @classmethod
    def of(cls, rows: VectorRows, set_rows: int, parts: int) -> "VectorSums":
        """Return the sums over some rows of a set of ``set_rows``, in so many parts."""
        part = mix(rows.group, _PART_STREAM) % np.uint64(parts)
        moments = [Moments.of(rows.vectors[part == i]) for i in range(parts)]
        chosen = mix(rows.group, _STREAM) <= sampling_threshold(SAMPLE_ROWS, set_rows)
        return cls(moments, rows.take(np.flatnonzero(chosen)))

    def __add__(self, other: "VectorSums") -> "VectorSums":
        """Return the sums over both sets of rows."""
        moments = [a + b for a, b in zip(self.moments, other.moments, strict=True)]
        one, two = self.sample, other.sample
        sample = VectorRows(
            np.concatenate([one.vectors, two.vectors]),
            np.concatenate([one.key, two.key]),
            np.concatenate([one.group, two.group]),
            [*one.label, *two.label],
            np.concatenate([one.fold, two.fold]),
        )
        return VectorSums(moments, sample)

    def drawn(self) -> VectorRows:
        """Return the sample in the order of its draw, which does not depend on the order of rows."""
        return self.sample.take(np.lexsort((self.sample.key, mix(self.sample.group, _STREAM))))

    @property
    def whole(self) -> Moments:
        """The moments of all parts."""
        total = self.moments[0]
        for part in self.moments[1:]:
            total = total + part
        return total


@dataclass(frozen=True)
class VendiMap:
    """Features for the Vendi score: of the embedding in standard deviations of the real rows, Gaussian kernel.

    Attributes:
        mean, scale: (d,).
        fourier: whose bandwidth is the median distance between real rows.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    fourier: FourierMap

    @classmethod
    def of(cls, real: VectorSums) -> "VendiMap":
        """Build the map from the real set."""
        whole = real.whole
        deviation = np.sqrt(np.maximum(np.diag(whole.scatter) / max(1.0, whole.count), 0))
        scale = np.where(deviation > 1e-6 * np.abs(whole.mean), deviation, 1.0)
        few = (real.drawn().vectors[:_BANDWIDTH_ROWS].astype(np.float64) - whole.mean) / scale
        median = float(np.median(pdist(few))) if len(few) > 1 else 0.0
        bandwidth = median if median > 0 else math.sqrt(len(scale))
        return cls(whole.mean, scale, fourier_map(len(scale), bandwidth, _VENDI_FEATURES, seed=0))

    def moment(self, vectors: NDArray[np.floating]) -> SecondMoment:
        """Return the second moment of the features of rows (n, d)."""
        total = SecondMoment.empty(2 * _VENDI_FEATURES)
        for start in range(0, len(vectors), 8192):
            standard = (vectors[start : start + 8192].astype(np.float64) - self.mean) / self.scale
            total = total + SecondMoment.of(self.fourier(standard))
        return total


Family = dict[str, Estimate]
Families = dict[str, Family]


def requested_families(families: Sequence[str]) -> list[str]:
    """Return those of some families that are made of embeddings."""
    return [name for name in families if name in VECTOR_FAMILIES]


def fold_from_hash(keys: Hashes) -> NDArray[np.int8]:
    """Return folds for rows that no classifier has dealt: (n,)."""
    return (mix(keys, _FOLD_STREAM) % np.uint64(_FOLDS)).astype(np.int8)


def embedding_families(
    sums: tuple[VectorSums, VectorSums],
    moments: tuple[SecondMoment, SecondMoment] | None,
    view: int,
    wanted: Sequence[str],
) -> Families:
    """Return the wanted families' metrics of a generator.

    Args:
        sums: of the real set and the generator.
        moments: of the Vendi score's features, where that is wanted.
        view: the generator's number, for the folds of the real rows.
        wanted: names of families.
    """
    families: Families = {}
    if "frechet" in wanted:
        families["frechet"] = frechet_family(*sums)
    if "kernel" in wanted:
        families["kernel"] = kernel_family(*sums)
    if moments is not None:
        families["vendi"] = vendi_family(*moments)
    if "utility" in wanted:
        families["utility"] = utility_family(*sums, view)
    return families


def frechet_family(real: VectorSums, own: VectorSums) -> Family:
    """Return the Frechet distance, and without its bias where the moments are in parts."""
    found = {"frechet_distance": _known(frechet_distance(real.whole, own.whole), "fewer than two rows in a set")}
    if len(real.moments) > 1:
        value, error = extrapolated(real.moments, own.moments)
        found["frechet_distance_infinity"] = _symmetric(value, error, PARTS - 1, "too few rows in a part")
    else:
        found["frechet_distance_infinity"] = Estimate.none("metrics.frechet_infinity is not set")
    return found


def kernel_family(real: VectorSums, own: VectorSums) -> Family:
    """Return KID by disjoint blocks of the samples."""
    x, y = real.drawn().vectors, own.drawn().vectors
    usable = min(len(x), len(y))
    blocks = _BLOCKS[1] if usable >= _BLOCKS[1] * _BLOCK_ROWS else _BLOCKS[0]
    size = min(_BLOCK_ROWS, usable // blocks)
    if size < 2:
        return {"kid": Estimate.none(f"fewer than {2 * blocks} rows in a set")}
    cut = [slice(i * size, (i + 1) * size) for i in range(blocks)]
    value, error = kid([x[part] for part in cut], [y[part] for part in cut])
    return {"kid": _symmetric(value, error, blocks - 1, "undefined")}


def vendi_family(real: SecondMoment, own: SecondMoment) -> Family:
    """Return the Vendi score, with the real set's as the reference."""
    value = own.score()
    if not math.isfinite(value):
        return {"vendi_score": Estimate.none("no rows")}
    return {"vendi_score": Estimate(value, reason=NO_VENDI_INTERVAL, reference=real.score())}


def utility_family(real: VectorSums, own: VectorSums, view: int) -> Family:
    """Return what classifiers of labels learn from either set; ``view`` is the generator's number."""
    x, y = real.drawn(), own.drawn()
    found = utility(x.vectors, x.label, x.fold[:, view], y.vectors, y.label)
    if isinstance(found, str):
        return {name: Estimate.none(found) for name in ("utility", "accuracy_synthetic", "accuracy_real")}
    no_ratio = "a classifier that learns from real rows finds no label"
    rows = float(found.rows)
    return {
        "utility": _symmetric(found.ratio, found.ratio_error, rows - 1, no_ratio, reference=1.0),
        "accuracy_synthetic": _share(found.synthetic, found.synthetic_error, rows, found.real),
        "accuracy_real": _share(found.real, found.real_error, rows, None),
    }


def _share(value: float, error: float, rows: float, reference: float | None) -> Estimate:
    low, high = jackknife.interval(value, error, rows, is_share=True) or (None, None)
    return Estimate(value, low, high, reference=reference)


def _known(value: float, reason: str) -> Estimate:
    if not math.isfinite(value):
        return Estimate.none(reason)
    return Estimate(value, reason=NO_FRECHET_INTERVAL)


def _symmetric(
    value: float, error: float, freedom: float, reason: str, reference: float | None = None
) -> Estimate:
    """A figure with Student's interval; without one where there is no error, or none was seen."""
    if not math.isfinite(value):
        return Estimate.none(reason)
    if not math.isfinite(error) or error == 0:
        return Estimate(value, reference=reference)
    away = float(t.ppf(0.975, freedom)) * error
    return Estimate(value, value - away, value + away, reference=reference)
