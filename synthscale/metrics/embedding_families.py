"""Metric families computed from embeddings: Frechet distance, KID, Vendi score, utility.

Takes vectors in memory and returns `Estimate` objects by metric name; reads and writes no files.

Moments are computed over all rows and merge over shards; KID and utility use a sample of about 20,000 rows of
each set, selected by id hash. Near-duplicates matter for their errors alone: a sample of whole groups would
be empty for most draws of a generator that repeats 40 images a million times. The Vendi score needs a second pass
over the vectors, since its feature map depends on the real rows' moments.
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
"""Expected number of sampled rows of each set, for KID and utility."""
PARTS = 12
"""Number of random disjoint parts of each set, for the extrapolated Frechet distance and its jackknife error."""
_STREAM = 50_000
"""Hash stream that draws the sample and orders it."""
_PART_STREAM = 50_001
"""Hash stream that assigns rows to the random parts."""
_FOLDS, _FOLD_STREAM = 5, 50_002
"""Number of folds of `fold_from_hash`, and the hash stream that assigns them."""
_BANDWIDTH_ROWS = 1024
"""Real rows whose median pairwise distance is the Vendi kernel's bandwidth."""
_VENDI_FEATURES = 512
"""Random frequencies of the Vendi feature map; the score cannot exceed twice this number."""

NO_FRECHET_INTERVAL = "no interval for a single Frechet distance; set metrics.frechet_infinity: true to get one"
NO_KID_INTERVAL = "no interval: the rows of a set are all in one cluster of near-duplicates, or nearly so"
_NO_KID = "fewer than two rows in a set"
NO_VENDI_INTERVAL = "no interval: the score depends on all rows at once"


@dataclass(frozen=True)
class VectorRows:
    """Rows of one set (real, or one generator).

    Attributes:
        vectors: (n, d) embeddings.
        key: (n,) uint64 hashes of the ids.
        cluster: (n, G) uint64 hashes of the rows' clusters of near-duplicates in the view of each of G generators;
            for a synthetic row only its own generator's view counts.
        part_key: (n,) uint64 hash that assigns each row to a part of the moments: of a synthetic row's cluster, so
            that none is split; of a real row's id, whose clusters differ between views.
        label: n labels, None where a row has none.
        fold: (n, G) classifier fold of each real row in the view of each generator.
    """

    vectors: NDArray[np.floating]
    key: Hashes
    cluster: Hashes
    part_key: Hashes
    label: Sequence[str | None]
    fold: NDArray[np.int8]

    def take(self, chosen: NDArray[np.int64]) -> "VectorRows":
        """Return the rows at the indices ``chosen``."""
        label = [self.label[i] for i in chosen.tolist()]
        key, cluster, part_key = self.key[chosen], self.cluster[chosen], self.part_key[chosen]
        return VectorRows(self.vectors[chosen], key, cluster, part_key, label, self.fold[chosen])


@dataclass
class VectorSums:
    """Moments of a set by random part, and a sample of its rows; merge with ``+``."""

    moments: list[Moments]
    sample: VectorRows

    @classmethod
    def of(cls, rows: VectorRows, set_rows: int, parts: int) -> "VectorSums":
        """Return the sums over rows of a set of ``set_rows`` rows in total, split into ``parts`` random parts."""
        part = mix(rows.part_key, _PART_STREAM) % np.uint64(parts)
        moments = [Moments.of(rows.vectors[part == i]) for i in range(parts)]
        chosen = mix(rows.key, _STREAM) <= sampling_threshold(SAMPLE_ROWS, set_rows)
        return cls(moments, rows.take(np.flatnonzero(chosen)))

    def __add__(self, other: "VectorSums") -> "VectorSums":
        """Return the sums over both sets of rows."""
        moments = [a + b for a, b in zip(self.moments, other.moments, strict=True)]
        a, b = self.sample, other.sample
        sample = VectorRows(
            np.concatenate([a.vectors, b.vectors]),
            np.concatenate([a.key, b.key]),
            np.concatenate([a.cluster, b.cluster]),
            np.concatenate([a.part_key, b.part_key]),
            [*a.label, *b.label],
            np.concatenate([a.fold, b.fold]),
        )
        return VectorSums(moments, sample)

    def ordered_sample(self) -> VectorRows:
        """Return the sample in random order, by id hash: independent of the order of the rows."""
        return self.sample.take(np.argsort(mix(self.sample.key, _STREAM)))

    @property
    def whole(self) -> Moments:
        """Moments over all parts."""
        total = self.moments[0]
        for part in self.moments[1:]:
            total = total + part
        return total


@dataclass(frozen=True)
class VendiMap:
    """Feature map of the Vendi score: random Fourier features of a Gaussian kernel on standardised embeddings.

    Attributes:
        mean: (d,) mean of the real rows.
        scale: (d,) their standard deviation; 1 where a dimension is constant.
        fourier: features with the median distance between standardised real rows as bandwidth.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    fourier: FourierMap

    @classmethod
    def of(cls, real: VectorSums) -> "VendiMap":
        """Fit the map to the real set."""
        whole = real.whole
        deviation = np.sqrt(np.maximum(np.diag(whole.scatter) / max(1.0, whole.count), 0))
        scale = np.where(deviation > 1e-6 * np.abs(whole.mean), deviation, 1.0)
        few = (real.ordered_sample().vectors[:_BANDWIDTH_ROWS].astype(np.float64) - whole.mean) / scale
        median = float(np.median(pdist(few))) if len(few) > 1 else 0.0
        bandwidth = median if median > 0 else math.sqrt(len(scale))
        return cls(whole.mean, scale, fourier_map(len(scale), bandwidth, _VENDI_FEATURES, seed=0))

    def moment(self, vectors: NDArray[np.floating]) -> SecondMoment:
        """Return the second moment of the features of vectors (n, d), in batches of 8,192 rows."""
        total = SecondMoment.empty(2 * _VENDI_FEATURES)
        for start in range(0, len(vectors), 8192):
            standard = (vectors[start : start + 8192].astype(np.float64) - self.mean) / self.scale
            total = total + SecondMoment.of(self.fourier(standard))
        return total


Family = dict[str, Estimate]
"""Estimates by metric name."""
Families = dict[str, Family]
"""Families by name."""


def requested_families(families: Sequence[str]) -> list[str]:
    """Return the families among the configured ones that are computed from embeddings."""
    return [name for name in families if name in VECTOR_FAMILIES]


def fold_from_hash(keys: Hashes) -> NDArray[np.int8]:
    """Assign rows to folds by id hash, where no classifier could be fitted: (n,) in 0..4."""
    return (mix(keys, _FOLD_STREAM) % np.uint64(_FOLDS)).astype(np.int8)


def embedding_families(
    sums: tuple[VectorSums, VectorSums],
    moments: tuple[SecondMoment, SecondMoment] | None,
    view: int,
    wanted: Sequence[str],
) -> Families:
    """Return a generator's metrics of the requested families, by family and metric.

    Args:
        sums: sums of the real set and of the generator.
        moments: second moments of the Vendi features of both; None where the family is not requested.
        view: index of the generator, which selects the column of the rows' clusters and folds.
        wanted: names of the families.
    """
    families: Families = {}
    if "frechet" in wanted:
        families["frechet"] = frechet_family(*sums)
    if "kernel" in wanted:
        families["kernel"] = kernel_family(*sums, view)
    if moments is not None:
        families["vendi"] = vendi_family(*moments)
    if "utility" in wanted:
        families["utility"] = utility_family(*sums, view)
    return families


def frechet_family(real: VectorSums, synthetic: VectorSums) -> Family:
    """Return the Frechet distance and, if the moments are split into parts, its extrapolation (FD-infinity)."""
    metrics = {
        "frechet_distance": Estimate.without_interval(
            frechet_distance(real.whole, synthetic.whole), NO_FRECHET_INTERVAL, "fewer than two rows in a set"
        )
    }
    if len(real.moments) > 1:
        value, error = extrapolated(real.moments, synthetic.moments)
        metrics["frechet_distance_infinity"] = _with_t_interval(value, error, PARTS - 1, "too few rows in a part")
    else:
        metrics["frechet_distance_infinity"] = Estimate.undefined("metrics.frechet_infinity is not set")
    return metrics


def kernel_family(real: VectorSums, synthetic: VectorSums, view: int) -> Family:
    """Return KID over the samples, with a jackknife interval; ``view`` is the generator's index."""
    samples = [sums.ordered_sample() for sums in (real, synthetic)]
    blocks = [jackknife.jackknife_blocks(rows.cluster[:, view]) for rows in samples]
    value, deviations = kid(*((rows.vectors, block) for rows, block in zip(samples, blocks, strict=True)))
    # Blocks without a row add nothing to the variance, and nothing to what is known of it.
    freedom = min(len(np.unique(block)) for block in blocks) - 1
    if freedom < 1:
        return {"kid": Estimate.without_interval(value, NO_KID_INTERVAL, _NO_KID)}
    return {"kid": _with_t_interval(value, jackknife.standard_error(deviations), freedom, _NO_KID)}


def vendi_family(real: SecondMoment, synthetic: SecondMoment) -> Family:
    """Return the Vendi score of the generator, with that of the real set as the reference."""
    value = synthetic.score()
    if not math.isfinite(value):
        return {"vendi_score": Estimate.undefined("no rows")}
    return {"vendi_score": Estimate(value, reason=NO_VENDI_INTERVAL, reference=real.score())}


def utility_family(real: VectorSums, synthetic: VectorSums, view: int) -> Family:
    """Return the accuracies of label classifiers trained on either set; ``view`` is the generator's index."""
    x, y = real.ordered_sample(), synthetic.ordered_sample()
    result = utility(x.vectors, x.label, x.fold[:, view], y.vectors, y.label, real_cluster=x.cluster[:, view])
    if isinstance(result, str):
        return {name: Estimate.undefined(result) for name in ("utility", "accuracy_synthetic", "accuracy_real")}
    no_ratio = "the classifier trained on real rows has an accuracy of 0"
    freedom, rows = result.clusters - 1, result.effective_rows
    return {
        "utility": _with_t_interval(result.ratio, result.ratio_error, freedom, no_ratio, reference=1.0),
        "accuracy_synthetic": _share(result.synthetic, result.synthetic_error, rows, result.real),
        "accuracy_real": _share(result.real, result.real_error, rows, None),
    }


def _share(value: float, error: float, rows: float, reference: float | None) -> Estimate:
    low, high = jackknife.interval(value, error, rows) or (None, None)
    return Estimate(value, low, high, reference=reference)


def _with_t_interval(
    value: float, error: float, freedom: float, reason: str, reference: float | None = None
) -> Estimate:
    """Return an estimate with a Student t interval; without one where the error is 0 or unknown."""
    if not math.isfinite(value):
        return Estimate.undefined(reason)
    if not math.isfinite(error) or error == 0 or freedom < 1:
        return Estimate(value, reference=reference)
    margin = float(t.ppf(0.975, freedom)) * error
    return Estimate(value, value - margin, value + margin, reference=reference)
