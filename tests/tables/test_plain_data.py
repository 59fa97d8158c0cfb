"""Plain forms keep every value, and reading one never runs code."""

import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from synthscale.errors import SchemaError, StorageError
from synthscale.tables.plain_data import arrays_from_npz, arrays_to_npz, from_arrow, from_npz, to_arrow, to_npz
from tests.harm import Harm


@dataclass
class Inner:
    """Arrays of several types and shapes."""

    wide: NDArray[np.float64]
    narrow: NDArray[np.float32]
    absent: NDArray[np.float32] | None = None


@dataclass
class Outer:
    """Everything that the sums and plans of synthscale consist of."""

    name: str
    share: float
    rows: int
    counts: tuple[Counter[int], Counter[int]]
    by_slice: dict[tuple[str, str], Inner] = field(default_factory=dict)
    ends: tuple[list[tuple[float, str]], ...] = ()


def example() -> Outer:
    inner = Inner(np.arange(6.0).reshape(2, 3) / 7, np.float32([[1], [2]]) / 3, np.empty((0, 2), np.float32))
    return Outer(
        "a \u00e9 \u0000",
        0.1 + 0.2,
        2**60,
        (Counter({-5: 2**40, 7: 1}), Counter()),
        {("label", "cat"): inner, ("a,b", ""): Inner(np.empty((0, 4)), np.float32([np.nan]))},
        ([(0.5, "id"), (-np.inf, "other")], []),
    )


def assert_equal(one: object, other: object) -> None:
    assert type(one) is type(other)
    if isinstance(one, Outer | Inner):
        for name, value in vars(one).items():
            assert_equal(value, vars(other)[name])
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, dict) and not isinstance(one, Counter):
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key])
    else:
        assert one == other


def test_a_dataclass_survives_a_file() -> None:
    assert_equal(from_npz(Outer, to_npz(example()), "file"), example())


def test_values_survive_a_table_and_its_type_does_not_depend_on_them() -> None:
    values = {"one": example(), "two": Outer("", 0.0, 0, (Counter(), Counter()))}
    column = to_arrow(values)
    assert column.type == to_arrow({}).type
    assert not pa.types.is_binary(column.type.field("document").type)
    # As in a table that Ray hands on: sliced and sent by Arrow.
    table = pa.table({"sums": pa.concat_arrays([to_arrow({}), column])})
    again = from_arrow(dict[str, Outer], table.slice(1).column("sums")[0])
    assert_equal(again, values)


def test_an_array_of_another_type_is_not_put_into_a_table() -> None:
    with pytest.raises(SchemaError, match="complex128"):
        to_arrow([np.zeros(1, np.complex128)])


def npz_of(value: object) -> bytes:
    out = io.BytesIO()
    np.savez(out, document=np.array([value], object))
    return out.getvalue()


def npy_of(value: object) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([value], object), allow_pickle=True)
    return out.getvalue()


@pytest.mark.parametrize("file_of", [Harm.pickled, npz_of, npy_of], ids=["pickle", "npz", "npy"])
def test_code_in_a_file_is_refused_and_not_run(file_of: Callable[[Harm], bytes], tmp_path: Path) -> None:
    harm = Harm(tmp_path / "harmed")
    for read in (partial(from_npz, Outer), arrays_from_npz):
        with pytest.raises(StorageError, match=r"run/plan\.npz: damaged .* run the same command again"):
            read(file_of(harm), "run/plan.npz")
    assert not harm.is_done


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04",
        to_npz(example())[:200],
        arrays_to_npz({"other": np.zeros(3)}),
        arrays_to_npz({"document": np.frombuffer(b"{", np.uint8)}),
        to_npz(Inner(np.zeros(2), np.zeros(2, np.float32))),
    ],
    ids=["empty", "start of a zip", "cut off", "no document", "broken document", "another type"],
)
def test_a_damaged_file_is_one_clear_error(data: bytes) -> None:
    with pytest.raises(StorageError, match=r"^a/plan\.npz: damaged or not written by synthscale"):
        from_npz(Outer, data, "a/plan.npz")


def test_objects_are_not_written() -> None:
    with pytest.raises(ValueError, match=r"[Oo]bject"):
        arrays_to_npz({"a": np.array([{}], object)})
