"""The control: which real rows are held out, what stays unchanged, and where its values are shown."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthscale.errors import ConfigError, InputError
from synthscale.ingest import control
from synthscale.ingest.control import hold_out
from synthscale.metrics.summary import add_control_values
from synthscale.tables.id_hashes import hash_ids, mix
from synthscale.tables.schemas import CONTROL

REST = ("id", "uri", "label", "image_filename", "size_bytes", "etag", "prompt", "seed")


def rows_of(real: int, synthetic: int, *, generator: str = "sdxl", start: int = 0) -> pa.Table:
    n = real + synthetic
    kinds = ["real"] * real + ["synthetic"] * synthetic
    return pa.table(
        {
            "id": [f"real/{i}" for i in range(start, start + real)] + [f"sdxl/{i}" for i in range(synthetic)],
            "uri": [None if i % 7 == 0 else f"/data/{i}.png" for i in range(n)],
            "image_filename": pa.nulls(n, pa.string()),
            "real_or_synthetic": kinds,
            "label": [None if i % 5 == 0 else str(i % 3) for i in range(n)],
            "generator": pa.array([None] * real + [generator] * synthetic, pa.string()),
            "size_bytes": pa.array(range(n), pa.int64()),
            "etag": pa.nulls(n, pa.string()),
            "prompt": [f"a photo of {i}" for i in range(n)],
            "seed": pa.array([None if i % 11 == 0 else i / 3 for i in range(n)], pa.float64()),
        }
    )


def ids_of(rows: pa.Table, generator: str | None) -> set[str]:
    frame = rows.select(["id", "generator"]).to_pylist()
    return {row["id"] for row in frame if row["generator"] == generator}


def shuffled(rows: pa.Table, seed: int) -> pa.Table:
    return rows.take(pa.array(np.random.default_rng(seed).permutation(rows.num_rows)))


@given(real=st.integers(4, 60), synthetic=st.integers(0, 9))
def test_half_of_the_real_rows_become_the_control_and_no_other_row_changes(real, synthetic):
    before = rows_of(real, synthetic)
    after = hold_out(before)
    held = ids_of(after, CONTROL)
    assert len(held) == real // 2
    assert all(name.startswith("real/") for name in held)
    assert ids_of(after, "sdxl") == ids_of(before, "sdxl")
    kinds = dict(zip(after["id"].to_pylist(), after["real_or_synthetic"].to_pylist(), strict=True))
    assert {name for name, kind in kinds.items() if kind == "real"} == ids_of(before, None) - held
    assert all(kinds[name] == "synthetic" for name in held)


@pytest.mark.parametrize("at_a_time", [1, 10, 65_536])
@pytest.mark.parametrize("is_one_bin", [True, False])
def test_the_rows_with_the_smallest_random_numbers_are_held_out(monkeypatch, at_a_time, is_one_bin):
    monkeypatch.setattr(control, "_CHUNK_ROWS", at_a_time)
    if is_one_bin:
        monkeypatch.setattr(control, "_bin", lambda numbers: np.zeros(len(numbers), np.int64))
    rows = rows_of(501, 100)
    ids = rows["id"].to_pylist()[:501]
    order = np.argsort(mix(hash_ids(ids), 40_000))
    assert ids_of(hold_out(rows), CONTROL) == {ids[i] for i in order[:250]}


def test_all_other_columns_are_unchanged():
    before = rows_of(20, 7)
    after = hold_out(before)
    assert after.column_names == before.column_names
    assert after.select(REST).equals(before.select(REST))
    assert after.select(REST).schema == before.select(REST).schema


@given(seed=st.integers(0, 2**31))
def test_the_selection_does_not_depend_on_the_order_of_rows(seed):
    rows = rows_of(31, 5)
    assert ids_of(hold_out(shuffled(rows, seed)), CONTROL) == ids_of(hold_out(rows), CONTROL)


def test_the_selection_is_repeatable_and_independent_of_the_generators():
    held = ids_of(hold_out(rows_of(40, 0)), CONTROL)
    assert ids_of(hold_out(rows_of(40, 0)), CONTROL) == held
    assert ids_of(hold_out(rows_of(40, 25, generator="flux")), CONTROL) == held


def test_adding_real_rows_moves_few_others():
    # Rows are selected by the rank of a hash of the id, so most rows of a grown set stay in their half.
    small, grown = (ids_of(hold_out(rows_of(n, 0)), CONTROL) for n in (1000, 1020))
    kept = {f"real/{i}" for i in range(1000)}
    assert len(small ^ (grown & kept)) < 60


def test_the_selection_is_random_along_the_row_order():
    held = np.array(sorted(int(name.split("/")[1]) for name in ids_of(hold_out(rows_of(2000, 0)), CONTROL)))
    # 500 of each half expected, with a standard deviation of 11.
    assert abs((held < 1000).sum() - 500) < 50
    assert abs((held % 2 == 0).sum() - 500) < 50


def test_the_selection_is_independent_of_folds_and_jackknife_blocks():
    from synthscale.statistics.jackknife import jackknife_blocks
    from synthscale.tables.id_hashes import hash_ids

    after = hold_out(rows_of(4000, 0))
    names = sorted(ids_of(after, CONTROL))
    share = np.bincount(jackknife_blocks(hash_ids(names)), minlength=20) / len(names)
    assert share.min() > 0.025
    assert share.max() < 0.08


@pytest.mark.parametrize("names", [("real_or_synthetic",), ("generator",), ("real_or_synthetic", "generator")])
def test_dictionary_columns_are_accepted(names):
    plain = rows_of(12, 6)
    coded = plain
    for name in names:
        coded = coded.set_column(coded.column_names.index(name), name, coded[name].dictionary_encode())
    after = hold_out(coded)
    expected = hold_out(plain)
    for name in expected.column_names:
        assert after[name].to_pylist() == expected[name].to_pylist()


def test_chunked_tables_give_the_same_selection():
    plain = rows_of(30, 10)
    pieces = pa.concat_tables([plain.slice(0, 7), plain.slice(7, 21), plain.slice(28)])
    assert pieces["id"].num_chunks == 3
    assert hold_out(pieces).to_pylist() == hold_out(plain).to_pylist()


def test_a_run_without_generators_can_have_a_control():
    rows = rows_of(10, 0)
    rows = rows.set_column(rows.column_names.index("generator"), "generator", pa.nulls(10))
    assert len(ids_of(hold_out(rows), CONTROL)) == 5


def test_a_generator_of_that_name_is_refused():
    with pytest.raises(ConfigError, match="a generator called control"):
        hold_out(rows_of(10, 5, generator=CONTROL))


@pytest.mark.parametrize("real", [0, 1, 3])
def test_too_few_real_rows_are_refused_with_their_number(real):
    with pytest.raises(InputError, match=rf"{real} real rows cannot be split in half; at least 4 are needed"):
        hold_out(rows_of(real, 8))


# Where the control's values are shown.


def metric(value, **more):
    return {"value": value, "low": None, "high": None, **more}


def block(value, labels=("cat",), column="prompt", values=("a",)):
    def some():
        coverage = metric(value, reference=0.8)
        return {"counts": {"real": 3, "synthetic": 4}, "fidelity": metric(value), "coverage": coverage}

    return {
        "counts": {"real": 3, "synthetic": 4},
        "metrics": {"fidelity": metric(value), "precision": metric(value)},
        "by_label": {name: some() for name in labels},
        "by": {column: {name: some() for name in values}},
        "families": {"kernel": {"kid": metric(value)}},
        "classifier": {"auc": metric(value)},
        "warnings": [],
    }


def test_every_metric_of_the_other_generators_has_the_control_value():
    blocks = {"sdxl": block(0.1), "flux": block(0.2), CONTROL: block(0.5)}
    add_control_values(blocks, CONTROL)
    for name, own in (("sdxl", 0.1), ("flux", 0.2)):
        found = blocks[name]
        metrics = (
            found["metrics"]["fidelity"],
            found["by_label"]["cat"]["coverage"],
            found["by"]["prompt"]["a"]["fidelity"],
            found["families"]["kernel"]["kid"],
            found["classifier"]["auc"],
        )
        for shown in metrics:
            assert shown["value"] == own
            assert shown["control"] == 0.5
            # In place of what the real rows would give, which need not be the value of held-out real images.
            assert shown["reference"] == 0.5
        assert found["by_label"]["cat"]["counts"] == {"real": 3, "synthetic": 4}
    assert blocks[CONTROL] == block(0.5)


def test_precision_is_blind_by_the_reference_that_is_shown():
    def separated(precision, control):
        blocks = {"sdxl": block(precision), CONTROL: block(control)}
        blocks["sdxl"]["classifier"]["auc"] = {"value": 0.95, "low": 0.93, "high": 0.97}
        blocks["sdxl"]["metrics"]["precision"]["note"] = "said of another reference"
        blocks["sdxl"]["warnings"] = ["one", "said of another reference"]
        add_control_values(blocks, CONTROL)
        return blocks["sdxl"]

    found = separated(0.8, 0.82)
    assert "note" not in found["metrics"]["precision"]
    assert found["warnings"] == ["one"]
    found = separated(0.8, 0.78)
    assert "cannot see" in found["metrics"]["precision"]["note"]
    assert found["warnings"] == ["one", found["metrics"]["precision"]["note"]]


def test_metrics_that_the_control_lacks_are_not_shown():
    blocks = {"sdxl": block(0.1, labels=("cat", "dog")), CONTROL: block(None)}
    blocks[CONTROL]["by_label"]["cat"]["fidelity"]["value"] = 0.4
    add_control_values(blocks, CONTROL)
    assert "control" not in blocks["sdxl"]["metrics"]["fidelity"]
    assert "control" not in blocks["sdxl"]["by_label"]["dog"]["fidelity"]
    assert blocks["sdxl"]["by_label"]["cat"]["fidelity"]["control"] == 0.4


@pytest.mark.parametrize("name", ["value", "counts", "control", "reason"])
def test_slices_may_have_any_name(name):
    blocks = {g: block(v, labels=(name, "b"), values=(name, "b")) for g, v in (("sdxl", 0.1), (CONTROL, 0.5))}
    add_control_values(blocks, CONTROL)
    for part in (blocks["sdxl"]["by_label"], blocks["sdxl"]["by"]["prompt"]):
        assert set(part) == {name, "b"}
        for own in part.values():
            assert own["fidelity"]["control"] == 0.5
