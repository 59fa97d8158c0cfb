"""Checks of the whole input: unique ids, both classes, generator names, clashing columns, shard sizes."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from synthscale.errors import InputError
from synthscale.ingest import checks
from synthscale.ingest.checks import check_rows, rename_clashing_columns
from synthscale.ingest.stage import default_shard_rows, vector_shard_rows
from synthscale.tables.schemas import MANIFEST_COLUMNS, SCORES


def rows(ids=("a", "b"), kinds=("real", "synthetic"), generators=(None, "gan"), **user):
    columns = {
        "id": pa.array(ids, pa.string()),
        "real_or_synthetic": pa.array(kinds, pa.string()),
        "generator": pa.array(generators, pa.string()),
    }
    return pa.table(columns | user)


def refusal(table):
    with pytest.raises(InputError) as caught:
        check_rows(table)
    return str(caught.value)


def test_a_valid_set_passes():
    check_rows(rows())


def test_duplicate_ids_are_refused_by_name():
    message = refusal(
        rows(("a", "b", "a", "c", "b"), ("real", "synthetic") * 2 + ("real",), (None, "g") * 2 + (None,))
    )
    assert "a, b" in message
    assert "c" not in message.partition("duplicate ids: ")[2].partition(";")[0].split(", ")


def test_of_many_duplicate_ids_five_are_named_and_the_rest_counted():
    ids = [f"id{i}" for i in range(9)] * 2
    message = refusal(rows(ids, ["real", "synthetic"] * 9, [None, "g"] * 9))
    assert "id0" in message
    assert "id4" in message
    assert "id5" not in message
    assert "4 more" in message


@pytest.mark.parametrize("at_a_time", [1, 7, 100, 2**22])
def test_all_duplicate_ids_are_found_for_any_partition_size(monkeypatch, at_a_time):
    monkeypatch.setattr(checks, "_HASHES_PER_SORT", at_a_time)
    ids = [str(i) for i in np.random.default_rng(0).integers(0, 600, 300)]
    twice = [name for name, count in Counter(ids).items() if count > 1]
    assert sorted(checks.duplicate_ids(pa.chunked_array([ids[:99], ids[99:]]))) == sorted(twice)


def test_rows_without_an_id_are_counted():
    assert "2 rows" in refusal(rows(("a", None, None), ("real", "synthetic", "real"), (None, "g", None)))


@pytest.mark.parametrize(("kind", "other"), [("real", "synthetic"), ("synthetic", "real")])
def test_a_single_class_is_refused_naming_the_missing_one(kind, other):
    assert f"no {other} rows" in refusal(rows(kinds=(kind, kind), generators=(None, None)))


def test_no_rows_are_refused():
    assert "no rows" in refusal(rows((), (), ()))


@pytest.mark.parametrize("name", ["", " ", "..", ".", "x" * 246, "a\n", "real"])
def test_a_generator_name_that_means_nothing_is_refused(name):
    message = refusal(rows(generators=(None, name)))
    assert repr(name[:40]) in message


@pytest.mark.parametrize("name", ["a", "stable-diffusion_2.1", "x" * 64, "..."])
def test_plain_generator_names_pass(name):
    check_rows(rows(generators=(None, name)))


def test_user_columns_named_like_score_columns_get_a_prefix():
    table = rows(label_quality_score=[1.0, 2.0], predicted=["x", "y"], row=[7, 8], camera=["c", "d"])
    renamed = rename_clashing_columns(table)
    assert renamed.column("user_label_quality_score").to_pylist() == [1.0, 2.0]
    assert renamed.column("user_predicted").to_pylist() == ["x", "y"]
    assert renamed.column("user_row").to_pylist() == [7, 8]
    assert renamed.column("camera").to_pylist() == ["c", "d"]
    assert renamed.column("id").to_pylist() == ["a", "b"]
    assert not {"label_quality_score", "predicted", "row"} & set(renamed.column_names)


def test_after_renaming_no_user_column_clashes_with_scores():
    user = {name: [0, 0] for name in SCORES.names if name not in MANIFEST_COLUMNS.names}
    assert user
    renamed = rename_clashing_columns(rows(**user))
    assert not set(user) & set(renamed.column_names)


def test_a_renamed_column_does_not_clash_with_another_user_column():
    renamed = rename_clashing_columns(rows(predicted=["x", "y"], user_predicted=["p", "q"]))
    assert len(set(renamed.column_names)) == len(renamed.column_names)


@pytest.mark.parametrize("n", [1, 2, 63, 64, 402, 1797, 5000, 10**6])
def test_shards_are_neither_tiny_nor_huge(n):
    size = default_shard_rows(n)
    assert 64 <= size <= 1024
    assert size >= n / 32 or size == 1024


@pytest.mark.parametrize("n", [1, 2, 63, 64, 402, 2048, 2049, 5000, 10**5, 524_288, 10**6, 10**9])
def test_shards_of_vectors_are_larger_but_bounded(n):
    size = vector_shard_rows(n)
    assert 64 <= size <= 16384
    assert size >= n / 32 or size == 16384
    assert size >= default_shard_rows(n)
    assert vector_shard_rows(n + 1) >= size
