"""The main job on a Ray cluster, for ``ray job submit`` and schedulers.

    ray job submit --working-dir . -- python jobs/score.py --config s3://bucket/config.yaml --set output=s3://...

Takes the options of ``synthscale score`` and joins the cluster that it runs on. Exit codes are synthscale's; ``ray
job submit`` itself returns 1 for any of them but 0, and ``driver_exit_code`` in the Job API holds the true one.
"""

import os
import sys

from synthscale import main

if __name__ == "__main__":
    # A job's driver runs on a cluster that has its own authentication; where none is set, it has none.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    sys.exit(main(["score", "--ray-address", "auto", *sys.argv[1:]]))
