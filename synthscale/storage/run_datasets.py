"""Open a run's ``scores/`` and ``groups/`` as lazy Arrow datasets, for the report and for users."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from synthscale.generator_names import partition
from synthscale.storage import filesystems as fsys
from synthscale.storage.run_directory import RunDirectory


def scores_dataset(run: RunDirectory, generator: str | None = None) -> ds.Dataset:
    """Open ``scores/`` of one generator, or of all generators if None; real rows then occur once per generator."""
    top = run.path("scores")
    path = top if generator is None else fsys.join(top, partition(generator))
    # Without a schema a name such as 007 would be read as a number.
    names = ds.partitioning(pa.schema([("generator", pa.string())]), flavor="hive")
    return fsys.dataset(path, run.storage, partitioning=names, partition_base_dir=top.removeprefix("s3://"))


def group_rows(run: RunDirectory, generator: str) -> ds.Scanner:
    """Return a scanner of a generator's near-duplicate groups, with one row per group member.

    Columns: ``near_duplicate_id``, ``component_id``, ``size``, ``has_real``, ``has_synthetic``, ``diameter``,
    ``is_chain``.
    """
    return fsys.dataset(run.path("groups"), run.storage).scanner(
        columns=[
            "near_duplicate_id",
            "component_id",
            "size",
            "has_real",
            "has_synthetic",
            "diameter",
            "is_chain",
        ],
        filter=pc.equal(ds.field("generator").cast(pa.string()), generator),
    )
