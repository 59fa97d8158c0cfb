"""The run directory: shards, JSON documents, markers and resume, on a local disk and on S3."""

import json
import math
import os
import pickle
import time

import pyarrow as pa
import pytest

from synthscale.config import StorageConfig
from synthscale.errors import ConfigError, ResumeConflict, SchemaError, StorageError
from synthscale.storage import filesystems as fsys
from synthscale.storage import run_directory
from synthscale.storage.run_directory import STAGES, TABLES, Marker, RunDirectory, digest
from synthscale.tables.layout import Shard
from synthscale.tables.schemas import SCHEMA_VERSION

LOCAL = StorageConfig()
SCHEMA = pa.schema([("row", pa.int64()), ("x", pa.float32())])
FINGERPRINT = {
    "settings": {"name": "descriptor", "strengths": [1.0, 2.0]},
    "input": "abc",
    "versions": {"ray": "2"},
}


@pytest.fixture(params=["local", "s3"])
def run(request, tmp_path):
    """A started run, on a local disk and on S3."""
    if request.param == "local":
        uri, storage = str(tmp_path / "run"), LOCAL
    else:
        s3 = request.getfixturevalue("s3")
        uri, storage = f"s3://{s3.bucket()}/runs/one", StorageConfig(endpoint_url=s3.endpoint_url)
    directory = RunDirectory.open(uri, storage)
    directory.write_json("run.json", {"schema_version": SCHEMA_VERSION, "run_id": "abc"})
    return directory


# --- opening ---


def test_a_new_an_empty_and_a_started_run_folder_can_be_opened(tmp_path):
    assert not RunDirectory.open(f"{tmp_path}/new", LOCAL).is_started()
    (tmp_path / "empty").mkdir()
    document = {"schema_version": SCHEMA_VERSION, "run_id": "abc"}
    RunDirectory.open(f"{tmp_path}/empty", LOCAL).write_json("run.json", document)
    assert RunDirectory.open(f"{tmp_path}/empty", LOCAL).is_started()


def test_opening_writes_nothing(tmp_path):
    RunDirectory.open(f"{tmp_path}/new", LOCAL)
    assert os.listdir(tmp_path) == []


def test_a_folder_with_nothing_but_a_lease_counts_as_empty(run):
    fsys.remove(run.path("run.json"), run.storage)
    for name in ("lease.json", ".lease.json.0a1b2c3d.tmp", ".run.json.0a1b2c3d.tmp"):
        fsys.write_bytes(run.path(name), b"", run.storage)
    assert not RunDirectory.open(run.uri, run.storage).is_started()
    fsys.write_bytes(run.path("lease.json.bak"), b"", run.storage)
    with pytest.raises(ResumeConflict, match="contains files but no synthscale run"):
        RunDirectory.open(run.uri, run.storage)


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("do not overwrite")
    with pytest.raises(ResumeConflict, match=str(tmp_path)):
        RunDirectory.open(str(tmp_path), LOCAL)


def test_a_prefix_with_other_objects_is_refused(s3):
    bucket = s3.bucket()
    s3.client.put_object(Bucket=bucket, Key="runs/thesis.tex", Body=b"x")
    with pytest.raises(ResumeConflict, match=f"s3://{bucket}/runs"):
        RunDirectory.open(f"s3://{bucket}/runs/", StorageConfig(endpoint_url=s3.endpoint_url))


def test_a_file_as_output_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        RunDirectory.open(f"{tmp_path}/file", LOCAL)


def test_the_error_names_a_missing_run(tmp_path):
    with pytest.raises(StorageError, match=f"{tmp_path}/none"):
        RunDirectory.existing(f"{tmp_path}/none", LOCAL)


def test_an_existing_run_is_opened_and_can_be_pickled(run):
    again = pickle.loads(pickle.dumps(RunDirectory.existing(run.uri, run.storage)))
    assert again == run
    assert again.read_json("run.json") == {"schema_version": SCHEMA_VERSION, "run_id": "abc"}


# --- shards ---


def test_shards_are_cast_to_their_schema_and_read_back(run):
    shard = Shard(3, 10, 12)
    run.write_shard("things", shard, pa.table({"x": [1, 2], "more": ["a", "b"], "row": [10, 11]}), SCHEMA)
    table = run.read_shard("things", shard)
    assert table.schema == pa.schema([*SCHEMA, ("more", pa.string())])
    assert table.to_pydict() == {"row": [10, 11], "x": [1.0, 2.0], "more": ["a", "b"]}
    assert run.read_shard("things", shard, ["x"]).column_names == ["x"]
    assert run.written_shards("things") == {shard.name}


def test_a_shard_that_does_not_conform_to_its_schema_is_not_written(run):
    with pytest.raises(SchemaError, match="things"):
        run.write_shard("things", Shard(0, 0, 1), pa.table({"row": [0]}), SCHEMA)
    assert run.written_shards("things") == set()


def test_a_table_that_was_never_written_has_no_shards(run):
    assert run.written_shards("embeddings") == set()


def test_the_error_names_a_damaged_shard(run):
    shard = Shard(0, 0, 1)
    fsys.write_bytes(run.path("things", shard.name), b"no parquet" * 20, run.storage)
    with pytest.raises(StorageError, match=r"things/part-000000\.parquet"):
        run.read_shard("things", shard)


def test_the_temporary_file_of_a_killed_writer_does_not_count_as_a_shard(tmp_path):
    run = RunDirectory.open(f"{tmp_path}/run", LOCAL)
    run.write_shard("things", Shard(0, 0, 1), pa.table({"row": [0], "x": [0.0]}), SCHEMA)
    (tmp_path / "run" / "things" / "part-000001.parquet.0a1b2c3d.tmp").write_bytes(b"half")
    assert Shard(1, 1, 2).name not in run.written_shards("things")


# --- documents ---


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_documents_refuse_nan_and_infinity(run, value):
    with pytest.raises(ValueError):
        run.write_json("metrics.json", {"fidelity": [{"value": value}]})
    assert not fsys.exists(run.path("metrics.json"), run.storage)


def test_documents_keep_the_order_of_their_keys(run):
    run.write_json("x.json", {"b": 1, "a": [1.5, None, "ü"]})
    assert list(run.read_json("x.json").items()) == [("b", 1), ("a", [1.5, None, "ü"])]


def test_the_error_names_a_damaged_document(run):
    fsys.write_bytes(run.path("run.json"), b'{"run_id": ', run.storage)
    with pytest.raises(StorageError, match=r"run\.json: damaged"):
        run.read_json("run.json")


def test_the_error_names_a_document_that_is_not_text(run):
    fsys.write_bytes(run.path("run.json"), b"\xff\xfe\x00\x01", run.storage)
    with pytest.raises(StorageError, match=r"run\.json"):
        run.read_json("run.json")


# --- markers ---


def test_markers_are_read_back(run):
    marker = Marker("ingest", True, FINGERPRINT, {"rows": 5}, {"shard_stops": [5]}, 1.5)
    run.write_marker(marker)
    assert run.marker("ingest") == marker
    assert run.completed("ingest") == marker


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"{}",
        pytest.param(b"[" * 100_000, id="nested"),
        b'{"stage": "embed", "complete": true, "fingerprint": [], "counts": []}',
        b'{"stage": "embed", "complete": true, "fingerprint": {}, "info": "x"}',
    ],
)
def test_a_damaged_marker_is_an_error_that_names_the_remedy(run, data):
    fsys.write_bytes(run.path("_stages", "embed.json"), data, run.storage)
    with pytest.raises(StorageError, match=r"_stages/embed\.json: damaged.* with --redo-from embed"):
        run.marker("embed")
    run.remove_from("embed")
    assert run.marker("embed") is None


def test_a_stage_that_never_started_has_no_marker(run):
    assert run.marker("embed") is None
    assert run.matching_marker("embed", FINGERPRINT) is None


def test_a_started_stage_is_not_complete(run):
    run.write_marker(Marker("embed", False, FINGERPRINT))
    with pytest.raises(StorageError, match="embed is not complete"):
        run.completed("embed")


def test_the_same_fingerprint_resumes(run):
    marker = Marker("embed", True, FINGERPRINT, {"rows": 5})
    run.write_marker(marker)
    assert run.matching_marker("embed", dict(FINGERPRINT)) == marker


def test_tuples_in_a_fingerprint_equal_stored_lists(run):
    run.write_marker(Marker("embed", True, {"search": (0, 4)}))
    assert run.matching_marker("embed", {"search": (0, 4)}) is not None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"settings": {"name": "torchvision:resnet50", "strengths": [1.0, 2.0]}}, "settings.name"),
        ({"settings": {"name": "descriptor", "strengths": [1.0]}}, "settings.strengths"),
        ({"input": "xyz"}, "input"),
        ({"versions": {"ray": "2", "torch": "3"}}, "versions.torch"),
        ({"versions": {}}, "versions.ray"),
    ],
)
def test_another_fingerprint_conflicts_and_the_error_names_the_difference(run, change, named):
    run.write_marker(Marker("embed", True, FINGERPRINT))
    with pytest.raises(ResumeConflict) as caught:
        run.matching_marker("embed", FINGERPRINT | change)
    message = str(caught.value)
    assert named in message
    assert "embed" in message
    assert "--redo-from embed" in message
    assert all(other not in message for other in {"settings.name", "input", "versions.torch"} - {named})


def test_a_conflict_shows_both_values_when_they_are_short(run):
    run.write_marker(Marker("embed", True, {"settings": {"image_size": 64}}))
    with pytest.raises(ResumeConflict, match=r"64.*128"):
        run.matching_marker("embed", {"settings": {"image_size": 128}})


def test_an_incomplete_stage_conflicts_too(run):
    run.write_marker(Marker("embed", False, FINGERPRINT))
    with pytest.raises(ResumeConflict):
        run.matching_marker("embed", FINGERPRINT | {"input": "xyz"})


def test_a_marker_with_unknown_fields_is_a_storage_error(run):
    run.write_json("_stages/embed.json", {"stage": "embed", "wrong": True})
    with pytest.raises(StorageError, match=r"embed\.json"):
        run.marker("embed")


def test_the_digest_of_a_marker_depends_on_its_fingerprint_only():
    one, two = Marker("ingest", True, {"input": "a"}), Marker("ingest", True, {"input": "b"})
    assert one.digest != two.digest
    assert one.digest == Marker("ingest", True, {"input": "a"}, {"rows": 1}, {}, 9.0).digest


def test_digests_do_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest([1, 2]) != digest([2, 1])


# --- forgetting ---


SHARD = "part-000000.parquet"
OWN_FILES = {
    "index": ["part-00000-of-00001.gan-2.0.faiss", ".part-00000-of-00001.real.faiss.0a1b2c3d.tmp", "space.json"],
    "classifier": [SHARD, "embedding.npz", "embedding.json", "file_facts.state"],
    "scores": [f"generator=gan/{SHARD}", f"generator=gan/.{SHARD}.0a1b2c3d.tmp"],
    "_neighbors": ["join-0/edges-1.npz", "anything"],
}
FOREIGN_FILES = {
    "manifest": ["notes.txt", "deep/part-000000.parquet"],
    "index": ["my.faiss", "space.json.bak"],
    "classifier": ["summary.json", "notes.state"],
    "scores": ["part-000000.parquet", "generator=gan/part-000000.csv", "generator=gan/mine/part-000000.parquet"],
    "predictions": ["part-1.parquet", "part-000000.parquet.tmp", "my-part-000000.parquet"],
}
"""Files that a user may keep in a run's folders."""


def paths(files):
    return [f"{table}/{name}" for table, names in files.items() for name in names]


def fill(run):
    for stage in STAGES:
        run.write_marker(Marker(stage, True, FINGERPRINT))
        for table in TABLES[stage]:
            names = [table] if "." in table else [f"{table}/{name}" for name in OWN_FILES.get(table, [SHARD])]
            for name in names:
                fsys.write_bytes(run.path(name), b"x", run.storage)


@pytest.mark.parametrize("stage", ["ingest", "neighbors", "report"])
def test_forgetting_a_stage_removes_it_and_all_later_stages(run, stage):
    fill(run)
    run.remove_from(stage)
    kept, gone = STAGES[: STAGES.index(stage)], STAGES[STAGES.index(stage) :]
    assert all(run.marker(name) is not None for name in kept)
    assert all(run.marker(name) is None for name in gone)
    assert all(fsys.exists(run.path(table), run.storage) for name in kept for table in TABLES[name])
    assert not any(fsys.exists(run.path(table), run.storage) for name in gone for table in TABLES[name])
    assert run.is_started()


def test_files_with_other_names_stay_where_they_are(run):
    fill(run)
    foreign = [*paths(FOREIGN_FILES), "notes.txt", "report.html.bak"]
    for name in foreign:
        fsys.write_bytes(run.path(name), b"the user's", run.storage)
    run.remove_from("ingest")
    top = run.uri.removeprefix("s3://")
    left = [info.path.removeprefix(f"{top}/") for info in fsys.list_files(run.uri, run.storage)]
    assert sorted(left) == sorted(["run.json", *foreign])


def test_links_to_other_folders_are_not_followed(tmp_path):
    run = RunDirectory.open(f"{tmp_path}/run", LOCAL)
    run.write_json("run.json", {"schema_version": SCHEMA_VERSION, "run_id": "abc"})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / SHARD).write_bytes(b"x")
    fsys.write_bytes(run.path("scores", "generator=gan", SHARD), b"x", LOCAL)
    os.symlink(tmp_path / "elsewhere", run.path("scores", "generator=linked"))
    run.remove_from("reduce")
    assert (tmp_path / "elsewhere" / SHARD).exists()
    assert not fsys.exists(run.path("scores", "generator=gan"), LOCAL)


def test_a_folder_with_the_name_of_a_file_stays(run):
    fsys.write_bytes(run.path("report.html", "mine.txt"), b"x", run.storage)
    run.remove_from("report")
    assert fsys.exists(run.path("report.html", "mine.txt"), run.storage)


def test_markers_are_removed_before_tables(run, monkeypatch):
    fill(run)

    def power_cut(uri, name, storage):
        raise RuntimeError("power cut")

    monkeypatch.setattr(run_directory, "remove_owned", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        run.remove_from("neighbors")
    assert [stage for stage in STAGES if run.marker(stage) is not None] == ["ingest", "embed"]
    monkeypatch.undo()
    run.remove_output("neighbors")
    assert not any(fsys.exists(run.path(table), run.storage) for table in TABLES["neighbors"])
    assert fsys.exists(run.path("scores"), run.storage)


def test_only_the_working_folders_of_a_stage_are_removed_with_its_working_files(run):
    fill(run)
    run.remove_working_files("neighbors")
    gone = [table for stage in STAGES for table in TABLES[stage] if not fsys.exists(run.path(table), run.storage)]
    assert gone == ["_neighbors"]


@pytest.mark.parametrize(
    "document",
    [{"id": 7, "metrics": {"loss": 0.1}}, {"schema_version": SCHEMA_VERSION}, {"run_id": 12}, ["run_id"], None],
)
def test_the_run_json_of_another_program_is_refused_with_one_line_and_nothing_is_removed(tmp_path, document):
    run = RunDirectory(f"{tmp_path}/run", LOCAL)
    fill(run)
    fsys.write_bytes(run.path("run.json"), json.dumps(document).encode(), LOCAL)
    before = fsys.list_files(run.uri, LOCAL)
    for opened in (RunDirectory.open, RunDirectory.existing, lambda *_: run.remove_from("ingest")):
        with pytest.raises(ResumeConflict, match="was not written by synthscale") as error:
            opened(run.uri, LOCAL)
        assert "\n" not in str(error.value)
    assert fsys.list_files(run.uri, LOCAL) == before


@pytest.mark.parametrize("document", [{"run_id": "abc"}, {"run_id": "abc", "schema_version": SCHEMA_VERSION + 1}])
def test_a_run_of_another_schema_version_is_refused_with_one_line(tmp_path, document):
    path = f"{tmp_path}/run"
    fsys.write_bytes(fsys.join(path, "run.json"), json.dumps(document).encode(), LOCAL)
    for opened in (RunDirectory.open, RunDirectory.existing):
        with pytest.raises(
            ResumeConflict, match=r"version of synthscale \(schema .*set --output to a new folder"
        ) as error:
            opened(path, LOCAL)
        assert error.value.exit_code == 2
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("opener", [RunDirectory.open, RunDirectory.existing])
def test_a_server_that_does_not_answer_is_reported_within_seconds(opener, s3_clients_of_its_own):
    storage = StorageConfig(endpoint_url="http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(StorageError, match=r"s3://bucket.*check storage\.endpoint_url") as caught:
        opener("s3://bucket/run", storage)
    assert caught.value.exit_code == 2
    assert time.monotonic() - start < 30
