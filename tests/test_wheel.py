"""The wheel installs into a clean environment and runs the demo from another folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXPECTED = {"kde": (1.0, 0.999), "collapsed": (0.0, 1.0), "memorised": (1.0, 0.0)}
"""Diversity and freshness of generators whose flaws are known."""


@pytest.mark.slow
def test_the_wheel_runs_the_demo_in_a_clean_environment(tmp_path):
    def run(*command):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "dist", str(ROOT))
    (wheel,) = (tmp_path / "dist").glob("synthscale-*.whl")
    run(sys.executable, "-m", "venv", "clean")
    constraints = str(ROOT / "constraints.txt")
    run("clean/bin/pip", "install", "--quiet", "-c", constraints, f"{wheel}[cpu]")
    printed = run("clean/bin/synthscale", "demo")
    assert "memorised" in printed
    generators = json.loads((tmp_path / "runs/demo/metrics.json").read_text())["generators"]
    for name, (diversity, freshness) in EXPECTED.items():
        metrics = generators[name]["metrics"]
        assert metrics["diversity"]["value"] == pytest.approx(diversity, abs=0.002)
        assert metrics["freshness"]["value"] == pytest.approx(freshness, abs=0.002)
    assert (tmp_path / "runs/demo/report.html").stat().st_size > 100_000
