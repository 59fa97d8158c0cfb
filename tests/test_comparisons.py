"""``compare`` on hand-made run directories: which generators are paired, refusals and warnings."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthscale.cli import main
from synthscale.comparisons import compare_runs
from synthscale.config import Config, StorageConfig, parse_config
from synthscale.errors import InputError, StorageError, SynthscaleError
from synthscale.storage.run_directory import Marker, RunDirectory
from synthscale.tables.schemas import BLOCKS, METRICS, SCHEMA_VERSION

STORAGE = StorageConfig()


def line(generator, metric="fidelity", value=0.5, **more):
    known = {
        "generator": generator,
        "family": "core",
        "metric": metric,
        "slice_by": "",
        "slice": "",
        "value": value,
        "low": None if value is None else value - 0.05,
        "high": None if value is None else value + 0.05,
        "real": 100,
        "synthetic": 100,
        "is_small": False,
        "deviations": [0.005] * BLOCKS,
    }
    return {**dict.fromkeys(METRICS.names), **known, **more}


def make_run(folder: Path, lines, *, config=None, real=100, complete=True) -> str:
    """Write the files of a finished run that ``compare`` reads; return the run directory."""
    run = RunDirectory(str(folder), STORAGE)
    settings = (config or Config()).model_dump(mode="json", exclude_none=True)
    run.write_json(
        "run.json", {"schema_version": SCHEMA_VERSION, "run_id": folder.name, "finished": True, "config": settings}
    )
    run.write_marker(Marker("reduce", complete, {}))
    run.write_json("metrics.json", {"schema_version": 1, "counts": {"real": {"ok": real}}, "generators": {}})
    pq.write_table(pa.Table.from_pylist(lines, schema=METRICS), folder / "metrics.parquet")
    return str(folder)


def pairs(comparison):
    return [(d.one, d.two, d.metric) for d in comparison.differences]


@pytest.fixture
def two(tmp_path):
    """Two runs with sdxl in both, flux in the first and kandinsky in the second."""
    first = make_run(
        tmp_path / "monday", [line("sdxl", value=0.3), line("sdxl", "auc", 0.9), line("flux", value=0.1)]
    )
    second = make_run(
        tmp_path / "friday", [line("sdxl", value=0.45), line("sdxl", "auc", 0.7), line("kandinsky", value=0.2)]
    )
    return first, second


def test_generators_of_one_name_are_compared_later_minus_earlier(two):
    found = compare_runs(two, STORAGE)
    assert pairs(found) == [
        ("friday/sdxl", "monday/sdxl", "fidelity"),
        ("friday/sdxl", "monday/sdxl", "auc"),
    ]
    fidelity, auc = found.differences
    assert fidelity.difference == pytest.approx(0.15)
    assert fidelity.better == "friday/sdxl"
    assert auc.difference == pytest.approx(-0.2)
    assert auc.better == "friday/sdxl"
    assert found.warnings == ["no other run has a generator with this name: monday/flux, friday/kandinsky"]


def test_differences_between_runs_are_paired_by_deviations(two):
    # Both have the same deviations and interval widths, so all variance is shared and cancels.
    fidelity = compare_runs(two, STORAGE).differences[0]
    assert (fidelity.low, fidelity.high) == pytest.approx((0.15, 0.15), abs=1e-6)


def test_every_generator_is_listed_with_its_values(two):
    document = compare_runs(two, STORAGE).json()
    assert document["schema_version"] == 1
    assert [(own["name"], own["generator"], own["run"]) for own in document["generators"]] == [
        ("monday/sdxl", "sdxl", two[0]),
        ("monday/flux", "flux", two[0]),
        ("friday/sdxl", "sdxl", two[1]),
        ("friday/kandinsky", "kandinsky", two[1]),
    ]
    assert document["generators"][0]["metrics"] == {"fidelity": 0.3, "auc": 0.9}
    json.dumps(document, allow_nan=False)


def test_without_a_common_name_all_are_compared_across_runs(tmp_path):
    one = make_run(tmp_path / "a", [line("sdxl"), line("flux")])
    other = make_run(tmp_path / "b", [line("pixart"), line("dalle")])
    found = pairs(compare_runs([one, other], STORAGE))
    assert {(a, b) for a, b, _ in found} == {
        (f"b/{own}", f"a/{other}") for own in ("pixart", "dalle") for other in ("sdxl", "flux")
    }
    assert len(found) == 4


def test_the_control_does_not_count_as_a_common_name(tmp_path):
    # Both runs have a control, but their generators have different names and must be compared.
    one = make_run(tmp_path / "a", [line("sdxl"), line("control")])
    other = make_run(tmp_path / "b", [line("flux"), line("control")])
    assert ("b/flux", "a/sdxl", "fidelity") in pairs(compare_runs([one, other], STORAGE))


def test_three_runs_are_compared_in_pairs(tmp_path):
    runs = [make_run(tmp_path / name, [line("sdxl", value=v)]) for name, v in (("a", 0.1), ("b", 0.4), ("c", 0.9))]
    found = compare_runs(runs, STORAGE)
    assert pairs(found) == [
        ("b/sdxl", "a/sdxl", "fidelity"),
        ("c/sdxl", "a/sdxl", "fidelity"),
        ("c/sdxl", "b/sdxl", "fidelity"),
    ]
    assert [d.difference for d in found.differences] == pytest.approx([0.3, 0.8, 0.5])


def test_generators_within_one_of_several_runs_are_not_compared(tmp_path):
    one = make_run(tmp_path / "a", [line("sdxl"), line("flux")])
    other = make_run(tmp_path / "b", [line("sdxl"), line("flux")])
    assert [(d.one, d.two) for d in compare_runs([one, other], STORAGE).differences] == [
        ("b/sdxl", "a/sdxl"),
        ("b/flux", "a/flux"),
    ]


def test_all_generators_of_a_single_run_are_compared(tmp_path):
    run = make_run(tmp_path / "a", [line("sdxl", value=0.3), line("flux", value=0.7), line("pixart", value=0.1)])
    found = compare_runs([run], STORAGE)
    assert pairs(found) == [
        (a, b, "fidelity") for a, b in (("sdxl", "flux"), ("sdxl", "pixart"), ("flux", "pixart"))
    ]
    assert [d.difference for d in found.differences] == pytest.approx([-0.4, 0.2, 0.6])
    assert [d.better for d in found.differences] == ["flux", "sdxl", "flux"]
    assert found.warnings == []


def test_matched_subsamples_are_used_only_within_a_run(tmp_path):
    some = [
        line("sdxl", "coverage", 0.9),
        line("sdxl", "coverage", 0.6, family="matched", synthetic=40),
        line("flux", "coverage", 0.5, synthetic=40),
    ]
    one, other = (make_run(tmp_path / name, some) for name in ("a", "b"))
    (within,) = compare_runs([one], STORAGE).differences
    assert within.difference == pytest.approx(0.1)
    across = compare_runs([one, other], STORAGE)
    assert across.json()["generators"][0]["metrics"] == {"coverage": 0.9}
    assert [d.difference for d in across.differences] == [0, 0]


def test_slices_and_undefined_metrics_are_not_compared(tmp_path):
    some = [line("sdxl"), line("sdxl", value=0.9, slice_by="label", slice="cat"), line("sdxl", "coverage", None)]
    runs = [make_run(tmp_path / name, some) for name in ("a", "b")]
    found = compare_runs(runs, STORAGE)
    assert pairs(found) == [("b/sdxl", "a/sdxl", "fidelity")]
    assert found.differences[0].difference == 0


def test_metrics_without_intervals_have_a_difference_without_one(tmp_path):
    runs = [
        make_run(tmp_path / name, [line("sdxl", "vendi_score", v, low=None, high=None, deviations=None)])
        for name, v in (("a", 11.0), ("b", 12.0))
    ]
    (found,) = compare_runs(runs, STORAGE).differences
    assert (found.difference, found.low, found.high, found.better) == (1.0, None, None, None)


def test_runs_with_equal_folder_names_are_named_with_their_parents(tmp_path):
    runs = [make_run(tmp_path / day / "run", [line("sdxl")]) for day in ("monday", "friday")]
    assert pairs(compare_runs(runs, STORAGE))[0][:2] == ("friday/run/sdxl", "monday/run/sdxl")


def test_relative_paths_and_final_slashes_are_accepted(tmp_path, monkeypatch):
    make_run(tmp_path / "a", [line("sdxl")])
    make_run(tmp_path / "b", [line("sdxl")])
    monkeypatch.chdir(tmp_path)
    assert pairs(compare_runs(["a/", "./b"], STORAGE))[0][:2] == ("b/sdxl", "a/sdxl")


# Refusals.


def test_a_run_with_one_generator_has_nothing_to_compare(tmp_path):
    run = make_run(tmp_path / "a", [line("sdxl")])
    with pytest.raises(InputError, match="has one generator"):
        compare_runs([run], STORAGE)


@pytest.mark.parametrize("again", ["{}", "{}/", "{}/../monday"])
def test_the_same_run_twice_is_refused(two, again):
    for runs in ([two[0]], two):
        with pytest.raises(InputError, match="same run is named twice"):
            compare_runs([*runs, again.format(two[0])], STORAGE)


def test_a_folder_without_a_run_is_named(two, tmp_path):
    for missing in (tmp_path / "nothing", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(StorageError, match=f"{missing}: no synthscale run here"):
            compare_runs([two[0], str(missing)], STORAGE)


def test_an_unfinished_run_is_refused(two, tmp_path):
    begun = make_run(tmp_path / "begun", [line("sdxl")], complete=False)
    with pytest.raises(StorageError, match="begun: stage reduce is not complete"):
        compare_runs([two[0], begun], STORAGE)


def test_a_run_without_metrics_parquet_is_refused_with_the_remedy(two, tmp_path):
    old = make_run(tmp_path / "old", [line("sdxl")])
    Path(old, "metrics.parquet").unlink()
    with pytest.raises(StorageError, match=r"old/metrics.parquet: not found; .*--redo-from reduce"):
        compare_runs([two[0], old], STORAGE)


@pytest.mark.parametrize("lost", ["deviations", "slice_by", "metric"])
def test_a_table_of_another_version_is_refused(two, tmp_path, lost):
    old = make_run(tmp_path / "old", [line("sdxl")])
    table = pq.read_table(Path(old, "metrics.parquet"))
    pq.write_table(table.drop_columns([lost]), Path(old, "metrics.parquet"))
    with pytest.raises(SynthscaleError, match=r"metrics\.parquet"):
        compare_runs([two[0], old], STORAGE)


# Warnings.


def warned(tmp_path, one, other, **more):
    runs = [make_run(tmp_path / "a", [line("sdxl")], config=parse_config(one))]
    runs.append(make_run(tmp_path / "b", [line("sdxl")], config=parse_config(other), **more))
    return compare_runs(runs, STORAGE).warnings


@pytest.mark.parametrize(
    ("other", "word"),
    [
        ({"encoder": {"name": "torchvision:resnet50"}}, "encoder"),
        ({"encoder": {"image_size": 64}}, "encoder"),
        ({"neighbors": {"threshold": 0.2}}, "near-duplicate settings"),
        ({"classifier": {"head": "linear"}}, "classifier settings"),
        ({"classifier": {"seed": 7}}, "classifier settings"),
    ],
)
def test_different_settings_that_change_results_give_a_warning(tmp_path, other, word):
    (warning,) = warned(tmp_path, {}, other)
    assert word in warning


@pytest.mark.parametrize(
    "other",
    [
        {"encoder": {"device": "cpu"}},
        {"encoder": {"batch_size": 32}},
        {"neighbors": {"actor_memory_gib": 1.0}},
        {"classifier": {"workers": 1}},
        {"classifier": {"worker_memory_gib": 1.0}},
        {"gates": ["fidelity>=0.3"]},
        {"storage": {"shard_rows": 100}},
    ],
)
def test_different_settings_that_change_no_result_give_none(tmp_path, other):
    assert warned(tmp_path, {}, other) == []


def test_real_sets_of_different_sizes_give_a_warning(tmp_path):
    (warning,) = warned(tmp_path, {}, {}, real=4321)
    assert "real sets differ in size" in warning
    assert "100" in warning
    assert "4,321" in warning


def test_different_real_sets_of_one_size_give_a_warning(tmp_path):
    warnings = warned(tmp_path, {"real": "/data/cats"}, {"real": "/data/dogs"})
    assert any("real" in warning for warning in warnings)


def test_one_differing_run_of_three_gives_a_warning(tmp_path):
    runs = [make_run(tmp_path / name, [line("sdxl")]) for name in ("a", "b")]
    linear = parse_config({"classifier": {"head": "linear"}})
    runs.append(make_run(tmp_path / "c", [line("sdxl")], config=linear))
    assert len(compare_runs(runs, STORAGE).warnings) == 1


# The command.


def test_the_command_writes_json_and_prints_a_table(two, tmp_path, capsys):
    output = tmp_path / "out" / "comparison.json"
    assert main(["compare", *two, "--output", str(output)]) == 0
    document = json.loads(output.read_text())
    assert [(d["one"], d["metric"]) for d in document["differences"]] == [
        ("friday/sdxl", "fidelity"),
        ("friday/sdxl", "auc"),
    ]
    printed = capsys.readouterr().out
    for word in ("friday/sdxl", "monday/sdxl", "fidelity", "+0.150", "auc", "-0.200", str(output)):
        assert word in printed


def test_the_command_prints_warnings_and_unknown_intervals(tmp_path, capsys):
    runs = [
        make_run(tmp_path / name, [line("sdxl", "vendi_score", v, low=None, high=None)], real=n)
        for name, v, n in (("a", 3.0, 10), ("b", 4.0, 20))
    ]
    assert main(["compare", *runs, "--output", str(tmp_path / "o.json")]) == 0
    printed = capsys.readouterr().out
    assert "n/a" in printed
    assert "warning: the real sets differ in size (10, 20)" in printed


def test_brackets_in_names_are_printed_as_text(tmp_path, capsys):
    runs = [make_run(tmp_path / name, [line("sdxl")]) for name in ("[red]a", "[b]")]
    assert main(["compare", *runs, "--output", str(tmp_path / "o.json")]) == 0
    printed = capsys.readouterr().out
    assert "[red]a/sdxl" in printed
    assert "[b]/sdxl" in printed


def test_the_command_exits_with_2_if_it_cannot_compare(two, tmp_path, capsys):
    output = tmp_path / "never.json"
    alone = make_run(tmp_path / "alone", [line("sdxl")])
    for runs in ([alone], [two[0], two[0]], [two[0], str(tmp_path / "nothing")]):
        assert main(["compare", *runs, "--output", str(output)]) == 2
        assert capsys.readouterr().err.startswith("synthscale: ")
    assert not output.exists()


def test_an_output_that_is_a_folder_is_refused(two, tmp_path, capsys):
    assert main(["compare", *two, "--output", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_values_are_read_from_the_table_exactly(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.random(2)
    runs = [
        make_run(tmp_path / name, [line("sdxl", value=v)]) for name, v in zip("ab", values.tolist(), strict=True)
    ]
    assert compare_runs(runs, STORAGE).differences[0].difference == values[1] - values[0]
