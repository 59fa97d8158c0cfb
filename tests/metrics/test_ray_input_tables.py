"""Values of user columns keep their types on the way through Ray's tables."""

import datetime
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from synthscale.config import Config
from synthscale.metrics.ray_input_tables import _over_manifest, _values, slicings
from synthscale.metrics.slices import counter_of
from synthscale.runtime.stage_context import StageContext
from synthscale.storage.run_directory import Marker, RunDirectory
from synthscale.tables.layout import shards_of

COLUMNS: dict[str, list[Any]] = {
    "whole": [1, 2**53 + 1, -7, None, 1, 1],
    "float": [0.5, float("nan"), -0.0, 0.0, None, float("inf")],
    "flag": [True, False, None, True, True, True],
    "moment": [
        datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC),
        None,
        *[datetime.datetime(2026, 2, 1, tzinfo=datetime.UTC)] * 4,
    ],
    "day": [datetime.date(2026, 1, 31), datetime.date(2026, 2, 1), None, None, None, None],
    "price": [Decimal("1.50"), Decimal("1.50"), None, Decimal("2.00"), None, None],
    "text": ["a, b", "", "None", None, "1", "\u00e9"],
    "shard": ["one", "one", "two", "two", None, "one"],
    "nothing": [None] * 6,
}
"""Columns of six rows; one is named as a column that Ray's tables have."""


@pytest.fixture
def context(local_ray: None, tmp_path: Path) -> StageContext:
    """A run directory with a manifest of three shards."""
    config = Config(output=str(tmp_path / "run"), metrics={"slice_by": tuple(COLUMNS)})
    run = RunDirectory(str(tmp_path / "run"), config.storage)
    columns = {name: pa.array(values) for name, values in COLUMNS.items()}
    columns["label"] = pa.array(["cat", "dog", "cat", None, "dog", "cat"]).dictionary_encode()
    shards = shards_of([2, 4, 6])
    for shard in shards:
        part = pa.table({name: column.slice(shard.start, shard.rows) for name, column in columns.items()})
        run.write_shard("manifest", shard, part, pa.schema(part.schema))
    run.write_marker(Marker("ingest", True, {}, {}, {"shard_stops": [2, 4, 6], "generators": ["fake"]}))
    return StageContext(config, run)


def test_counts_of_values_of_any_type_arrive_as_they_were(context: StageContext) -> None:
    rows = list(_over_manifest(context, list(COLUMNS), _values))
    assert [row["shard"] for row in rows] == [0, 1, 2]
    for i, (name, values) in enumerate(COLUMNS.items()):
        total: Counter[Any] = Counter()
        for row in rows:
            total += counter_of(row[f"column_{i}"].values)
        # A number that is not one is left out, as null is.
        expected = Counter(value for value in values if value is not None and value == value)
        assert total == expected, name
        assert {type(value) for value in total} == {type(value) for value in expected}, name


def test_slices_by_value_find_their_rows_again(context: StageContext) -> None:
    by_column = {slicing.column: slicing for slicing in slicings(context)}
    assert list(by_column) == ["label", *COLUMNS]
    assert by_column["label"].values == ("cat", "dog")
    for name, values in COLUMNS.items():
        found = by_column[name].of(pa.array(values)).tolist()
        names = [None if at < 0 else by_column[name].names[at] for at in found]
        assert [text is None for text in names] == [value is None or value != value for value in values], name
