"""The report of a large run: time, memory, size, and how fast a browser opens it.

    python -m benchmarks.report [--rows 1000000]

A run is made up but for its scores and metrics; its images are 200 JPEGs of 500x375.
The limits are the issue's: 60 s, 2 GiB, 5 MB, and 2 s to open (Chromium, from disk).
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import claim, python
from benchmarks.metrics import write_run
from benchmarks.stream import write_photos
from benchmarks.watch import Memory

DIMENSIONS = 512
_PICTURES = 200


def make(folder: Path, n: int) -> None:
    """Make a scored run of n rows."""
    from synthscale.metrics import stage as reduce
    from synthscale.runtime.session import LOCAL, RaySession
    from synthscale.storage.run_directory import Marker

    write_photos(folder / "photos", _PICTURES, distinct=_PICTURES)
    context = write_run(folder / "run", n)
    with RaySession(LOCAL) as session:
        session.start()
        session.wait_until_ready()
        outcome = reduce.run(context)
    context.run.write_marker(Marker("reduce", True, {}, outcome.counts, outcome.info, 1.0))
    rng = np.random.default_rng(0)
    for path in sorted((folder / "run" / "embeddings").glob("*.parquet")):
        table = pq.read_table(path)
        vectors = rng.normal(size=(len(table), DIMENSIONS)).astype(np.float32)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIMENSIONS)
        pq.write_table(table.append_column("vector", column), path)
        manifest = pq.read_table(folder / "run" / "manifest" / path.name)
        uris = [str(folder / "photos" / f"{row % _PICTURES:06d}.jpg") for row in manifest["row"].to_pylist()]
        at = manifest.column_names.index("uri")
        pq.write_table(manifest.set_column(at, "uri", pa.array(uris)), folder / "run" / "manifest" / path.name)
    layout = {"dimensions": DIMENSIONS, "search": [0, DIMENSIONS], "classify": [0, DIMENSIONS]}
    embed = context.run.completed("embed")
    context.run.write_marker(Marker("embed", True, {}, embed.counts, layout, 1.0))


def report(folder: Path) -> dict[str, float]:
    """Write the report; seconds, MiB of this process, MB of the page."""
    from synthscale import parse_config
    from synthscale.report.stage import run
    from synthscale.runtime.stage_context import StageContext
    from synthscale.storage.run_directory import RunDirectory

    config = parse_config({"manifest": "none", "output": str(folder / "run")})
    context = StageContext(config, RunDirectory.existing(str(folder / "run"), config.storage))
    watch = Memory()
    watch.start()
    start = time.perf_counter()
    run(context)
    seconds = time.perf_counter() - start
    size = (folder / "run" / "report.html").stat().st_size
    return {"seconds": round(seconds, 1), "mib": round(watch.stop().largest_mib), "mb": round(size / 1e6, 2)}


def opened_s(path: Path) -> float | None:
    """Seconds until a browser has loaded a page, the median of five; None where there is no Chromium."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return None
    from playwright.sync_api import sync_playwright

    times = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(5):
            page = browser.new_page()
            start = time.perf_counter()
            page.goto(path.as_uri(), wait_until="load")
            times.append(time.perf_counter() - start)
            page.close()
        browser.close()
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.run:
        sys.stdout.write(json.dumps(report(Path(parsed.run))) + "\n")
        return
    with tempfile.TemporaryDirectory() as top:
        make(Path(top), parsed.rows)
        found = json.loads(python("-m", "benchmarks.report", "--run", top))
        of = f"the report of {parsed.rows:,} rows"
        claim(f"{of}: seconds, of 60", found["seconds"] / 60, 1, "lower", "60 s", **found)
        claim(f"{of}: memory of its process, of 2 GiB", found["mib"] / 2048, 1, "lower", "2 GiB", **found)
        claim(f"{of}: bytes, of 5 MB", found["mb"] / 5, 1, "lower", "5 MB", **found)
        seconds = opened_s(Path(top) / "run" / "report.html")
        if seconds is not None:
            claim(f"{of}: seconds to open, of 2", seconds / 2, 1, "lower", "2 s", seconds=round(seconds, 2))


if __name__ == "__main__":
    main()
