"""`conform`, the cast that every written table goes through, and the columns of the schemas."""

import numpy as np
import pyarrow as pa
import pytest

from synthscale.errors import SchemaError
from synthscale.tables import schemas
from synthscale.tables.faults import Reason
from synthscale.tables.layout import Shard
from synthscale.tables.schemas import MANIFEST_COLUMNS, SCORES, conform, embeddings_schema

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("name", pa.dictionary(pa.int32(), pa.string())),
        ("x", pa.float32()),
        ("ok", pa.bool_()),
    ]
)


def loose(**change):
    columns = {
        "extra": [[1], [2]],
        "ok": [True, None],
        "x": pa.array([1, 2], pa.int32()),
        "name": pa.array(["a", "a"], pa.large_string()),
        "row": pa.array([0, 1], pa.int16()),
    }
    return pa.table(columns | change)


def test_columns_are_cast_and_put_into_the_order_of_the_schema():
    table = conform(loose(), SCHEMA, "things")
    assert table.schema.names == ["row", "name", "x", "ok", "extra"]
    assert pa.schema(list(table.schema)[:4]) == SCHEMA
    assert table.column("x").to_pylist() == [1.0, 2.0]
    assert table.column("name").to_pylist() == ["a", "a"]


def test_other_columns_follow_with_their_own_types():
    table = conform(loose(more=pa.array([1, 2], pa.uint8())), SCHEMA, "things")
    assert table.schema.names[4:] == ["extra", "more"]
    assert table.schema.field("more").type == pa.uint8()
    assert table.column("extra").to_pylist() == [[1], [2]]


def test_the_error_names_all_missing_columns():
    with pytest.raises(SchemaError, match=r"things: .*name, ok"):
        conform(loose().drop_columns(["name", "ok"]), SCHEMA, "things")


@pytest.mark.parametrize(
    ("column", "values"), [("row", ["1", "x"]), ("row", [0.5, 1.0]), ("x", [[1.0], [2.0]]), ("ok", ["yes", "no"])]
)
def test_the_error_names_the_column_that_cannot_be_cast(column, values):
    with pytest.raises(SchemaError, match=f"things: column {column}"):
        conform(loose(**{column: values}), SCHEMA, "things")


def test_a_null_in_a_column_that_is_not_nullable_is_an_error():
    schema = pa.schema([pa.field("id", pa.string(), nullable=False)])
    with pytest.raises(SchemaError, match="id"):
        conform(pa.table({"id": ["a", None]}), schema, "manifest")


def test_an_empty_table_conforms():
    empty = pa.table({name: pa.array([], pa.null()) for name in SCHEMA.names})
    assert conform(empty, SCHEMA, "things").schema == SCHEMA


def test_a_table_in_chunks_conforms():
    pieces = pa.concat_tables([loose(), loose()])
    assert conform(pieces, SCHEMA, "things").num_rows == 4


def test_vectors_are_cast_to_fixed_size_lists():
    schema = embeddings_schema(3)
    values = pa.array(np.ones((2, 3), np.float64).tolist(), pa.list_(pa.float64()))
    blank = {name: pa.nulls(2) for name in schema.names}
    table = conform(pa.table(blank | {"row": [0, 1], "vector": values}), schema, "embeddings")
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 3)
    bad = pa.array([[1.0, 2.0], [1.0, 2.0, 3.0]])
    with pytest.raises(SchemaError, match="vector"):
        conform(pa.table(blank | {"row": [0, 1], "vector": bad}), schema, "embeddings")


def test_embeddings_are_float32_by_default_or_float16():
    schema = embeddings_schema(3, pa.float16())
    assert schema.field("vector").type == pa.list_(pa.float16(), 3)
    assert embeddings_schema(3).field("vector").type == pa.list_(pa.float32(), 3)
    assert [f for f in schema if f.name != "vector"] == [f for f in embeddings_schema(3) if f.name != "vector"]
    values = np.array([1.5, -0.0, 65504, 6e-8, np.inf, 0.1], np.float16)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values), 3)
    blank = {name: pa.nulls(2) for name in schema.names}
    table = conform(pa.table(blank | {"row": [0, 1], "vector": vectors}), schema, "embeddings")
    stored = table.column("vector").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    assert stored.dtype == np.float16
    assert stored.tobytes() == values.tobytes()


def test_scores_have_the_documented_columns():
    assert SCORES.names == [
        "id",
        "image_filename",
        "uri",
        "label",
        "real_or_synthetic",
        "label_quality_score",
        "label_issue_score",
        "predicted",
        "is_label_issue",
        "is_near_duplicate",
        "near_duplicate_id",
        "near_duplicate_score",
        "distance_to_nearest_neighbor",
        "nearest_real_id",
        "distance_to_nearest_real",
        "in_real_manifold",
        "covered",
    ]


def test_other_tables_have_the_documented_columns():
    promised = {"row", "id", "uri", "real_or_synthetic", "label", "generator", "size_bytes", "etag"}
    assert promised <= set(MANIFEST_COLUMNS.names)
    assert schemas.FAILURES.names == ["row", "id", "uri", "reason", "detail"]
    assert schemas.NEIGHBORS.names == ["left", "right", "distance", "kind"]
    assert schemas.GROUPS.names == [
        "generator",
        "row",
        "near_duplicate_id",
        "size",
        "has_real",
        "has_synthetic",
        "diameter",
        "is_chain",
        "near_real",
        "component_id",
        "component_rows",
        "cluster_id",
        "cluster_rows",
    ]
    assert {"manifold_real_row", "manifold_real_distance", "distinct_real_distance"} <= set(schemas.NEAREST.names)
    assert schemas.PREDICTIONS.names[:4] == ["generator", "row", "fold", "logit_synthetic"]
    assert set(schemas.PREDICTIONS.names[4:]) == {
        "logit_deviation",
        "logit_file_facts",
        "direction_coordinates",
        "logit_without",
        "logit_matched",
        "logit_reassigned",
    }


def test_predictions_with_null_columns_conform():
    # One repeat, vectors instead of files, and a classifier with a single direction.
    coordinates = pa.array([[0.5, None, None], [-0.25, None, None]])
    # The first row has no refits; the second is in the last block.
    without = pa.array([None, [0.5] * 19 + [None]], pa.list_(pa.float16(), 20))
    matched = pa.array([None, [0.5] * 20 + [None]], pa.list_(pa.float16(), 21))
    lines = pa.table(
        {
            "generator": ["gan", "gan"],
            "row": [0, 1],
            "fold": pa.array([4, 0], pa.int64()),
            "logit_synthetic": [0.1, -2.5],
            "logit_deviation": pa.nulls(2),
            "logit_file_facts": pa.nulls(2),
            "direction_coordinates": coordinates,
            "logit_without": without,
            "logit_matched": matched,
            "logit_reassigned": pa.nulls(2, pa.list_(pa.float16(), 5)),
        }
    )
    table = conform(lines, schemas.PREDICTIONS, "predictions")
    assert table.schema == schemas.PREDICTIONS
    assert table.column("direction_coordinates").to_pylist() == coordinates.to_pylist()
    assert table.column("logit_without").to_pylist() == without.to_pylist()
    assert table.column("logit_matched").to_pylist() == matched.to_pylist()
    assert table.column("logit_deviation").null_count == 2
    with pytest.raises(SchemaError, match="predictions: column fold"):
        conform(lines.set_column(2, "fold", pa.array([128, 0])), schemas.PREDICTIONS, "predictions")
    with pytest.raises(SchemaError, match="predictions: column direction_coordinates"):
        conform(
            lines.set_column(6, "direction_coordinates", pa.array([[0.5], [0.1]])),
            schemas.PREDICTIONS,
            "predictions",
        )


def test_folds_have_a_fold_per_repeat_and_hashes_up_to_the_largest_uint64():
    assert schemas.FOLDS.names[:3] == ["generator", "row", "fold"]
    assert {"is_real", "is_copy", "key", "group_key", "cluster_key", "log_prior"} == set(schemas.FOLDS.names[3:])
    largest = 2**64 - 1
    lines = pa.table(
        {
            "generator": ["gan", "gan"],
            "row": [0, 1],
            "fold": [[0, 4, 1], None],
            "is_real": [True, False],
            "is_copy": [False, True],
            "key": pa.array([largest, 0], pa.uint64()),
            "group_key": pa.array([largest, 1], pa.uint64()),
            "cluster_key": pa.array([largest, 2], pa.uint64()),
            "log_prior": [0.0, -0.5],
        }
    )
    table = conform(lines, schemas.FOLDS, "folds")
    assert table.column("key").to_pylist() == [largest, 0]
    assert table.column("cluster_key").to_pylist() == [largest, 2]
    assert table.column("fold").to_pylist() == [[0, 4, 1], None]


def test_file_names_of_shards_sort_by_row():
    names = [Shard(i, i, i + 1).name for i in (0, 9, 10, 99, 100, 99999)]
    assert names == sorted(names)
    assert len(set(names)) == 6


def test_reasons_are_words_joined_by_underscores():
    assert {str(reason) for reason in Reason} >= {"not_found", "truncated", "too_large", "zero_vector"}
    assert all(str(reason).replace("_", "").isalpha() for reason in Reason)
