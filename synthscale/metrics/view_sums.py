"""Sums over rows of a generator's view from which all its metrics are computed, mergeable over shards.

Takes scores and evidence in memory and returns `ViewSums`; reads and writes no files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from synthscale.classify.evaluation import ClassifierSums, sum_classifier_errors
from synthscale.metrics.core import CoreSums, Indicators, sum_slices
from synthscale.metrics.evidence import DirectionSums, RowEvidence, sum_directions
from synthscale.metrics.scores import ViewRows, quality
from synthscale.metrics.slices import Slicing
from synthscale.statistics import bootstrap, jackknife
from synthscale.statistics.auc import RankSums, sum_ranks
from synthscale.statistics.size_matching import block_codes, is_outside, probability_any_drawn
from synthscale.tables.schemas import DIRECTIONS, REAL

FOLD = "(fold)"
"""Pseudo-column whose slices are the folds of the classifier, for the stability family."""


@dataclass
class ViewSums:
    """All sums over rows of a generator's view; merge with ``+``.

    Attributes:
        overall: core sums over all rows.
        matched: core sums over the real rows and a subsample of the synthetic ones, of the smallest generator's
            size; zeros for the smallest generator.
        slices: core sums by column and name of the slice.
        classifier: sums for AUC, accuracy, log-loss and calibration.
        distinct_real: real rows that are not exact copies of another.
        distinct_synthetic: synthetic rows that are not exact copies of another.
        grouped: rows in near-duplicate groups.
        file_facts: histograms of the logits of the classifier of file metadata.
        bytes_per_pixel: histograms of bytes per pixel.
        direction_coordinates: sums along each separating direction.
        values: histograms of per-row values for the copying and facts families, by name.
    """

    overall: CoreSums = field(default_factory=CoreSums)
    matched: CoreSums = field(default_factory=CoreSums)
    slices: dict[tuple[str, str], CoreSums] = field(default_factory=dict)
    classifier: ClassifierSums = field(default_factory=ClassifierSums)
    distinct_real: int = 0
    distinct_synthetic: int = 0
    grouped: int = 0
    file_facts: RankSums = field(default_factory=RankSums)
    bytes_per_pixel: RankSums = field(default_factory=RankSums)
    direction_coordinates: list[DirectionSums] = field(
        default_factory=lambda: [DirectionSums() for _ in range(DIRECTIONS)]
    )
    values: dict[str, RankSums] = field(default_factory=dict)

    def __add__(self, other: "ViewSums") -> "ViewSums":
        """Return the sums over both sets of rows."""
        names = dict.fromkeys([*self.slices, *other.slices])
        return ViewSums(
            self.overall + other.overall,
            self.matched + other.matched,
            {name: self.slices.get(name, CoreSums()) + other.slices.get(name, CoreSums()) for name in names},
            self.classifier + other.classifier,
            self.distinct_real + other.distinct_real,
            self.distinct_synthetic + other.distinct_synthetic,
            self.grouped + other.grouped,
            self.file_facts + other.file_facts,
            self.bytes_per_pixel + other.bytes_per_pixel,
            [a + b for a, b in zip(self.direction_coordinates, other.direction_coordinates, strict=True)],
            {
                name: self.values.get(name, RankSums()) + other.values.get(name, RankSums())
                for name in dict.fromkeys([*self.values, *other.values])
            },
        )


def sum_view(
    view: ViewRows, scores: pa.Table, evidence: RowEvidence, slicings: Sequence[Slicing] = ()
) -> ViewSums:
    """Return the sums over rows of a view.

    Args:
        view: n rows of the view.
        scores: n rows of ``scores/``.
        evidence: further per-row values.
        slicings: divisions of the rows by columns of ``scores``.
    """
    is_real = np.asarray(pc.equal(scores.column("real_or_synthetic"), REAL))
    rows = _indicators(view, scores, evidence, is_real)
    weights = bootstrap.poisson_weights(evidence.hashes.cluster)
    ids = scores.column("id").to_pylist()
    is_copy = np.asarray(view.nearest.column("is_copy"))
    return ViewSums(
        sum_slices(rows, np.zeros(len(is_real), np.int64), 1)[0],
        _matched_sums(rows, view, evidence),
        dict(_slice_sums(rows, scores, evidence, slicings)),
        sum_classifier_errors(view.logit, is_real, weights, rows.cluster_rows),
        int((is_real & ~is_copy).sum()),
        int((~is_real & ~is_copy).sum()),
        len(view.groups),
        # Files are independent however their pictures resemble each other; exact copies of a file are one file.
        sum_ranks(
            np.where(is_copy, np.nan, evidence.logit_file_facts),
            is_real,
            bootstrap.poisson_weights(evidence.hashes.key),
        ),
        sum_ranks(evidence.bytes_per_pixel, is_real),
        [sum_directions(coordinates, is_real, ids) for coordinates in evidence.direction_coordinates.T],
        {name: sum_ranks(values, is_real) for name, values in evidence.values.items()},
    )


def _indicators(view: ViewRows, scores: pa.Table, evidence: RowEvidence, is_real: NDArray[np.bool_]) -> Indicators:
    """Return the per-row inputs of the core metrics."""
    groups = view.groups
    mixed = np.asarray(groups.column("has_real").fill_null(False)) if len(groups) else np.empty(0, np.bool_)
    at = np.searchsorted(view.manifest.column("row").to_numpy(), groups.column("row").to_numpy())
    in_mixed, in_synthetic = np.zeros(len(is_real), np.bool_), np.zeros(len(is_real), np.bool_)
    in_mixed[at[mixed]], in_synthetic[at[~mixed]] = True, True
    cluster_rows, component_rows = np.ones(len(is_real), np.int64), np.ones(len(is_real), np.int64)
    cluster_rows[at] = groups.column("cluster_rows").to_numpy()
    component_rows[at] = groups.column("component_rows").to_numpy()
    near_real = np.zeros(len(is_real), np.bool_)
    near_real[at] = np.asarray(groups.column("near_real"))
    repeats, components = _in_a_set_of(component_rows, near_real, evidence.sizes[0], evidence.sizes[1])
    without, reassigned = evidence.logit_without, evidence.logit_reassigned
    return Indicators(
        is_real=is_real,
        q=quality(view.logit, is_real),
        q_unadjusted=quality(view.logit + evidence.log_prior, is_real),
        in_synthetic_group=in_synthetic,
        in_mixed_group=in_mixed,
        near_real=near_real,
        components=1 / component_rows,
        real_repeats=repeats,
        real_components=components,
        inside=np.asarray(scores.column("in_real_manifold")),
        covered=np.asarray(scores.column("covered").fill_null(False)),
        block=jackknife.jackknife_blocks(evidence.hashes.cluster),
        cluster_rows=cluster_rows.astype(np.float64),
        q_without=None if without is None else quality(without, is_real[:, None]),
        q_reassigned=None if reassigned is None else quality(reassigned, is_real[:, None]),
        more=evidence.fields,
    )


def _in_a_set_of(
    component_rows: NDArray[np.int64], near_real: NDArray[np.bool_], real: int, size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what real rows contribute to the references of diversity and unique_share: (n,) each.

    Args:
        component_rows: (n,) number of real rows in each real row's component.
        near_real: (n,) whether each row is a near-duplicate of another real row.
        real: number of real rows.
        size: number of the generator's rows.

    Returns:
        The probability that the row has a repeat, and the expected number of components over the row's component,
        in a random subset of as many real rows as the generator has, or all of them if they are fewer.
    """
    drawn = min(real, size)
    if drawn < 1:
        return np.zeros(len(near_real)), 1 / component_rows
    # A row that only synthetic rows connect with other real ones is alone among real rows.
    rows = np.where(near_real, component_rows, 1)
    repeats = probability_any_drawn(rows - 1, real - 1, drawn - 1)
    return repeats, _share_kept(rows, real, drawn) / rows


def _share_kept(rows: NDArray[np.int64], population: int, drawn: int) -> NDArray[np.float64]:
    """Return, for parts of c rows, the probability that a sample has one of them over that of a single row: (n,).

    So 1 / c times this number, summed over the rows of a sample, is the expected number of parts in it.
    """
    # A single row has exactly 1, and c rows at most c, despite rounding: shares of 1 must not exceed it.
    kept = probability_any_drawn(rows, population, drawn) * population / drawn
    return np.where(rows == 1, 1.0, np.minimum(kept, rows))


def _matched_sums(rows: Indicators, view: ViewRows, evidence: RowEvidence) -> CoreSums:
    """Return the core sums over the matched subsample; zeros for the smallest generator.

    Whether a row has a near-duplicate, or is covered, depends on which other synthetic rows are in the subsample.
    Both flags are replaced by their expectation over subsamples (``statistics/size_matching.py``).
    """
    if evidence.matched_size is None:
        return CoreSums()
    size, (real, population) = evidence.matched_size, evidence.sizes
    is_real, logits = rows.is_real, evidence.logit_matched
    code = block_codes(evidence.hashes, is_real, population, size)
    unknown = np.full(len(is_real), np.nan)
    in_radius = view.nearest.column("synthetic_in_radius").fill_null(0).to_numpy().astype(np.int64)
    component_rows = np.rint(1 / rows.components).astype(np.int64)
    kept = _share_kept(rows.cluster_rows.astype(np.int64), population, size)
    repeat_probability = probability_any_drawn(np.maximum(component_rows - 1, 1), population - 1, size - 1)
    expected = _share_kept(component_rows, population, size)
    repeats, components = _in_a_set_of(component_rows, rows.near_real, real, size)
    matched = replace(
        rows,
        q=unknown if logits is None else quality(logits[:, 0], is_real),
        q_unadjusted=unknown,
        q_without=None if logits is None else quality(logits[:, 1:], is_real[:, None]),
        q_reassigned=None,
        in_synthetic_group=rows.in_synthetic_group * repeat_probability,
        components=rows.components * expected,
        cluster_rows=rows.cluster_rows / np.where(is_real, 1, kept),
        real_repeats=repeats,
        real_components=components,
        covered=is_real * probability_any_drawn(in_radius, population, size),
        more={},
    )
    return sum_slices(matched, np.where(is_outside(code), -1, 0), 1)[0]


def _slice_sums(
    rows: Indicators, scores: pa.Table, evidence: RowEvidence, slicings: Sequence[Slicing]
) -> Iterator[tuple[tuple[str, str], CoreSums]]:
    """Yield the core sums of each slice that occurs in the rows, keyed by column and name of the slice."""
    parts = [(slicing.column, slicing.names, slicing.of(scores.column(slicing.column))) for slicing in slicings]
    if len(evidence.fold):
        parts.append((FOLD, tuple(map(str, range(int(evidence.fold.max()) + 1))), evidence.fold.astype(np.int64)))
    for column, names, slice_index in parts:
        # A shard has few of a column's slices, so only those present are summed.
        present, position = np.unique(slice_index, return_inverse=True)
        has_unsliced = int(len(present) > 0 and present[0] < 0)
        present, position = present[has_unsliced:], position - has_unsliced
        for i, sums in zip(present.tolist(), sum_slices(rows, position, len(present)), strict=True):
            yield (column, names[i]), sums
