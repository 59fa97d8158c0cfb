"""The metrics: reduce at ten million rows, and the field's metrics against their published packages.

``python -m benchmarks.metrics`` takes about three minutes on two cores: reduce at 100,000 and 1,000,000 rows,
k-NN metrics at 5,000 + 5,000 against ``prdc``. ``--full`` takes half an hour: 1,000,000 and 10,000,000 rows,
20,000 + 20,000, and the table of interval coverage.

CPU time and memory of the races are those of a process of its own for each run; numbers are drawn from a seed.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.common import claim, python
from benchmarks.watch import Memory

DIMENSIONS = 512
_SHARD = 16384
_TICK_S = 0.25

Vectors = NDArray[np.float32]


def sets(n: int) -> tuple[Vectors, Vectors]:
    """Real and synthetic vectors with a power-law spectrum; the synthetic ones have less spread in half of it."""
    rng = np.random.default_rng(0)
    spectrum = (np.arange(1, DIMENSIONS + 1) ** -0.75).astype(np.float32)
    narrow = np.where(np.arange(DIMENSIONS) % 2, 0.8, 1.0).astype(np.float32)
    real, synthetic = (rng.standard_normal((n, DIMENSIONS), np.float32) * spectrum for _ in range(2))
    return real, synthetic * narrow + 0.05 * spectrum


# k-NN metrics, each contestant in a process of its own.


def ours_manifold(real: Vectors, synthetic: Vectors) -> dict[str, float]:
    from synthscale.in_memory.neighbors import MemoryBackend, MemoryRows
    from synthscale.neighbors.analysis import search_manifold
    from synthscale.neighbors.copies import copies_from_pairs
    from synthscale.neighbors.search_backend import RadiusKey
    from synthscale.neighbors.search_space import MANIFOLD, SearchSpace
    from synthscale.neighbors.view import K

    vectors, n = np.concatenate([real, synthetic]), len(real)
    rows = {"real": np.arange(n), "synthetic": np.arange(n, len(vectors))}
    data = MemoryRows(vectors, rows, copies_from_pairs([]), np.arange(len(vectors), dtype=np.uint64))
    mean = real.mean(axis=0, dtype=np.float64)
    backend = MemoryBackend(data, SearchSpace(MANIFOLD, "euclidean", (0, vectors.shape[1]), mean))
    search_manifold(backend, (), counts_manifold=True, known={})
    inside, recalled, covered = (
        backend.counts[RadiusKey(*key)].count for key in ((1, 0, False), (0, 1, False), (0, 1, True))
    )
    return {
        "precision": float((inside > 0).mean()),
        "recall": float((recalled > 0).mean()),
        "density": float(inside.mean()) / K,
        "coverage": float((covered > 0).mean()),
    }


def prdc_manifold(real: Vectors, synthetic: Vectors) -> dict[str, float]:
    from prdc import compute_prdc

    return {name: float(value) for name, value in compute_prdc(real, synthetic, nearest_k=5).items()}


def ours_frechet(real: Vectors, synthetic: Vectors) -> dict[str, float]:
    from synthscale.metrics.frechet import Moments, frechet_distance

    return {"frechet": frechet_distance(Moments.of(real), Moments.of(synthetic))}


def torchmetrics_frechet(real: Vectors, synthetic: Vectors) -> dict[str, float]:
    import torch

    from synthscale.embed.encoders.torchvision_model import import_torchvision

    import_torchvision()
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Given(torch.nn.Module):
        """Features that are made already."""

        num_features = DIMENSIONS

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)

    torch.set_num_threads(1)
    metric = FrechetInceptionDistance(feature=Given(), normalize=False, input_img_size=(1, 1, DIMENSIONS))
    metric.set_dtype(torch.float64)
    for x, is_real in ((real, True), (synthetic, False)):
        for start in range(0, len(x), 2048):
            metric.update(torch.from_numpy(x[start : start + 2048])[:, None, None, :], real=is_real)
    return {"frechet": float(metric.compute())}


CONTESTANTS = {
    "ours_manifold": ours_manifold,
    "prdc_manifold": prdc_manifold,
    "ours_frechet": ours_frechet,
    "torchmetrics_frechet": torchmetrics_frechet,
}


def contest(name: str, n: int) -> dict[str, Any]:
    """Run one contestant; memory is what it needs beyond its modules and the vectors."""
    real, synthetic = sets(n)
    # Modules are loaded before the clock starts.
    CONTESTANTS[name](real[:64], synthetic[:64])
    before = resource.getrusage(resource.RUSAGE_SELF)
    values = CONTESTANTS[name](real, synthetic)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"values": values, "cpu_s": cpu_s, "memory_mib": (after.ru_maxrss - before.ru_maxrss) / 1024}


def raced(ours: str, theirs: str, n: int, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Run two contestants in turn."""
    results: dict[str, list[dict[str, Any]]] = {ours: [], theirs: []}
    for _ in range(repeats):
        for name, found in results.items():
            # prdc prints lines of its own before.
            printed = python("-m", "benchmarks.metrics", "--contest", name, "--rows", str(n))
            found.append(json.loads(printed.splitlines()[-1]))
    return results


def median(found: list[dict[str, Any]], key: str) -> float:
    return statistics.median(run[key] for run in found)


def race_manifold(n: int, repeats: int) -> None:
    results = raced("ours_manifold", "prdc_manifold", n, repeats)
    ours, theirs = results["ours_manifold"], results["prdc_manifold"]
    values = (ours[0]["values"], theirs[0]["values"])
    apart = max(abs(values[0][name] - values[1][name]) for name in values[0])
    detail = {
        "rows": f"{n} + {n} x {DIMENSIONS}",
        "cpu_s": [round(median(found, "cpu_s"), 2) for found in (ours, theirs)],
        "memory_mib": [round(median(found, "memory_mib")) for found in (ours, theirs)],
        "largest_difference": apart,
    }
    ratio = median(theirs, "cpu_s") / median(ours, "cpu_s")
    claim("precision, recall, density, coverage: CPU time of prdc over ours", ratio, 3, "higher", "prdc", **detail)
    ratio = median(theirs, "memory_mib") / median(ours, "memory_mib")
    claim("precision, recall, density, coverage: memory of prdc over ours", ratio, 5, "higher", "prdc", **detail)


def race_frechet(n: int, repeats: int) -> None:
    results = raced("ours_frechet", "torchmetrics_frechet", n, repeats)
    ours, theirs = results["ours_frechet"], results["torchmetrics_frechet"]
    values = [found[0]["values"]["frechet"] for found in (ours, theirs)]
    detail = {
        "rows": f"{n} + {n} x {DIMENSIONS}",
        "cpu_s": [round(median(found, "cpu_s"), 2) for found in (ours, theirs)],
        "values": values,
    }
    ratio = median(theirs, "cpu_s") / median(ours, "cpu_s")
    claim("Frechet distance: CPU time of torchmetrics over ours", ratio, 1, "higher", "torchmetrics", **detail)
    apart = abs(values[0] - values[1]) / values[1]
    claim("Frechet distance: relative difference", apart, 1e-6, "lower", "torchmetrics", **detail)


# Reduce, over tables that no other stage has made.


def tables(n: int, shards: list[Any]) -> Iterator[tuple[Any, dict[str, pa.Table]]]:
    """Yield the tables of each shard of a run of n rows: half real, half one generator's; a tenth in groups of
    two."""
    from synthscale.tables.id_hashes import hash_ids
    from synthscale.tables.schemas import BLOCKS, REASSIGNMENTS

    rng = np.random.default_rng(1)
    for shard in shards:
        row = np.arange(shard.start, shard.stop)
        m, is_real = len(row), row < n // 2
        generator = np.where(is_real, None, "g")
        ids = [f"row/{i:09d}" for i in row.tolist()]
        key = hash_ids(ids)
        grouped = (row // 2) % 10 == 0
        first = row - row % 2
        group_key = np.where(grouped, key[np.maximum(first - shard.start, 0)], key)
        logit = rng.normal(np.where(is_real, -0.3, 0.3), 1).astype(np.float32)
        distance = rng.gamma(4, 0.1, m).astype(np.float32)
        without = (logit[:, None] + rng.normal(0, 0.02, (m, BLOCKS))).astype(np.float16)
        names = pa.array(["g"] * m)
        manifest = {
            "row": row,
            "id": ids,
            "uri": [f"s3://bucket/{name}" for name in ids],
            "real_or_synthetic": np.where(is_real, "real", "synthetic"),
            "label": (row % 10).astype(str),
            "generator": pa.array(generator, pa.string()),
            "image_filename": ids,
            "size_bytes": pa.nulls(m, pa.int64()),
            "etag": pa.nulls(m, pa.string()),
            "id_hash": key,
        }
        files = {
            "row": row,
            "width_px": np.full(m, 64),
            "height_px": np.full(m, 64),
            "format": ["PNG"] * m,
            "mode": ["RGB"] * m,
            "bytes": rng.integers(1000, 9000, m),
            "jpeg_quality": pa.nulls(m, pa.int16()),
            "content_hash": pa.nulls(m, pa.string()),
            **{name: rng.random(m) for name in ("brightness", "contrast", "sharpness")},
        }
        real_row = rng.integers(0, n // 2, m)
        nearest = {
            "generator": names,
            "row": row,
            "nn_row": real_row,
            "nn_distance": distance,
            "nearest_real_row": real_row,
            "nearest_real_distance": distance,
            "manifold_real_row": real_row,
            "manifold_real_distance": distance,
            "distinct_real_distance": pa.array(distance, mask=~is_real),
            "knn_radius": distance * 1.2,
            "in_real_manifold": rng.random(m) < 0.9,
            "covered": pa.array(rng.random(m) < 0.8, mask=~is_real),
            "is_copy": np.zeros(m, bool),
            "exact": np.ones(m, bool),
            **{
                name: pa.nulls(m)
                for name in ("synthetic_in_radius", "real_radii_containing", "in_synthetic_manifold")
            },
        }
        members = np.flatnonzero(grouped)
        count = len(members)
        groups = {
            "generator": ["g"] * count,
            "row": row[members],
            "near_duplicate_id": first[members],
            "size": np.full(count, 2),
            "has_real": is_real[members],
            "has_synthetic": ~is_real[members],
            "diameter": np.full(count, 0.01),
            "is_chain": np.zeros(count, bool),
            "near_real": is_real[members],
            "component_id": first[members],
            "component_rows": np.full(count, 2),
            "cluster_id": first[members],
            "cluster_rows": np.full(count, 2),
        }
        fold = (group_key % np.uint64(5)).astype(np.int8)
        folds = {
            "generator": names,
            "row": row,
            "fold": pa.array(list(fold[:, None])),
            "is_real": is_real,
            "is_copy": np.zeros(m, bool),
            "key": key,
            "group_key": group_key,
            "cluster_key": group_key,
            "log_prior": np.zeros(m),
        }
        predictions = {
            "generator": names,
            "row": row,
            "fold": fold,
            "logit_synthetic": logit,
            "logit_deviation": pa.nulls(m),
            "logit_file_facts": rng.normal(0, 0.1, m),
            "direction_coordinates": pa.array(
                list(rng.normal(0, 1, (m, 3)).astype(np.float32)), pa.list_(pa.float32(), 3)
            ),
            "logit_without": pa.FixedSizeListArray.from_arrays(pa.array(without.ravel()), BLOCKS),
            "logit_matched": pa.nulls(m, pa.list_(pa.float16(), 1 + BLOCKS)),
            "logit_reassigned": pa.nulls(m, pa.list_(pa.float16(), REASSIGNMENTS)),
        }
        found = {"manifest": manifest, "embeddings": files, "nearest": nearest, "groups": groups}
        found |= {"classifier": folds, "predictions": predictions}
        yield shard, {name: pa.table(columns) for name, columns in found.items()}


def write_run(folder: Path, n: int) -> Any:
    """Write the tables and markers that reduce reads; return its context."""
    from synthscale import parse_config
    from synthscale.neighbors.search_space import MANIFOLD, NEAR_DUPLICATES, SearchSpace
    from synthscale.runtime.stage_context import StageContext
    from synthscale.storage.run_directory import Marker, RunDirectory
    from synthscale.tables.layout import shards_of
    from synthscale.tables.schemas import (
        FAILURES,
        FOLDS,
        GROUPS,
        MANIFEST_COLUMNS,
        NEAREST,
        PREDICTIONS,
        SCHEMA_VERSION,
    )

    config = parse_config({"manifest": "none", "output": str(folder)})
    run = RunDirectory.open(str(folder), config.storage)
    run.write_json("run.json", {"run_id": "benchmark", "schema_version": SCHEMA_VERSION, "config": {}})
    stops = [*range(_SHARD, n, _SHARD), n]
    schemas = {"manifest": MANIFEST_COLUMNS, "nearest": NEAREST, "groups": GROUPS}
    schemas |= {"classifier": FOLDS, "predictions": PREDICTIONS}
    for shard, found in tables(n, shards_of(stops)):
        run.write_shard("failures", shard, FAILURES.empty_table(), FAILURES)
        for name, table in found.items():
            if name in schemas:
                run.write_shard(name, shard, table, schemas[name])
            else:
                (folder / name).mkdir(exist_ok=True)
                pq.write_table(table, folder / name / shard.name)
    half = n // 2
    counts = {"sets": {"real": {"ok": half, "failed": 0}, "g": {"ok": n - half, "failed": 0}}, "reasons": {}}
    grouped = int(((np.arange(n) // 2) % 10 == 0).sum())
    view = {
        "rows_in_groups": grouped,
        "radius": 0.05,
        "median_distance": 0.4,
        "groups": 1,
        "share_in_largest": 0.0,
        "chains": 0,
        "largest_diameter": 0.01,
        "spreads": {},
        "self_test": None,
        "space": SearchSpace(NEAR_DUPLICATES, "cosine", (0, 1)).summary(),
        "manifold_space": SearchSpace(MANIFOLD, "euclidean", (0, 1)).summary(),
    }
    fit = {"folds": 5, "strength": 0.01, "converged": True, "repeats": None, "directions": [], "calibrated": {}}
    ingest = {"shard_stops": stops, "generators": ["g"], "notes": [], "vectors": None}
    run.write_marker(Marker("ingest", True, {}, {"rows": n}, ingest))
    run.write_marker(Marker("embed", True, {}, counts, {"dimensions": 1, "search": [0, 1], "classify": [0, 1]}))
    run.write_marker(Marker("neighbors", True, {}, {}, {"views": {"g": view}}))
    run.write_marker(Marker("classify", True, {}, {}, {"generators": {"g": fit}, "fit": {}}))
    return StageContext(config, run, cpus=os.cpu_count() or 1)


def reduced(n: int) -> dict[str, float]:
    """Reduce a run of n rows; seconds and the memory of the largest process."""
    from synthscale.metrics import stage as reduce
    from synthscale.runtime.session import LOCAL, RaySession

    with tempfile.TemporaryDirectory() as folder:
        context = write_run(Path(folder) / "run", n)
        with RaySession(LOCAL) as session:
            session.start()
            session.wait_until_ready()
            watch = Memory()
            watch.start()
            start = time.perf_counter()
            reduce.run(context)
            seconds = time.perf_counter() - start
        return {"rows": n, "seconds": round(seconds, 1), "largest_process_mib": round(watch.stop().largest_mib)}


def race_reduce(small: int, large: int) -> None:
    results = [json.loads(python("-m", "benchmarks.metrics", "--reduce", str(n))) for n in (small, large)]
    growth = results[1]["seconds"] / results[0]["seconds"]
    detail = {"runs": results}
    factor = large / small
    claim(f"reduce: time at {factor:g} times the rows", growth, 1.15 * factor, "lower", "linear growth", **detail)
    memory = results[1]["largest_process_mib"] / 1024
    claim(f"reduce: GiB of the largest process at {large:,} rows", memory, 4, "lower", "4 GiB", **detail)


# How often intervals hold what they are for.

Drawn = tuple[Vectors, Vectors]


def _normal(rng: np.random.Generator, n: int, d: int, mean: float = 0.0, scale: float = 1.0) -> Vectors:
    x = scale * rng.standard_normal((n, d), np.float32)
    x[:, 0] += mean
    return x


def _modes(rng: np.random.Generator, n: int, m: int) -> Drawn:
    real = _normal(rng, n, 8) + 4 * rng.choice([-1, 1], (n, 1)).astype(np.float32)
    return real, _normal(rng, m, 8) + 4


def _repeated(rng: np.random.Generator, m: int, images: int) -> Vectors:
    """m rows that repeat some images: the second half as often as the first, the third a third as often, ..."""
    share = 1 / np.arange(1, images + 1)
    chosen = rng.choice(images, m, p=share / share.sum())
    return _normal(rng, images, 8, 0.8)[chosen] + 1e-4 * _normal(rng, m, 8)


DESIGNS = {
    "8-d, 200 + 200, shifted by 0.8": lambda rng: (_normal(rng, 200, 8), _normal(rng, 200, 8, 0.8)),
    "16-d, 200 + 200, shifted by 1.5": lambda rng: (_normal(rng, 200, 16), _normal(rng, 200, 16, 1.5)),
    "16-d, 600 + 600, shifted by 1": lambda rng: (_normal(rng, 600, 16), _normal(rng, 600, 16, 1.0)),
    "16-d, 300 + 150, scaled by 0.85": lambda rng: (_normal(rng, 300, 16), _normal(rng, 150, 16, 0.0, 0.85)),
    "16-d, 150 + 600, scaled by 1.2": lambda rng: (_normal(rng, 150, 16), _normal(rng, 600, 16, 0.0, 1.2)),
    "8-d, 300 + 300, one of two modes": lambda rng: _modes(rng, 300, 300),
    "16-d, 64 + 1,600, shifted by 1": lambda rng: (_normal(rng, 64, 16), _normal(rng, 1600, 16, 1.0)),
    "16-d, 1,600 + 64, shifted by 1": lambda rng: (_normal(rng, 1600, 16), _normal(rng, 64, 16, 1.0)),
    "8-d, 200 + 200, equal": lambda rng: (_normal(rng, 200, 8), _normal(rng, 200, 8)),
    "8-d, 200 + 200, 40 images repeated": lambda rng: (_normal(rng, 200, 8), _repeated(rng, 200, 40)),
}
"""Real and synthetic vectors; then a fifth of the synthetic ones repeat others, and a tenth real ones."""


def drawn(name: str, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    real, synthetic = DESIGNS[name](rng)
    m = len(synthetic)
    kind = rng.random(m)
    for chosen, pool in ((kind < 0.2, synthetic[kind > 0.3]), ((kind >= 0.2) & (kind < 0.3), real)):
        noise = 1e-4 * rng.standard_normal((int(chosen.sum()), synthetic.shape[1]))
        synthetic[chosen] = pool[rng.integers(0, len(pool), chosen.sum())] + noise
    # Directions matter: around a mean that is not the origin.
    return real + 2, synthetic + 2


def coverage(count: int) -> None:
    """Print, for each design, the share of data sets whose interval holds the mean over all data sets."""
    from synthscale import score_features

    for name in DESIGNS:
        found: dict[str, list[list[float]]] = {}
        for seed in range(count):
            real, synthetic = drawn(name, seed)
            kinds = ["real"] * len(real) + ["synthetic"] * len(synthetic)
            ids = [f"{seed}/{i}" for i in range(len(kinds))]
            block = score_features(np.concatenate([real, synthetic]), kinds, ids=ids).metrics["synthetic"]
            for metric, own in block["metrics"].items():
                ends = [np.nan if own[key] is None else own[key] for key in ("value", "low", "high")]
                found.setdefault(metric, []).append(ends)
        held, means = {}, {}
        for metric, rows in found.items():
            value, low, high = np.array(rows).T
            means[metric] = round(float(value.mean()), 3)
            held[metric] = round(100 * float(((low <= value.mean()) & (value.mean() <= high)).mean()), 1)
        claim(
            f"intervals that hold: {name}",
            min(held.values()),
            92,
            "higher",
            "95 %",
            sets=count,
            held=held,
            means=means,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", choices=["reduce", "manifold", "frechet", "coverage"])
    parser.add_argument("--contest", choices=CONTESTANTS)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--reduce", type=int)
    parsed = parser.parse_args()
    if parsed.contest:
        print(json.dumps(contest(parsed.contest, parsed.rows)))
        return
    if parsed.reduce:
        print(json.dumps(reduced(parsed.reduce)))
        return
    repeats = 3
    if parsed.only in (None, "manifold"):
        race_manifold(20_000 if parsed.full else 5_000, repeats)
    if parsed.only in (None, "frechet"):
        race_frechet(20_000, repeats)
    if parsed.only == "coverage" or (parsed.full and parsed.only is None):
        coverage(200 if parsed.full else 40)
    if parsed.only in (None, "reduce"):
        race_reduce(*((1_000_000, 10_000_000) if parsed.full else (100_000, 1_000_000)))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
