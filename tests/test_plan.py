"""``validate`` and ``status`` as functions, on local folders; no Ray is started."""

import json
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthscale.config import Config, StorageConfig, parse_config
from synthscale.embed import stage as embed
from synthscale.embed.encoder_reader import encoder_spec
from synthscale.errors import ConfigError, InputError, ResumeConflict, StorageError, TooManyFailures
from synthscale.ingest import stage as ingest
from synthscale.ingest.checks import check_places
from synthscale.ingest.discover import discover
from synthscale.pipeline import score, with_absolute_paths
from synthscale.plan import Plan, Tries, status, validate
from synthscale.runtime.stage_context import StageContext
from synthscale.storage.run_directory import STAGES, Marker, RunDirectory
from synthscale.tables.layout import Shard
from synthscale.tables.schemas import SCHEMA_VERSION, embeddings_schema

LOCAL = StorageConfig()


@pytest.fixture
def values(tmp_path, make_images):
    """Settings of a valid run: a real set of 12 and two synthetic sets of 9 and 5 images."""
    make_images(tmp_path / "photos", 12)
    make_images(tmp_path / "gan", 9, seed=1)
    make_images(tmp_path / "diffusion", 5, seed=2)
    return {
        "real": f"{tmp_path}/photos",
        "synthetic": {"gan": f"{tmp_path}/gan", "diffusion": f"{tmp_path}/diffusion"},
        "output": f"{tmp_path}/runs/one",
    }


def tree(folder):
    return sorted(str(path) for path in folder.rglob("*"))


# --- validate ---


def test_a_plan_has_sets_encoder_and_estimates(values):
    plan = validate(parse_config(values))
    assert plan.sets == {"real": 12, "gan": 9, "diffusion": 5}
    assert plan.encoder.startswith("descriptor")
    assert plan.dimensions > 50
    assert plan.tried >= 3
    assert plan.faults == []
    assert [line.partition(":")[0] for line in plan.lines] == list(plan.sets)
    assert plan.seconds > 0
    assert plan.disk_bytes >= 26 * plan.dimensions * 4


def test_every_set_is_tried_however_small(values, tmp_path, make_images):
    make_images(tmp_path / "tiny", 1, seed=3)
    (tmp_path / "tiny" / "cat" / "000.png").write_bytes(b"no picture")
    values["synthetic"]["tiny"] = f"{tmp_path}/tiny"
    plan = validate(parse_config(values))
    assert plan.sets["tiny"] == 1
    assert any("tiny/cat/000.png" in fault for fault in plan.tries["tiny"].faults)
    with pytest.raises(InputError, match=r"tiny: none of the 1 rows .*tiny/cat/000.png"):
        plan.check_failures()


def test_validating_leaves_no_trace(values, tmp_path):
    before = tree(tmp_path)
    validate(parse_config(values))
    assert tree(tmp_path) == before


def test_validating_leaves_an_existing_empty_output_as_it_was(values, tmp_path):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    before = tree(tmp_path)
    validate(parse_config(values))
    assert tree(tmp_path) == before


def test_rows_that_cannot_be_read_are_listed_with_their_ids(values, tmp_path):
    for path in (tmp_path / "diffusion").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    plan = validate(parse_config(values))
    assert len(plan.faults) == 5
    assert all(fault.startswith("diffusion/") for fault in plan.tries["diffusion"].faults)
    with pytest.raises(InputError, match="diffusion: none of the 5 rows"):
        plan.check_failures()


def test_validate_fails_if_no_row_can_be_read_and_names_one(values, tmp_path):
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"\.png"):
        validate(parse_config(values)).check_failures()


@pytest.mark.parametrize(
    ("rows", "tried", "failed", "limit", "ends"),
    [
        (1000, 8, 0, 0.0, False),
        (1000, 8, 1, 0.0, True),
        (1000, 8, 1, 0.01, False),
        (1000, 8, 2, 0.01, True),
        (1000, 8, 3, 0.2, False),
        (1000, 8, 6, 0.2, True),
        (1000, 8, 7, 1.0, False),
        (1000, 8, 8, 1.0, True),
        (7, 7, 1, 0.01, True),
        (7, 7, 1, 0.2, False),
        (7, 7, 2, 0.2, True),
    ],
)
def test_a_set_fails_in_validate_where_score_would_end(rows, tried, failed, limit, ends):
    """Surely, if it was tried as a whole, or most likely, from a sample."""
    tries = {"real": Tries(8, []), "gan": Tries(tried, ["gan/1.png: cut"] * failed)}
    plan = Plan({"real": 1000, "gan": rows}, "descriptor", 8, tries, 1.0, 1, [], limit)
    if not ends:
        plan.check_failures()
        return
    with pytest.raises((InputError, TooManyFailures), match=r"gan: .*gan/1\.png: cut") as caught:
        plan.check_failures()
    assert caught.value.exit_code == 2


def link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    return f"{tmp_path}/link"


PLACES = {
    "output is real": lambda top: {"output": f"{top}/photos"},
    "output in real": lambda top: {"output": f"{top}/photos/run"},
    "output in real, by a link": lambda top: {"output": f"{link(top)}/run"},
    "output in real, with dots": lambda top: {"output": f"{top}/gan/../photos/run"},
    "output in a synthetic set": lambda top: {"output": f"{top}/diffusion/cat/run"},
    "output around the inputs": lambda top: {"output": str(top)},
    "real is synthetic": lambda top: {"real": f"{top}/gan"},
    "real is synthetic, with a slash": lambda top: {"real": f"{top}/gan/"},
    "real is synthetic, by a link": lambda top: {"synthetic": {"gan": link(top)}},
    "real is synthetic, as a URI": lambda top: {"synthetic": {"gan": f"file://{top}/photos"}},
    "output in real on S3": lambda top: {"real": "s3://bucket/a", "output": "s3://bucket/a/run"},
    "output in a bucket": lambda top: {"real": "s3://bucket", "output": "s3://bucket/run/"},
    "real is synthetic on S3": lambda top: {"real": "s3://b/a/", "synthetic": {"gan": "s3://b/a"}},
    "output in a manifest's folder": lambda top: {
        "real": None,
        "synthetic": {},
        "manifest": f"{top}/photos",
        "output": f"{top}/photos/run",
    },
}


@pytest.mark.parametrize("change", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("command", [validate, score])
def test_input_and_output_are_apart_and_so_are_real_and_synthetic(values, tmp_path, command, change):
    config = parse_config(values | change(tmp_path))
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match=r"inside|as the real set and as gan") as caught:
        command(config)
    assert str(caught.value).isprintable()
    assert tree(tmp_path) == before


def test_places_that_only_look_alike_are_apart(values, tmp_path, make_images):
    make_images(tmp_path / "photos2", 3, seed=5)
    values["synthetic"]["twin"] = values["synthetic"]["gan"]
    values["synthetic"]["other"] = f"{tmp_path}/photos2"
    check_places(parse_config(values | {"output": f"{tmp_path}/photos-run"}))
    check_places(parse_config(values | {"output": "s3://bucket/photos"}))


@pytest.fixture
def begun(values):
    """Settings of a run of which ingest is complete."""
    config = with_absolute_paths(parse_config(values))
    directory = RunDirectory.open(config.output, config.storage)
    directory.write_json("run.json", {"schema_version": SCHEMA_VERSION, "run_id": "abc"})
    context = StageContext(config, directory)
    dataset = discover(config)
    fingerprint = ingest.fingerprint(context, dataset)
    outcome = ingest.run(context, dataset)
    directory.write_marker(Marker("ingest", True, fingerprint, outcome.counts, outcome.info))
    return values


def test_a_run_that_score_would_continue_is_valid(begun, tmp_path):
    before = tree(tmp_path)
    validate(parse_config(begun)).check_failures()
    assert tree(tmp_path) == before


OTHERS = {
    "another input": lambda values, top: {"synthetic": {"gan": f"{top}/gan"}},
    "another name": lambda values, top: {"synthetic": {"new": f"{top}/gan", "diffusion": f"{top}/diffusion"}},
    "control": lambda values, top: {"control": True},
    "another image": lambda values, top: (top / "gan" / "cat" / "000.png").unlink() or {},
    "another encoder": lambda values, top: {"encoder": {"image_size": 32}},
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_a_run_that_score_would_refuse_is_refused(begun, tmp_path, change):
    run = RunDirectory.existing(begun["output"], LOCAL)
    context = StageContext(with_absolute_paths(parse_config(begun)), run)
    run.write_marker(Marker("embed", False, embed.fingerprint(context, encoder_spec(context.config, None))))
    values = begun | change(begun, tmp_path)
    with pytest.raises(ResumeConflict, match=str(tmp_path)):
        validate(parse_config(values))


@pytest.mark.parametrize(
    "document",
    [{"schema_version": SCHEMA_VERSION + 1, "run_id": "abc"}, {"schema_version": SCHEMA_VERSION}, {}, []],
)
def test_the_output_of_another_version_or_program_is_refused(values, tmp_path, document):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "run.json").write_text(json.dumps(document))
    with pytest.raises(ResumeConflict, match=f"{tmp_path}/runs/one"):
        validate(parse_config(values))


def test_files_that_are_not_images_are_noted(values, tmp_path):
    (tmp_path / "photos" / "notes.txt").write_text("x")
    (note,) = [line for line in validate(parse_config(values)).lines if line.startswith("note: ")]
    assert "photos" in note


def test_a_missing_input_is_named(values, tmp_path):
    values["synthetic"]["gone"] = f"{tmp_path}/gone"
    with pytest.raises(InputError, match="gone"):
        validate(parse_config(values))


def test_a_missing_weights_file_is_named(values, tmp_path):
    encoder = {"name": "torchvision:squeezenet1_1", "weights": f"{tmp_path}/none.pt"}
    with pytest.raises(StorageError, match=r"none\.pt"):
        validate(parse_config(values | {"encoder": encoder}))


def test_an_unknown_encoder_is_refused(values):
    with pytest.raises(ConfigError, match="clip"):
        validate(parse_config(values | {"encoder": {"name": "clip"}}))


def test_an_incomplete_configuration_is_refused(values):
    with pytest.raises(ConfigError, match="no output"):
        validate(parse_config(values | {"output": None}))


def test_a_file_as_output_is_refused(values, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=f"{tmp_path}/file"):
        validate(parse_config(values | {"output": f"{tmp_path}/file"}))


def test_an_output_below_a_file_is_refused(values, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=f"{tmp_path}/file/run"):
        validate(parse_config(values | {"output": f"{tmp_path}/file/run"}))


def test_an_output_with_other_files_is_refused(values, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ResumeConflict, match=f"{tmp_path}/mine"):
        validate(parse_config(values | {"output": f"{tmp_path}/mine"}))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_that_cannot_be_written_is_refused(values, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(StorageError, match="locked"):
        validate(parse_config(values | {"output": f"{tmp_path}/locked/run"}))


def test_an_output_bucket_that_does_not_exist_is_refused(values, s3):
    output = "s3://no-such-bucket-anywhere/run"
    with pytest.raises(StorageError, match="no-such-bucket-anywhere"):
        validate(parse_config(values | {"output": output, "storage": {"endpoint_url": s3.endpoint_url}}))


def test_an_output_on_s3_is_tried_and_left_empty(values, s3):
    bucket = s3.bucket()
    output = f"s3://{bucket}/runs/one"
    validate(parse_config(values | {"output": output, "storage": {"endpoint_url": s3.endpoint_url}}))
    assert s3.keys(bucket) == []


def test_duplicate_ids_are_failures_of_their_rows(tmp_path, make_images):
    paths = make_images(tmp_path / "set", 4)
    frame = pd.DataFrame(
        {
            "id": ["a", "b", "a", "c"],
            "image_filename": [path.relative_to(tmp_path / "set").as_posix() for path in paths],
            "real_or_synthetic": ["real", "synthetic"] * 2,
        }
    )
    frame.to_csv(tmp_path / "set" / "metadata.csv", index=False)
    plan = validate(Config(manifest=f"{tmp_path}/set", output=f"{tmp_path}/run"))
    assert plan.faults == ["a (duplicate 1): another row has the id 'a' and differs"]
    assert any("1 row failed as duplicate_id" in note for note in plan.lines)


def test_vectors_are_tried_without_an_encoder(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(6, 4))
    vectors[3] = 0
    vectors[4, 1] = np.nan
    table = pa.table(
        {
            "id": [f"v{i}" for i in range(6)],
            "real_or_synthetic": ["real", "synthetic"] * 3,
            "embedding": pa.array(vectors.tolist(), pa.list_(pa.float64())),
        }
    )
    pq.write_table(table, tmp_path / "v.parquet")
    plan = validate(Config(manifest=f"{tmp_path}/v.parquet", output=f"{tmp_path}/run"))
    assert plan.sets == {"real": 3, "synthetic": 3}
    assert plan.dimensions == 4
    assert plan.seconds is None
    assert sorted(fault.partition(":")[0] for fault in plan.faults) == ["v3", "v4"]


# --- status ---


@pytest.fixture
def run(tmp_path):
    """A run that stopped in the middle of embed: two of three shards, 25 of 40 rows."""
    directory = RunDirectory.open(f"{tmp_path}/run", LOCAL)
    directory.write_json("run.json", {"schema_version": SCHEMA_VERSION, "run_id": "abc"})
    info = {"shard_stops": [10, 25, 40], "generators": ["gan"], "notes": [], "vectors": None}
    directory.write_marker(Marker("ingest", True, {}, {"rows": 40, "real": 15, "synthetic": 25}, info, 1.25))
    directory.write_marker(Marker("embed", False, {}))
    schema = embeddings_schema(2)
    for i, (start, stop) in enumerate([(0, 10), (10, 25)]):
        rows = {name: pa.nulls(stop - start) for name in schema.names}
        rows |= {"row": range(start, stop), "vector": [[1.0, 2.0]] * (stop - start)}
        directory.write_shard("embeddings", Shard(i, start, stop), pa.table(rows), schema)
    return directory


def test_the_status_of_an_unfinished_run(run):
    lines = status(run.uri, Config())
    assert [line.stage for line in lines] == list(STAGES)
    assert [line.state for line in lines] == ["done", "begun", "waiting", "waiting", "waiting", "waiting"]
    assert "40 rows" in lines[0].detail
    assert "1.2" in lines[0].detail
    assert "25 of 40 rows" in lines[1].detail


def test_all_stages_of_a_finished_run_are_done(run):
    for stage in STAGES[1:]:
        run.write_marker(Marker(stage, True, {}, {"rows": 40}))
    assert {line.state for line in status(run.uri, Config())} == {"done"}


def test_status_changes_no_file(run, tmp_path):
    before = tree(tmp_path)
    status(run.uri, Config())
    assert tree(tmp_path) == before


def test_the_status_of_a_missing_run_is_an_error_with_its_path(tmp_path):
    with pytest.raises(StorageError, match=str(tmp_path)):
        status(str(tmp_path), Config())


def test_the_status_of_a_run_on_s3_is_read(s3):
    storage = StorageConfig(endpoint_url=s3.endpoint_url)
    directory = RunDirectory.open(f"s3://{s3.bucket()}/run", storage)
    directory.write_json("run.json", {"schema_version": SCHEMA_VERSION, "run_id": "abc"})
    directory.write_marker(Marker("ingest", True, {}, {"rows": 40}))
    states = [line.state for line in status(directory.uri, Config(storage=storage))]
    assert states == ["done", *["waiting"] * 5]
