"""Damaged and hostile inputs: whatever the bytes and names, errors are SynthscaleErrors or failures of rows."""

import io
import json
import os
import random
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthscale.config import Config
from synthscale.embed.image_reader import decode_all, files_of
from synthscale.errors import SynthscaleError
from synthscale.ingest.checks import check_rows
from synthscale.ingest.discover import discover
from tests.examples import FACTOR
from tests.ingest.test_intake import JPEG, PNG

CASES = 60 * FACTOR
"""Mutations of each kind of input."""

NAMES = [
    *(
        "a.png",
        "cat/b.png",
        "cat/c.JPG",
        "/d.png",
        "../e.png",
        "f//g.png",
        "./h.png",
        "i/",
        "j\nk.png",
        " .png",
        ".",
    ),
    *("l\x00m.png", "n\x1b[31m.png", "\udcff.png", "ö/ü.png", "o::p.png", "q://r.png", "s+1/t.png", "u?v=w.png"),
    *(
        "%2e%2e/x.png",
        "y" * 250 + ".png",
        "z\\1.png",
        "C:\\2.png",
        "a.tar",
        "b.zip/c.png",
        "d.parquet",
        "e.png/f.png",
    ),
]


def tar_of(members, headers=None):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), headers or {}
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zip_of(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members:
            info = zipfile.ZipInfo("x")
            info.filename = name.encode("utf-8", "replace").decode()
            file.writestr(info, data)
    return out.getvalue()


def parquet_of(members):
    out = io.BytesIO()
    rows = [
        {"image": {"bytes": data, "path": name}, "label": i, "seed": i} for i, (name, data) in enumerate(members)
    ]
    features = {"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, out)
    return out.getvalue()


WEBDATASET = [
    ("1.png", PNG),
    ("1.json", b'{"label": 3, "x": 1}'),
    ("1.txt", b"hi"),
    ("2.cls", b"cat"),
    ("2.jpg", JPEG),
]
BASES = {
    "a.tar": tar_of(WEBDATASET, {"comment": "x"}),
    "a.zip": zip_of([("cat/1.png", PNG), ("cat/2.jpg", JPEG), ("x.txt", b"hi")]),
    "a.parquet": parquet_of([("cat/1.png", PNG), ("2.jpg", JPEG)]),
    "metadata.csv": b"file_name,seed,text\nkept.png,1,hi\nother.png,2,\n",
    "metadata.jsonl": b'{"file_name": "kept.png", "seed": 1}\n{"file_name": "x.png", "seed": 2.5}\n',
    "x.png": PNG,
    "x.jpg": JPEG,
    "unknown": PNG,
}


def mutated(data, random_numbers):
    """Flip, drop, repeat or insert bytes; sometimes numbers as long as a field of a header."""
    result = bytearray(data)
    for _ in range(random_numbers.choice([1, 1, 2, 5, 40])):
        at, length = random_numbers.randrange(len(result) + 1), random_numbers.choice([1, 1, 2, 8, 100, 600])
        piece = {
            "flip": bytes(random_numbers.randrange(256) for _ in result[at : at + length]),
            "drop": b"",
            "repeat": bytes(result[at : at + length] * 2),
            "extreme": random_numbers.choice([b"\xff", b"\0", b"9", b"7", b"\x80", b"-"]) * min(12, length),
        }[random_numbers.choice(["flip", "flip", "drop", "repeat", "extreme"])]
        result[at : at + length] = piece
    return bytes(result[: random_numbers.randrange(len(result) + 1)] if random_numbers.random() < 0.2 else result)


def read_all(folder, fake):
    """Discover, check, fetch and decode, as a run would."""
    config = Config(real=f"{folder}/real", synthetic={"gan": str(fake)})
    try:
        dataset = discover(config)
        check_rows(dataset.rows)
    except SynthscaleError:
        return
    for line in dataset.lines():
        assert isinstance(line, str)
    decode_all(files_of(dataset.rows.slice(1)), 8, config)


@pytest.fixture
def real(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "1.png").write_bytes(PNG)
    return tmp_path


@pytest.mark.parametrize("name", BASES)
def test_damaged_files_end_in_one_line_or_in_failures_of_their_rows(real, name):
    random_numbers = random.Random(name)
    (real / "fake").mkdir()
    (real / "fake" / "kept.png").write_bytes(PNG)
    for _ in range(CASES):
        (real / "fake" / name).write_bytes(mutated(BASES[name], random_numbers))
        read_all(real, real / "fake")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["tar", "zip", "parquet", "folder"])
def test_names_of_any_kind_are_read_or_are_failures_of_their_rows(real, name, kind):
    members = [(name, PNG), ("cat/other.png", JPEG)]
    if kind == "folder":
        path = os.path.join(str(real), "fake", name.lstrip("/").replace("..", "_").rstrip("/"))
        if "\x00" in path or len(os.path.basename(path)) > 255:
            pytest.skip("no file can have this name")
        (real / "fake").mkdir()
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if not os.path.isdir(path):
            with open(path, "wb") as file:
                file.write(PNG)
        read_all(real, real / "fake")
        return
    if kind == "parquet":
        members[0] = (name.encode("utf-8", "replace").decode(), PNG)
    data = {"tar": tar_of, "zip": zip_of, "parquet": parquet_of}[kind](members)
    (real / f"fake.{kind}").write_bytes(data)
    read_all(real, real / f"fake.{kind}")
