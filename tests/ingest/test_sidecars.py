"""Tables beside images: the layouts of img2dataset and imagefolder, and tables that fit no image."""

import json

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from synthscale.config import Config
from synthscale.ingest.discover import discover
from tests.ingest.test_intake import PNG


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".csv":
        pacsv.write_csv(table, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def gan_rows(tmp_path, make_images):
    if not (tmp_path / "real").exists():
        make_images(tmp_path / "real", 4)
    dataset = discover(Config(real=str(tmp_path / "real"), synthetic={"gan": str(tmp_path / "fake")}))
    rows = {row["image_filename"]: row for row in dataset.rows.to_pylist() if row["generator"] == "gan"}
    return rows, "\n".join(dataset.notes), dataset


def place(tmp_path, *names):
    for name in names:
        (tmp_path / "fake" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fake" / name).write_bytes(PNG)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("folder", ["", "train/"])
def test_columns_of_an_imagefolder_are_those_of_its_images(tmp_path, make_images, suffix, folder):
    place(tmp_path, f"{folder}a.png", f"{folder}cat/b.png", "c.png")
    listed = [
        {"file_name": name, "text": f"of {name}", "seed": i} for i, name in enumerate(("a.png", "cat/b.png"))
    ]
    write(tmp_path / "fake" / f"{folder}metadata{suffix}", listed)
    rows, notes, _ = gan_rows(tmp_path, make_images)
    assert {name: (row["text"], row["seed"]) for name, row in rows.items()} == {
        f"{folder}a.png": ("of a.png", 0),
        f"{folder}cat/b.png": ("of cat/b.png", 1),
        "c.png": (None, None),
    }
    assert f"1 tables were joined to the images that they name ({folder}metadata{suffix})" in notes


def test_the_tables_of_img2dataset_are_joined_by_key(tmp_path, make_images):
    for shard in ("00000", "00001"):
        place(tmp_path, f"{shard}/{shard}0001.png", f"{shard}/{shard}0002.png")
        listed = [{"key": f"{shard}000{i}", "caption": f"{shard} {i}", "status": "success"} for i in (1, 2, 3)]
        write(tmp_path / "fake" / f"{shard}.parquet", listed)
    rows, notes, _ = gan_rows(tmp_path, make_images)
    assert {name: row["caption"] for name, row in rows.items()} == {
        f"{shard}/{shard}000{i}.png": f"{shard} {i}" for shard in ("00000", "00001") for i in (1, 2)
    }
    assert "2 tables were joined" in notes


def test_a_column_label_is_the_label_and_others_of_the_manifest_get_a_prefix(tmp_path, make_images):
    place(tmp_path, "x/a.png", "x/b.png")
    listed = [{"file_name": "x/a.png", "label": 7, "id": "one", "uri": "u"}]
    write(tmp_path / "fake" / "metadata.csv", listed)
    rows, _, dataset = gan_rows(tmp_path, make_images)
    assert {name: row["label"] for name, row in rows.items()} == {"x/a.png": "7", "x/b.png": "x"}
    assert (rows["x/a.png"]["user_id"], rows["x/a.png"]["id"]) == ("one", "gan/x/a.png")
    assert dataset.rows.column("uri").null_count == 0


def test_tables_of_different_columns_and_types_are_joined_together(tmp_path, make_images):
    place(tmp_path, "p/a.png", "q/b.png")
    write(tmp_path / "fake" / "p" / "metadata.jsonl", [{"file_name": "a.png", "seed": 1, "text": "x"}])
    write(tmp_path / "fake" / "q" / "metadata.jsonl", [{"file_name": "b.png", "seed": "two"}])
    rows, _, _ = gan_rows(tmp_path, make_images)
    assert [(row["seed"], row["text"]) for row in rows.values()] == [("1", "x"), ("two", None)]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("metadata.csv", b""),
        ("metadata.csv", b"a,b\n1,2\n"),
        ("metadata.csv", b"file_name,x\nnone.png,2\n"),
        ("metadata.csv", b"file_name,file_name\na.png,a.png\n"),
        ("metadata.jsonl", b"{"),
        ("metadata.jsonl", b'{"file_name": "a.png"}\nnull\n'),
        ("metadata.jsonl", b"\xff\xfe"),
        ("metadata.jsonl", b'{"file_name": 3}\n'),
    ],
)
def test_a_table_that_fits_no_image_is_left_out_with_a_note(tmp_path, make_images, name, data):
    place(tmp_path, "a.png")
    (tmp_path / "fake" / name).write_bytes(data)
    rows, notes, _ = gan_rows(tmp_path, make_images)
    assert list(rows) == ["a.png"]
    assert f"1 tables name no image beside them and were left out ({name})" in notes
