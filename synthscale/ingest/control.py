"""The control: a held-out half of the real set, scored as if it were a generator.

It shows what a perfect generator would get at these sizes: real images that are new, from the real distribution.
Every generator of the run is then scored against the other half, so that all have the same real set.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from synthscale.errors import ConfigError, InputError
from synthscale.ingest.spool import Spool, mapped_keys
from synthscale.tables.id_hashes import Hashes, mix
from synthscale.tables.schemas import CONTROL, REAL, SYNTHETIC

_STREAM = 40_000
_FEWEST = 4
_ROWS = 65_536
_BINS = 2**16


def hold_out(rows: pa.Table) -> pa.Table:
    """Return the rows of a run with half of the real ones, chosen by their ids, as the generator ``control``.

    What comes back is mapped from disk, as rows are.
    """
    generators = pc.unique(rows.column("generator")).to_pylist()
    if CONTROL in generators:
        raise ConfigError(f"control: there is a generator called {CONTROL} already; rename it")
    keys = mapped_keys(rows.column("id"))
    is_real = np.concatenate(
        [pc.equal(c.cast(pa.string()), REAL) for c in rows.column("real_or_synthetic").chunks]
    )
    real = int(is_real.sum())
    if real < _FEWEST:
        raise InputError(f"control: {real} real rows cannot be halved; {_FEWEST} are needed")
    held = _smallest(keys, is_real, real // 2)
    with Spool() as spool:
        for start in range(0, rows.num_rows, _ROWS):
            piece = rows.slice(start, _ROWS)
            mask = pa.array(held[start : start + _ROWS])
            for name, value in (("real_or_synthetic", SYNTHETIC), ("generator", CONTROL)):
                column = pc.if_else(mask, value, piece.column(name).cast(pa.string()))
                piece = piece.set_column(piece.column_names.index(name), name, column)
            spool.add(piece)
        return spool.rows()


def _smallest(keys: Hashes, among: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """Mark the ``count`` rows of ``among`` whose keys, mixed, are smallest: (n,), at a byte a row."""
    spans = [slice(start, start + _ROWS) for start in range(0, len(keys), _ROWS)]
    bins = np.zeros(_BINS, np.int64)
    for span in spans:
        bins += np.bincount(_bin(mix(keys[span], _STREAM)[among[span]]), minlength=_BINS)
    last = int(np.searchsorted(np.cumsum(bins), count))
    chosen = np.zeros(len(keys), np.bool_)
    values, places = [], []
    for span in spans:
        numbers = mix(keys[span], _STREAM)
        own = _bin(numbers)
        chosen[span] = among[span] & (own < last)
        at = np.flatnonzero(among[span] & (own == last))
        values.append(numbers[at])
        places.append(at + span.start)
    order = np.argsort(np.concatenate(values), kind="stable")
    chosen[np.concatenate(places)[order[: count - int(chosen.sum())]]] = True
    return chosen


def _bin(numbers: Hashes) -> NDArray[np.int64]:
    return (numbers >> np.uint64(48)).astype(np.int64)
