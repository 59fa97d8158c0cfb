"""Near-duplicates: the cell join against Datalab and FAISS's flat range search, and the stage at a million rows.

``python -m benchmarks.neighbors`` races Datalab at 50,000 rows (about three minutes on two cores); ``--full`` adds
FAISS at 100,000 rows, three interleaved runs of each, and the stage at 100,000 and 1,000,000 rows (half an hour).

Vectors of 512 dimensions: a power-law spectrum (standard deviations i^-0.75), clusters of about 100 rows, and 5 %
of rows that are near copies of others. CPU time is that of all threads (one each), or of all processes of a run.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cleanlab import Datalab
from numpy.typing import NDArray

from benchmarks.common import claim
from synthscale.config import NeighborsConfig
from synthscale.in_memory.neighbors import MemoryAccess, MemoryRows, analyse_vectors
from synthscale.neighbors.cells import JoinSample, plan_join, sample_size
from synthscale.neighbors.copies import copies_from_pairs, equal_pairs, vector_keys
from synthscale.neighbors.distance import distances_within, divisors
from synthscale.neighbors.edges import Edges, distinct_edges
from synthscale.neighbors.groups import ViewEdges, near_duplicate_groups
from synthscale.neighbors.join import join_all
from synthscale.tables.id_hashes import hash_ids

DIMENSIONS = 512
RADIUS = 0.0165
_CLOSE = 1e-6
_SAMPLED = 1000
_TICK_S = 0.25

Vectors = NDArray[np.float32]


def vectors(n: int, seed: int = 0) -> Iterator[Vectors]:
    """Yield n vectors in blocks."""
    rng = np.random.default_rng(seed)
    spectrum = (np.arange(1, DIMENSIONS + 1) ** -0.75).astype(np.float32)
    centers = rng.standard_normal((max(1, n // 100), DIMENSIONS), np.float32) * spectrum
    earlier = np.empty((0, DIMENSIONS), np.float32)
    for start in range(0, n, 50_000):
        size = min(50_000, n - start)
        noise = rng.standard_normal((size, DIMENSIONS), np.float32) * spectrum
        block = centers[rng.integers(0, len(centers), size)] + 0.7 * noise
        copied = rng.random(size) < 0.05
        # Of rows of this block or of the one before.
        pool = np.concatenate([block[~copied], earlier])
        block[copied] = pool[rng.integers(0, len(pool), copied.sum())] + 0.05 * noise[copied]
        earlier = block[~copied]
        yield block / np.linalg.norm(block, axis=1, keepdims=True)


def join(x: Vectors, radius: float) -> Edges:
    """Collapse, cells, join and groups of one pool of rows, as the stage does them."""
    n = len(x)
    rows, code = np.arange(n), np.zeros(n, np.int32)
    copies = copies_from_pairs([equal_pairs(vector_keys(x, "all"), rows)])
    distinct = rows[copies.are_distinct(rows)]
    ids = hash_ids(map(str, range(n)))
    chosen = distinct[np.argsort(ids[distinct])[: sample_size(n)]]
    plan = plan_join(JoinSample(x[chosen], chosen, code[chosen]), {0: len(distinct)}, radius)
    found = join_all(plan, x[distinct], distinct, code[distinct])
    assert found.is_whole
    edges = distinct_edges([found.edges, copies.edges(code[copies.row])])
    access = MemoryAccess(x, divisors(x), MemoryRows(x, {"real": rows}, copies, ids))
    near_duplicate_groups(ViewEdges(edges, radius), copies, access)
    return edges


def stage(x: Vectors, metric: Literal["auto", "euclidean"] = "auto") -> None:
    """All of the analysis: as ``join``, and the calibration and every row's nearest neighbours and manifold.

    With the metric ``euclidean`` near-duplicates and manifold share one search space.
    """
    half = len(x) // 2
    sets = {"real": np.arange(half), "synthetic": np.arange(half, len(x))}
    copies = copies_from_pairs(equal_pairs(vector_keys(x[rows], name), rows) for name, rows in sets.items())
    analyse_vectors(x, sets, copies, NeighborsConfig(radius=RADIUS, metric=metric))


def datalab(x: Vectors, threshold: float) -> Datalab:
    lab = Datalab({"row": list(range(len(x)))}, verbosity=0)
    lab.find_issues(features=x, issue_types={"near_duplicate": {"threshold": threshold}})
    return lab


def flat_range(x: Vectors, radius: float) -> set[tuple[int, int]]:
    """FAISS's flat range search of all rows, and the formula on what is near."""
    index = faiss.IndexFlatIP(DIMENSIONS)
    index.add(x)
    limits, _, found = index.range_search(x, 1 - radius - 4e-6)
    who = np.repeat(np.arange(len(x)), np.diff(limits.astype(np.int64)))
    keep = who < found
    who, found = who[keep], found[keep]
    near = distances_within(x, divisors(x), who, found) < radius
    return set(zip(who[near].tolist(), found[near].tolist(), strict=True))


def cpu_of(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of all threads, and the result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def against_datalab(repeats: int) -> None:
    x = np.concatenate(list(vectors(50_000)))
    times: dict[str, list[float]] = {"datalab": [], "join": [], "stage": [], "one_space": []}
    median = _median_distance(x)
    for _ in range(repeats):
        seconds, lab = cpu_of(lambda: datalab(x, RADIUS / median))
        times["datalab"].append(seconds)
        seconds, edges = cpu_of(lambda: join(x, RADIUS))
        times["join"].append(seconds)
        times["stage"].append(cpu_of(lambda: stage(x))[0])
        times["one_space"].append(cpu_of(lambda: stage(x, "euclidean"))[0])
    sets = lab.get_info("near_duplicate")["near_duplicate_sets"]
    theirs = {(min(i, int(j)), max(i, int(j))) for i, own in enumerate(sets) for j in own}
    middle = {name: round(statistics.median(values), 2) for name, values in times.items()}
    detail = {"rows": len(x), "cpu_s": middle, **_compared(x, edges, theirs)}
    claim(
        "join: CPU time less than Datalab's, same radius",
        middle["datalab"] / middle["join"],
        10,
        "higher",
        "cleanlab Datalab",
        **detail,
    )
    claim(
        "whole analysis: CPU time less than Datalab's",
        middle["datalab"] / middle["stage"],
        4,
        "higher",
        "cleanlab Datalab",
        **detail,
    )
    claim(
        "two search spaces (near-duplicates, manifold metrics): CPU time of one",
        middle["stage"] / middle["one_space"],
        1.9,
        "lower",
        "the same analysis in one space",
        **detail,
    )


def against_faiss(repeats: int) -> None:
    x = np.concatenate(list(vectors(100_000)))
    times: dict[str, list[float]] = {"faiss": [], "join": []}
    for _ in range(repeats):
        seconds, theirs = cpu_of(lambda: flat_range(x, RADIUS))
        times["faiss"].append(seconds)
        seconds, edges = cpu_of(lambda: join(x, RADIUS))
        times["join"].append(seconds)
    middle = {name: round(statistics.median(values), 2) for name, values in times.items()}
    claim(
        "join: CPU time less than a flat range search's",
        middle["faiss"] / middle["join"],
        10,
        "higher",
        "FAISS IndexFlatIP.range_search",
        rows=len(x),
        cpu_s=middle,
        **_compared(x, edges, theirs),
    )


def _median_distance(x: Vectors) -> float:
    """Datalab's median, so that a threshold can be given that makes its radius ours."""
    index = faiss.IndexFlatIP(DIMENSIONS)
    index.add(x)
    chosen = np.arange(0, len(x), 1)
    _, found = index.search(x[chosen], 2)
    other = np.where(found[:, 0] == chosen, found[:, 1], found[:, 0])
    return float(np.median(distances_within(x, divisors(x), chosen, other)))


def _compared(x: Vectors, edges: Edges, theirs: set[tuple[int, int]]) -> dict[str, int]:
    """Count edges on one side only, where the distance is not within 1e-6 of the radius."""
    ours = set(zip(edges.left.tolist(), edges.right.tolist(), strict=True))
    only = np.array(sorted(ours ^ theirs), np.int64).reshape(-1, 2)
    distance = distances_within(x, divisors(x), only[:, 0], only[:, 1])
    return {"edges": len(ours), "edges_different": int((np.abs(distance - RADIUS) > _CLOSE).sum())}


# The stage as users run it, from Parquet on disk.

_RUN = """
import json, sys, time
from synthscale.config import Config
from synthscale.pipeline import Options, score
class Done(Exception): pass
def on_stage(report):
    print(json.dumps({"stage": report.stage, "at": time.time(), "seconds": report.seconds}), flush=True)
    if report.stage == "neighbors": raise Done
try: score(Config(manifest=sys.argv[1], output=sys.argv[2], neighbors={"radius": float(sys.argv[3])}),
           Options(on_stage=on_stage, on_progress=lambda text: print(text, file=sys.stderr, flush=True)))
except Done: pass
"""


class Watch:
    """CPU seconds and peak memory of a process and all its descendants, sampled from /proc."""

    def __init__(self, pid: int) -> None:
        self.pid, self.cpu, self.peak_bytes = pid, {}, 0  # type: tuple[int, dict[int, float], int]
        self.samples: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def cpu_between(self, start: float, stop: float) -> float:
        """CPU seconds between two points of time."""
        times, totals = zip(*self.samples, strict=True)
        return float(np.interp(stop, times, totals) - np.interp(start, times, totals))

    def _work(self) -> None:
        tick = os.sysconf("SC_CLK_TCK")
        while not self._over.wait(_TICK_S):
            parents, cpu = {}, {}
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                parents[int(folder.name)] = int(fields[1])
                cpu[int(folder.name)] = (int(fields[11]) + int(fields[12])) / tick
            for pid in self._family(parents):
                self.cpu[pid] = max(self.cpu.get(pid, 0.0), cpu[pid])
                self.peak_bytes = max(self.peak_bytes, _peak_bytes(pid))
            self.samples.append((time.time(), sum(self.cpu.values())))

    def _family(self, parents: dict[int, int]) -> set[int]:
        family = {self.pid}
        while more := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= more
        return family


def _peak_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM")), 0)


def at_size(n: int, folder: Path) -> dict[str, Any]:
    """Run ingest, embed and neighbors on n float16 vectors; return CPU seconds and peak memory of neighbors."""
    source, output = folder / f"{n}.parquet", folder / f"run-{n}"
    _write_parquet(n, source)
    run = subprocess.Popen(
        [sys.executable, "-c", _RUN, str(source), str(output), str(RADIUS)], stdout=subprocess.PIPE, text=True
    )
    watch = Watch(run.pid)
    assert run.stdout is not None
    stages = {line["stage"]: line for line in map(_json, run.stdout)}
    if run.wait() != 0:
        raise SystemExit(f"the run of {n} rows failed")
    watch.stop()
    marker = _json((output / "_stages" / "neighbors.json").read_text())
    info = marker["info"]
    x = np.concatenate(
        [
            np.concatenate(pq.read_table(f, columns=["vector"])["vector"].to_numpy()).reshape(-1, DIMENSIONS)
            for f in sorted((output / "embeddings").iterdir())
        ]
    )
    return {
        "rows": n,
        "cpu_s": round(watch.cpu_between(stages["embed"]["at"], stages["neighbors"]["at"]), 1),
        "wall_s": round(stages["neighbors"]["seconds"], 1),
        "seconds": info["seconds"],
        "peak_gib": round(watch.peak_bytes / 2**30, 2),
        "nearest": info["views"]["g"]["nearest"],
        "join": info["joins"][0],
        **_checked(x, output),
    }


def _json(text: str) -> Any:
    import json

    return json.loads(text)


def _write_parquet(n: int, path: Path) -> None:
    writer, start = None, 0
    for block in vectors(n):
        rows = np.arange(start, start + len(block))
        real = rows < n // 2
        flat = pa.array(block.astype(np.float16).reshape(-1))
        table = pa.table(
            {
                "id": [f"{row:09d}" for row in rows],
                "real_or_synthetic": np.where(real, "real", "synthetic"),
                "generator": pa.array(np.where(real, "", "g"), mask=real),
                "embedding": pa.FixedSizeListArray.from_arrays(flat, DIMENSIONS),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema, use_dictionary=False)
        writer.write_table(table)
        start += len(block)
    assert writer is not None
    writer.close()


def _checked(x: NDArray[np.float16], output: Path) -> dict[str, float]:
    """Recall and precision of the edges of a seeded sample of rows, against brute force by the formula."""
    chosen = np.sort(np.random.default_rng(1).choice(len(x), _SAMPLED, replace=False))
    edges = pq.read_table(output / "neighbors").to_pandas()
    own = edges[edges.left.isin(chosen) | edges.right.isin(chosen)]
    ours = set(zip(own.left.tolist(), own.right.tolist(), strict=True))
    lengths, truth = divisors(x), set()
    queries = (x[chosen] / lengths[chosen, None]).astype(np.float32)
    for start in range(0, len(x), 65_536):
        block = x[start : start + 65_536] / lengths[start : start + 65_536, None].astype(np.float32)
        i, j = np.nonzero(queries @ block.astype(np.float32).T >= 1 - RADIUS - 1e-5)
        a, b = chosen[i], j + start
        near = (distances_within(x, lengths, a, b) < RADIUS) & (a != b)
        truth |= {(min(p, q), max(p, q)) for p, q in zip(a[near].tolist(), b[near].tolist(), strict=True)}
    return {
        "true_edges": len(truth),
        "recall": len(ours & truth) / len(truth),
        "precision": len(ours & truth) / len(ours),
    }


def at_scale(sizes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        small, *others = [at_size(n, Path(folder)) for n in sizes]
    claim(
        f"recall of edges at {small['rows']:,} rows",
        small["recall"],
        1.0,
        "higher",
        "brute force, sampled rows",
        **small,
    )
    for large in others:
        claim(
            f"recall of edges at {large['rows']:,} rows",
            large["recall"],
            1.0,
            "higher",
            "brute force, sampled rows",
            precision=large["precision"],
        )
        claim("peak memory of any process, GiB", large["peak_gib"], 6, "lower", "limit", **large)
        claim(
            f"CPU time of the stage over that at {small['rows']:,} rows",
            large["cpu_s"] / small["cpu_s"],
            25,
            "lower",
            "n^1.4",
            cpu_s=[small["cpu_s"], large["cpu_s"]],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="half an hour: FAISS, three runs each, a million rows")
    parser.add_argument("--only", choices=("datalab", "faiss", "scale"), help="one of the races")
    chosen = parser.parse_args()
    if "OMP_NUM_THREADS" not in os.environ:
        # As in Ray's workers; BLAS threads that wait for each other would count as CPU time, ours and the peer's.
        command = [sys.executable, "-m", "benchmarks.neighbors", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "OMP_NUM_THREADS": "1"})
    repeats = 3 if chosen.full else 1
    if chosen.only in (None, "datalab"):
        against_datalab(repeats)
    if chosen.only == "faiss" or (chosen.full and chosen.only is None):
        against_faiss(repeats)
    if chosen.only == "scale" or (chosen.full and chosen.only is None):
        at_scale([100_000, 1_000_000] if chosen.full else [20_000, 100_000])


if __name__ == "__main__":
    main()
