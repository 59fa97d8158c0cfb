"""Checks of a whole input: unique ids, both classes, generator names, columns and gates that exist."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synthscale.config import Config, check_generator_name
from synthscale.errors import ConfigError, InputError
from synthscale.gate_grammar import generator_gates
from synthscale.ingest.spool import mapped_keys
from synthscale.tables.columns import is_sliceable
from synthscale.tables.schemas import MANIFEST_COLUMNS, REAL, SCORES, SYNTHETIC

_SORTED = 2**21
"""Keys of ids that are sorted at a time."""


def rename_clashing_columns(rows: pa.Table) -> pa.Table:
    """Give a user's column that bears the name of one of ours in ``scores/`` the prefix ``user_``."""
    ours = (set(SCORES.names) - set(MANIFEST_COLUMNS.names)) | {"row", "id_hash"}
    names = list(rows.column_names)
    for i, name in enumerate(names):
        if name in ours:
            while name in ours or name in names:
                name = f"user_{name}"
            names[i] = name
    return rows.rename_columns(names)


def check_metrics(config: Config, rows: pa.Table) -> None:
    """Raise ConfigError where ``metrics.slice_by`` or a gate names what the input has not."""
    rows = rename_clashing_columns(rows)
    there = ["label", *(name for name in rows.column_names if name not in MANIFEST_COLUMNS.names)]
    missing = [name for name in config.metrics.slice_by if name not in there]
    if missing:
        raise ConfigError(
            f"metrics.slice_by: the input has no column {', '.join(missing)}; there are {', '.join(there)}"
        )
    for name in config.metrics.slice_by:
        if not is_sliceable(rows.schema.field(name).type):
            raise ConfigError(f"metrics.slice_by: {name} holds {rows.schema.field(name).type}, not plain values")
    generators = {name for name in pc.unique(rows.column("generator")).to_pylist() if name is not None}
    for text, generator in generator_gates(config.gates):
        if generator not in generators:
            raise ConfigError(
                f"gate {text!r}: there is no generator {generator}; there are {', '.join(sorted(generators))}"
            )


def check_rows(rows: pa.Table) -> None:
    """Raise InputError when the set as a whole cannot be scored, naming what is wrong."""
    if rows.num_rows == 0:
        raise InputError("the input has no rows")
    ids = rows.column("id")
    if ids.null_count:
        raise InputError(f"{ids.null_count} rows have no id")
    twice = _twice(ids)
    if twice:
        more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
        raise InputError(f"duplicate ids: {', '.join(twice[:5])}{more}; every row needs an id of its own")
    kinds = set(pc.unique(rows.column("real_or_synthetic")).to_pylist())
    for kind in (REAL, SYNTHETIC):
        if kind not in kinds:
            raise InputError(f"the input has no {kind} rows; both real and synthetic rows are needed")
    for name in pc.unique(rows.column("generator")).to_pylist():
        if name is not None:
            try:
                check_generator_name(name)
            except ValueError as error:
                raise InputError(str(error)) from error


def _twice(ids: pa.ChunkedArray) -> list[str]:
    """Return the ids that more than one row has; the keys of all are on disk, and sorted a range at a time."""
    keys = mapped_keys(ids)
    ranges = max(1, len(keys) // _SORTED)
    found = [np.empty(0, np.uint64)]
    for own in range(ranges):
        spans = (keys[start : start + _SORTED] for start in range(0, len(keys), _SORTED))
        order = np.sort(np.concatenate([span[span % np.uint64(ranges) == own] for span in spans]))
        found.append(np.unique(order[1:][order[1:] == order[:-1]]))
    same = np.concatenate(found)
    if not len(same):
        return []
    counts = Counter[str]()
    for start in range(0, len(keys), _SORTED):
        mask = pa.array(np.isin(keys[start : start + _SORTED], same))
        counts.update(ids.slice(start, _SORTED).filter(mask).to_pylist())
    return [name for name, count in counts.items() if count > 1]
