"""Entry point of the main job on a Ray cluster, for ``ray job submit`` and schedulers.

    ray job submit --working-dir . -- python jobs/score.py --config s3://bucket/config.yaml --set output=s3://...

Takes the options of ``synthscale score`` and connects to the cluster that it runs on. Exits with synthscale's exit
code. ``ray job submit`` itself returns 1 for every code other than 0; ``driver_exit_code`` in the Job API is the
actual one.
"""

import os
import sys

from synthscale import main

if __name__ == "__main__":
    # The cluster sets RAY_AUTH_MODE for its drivers if it uses authentication; otherwise turn it off.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    sys.exit(main(["score", "--ray-address", "auto", *sys.argv[1:]]))
