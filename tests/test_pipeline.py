"""The main job on real components: a local Ray, real files, moto's S3 server."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from synthscale import Config, Options, RunResult, parse_config, score, score_features
from synthscale.comparisons import compare_runs
from synthscale.errors import ConfigError, InputError, ResumeConflict, TooManyFailures
from synthscale.generator_names import path_name
from synthscale.metric_names import CORE_METRICS
from synthscale.tables.schemas import METRICS, SCHEMA_VERSION, SCORES
from tests.reference.tutorial import scores as tutorial_scores
from tests.runs import run_until

pytestmark = pytest.mark.usefixtures("local_ray")

FOUR = ("fidelity", "representativeness", "diversity", "freshness")


@pytest.fixture(scope="module")
def images(tmp_path_factory, make_images):
    """Ninety real images; `good` from the same process, `copier` repeats real ones and itself."""
    top = tmp_path_factory.mktemp("images")
    real = make_images(top / "real", 90, seed=1)
    make_images(top / "good", 60, seed=2)
    (top / "copier" / "cat").mkdir(parents=True)
    for i, path in enumerate(real[:20]):
        shutil.copy(path, top / "copier" / "cat" / f"exact-{i}.png")
    for i, path in enumerate(make_images(top / "scratch", 20, seed=3)):
        for repeat in range(2):
            pixels = np.asarray(Image.open(path)).astype(int)
            pixels[repeat, 0] = (pixels[repeat, 0] + 2) % 256
            Image.fromarray(pixels.astype(np.uint8)).save(top / "copier" / "cat" / f"repeat-{i}-{repeat}.png")
    return top


def folders(images, output, *names, **more):
    values = {
        "real": str(images / "real"),
        "synthetic": {n: str(images / n) for n in names},
        "output": str(output),
    }
    return parse_config({**values, **more})


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A run with both generators."""
    return score(folders(images, tmp_path_factory.mktemp("runs") / "both", "good", "copier"))


@pytest.fixture
def copied(finished, images, tmp_path):
    """A copy of the run with both generators that a test may change, and its configuration."""
    shutil.copytree(finished.run.uri, tmp_path / "run")

    def config(**more):
        return folders(images, tmp_path / "run", "good", "copier", **more)

    return RunResult.open(str(tmp_path / "run")), config


def values(block):
    """Return the numbers of a generator's block by their path, without those that depend on the shards."""
    flat = {}

    def walk(path, item):
        if isinstance(item, dict):
            for key, child in item.items():
                walk(f"{path}.{key}", child)
        elif isinstance(item, list):
            for i, child in enumerate(item):
                walk(f"{path}[{i}]", child)
        elif isinstance(item, int | float) and not isinstance(item, bool):
            flat[path] = float(item)

    walk("", {key: block[key] for key in ("counts", "metrics", "by_label", "neighbors")})
    walk(
        ".classifier",
        {k: block["classifier"][k] for k in ("auc", "accuracy", "log_loss", "brier", "ece", "strength")},
    )
    return flat


def assert_same(first, second):
    one, two = values(first), values(second)
    assert one.keys() == two.keys()
    for path, number in one.items():
        assert two[path] == pytest.approx(number, abs=1e-5), path


def test_each_partition_has_the_generators_rows_and_all_real_rows(finished):
    for name, rows in (("good", 60), ("copier", 60)):
        frame = finished.scores(name)
        assert list(frame.columns) == SCORES.names
        assert (frame["real_or_synthetic"] == "real").sum() == 90
        assert (frame["real_or_synthetic"] == "synthetic").sum() == rows
        assert frame["id"].is_unique
        assert frame["label_quality_score"].between(0, 1).all()
        assert np.allclose(frame["label_issue_score"], 1 - frame["label_quality_score"])


def test_the_tutorials_definitions_give_the_metrics_of_each_partition(finished):
    for name in finished.generators:
        expected = tutorial_scores(finished.scores(name))
        metrics = finished.metrics["generators"][name]["metrics"]
        for metric in FOUR:
            assert metrics[metric]["value"] == pytest.approx(expected[metric], abs=1e-9)


def test_copies_and_repeats_are_found(finished):
    copier, good = (finished.metrics["generators"][name]["metrics"] for name in ("copier", "good"))
    assert copier["freshness"]["value"] == pytest.approx(1 - 20 / 60)
    assert copier["diversity"]["value"] == pytest.approx(1 - 40 / 60)
    assert good["freshness"]["value"] == good["diversity"]["value"] == 1
    frame = finished.scores("copier").set_index("id")
    copy = frame.loc["copier/cat/exact-0.png"]
    assert copy["nearest_real_id"] == "real/cat/000.png"
    assert copy["distance_to_nearest_real"] == 0
    assert copy["near_duplicate_score"] == 0


def test_every_table_exists_with_every_row(finished):
    for table in ("manifest", "embeddings", "nearest", "predictions"):
        rows = sum(pq.ParquetFile(path).metadata.num_rows for path in Path(finished.run.path(table)).iterdir())
        assert rows == {"manifest": 210, "embeddings": 210}.get(table, 2 * 90 + 120)
    document = json.loads(Path(finished.run.path("run.json")).read_text())
    assert document["finished"]
    assert document["stages"]["embed"]["rows_per_s"] > 0


def test_every_null_in_metrics_json_has_a_reason(finished):
    def walk(item):
        if isinstance(item, dict):
            # A p-value alone has no interval.
            if "value" in item and (item["value"] is None or item.get("low", 0) is None):
                assert item["reason"]
            for child in item.values():
                walk(child)

    walk(finished.metrics)
    for block in finished.metrics["generators"].values():
        assert all(
            {"value", "low", "high"} <= set(block["classifier"][k]) for k in ("auc", "accuracy", "log_loss")
        )
    assert finished.metrics["schema_version"] == SCHEMA_VERSION
    assert finished.run.read_json("run.json")["schema_version"] == SCHEMA_VERSION


def test_adding_a_generator_and_other_shards_change_no_number(finished, images, tmp_path):
    config = folders(images, tmp_path / "alone", "copier", storage={"shard_rows": 23})
    alone = score(config).metrics["generators"]["copier"]
    assert_same(alone, finished.metrics["generators"]["copier"])


def test_the_order_of_rows_changes_no_number(finished, images, tmp_path):
    rows = pd.concat(
        [finished.scores("good"), finished.scores("copier").query("real_or_synthetic == 'synthetic'")]
    )
    rows["generator"] = rows["id"].str.partition("/")[0].where(rows["real_or_synthetic"] == "synthetic")
    rows = rows[["id", "uri", "image_filename", "label", "real_or_synthetic", "generator"]]
    path = images / "shuffled.csv"
    rows.sample(frac=1, random_state=5).to_csv(path, index=False)
    result = score(Config(manifest=str(path), output=str(tmp_path / "shuffled")))
    for name in ("good", "copier"):
        assert_same(result.metrics["generators"][name], finished.metrics["generators"][name])


def test_scoring_the_embeddings_in_memory_gives_the_same_numbers(finished):
    folder = Path(finished.run.path("embeddings"))
    table = pa.concat_tables(pq.read_table(path) for path in sorted(folder.iterdir()))
    manifest = pq.read_table(finished.run.path("manifest")).to_pandas()
    info = finished.run.completed("embed").info
    vectors = np.stack(table.column("vector").to_numpy())

    def scored(features, metric):
        return score_features(
            features,
            manifest["real_or_synthetic"].astype(str),
            generator=[None if pd.isna(g) else g for g in manifest["generator"]],
            labels=manifest["label"],
            ids=manifest["id"],
            config=Config(neighbors={"metric": metric}),
        )

    # In memory all dimensions serve all purposes, so what depends on some of them alone is compared apart.
    in_memory = scored(vectors[:, slice(*info["search"])], "cosine")
    everything = scored(vectors, "auto")
    for name in finished.generators:
        block = finished.metrics["generators"][name]
        for metric in ("diversity", "unique_share", "freshness", "precision", "coverage"):
            own = everything if metric in {"precision", "coverage"} else in_memory
            assert own.metrics[name]["metrics"][metric]["value"] == pytest.approx(
                block["metrics"][metric]["value"]
            )
        assert in_memory.metrics[name]["neighbors"]["radius"] == pytest.approx(
            block["neighbors"]["radius"], rel=1e-6
        )


@pytest.mark.slow
def test_a_worker_group_gives_the_same_scores_as_this_process(finished, images, tmp_path):
    config = folders(images, tmp_path / "group", "good", "copier", classifier={"workers": 2})
    grouped = score(config)
    for name in finished.generators:
        one, two = finished.scores(name), grouped.scores(name)
        assert (one["label_quality_score"] - two["label_quality_score"]).abs().max() <= 1e-5


def test_metrics_parquet_has_a_row_for_every_metric_of_metrics_json(finished):
    table = pq.read_table(finished.run.path("metrics.parquet"))
    assert table.schema.remove_metadata() == METRICS
    lines = {
        (line["generator"], line["slice_by"], line["slice"], line["metric"]): line for line in table.to_pylist()
    }
    assert len(lines) == table.num_rows
    seen = 0
    for name, block in finished.metrics["generators"].items():
        parts = {("", ""): (block["metrics"], block["counts"])}
        for label, own in block["by_label"].items():
            parts["label", label] = (own, own["counts"])
        for (column, value), (metrics, counts) in parts.items():
            for metric in CORE_METRICS:
                line, found = lines[name, column, value, metric], metrics[metric]
                seen += 1
                assert (line["real"], line["synthetic"]) == (counts["real"], counts["synthetic"])
                assert line["is_small"] == found.get("small", False)
                for part in ("value", "low", "high", "reason", "reference", "unadjusted"):
                    assert line[part] == (pytest.approx(found[part]) if found.get(part) is not None else None)
                assert (line["deviations"][0] is None) == (line["value"] is None)
    assert seen == 2 * 3 * len(CORE_METRICS)


def test_changed_gates_are_evaluated_without_repeating_stages(copied):
    run, config_with = copied
    first = run.metrics
    assert first["gates"] == []
    gates = ["generator=good freshness>=0.5", "freshness.low>=0.9", "coverage>=0"]
    reports = []
    second = score(config_with(gates=gates), Options(on_stage=reports.append))
    # The report shows the gates, so it is written again.
    assert [report.stage for report in reports if not report.skipped] == ["report"]
    assert [(gate["gate"], gate["generator"], gate["passed"]) for gate in second.metrics["gates"]] == [
        (gates[0], "good", True),
        (gates[1], "good", second.metrics["generators"]["good"]["metrics"]["freshness"]["low"] >= 0.9),
        (gates[1], "copier", False),
        (gates[2], "good", True),
        (gates[2], "copier", True),
    ]
    assert {**second.metrics, "gates": []} == first
    assert score(config_with()).metrics == first


def test_a_rerun_of_a_finished_run_recomputes_nothing(finished, images):
    config = folders(images, finished.run.uri, "good", "copier")
    before = {path: path.stat().st_mtime_ns for path in Path(finished.run.uri).rglob("*.parquet")}
    reports = []
    score(config, Options(on_stage=reports.append))
    assert all(report.skipped for report in reports)
    assert before == {path: path.stat().st_mtime_ns for path in Path(finished.run.uri).rglob("*.parquet")}


def test_an_interrupted_embed_repeats_only_the_missing_shards(finished, copied):
    whole, config_with = copied
    shards = sorted(Path(whole.run.path("embeddings")).iterdir())
    kept = {path: path.stat().st_mtime_ns for path in shards[1:]}
    # The state after a kill: stage started, one shard missing, no later stages.
    marker = whole.run.path("_stages", "embed.json")
    document = json.loads(Path(marker).read_text())
    whole.run.remove_from("neighbors")
    Path(marker).write_text(json.dumps({**document, "complete": False}))
    shards[0].unlink()
    again = score(config_with())
    assert {path: path.stat().st_mtime_ns for path in shards[1:]} == kept
    for name in ("good", "copier"):
        pd.testing.assert_frame_equal(finished.scores(name), again.scores(name))


def with_other_releases(patch):
    """Pretend that synthscale and the libraries have had releases that change no numbers."""
    patch.setattr("synthscale.__version__", "99.0.1")
    patch.setattr("torch.__version__", "99.0.1")
    patch.setattr("PIL.__version__", ".".join([*PIL.__version__.split(".")[:2], "99"]))


def test_a_release_that_changes_no_numbers_continues_older_runs(copied, monkeypatch):
    with_other_releases(monkeypatch)
    reports = []
    score(copied[1](), Options(on_stage=reports.append))
    assert [report.stage for report in reports if not report.skipped] == []


def test_a_report_of_an_older_version_is_written_again(copied):
    run, config = copied
    marker = Path(run.run.path("_stages", "report.json"))
    document = json.loads(marker.read_text())
    document["fingerprint"]["versions"]["algorithm"] -= 1
    marker.write_text(json.dumps(document))
    reports = []
    score(config(), Options(on_stage=reports.append))
    assert [report.stage for report in reports if not report.skipped] == ["report"]


def test_redo_from_a_stage_repeats_it_and_all_later_ones(finished, copied):
    reports = []
    again = score(copied[1](), Options(redo_from="classify", on_stage=reports.append))
    assert [r.stage for r in reports if r.skipped] == ["ingest", "embed", "neighbors"]
    for name in ("good", "copier"):
        pd.testing.assert_frame_equal(finished.scores(name), again.scores(name))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"classifier": {"seed": 7}}, "classify.*seed"),
        ({"neighbors": {"threshold": 0.2}}, "neighbors.*threshold"),
        ({"encoder": {"image_size": 32}}, "embed.*image_size"),
    ],
)
def test_a_run_is_not_continued_with_other_settings(finished, images, change, named):
    with pytest.raises(ResumeConflict, match=named):
        score(folders(images, finished.run.uri, "good", "copier", **change))


def test_a_run_is_not_continued_with_other_images(images, tmp_path, make_images):
    make_images(tmp_path / "made", 12, seed=9)
    config = parse_config(
        {
            "real": str(images / "real"),
            "synthetic": {"made": str(tmp_path / "made")},
            "output": str(tmp_path / "run"),
        }
    )
    run_until(config, "ingest")
    make_images(tmp_path / "made", 13, seed=10)
    with pytest.raises(ResumeConflict, match="ingest"):
        score(config)


def break_images(folder: Path, source: Path) -> dict[str, str]:
    """Put one image of each fault into a folder; return id and reason."""
    good = source.read_bytes()
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_bytes(b"this is no picture")
    (folder / "cut.png").write_bytes(good[: len(good) // 2])
    Image.new("L", (9000, 9000)).save(folder / "bomb.png")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    return {"empty": "empty", "text": "unsupported", "cut": "truncated", "bomb": "too_large", "gone": "not_found"}


def test_unusable_images_are_listed_with_reasons_and_do_not_affect_other_rows(images, tmp_path):
    shutil.copytree(images / "good", tmp_path / "good")
    reasons = break_images(tmp_path / "good" / "cat", images / "real" / "cat" / "000.png")
    rows = {"real": str(images / "real"), "synthetic": {"good": str(tmp_path / "good")}}
    config = parse_config({**rows, "output": str(tmp_path / "run")})
    del reasons["gone"]
    (tmp_path / "good" / "cat" / "gone.png").unlink()
    with pytest.raises(TooManyFailures, match=r"good: 4 of 64 .*empty 1, too_large 1, truncated 1, unsupported 1"):
        score(config)
    # Raising the limit goes on from what was embedded, and changes no score of the others.
    reports = {}
    result = score(
        config.model_copy(update={"max_failure_fraction": 0.1}),
        Options(on_stage=lambda report: reports.update({report.stage: report})),
    )
    assert reports["embed"].failed_sets == {"good": (64, dict.fromkeys(sorted(reasons.values()), 1))}
    failures = result.failures().set_index("id")["reason"].to_dict()
    assert failures == {f"good/cat/{name}.png": reason for name, reason in reasons.items()}
    assert result.metrics["counts"]["synthetic"] == {"rows": 64, "ok": 60, "failed": 4}
    assert result.metrics["counts"]["failures"] == dict.fromkeys(reasons.values(), 1)
    assert len(result.scores()) == 150


def test_a_missing_file_of_a_table_is_a_failed_row(images, tmp_path):
    names = [f"real/{label}/{i:03d}.png" for i, label in enumerate(["cat", "dog"] * 20)]
    names += [f"good/{label}/{i:03d}.png" for i, label in enumerate(["cat", "dog"] * 20)]
    kinds = ["real"] * 40 + ["synthetic"] * 40
    frame = pd.DataFrame({"id": names, "image_filename": names, "real_or_synthetic": kinds, "prompt": "p"})
    frame.loc[79, "image_filename"] = "good/cat/none.png"
    frame.to_csv(images / "metadata.csv", index=False)
    config = Config(manifest=str(images / "metadata.csv"), output=str(tmp_path / "run"), max_failure_fraction=0.05)
    result = score(config)
    assert result.failures()[["id", "reason"]].to_numpy().tolist() == [[names[79], "not_found"]]
    assert set(result.scores()["prompt"]) == {"p"}


def test_a_missing_file_is_read_on_request_once_it_has_come(images, tmp_path):
    top = tmp_path / "data"
    shutil.copytree(images, top)
    names = [f"{kind}/cat/{i:03d}.png" for kind in ("real", "good") for i in range(0, 60, 2)]
    frame = pd.DataFrame(
        {"id": names, "image_filename": names, "real_or_synthetic": ["real"] * 30 + ["synthetic"] * 30}
    )
    frame.to_csv(top / "metadata.csv", index=False)
    (top / names[-1]).rename(top / "away.png")
    config = Config(manifest=str(top / "metadata.csv"), output=str(tmp_path / "run"))
    with pytest.raises(TooManyFailures, match="not_found 1"):
        score(config)
    (top / "away.png").rename(top / names[-1])
    with pytest.raises(TooManyFailures, match=r"not_found 1.*--retry-failed"):
        score(config)
    result = score(config, Options(retry_failed=True))
    assert len(result.failures()) == 0
    assert len(result.scores()) == 60


def hashes(run):
    table = pq.read_table(run.path("embeddings"), columns=["row", "content_hash"])
    return dict(zip(table["row"].to_pylist(), table["content_hash"].to_pylist(), strict=True))


def test_a_file_that_changed_during_a_run_is_refused(images, tmp_path):
    top = tmp_path / "data"
    shutil.copytree(images, top)
    names = [f"{kind}/cat/{i:03d}.png" for kind in ("real", "good") for i in range(0, 60, 2)]
    frame = pd.DataFrame({"image_filename": names, "real_or_synthetic": ["real"] * 30 + ["synthetic"] * 30})
    frame.to_csv(top / "metadata.csv", index=False)
    config = Config(manifest=str(top / "metadata.csv"), output=str(tmp_path / "run"))
    before = hashes(run_until(config, "embed"))
    shutil.copy(top / names[3], top / names[-1])
    (top / names[5]).unlink()
    with pytest.raises(
        ResumeConflict, match=f"1 images have changed since the run began.*{names[-1]}.*--redo-from"
    ):
        score(config)
    (top / names[5]).write_bytes((images / names[5]).read_bytes())
    after = hashes(run_until(config, "embed", redo_from="ingest"))
    assert [before[row] == after[row] for row in range(60)] == [True] * 59 + [False]


def test_a_generator_may_have_the_name_of_an_internal_column(images, tmp_path):
    shutil.copytree(images / "good", tmp_path / "good")
    values = {"real": str(images / "real"), "synthetic": {"shard": str(tmp_path / "good")}}
    result = score(parse_config({**values, "output": str(tmp_path / "run"), "storage": {"shard_rows": 50}}))
    assert result.metrics["generators"]["shard"]["counts"] == {"real": 90, "synthetic": 60}


def test_the_report_shows_the_settings_that_a_stage_was_redone_with(copied):
    result = score(copied[1](classifier={"head": "linear"}), Options(redo_from="classify"))
    assert "5-fold linear classifier" in Path(result.report_path).read_text()
    assert json.loads(Path(result.run.path("run.json")).read_text())["config"]["classifier"]["head"] == "linear"


def test_a_studio_zip_is_scored(images, tmp_path):
    path = tmp_path / "studio.zip"
    rows = []
    with zipfile.ZipFile(path, "w") as archive:
        for kind, folder in (("real", "real"), ("synthetic", "good")):
            for file in sorted((images / folder).rglob("*.png")):
                name = f"{kind}-{file.parent.name}-{file.name}"
                archive.write(file, f"images/{name}")
                rows.append(
                    {"id": name, "image_filename": name, "real_or_synthetic": kind, "label": file.parent.name}
                )
        archive.writestr("images/metadata.csv", pd.DataFrame(rows).to_csv(index=False))
    result = score(Config(manifest=str(path), output=str(tmp_path / "run")))
    assert result.metrics["generators"]["synthetic"]["counts"] == {"real": 90, "synthetic": 60}


def write_vectors(path, vectors, kinds):
    ids = [f"row-{i}" for i in range(len(kinds))]
    pq.write_table(pa.table({"id": ids, "real_or_synthetic": kinds, "embedding": vectors}), path)


def test_numeric_columns_are_scored_as_in_memory(tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((300, 12)).astype(np.float32)
    kinds = ["real"] * 160 + ["synthetic"] * 140
    ids = [f"row-{i}" for i in range(300)]
    columns = {f"column_{i}": column for i, column in enumerate(vectors.T)}
    pq.write_table(pa.table({"id": ids, "real_or_synthetic": kinds, **columns}), tmp_path / "v.parquet")
    config = Config(manifest=str(tmp_path / "v.parquet"), output=str(tmp_path / "run"))
    result = score(config)
    in_memory = score_features(vectors, kinds, ids=ids)
    assert_same(in_memory.metrics["synthetic"], result.metrics["generators"]["synthetic"])
    assert result.report_path.endswith("report.html")


def test_unusable_vectors_are_listed_with_their_reason(tmp_path):
    rng = np.random.default_rng(0)
    vectors = [list(v) for v in rng.standard_normal((200, 8))]
    vectors[3][2] = float("nan")
    vectors[5] = [0.0] * 8
    vectors[150] = [1.0] * 7
    vectors[160][0] = float("inf")
    write_vectors(tmp_path / "v.parquet", vectors, ["real"] * 100 + ["synthetic"] * 100)
    config = Config(manifest=str(tmp_path / "v.parquet"), output=str(tmp_path / "run"), max_failure_fraction=0.02)
    reasons = score(config).failures().set_index("id")["reason"].to_dict()
    assert reasons == {
        "row-3": "non_finite",
        "row-5": "zero_vector",
        "row-150": "wrong_length",
        "row-160": "non_finite",
    }


def test_small_classes_are_scored_and_a_class_of_one_has_reasons(tmp_path):
    rng = np.random.default_rng(0)
    for synthetic, usable in ((3, True), (1, False)):
        kinds = ["real"] * 60 + ["synthetic"] * synthetic
        path = tmp_path / f"{synthetic}.parquet"
        write_vectors(path, list(rng.standard_normal((len(kinds), 6))), kinds)
        result = score(Config(manifest=str(path), output=str(tmp_path / f"run-{synthetic}")))
        block = result.metrics["generators"]["synthetic"]
        assert (block["metrics"]["fidelity"]["value"] is not None) == usable
        assert block["metrics"]["precision"]["value"] is not None
        if not usable:
            assert "classifier" in block["metrics"]["fidelity"]["reason"]
            assert result.scores()["label_quality_score"].isna().all()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_s3_in_and_out_gives_the_scores_of_the_local_run(finished, images, s3, tmp_path, workers):
    bucket = s3.bucket()
    for name in ("real", "good", "copier"):
        s3.put_folder(images / name, f"s3://{bucket}/data/{name}")
    top = f"s3://{bucket}"
    config = parse_config(
        {
            "real": f"{top}/data/real",
            "synthetic": {name: f"{top}/data/{name}" for name in ("good", "copier")},
            "output": f"{top}/runs/one",
            "storage": {"endpoint_url": s3.endpoint_url},
            # A worker group shares a folder there, too.
            "classifier": {"workers": workers},
        }
    )
    result = score(config)
    for name in ("good", "copier"):
        local, remote = finished.scores(name), result.scores(name)
        assert list(local["id"]) == list(remote["id"])
        assert (local["label_quality_score"] - remote["label_quality_score"]).abs().max() <= 1e-5
        assert (local["near_duplicate_id"].fillna(-1) == remote["near_duplicate_id"].fillna(-1)).all()
    keys = s3.keys(bucket)
    assert "runs/one/report.html" in keys
    assert not [key for key in keys if key.endswith(".tmp") or "_train" in key]
    assert RunResult.open(f"{top}/runs/one", config.storage).generators == ["good", "copier"]
    reports = []
    score(config, Options(on_stage=reports.append))
    assert all(report.skipped for report in reports)


def test_hostile_names_are_text_in_the_report_and_missing_pictures_are_shown(images, tmp_path):
    evil = '<script>alert("1")</script>'
    frame = pd.DataFrame(
        {
            "id": [f"{evil}{i}" for i in range(60)],
            "image_filename": [
                f"{s}/{'cat' if i % 2 == 0 else 'dog'}/{i:03d}.png" for s in ("real", "good") for i in range(30)
            ],
            "real_or_synthetic": ["real"] * 30 + ["synthetic"] * 30,
            "label": evil,
        }
    )
    top = tmp_path / "data"
    shutil.copytree(images, top)
    frame.to_csv(top / "hostile.csv", index=False)
    result = score(Config(manifest=str(top / "hostile.csv"), output=str(tmp_path / "run")))
    html = Path(result.report_path).read_text()
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html
    assert "default-src &#39;none&#39;" in html
    assert "https://" not in html
    assert str(tmp_path) not in html
    assert "picture missing" not in html
    shutil.rmtree(top)
    from synthscale.cli import main

    assert main(["report", result.run.uri]) == 0
    assert "picture missing" in Path(result.report_path).read_text()


def test_missing_gpus_are_reported_before_anything_is_embedded(images, tmp_path):
    with pytest.raises(ConfigError, match="no GPU"):
        score(folders(images, tmp_path / "run", "good", encoder={"device": "cuda"}))


def test_an_empty_class_is_refused(images, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="contains no images"):
        score(
            parse_config({"real": str(images / "real"), "synthetic": {"x": str(tmp_path / "none")}, "output": "x"})
        )


# --- names of generators ---

NAMES = ["org/model-1.0", "größe 50% [b]", "007"]


def test_generators_have_the_names_that_people_gave_them(images, tmp_path):
    shutil.copytree(images / "good", tmp_path / "0")
    for i in range(1, len(NAMES)):
        shutil.copytree(images / "copier", tmp_path / f"{i}")
    gates = [f"generator={name} auc>=0" for name in NAMES]
    config = parse_config(
        {
            "real": str(images / "real"),
            "synthetic": {name: f"{tmp_path}/{i}" for i, name in enumerate(NAMES)},
            "output": f"{tmp_path}/run",
            "gates": gates,
        }
    )
    result = score(config)
    assert result.generators == NAMES
    assert [(gate["generator"], gate["passed"]) for gate in result.metrics["gates"]] == [
        (name, True) for name in NAMES
    ]
    assert (tmp_path / "run" / "scores" / "generator=org%2Fmodel-1.0").is_dir()
    everything = pd.read_parquet(tmp_path / "run" / "scores")
    assert set(everything["generator"]) == set(NAMES)
    assert set(result.scores_dataset().to_table().column("generator").to_pylist()) == set(NAMES)
    for name in NAMES:
        own = result.scores(name)
        assert len(own) == 90 + (own["real_or_synthetic"] == "synthetic").sum() == 150
        assert (len(result.groups(name)) > 0) == (name != NAMES[0])
        assert result.worst("fidelity", 3, name)["id"].str.startswith(f"{path_name(name)}/").all()
    page = Path(result.report_path).read_text("utf-8")
    assert all(name in page for name in NAMES)
    differences = compare_runs([f"{tmp_path}/run"], config.storage).differences
    assert {name for pair in differences for name in (pair.one, pair.two)} == set(NAMES)
    again = []
    score(config, Options(on_stage=lambda report: again.append(report.skipped)))
    assert all(again)
