"""Runs with images on S3: network faults, killed processes and lost nodes change no score and lose no row."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from synthscale import Config
from synthscale.config import StorageConfig
from synthscale.embed import stage as embed_stage
from synthscale.errors import TooManyFailures
from synthscale.pipeline import score
from synthscale.result import RunResult
from synthscale.storage.run_directory import RunDirectory
from tests.object_server import Fault, ObjectServer
from tests.runs import run_until
from tests.two_nodes import last_line

pytestmark = pytest.mark.usefixtures("local_ray")

SIZES = {"real": 48, "fake": 40}


@pytest.fixture(scope="module")
def server():
    with ObjectServer() as server:
        yield server


@pytest.fixture(scope="module")
def images(tmp_path_factory, make_images, server):
    """A folder with real and fake images, which are also in the buckets ``real`` and ``fake``."""
    top = tmp_path_factory.mktemp("images")
    for seed, (name, n) in enumerate(SIZES.items()):
        for path in make_images(top / name, n, seed=seed):
            server.put(name, f"set/{path.relative_to(top / name).as_posix()}", path.read_bytes())
    return top


def on_disk(images, output):
    sets = {"real": str(images / "real"), "synthetic": {"g": str(images / "fake")}}
    return Config(**sets, output=str(output), storage={"shard_rows": 8})


def on_s3(server, output, **sections):
    sets = {"real": "s3://real/set", "synthetic": {"g": "s3://fake/set"}}
    storage = {"endpoint_url": server.endpoint_url, "shard_rows": 8}
    return Config(**sets, output=str(output), storage=storage, **sections)


@pytest.fixture(scope="module")
def undisturbed(local_ray, images, tmp_path_factory):
    return score(on_disk(images, tmp_path_factory.mktemp("undisturbed") / "run"))


def embed(config, after_ingest=lambda: None, **options):
    """Run only ingest and embed; return the tables of embeddings and of failures, sorted by row."""

    def on_stage(report):
        if report.stage == "ingest":
            after_ingest()

    run_until(config, "embed", on_stage=on_stage, **options)
    return written(config)


def written(config):
    run = RunDirectory.existing(config.output, config.storage)
    frames = [pq.read_table(run.path(name)).to_pandas() for name in ("embeddings", "failures")]
    counts = run.completed("embed").counts
    assert (counts["ok"], counts["failed"]) == (len(frames[0]), len(frames[1]))
    assert counts["ok"] + counts["failed"] == counts["rows"]
    return [frame.sort_values("row").reset_index(drop=True) for frame in frames]


def assert_same_vectors(ours, theirs):
    assert ours.row.tolist() == theirs.row.tolist()
    assert ours.content_hash.tolist() == theirs.content_hash.tolist()
    assert all((a == b).all() for a, b in zip(ours.vector, theirs.vector, strict=True))


def test_temporary_faults_change_no_score_of_a_run_from_s3_to_s3(server, undisturbed):
    server.put("runs", "placeholder", b"")
    server.fault(
        Fault(r"\?", "slow_down", times=1),
        Fault("/00[0-3]", "slow_down", times=2),
        Fault("/00[4-7]", "reset", times=1),
        Fault("/01[0-3]", "cut", times=2),
        Fault("/01[4-7]", "short", times=1),
        Fault("/02", "error", times=1),
    )
    result = score(on_s3(server, "s3://runs/first"))
    ours, theirs = (run.scores().sort_values("id").reset_index(drop=True) for run in (result, undisturbed))
    pd.testing.assert_frame_equal(ours.drop(columns="uri"), theirs.drop(columns="uri"), atol=1e-5, rtol=0)
    assert result.metrics["counts"] == undisturbed.metrics["counts"]


def test_permanent_faults_are_failures_of_the_affected_rows_only(server, images, undisturbed, tmp_path):
    server.fault(Fault("fake/set/cat/002", "denied"), Fault("fake/set/dog/003", "short"))
    other = (images / "real" / "cat" / "000.png").read_bytes()
    kept = (images / "fake" / "cat" / "004.png").read_bytes()
    config = on_s3(server, tmp_path / "run", max_failure_fraction=0.2)
    try:
        embeddings, failures = embed(config, lambda: server.put("fake", "set/cat/004.png", other))
    finally:
        server.put("fake", "set/cat/004.png", kept)
    reasons = dict(zip(failures.id, failures.reason, strict=True))
    assert reasons == {
        "g/cat/002.png": "access_denied",
        "g/dog/003.png": "truncated",
        "g/cat/004.png": "changed",
    }
    whole = written(on_disk(images, undisturbed.run.uri))[0]
    assert_same_vectors(embeddings, whole[whole.row.isin(embeddings.row)].reset_index(drop=True))


def test_too_many_faults_end_the_run_and_the_failed_rows_are_tried_again_on_request(
    server, images, undisturbed, tmp_path
):
    server.fault(Fault("fake/set/cat", "denied"))
    config = on_s3(server, tmp_path / "run")
    with pytest.raises(TooManyFailures, match="access_denied 20"):
        score(config)
    server.fault()
    embeddings, failures = embed(config, retry_failed=True)
    assert failures.empty
    assert_same_vectors(embeddings, written(on_disk(images, undisturbed.run.uri))[0])
    # No other image was fetched again.
    assert sum(server.asked().values()) - server.asked()["fake"] - server.asked()["real"] == 20


def test_no_credential_is_written_anywhere(server, tmp_path):
    server.fault()
    config = on_s3(server, tmp_path / "run")
    embed(config)
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in data or path.suffix == ".parquet"


def embed_actors():
    """Return the ids of embed actor processes that descend from this process."""
    parents, actors = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if b"EmbedActor" in (folder / "cmdline").read_bytes():
                actors.append(int(folder.name))
        except OSError:
            continue

    def is_ours(pid):
        return pid == os.getpid() or (pid in parents and is_ours(parents[pid]))

    return [pid for pid in actors if is_ours(pid)]


def test_a_killed_actor_is_replaced_and_no_row_is_lost(server, images, undisturbed, tmp_path, monkeypatch):
    # So few images are otherwise encoded in this process.
    monkeypatch.setattr(embed_stage, "_ONE_PROCESS_ROWS", 0)
    server.fault(Fault("set/", latency_s=0.3))
    config, killed = on_s3(server, tmp_path / "run"), []

    def kill():
        shards = tmp_path / "run" / "embeddings"
        deadline = time.monotonic() + 600
        while not killed and time.monotonic() < deadline:
            if shards.is_dir() and any(shards.iterdir()):
                killed.extend(embed_actors())
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    embeddings, failures = embed(config)
    killer.join()
    assert killed
    assert failures.empty
    assert_same_vectors(embeddings, written(on_disk(images, undisturbed.run.uri))[0])


@pytest.mark.slow
def test_a_run_on_s3_resumes_after_its_driver_was_killed(server, undisturbed, tmp_path):
    server.put("kills", "placeholder", b"")
    server.fault(Fault("set/", latency_s=0.3))
    config = on_s3(server, "s3://kills/run")
    (tmp_path / "config.yaml").write_text(json.dumps(config.model_dump(mode="json", exclude_none=True)))
    command = [sys.executable, "-m", "synthscale.cli", "score", "--config", str(tmp_path / "config.yaml")]

    def written_keys():
        return {key for key in server.asked("PUT") if key.startswith("kills/run/embeddings/")}

    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 600
        while len(written_keys()) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = written_keys()
    assert 2 <= len(kept) < 11
    server.fault()
    resumed = subprocess.run(command, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    # Shards that were written are not written again, and no shard is missing.
    assert not kept & written_keys()
    assert len(kept | written_keys()) == 11
    result = RunResult.open("s3://kills/run", StorageConfig(endpoint_url=server.endpoint_url))
    ours, theirs = (run.scores().sort_values("id").reset_index(drop=True) for run in (result, undisturbed))
    pd.testing.assert_frame_equal(ours.drop(columns="uri"), theirs.drop(columns="uri"), atol=1e-5, rtol=0)


_SMALL_STORE = """
import sys
import ray
from ray._private.internal_api import memory_summary
from synthscale import Config
from synthscale.pipeline import Options, score
from synthscale.embed import stage as embed
from synthscale.embed.ray_tasks import EmbedActor
class OnCpu(EmbedActor):
    def __init__(self, job, layout, device): super().__init__(job, layout, "cpu")
embed.EmbedActor, embed.device_for = OnCpu, lambda context: "cuda"
ray.init("local", num_cpus=2, num_gpus=1, object_store_memory=100 * 2**20, log_to_driver=False)
config = Config.model_validate_json(sys.argv[1])
class Done(Exception): pass
def on_stage(report):
    if report.stage == "embed":
        print("Spilled" in memory_summary(ray.get_runtime_context().gcs_address, stats_only=True), flush=True)
        raise Done
try: score(config, Options(ray_address=ray.get_runtime_context().gcs_address, on_stage=on_stage))
except Done: pass
"""


@pytest.mark.slow
def test_pixels_sent_to_gpu_actors_do_not_spill_from_the_object_store(server, make_images, tmp_path):
    # 193 MB of pixels pass from tasks to an actor through an object store of 100 MiB.
    for seed, name in enumerate(("real", "fake")):
        paths = make_images(tmp_path / name, 40, seed=seed)
        for i in range(600):
            shutil.copy(paths[i % 40], tmp_path / name / f"{i}.png")
    sets = {"real": str(tmp_path / "real"), "synthetic": {"g": str(tmp_path / "fake")}}
    encoder = {"name": "descriptor", "image_size": 224}
    config = Config(**sets, output=str(tmp_path / "run"), encoder=encoder, storage={"shard_rows": 32})
    assert last_line(_SMALL_STORE, config) == "False"
    embeddings, failures = written(config)
    assert len(embeddings) == 1280
    assert failures.empty


_TWO_NODES = """
import json, sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
from synthscale import Config
from synthscale.pipeline import Options, score
from synthscale.embed import stage as embed
embed._ONE_PROCESS_ROWS = 0
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
second = cluster.add_node(num_cpus=2)
config = Config.model_validate_json(sys.argv[1])
lost = []
def lose():
    shards = Path(config.output) / "embeddings"
    while not (shards.is_dir() and any(shards.iterdir())): time.sleep(0.02)
    cluster.remove_node(second, allow_graceful=False)
    lost.append(len(list(shards.iterdir())))
class Done(Exception): pass
def on_stage(report):
    if report.stage == "embed": raise Done
threading.Thread(target=lose, daemon=True).start()
try: score(config, Options(ray_address=cluster.address, on_stage=on_stage))
except Done: pass
print(json.dumps(lost))
"""


@pytest.mark.slow
def test_losing_a_node_loses_no_row(server, images, undisturbed, tmp_path):
    server.fault(Fault("set/", latency_s=0.3))
    config = on_s3(server, tmp_path / "run")
    (shards,) = json.loads(last_line(_TWO_NODES, config))
    assert 0 < shards < 11
    embeddings, failures = written(config)
    assert failures.empty
    assert_same_vectors(embeddings, written(on_disk(images, undisturbed.run.uri))[0])
