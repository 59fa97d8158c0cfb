"""A benchmark on small data runs to its end; the others take minutes whatever the data."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_benchmark_of_the_report_prints_its_claims():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.report", "--rows", "3000"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    claims = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(claims) >= 3
    assert all(claim["value"] > 0 for claim in claims)
