"""The command as a separate process: terminal output, exit codes, and resuming after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from synthscale import RunResult
from tests.object_server import Fault, ObjectServer

pytestmark = pytest.mark.ray

COMMAND = [sys.executable, "-m", "synthscale.cli"]


@pytest.fixture(scope="module")
def images(tmp_path_factory, make_images):
    top = tmp_path_factory.mktemp("command")
    make_images(top / "real", 400, seed=1, size=48)
    make_images(top / "made", 400, seed=2, size=48)
    return top


def arguments(images, output):
    return ["score", "--real", f"{images}/real", "--synthetic", f"new={images}/made", "--output", str(output)]


def test_a_run_prints_only_stages_metrics_and_paths(images, tmp_path):
    done = subprocess.run([*COMMAND, *arguments(images, tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == ""
    # On a busy machine there are also indented progress lines.
    stages = [line for line in done.stdout.partition("\n\n")[0].splitlines() if not line.startswith(" ")]
    lines = [line for line in done.stdout.partition("\n\n")[2].splitlines() if line.strip()]
    assert [line.split()[0] for line in stages] == [
        "real:",
        "new:",
        "ingest",
        "embed",
        "neighbors",
        "classify",
        "reduce",
        "report",
    ]
    assert all("800 rows" in line for line in stages[2:])
    assert any(line.startswith("new ") for line in lines)
    assert lines[-3:] == [
        f"report  {tmp_path}/run/report.html",
        f"scores  {tmp_path}/run/scores",
        f"metrics {tmp_path}/run/metrics.json",
    ]
    assert max(len(line) for line in lines[:-3]) <= 80
    again = subprocess.run([*COMMAND, *arguments(images, tmp_path / "run")], capture_output=True, text=True)
    assert again.returncode == 0
    assert again.stdout.count("already done") == 6


@pytest.mark.slow
def test_a_killed_run_resumes_and_gives_the_same_scores(images, tmp_path):
    whole = subprocess.run([*COMMAND, *arguments(images, tmp_path / "whole")], capture_output=True)
    assert whole.returncode == 0
    embeddings = tmp_path / "killed" / "embeddings"
    process = subprocess.Popen(
        [*COMMAND, *arguments(images, tmp_path / "killed"), "--set", "storage.shard_rows=20"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 600
        while len(list(embeddings.glob("*.parquet"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = {path: path.stat().st_mtime_ns for path in embeddings.glob("*.parquet")}
    assert kept
    resumed = subprocess.run([*COMMAND, *arguments(images, tmp_path / "killed")], capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    one, two = (RunResult.open(str(tmp_path / name)).scores() for name in ("whole", "killed"))
    pd.testing.assert_frame_equal(one, two, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["score", "--real", "nowhere", "--synthetic", "x=elsewhere", "--output", "o"], "nowhere: no such folder"),
        (["score", "--real", "nowhere", "--output", "o"], "no synthetic images"),
        (["score", "--config", "nowhere.yaml"], "nowhere.yaml: cannot read"),
        (["score", "--set", "encoder.nam=x"], "encoder.nam: unknown key"),
        (["status", "nowhere"], "no synthscale run here"),
        (["report", "nowhere"], "no synthscale run here"),
    ],
)
def test_unusable_input_exits_with_2_and_one_line(words, told, tmp_path):
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_demo_detects_the_flaw_of_each_generator(tmp_path):
    done = subprocess.run([*COMMAND, "demo"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    generators = json.loads(Path(tmp_path, "runs/demo/metrics.json").read_text())["generators"]
    value = {name: {m: v["value"] for m, v in block["metrics"].items()} for name, block in generators.items()}

    def worst(metric):
        return min(value, key=lambda name: value[name][metric])

    def representativeness(name, digits):
        return sum(generators[name]["by_label"][d]["representativeness"]["value"] for d in digits) / len(digits)

    assert worst("freshness") == "memorised"
    assert worst("diversity") == "collapsed"
    assert worst("precision") == "blurry"
    assert value["blurry"]["fidelity"] < 0.1
    absent, present = representativeness("missing", "56789"), representativeness("missing", "01234")
    assert absent <= 0.10
    assert absent <= present / 3
    assert value["missing"]["coverage"] < value["kde"]["coverage"]
    assert abs(value["missing"]["precision"] - value["kde"]["precision"]) <= 0.1
    assert min(value["kde"]["diversity"], value["kde"]["freshness"]) > 0.95


@pytest.fixture(scope="module")
def server(tmp_path_factory, make_images):
    with ObjectServer() as server:
        for name in ("real", "fake"):
            for path in make_images(tmp_path_factory.mktemp(name), 4):
                server.put("known", f"{name}/{path.name}", path.read_bytes())
        yield server


@pytest.mark.parametrize(
    ("change", "fault", "told"),
    [
        ({"--real": "s3://nowhere/real"}, None, "s3://nowhere/real: there is no such bucket"),
        ({"--real": "s3://known/none"}, None, "s3://known/none: contains no images"),
        ({"--output": "s3://nowhere/run"}, None, "s3://nowhere/run"),
        ({}, "expired", "s3://known/real: the credentials have expired"),
        ({}, "denied", "s3://known/real: access denied"),
        ({}, "moved", "s3://known/real: the bucket is in another region; set storage.region"),
        ({"--set": "storage.endpoint_url=http://127.0.0.1:9"}, None, "s3://known: Could not connect"),
    ],
)
def test_unusable_storage_exits_with_2_and_one_line_within_seconds(server, tmp_path, change, fault, told):
    server.fault(*([] if fault is None else [Fault(r"known\?", fault)]))
    words = {
        "--real": "s3://known/real",
        "--synthetic": "s3://known/fake",
        "--output": str(tmp_path / "run"),
        "--set": f"storage.endpoint_url={server.endpoint_url}",
    } | change
    keys = {"AWS_ACCESS_KEY_ID": "key-of-the-test", "AWS_SECRET_ACCESS_KEY": "secret-of-the-test"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | keys
    start = time.monotonic()
    done = subprocess.run(
        [*COMMAND, "score", *(word for pair in words.items() for word in pair)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 2, done.stderr
    assert time.monotonic() - start < 60
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "of-the-test" not in done.stderr


def test_an_outage_exits_with_1_and_one_line_and_the_same_command_continues(server, tmp_path):
    server.fault(Fault("known/fake/", "slow_down"))
    keys = {"AWS_ACCESS_KEY_ID": "key-of-the-test", "AWS_SECRET_ACCESS_KEY": "secret-of-the-test"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | keys
    words = ["--real", "s3://known/real", "--synthetic", "s3://known/fake", "--output", str(tmp_path / "run")]
    for setting in (f"storage.endpoint_url={server.endpoint_url}", "storage.retry_s=1"):
        words += ["--set", setting]

    def run(*more):
        return subprocess.run([*COMMAND, "score", *words, *more], capture_output=True, text=True, env=environment)

    done = run()
    assert done.returncode == 1
    assert "s3://known/fake/" in done.stderr
    assert "run the same command again to continue" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    server.fault()
    done = run("--retry-failed")
    assert done.returncode == 0, done.stderr
    assert "no row has failed: --retry-failed has nothing to try again" in done.stdout
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["counts"]["failures"] == {}
