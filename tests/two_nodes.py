"""Run a script that starts a Ray cluster of two nodes in a subprocess: the test process may have its own Ray."""

import os
import subprocess
import sys

from synthscale import Config


def last_line(script: str, config: Config) -> str:
    """Run a Python script with the configuration (JSON) as its argument; return the last line of its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", script, config.model_dump_json()],
        capture_output=True,
        text=True,
        env=environment | {"RAY_AUTH_MODE": "disabled"},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]
