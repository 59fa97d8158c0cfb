"""The stage reduce over Ray: the files of a small run, read without the package, and the errors that stop it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from synthscale import parse_config, score, score_features
from synthscale.cli import main
from synthscale.demo import make_sets
from synthscale.errors import SchemaError
from synthscale.metric_names import CORE_METRICS, FAMILIES
from synthscale.metrics import stage as reduce
from synthscale.pipeline import Options
from synthscale.runtime.session import RaySession, ray_errors
from synthscale.runtime.stage_context import StageContext
from synthscale.storage.run_directory import STAGES, RunDirectory

pytestmark = pytest.mark.usefixtures("local_ray")

COLUMNS = [
    "id",
    "image_filename",
    "uri",
    "label",
    "real_or_synthetic",
    "label_quality_score",
    "label_issue_score",
    "predicted",
    "is_label_issue",
    "is_near_duplicate",
    "near_duplicate_id",
    "near_duplicate_score",
    "distance_to_nearest_neighbor",
    "nearest_real_id",
    "distance_to_nearest_real",
    "in_real_manifold",
    "covered",
]
"""Columns of scores/ in the order of DESIGN.md."""
USERS = ["prompt", "seed"]
REAL, KDE, COPIER = 240, 160, 90
"""Number of images of each set; one of ``kde`` cannot be read."""


def write_images(folder):
    """Write digits, their metadata table with a text and a numeric user column, and one file that is not an image.

    Every other image of ``kde`` is saved larger. ``copier`` contains real images; half of their originals are in
    the control.
    """
    sets = make_sets()
    rng = np.random.default_rng(0)
    picked = rng.permutation(len(sets["real"][0]))
    lines = []
    for name, source, count in (("real", "real", REAL), ("kde", "kde", KDE), ("copier", "real", COPIER)):
        pixels, labels = sets[source]
        for place, i in enumerate(picked[:count].tolist()):
            side = 16 if name == "kde" and place % 2 else 8
            path = folder / name / f"{i:05d}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels[i]).resize((side, side), Image.Resampling.NEAREST).save(path)
            lines.append(
                {
                    "image_filename": f"{name}/{path.name}",
                    "real_or_synthetic": "real" if name == "real" else "synthetic",
                    "generator": None if name == "real" else name,
                    "label": str(labels[i]),
                    "prompt": [f"a {labels[i] % 3}", "plain", None][len(lines) % 3],
                    "seed": len(lines) % 61,
                }
            )
    broken = next(line for line in lines if line["generator"] == "kde")
    (folder / broken["image_filename"]).write_bytes(b"no image")
    pq.write_table(pa.Table.from_pylist(lines), folder / "metadata.parquet")
    return folder / "metadata.parquet"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("digits"))


def settings(manifest, output, **more):
    return {
        "manifest": str(manifest),
        "output": str(output),
        "control": True,
        "max_failure_fraction": 0.02,
        "neighbors": {"self_test_images": 4},
        "metrics": {"families": "all", "slice_by": ["prompt", "seed"]},
        "storage": {"shard_rows": 133},
        "gates": ["fidelity>=0", "generator=copier freshness>=0.9", "generator=kde auc.high<=1", "kid<=-1e9"],
        **more,
    }


@pytest.fixture(scope="module")
def finished(manifest, tmp_path_factory):
    return score(parse_config(settings(manifest, tmp_path_factory.mktemp("runs") / "digits")))


@pytest.fixture(scope="module")
def metrics(finished):
    return json.loads(Path(finished.run.path("metrics.json")).read_text())


def metrics_in(item, path=()):
    """Yield every metric of a nested block with its path."""
    if isinstance(item, dict) and {"value", "low", "high"} <= item.keys():
        yield path, item
    elif isinstance(item, dict):
        for key, child in item.items():
            yield from metrics_in(child, (*path, key))


# metrics.json.


def test_every_metric_is_a_finite_number_or_null_with_a_reason(metrics):
    seen = 0
    for name, block in metrics["generators"].items():
        assert list(block["families"]) == list(FAMILIES)
        for family, names in FAMILIES.items():
            expected = set(names) - {"frechet_distance_infinity"}
            assert expected <= set(block["families"][family]) <= set(names), (name, family)
        for path, own in metrics_in(block):
            seen += 1
            numbers = [
                own[key] for key in ("value", "low", "high", "reference", "control") if own.get(key) is not None
            ]
            assert np.isfinite(numbers).all(), (name, path)
            if own["value"] is None or own["low"] is None:
                assert own["reason"], (name, path)
            else:
                assert own["low"] <= own["value"] <= own["high"], (name, path)
    assert seen > 3 * (6 + 6 * 10 + 6 * 4 + 6 * 10)


def test_what_there_is_data_for_has_a_value(metrics):
    for block in metrics["generators"].values():
        for family in ("manifold", "frechet", "vendi", "copying", "facts", "completeness", "stability"):
            for name, own in block["families"][family].items():
                if name != "frechet_distance_infinity":
                    assert own["value"] is not None, name


def test_known_flaws_show(metrics):
    kde, copier, control = (metrics["generators"][name]["families"] for name in ("kde", "copier", "control"))
    # The image that cannot be read is one of the small ones.
    assert kde["facts"]["width_ks"]["value"] == pytest.approx(KDE / 2 / (KDE - 1))
    assert kde["facts"]["width_ks"]["p_value"] < 1e-6
    assert copier["facts"]["width_ks"]["value"] == 0
    assert copier["facts"]["width_ks"]["p_value"] == 1
    assert copier["copying"]["privacy_ratio"]["value"] < control["copying"]["privacy_ratio"]["value"]
    assert copier["copying"]["authenticity"]["value"] < control["copying"]["authenticity"]["value"]
    assert control["kernel"]["kid"]["low"] < 0 < control["kernel"]["kid"]["high"]


def test_completeness_counts_failures_and_nulls(metrics, manifest):
    frame = pq.read_table(manifest).to_pandas()
    own = metrics["generators"]["kde"]["families"]["completeness"]["complete_share"]
    rows = frame[frame["generator"] == "kde"]
    # The unreadable file is the first of its set and may or may not have a prompt.
    nulls = int(rows["prompt"].isna().sum())
    complete = int(rows.iloc[1:]["prompt"].notna().sum())
    assert own["value"] == pytest.approx(complete / KDE)
    assert own["failed"] == 1
    assert own["nulls"] == {"label": 0, "prompt": nulls, "seed": 0}
    assert metrics["counts"]["generators"]["kde"] == {"rows": KDE, "ok": KDE - 1, "failed": 1}


def test_half_of_the_real_rows_are_the_control(metrics):
    for name, count in (("kde", KDE - 1), ("copier", COPIER), ("control", REAL // 2)):
        assert metrics["generators"][name]["counts"] == {"real": REAL // 2, "synthetic": count}


def test_the_controls_values_stand_beside_those_of_generators_of_its_size(metrics):
    reference = metrics["generators"]["control"]
    rows = reference["counts"]["synthetic"]
    assert "control" in metrics["generators"]["kde"]["metrics"]["precision"]
    for name in ("kde", "copier"):
        block = metrics["generators"][name]
        own_rows = block["counts"]["synthetic"]
        if max(rows, own_rows) > 1.05 * min(rows, own_rows):
            # There are no slices and families of matched subsamples.
            parts = [path for part in ("by_label", "by", "families") for path in metrics_in(block[part])]
            assert all("control" not in own for _, own in parts)
            continue
        for part in ("metrics", "by_label", "by", "families"):
            theirs = dict(metrics_in(reference[part]))
            for path, own in metrics_in(block[part]):
                value = theirs[path]["value"] if path in theirs else None
                assert own.get("control") == value, (name, part, path)
    assert all("control" not in own for _, own in metrics_in(reference))


def test_a_held_out_half_is_what_a_perfect_generator_would_be(metrics):
    control = metrics["generators"]["control"]["metrics"]
    assert control["fidelity"]["value"] > metrics["generators"]["kde"]["metrics"]["fidelity"]["value"]
    assert control["fidelity"]["low"] <= 0.5 <= control["fidelity"]["high"] + 0.05


def test_generators_are_compared_in_pairs_and_ranked_without_the_control(metrics):
    pairs = {frozenset((d["one"], d["two"])) for d in metrics["comparisons"]}
    assert pairs == {frozenset(pair) for pair in (("kde", "copier"), ("kde", "control"), ("copier", "control"))}
    # A larger generator is compared by its metrics on the matched subsample.
    values = {name: block.get("matched", block)["metrics"] for name, block in metrics["generators"].items()}
    for metric in CORE_METRICS:
        ranks = metrics["ranking"][metric]
        assert sorted(rank["generator"] for rank in ranks) == ["copier", "kde"]
        assert [rank["rank"] for rank in ranks] == [1, 2]
        shown = [values[rank["generator"]][metric]["value"] for rank in ranks]
        assert shown == sorted(shown, reverse=True)
    auc = next(
        d for d in metrics["comparisons"] if d["metric"] == "auc" and {d["one"], d["two"]} == {"kde", "control"}
    )
    assert auc["better"] in (None, "control")


def test_larger_generators_are_matched_to_the_smallest(metrics):
    blocks = metrics["generators"]
    assert "matched" not in blocks["copier"]
    for name in ("kde", "control"):
        counts = blocks[name]["matched"]["counts"]
        assert counts["real"] == REAL // 2
        assert counts["synthetic"] == pytest.approx(COPIER, abs=4 * np.sqrt(COPIER))
        # Fewer rows cover less, and repeat less.
        assert (
            blocks[name]["matched"]["metrics"]["coverage"]["value"] < blocks[name]["metrics"]["coverage"]["value"]
        )
    difference = next(
        d
        for d in metrics["comparisons"]
        if d["metric"] == "coverage" and {d["one"], d["two"]} == {"kde", "copier"}
    )
    sign = 1 if difference["one"] == "kde" else -1
    expected = (
        blocks["kde"]["matched"]["metrics"]["coverage"]["value"] - blocks["copier"]["metrics"]["coverage"]["value"]
    )
    assert sign * difference["difference"] == pytest.approx(expected)


def test_nothing_in_the_document_is_nan(finished):
    def refuse(text):
        raise AssertionError(text)

    json.loads(Path(finished.run.path("metrics.json")).read_text(), parse_constant=refuse)


# metrics.parquet.


def in_json(block, line):
    if line["slice_by"]:
        part = block["by_label"] if line["slice_by"] == "label" else block["by"][line["slice_by"]]
        return part[line["slice"]][line["metric"]]
    if line["family"] == "matched":
        return block["matched"]["metrics"][line["metric"]]
    if line["family"] == "core":
        return block["metrics"][line["metric"]]
    if line["family"] == "classifier":
        return block["classifier"][line["metric"]]
    if line["family"] == "confounders":
        return block["confounders"]["auc"]
    return block["families"][line["family"]][line["metric"]]


def test_the_table_says_what_the_document_says(finished, metrics):
    lines = pq.read_table(finished.run.path("metrics.parquet")).to_pylist()
    keys = [tuple(line[name] for name in ("generator", "family", "metric", "slice_by", "slice")) for line in lines]
    assert len(set(keys)) == len(keys)
    for line in lines:
        own = in_json(metrics["generators"][line["generator"]], line)
        for name in ("value", "low", "high", "unadjusted", "reference"):
            assert line[name] == own.get(name), (line["generator"], line["metric"], name)
        if line["value"] is None or line["low"] is None:
            assert line["reason"]
        if line["metric"] != "p_value":
            assert line["reason"] == own.get("reason")
    shown = sum(
        len(list(metrics_in(block.get(part))))
        for block in metrics["generators"].values()
        for part in ("metrics", "by_label", "by", "families", "matched")
    )
    assert shown == sum(line["family"] not in {"classifier", "confounders"} for line in lines)


def test_deviations_stand_for_the_errors(finished):
    frame = pq.read_table(finished.run.path("metrics.parquet")).to_pandas()
    own = frame[(frame["slice_by"] == "") & (frame["generator"] == "kde") & (frame["family"] != "matched")]
    own = own.set_index("metric")
    errors = own.loc[[f"{name}_error" for name in CORE_METRICS], "value"].to_numpy()
    found = [np.sqrt(np.square(own.loc[name, "deviations"]).sum()) for name in CORE_METRICS]
    assert found == pytest.approx(errors.tolist(), rel=1e-9)


# scores/, read without the package.


def partition(finished, name) -> pd.DataFrame:
    return pd.read_parquet(finished.run.path("scores", f"generator={name}"))


@pytest.mark.parametrize(("name", "rows"), [("kde", KDE - 1), ("copier", COPIER), ("control", REAL // 2)])
def test_pandas_reads_a_partition(finished, name, rows):
    frame = partition(finished, name)
    assert list(frame.columns) == [*COLUMNS, *USERS]
    assert frame["real_or_synthetic"].value_counts().to_dict() == {"real": REAL // 2, "synthetic": rows}
    assert frame["id"].is_unique
    assert frame["label_quality_score"].between(0, 1).all()
    assert frame["label_issue_score"].to_numpy() == pytest.approx(1 - frame["label_quality_score"])
    assert (frame["is_label_issue"] == (frame["predicted"] != frame["real_or_synthetic"])).all()
    real = frame["real_or_synthetic"] == "real"
    assert frame["covered"].isna().eq(~real).all()
    assert set(frame["nearest_real_id"]) <= set(frame.loc[real, "id"])
    assert (frame["nearest_real_id"] != frame["id"]).all()


def test_pandas_reads_all_partitions_at_once(finished):
    frame = pd.read_parquet(finished.run.path("scores"))
    assert list(frame.columns) == [*COLUMNS, *USERS, "generator"]
    assert frame["generator"].value_counts().to_dict() == {
        "kde": REAL // 2 + KDE - 1,
        "copier": REAL // 2 + COPIER,
        "control": REAL,
    }


def test_the_users_columns_are_carried_through(finished, manifest):
    given = pq.read_table(manifest).to_pandas().set_index("image_filename")
    for name in ("kde", "copier", "control"):
        frame = partition(finished, name).set_index("image_filename")
        there = given.loc[frame.index]
        assert frame["seed"].tolist() == there["seed"].tolist()
        assert frame["label"].tolist() == there["label"].tolist()
        assert frame["prompt"].fillna("-").tolist() == there["prompt"].fillna("-").tolist()


def test_duckdb_reads_them(finished):
    duckdb = pytest.importorskip("duckdb")
    path = finished.run.path("scores", "*", "*.parquet")
    query = (
        f"select generator, count(*), avg(label_quality_score) from read_parquet('{path}', hive_partitioning=true)"
    )
    found = duckdb.sql(f"{query} group by generator").fetchall()
    expected = pd.read_parquet(finished.run.path("scores")).groupby("generator", observed=True)[
        "label_quality_score"
    ]
    assert {name: (count, mean) for name, count, mean in found} == {
        name: (len(own), pytest.approx(own.mean())) for name, own in expected
    }


def test_polars_reads_them(finished):
    polars = pytest.importorskip("polars")
    frame = polars.read_parquet(finished.run.path("scores", "**", "*.parquet"), hive_partitioning=True)
    assert set(frame.columns) == {*COLUMNS, *USERS, "generator"}
    assert frame.height == 3 * REAL // 2 + KDE - 1 + COPIER + REAL // 2


# Slices.


def six(frame: pd.DataFrame, whole: pd.DataFrame) -> dict[str, float | None]:
    """Compute the six metrics of rows of a partition of scores/ from their definitions."""
    own, real = frame[frame["real_or_synthetic"] == "synthetic"], frame[frame["real_or_synthetic"] == "real"]
    mixed = set(whole.loc[whole["real_or_synthetic"] == "real", "near_duplicate_id"].dropna())
    with_real = own["near_duplicate_id"].isin(mixed)
    found = {
        "fidelity": 1 - own["label_quality_score"].mean(),
        "representativeness": 1 - real["label_quality_score"].mean(),
        "diversity": 1 - (own["is_near_duplicate"] & ~with_real).mean(),
        "freshness": 1 - with_real.mean(),
        "precision": own["in_real_manifold"].mean(),
        "coverage": real["covered"].astype(float).mean(),
    }
    return {name: None if pd.isna(value) else float(value) for name, value in found.items()}


def assert_slice(block, frame, whole):
    kinds = frame["real_or_synthetic"].value_counts()
    assert block["counts"] == {kind: int(kinds.get(kind, 0)) for kind in ("real", "synthetic")}
    for name, value in six(frame, whole).items():
        assert block[name]["value"] == (None if value is None else pytest.approx(value, abs=1e-9)), name


@pytest.mark.parametrize("name", ["kde", "copier", "control"])
def test_the_whole_is_that_of_the_scores(finished, metrics, name):
    frame = partition(finished, name)
    for metric, value in six(frame, frame).items():
        assert metrics["generators"][name]["metrics"][metric]["value"] == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("name", ["kde", "copier", "control"])
def test_slices_by_value_are_those_of_the_scores(finished, metrics, name):
    frame, block = partition(finished, name), metrics["generators"][name]
    for column, slices in (("label", block["by_label"]), ("prompt", block["by"]["prompt"])):
        assert set(slices) == set(frame[column].dropna())
        for value, own in slices.items():
            assert_slice(own, frame[frame[column] == value], frame)


@pytest.mark.parametrize("name", ["kde", "copier", "control"])
def test_slices_by_range_are_those_of_the_scores(finished, metrics, name):
    frame, slices = partition(finished, name), metrics["generators"][name]["by"]["seed"]
    assert len(slices) == 10
    seen = 0
    for text, own in slices.items():
        low, high = text.replace(" to below ", " to ").split(" to ")
        seed = frame["seed"]
        inside = (seed >= float(low)) & (seed < float(high) if "below" in text else seed <= float(high))
        assert_slice(own, frame[inside], frame)
        seen += int(inside.sum())
    assert seen == len(frame)


def test_small_slices_are_marked(metrics):
    block = metrics["generators"]["copier"]["by_label"]
    assert all(own["fidelity"]["small"] for own in block.values() if own["counts"]["synthetic"] < 15)
    assert "small" not in metrics["generators"]["kde"]["metrics"]["fidelity"]


# Gates.


def test_gates_are_decided_for_each_generator_they_hold_for(metrics):
    found = {(gate["gate"], gate["generator"]): gate["passed"] for gate in metrics["gates"]}
    assert found == {
        # Gates apply to the control only if they name it.
        **{("fidelity>=0", name): True for name in ("kde", "copier")},
        ("generator=copier freshness>=0.9", "copier"): False,
        ("generator=kde auc.high<=1", "kde"): True,
        **{("kid<=-1e9", name): False for name in ("kde", "copier")},
    }


def copied(finished, folder) -> Path:
    """Copy the run to another folder, for tests that modify it."""
    shutil.copytree(finished.run.uri, folder / "run")
    return folder / "run"


def test_other_gates_redo_no_stage_and_end_with_three(finished, manifest, tmp_path, capsys):
    output = copied(finished, tmp_path)
    before = {
        path.relative_to(output): path.stat().st_mtime_ns
        for path in output.rglob("*")
        if path.is_file() and path.parts[-2] not in {"_stages", "run"}
    }
    values = settings(manifest, output)
    del values["gates"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    capsys.readouterr()
    assert main(["score", "--config", str(tmp_path / "run.yaml"), "--gate", "fidelity>=0.999"]) == 3
    printed = capsys.readouterr().out
    for stage in STAGES[: STAGES.index("report")]:
        assert any(line.split() == [stage, "already", "done"] for line in printed.splitlines()), stage
    assert "missed: kde: fidelity>=0.999" in printed
    gates = json.loads((output / "metrics.json").read_text())["gates"]
    assert [(gate["generator"], gate["passed"]) for gate in gates] == [("kde", False), ("copier", False)]
    after = {path: (output / path).stat().st_mtime_ns for path in before}
    assert after == before
    # Without gates the exit code is 0.
    assert main(["score", "--config", str(tmp_path / "run.yaml")]) == 0
    assert json.loads((output / "metrics.json").read_text())["gates"] == []
    assert main(["score", "--config", str(tmp_path / "run.yaml"), "--gate", "generator=kde fidelity>=0"]) == 0


@pytest.mark.parametrize("gate", ["frechet_distance_infinity<=1e9", "generator=sdlx fidelity>=0"])
def test_a_gate_that_nothing_can_decide_is_not_passed_nor_a_crash(finished, manifest, tmp_path, gate):
    # A metric of a family that is not requested, and a generator that does not exist: both gates must fail.
    values = settings(manifest, copied(finished, tmp_path))
    del values["gates"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    assert main(["score", "--config", str(tmp_path / "run.yaml"), "--gate", gate]) in (2, 3)


def test_an_unknown_column_is_refused_before_ray_and_output(manifest, tmp_path, monkeypatch, capsys):
    def never(*arguments):
        raise AssertionError("Ray was asked for")

    monkeypatch.setattr(RaySession, "start", never)
    monkeypatch.setattr(RaySession, "wait_until_ready", never)
    values = settings(manifest, tmp_path / "out", gates=[])
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    assert main(["score", "--config", str(tmp_path / "run.yaml"), "--slice-by", "prompt,model"]) == 2
    error = capsys.readouterr().err
    assert "no column model" in error
    assert "prompt, seed" in error
    assert not (tmp_path / "out").exists()


# Tables that do not align.


def reduce_again(output, manifest):
    config = parse_config(settings(manifest, output))
    context = StageContext(config, RunDirectory(str(output), config.storage), cpus=2)
    with ray_errors("reduce"):
        return reduce.run(context)


def shard_of(output, table, generator):
    """Return the first shard of a table that has rows of a generator, and the index of one of these rows."""
    for path in sorted((output / table).glob("*.parquet")):
        rows = pq.read_table(path)
        at = np.flatnonzero(pc.equal(rows.column("generator").cast(pa.string()), generator).to_numpy())
        if len(at) > 3:
            return path, rows, int(at[2])
    raise AssertionError(table)


@pytest.mark.parametrize("table", ["predictions", "classifier"])
@pytest.mark.parametrize(
    ("change", "words"), [("lost", "1 missing, 0 unexpected"), ("doubled", "0 missing, 0 unexpected")]
)
def test_lost_and_doubled_rows_stop_the_stage_with_counts(finished, manifest, tmp_path, table, change, words):
    output = copied(finished, tmp_path)
    path, rows, at = shard_of(output, table, "kde")
    lines = np.delete(np.arange(len(rows)), at) if change == "lost" else np.insert(np.arange(len(rows)), at, at)
    pq.write_table(rows.take(pa.array(lines)), path)
    with pytest.raises(SchemaError, match="do not align") as error:
        reduce_again(output, manifest)
    text = str(error.value)
    assert f"kde: {table} and nearest" in text
    assert path.name in text
    assert words in text
    assert f"{int(change == 'doubled')} duplicated" in text
    assert "--redo-from classify" in text


def test_a_shard_that_lost_all_rows_of_a_view_is_noticed(finished, manifest, tmp_path):
    output = copied(finished, tmp_path)
    path, rows, _ = shard_of(output, "predictions", "copier")
    pq.write_table(rows.filter(pc.not_equal(rows.column("generator").cast(pa.string()), "copier")), path)
    with pytest.raises(SchemaError, match="copier: predictions and nearest do not align"):
        reduce_again(output, manifest)


@pytest.mark.parametrize("table", ["nearest", "embeddings"])
def test_lost_rows_of_earlier_tables_stop_it_too(finished, manifest, tmp_path, table):
    output = copied(finished, tmp_path)
    path = sorted((output / table).glob("*.parquet"))[1]
    rows = pq.read_table(path)
    pq.write_table(rows.slice(1), path)
    with pytest.raises(SchemaError):
        reduce_again(output, manifest)


# The same numbers.


def vectors():
    rng = np.random.default_rng(7)
    real, one = rng.normal(size=(160, 10)), rng.normal(size=(130, 10)) * 0.9 + 0.2
    # The second generator repeats real rows, which must not change the near-duplicates of the first.
    two = real[:70] + 1e-4 * rng.normal(size=(70, 10))
    return np.concatenate([real, one, two]).astype(np.float32)


KINDS = ["real"] * 160 + ["synthetic"] * 200
NAMES = [None] * 160 + ["one"] * 130 + ["two"] * 70
LABELS = [str(i % 3) for i in range(360)]
IDS = [f"row {i}" for i in range(360)]
FAMILY_SETTINGS = {"families": "all", "frechet_infinity": True}


def score_vectors(folder, **storage):
    x = vectors()
    table = pa.table(
        {
            "id": IDS,
            "real_or_synthetic": KINDS,
            "generator": pa.array(NAMES, pa.string()),
            "label": LABELS,
            # Columns, as the features of score_features are.
            **{f"x{i}": column for i, column in enumerate(x.T)},
        }
    )
    pq.write_table(table, folder / "v.parquet")
    config = {"manifest": str(folder / "v.parquet"), "output": str(folder / "run"), "metrics": FAMILY_SETTINGS}
    return score(parse_config({**config, "storage": storage}), Options()).metrics["generators"]


@pytest.fixture(scope="module")
def of_vectors(tmp_path_factory):
    return score_vectors(tmp_path_factory.mktemp("whole"))


def flat(item, path=()):
    """Return every leaf of a nested block by its path."""
    if isinstance(item, dict):
        return {key: value for name, child in item.items() for key, value in flat(child, (*path, name)).items()}
    if isinstance(item, list):
        return {key: value for i, child in enumerate(item) for key, value in flat(child, (*path, i)).items()}
    return {path: item}


def assert_alike(one, two, tolerance):
    first, second = flat(one), flat(two)
    assert first.keys() == second.keys()
    for path, value in first.items():
        if isinstance(value, float) and second[path] is not None:
            assert second[path] == pytest.approx(value, rel=tolerance, abs=tolerance), path
        else:
            assert second[path] == value, path


def test_the_size_of_shards_changes_no_number(of_vectors, tmp_path):
    assert_alike(of_vectors, score_vectors(tmp_path, shard_rows=77), 1e-9)


@pytest.fixture(scope="module")
def in_memory():
    """Score each generator alone with the real set: other generators must not change its metrics."""
    x, found = vectors(), {}
    for name in ("one", "two"):
        own = [i for i, generator in enumerate(NAMES) if generator in (None, name)]
        found |= score_features(
            x[own],
            [KINDS[i] for i in own],
            generator=[NAMES[i] for i in own],
            labels=[LABELS[i] for i in own],
            ids=[IDS[i] for i in own],
            config=parse_config({"metrics": FAMILY_SETTINGS}),
        ).metrics
    return found


@pytest.mark.parametrize("name", ["one", "two"])
def test_score_features_gives_the_same_core_metrics(of_vectors, in_memory, name):
    for part in ("metrics", "by_label"):
        assert_alike(in_memory[name][part], of_vectors[name][part], 1e-5)


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in {"facts", "stability"}])
def test_score_features_gives_the_same_families(of_vectors, in_memory, name, family):
    assert_alike(in_memory[name]["families"][family], of_vectors[name]["families"][family], 1e-9)


@pytest.mark.parametrize("name", ["one", "two"])
def test_score_features_gives_the_same_stability(of_vectors, in_memory, name):
    assert_alike(in_memory[name]["families"]["stability"], of_vectors[name]["families"]["stability"], 1e-5)
