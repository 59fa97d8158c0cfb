"""`ray job submit` on a real local head gives the scores of a local run."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
import yaml

from synthscale import RunResult, parse_config, score

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[1]
RAY = str(Path(sys.executable).with_name("ray"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A Ray head with its job server on loopback; ends with all its processes, and no others."""
    port = free_port()
    folder = Path("/tmp") / f"ray-{os.getpid()}"  # short: Unix socket paths must fit in 107 characters
    log = tmp_path_factory.mktemp("head") / "log"
    process = subprocess.Popen(
        [
            RAY,
            "start",
            "--head",
            "--block",
            "--num-cpus=2",
            f"--port={free_port()}",
            "--node-ip-address=127.0.0.1",
            f"--dashboard-port={port}",
            "--dashboard-host=127.0.0.1",
            f"--temp-dir={folder}",
            "--include-dashboard=true",
            f"--dashboard-agent-listen-port={free_port()}",
        ],
        env=environment(),
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 90
        while not answers(f"{address}/api/version"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield address
    finally:
        # All that the head started is in its process group.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def environment():
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}"
    return {**own, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "PATH": path}


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def submit(address, *words):
    """Submit jobs/score.py as the README says; return what was printed."""
    return subprocess.run(
        [
            RAY,
            "job",
            "submit",
            "--address",
            address,
            "--working-dir",
            str(ROOT / "jobs"),
            "--",
            sys.executable,
            "score.py",
            *words,
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_a_submitted_job_gives_the_scores_of_a_local_run(head, local_ray, tmp_path, make_images, s3):
    make_images(tmp_path / "real", 60, seed=1)
    make_images(tmp_path / "made", 50, seed=2)
    values = {"real": str(tmp_path / "real"), "synthetic": {"made": str(tmp_path / "made")}}
    local = score(parse_config({**values, "output": str(tmp_path / "local")}))
    bucket = s3.bucket()
    s3.client.put_object(Bucket=bucket, Key="config.yaml", Body=yaml.safe_dump(values).encode())
    done = submit(head, "--config", f"s3://{bucket}/config.yaml", "--set", f"output={tmp_path}/job")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "report.html" in done.stdout
    pd.testing.assert_frame_equal(
        local.scores(), RunResult.open(str(tmp_path / "job")).scores(), atol=1e-5, check_exact=False
    )


def test_a_job_with_unusable_input_tells_why_and_its_true_exit_code_is_in_the_job_api(head, tmp_path):
    done = submit(
        head, "--real", f"{tmp_path}/none", "--synthetic", f"{tmp_path}/nor_this", "--output", f"{tmp_path}/run"
    )
    assert done.returncode == 1
    assert "no such folder of images" in done.stdout + done.stderr
    with urllib.request.urlopen(f"{head}/api/jobs/", timeout=10) as answer:
        jobs = json.loads(answer.read())
    assert 2 in [job["driver_exit_code"] for job in jobs]
