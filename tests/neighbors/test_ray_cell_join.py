"""Files of a radius join that tasks read back."""

import io
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from synthscale.config import StorageConfig
from synthscale.errors import StorageError
from synthscale.neighbors.embedding_reader import EmbeddingReader
from synthscale.neighbors.ray_cell_join import JoinFiles, _plan
from synthscale.neighbors.search_space import NEAR_DUPLICATES, SearchSpace
from synthscale.storage.run_directory import RunDirectory
from synthscale.tables.layout import VectorLayout
from tests.harm import Harm


def objects(harm: Harm) -> bytes:
    out = io.BytesIO()
    np.savez(out, document=np.array([harm], object))
    return out.getvalue()


@pytest.mark.parametrize("content", [Harm.pickled, objects], ids=["pickle", "npz of objects"])
def test_code_in_place_of_the_plan_is_refused_and_not_run(content: Any, tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path / "run"), StorageConfig())
    space = SearchSpace(NEAR_DUPLICATES, "cosine", (0, 4))
    files = JoinFiles(EmbeddingReader(run, VectorLayout(4, (0, 4), (0, 4)), ("real", "fake"), space), "join-0")
    harm, path = Harm(tmp_path / "harmed"), Path(files.path("plan.npz"))
    path.parent.mkdir(parents=True)
    path.write_bytes(content(harm))
    with pytest.raises(StorageError, match=r"plan\.npz: damaged .* delete it and run the same command again"):
        _plan(files, cast(Any, None), {0: 10, 1: 10}, 0.1, 10, 2)
    assert not harm.is_done
    # The harm is real: this is what happened to whoever unpickled such a file.
    import pickle

    pickle.loads(harm.pickled())
    assert harm.is_done
