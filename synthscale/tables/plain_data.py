"""Plain forms of arrays and dataclasses for files and tables: NumPy's ``npz`` without objects, JSON and Arrow.

Reading a pickle can run code, so whoever can write to a run directory could run code on the cluster. These forms
cannot: a dataclass becomes a JSON document and numeric arrays, and the reader's own type says how they are put
back together.
"""

import functools
import io
import json
import types
import typing
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from synthscale.errors import SchemaError, StorageError

_DOCUMENT = "document"
"""Name of the JSON document beside the arrays."""
_ARROW_TYPES = ("float32", "float64", "int64")
"""Types of arrays that a table may contain."""


def arrays_to_npz(arrays: Mapping[str, Any]) -> bytes:
    """Serialise arrays to an ``npz`` file; raise ValueError for an array of Python objects."""
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **arrays)
    return out.getvalue()


def arrays_from_npz(data: bytes, path: str) -> dict[str, NDArray[Any]]:
    """Deserialise the arrays of an ``npz`` file; never executes code.

    Args:
        data: content of the file.
        path: its location, for the error message.

    Raises:
        StorageError: the content is not an ``npz`` file, is damaged, or contains Python objects.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as loaded:
            if isinstance(loaded, NpzFile):
                return dict(loaded)
    except (ValueError, OSError, EOFError, TypeError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise StorageError(_not_readable(path, error)) from error
    raise StorageError(_not_readable(path, "one array and not an npz file"))


def to_npz(value: Any) -> bytes:
    """Serialise a dataclass (see `_pack`) to an ``npz`` file."""
    arrays: list[NDArray[Any]] = []
    document = json.dumps(_pack(value, arrays)).encode()
    numbered = {str(number): array for number, array in enumerate(arrays)}
    return arrays_to_npz({_DOCUMENT: np.frombuffer(document, np.uint8), **numbered})


def from_npz(kind: type[Any], data: bytes, path: str) -> Any:
    """Deserialise the output of `to_npz`; never executes code.

    Args:
        kind: type of the value.
        data: content of the file.
        path: its location, for the error message.

    Raises:
        StorageError: the content is damaged, or describes a value of another type.
    """
    arrays = arrays_from_npz(data, path)
    try:
        document = json.loads(arrays.pop(_DOCUMENT).tobytes())
        return _unpack(kind, document, [arrays[str(number)] for number in range(len(arrays))])
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise StorageError(_not_readable(path, error)) from error


def _not_readable(path: str, why: object) -> str:
    return f"{path}: damaged or not written by synthscale ({why}); delete it and run the same command again"


def to_arrow(value: Any) -> pa.StructArray:
    """Convert a value (see `_pack`) to an Arrow array with one element, whose type does not depend on the value.

    Raises:
        SchemaError: an array is neither float32, float64 nor int64.
    """
    arrays: list[NDArray[Any]] = []
    document = _pack(value, arrays)
    columns, places = {}, []
    for name in _ARROW_TYPES:
        chosen = [array for array in arrays if array.dtype == name]
        flat = np.concatenate([np.empty(0, name), *(array.ravel() for array in chosen)])
        columns[name] = pa.ListArray.from_arrays(pa.array([0, len(flat)], pa.int32()), pa.array(flat))
    for array in arrays:
        if array.dtype.name not in _ARROW_TYPES:
            raise SchemaError(f"an array of type {array.dtype} cannot be put into a table")
        places.append([array.dtype.name, list(array.shape)])
    columns[_DOCUMENT] = pa.array([json.dumps({"value": document, "arrays": places})], pa.string())
    return pa.StructArray.from_arrays(list(columns.values()), list(columns))


def from_arrow(kind: Any, scalar: pa.StructScalar) -> Any:
    """Convert an element of `to_arrow` back to a value of type ``kind``, for instance ``dict[str, ViewSums]``."""
    document = json.loads(scalar[_DOCUMENT].as_py())
    flat = {name: scalar[name].values.to_numpy(zero_copy_only=False) for name in _ARROW_TYPES}
    arrays, used = [], dict.fromkeys(_ARROW_TYPES, 0)
    for name, shape in document["arrays"]:
        start, used[name] = used[name], used[name] + int(np.prod(shape))
        arrays.append(flat[name][start : used[name]].reshape(shape))
    return _unpack(kind, document["value"], arrays)


def _pack(value: Any, arrays: list[NDArray[Any]]) -> Any:
    """Return a value as JSON, with its arrays appended to ``arrays`` and replaced by their positions.

    Takes dataclasses, arrays, counters of integers, mappings with any of these as keys, lists, tuples, and what
    JSON has itself.
    """
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return len(arrays) - 1
    if isinstance(value, Counter):
        keys, counts = (np.array([*part], np.int64) for part in (value.keys(), value.values()))
        return [_pack(keys, arrays), _pack(counts, arrays)]
    if is_dataclass(value):
        return {part.name: _pack(getattr(value, part.name), arrays) for part in fields(value)}
    if isinstance(value, Mapping):
        return [[_pack(key, arrays), _pack(item, arrays)] for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [_pack(item, arrays) for item in value]
    return value


# Resolving annotations takes longer than everything else about a small dataclass.
_field_types = functools.cache(typing.get_type_hints)


def _unpack(kind: Any, value: Any, arrays: list[NDArray[Any]]) -> Any:
    """Return the value of type ``kind`` that `_pack` turned into JSON and arrays."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (present,) = (part for part in parts if part is not types.NoneType)
        return _unpack(present, value, arrays)
    if origin is typing.Literal:
        if value not in parts:
            raise TypeError(f"{value!r} is not one of {parts}")
        return value
    if origin is np.ndarray:
        return arrays[value]
    if is_dataclass(kind):
        hints = _field_types(typing.cast(Any, kind))
        given = {name: _unpack(hints[name], item, arrays) for name, item in value.items()}
        return typing.cast(Any, kind)(**given)
    if origin is Counter:
        keys, counts = (arrays[number].tolist() for number in value)
        return Counter(dict(zip(keys, counts, strict=True)))
    if origin is dict:
        return {_unpack(parts[0], key, arrays): _unpack(parts[1], item, arrays) for key, item in value}
    if origin is list:
        return [_unpack(parts[0], item, arrays) for item in value]
    if origin is tuple:
        each = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
        return tuple(_unpack(part, item, arrays) for part, item in zip(each, value, strict=True))
    if not isinstance(value, (int, float) if kind is float else kind):
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return value
