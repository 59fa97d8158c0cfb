"""Checks that need the rows of the whole input: unique ids, both classes, generator names, columns and gates.

Takes the rows that `discover` returns; writes only temporary files of id hashes.
"""

import os
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synthscale.config import Config
from synthscale.errors import ConfigError, InputError
from synthscale.gate_grammar import generator_gates
from synthscale.generator_names import check_generator_name
from synthscale.ingest.spool import mapped_id_hashes
from synthscale.spelling import did_you_mean
from synthscale.storage import filesystems as fsys
from synthscale.tables.columns import is_sliceable
from synthscale.tables.schemas import MANIFEST_COLUMNS, REAL, SCORES, SYNTHETIC

_HASHES_PER_SORT = 2**21
"""Approximate number of id hashes sorted at a time (16 MiB).

Bounds memory: the hashes are read once for every ``_HASHES_PER_SORT`` rows, so half the value doubles the reads.
"""


_MAX_FOLDERS = 400
"""Folders above the output; creating more than twice as many exceeds Python's depth of recursion."""


def rename_clashing_columns(rows: pa.Table) -> pa.Table:
    """Prefix user columns named like a column of ``scores/``, or ``row`` or ``id_hash``, with ``user_``."""
    reserved = (set(SCORES.names) - set(MANIFEST_COLUMNS.names)) | {"row", "id_hash"}
    names = list(rows.column_names)
    for i, name in enumerate(names):
        if name in reserved:
            while name in reserved or name in names:
                name = f"user_{name}"
            names[i] = name
    return rows.rename_columns(names)


def check_places(config: Config) -> None:
    """Check that the output and the inputs are apart, and that no synthetic set is the real set itself.

    Files of the run in a folder of images would be listed as input, and a set scored against itself says nothing.
    Local paths are compared after links are followed.

    Raises:
        ConfigError: an input is inside the output or the output inside an input, or a set is given as real and as
            synthetic.
    """
    sets = {name: _place(uri) for name, uri in config.synthetic.items()}
    inputs = list(sets.values())
    if config.real is not None:
        real = _place(config.real)
        inputs.insert(0, real)
        for name, place in sets.items():
            if place == real:
                raise ConfigError(
                    f"{place}: is given as the real set and as {name}; to score real images against real ones, "
                    "use --control"
                )
    if config.output is None:
        return
    output = _place(config.output)
    if output.count("/") > _MAX_FOLDERS:
        raise ConfigError(f"{output[:40]}...: the output is below more than {_MAX_FOLDERS} folders")
    if config.manifest is not None:
        inputs.append(_place(config.manifest))
    for place in inputs:
        if _is_within(output, place):
            raise ConfigError(f"{output}: the output is inside the input {place}; set --output to another folder")
        if _is_within(place, output):
            raise ConfigError(f"{place}: the input is inside the output {output}; set --output to another folder")


def _place(uri: str) -> str:
    """Return a URI, or a local path with links followed, without a slash at its end."""
    place = fsys.absolute(uri)
    return place if fsys.is_s3(place) else os.path.realpath(place)


def _is_within(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith(f"{outer.rstrip('/')}/")


def check_metrics(config: Config, rows: pa.Table) -> None:
    """Check that the columns of ``metrics.slice_by`` and the generators of gates exist.

    Raises:
        ConfigError: a column is missing or its type cannot be sliced by, or a gate names an unknown generator.
    """
    rows = rename_clashing_columns(rows)
    available = ["label", *(name for name in rows.column_names if name not in MANIFEST_COLUMNS.names)]
    missing = [name for name in config.metrics.slice_by if name not in available]
    if missing:
        raise ConfigError(
            f"metrics.slice_by: the input has no column {', '.join(missing)}; "
            f"its columns are {', '.join(available)}{did_you_mean(missing[0], available)}"
        )
    for name in config.metrics.slice_by:
        if not is_sliceable(rows.schema.field(name).type):
            raise ConfigError(
                f"metrics.slice_by: column {name} has type {rows.schema.field(name).type}; "
                "nested and binary columns cannot be used"
            )
    generators = {name for name in pc.unique(rows.column("generator")).to_pylist() if name is not None}
    for text, generator in generator_gates(config.gates):
        if generator not in generators:
            raise ConfigError(
                f"gate {text!r}: the input has no generator {generator}; its generators are "
                f"{', '.join(sorted(generators))}{did_you_mean(generator, generators)}"
            )


def check_rows(rows: pa.Table) -> None:
    """Check that the input as a whole can be scored.

    Raises:
        InputError: there are no rows, a missing or duplicate id, rows of one class only, or an invalid generator
            name; the message says which.
    """
    if rows.num_rows == 0:
        raise InputError("the input has no rows")
    ids = rows.column("id")
    if ids.null_count:
        raise InputError(f"{ids.null_count:,} rows have no id")
    duplicates = duplicate_ids(ids)
    if duplicates:
        more = f" and {len(duplicates) - 5:,} more" if len(duplicates) > 5 else ""
        raise InputError(f"duplicate ids: {', '.join(duplicates[:5])}{more}; every row needs a unique id")
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


def duplicate_ids(ids: pa.ChunkedArray) -> list[str]:
    """Return the ids of more than one row.

    Id hashes are partitioned by residue and sorted one partition at a time; only the ids of equal hashes are then
    compared as strings.
    """
    hashes = mapped_id_hashes(ids)
    starts = range(0, len(hashes), _HASHES_PER_SORT)
    partitions = max(1, len(hashes) // _HASHES_PER_SORT)
    duplicate_hashes = [np.empty(0, np.uint64)]
    for residue in range(partitions):
        spans = (hashes[start : start + _HASHES_PER_SORT] for start in starts)
        ordered = np.sort(np.concatenate([span[span % np.uint64(partitions) == residue] for span in spans]))
        duplicate_hashes.append(np.unique(ordered[1:][ordered[1:] == ordered[:-1]]))
    repeated = np.concatenate(duplicate_hashes)
    if not len(repeated):
        return []
    counts = Counter[str]()
    for start in starts:
        mask = pa.array(np.isin(hashes[start : start + _HASHES_PER_SORT], repeated))
        counts.update(ids.slice(start, _HASHES_PER_SORT).filter(mask).to_pylist())
    return [name for name, count in counts.items() if count > 1]
