"""Arrow schemas of the tables that stages exchange, and `conform`, the cast that every written table goes through.

All sharded tables are divided by the same row ranges (shards), so shard i of one table holds the same rows as
shard i of every other. A **view** is one generator's synthetic rows together with all real rows. ``nearest/``,
``groups/``, ``classifier/``, ``predictions/`` and ``scores/`` are tables of views: a real row has one line per
generator (in ``groups/``, only if it is in a group). Distances are cosine distances, 0..2, or half squared
Euclidean ones (neighbors/distance.py).
"""

import pyarrow as pa

from synthscale.errors import SchemaError

SCHEMA_VERSION = 2
"""Version of the tables and of the run directory's layout, in ``run.json`` and ``metrics.json``.

Raise it when a column is renamed or changes its meaning: runs of another version are refused, not misread. Version
2 renamed the columns ``held``, ``real_balls``, ``along``, ``logit_redealt`` and ``cosine_distance``, and moved
precision, coverage and their families to a space of their own.
"""

REAL, SYNTHETIC = "real", "synthetic"
"""Values of the manifest's column ``real_or_synthetic``."""

CONTROL = "control"
"""Name of the generator whose images are the held-out half of the real set (``control: true``)."""

BLOCKS = 20
"""Blocks of the delete-a-block jackknife (statistics/jackknife.py).

A standard error from 20 blocks has 19 degrees of freedom. Half as many blocks would widen every interval through
Student's t (2.26 instead of 2.09 standard errors); twice as many would double the refits of the classifier. Must
be a multiple of 20 (statistics/prdc_variance.py divides it by 5, 10 and 20) and at most ``OUTSIDE_SUBSAMPLE``
in statistics/size_matching.py.
"""

REASSIGNMENTS = 5
"""Alternative assignments of jackknife blocks to folds, each with a refit of all heads.

The variance of fidelity and representativeness over them is added to that of the jackknife.
"""

DIRECTIONS = 3
"""Directions of the embedding kept for each generator: those that separate the sets most."""

NEAREST_REAL = "nearest_real_distance"
"""Column of ``nearest/``: distance to the nearest other real row."""
MANIFOLD_REAL_ROW, MANIFOLD_REAL = "manifold_real_row", "manifold_real_distance"
"""Columns of ``nearest/``: the nearest other real row and its distance, in the space of the manifold metrics."""
DISTINCT_REAL = "distinct_real_distance"
"""Column of ``nearest/``: for real rows, distance to the nearest other real row that is not an exact copy, in the
space of the manifold metrics."""

_CATEGORY = pa.dictionary(pa.int32(), pa.string())

MANIFEST_COLUMNS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("uri", pa.string()),  # null for precomputed vectors
        pa.field("real_or_synthetic", _CATEGORY, nullable=False),
        pa.field("label", pa.string()),
        pa.field("generator", _CATEGORY),  # null for real rows
        pa.field("image_filename", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("id_hash", pa.uint64()),  # id_hashes.hash_ids of id
        pa.field(
            "fault", pa.string()
        ),  # "REASON: detail" of a row that cannot be used, whatever its image; else null
    ]
)
"""``manifest/``: columns that every manifest has, one line per row of the run; the user's own columns follow."""

FAILURES = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("uri", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
"""``failures/``: rows that could not be read, with the cause (`faults.Reason`) and an explanation."""

NEIGHBORS = pa.schema(
    [("left", pa.int64()), ("right", pa.int64()), ("distance", pa.float32()), ("kind", _CATEGORY)]
)
"""``neighbors/``: near-duplicate pairs of row numbers.

``kind`` is ``real-real``, ``real-synthetic`` or ``synthetic-synthetic``.
"""

NEAREST = pa.schema(
    [
        ("generator", _CATEGORY),
        ("row", pa.int64()),
        ("nn_row", pa.int64()),
        ("nn_distance", pa.float32()),
        ("nearest_real_row", pa.int64()),
        (NEAREST_REAL, pa.float32()),
        (MANIFOLD_REAL_ROW, pa.int64()),
        (MANIFOLD_REAL, pa.float32()),
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
"""``nearest/``: nearest neighbours of each row within its view, and the k-NN indicators.

Null means that there is no such row, or that the column was not computed.

- ``nn_row``, ``nn_distance``: nearest other row of the view.
- ``nearest_real_row``, ``nearest_real_distance``: nearest other real row.
- ``manifold_real_row``, ``manifold_real_distance``: the same in the space of the manifold metrics, as all below
  (neighbors/search_space.py).
- ``distinct_real_distance``: for real rows, distance to the nearest other real row that is not an exact copy.
- ``knn_radius``: distance to the k-th nearest distinct row of the row's own set; for synthetic rows only with the
  family ``manifold``, or where both spaces are the same.
- ``in_real_manifold``: whether the row lies within the k-NN radius of some (other) real row.
- ``covered``: for real rows, whether the k-NN radius contains a synthetic row.
- ``is_copy``: whether the row is an exact copy of a row of its own set that has a smaller id.
- ``exact``: whether the nearest rows come from all pairs, not from an approximate search.
- ``synthetic_in_radius``: for real rows, number of synthetic rows within the k-NN radius; only for generators that
  are larger than the smallest.
- ``real_radii_containing``: for synthetic rows, number of distinct real rows whose k-NN radius contains the row;
  only with the family ``manifold``.
- ``in_synthetic_manifold``: for real rows, whether some synthetic row's k-NN radius contains the row; only with
  the family ``manifold``.
"""

GROUPS = pa.schema(
    [
        ("generator", _CATEGORY),
        ("row", pa.int64()),
        ("near_duplicate_id", pa.int64()),
        ("size", pa.int64()),
        ("has_real", pa.bool_()),
        ("has_synthetic", pa.bool_()),
        ("diameter", pa.float64()),
        ("is_chain", pa.bool_()),
        ("near_real", pa.bool_()),
        ("component_id", pa.int64()),
        ("component_rows", pa.int64()),
        ("cluster_id", pa.int64()),
        ("cluster_rows", pa.int64()),
    ]
)
"""``groups/``: near-duplicates of each view: one line per row that has any.

- ``near_duplicate_id``, ``size``, ``has_real``, ``has_synthetic``: the row's group: its smallest row number, its
  number of rows, and the classes in it. A component (``component_id``) of real and synthetic rows is split into
  one group of its real rows and those synthetic rows that are near a real one, and synthetic-only groups of the
  rest that synthetic rows connect, which may be single rows.
- ``diameter``: largest distance between two members of the group, exact up to 32 members; ``is_chain`` marks
  diameters of more than four times the radius.
- ``near_real``: whether the row is a near-duplicate of another real row.
- ``component_id``, ``component_rows``: smallest row number of the connected component, and its number of rows of
  the row's own class.
- ``cluster_id``, ``cluster_rows``: leader of the row's cluster, the rows of the component within the radius of the
  leader, and their number of the row's own class. Clusters are the units of dependence of intervals.
"""

FOLDS = pa.schema(
    [
        ("generator", _CATEGORY),
        ("row", pa.int64()),
        ("fold", pa.list_(pa.int8())),
        ("is_real", pa.bool_()),
        ("is_copy", pa.bool_()),
        ("key", pa.uint64()),
        ("group_key", pa.uint64()),
        ("cluster_key", pa.uint64()),
        ("log_prior", pa.float64()),
    ]
)
"""``classifier/``: the fold assignment of each row of each view.

``fold`` has the row's fold in each repeat, and is empty where there are too few rows to cross-validate. ``key``,
``group_key`` and ``cluster_key`` are the hashes of the row's id, of its near-duplicate component, which decides
the fold, and of its cluster, which decides the jackknife block (tables/id_hashes.py).
``log_prior`` is log(synthetic / real) over the rows that the row's heads are trained on.
"""

PREDICTIONS = pa.schema(
    [
        ("generator", _CATEGORY),
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
"""``predictions/``: out-of-fold logits of each row of each view: log-odds of being synthetic, classes balanced.

- ``fold``: the row's fold in the first repeat.
- ``logit_synthetic``: mean over repeats.
- ``logit_deviation``: standard deviation over repeats; null with a single repeat.
- ``logit_file_facts``: logit of a classifier that sees file metadata only; null for precomputed vectors.
- ``direction_coordinates``: coordinates along the directions that separate the sets most (classify/directions.py).
- ``logit_without``: logit in the first repeat, from heads refitted without each jackknife block
  (classify/jackknife_refits.py); null in the row's own block, and for ``mlp``.
- ``logit_matched``: logit from heads fitted to the size-matched subsample (statistics/size_matching.py), then from
  those refitted without each block; null outside the subsample, and for the smallest generator.
- ``logit_reassigned``: logits under the other fold assignments (`REASSIGNMENTS`).
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
"""``scores/``: the per-image results that users read (docs/metrics.md); the user's own columns follow."""

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
"""``metrics.parquet``: one line per generator, metric and slice (``slice_by`` is empty for the whole view).

- ``low``, ``high``: ends of the 95 % interval.
- ``unadjusted``: the value with the class sizes in the odds; fidelity and representativeness only.
- ``reference``: the value that an ideal generator would get, where one is known.
- ``real``, ``synthetic``: numbers of rows of the slice.
- ``is_small``: whether the value is computed from fewer than 30 independent rows.
- ``reason``: why the value or the interval is null.
- ``deviations``: their squares add up to the variance, and the deviations of a difference are the differences of
  the deviations (statistics/jackknife.py), so two lines can be compared in pairs.
"""


def embeddings_schema(dimensions: int, number: pa.DataType = pa.float32()) -> pa.Schema:  # noqa: B008 (immutable)
    """Return the schema of ``embeddings/``: vectors, file metadata and pixel statistics.

    Args:
        dimensions: length of a vector.
        number: type of its components, float32 or float16.
    """
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
    """Cast a table to a schema: columns in the schema's order, followed by any others unchanged.

    Args:
        table: has at least the schema's columns, in any order.
        schema: names, types and nullability.
        name: of the table, for messages.

    Raises:
        SchemaError: a column is missing, cannot be cast to its type, or has nulls where the schema allows none.
    """
    missing = [field.name for field in schema if field.name not in table.column_names]
    if missing:
        raise SchemaError(f"{name}: missing columns {', '.join(missing)}")
    columns, fields = [], []
    for field in schema:
        if not field.nullable and table.column(field.name).null_count:
            raise SchemaError(f"{name}: column {field.name} has {table.column(field.name).null_count} nulls")
        try:
            columns.append(table.column(field.name).cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise SchemaError(f"{name}: column {field.name} cannot be cast to {field.type}: {error}") from error
        fields.append(field)
    for field in table.schema:
        if field.name not in schema.names:
            columns.append(table.column(field.name))
            fields.append(field)
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))
