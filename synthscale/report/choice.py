"""Which rows of a generator the report shows: ends of its scores, histograms and groups, from tables in pieces.

Memory does not grow with the rows: each piece is reduced to what may still be shown.
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
"""What is read of ``scores/``."""
_SAME = 1e-12
_ID = "near_duplicate_id"


@dataclass(frozen=True)
class End:
    """The rows of one class at an end of a column."""

    kind: str
    column: str
    order: str


ENDS = {
    "unrealistic": End(SYNTHETIC, "label_quality_score", "descending"),
    "realistic": End(SYNTHETIC, "label_quality_score", "ascending"),
    "unrepresented": End(REAL, "label_quality_score", "descending"),
    "nearest": End(SYNTHETIC, "distance_to_nearest_real", "ascending"),
}


@dataclass
class ChosenRows:
    """What is shown of a generator's rows.

    Attributes:
        ends: rows at each end, as tables of `COLUMNS`, those at the very end first.
        counts: of each class, rows by the probability of being synthetic, in BINS steps from 0 to 1.
        wanted: rows that were asked for by their ids.
        same: synthetic rows that are, byte for byte or nearly, a real one: at distance 0.
    """

    ends: dict[str, pa.Table] = field(default_factory=dict)
    counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    wanted: pa.Table = field(default_factory=lambda: pa.table({}))
    same: int = 0


def choose_rows(batches: Iterable[pa.RecordBatch], tiles: int, wanted: pa.Array) -> ChosenRows:
    """Go over the rows of one generator's scores, in pieces."""
    found = ChosenRows(counts={kind: np.zeros(BINS, np.int64) for kind in (REAL, SYNTHETIC)})
    asked = []
    for batch in batches:
        rows = pa.Table.from_batches([batch]).select(list(COLUMNS))
        asked.append(rows.filter(pc.is_in(rows.column("id"), wanted)))
        for kind in (REAL, SYNTHETIC):
            own = rows.filter(pc.equal(rows.column("real_or_synthetic"), kind))
            _count(own, kind, found)
            for name, end in ENDS.items():
                if end.kind == kind:
                    before = found.ends.get(name, own.slice(0, 0))
                    found.ends[name] = _first(pa.concat_tables([before, own]), end, tiles)
    if asked:
        found.wanted = pa.concat_tables(asked)
    return found


def _first(rows: pa.Table, end: End, most: int) -> pa.Table:
    known = rows.filter(rows.column(end.column).is_valid())
    keys = [(end.column, end.order), ("id", "ascending")]
    return known.take(pc.select_k_unstable(known, k=min(most, len(known)), sort_keys=keys))


def _count(rows: pa.Table, kind: str, found: ChosenRows) -> None:
    # The score is the probability of the row's own class.
    own = rows.column("label_quality_score").drop_null().to_numpy()
    synthetic = own if kind == SYNTHETIC else 1 - own
    found.counts[kind] += np.histogram(synthetic, BINS, (0, 1))[0]
    if kind == SYNTHETIC:
        distance = rows.column("distance_to_nearest_real")
        found.same += pc.sum(pc.less_equal(distance, _SAME)).as_py() or 0


@dataclass(frozen=True)
class ChosenGroups:
    """Groups that are shown, the largest first, and how many there are: of synthetic rows only, and with real."""

    repeated: list[dict[str, Any]]
    copied: list[dict[str, Any]]
    totals: dict[str, int]


def choose_groups(batches: Iterable[pa.RecordBatch], most: int) -> ChosenGroups:
    """Choose near-duplicate groups from pieces of ``groups/``: the largest and the tightest of each kind."""
    seen: dict[str, dict[int, dict[str, Any]]] = {"repeated": {}, "copied": {}}
    totals = {"repeated": 0.0, "copied": 0.0}
    for batch in batches:
        rows = pa.Table.from_batches([batch])
        synthetic = rows.filter(rows.column("has_synthetic"))
        for kind, has_real in (("repeated", False), ("copied", True)):
            own = synthetic.filter(pc.equal(synthetic.column("has_real"), has_real))
            group_ids = own.column("near_duplicate_id").to_numpy()
            _, first = np.unique(group_ids, return_index=True)
            # Each member of a group counts for its share of it.
            totals[kind] += float((1.0 / own.column("size").to_numpy()).sum())
            for row in _largest_and_tightest(own.take(pa.array(first)), most):
                seen[kind][row["near_duplicate_id"]] = row
    chosen = {}
    for kind, own in seen.items():
        table = pa.Table.from_pylist(list(own.values()))
        rows_found = _largest_and_tightest(table, most) if own else []
        chosen[kind] = sorted(rows_found, key=lambda row: (-row["size"], row["near_duplicate_id"]))
    return ChosenGroups(chosen["repeated"], chosen["copied"], {kind: round(own) for kind, own in totals.items()})


def members(batches: Iterable[pa.RecordBatch], most: int) -> dict[int, list[dict[str, Any]]]:
    """Return up to ``most`` rows of each group, those of real images first, so that copies stand beside them."""
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for batch in batches:
        rows = pa.Table.from_batches([batch]).sort_by([("near_duplicate_id", "ascending"), ("id", "ascending")])
        for kind in (REAL, SYNTHETIC):
            own = rows.filter(pc.equal(rows.column("real_or_synthetic"), kind))
            groups = own.column("near_duplicate_id").to_numpy()
            _, starts, sizes = np.unique(groups, return_index=True, return_counts=True)
            for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
                members = found.setdefault((int(groups[start]), kind), [])
                members += own.slice(start, min(size, most)).to_pylist()
                members.sort(key=lambda row: row["id"])
                del members[most:]
    return {
        group: _both(found.get((group, REAL), []), found.get((group, SYNTHETIC), []), most)
        for group in dict.fromkeys(group for group, _ in found)
    }


def _both(real: list[dict[str, Any]], synthetic: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Keep rows of either class: no more real ones than half, unless there is room."""
    real = real[: max(most // 2, most - len(synthetic))]
    return real + synthetic[: most - len(real)]


def _largest_and_tightest(groups: pa.Table, most: int) -> list[dict[str, Any]]:
    """Return ``most`` groups: the largest, and of the others the tightest."""
    largest = groups.take(_first_of(groups, [("size", "descending")], (most + 1) // 2))
    others = groups.filter(pc.invert(pc.is_in(groups.column(_ID), largest.column(_ID).combine_chunks())))
    tightest = others.take(_first_of(others, [("diameter", "ascending")], most - len(largest)))
    return [*largest.to_pylist(), *tightest.to_pylist()]


def _first_of(groups: pa.Table, keys: list[tuple[str, str]], most: int) -> pa.Array:
    return pc.select_k_unstable(groups, k=min(most, len(groups)), sort_keys=[*keys, (_ID, "ascending")])
