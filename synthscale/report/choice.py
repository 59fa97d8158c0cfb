"""Select the rows and near-duplicate groups of a generator that the report shows.

Reads ``scores/`` and ``groups/`` as record batches; writes nothing. Each batch is reduced to what may still be
shown, so memory does not grow with the number of rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from synthscale.report.charts import BINS
from synthscale.tables.schemas import REAL, SYNTHETIC

COLUMNS = (
    "id",
    "label",
    "real_or_synthetic",
    "label_quality_score",
    "near_duplicate_id",
    "distance_to_nearest_neighbor",
    "nearest_real_id",
    "distance_to_nearest_real",
)
"""Columns of ``scores/`` that the report reads."""
_MAX_COPY_DISTANCE = 1e-12
"""Cosine distance up to which a synthetic row counts as an exact copy of a real one; allows for rounding."""
_ID = "near_duplicate_id"


@dataclass(frozen=True)
class Extreme:
    """A gallery's selection rule: the rows of one class that come first by a column.

    Attributes:
        kind: class of the rows, real or synthetic.
        column: column to sort by; rows where it is null are left out.
        order: ``ascending`` or ``descending``.
    """

    kind: str
    column: str
    order: str


EXTREMES = {
    "unrealistic": Extreme(SYNTHETIC, "label_quality_score", "descending"),
    "realistic": Extreme(SYNTHETIC, "label_quality_score", "ascending"),
    "unrepresented": Extreme(REAL, "label_quality_score", "descending"),
    "nearest": Extreme(SYNTHETIC, "distance_to_nearest_real", "ascending"),
}
"""Selection rule of each gallery, by the gallery's key."""


@dataclass
class ChosenRows:
    """Rows and counts of one generator that the report shows.

    Attributes:
        extremes: by key of `EXTREMES`, the selected rows as a table of `COLUMNS`, sorted by the gallery's rule.
        counts: by class, the histogram of the probability of being synthetic: (BINS,) int, bins from 0 to 1.
        requested: rows that were requested by id, as a table of `COLUMNS`.
        exact_copies: number of synthetic rows at distance 0 of a real one (up to rounding): exact copies.
    """

    extremes: dict[str, pa.Table] = field(default_factory=dict)
    counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    requested: pa.Table = field(default_factory=lambda: pa.table({}))
    exact_copies: int = 0


def choose_rows(batches: Iterable[pa.RecordBatch], tiles: int, requested_ids: pa.Array) -> ChosenRows:
    """Select the gallery rows, histograms and requested rows of one generator in one pass.

    Args:
        batches: the generator's partition of ``scores/``, with at least `COLUMNS`.
        tiles: maximum number of rows of each gallery.
        requested_ids: ids of further rows to return, as strings.
    """
    chosen = ChosenRows(counts={kind: np.zeros(BINS, np.int64) for kind in (REAL, SYNTHETIC)})
    requested = []
    for batch in batches:
        rows = pa.Table.from_batches([batch]).select(list(COLUMNS))
        requested.append(rows.filter(pc.is_in(rows.column("id"), requested_ids)))
        for kind in (REAL, SYNTHETIC):
            of_class = rows.filter(pc.equal(rows.column("real_or_synthetic"), kind))
            _count(of_class, kind, chosen)
            for name, extreme in EXTREMES.items():
                if extreme.kind == kind:
                    before = chosen.extremes.get(name, of_class.slice(0, 0))
                    chosen.extremes[name] = _first_rows(pa.concat_tables([before, of_class]), extreme, tiles)
    if requested:
        chosen.requested = pa.concat_tables(requested)
    return chosen


def _first_rows(rows: pa.Table, extreme: Extreme, most: int) -> pa.Table:
    known = rows.filter(rows.column(extreme.column).is_valid())
    keys = [(extreme.column, extreme.order), ("id", "ascending")]
    return known.take(pc.select_k_unstable(known, k=min(most, len(known)), sort_keys=keys))


def _count(rows: pa.Table, kind: str, chosen: ChosenRows) -> None:
    # label_quality_score is the probability of the row's own class.
    scores = rows.column("label_quality_score").drop_null().to_numpy()
    synthetic = scores if kind == SYNTHETIC else 1 - scores
    chosen.counts[kind] += np.histogram(synthetic, BINS, (0, 1))[0]
    if kind == SYNTHETIC:
        distance = rows.column("distance_to_nearest_real")
        chosen.exact_copies += pc.sum(pc.less_equal(distance, _MAX_COPY_DISTANCE)).as_py() or 0


@dataclass(frozen=True)
class ChosenGroups:
    """Near-duplicate groups of one generator that the report shows.

    Attributes:
        repeated: selected groups of synthetic rows only, as rows of ``groups/``, the largest first.
        copied: selected groups that contain both real and synthetic rows, likewise.
        totals: number of groups of each kind before the selection, by ``repeated`` and ``copied``.
    """

    repeated: list[dict[str, Any]]
    copied: list[dict[str, Any]]
    totals: dict[str, int]


def choose_groups(batches: Iterable[pa.RecordBatch], most: int) -> ChosenGroups:
    """Select at most ``most`` near-duplicate groups of each kind: the largest and the tightest.

    Args:
        batches: the generator's rows of ``groups/``, one for each member of a group.
        most: maximum number of groups of each kind.
    """
    seen: dict[str, dict[int, dict[str, Any]]] = {"repeated": {}, "copied": {}}
    totals = {"repeated": 0.0, "copied": 0.0}
    for batch in batches:
        rows = pa.Table.from_batches([batch])
        # A row that was split off alone repeats a copy, but there is no group to show.
        shown = pc.and_(rows.column("has_synthetic"), pc.greater(rows.column("size"), 1))
        synthetic = rows.filter(shown)
        for kind, has_real in (("repeated", False), ("copied", True)):
            of_kind = synthetic.filter(pc.equal(synthetic.column("has_real"), has_real))
            group_ids = of_kind.column("near_duplicate_id").to_numpy()
            _, first = np.unique(group_ids, return_index=True)
            # A group may span batches, so each member adds 1 / size to the number of groups.
            totals[kind] += float((1.0 / of_kind.column("size").to_numpy()).sum())
            for row in _largest_and_tightest(of_kind.take(pa.array(first)), most):
                seen[kind][row["near_duplicate_id"]] = row
    chosen = {}
    for kind, candidates in seen.items():
        table = pa.Table.from_pylist(list(candidates.values()))
        groups = _largest_and_tightest(table, most) if candidates else []
        chosen[kind] = sorted(groups, key=lambda row: (-row["size"], row["near_duplicate_id"]))
    return ChosenGroups(
        chosen["repeated"], chosen["copied"], {kind: round(total) for kind, total in totals.items()}
    )


def group_members(batches: Iterable[pa.RecordBatch], most: int) -> dict[int, list[dict[str, Any]]]:
    """Return up to ``most`` members of each near-duplicate group, real rows first.

    Args:
        batches: rows of ``scores/`` that are members of the groups.
        most: maximum number of rows of each group. Real rows take at most half, unless there is space left.

    Returns:
        Rows by ``near_duplicate_id``, within each class sorted by id.
    """
    by_class: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for batch in batches:
        rows = pa.Table.from_batches([batch]).sort_by([("near_duplicate_id", "ascending"), ("id", "ascending")])
        for kind in (REAL, SYNTHETIC):
            of_class = rows.filter(pc.equal(rows.column("real_or_synthetic"), kind))
            groups = of_class.column("near_duplicate_id").to_numpy()
            _, starts, sizes = np.unique(groups, return_index=True, return_counts=True)
            for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
                kept = by_class.setdefault((int(groups[start]), kind), [])
                kept += of_class.slice(start, min(size, most)).to_pylist()
                kept.sort(key=lambda row: row["id"])
                del kept[most:]
    return {
        group: _join_classes(by_class.get((group, REAL), []), by_class.get((group, SYNTHETIC), []), most)
        for group in dict.fromkeys(group for group, _ in by_class)
    }


def _join_classes(real: list[dict[str, Any]], synthetic: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Return real rows, at most half of ``most`` unless there is space left, followed by synthetic rows."""
    real = real[: max(most // 2, most - len(synthetic))]
    return real + synthetic[: most - len(real)]


def _largest_and_tightest(groups: pa.Table, most: int) -> list[dict[str, Any]]:
    """Return ``most`` groups: half of them the largest, the others those of smallest diameter among the rest."""
    largest = groups.take(_first_groups(groups, [("size", "descending")], (most + 1) // 2))
    others = groups.filter(pc.invert(pc.is_in(groups.column(_ID), largest.column(_ID).combine_chunks())))
    tightest = others.take(_first_groups(others, [("diameter", "ascending")], most - len(largest)))
    return [*largest.to_pylist(), *tightest.to_pylist()]


def _first_groups(groups: pa.Table, keys: list[tuple[str, str]], most: int) -> pa.Array:
    return pc.select_k_unstable(groups, k=min(most, len(groups)), sort_keys=[*keys, (_ID, "ascending")])
