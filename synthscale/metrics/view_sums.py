"""Sums over some rows of a generator's view: everything that its metrics are made of, mergeable over shards."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from synthscale.classify.evaluation import ClassifierSums, sum_classifier_errors
from synthscale.metrics.core import CoreSums, Indicators, sum_slices
from synthscale.metrics.evidence import DirectionSums, Evidence, sum_directions
from synthscale.metrics.scores import ViewRows, quality
from synthscale.metrics.slices import Slicing
from synthscale.statistics import bootstrap, jackknife
from synthscale.statistics.auc import RankSums, sum_ranks
from synthscale.statistics.size_matching import OUTSIDE, matched_block_codes, probability_any_drawn
from synthscale.tables.schemas import DIRECTIONS, REAL

FOLD = "(fold)"
"""Names the slices by fold, which show how stable a figure is."""


@dataclass
class ViewSums:
    """All sums of a generator's view, or of some of its rows; two of them add up.

    Attributes:
        matched: over the real rows and a subsample of the synthetic ones, of the size of the smallest generator.
        slices: by column and name of the slice.
        grouped: rows in near-duplicate groups.
        values: of the families of metrics that are made of ranks.
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
            [one + two for one, two in zip(self.direction_coordinates, other.direction_coordinates, strict=True)],
            {
                name: self.values.get(name, RankSums()) + other.values.get(name, RankSums())
                for name in dict.fromkeys([*self.values, *other.values])
            },
        )


def sum_view(view: ViewRows, scores: pa.Table, evidence: Evidence, slicings: Sequence[Slicing] = ()) -> ViewSums:
    """Sum up some rows of a view.

    Args:
        view: the rows and what is known of them.
        scores: their scores.
        evidence: what is known of them beside their scores.
        slicings: how columns of the scores cut them.
    """
    is_real = np.asarray(pc.equal(scores.column("real_or_synthetic"), REAL))
    rows = _indicators(view, scores, evidence, is_real)
    drawn = bootstrap.poisson_weights(evidence.group_key)
    ids = scores.column("id").to_pylist()
    is_copy = np.asarray(view.nearest.column("is_copy"))
    return ViewSums(
        sum_slices(rows, np.zeros(len(is_real), np.int64), 1)[0],
        _matched_sums(rows, view, evidence),
        dict(_slice_sums(rows, scores, evidence, slicings)),
        sum_classifier_errors(view.logit, is_real, drawn),
        int((is_real & ~is_copy).sum()),
        int((~is_real & ~is_copy).sum()),
        len(view.groups),
        sum_ranks(evidence.logit_file_facts, is_real, drawn),
        sum_ranks(evidence.bytes_per_pixel, is_real),
        [sum_directions(places, is_real, ids) for places in evidence.direction_coordinates.T],
        {name: sum_ranks(values, is_real) for name, values in evidence.values.items()},
    )


def _indicators(view: ViewRows, scores: pa.Table, evidence: Evidence, is_real: NDArray[np.bool_]) -> Indicators:
    groups = view.groups
    mixed = np.asarray(groups.column("has_real").fill_null(False)) if len(groups) else np.empty(0, np.bool_)
    at = np.searchsorted(view.manifest.column("row").to_numpy(), groups.column("row").to_numpy())
    in_mixed, in_synthetic = np.zeros(len(is_real), np.bool_), np.zeros(len(is_real), np.bool_)
    in_mixed[at[mixed]], in_synthetic[at[~mixed]] = True, True
    group_size = np.ones(len(is_real), np.int64)
    group_size[at] = groups.column("size").to_numpy()
    without, reassigned = evidence.logit_without, evidence.logit_reassigned
    return Indicators(
        is_real=is_real,
        q=quality(view.logit, is_real),
        q_unadjusted=quality(view.logit + evidence.log_prior, is_real),
        in_synthetic_group=in_synthetic,
        in_mixed_group=in_mixed,
        inside=np.asarray(scores.column("in_real_manifold")),
        covered=np.asarray(scores.column("covered").fill_null(False)),
        block=jackknife.jackknife_blocks(evidence.group_key),
        group_size=group_size,
        q_without=None if without is None else quality(without, is_real[:, None]),
        q_reassigned=None if reassigned is None else quality(reassigned, is_real[:, None]),
        more=evidence.fields,
    )


def _matched_sums(rows: Indicators, view: ViewRows, evidence: Evidence) -> CoreSums:
    """Sum as if the generator had no more rows than the smallest (matched.py); nothing for that itself."""
    if evidence.matched is None:
        return CoreSums()
    size, population = evidence.matched
    is_real, logits = rows.is_real, evidence.logit_matched
    code = matched_block_codes(evidence.group_key, is_real, population, size)
    unknown = np.full(len(is_real), np.nan)
    held = view.nearest.column("synthetic_in_radius").fill_null(0).to_numpy().astype(np.int64)
    repeated = probability_any_drawn(rows.group_size - 1, population - 1, size - 1)
    matched = replace(
        rows,
        q=unknown if logits is None else quality(logits[:, 0], is_real),
        q_unadjusted=unknown,
        q_without=None if logits is None else quality(logits[:, 1:], is_real[:, None]),
        q_reassigned=None,
        in_synthetic_group=rows.in_synthetic_group * repeated,
        covered=is_real * probability_any_drawn(held, population, size),
        more={},
    )
    return sum_slices(matched, np.where(code < OUTSIDE, 0, -1), 1)[0]


def _slice_sums(
    rows: Indicators, scores: pa.Table, evidence: Evidence, slicings: Sequence[Slicing]
) -> Iterator[tuple[tuple[str, str], CoreSums]]:
    parts = [(slicing.column, slicing.names, slicing.of(scores.column(slicing.column))) for slicing in slicings]
    if len(evidence.fold):
        parts.append((FOLD, tuple(map(str, range(int(evidence.fold.max()) + 1))), evidence.fold.astype(np.int64)))
    for column, names, own in parts:
        # Few of a column's values occur in these rows.
        present, place = np.unique(own, return_inverse=True)
        unnamed = int(len(present) > 0 and present[0] < 0)
        present, place = present[unnamed:], place - unnamed
        for i, sums in zip(present.tolist(), sum_slices(rows, place, len(present)), strict=True):
            yield (column, names[i]), sums
