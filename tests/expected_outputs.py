"""Digests of each stage's output on a small fixed input, kept with the version of the algorithm that gave them.

    python -m tests.expected_outputs           write tests/expected_outputs.json again
    python -m tests.expected_outputs --force   also if a stage gives other numbers under the same version

A digest of a column is its number of values, its norm and three weighted sums. It is compared with a tolerance, as
rounding differs between processors; a hash would differ with it.
"""

import io
import json
import re
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from synthscale import Config, RunResult, score
from synthscale.config import EncoderConfig
from synthscale.embed.encoders import build_encoder
from synthscale.embed.encoders.torchvision_model import VERSION, import_torchvision
from synthscale.storage.run_directory import STAGES

EXPECTED = Path(__file__).with_suffix(".json")
TOLERANCE = 1e-3
"""Largest difference of two sums, relative to the norm of the column: far more than rounding, and less than one
changed row."""
ENTRIES = (*STAGES[:2], "torchvision", *STAGES[2:])
"""What has a version: the stages in order, and the second encoder, which no run of these tests uses."""
TABLES = {
    "ingest": ("manifest",),
    "embed": ("embeddings", "failures"),
    "neighbors": ("neighbors", "nearest", "groups"),
    "classify": ("classifier", "predictions"),
    "reduce": ("scores/generator=copier", "scores/generator=honest", "scores/generator=control"),
}
_OF_THE_FILES = {"uri", "etag", "size_bytes", "bytes", "content_hash", "detail"}
"""Columns that depend on where the input lies and on the library that wrote it."""
_POSITIONS = 32
"""Positions of a list column that have one digest."""
REAL, HONEST, COPIER = 120, 60, 40

Outputs = dict[str, Any]
"""``versions``: version numbers of an entry; ``outputs``: digests by name."""


def outputs_of_a_run(folder: Path) -> dict[str, Outputs]:
    """Run all stages on the fixed input, in ``folder``, and return the outputs of each entry of `ENTRIES`."""
    config = Config(
        manifest=str(_write_input(folder)),
        output=str(folder / "run"),
        control=True,
        max_failure_fraction=0.05,
        neighbors={"self_test_images": 4},
        classifier={"repeats": 2},
        metrics={"families": "all", "slice_by": ("prompt", "seed")},
        storage={"shard_rows": 64},
        gates=("fidelity>=0.3",),
    )
    result = score(config)
    found = {stage: {"versions": _versions(result, stage), "outputs": {}} for stage in STAGES}
    for stage, tables in TABLES.items():
        for table in tables:
            found[stage]["outputs"] |= _table_digests(table, _read(result, table))
    found["neighbors"]["outputs"] |= _number_digests("views", result.run.completed("neighbors").info["views"])
    found["classify"]["outputs"] |= _number_digests("fits", result.run.completed("classify").info["generators"])
    found["reduce"]["outputs"] |= _metric_digests(result)
    found["report"]["outputs"] = {"page": _text_digest([_words(Path(result.report_path).read_text())])}
    found["torchvision"] = {"versions": {"encoder": VERSION}, "outputs": _torchvision_digests()}
    return {name: found[name] for name in ENTRIES}


def _versions(result: RunResult, stage: str) -> dict[str, Any]:
    """Return the version numbers in the fingerprint that the stage wrote."""
    fingerprint = result.run.completed(stage).fingerprint
    return {
        "algorithm": fingerprint["versions"]["algorithm"],
        **({"encoder": fingerprint["encoder"]} if stage == "embed" else {}),
    }


# The input.


def _write_input(folder: Path) -> Path:
    """Write images of several sizes and formats, some repeated, and a table; return its path.

    Draws numbers from RandomState, whose streams NumPy has frozen.
    """
    rng = np.random.RandomState(20260131)
    lines: list[dict[str, Any]] = []

    def add(generator: str | None, pixels: NDArray[np.uint8]) -> None:
        n = len(lines)
        # Lossless, of the encoder's size, so that neither a codec nor resizing changes most of the pixels.
        name = f"{generator or 'real'}/{n:03d}.{'jpg' if n % 9 == 4 else 'png'}"
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        image = Image.fromarray(pixels)
        image.save(folder / name, **({"quality": 92} if name.endswith("jpg") else {}))
        lines.append(
            {
                "image_filename": name,
                "real_or_synthetic": "synthetic" if generator else "real",
                "generator": generator,
                "label": ("cat", "dog", None)[n % 3],
                "prompt": ("a", "b", None)[n * 7 % 3],
                "seed": n * n % 61,
            }
        )

    sides = [(64, 64), (64, 64), (64, 64), (64, 64), (96, 80), (64, 64), (200, 150)]
    real = [_drawn(rng, *sides[i % len(sides)], noise=2) for i in range(REAL)]
    for pixels in real:
        add(None, pixels)
    for i in range(HONEST):
        add("honest", _drawn(rng, *sides[i % len(sides)], noise=5))
    repeated = _drawn(rng, 64, 64, noise=2)
    for i in range(COPIER):
        shifted = np.clip(repeated.astype(int) + rng.randint(-1, 2, repeated.shape), 0, 255).astype(np.uint8)
        add("copier", real[i] if i % 2 else shifted)
    (folder / lines[REAL + 1]["image_filename"]).write_bytes(b"no image")
    pq.write_table(pa.Table.from_pylist(lines), folder / "metadata.parquet")
    return folder / "metadata.parquet"


def _drawn(rng: np.random.RandomState, width: int, height: int, noise: float) -> NDArray[np.uint8]:
    """Draw coloured discs over a gradient with noise: (height, width, 3)."""
    down, across = np.mgrid[0:height, 0:width].astype(float)
    pixels = rng.uniform(40, 215, 3) + np.multiply.outer(across / width - 0.5, rng.uniform(-60, 60, 3))
    for _ in range(5):
        top, left, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0.1, 0.35) * height
        pixels[(down - top) ** 2 + (across - left) ** 2 < radius**2] = rng.uniform(0, 255, 3)
    return np.clip(np.round(pixels + rng.normal(0, noise, pixels.shape)), 0, 255).astype(np.uint8)


def _torchvision_digests() -> dict[str, Any]:
    """Return the digest of vectors by a network whose weights are given by a formula."""
    model = import_torchvision().models.get_model("squeezenet1_1", weights=None)
    state = {
        name: torch.sin(torch.arange(value.numel(), dtype=torch.float64) + i).reshape(value.shape).float()
        / max(1, value[0].numel()) ** 0.5
        for i, (name, value) in enumerate(model.state_dict().items())
    }
    out = io.BytesIO()
    torch.save(state, out)
    config = EncoderConfig(name="torchvision:squeezenet1_1", weights="file.pt", image_size=64)
    rng = np.random.RandomState(1)
    pixels = np.stack([_drawn(rng, 64, 64, noise=2) for _ in range(3)])
    return {"vector": _digest("vector", build_encoder(config, out.getvalue(), "cpu").encode(pixels))}


# Digests.


def _read(result: RunResult, table: str) -> pa.Table:
    files = sorted(Path(result.run.path(table)).glob("part-*.parquet"))
    return pa.concat_tables([pq.ParquetFile(file).read() for file in files])


def _table_digests(name: str, table: pa.Table) -> dict[str, Any]:
    """Return the digest of each column, by ``table/column``."""
    found = {}
    for column in (column for column in table.column_names if column not in _OF_THE_FILES):
        values, kind = table.column(column).to_pylist(), table.column(column).type
        if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
            # Every few positions have a digest of their own, as they differ in scale.
            widest = max((len(row) for row in values if row is not None), default=0)
            for start in range(0, max(widest, 1), _POSITIONS):
                part = [None if row is None else row[start : start + _POSITIONS] for row in values]
                flat = [value for row in part for value in ([None] if row is None else row)]
                found[f"{name}/{column}[{start}:]"] = _digest(column, flat)
        elif pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_signed_integer(kind):
            found[f"{name}/{column}"] = _digest(column, values)
        else:
            found[f"{name}/{column}"] = _text_digest(values)
    return found


def _metric_digests(result: RunResult) -> dict[str, Any]:
    """Return digests of ``metrics.parquet`` by metric and column, and of the other blocks of ``metrics.json``."""
    table = pq.read_table(result.run.path("metrics.parquet"))
    found = {}
    for metric in sorted(set(table.column("metric").to_pylist())):
        lines = table.filter(pa.compute.equal(table.column("metric"), metric)).drop_columns("metric")
        found |= _table_digests(f"metrics/{metric}", lines)
    document = {key: value for key, value in result.metrics.items() if key not in {"run_id", "generators"}}
    for name, block in result.metrics["generators"].items():
        document |= {f"{name} {key}": value for key, value in block.items()}
    for key, block in document.items():
        found |= _number_digests(f"metrics.json/{key}", block)
    return found


def _number_digests(name: str, block: Any) -> dict[str, Any]:
    """Return the digest of all numbers in nested JSON, in the order of their keys; nothing without numbers."""

    def numbers(item: Any) -> Iterator[float]:
        if isinstance(item, dict):
            for key in sorted(item):
                yield from numbers(item[key])
        elif isinstance(item, list):
            for child in item:
                yield from numbers(child)
        elif isinstance(item, bool | int | float):
            yield float(item)

    values = list(numbers(block))
    return {name: _digest(name, values)} if values else {}


def _digest(name: str, values: Any) -> list[float]:
    """Return (values, those that are not null, norm, three sums weighted by numbers drawn for the name)."""
    flat = np.array(values, dtype=np.float64).ravel()
    is_number = np.isfinite(flat)
    weights = np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, (3, len(flat)))
    numbers = np.where(is_number, flat, 0)
    rounded = [float(f"{value:.6g}") for value in (np.linalg.norm(numbers), *(weights @ numbers))]
    return [len(flat), int(is_number.sum()), *rounded]


def _text_digest(values: list[Any]) -> str:
    return f"{zlib.crc32(repr(values).encode()):08x}"


def _words(page: str) -> str:
    """Return a page without numbers, drawings and the data of pictures and map: texts, order and form."""
    page = re.sub(r"<svg.*?</svg>", "<svg>", page, flags=re.DOTALL)
    page = re.sub(r'(<script type="application/json".*?>).*?</script>', r"\1", page, flags=re.DOTALL)
    # The digests of style and script follow from these.
    page = re.sub(r"sha256-[^']*'", "", page)
    return re.sub(r"[-+\u2212]?[\d.,]+(e[-+]?\d+)?", "#", page)


def difference(expected: Outputs, found: Outputs) -> str | None:
    """Return the first outputs that differ, in words; None if none does."""
    old, new = expected["outputs"], found["outputs"]
    if old.keys() != new.keys():
        return f"there is more or less of it: {sorted(old.keys() ^ new.keys())[:5]}"
    differing = [name for name in old if not _are_close(old[name], new[name])]
    if not differing:
        return None
    first = differing[0]
    return f"{len(differing)} of {len(old)} digests differ, the first is {first}: {old[first]} -> {new[first]}"


def _are_close(one: Any, other: Any) -> bool:
    if isinstance(one, str) or isinstance(other, str) or one[:2] != other[:2]:
        return bool(one == other)
    scale = max(one[2], other[2])
    return all(abs(a - b) <= TOLERANCE * scale for a, b in zip(one[2:], other[2:], strict=True))


def complaint(expected: dict[str, Outputs], found: dict[str, Outputs]) -> str | None:
    """Return what is wrong with the first entry that is not as expected; later ones may only follow from it."""
    for name in ENTRIES:
        old, new = expected.get(name), found[name]
        if old is None or old["versions"] != new["versions"]:
            versions = None if old is None else old["versions"]
            return f"{name}: has the versions {new['versions']}, the expected output {versions}. {RENEW}"
        differs = difference(old, new)
        if differs is not None:
            return f"{name}: gives other output under the same version; {differs}. {RAISE[name]} {RENEW}"
    return None


RENEW = "Renew the expected output with: python -m tests.expected_outputs"
_ROOMS = {stage: stage for stage in STAGES} | {"reduce": "metrics"}
RAISE = {
    stage: f"If that is meant, raise ALGORITHM_VERSION in synthscale/{room}/stage.py."
    for stage, room in _ROOMS.items()
} | {"torchvision": "If that is meant, raise VERSION in synthscale/embed/encoders/torchvision_model.py."}
RAISE["embed"] += " (Or VERSION of encoders/descriptor.py, if only what it makes of the pixels has changed.)"


def write(found: dict[str, Outputs]) -> None:
    """Write the file of expected outputs, a line a digest."""
    entries = []
    for name, entry in found.items():
        lines = ",\n".join(f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in entry["outputs"].items())
        versions = json.dumps(entry["versions"])
        entries.append(f' {json.dumps(name)}: {{\n  "versions": {versions},\n  "outputs": {{\n{lines}\n  }}\n }}')
    EXPECTED.write_text("{\n" + ",\n".join(entries) + "\n}\n")


def read() -> dict[str, Outputs]:
    """Return the expected outputs by entry; empty if there is no file."""
    return json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}


def main(arguments: list[str]) -> int:
    """Renew the file; refuse to keep a version under which a stage gives other numbers."""
    with tempfile.TemporaryDirectory() as folder:
        found = outputs_of_a_run(Path(folder))
    text = complaint(read(), found)
    if text is not None and "under the same version" in text and arguments != ["--force"]:
        sys.stderr.write(f"{text} Or keep the version, if no release has it, with --force.\n")
        return 1
    write(found)
    sys.stdout.write(f"written: {EXPECTED}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
