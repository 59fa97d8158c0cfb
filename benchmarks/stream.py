"""Images through fetch, decode and encode: against the bare loop, Ray's own recipe, the bare S3 client, and time.

    python -m benchmarks.stream [--full] [--only local|objects|memory|resume]

``local``: JPEGs of 500x375 on a disk, embedded by the pipeline's embed stage; by a bare loop (the same decoding
and encoder, a process a core, no Ray); and by the recipe of Ray's documentation (read_images, map_batches with
actors). Rates are between two sizes, so that nobody's start counts. ``objects``: GETs from a server on loopback.
``memory``: the largest process, from 2,000 images to 50,000. ``resume``: a run killed half-way and resumed.
"""

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import claim, python
from benchmarks.watch import Memory

CORES = os.cpu_count() or 1
SIDES = (500, 375)
SMALL_MODEL = "torchvision:squeezenet1_1"


def write_photos(folder: Path, count: int, distinct: int = 500) -> None:
    """Write crops of two photographs as JPEGs of 500x375 (quality 90); beyond some hundreds they are links."""
    from sklearn.datasets import load_sample_images

    folder.mkdir(parents=True)
    photos = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i:06d}.jpg"
        if i >= distinct:
            os.link(folder / f"{i % distinct:06d}.jpg", path)
            continue
        photo = photos[i % len(photos)]
        width = int(rng.integers(300, min(photo.width, photo.height * SIDES[0] // SIDES[1]) + 1))
        height = width * SIDES[1] // SIDES[0]
        left, top = (int(rng.integers(0, most + 1)) for most in (photo.width - width, photo.height - height))
        photo.crop((left, top, left + width, top + height)).resize(SIDES).save(path, quality=90)


def write_sets(folder: Path, count: int) -> None:
    """Write photos as a real and a fake set of half as many each."""
    for name in ("real", "fake"):
        write_photos(folder / name, count // 2)


def settings(folder: Path, encoder: dict[str, Any], output: Path, shard_rows: int | None = None) -> dict[str, Any]:
    return {
        "real": str(folder / "real"),
        "synthetic": {"g": str(folder / "fake")},
        "output": str(output),
        "encoder": encoder,
        "storage": {"shard_rows": shard_rows},
    }


def encoder_of(name: str, folder: Path) -> dict[str, Any]:
    """The built-in descriptor, or a small torchvision model with made-up weights."""
    if name == "descriptor":
        return {"name": name}
    import torch

    from synthscale.embed.encoders.torchvision_model import import_torchvision

    weights = folder / "weights.pt"
    if not weights.exists():
        torch.save(
            import_torchvision().models.get_model(name.partition(":")[2], weights=None).state_dict(), weights
        )
    return {"name": name, "weights": str(weights)}


# A disk.


def embed_seconds(values: dict[str, Any]) -> float:
    """Seconds of the embed stage in a Ray that is up."""
    from synthscale import Config
    from synthscale.pipeline import Options, score

    class Enough(Exception):  # noqa: N818 (ends the run)
        pass

    seconds = []

    def on_stage(report: Any) -> None:
        if report.stage == "embed":
            seconds.append(report.seconds)
            raise Enough

    try:
        score(Config.model_validate(values), Options(on_stage=on_stage))
    except Enough:
        return float(seconds[0])
    raise AssertionError("the stage did not end")


def pipeline(folder: Path, encoder: dict[str, Any], shard_rows: int | None = None) -> float:
    from synthscale.runtime.session import RaySession

    with RaySession() as session, tempfile.TemporaryDirectory() as output:
        session.wait_until_ready()
        return embed_seconds(settings(folder, encoder, Path(output) / "run", shard_rows))


def recipe(folder: Path, encoder: dict[str, Any]) -> float:
    """Ray's documented way: read_images resizes, actors encode batches, vectors are written as Parquet."""
    import ray
    import ray.data

    from synthscale import Config
    from synthscale.embed.encoder_reader import load_encoder
    from synthscale.runtime.session import RaySession

    config = Config(encoder=encoder)
    side = load_encoder(config).image_size

    class Encode:
        def __init__(self) -> None:
            import torch

            torch.set_num_threads(1)
            self.encoder = load_encoder(config)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return {"vector": self.encoder.encode(np.ascontiguousarray(batch["image"]))}

    with RaySession() as session, tempfile.TemporaryDirectory() as output:
        session.wait_until_ready()
        start = time.perf_counter()
        paths = [str(folder / name) for name in ("real", "fake")]
        images = ray.data.read_images(paths, size=(side, side), mode="RGB")
        actors = ray.data.ActorPoolStrategy(size=max(1, CORES - 1))
        images.map_batches(Encode, batch_size=64, compute=actors).write_parquet(output)
        return time.perf_counter() - start


def bare(folder: Path, encoder: dict[str, Any]) -> float:
    """A process a core reads, decodes and encodes its share; from when all have loaded what they need."""
    paths = sorted(str(path) for name in ("real", "fake") for path in (folder / name).iterdir())
    context = multiprocessing.get_context("spawn")
    ready, done = context.Barrier(CORES + 1), context.Barrier(CORES + 1)
    workers = [
        context.Process(target=_bare_worker, args=(paths[i::CORES], encoder, ready, done)) for i in range(CORES)
    ]
    for worker in workers:
        worker.start()
    ready.wait()
    start = time.perf_counter()
    done.wait()
    seconds = time.perf_counter() - start
    for worker in workers:
        worker.join()
    return seconds


def _bare_worker(paths: list[str], encoder: dict[str, Any], ready: Any, done: Any) -> None:
    import torch

    from synthscale import Config
    from synthscale.embed.encoder_reader import load_encoder
    from synthscale.embed.images import decode, image_statistics

    torch.set_num_threads(1)
    own = load_encoder(Config(encoder=encoder))
    own.encode(np.zeros((1, own.image_size, own.image_size, 3), np.uint8))
    ready.wait()
    for start in range(0, len(paths), 64):
        pixels = [decode(Path(path).read_bytes(), own.image_size)[0] for path in paths[start : start + 64]]
        for each in pixels:
            image_statistics(each)
        own.encode(np.stack(pixels))
    done.wait()


def race_local(name: str, sizes: tuple[int, int], repeats: int) -> None:
    with tempfile.TemporaryDirectory() as top:
        folders = []
        for n in sizes:
            folder = Path(top) / str(n)
            write_sets(folder, n)
            folders.append(str(folder))
        seconds: dict[str, list[list[float]]] = {"pipeline": [], "bare": [], "recipe": []}
        for _ in range(repeats):
            for who, found in seconds.items():
                found.append([float(python("-m", "benchmarks.stream", "--run", who, f, name)) for f in folders])
        rates = {
            who: statistics.median((sizes[1] - sizes[0]) / (large - small) / CORES for small, large in found)
            for who, found in seconds.items()
        }
        detail = {"images_per_s_and_core": {who: round(rate) for who, rate in rates.items()}, "seconds": seconds}
        text = f"{name}, JPEGs of 500x375: images a second"
        claim(
            f"{text}, of the bare loop's", rates["pipeline"] / rates["bare"], 0.85, "higher", "bare loop", **detail
        )
        claim(
            f"{text}, over Ray's recipe", rates["pipeline"] / rates["recipe"], 2, "higher", "read_images", **detail
        )


# S3.


def race_objects(count: int, repeats: int) -> None:
    from synthscale.config import Config, StorageConfig
    from synthscale.embed.image_reader import fetch_all
    from synthscale.storage.objects import bucket_client
    from synthscale.tables.layout import StoredFile
    from tests.object_server import Fault, ObjectServer

    os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    data = os.urandom(20_000)
    with ObjectServer() as server:
        for i in range(count):
            server.put("bucket", f"{i:05d}.jpg", data)
        storage = StorageConfig(endpoint_url=server.endpoint_url)
        keys = [f"{i:05d}.jpg" for i in range(count)]
        store = bucket_client("bucket", storage)

        def bare_client(threads: int) -> None:
            with ThreadPoolExecutor(threads) as pool:
                for found in pool.map(lambda key: store.get(key).bytes().to_bytes(), keys):
                    assert len(found) == len(data)

        def ours() -> None:
            files = [StoredFile(f"s3://bucket/{key}", len(data)) for key in keys]
            for found in fetch_all(files, Config(storage=storage)):
                assert isinstance(found, bytes)

        def s3fs_client() -> None:
            import s3fs

            fs = s3fs.S3FileSystem(endpoint_url=server.endpoint_url, key="a", secret="b", skip_instance_cache=True)
            assert len(fs.cat([f"bucket/{key}" for key in keys])) == count

        for latency_s in (0.0, 0.05):
            server.fault(Fault("bucket/", latency_s=latency_s))
            runs: dict[str, Callable[[], None]] = {
                f"bare, {threads} threads": (lambda threads=threads: bare_client(threads))
                for threads in (8, 32, 128)
            }
            found = _timed({**runs, "pipeline": ours, "s3fs": s3fs_client}, repeats)
            best = min((own["seconds"], name) for name, own in found.items() if name.startswith("bare"))
            text = f"GETs of 20 KB, {latency_s * 1000:g} ms latency"
            ratio = best[0] / found["pipeline"]["seconds"]
            claim(f"{text}: rate, of the bare client's best", ratio, 0.85, "higher", best[1], **found)
            cpu = found["s3fs"]["cpu_ms"] / found["pipeline"]["cpu_ms"]
            claim(f"{text}: CPU of s3fs over ours", cpu, 2, "higher", "s3fs", **found)


def _timed(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds, and milliseconds of this process's CPU, of each run, in turn."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start, cpu = time.perf_counter(), time.process_time()
            run()
            found[name].append((time.perf_counter() - start, 1000 * (time.process_time() - cpu)))
    return {
        name: {
            "seconds": round(statistics.median(seconds for seconds, _ in own), 3),
            "cpu_ms": round(statistics.median(cpu for _, cpu in own)),
        }
        for name, own in found.items()
    }


# Memory, and what a kill costs.


def race_memory(sizes: tuple[int, int]) -> None:
    with tempfile.TemporaryDirectory() as top:
        results = []
        for n in sizes:
            folder = Path(top) / str(n)
            write_sets(folder, n)
            results.append(
                json.loads(python("-m", "benchmarks.stream", "--run", "memory", str(folder), "descriptor"))
            )
        text = f"embed: memory of the largest process, {sizes[1]:,} images over {sizes[0]:,}"
        growth = results[1]["largest_mib"] / results[0]["largest_mib"]
        claim(text, growth, 1.15, "lower", "flat", **dict(zip(map(str, sizes), results, strict=True)))


def memory_of(folder: Path, encoder: dict[str, Any]) -> dict[str, float]:
    watch = Memory()
    watch.start()
    # A small set has smaller shards, and so smaller blocks.
    seconds = pipeline(folder, encoder, shard_rows=512)
    watch.stop()
    found = {"largest_mib": watch.largest_mib, "all_mib": watch.most_mib, "seconds": seconds}
    return {name: round(value, 1) for name, value in found.items()}


def race_resume(n: int, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as top:
        sizes = {"whole": n, "few": 40}
        for name, count in sizes.items():
            write_sets(Path(top) / name, count)
        ratios, detail = [], []
        for i in range(repeats):
            start_up = _timed_run(Path(top) / "few", Path(top) / f"start-{i}")
            undisturbed = _timed_run(Path(top) / "whole", Path(top) / f"whole-{i}")
            killed = _timed_run(Path(top) / "whole", Path(top) / f"killed-{i}", kill_at=0.5)
            resumed = _timed_run(Path(top) / "whole", Path(top) / f"killed-{i}")
            ratios.append((killed + resumed - start_up) / undisturbed)
            detail.append({"start": start_up, "whole": undisturbed, "killed": killed, "resumed": resumed})
        text = f"a run of {n:,} images killed half-way and resumed, without a start-up, over an undisturbed one"
        claim(text, statistics.median(ratios), 1.1, "lower", "undisturbed", seconds=detail)


def _timed_run(folder: Path, output: Path, kill_at: float | None = None) -> float:
    """Seconds of a process that embeds a folder, or until it is killed with a share of the shards written."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.stream", "--run", "to", str(folder), str(output)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    while kill_at is not None and process.poll() is None:
        marker = output / "_stages" / "ingest.json"
        if marker.exists() and "shard_stops" in (text := marker.read_text()):
            shards = len(json.loads(text)["info"]["shard_stops"])
            if len(list((output / "embeddings").glob("part-*.parquet"))) >= kill_at * shards:
                os.killpg(process.pid, signal.SIGKILL)
        time.sleep(0.02)
    process.wait()
    return round(time.perf_counter() - start, 2)


def run_one(who: str, folder: Path, rest: str) -> None:
    """One contestant in a process of its own."""
    if who == "to":
        sys.stdout.write(f"{embed_seconds(settings(folder, {'name': 'descriptor'}, Path(rest)))}\n")
        return
    encoder = encoder_of(rest, folder.parent)
    if who == "memory":
        print(json.dumps(memory_of(folder, encoder)))
        return
    print({"pipeline": pipeline, "bare": bare, "recipe": recipe}[who](folder, encoder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="twenty minutes: three runs each, 50,000 images")
    parser.add_argument("--only", choices=("local", "objects", "memory", "resume"), help="one of the races")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.run:
        run_one(parsed.run[0], Path(parsed.run[1]), parsed.run[2])
        return
    if parsed.only in (None, "local"):
        repeats = 3 if parsed.full else 1
        # Both sizes have as many actors as cores.
        race_local("descriptor", (2000, 8000) if parsed.full else (2000, 5000), repeats)
        if parsed.full:
            race_local(SMALL_MODEL, (1600, 3200), 1)
    if parsed.only in (None, "objects"):
        race_objects(3000, 3)
    if parsed.only in (None, "memory"):
        race_memory((2000, 50_000) if parsed.full else (1000, 5000))
    if parsed.only in (None, "resume"):
        race_resume(8000 if parsed.full else 4000, 3 if parsed.full else 1)


if __name__ == "__main__":
    main()
