"""Memory and time of listing S3, and of a table that names what lies there, up to the manifest: by rows.

    python -m benchmarks.listing [--full]

A server on loopback lists objects (nothing is read). The limit is a driver whose memory does not grow with the
rows, and the bare client that lists the same objects and keeps nothing.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import claim, python
from benchmarks.watch import Memory
from synthscale import Config, parse_config
from tests.object_server import ObjectServer


def race(sizes: tuple[int, int]) -> None:
    os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    with tempfile.TemporaryDirectory() as top, ObjectServer() as server:
        found: dict[str, dict[str, dict[str, float]]] = {"prefixes": {}, "table": {}, "control": {}}
        for n in sizes:
            for name in ("real", "fake"):
                server.fill(f"{name}-{n}", "set/", n // 2)
            write_table(Path(top) / f"{n}.parquet", n)
            for what, own in found.items():
                own[str(n)] = json.loads(
                    python("-m", "benchmarks.listing", "--run", what, server.endpoint_url, str(n), top)
                )
                print(what, n, own[str(n)], flush=True)
        for what, own in found.items():
            small, large = own.values()
            text = f"ingest of {what}: memory of the driver, {sizes[1]:,} rows over {sizes[0]:,}"
            claim(text, large["largest_mib"] / small["largest_mib"], 1.15, "lower", "flat", **own)
        text = f"ingest of {sizes[1]:,} listed objects over the bare client's listing of them, seconds"
        listed = found["prefixes"][str(sizes[1])]
        claim(text, listed["seconds"] / listed["bare_s"], 3, "lower", "bare client")


def write_table(path: Path, n: int) -> None:
    """Write a table that names every object of a bucket."""
    schema = pa.schema([("uri", pa.string()), ("real_or_synthetic", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for name, kind in (("real", "real"), ("fake", "synthetic")):
            for start in range(0, n // 2, 100_000):
                numbers = range(start, min(start + 100_000, n // 2))
                uris = [f"s3://{name}-{n}/set/{i // 10_000:05d}/{i % 10_000:04d}.png" for i in numbers]
                writer.write_table(pa.table([uris, [kind] * len(uris)], schema=schema))


class EnoughError(Exception):
    """Ends a run after its manifest is there."""


def ingest(what: str, endpoint_url: str, n: int, top: str) -> dict[str, float]:
    from synthscale.pipeline import Options, score
    from synthscale.storage.objects import bucket_client

    config = config_of(what, endpoint_url, n, top)

    def on_stage(report: object) -> None:
        raise EnoughError

    watch = Memory()
    watch.start()
    start = time.perf_counter()
    with suppress(EnoughError):
        score(config, Options(on_stage=on_stage))
    seconds = time.perf_counter() - start
    watch.stop()
    start = time.perf_counter()
    for name in ("real", "fake"):
        for _ in bucket_client(f"{name}-{n}", config.storage).list("set/", chunk_size=1000):
            pass
    found = {
        "largest_mib": watch.largest_mib,
        "seconds": seconds,
        "bare_s": time.perf_counter() - start,
        "rows_per_s": n / seconds,
    }
    return {name: round(value, 1) for name, value in found.items()}


def config_of(what: str, endpoint_url: str, n: int, top: str) -> Config:
    sets = {"real": f"s3://real-{n}/set", "synthetic": {"fake": f"s3://fake-{n}/set"}}
    values = {"manifest": f"{top}/{n}.parquet"} if what == "table" else {**sets, "control": what == "control"}
    return parse_config({**values, "output": f"{top}/{what}-{n}", "storage": {"endpoint_url": endpoint_url}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="half an hour: 10,000,000 objects")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.run:
        what, endpoint_url, n, top = parsed.run
        sys.stdout.write(json.dumps(ingest(what, endpoint_url, int(n), top)) + "\n")
        return
    race((1_000_000, 10_000_000) if parsed.full else (100_000, 1_000_000))


if __name__ == "__main__":
    main()
