"""Rows that the report shows, against brute force over whole tables, for any division into batches."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from synthscale.report.charts import BINS
from synthscale.report.choice import COLUMNS, choose_groups, choose_rows, group_members
from synthscale.tables.schemas import SCORES
from tests.examples import examples

seeds = st.integers(0, 2**32 - 1)
cuts = st.lists(st.integers(0, 120), max_size=6)
NO_IDS = pa.array([], pa.string())


def pieces(table: pa.Table, places: list[int]) -> Iterator[pa.RecordBatch]:
    """Yield a table as record batches cut at the given rows; some may be empty."""
    stops = sorted(min(place, len(table)) for place in places)
    for start, stop in zip([0, *stops], [*stops, len(table)], strict=True):
        columns = [column.combine_chunks() for column in table.slice(start, stop - start).columns]
        yield pa.RecordBatch.from_arrays(columns, schema=table.schema)


def drawn_scores(seed: int, n: int = 120) -> pd.DataFrame:
    """Return random rows of scores with many ties and some nulls."""
    rng = np.random.default_rng(seed)
    few = rng.integers(1, 60)
    q = pd.Series((rng.integers(0, few, n) + 0.5) / few)
    ids = [f"é{i}" if i % 5 == 0 else f"i{i}" for i in rng.permutation(n)]
    is_real = rng.random(n) < rng.uniform()
    return pd.DataFrame(
        {
            "id": ids,
            "label": rng.choice(["a", "b"], n),
            "real_or_synthetic": np.where(is_real, "real", "synthetic"),
            "label_quality_score": q.mask(rng.random(n) < 0.2),
            "near_duplicate_id": pd.Series(rng.integers(0, 9, n)).astype("Int64").mask(rng.random(n) < 0.5),
            "distance_to_nearest_neighbor": rng.random(n),
            "nearest_real_id": rng.permutation(ids),
            "distance_to_nearest_real": pd.Series(rng.choice([0.0, 1e-13, 0.1, 0.2, 0.3], n)).mask(
                rng.random(n) < 0.1
            ),
        }
    )


def as_scores(frame: pd.DataFrame) -> pa.Table:
    schema = pa.schema([SCORES.field(name) for name in COLUMNS])
    return pa.Table.from_pandas(frame[list(COLUMNS)], schema, preserve_index=False)


BY_HAND = {
    "unrealistic": ("synthetic", "label_quality_score", False),
    "realistic": ("synthetic", "label_quality_score", True),
    "unrepresented": ("real", "label_quality_score", False),
    "nearest": ("synthetic", "distance_to_nearest_real", True),
}


@given(seeds, cuts, st.integers(0, 40))
@examples(30)
def test_extremes_are_the_first_rows_of_the_sorted_table(seed: int, places: list[int], tiles: int) -> None:
    frame = drawn_scores(seed)
    found = choose_rows(pieces(as_scores(frame), places), tiles, NO_IDS)
    assert set(found.extremes) == set(BY_HAND)
    for name, (kind, column, ascending) in BY_HAND.items():
        own = frame[frame["real_or_synthetic"] == kind].dropna(subset=column)
        expected = own.sort_values([column, "id"], ascending=[ascending, True]).head(tiles)
        assert found.extremes[name].column("id").to_pylist() == expected["id"].tolist(), name
        assert found.extremes[name].equals(as_scores(frame).take(pa.array(expected.index.to_numpy()))), name


@given(seeds, cuts)
@examples(20)
def test_histograms_are_of_the_probability_of_being_synthetic(seed: int, places: list[int]) -> None:
    frame = drawn_scores(seed)
    # Away from the edges of bins.
    frame["label_quality_score"] = (frame["label_quality_score"] * 1000).round() / 1000 + 0.0005
    found = choose_rows(pieces(as_scores(frame), places), 3, NO_IDS)
    known = frame.dropna(subset="label_quality_score")
    for kind in ("real", "synthetic"):
        own = known.loc[known["real_or_synthetic"] == kind, "label_quality_score"]
        chance = 1 - own if kind == "real" else own
        expected = chance.map(lambda p: min(int(p * BINS), BINS - 1)).value_counts().reindex(range(BINS))
        assert found.counts[kind].tolist() == expected.fillna(0).astype(int).tolist()


def test_probabilities_0_and_1_are_in_the_first_and_last_bin() -> None:
    frame = drawn_scores(0, 4)
    frame["real_or_synthetic"] = ["real", "real", "synthetic", "synthetic"]
    frame["label_quality_score"] = [1.0, 0.0, 1.0, 0.0]
    counts = choose_rows(pieces(as_scores(frame), []), 3, NO_IDS).counts
    for kind in ("real", "synthetic"):
        assert np.flatnonzero(counts[kind]).tolist() == [0, BINS - 1]
        assert counts[kind].sum() == 2


@given(seeds, cuts)
@examples(20)
def test_synthetic_rows_at_distance_0_are_counted_as_exact_copies(seed: int, places: list[int]) -> None:
    frame = drawn_scores(seed)
    expected = ((frame["real_or_synthetic"] == "synthetic") & (frame["distance_to_nearest_real"] < 1e-9)).sum()
    assert choose_rows(pieces(as_scores(frame), places), 3, NO_IDS).exact_copies == expected


@given(seeds, cuts, st.integers(0, 130))
@examples(20)
def test_requested_rows_are_returned_once_with_all_columns(seed: int, places: list[int], n: int) -> None:
    frame = drawn_scores(seed)
    asked = np.random.default_rng(seed).permutation([*frame["id"], *(f"nowhere {i}" for i in range(10))])[:n]
    found = choose_rows(pieces(as_scores(frame), places), 3, pa.array(asked.tolist(), pa.string()))
    own = np.flatnonzero(frame["id"].isin(asked))
    assert found.requested.equals(as_scores(frame).take(pa.array(own)))


def test_a_class_without_rows_has_empty_extremes() -> None:
    frame = drawn_scores(1)
    frame["real_or_synthetic"] = "synthetic"
    found = choose_rows(pieces(as_scores(frame), [50]), 5, NO_IDS)
    assert {name: len(rows) for name, rows in found.extremes.items()} == {
        "unrealistic": 5,
        "realistic": 5,
        "unrepresented": 0,
        "nearest": 5,
    }
    assert found.counts["real"].sum() == 0


def test_an_empty_table_gives_empty_results() -> None:
    found = choose_rows(pieces(as_scores(drawn_scores(0)).slice(0, 0), [0, 0]), 5, NO_IDS)
    assert all(len(rows) == 0 for rows in [*found.extremes.values(), found.requested])
    assert found.exact_copies == sum(int(own.sum()) for own in found.counts.values()) == 0


def test_no_batches_give_empty_results() -> None:
    found = choose_rows([], 5, NO_IDS)
    assert found.exact_copies == 0
    assert len(found.requested) == 0


# Groups.


def drawn_groups(seed: int) -> pa.Table:
    """Return rows of ``groups/``, shuffled so that members of a group are not adjacent."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 40))
    groups = pd.DataFrame(
        {
            "near_duplicate_id": rng.choice(1000, n, replace=False),
            "size": rng.integers(2, 6, n),
            "has_real": rng.random(n) < 0.4,
            "has_synthetic": rng.random(n) < 0.8,
            "diameter": rng.permutation(n) / n,
            "is_chain": rng.random(n) < 0.2,
        }
    )
    groups["has_synthetic"] |= ~groups["has_real"]
    lines = groups.loc[groups.index.repeat(groups["size"])]
    return pa.Table.from_pandas(lines.sample(frac=1, random_state=int(rng.integers(2**31))), preserve_index=False)


def groups_by_hand(table: pa.Table, has_real: bool, most: int) -> tuple[list[dict[str, Any]], int]:
    groups = table.to_pandas().drop_duplicates("near_duplicate_id")
    own = groups[groups["has_synthetic"] & (groups["has_real"] == has_real)]
    largest = own.sort_values(["size", "near_duplicate_id"], ascending=[False, True]).head((most + 1) // 2)
    others = own[~own["near_duplicate_id"].isin(largest["near_duplicate_id"])]
    tightest = others.sort_values(["diameter", "near_duplicate_id"]).head(most - len(largest))
    either = pd.concat([largest, tightest])
    rows = either.sort_values(["size", "near_duplicate_id"], ascending=[False, True]).to_dict("records")
    return rows, len(own)


@given(seeds, cuts, st.sampled_from([2, 4, 8]))
@examples(30)
def test_the_largest_and_the_tightest_groups_are_chosen(seed: int, places: list[int], most: int) -> None:
    table = drawn_groups(seed)
    found = choose_groups(pieces(table, places), most)
    repeated, copied = (groups_by_hand(table, has_real, most) for has_real in (False, True))
    assert found.repeated == repeated[0]
    assert found.copied == copied[0]
    assert found.totals == {"repeated": repeated[1], "copied": copied[1]}


def test_groups_of_real_rows_only_are_not_shown() -> None:
    table = drawn_groups(3)
    real = np.zeros(len(table), bool)
    table = table.set_column(table.column_names.index("has_synthetic"), "has_synthetic", pa.array(real))
    found = choose_groups(pieces(table, [3]), 8)
    assert (found.repeated, found.copied) == ([], [])
    assert found.totals == {"repeated": 0, "copied": 0}


def test_no_groups_give_empty_results() -> None:
    for batches in ([], pieces(drawn_groups(0).slice(0, 0), [0])):
        found = choose_groups(batches, 8)
        assert (found.repeated, found.copied, found.totals) == ([], [], {"repeated": 0, "copied": 0})


def test_ties_between_groups_are_broken_the_same_for_any_batches() -> None:
    n = 40
    groups = {
        "near_duplicate_id": np.arange(n),
        "size": 2 + np.arange(n) // 3,
        "has_real": np.zeros(n, bool),
        "has_synthetic": np.ones(n, bool),
        "diameter": np.zeros(n),
        "is_chain": np.zeros(n, bool),
    }
    table = pa.table(groups)
    whole = choose_groups(pieces(table, []), 8)
    for places in ([20], [7, 14, 21, 28, 35], list(range(n))):
        assert choose_groups(pieces(table, places), 8) == whole


def test_no_more_groups_than_the_limit_are_chosen() -> None:
    groups = {
        "near_duplicate_id": np.arange(20),
        "size": 2 + np.arange(20),
        "has_real": np.ones(20, bool),
        "has_synthetic": np.ones(20, bool),
        "diameter": np.arange(20) / 20,
        "is_chain": np.zeros(20, bool),
    }
    assert len(choose_groups(pieces(pa.table(groups), []), 3).copied) <= 3


# Members.


def drawn_members(seed: int, *, by_id: bool) -> pd.DataFrame:
    frame = drawn_scores(seed)
    frame["near_duplicate_id"] = np.random.default_rng(seed).integers(0, 12, len(frame)) ** 2
    return frame.sort_values("id", ignore_index=True) if by_id else frame


def members_by_hand(own: pd.DataFrame, most: int) -> list[str]:
    """Return ids of real rows, then synthetic; real rows take at most half unless there is space left."""
    ordered = own.sort_values("id")
    real = ordered.loc[ordered["real_or_synthetic"] == "real", "id"].tolist()
    synthetic = ordered.loc[ordered["real_or_synthetic"] == "synthetic", "id"].tolist()
    while len(real) + len(synthetic) > most:
        (real if not synthetic or (len(real) > most // 2) else synthetic).pop()
    return real + synthetic


@given(seeds, cuts, st.integers(2, 15))
@examples(30)
def test_members_are_real_rows_followed_by_synthetic_ones(seed: int, places: list[int], most: int) -> None:
    frame = drawn_members(seed, by_id=True)
    found = group_members(pieces(as_scores(frame), places), most)
    expected = {group: members_by_hand(own, most) for group, own in frame.groupby("near_duplicate_id")}
    assert {group: [row["id"] for row in rows] for group, rows in found.items()} == expected
    whole = {row["id"]: row for row in as_scores(frame).to_pylist()}
    assert all(row == whole[row["id"]] for rows in found.values() for row in rows)


@given(seeds, cuts)
@examples(15)
def test_members_do_not_depend_on_the_order_of_rows(seed: int, places: list[int]) -> None:
    frame = drawn_members(seed, by_id=False)
    found = group_members(pieces(as_scores(frame), places), len(frame))
    for group, own in frame.groupby("near_duplicate_id"):
        assert [row["id"] for row in found[group]] == members_by_hand(own, len(frame))


def test_members_of_unsorted_rows_are_the_same_for_any_batches() -> None:
    frame = drawn_members(0, by_id=False)
    found = [group_members(pieces(as_scores(frame), places), 3) for places in ([], [60], list(range(120)))]
    assert found[0] == found[1] == found[2]


def test_no_rows_give_no_members() -> None:
    assert group_members([], 6) == {}
    assert group_members(pieces(as_scores(drawn_scores(0)).slice(0, 0), [0]), 6) == {}
