"""The control: a held-out half of the real set, scored as if it were a generator.

It shows what a perfect generator would get at these sizes: real images that are new, from the real distribution.
Every generator of the run is then scored against the other half, so that all have the same real set.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synthscale.columns import pieces
from synthscale.errors import ConfigError, InputError
from synthscale.keys import id_keys, mixed
from synthscale.schemas import REAL, SYNTHETIC

CONTROL = "control"
_STREAM = 40_000
_FEWEST = 4


def hold_out(rows: pa.Table) -> pa.Table:
    """Return the rows of a run with half of the real ones, chosen by their ids, as the generator ``control``."""
    generators = rows.column("generator").cast(pa.string())
    if pc.any(pc.equal(generators, CONTROL)).as_py():
        raise ConfigError(f"control: there is a generator called {CONTROL} already; rename it")
    kinds = rows.column("real_or_synthetic").cast(pa.string())
    real = np.flatnonzero(pc.equal(kinds, REAL).to_numpy())
    if len(real) < _FEWEST:
        raise InputError(f"control: {len(real)} real rows cannot be halved; {_FEWEST} are needed")
    ids = [id_keys(chunk.to_pylist()) for chunk in pieces(rows.column("id"))]
    keys = mixed(np.concatenate(ids)[real], _STREAM)
    held = np.zeros(rows.num_rows, np.bool_)
    held[real[np.argsort(keys, kind="stable")[: len(real) // 2]]] = True
    mask = pa.array(held)
    for name, value, column in (("real_or_synthetic", SYNTHETIC, kinds), ("generator", CONTROL, generators)):
        rows = rows.set_column(rows.column_names.index(name), name, pc.if_else(mask, value, column))
    return rows
