"""The tables that cross stages: Arrow schemas, the words used in them, and the cast that each write goes through.

Every table is cut by the same row ranges (shards), so that shard i of one aligns with shard i of every other.
"""

import pyarrow as pa

from synthscale.errors import SchemaError

REAL, SYNTHETIC = "real", "synthetic"
CONTROL = "control"
"""The generator that a held-out half of the real set stands as."""

BLOCKS = 20


REASSIGNMENTS = 5
"""Other deals of the blocks to folds, which show how far a figure hinges on the deal."""

_NAME = pa.dictionary(pa.int32(), pa.string())
DIRECTIONS = 3
"""Separating directions that a run keeps for each generator."""

NEAREST_REAL, DISTINCT_REAL = "nearest_real_distance", "distinct_real_distance"
"""Columns of ``nearest/``: the distance to the nearest (other) real row, and, of real rows, to one that is no
copy."""

MANIFEST_COLUMNS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("uri", pa.string()),  # null for precomputed vectors
        pa.field("real_or_synthetic", _NAME, nullable=False),
        pa.field("label", pa.string()),
        pa.field("generator", _NAME),  # null for real rows
        pa.field("image_filename", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("etag", pa.string()),
    ]
)
"""The columns that every manifest has; the user's own columns follow them."""

FAILURES = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("uri", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)

NEIGHBORS = pa.schema(
    [("left", pa.int64()), ("right", pa.int64()), ("cosine_distance", pa.float32()), ("kind", _NAME)]
)

NEAREST = pa.schema(
    [
        ("generator", _NAME),
        ("row", pa.int64()),
        ("nn_row", pa.int64()),
        ("nn_distance", pa.float32()),
        ("nearest_real_row", pa.int64()),
        (NEAREST_REAL, pa.float32()),
        (DISTINCT_REAL, pa.float32()),
        ("knn_radius", pa.float32()),
        ("in_real_manifold", pa.bool_()),
        ("covered", pa.bool_()),
        ("is_copy", pa.bool_()),
        ("exact", pa.bool_()),
        ("synthetic_in_radius", pa.int32()),
        ("real_radii_containing", pa.int32()),
        ("in_synthetic_manifold", pa.bool_()),
    ]
)
"""Per generator and row: nearest neighbours in that generator's view, and the k-NN indicators.

``in_real_manifold``: inside the k-NN radius of some (other) real row; ``covered``: a real row whose radius holds
a synthetic row, null for synthetic rows; ``is_copy``: an exact copy of a row of its own set
that has a smaller id. ``held``: how many synthetic rows a real row's radius holds, for generators that
are larger than the smallest. Where the family ``manifold`` is asked for: ``real_balls``, of synthetic rows, how
many distinct real rows' radii hold them, and ``in_synthetic_manifold``, of real rows, whether some synthetic
row's holds them.
"""

GROUPS = pa.schema(
    [
        ("generator", _NAME),
        ("row", pa.int64()),
        ("near_duplicate_id", pa.int64()),
        ("size", pa.int64()),
        ("has_real", pa.bool_()),
        ("has_synthetic", pa.bool_()),
        ("diameter", pa.float64()),
        ("is_chain", pa.bool_()),
    ]
)

FOLDS = pa.schema(
    [
        ("generator", _NAME),
        ("row", pa.int64()),
        ("fold", pa.list_(pa.int8())),
        ("is_real", pa.bool_()),
        ("is_copy", pa.bool_()),
        ("key", pa.uint64()),
        ("group_key", pa.uint64()),
        ("log_prior", pa.float64()),
    ]
)
"""``classifier/``: each row per generator: its fold in each deal (none where no classifier can be fitted).

``key`` and ``group_key`` stand for its id and its near-duplicate group (keys.py); ``log_prior`` is the log of
synthetic over real rows that its heads are trained on.
"""

PREDICTIONS = pa.schema(
    [
        ("generator", _NAME),
        ("row", pa.int64()),
        ("fold", pa.int8()),
        ("logit_synthetic", pa.float32()),
        ("logit_deviation", pa.float32()),
        ("logit_file_facts", pa.float32()),
        ("direction_coordinates", pa.list_(pa.float32(), DIRECTIONS)),
        ("logit_without", pa.list_(pa.float16(), BLOCKS)),
        ("logit_matched", pa.list_(pa.float16(), 1 + BLOCKS)),
        ("logit_reassigned", pa.list_(pa.float16(), REASSIGNMENTS)),
    ]
)
"""Out of fold, per generator and row: the fold (of the first deal), the balanced logit (mean over deals) with its
standard deviation over deals (null for one deal), the logit of a classifier that sees the file's facts alone (null
for vectors), and the row's places along the directions that separate the sets most (directions.py).
``logit_without`` is the first deal's logit from heads that were fitted without each block of the jackknife
(refits.py): null in the row's own block, and for ``mlp``. ``logit_matched`` are those of heads that saw the
matched subsample of a larger generator alone (matched.py), and that without each block; null outside of it.
``logit_reassigned`` are those under other fold assignments.
"""

SCORES = pa.schema(
    [
        ("id", pa.string()),
        ("image_filename", pa.string()),
        ("uri", pa.string()),
        ("label", pa.string()),
        ("real_or_synthetic", pa.string()),
        ("label_quality_score", pa.float64()),
        ("label_issue_score", pa.float64()),
        ("predicted", pa.string()),
        ("is_label_issue", pa.bool_()),
        ("is_near_duplicate", pa.bool_()),
        ("near_duplicate_id", pa.int64()),
        ("near_duplicate_score", pa.float64()),
        ("distance_to_nearest_neighbor", pa.float64()),
        ("nearest_real_id", pa.string()),
        ("distance_to_nearest_real", pa.float64()),
        ("in_real_manifold", pa.bool_()),
        ("covered", pa.bool_()),
    ]
)
"""The columns of ``scores/``; the user's own columns follow them."""


METRICS = pa.schema(
    [
        ("generator", pa.string()),
        ("family", pa.string()),
        ("metric", pa.string()),
        ("slice_by", pa.string()),
        ("slice", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("unadjusted", pa.float64()),
        ("reference", pa.float64()),
        ("real", pa.int64()),
        ("synthetic", pa.int64()),
        ("is_small", pa.bool_()),
        ("reason", pa.string()),
        ("deviations", pa.list_(pa.float64(), BLOCKS)),
    ]
)
"""``metrics.parquet``: a line for each generator, metric and slice (``slice_by`` is empty over all rows).

``low`` and ``high`` are the ends of the 95 % interval; ``is_small`` marks what rests on too few rows to say much;
``reason`` says why a value or an interval is null. The squares of ``deviations`` add up to the variance, and the
deviations of a difference are the differences of deviations (jackknife.py): so lines are compared in pairs.
"""


def embeddings_schema(dimensions: int, number: pa.DataType = pa.float32()) -> pa.Schema:  # noqa: B008 (immutable)
    """Return the schema of ``embeddings/`` for vectors of ``dimensions`` numbers, float32 or float16."""
    return pa.schema(
        [
            ("row", pa.int64()),
            ("vector", pa.list_(number, dimensions)),
            ("width_px", pa.int32()),
            ("height_px", pa.int32()),
            ("format", pa.string()),
            ("mode", pa.string()),
            ("bytes", pa.int64()),
            ("jpeg_quality", pa.int16()),
            ("content_hash", pa.string()),
            ("brightness", pa.float32()),
            ("contrast", pa.float32()),
            ("sharpness", pa.float32()),
        ]
    )


def conform(table: pa.Table, schema: pa.Schema, name: str) -> pa.Table:
    """Cast ``table`` to ``schema`` (further columns stay, behind); raise SchemaError naming what does not fit."""
    missing = [field.name for field in schema if field.name not in table.column_names]
    if missing:
        raise SchemaError(f"{name}: lacks the columns {', '.join(missing)}")
    columns, fields = [], []
    for field in schema:
        if not field.nullable and table.column(field.name).null_count:
            raise SchemaError(f"{name}: column {field.name} has {table.column(field.name).null_count} nulls")
        try:
            columns.append(table.column(field.name).cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise SchemaError(f"{name}: column {field.name} does not fit {field.type}: {error}") from error
        fields.append(field)
    for field in table.schema:
        if field.name not in schema.names:
            columns.append(table.column(field.name))
            fields.append(field)
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))
