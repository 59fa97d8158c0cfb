"""What a Ray Train worker reads."""

from synthscale.config import StorageConfig
from synthscale.schemas import Layout
from synthscale.stages import classify
from synthscale.storage import RunDirectory


def test_a_worker_without_shards_has_no_rows_and_the_width_of_the_others(tmp_path):
    run = RunDirectory(str(tmp_path), StorageConfig())
    rows = classify._training_rows(run, [], Layout(9, (0, 4), (1, 9)), ["a"])
    assert rows.vectors.shape == (0, 8)
    assert len(rows.row) == len(rows.is_real) == len(rows.is_copy) == len(rows.fold["a"]) == 0
