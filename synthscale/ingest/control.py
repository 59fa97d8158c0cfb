"""The control: a held-out half of the real images, scored as if they were a generator.

Its metrics are those of a perfect generator at this sample size: new images from the real distribution. All
generators are scored against the other half, so that all have the same real set. Takes and returns all rows of the
run, which are copied to temporary files in pieces and are never in memory as a whole.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from synthscale.errors import ConfigError, InputError
from synthscale.ingest.spool import Spool, mapped_id_hashes
from synthscale.tables.id_hashes import Hashes, mix
from synthscale.tables.schemas import CONTROL, REAL, SYNTHETIC

_STREAM = 40_000
"""Stream number of `mix`, used by no other module, so that the draw is independent of folds and bootstraps."""
_MIN_REAL = 4
"""Minimum number of real rows: each half then has at least two."""
_CHUNK_ROWS = 65_536
"""Rows processed at a time; bounds memory and does not change the result."""
_BINS = 2**16
"""Histogram bins of the random numbers, one per value of their top 16 bits (see `_bin`)."""


def hold_out(rows: pa.Table) -> pa.Table:
    """Turn a random half of the real rows into synthetic rows of the generator ``control``.

    A row's random number depends on its id only, so the selection depends on the set of ids, not on the order of
    the rows.

    Args:
        rows: rows of the run, with unique ids.

    Returns:
        The same rows in the same order, memory-mapped from a temporary file; the control has half of the real
        rows, rounded down. Only ``real_or_synthetic`` and ``generator`` change.

    Raises:
        ConfigError: a generator is already called ``control``.
        InputError: there are fewer than ``_MIN_REAL`` real rows.
    """
    generators = pc.unique(rows.column("generator")).to_pylist()
    if CONTROL in generators:
        raise ConfigError(f"control: the input already has a generator called {CONTROL}; rename it")
    hashes = mapped_id_hashes(rows.column("id"))
    is_real = np.concatenate(
        [pc.equal(c.cast(pa.string()), REAL) for c in rows.column("real_or_synthetic").chunks]
    )
    real = int(is_real.sum())
    if real < _MIN_REAL:
        raise InputError(f"control: {real} real rows cannot be split in half; at least {_MIN_REAL} are needed")
    is_control = _select_smallest(hashes, is_real, real // 2)
    with Spool() as spool:
        for start in range(0, rows.num_rows, _CHUNK_ROWS):
            piece = rows.slice(start, _CHUNK_ROWS)
            mask = pa.array(is_control[start : start + _CHUNK_ROWS])
            for name, value in (("real_or_synthetic", SYNTHETIC), ("generator", CONTROL)):
                column = pc.if_else(mask, value, piece.column(name).cast(pa.string()))
                piece = piece.set_column(piece.column_names.index(name), name, column)
            spool.add(piece)
        return spool.rows()


def _select_smallest(hashes: Hashes, is_candidate: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """Select the ``count`` candidates with the smallest random numbers, without sorting all of them.

    A histogram finds the bin that contains the threshold; only the candidates in that bin are sorted. Memory is
    one byte per row, plus the sorted candidates.

    Args:
        hashes: (n,) id hashes, from which `mix` makes the random numbers.
        is_candidate: (n,) bool.
        count: number of rows to select, below the number of candidates.

    Returns:
        (n,) bool.
    """
    spans = [slice(start, start + _CHUNK_ROWS) for start in range(0, len(hashes), _CHUNK_ROWS)]
    bins = np.zeros(_BINS, np.int64)
    for span in spans:
        bins += np.bincount(_bin(mix(hashes[span], _STREAM)[is_candidate[span]]), minlength=_BINS)
    threshold_bin = int(np.searchsorted(np.cumsum(bins), count))
    selected = np.zeros(len(hashes), np.bool_)
    tied_numbers, tied_rows = [], []
    for span in spans:
        numbers = mix(hashes[span], _STREAM)
        number_bins = _bin(numbers)
        selected[span] = is_candidate[span] & (number_bins < threshold_bin)
        tied = np.flatnonzero(is_candidate[span] & (number_bins == threshold_bin))
        tied_numbers.append(numbers[tied])
        tied_rows.append(tied + span.start)
    order = np.argsort(np.concatenate(tied_numbers), kind="stable")
    selected[np.concatenate(tied_rows)[order[: count - int(selected.sum())]]] = True
    return selected


def _bin(numbers: Hashes) -> NDArray[np.int64]:
    """Return the top 16 bits of each number."""
    return (numbers >> np.uint64(48)).astype(np.int64)
