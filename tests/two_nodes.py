"""Scripts that start a Ray of two nodes, in a process of their own: this one may have a Ray already."""

import os
import subprocess
import sys

from synthscale import Config


def last_line(script: str, config: Config) -> str:
    """Run a script with a configuration as its argument, and return the last line that it printed."""
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
