"""The embedding cache: rows of earlier runs are read from it, and only new images are fetched and embedded."""

import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from synthscale import Config
from synthscale.embed.ray_cache_lookup import CacheLookup
from synthscale.storage.run_directory import RunDirectory
from tests.object_server import ObjectServer
from tests.runs import run_until

pytestmark = pytest.mark.usefixtures("local_ray")


def embed(config):
    """Run ingest and embed; return the embeddings by id, and the progress messages."""
    messages = []
    run = run_until(config, "embed", on_progress=messages.append)
    tables = [pq.read_table(run.path(name)).to_pandas() for name in ("manifest", "embeddings")]
    rows = tables[0][["row", "id"]].merge(tables[1], on="row").drop(columns="row").set_index("id").sort_index()
    assert not Path(run.path("_cached")).exists()
    return rows, [text for text in messages if text.startswith("embed:")]


def assert_same(ours, theirs):
    assert list(ours.index) == list(theirs.index)
    assert (ours.drop(columns="vector").fillna("") == theirs.drop(columns="vector").fillna("")).all().all()
    assert all((a == b).all() for a, b in zip(ours.vector, theirs.vector, strict=True))


@pytest.fixture(scope="module")
def server():
    with ObjectServer() as server:
        yield server


@pytest.fixture
def on_s3(server, tmp_path, make_images, monkeypatch):
    """Buckets with 30 real images and 20 of each of two generators."""
    # Ray's workers have the credentials of the S3 server of the session.
    buckets = {}
    for seed, (name, n) in enumerate({"real": 30, "one": 20, "two": 20}.items()):
        paths = make_images(tmp_path / name, n, seed=seed)
        buckets[name] = f"{tmp_path.name.replace('_', '-')}-{name}"
        for path in paths:
            server.put(buckets[name], path.relative_to(tmp_path / name).as_posix(), path.read_bytes())
    server.fault()

    def config(generator, output, cache="cache", **sections):
        storage = {"endpoint_url": server.endpoint_url, "shard_rows": 16, **sections.pop("storage", {})}
        if cache is not None:
            storage["cache"] = str(tmp_path / cache)
        return Config(
            real=f"s3://{buckets['real']}",
            synthetic={generator: f"s3://{buckets[generator]}"},
            output=str(tmp_path / output),
            storage=storage,
            **sections,
        )

    return config, buckets


def asked(server, bucket):
    return sum(count for name, count in server.asked().items() if name.startswith(f"{bucket}/"))


def test_another_generator_with_the_same_real_set_embeds_only_the_new_images(on_s3, server):
    config, buckets = on_s3
    _, messages = embed(config("one", "first"))
    assert messages == []
    assert asked(server, buckets["real"]) == 30
    server.fault()
    found, messages = embed(config("two", "second"))
    assert messages == ["embed: 30 of 50 embeddings are in the cache"]
    assert asked(server, buckets["real"]) == 0
    assert asked(server, buckets["two"]) == 20
    plain, _ = embed(config("two", "plain", cache=None))
    assert_same(found, plain)
    # All of it is known now, whatever the shards.
    server.fault()
    again, messages = embed(config("two", "third", storage={"shard_rows": 7}))
    assert messages == ["embed: 50 of 50 embeddings are in the cache"]
    assert asked(server, buckets["two"]) == asked(server, buckets["real"]) == 0
    assert_same(again, plain)


def test_a_release_that_changes_no_embedding_finds_the_cache(on_s3, server, monkeypatch):
    config, buckets = on_s3
    embed(config("one", "first"))
    server.fault()
    monkeypatch.setattr("synthscale.__version__", "99.0.1")
    monkeypatch.setattr("torch.__version__", "99.0.1")
    _, messages = embed(config("one", "second"))
    assert messages == ["embed: 50 of 50 embeddings are in the cache"]
    assert asked(server, buckets["real"]) == 0


def test_an_image_that_was_replaced_is_embedded_again(on_s3, server, tmp_path, make_images):
    config, buckets = on_s3
    before, _ = embed(config("one", "first"))
    (other,) = make_images(tmp_path / "other", 1, seed=77)
    server.put(buckets["one"], "cat/000.png", other.read_bytes())
    server.fault()
    after, messages = embed(config("one", "second"))
    assert messages == ["embed: 49 of 50 embeddings are in the cache"]
    assert server.asked()[f"{buckets['one']}/cat/000.png"] == 1
    assert before.content_hash["one/cat/000.png"] != after.content_hash["one/cat/000.png"]
    assert (before.vector["one/cat/000.png"] != after.vector["one/cat/000.png"]).any()


def test_images_listed_in_a_table_are_cached_and_found(on_s3, server, tmp_path):
    config, buckets = on_s3
    folders = config("one", "first")
    rows = ["uri,real_or_synthetic"]
    for name, kind in (("real", "real"), ("one", "synthetic")):
        for path in sorted((tmp_path / name).rglob("*.png")):
            rows.append(f"s3://{buckets[name]}/{path.relative_to(tmp_path / name)},{kind}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    table = Config(manifest=str(tmp_path / "table.csv"), output=str(tmp_path / "table"), storage=folders.storage)
    assert embed(table)[1] == []
    assert embed(folders)[1] == ["embed: 50 of 50 embeddings are in the cache"]


@pytest.mark.slow
def test_concurrent_runs_share_a_cache(on_s3, server):
    config, _ = on_s3
    configs = {name: config(name, f"run-{name}") for name in ("one", "two")}
    script = "import sys; from synthscale import Config, score; score(Config.model_validate_json(sys.argv[1]))"
    at_once = [
        subprocess.Popen([sys.executable, "-c", script, own.model_dump_json()], stderr=subprocess.PIPE, text=True)
        for own in configs.values()
    ]
    for process in at_once:
        assert process.wait(600) == 0, process.stderr.read()
    server.fault()
    for name, own in configs.items():
        again, messages = embed(config(name, f"again-{name}"))
        assert messages == ["embed: 50 of 50 embeddings are in the cache"]
        assert_same(again, embed(config(name, f"plain-{name}", cache=None))[0])
        run = RunDirectory.existing(own.output, own.storage)
        assert pq.read_table(run.path("embeddings")).num_rows == 50


def test_other_encoder_settings_do_not_share_entries(on_s3):
    config, _ = on_s3
    embed(config("one", "first"))
    assert embed(config("one", "second", encoder={"image_size": 48}))[1] == []


@pytest.mark.parametrize(
    "loss", [*(pytest.param(loss, marks=pytest.mark.slow) for loss in ("all", "damaged")), "some"]
)
def test_entries_lost_after_the_lookup_are_recomputed(on_s3, tmp_path, monkeypatch, loss):
    config, _ = on_s3
    embed(config("one", "first"))
    find = CacheLookup.find

    def lose(self, shards):
        found = find(self, shards)
        parts = sorted((tmp_path / "cache").rglob("*.parquet"))
        assert parts
        for path in parts if loss == "all" else parts[:1]:
            path.write_bytes(b"damaged") if loss == "damaged" else path.unlink()
        return found

    monkeypatch.setattr(CacheLookup, "find", lose)
    found, messages = embed(config("two", "second"))
    assert messages == ["embed: 30 of 50 embeddings are in the cache"]
    monkeypatch.undo()
    assert_same(found, embed(config("two", "plain", cache=None))[0])


@pytest.mark.slow
def test_a_damaged_part_is_skipped(on_s3, tmp_path):
    config, _ = on_s3
    embed(config("one", "first"))
    parts = sorted((tmp_path / "cache").rglob("*.parquet"))
    for path in parts:
        path.write_bytes(path.read_bytes()[:100])
    found, messages = embed(config("one", "second"))
    assert messages == []
    assert_same(found, embed(config("one", "plain", cache=None))[0])
    # Their rows were embedded and kept again, in parts of the same names.
    assert sorted((tmp_path / "cache").rglob("*.parquet")) == parts
    assert embed(config("one", "third"))[1] == ["embed: 50 of 50 embeddings are in the cache"]


@pytest.mark.slow
def test_local_files_are_cached_by_time_and_size_and_failures_are_retried(tmp_path, make_images):
    make_images(tmp_path / "real", 20)
    paths = make_images(tmp_path / "fake", 12, seed=1)
    whole = paths[3].read_bytes()
    paths[3].write_bytes(b"no image")
    make_images(tmp_path / "fake", 3, seed=5, labels=("more",))

    def config(output):
        return Config(
            real=str(tmp_path / "real"),
            synthetic={"gan": str(tmp_path / "fake")},
            output=str(tmp_path / output),
            storage={"cache": str(tmp_path / "cache")},
            max_failure_fraction=0.2,
        )

    assert len(embed(config("first"))[0]) == 34
    assert embed(config("second"))[1] == ["embed: 34 of 35 embeddings are in the cache"]
    paths[3].write_bytes(whole)
    found, messages = embed(config("third"))
    assert messages == ["embed: 34 of 35 embeddings are in the cache"]
    assert len(found) == 35
    shutil.rmtree(tmp_path / "cache")
    assert_same(found, embed(config("fourth"))[0])
