"""Outages end a run as resumable; ``--retry-failed`` tries failed rows again and keeps every embedding."""

import os
import subprocess
import time
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from synthscale import Config
from synthscale.errors import ResumeConflict, StorageFull, StorageUnavailable, TooManyFailures
from synthscale.pipeline import Options, score
from synthscale.storage.run_directory import RunDirectory
from synthscale.tables.layout import Shard
from synthscale.tables.schemas import FAILURES
from tests.object_server import Fault, ObjectServer
from tests.runs import run_until

pytestmark = pytest.mark.usefixtures("local_ray")

SIZES = {"real": 24, "fake": 20}


@pytest.fixture(scope="module")
def server():
    with ObjectServer() as server:
        yield server


@pytest.fixture
def images(tmp_path, make_images, server):
    """A folder with real and fake images, which are also in the buckets ``real`` and ``fake``."""
    for seed, (name, n) in enumerate(SIZES.items()):
        for path in make_images(tmp_path / name, n, seed=seed):
            server.put(name, path.relative_to(tmp_path / name).as_posix(), path.read_bytes())
    server.fault()
    return tmp_path


def on_disk(images, output, **sections):
    sets = {"real": str(images / "real"), "synthetic": {"g": str(images / "fake")}}
    storage = {"shard_rows": 8, **sections.pop("storage", {})}
    return Config(**sets, output=str(images / output), storage=storage, **sections)


def on_s3(server, images, output, **sections):
    sets = {"real": "s3://real", "synthetic": {"g": "s3://fake"}}
    storage = {"endpoint_url": server.endpoint_url, "shard_rows": 8, **sections.pop("storage", {})}
    return Config(**sets, output=str(images / output), storage=storage, **sections)


def embed(config, **options):
    """Run until embed is complete; return embeddings and failures by id, and what was said about it."""
    messages = []
    run = run_until(config, "embed", on_progress=messages.append, **options)
    manifest, embeddings, failures = (
        pq.read_table(run.path(name)).to_pandas() for name in ("manifest", "embeddings", "failures")
    )
    assert len(embeddings) + len(failures) == len(manifest) == run.completed("embed").counts["rows"]
    assert not set(embeddings.row) & set(failures.row)
    ids = manifest.set_index("row").id
    return (
        embeddings.assign(id=ids[embeddings.row].values).set_index("id").sort_index(),
        failures.set_index("id"),
        [text for text in messages if text.startswith("embed:")],
    )


def assert_same(ours, theirs):
    assert list(ours.index) == list(theirs.index)
    assert ours.content_hash.tolist() == theirs.content_hash.tolist()
    assert all((a == b).all() for a, b in zip(ours.vector, theirs.vector, strict=True))


def objects_asked(server):
    return {name for name in server.asked() if "/" in name}


# --- outages ---


def test_an_outage_ends_the_run_as_resumable_and_the_next_run_fetches_only_the_rest(server, images):
    # Shards 0 to 2 are the real images, which can be read.
    server.fault(Fault("fake/", "slow_down"))
    config = on_s3(server, images, "run", storage={"retry_s": 1})
    with pytest.raises(
        StorageUnavailable, match=r"s3://fake/.*: cannot read: .*503.* run the same command again"
    ) as e:
        score(config)
    assert e.value.exit_code == 1
    run = RunDirectory.existing(config.output, config.storage)
    kept = run.written_shards("embeddings")
    assert all(run.read_shard("failures", Shard(int(name[5:11]), 0, 0)).num_rows == 0 for name in kept)
    server.fault()
    embeddings, failures, _ = embed(config)
    assert failures.empty
    assert len(objects_asked(server)) == sum(SIZES.values()) - 8 * len(kept)
    assert_same(embeddings, embed(on_disk(images, "undisturbed"))[0])


def test_an_outage_shorter_than_the_limit_is_not_seen(server, images):
    server.fault(Fault("fake/", "slow_down", for_s=2), Fault("real/cat", "reset", for_s=2))
    embeddings, failures, _ = embed(on_s3(server, images, "run", storage={"retry_s": 60}))
    assert failures.empty
    assert_same(embeddings, embed(on_disk(images, "undisturbed"))[0])


def test_a_mount_that_disappears_after_ingest_fails_no_row_and_the_run_continues_when_it_is_back(images):
    config = on_disk(images, "run", storage={"retry_s": 1})

    def unmount(report):
        if report.stage == "ingest":
            (images / "fake").rename(images / "elsewhere")
            (images / "fake").mkdir()

    with pytest.raises(StorageUnavailable, match=f"{images}/fake has disappeared") as caught:
        score(config, Options(on_stage=unmount))
    assert caught.value.exit_code == 1
    # Still away: the run is neither refused nor are its rows lost.
    with pytest.raises(StorageUnavailable, match="fake"):
        score(config)
    (images / "fake").rmdir()
    (images / "elsewhere").rename(images / "fake")
    embeddings, failures, _ = embed(config)
    assert failures.empty
    assert len(embeddings) == sum(SIZES.values())


def test_a_server_that_is_gone_when_a_started_run_continues_is_waited_for(images, server):
    with ObjectServer() as other:
        for name in SIZES:
            other.serve_folder(name, images / name)
        config = on_s3(other, images, "run", storage={"retry_s": 1})
        run_until(config, "ingest")
    with pytest.raises(StorageUnavailable, match="s3://real"):
        score(config)


def test_a_full_disk_ends_the_run_as_resumable_and_it_continues_when_there_is_space(images):
    disk = images / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(disk)]).returncode:
        pytest.skip("may not mount a small disk")
    try:
        config = on_disk(images, "disk/run")
        with pytest.raises(StorageFull, match=r"disk/run/.*: cannot write: the disk or quota is full") as caught:
            score(config)
        assert caught.value.exit_code == 1
        kept = RunDirectory.existing(config.output, config.storage).written_shards("embeddings")
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        times = {name: os.stat(disk / "run" / "embeddings" / name).st_mtime_ns for name in kept}
        embeddings, failures, _ = embed(config)
        assert failures.empty
        assert len(embeddings) == sum(SIZES.values())
        assert times == {name: os.stat(disk / "run" / "embeddings" / name).st_mtime_ns for name in kept}
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


# --- failed rows ---


def test_failed_rows_are_kept_by_a_rerun_and_tried_again_on_request_alone(server, images):
    denied = ("fake/cat/000", "fake/dog/001", "real/cat/010")
    server.fault(*(Fault(name, "denied") for name in denied))
    config = on_s3(server, images, "run", max_failure_fraction=0.2)
    first, failures, _ = embed(config)
    assert sorted(failures.reason) == ["access_denied"] * 3
    server.fault()
    same, failures, _ = embed(config)
    assert len(failures) == 3
    assert objects_asked(server) == set()
    assert_same(same, first)
    embeddings, failures, messages = embed(config, retry_failed=True)
    assert failures.empty
    assert messages == [
        "embed: 3 rows that failed are tried again",
        "embed: 3 of 3 rows that failed could be read now",
    ]
    # No other image was fetched, so every embedding was kept.
    assert objects_asked(server) == {f"{name}.png" for name in denied}
    assert_same(embeddings.loc[first.index], first)
    assert_same(embeddings, embed(on_disk(images, "undisturbed"))[0])
    assert embed(config, retry_failed=True)[2] == [
        "embed: no row has failed: --retry-failed has nothing to try again"
    ]


def test_a_run_with_too_many_failures_continues_with_those_that_can_be_read_now(server, images):
    server.fault(Fault("fake/cat", "denied"))
    config = on_s3(server, images, "run")
    for _ in range(2):
        with pytest.raises(TooManyFailures, match=r"access_denied 10\).*--retry-failed"):
            score(config)
    server.fault(Fault("fake/cat/000", "denied"))
    with pytest.raises(TooManyFailures, match="access_denied 1"):
        score(config, Options(retry_failed=True))
    server.fault()
    embeddings, failures, _ = embed(config, retry_failed=True)
    assert failures.empty
    assert objects_asked(server) == {"fake/cat/000.png"}
    assert_same(embeddings, embed(on_disk(images, "undisturbed"))[0])


def test_what_depends_on_new_rows_is_recomputed_and_nothing_if_there_are_none(server, images):
    server.fault(Fault("fake/cat/000", "denied"))
    config = on_s3(server, images, "run", max_failure_fraction=0.2)
    assert score(config).metrics["counts"]["failures"] == {"access_denied": 1}

    def retried():
        reports = []
        result = score(config, Options(retry_failed=True, on_stage=reports.append))
        return result, {report.stage for report in reports if not report.skipped}

    assert retried()[1] == {"embed"}
    server.fault()
    ours, computed = retried()
    assert computed == {"embed", "neighbors", "classify", "reduce", "report"}
    assert ours.metrics["counts"]["failures"] == {}
    theirs = score(on_disk(images, "undisturbed"))
    ours, theirs = (run.scores().sort_values("id").reset_index(drop=True) for run in (ours, theirs))
    pd.testing.assert_frame_equal(ours.drop(columns="uri"), theirs.drop(columns="uri"), atol=1e-5, rtol=0)
    assert retried()[1] == set()


def test_later_stages_are_outdated_also_if_the_retry_was_killed_before_it_could_say_so(
    server, images, monkeypatch
):
    server.fault(Fault("fake/cat/000", "denied"))
    config = on_s3(server, images, "run", max_failure_fraction=0.2)
    run = run_until(config, "neighbors")
    server.fault()

    class KilledError(Exception):
        pass

    def die(*args):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("synthscale.embed.stage._remove_outdated", die)
        with pytest.raises(KilledError):
            score(config, Options(retry_failed=True))
    assert run.marker("neighbors").complete
    # Without --retry-failed: the next run finishes what the killed one began.
    embeddings, failures, _ = embed(config)
    assert failures.empty
    assert len(embeddings) == sum(SIZES.values())
    assert run.marker("neighbors") is None


def test_rows_lost_between_the_two_tables_of_a_killed_retry_are_embedded_by_the_next_run(server, images):
    server.fault(Fault("fake/cat/000", "denied"))
    config = on_s3(server, images, "run", max_failure_fraction=0.2)
    first, _, _ = embed(config)
    run = RunDirectory.existing(config.output, config.storage)
    (shard,) = [s for s in run.shards() if run.read_shard("failures", s).num_rows]
    marker = run.marker("embed")
    run.write_json("_stages/embed.json", {**vars(marker), "complete": False})
    run.write_shard("failures", shard, FAILURES.empty_table(), FAILURES)
    server.fault()
    embeddings, failures, _ = embed(config)
    assert failures.empty
    assert objects_asked(server) == {"fake/cat/000.png"}
    assert_same(embeddings.loc[first.index], first)


def table_of(images, names):
    rows = [f"{name},{'real' if name.startswith('real') else 'synthetic'}" for name in names]
    (images / "metadata.csv").write_text("\n".join(["image_filename,real_or_synthetic", *rows]))
    return Config(
        manifest=str(images / "metadata.csv"),
        output=str(images / "run"),
        storage={"shard_rows": 8, "cache": str(images / "cache")},
        max_failure_fraction=0.2,
    )


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_images_of_a_folder_that_have_been_mended_since_are_embedded(server, images, place):
    names = ("fake/cat/000.png", "real/dog/001.png")
    data = {name: (images / name).read_bytes() for name in (*names, "real/cat/000.png")}

    def put(name, content):
        (images / name).write_bytes(content)
        if place == "s3":
            server.put(*name.split("/", 1), content)

    for name in names:
        put(name, b"no image")
    where = (server, images, "run") if place == "s3" else (images, "run")
    config = (on_s3 if place == "s3" else on_disk)(*where, max_failure_fraction=0.2)
    first, failures, _ = embed(config)
    assert len(failures) == 2
    for name in names:
        put(name, data[name])
    with pytest.raises(ResumeConflict, match=r"2 images have changed.*real/dog/001\.png.*--retry-failed"):
        score(config)
    embeddings, failures, _ = embed(config, retry_failed=True)
    assert failures.empty
    assert_same(embeddings.loc[first.index], first)
    assert_same(embeddings, embed(on_disk(images, "undisturbed"))[0])
    # The manifest has their sizes and etags now: a plain run goes on.
    assert_same(embed(config)[0], embeddings)
    # Any other image that changes is refused, and so is another listing.
    put("real/cat/000.png", data["real/cat/000.png"] + b"x")
    with pytest.raises(ResumeConflict, match=r"1 images have changed.*real/cat/000\.png.*--redo-from ingest$"):
        score(config, Options(retry_failed=True))
    put("real/cat/000.png", data["real/cat/000.png"])
    if place == "disk":
        put("real/cat/one_more.png", data["real/cat/000.png"])
        with pytest.raises(
            ResumeConflict, match=r"its input has changed .*\(44 rows, now 45\).*--redo-from ingest$"
        ):
            score(config, Options(retry_failed=True))


def test_images_of_a_table_that_have_come_or_been_mended_since_are_embedded(images):
    names = [str(path.relative_to(images)) for path in sorted(images.rglob("*.png"))]
    late, broken = images / "fake/cat/000.png", images / "real/dog/001.png"
    data = {path: path.read_bytes() for path in (late, broken)}
    late.unlink()
    broken.write_bytes(b"no image")
    config = table_of(images, names)
    first, failures, _ = embed(config)
    assert sorted(failures.reason) == ["not_found", "unsupported"]
    for path, content in data.items():
        path.write_bytes(content)
    with pytest.raises(ResumeConflict, match=r"1 images have changed.*--retry-failed"):
        score(config)
    embeddings, failures, _ = embed(config, retry_failed=True)
    assert failures.empty
    assert_same(embeddings.loc[first.index], first)
    # The manifest has their sizes and etags now: a plain run goes on, and the cache has them under these.
    assert_same(embed(config)[0], embeddings)
    manifest = pq.read_table(images / "run" / "manifest").to_pandas().set_index("id")
    assert manifest.size_bytes[str(late.relative_to(images))] == len(data[late])
    again, _, messages = embed(config.model_copy(update={"output": str(images / "again")}))
    assert messages == ["embed: 44 of 44 embeddings are in the cache"]
    assert_same(again, embeddings)
    # Any other image that changes is refused, also with --retry-failed.
    time.sleep(0.01)
    Path(images / names[-1]).touch()
    with pytest.raises(ResumeConflict):
        score(config, Options(retry_failed=True))
