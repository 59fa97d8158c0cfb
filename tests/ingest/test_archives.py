"""Images in WebDataset tars, zips and Parquet files: URIs that read the image's bytes, labels and user columns."""

import io
import json
import tarfile
import warnings
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthscale.config import Config, StorageConfig
from synthscale.errors import InputError
from synthscale.ingest.checks import check_rows
from synthscale.ingest.discover import discover
from synthscale.storage import fetch as fetching
from synthscale.storage.fetch import fetch, tar_uri
from synthscale.tables.faults import Reason, RowFault
from synthscale.tables.layout import StoredFile

LOCAL = StorageConfig()


@pytest.fixture
def pictures(tmp_path, make_images):
    """Real images in a folder, and the bytes of eight others by name."""
    make_images(tmp_path / "real", 8)
    return {path.name: path.read_bytes() for path in make_images(tmp_path / "made", 8, seed=1, labels=(None,))}


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def rows_of(tmp_path, fake, storage=LOCAL):
    found = discover(Config(real=str(tmp_path / "real"), synthetic={"gan": str(fake)}, storage=storage))
    check_rows(found.rows)
    rows = found.rows.to_pylist()
    return [row for row in rows if row["generator"] == "gan"], found


def assert_leads_to(rows, pictures, storage=LOCAL):
    got = [fetch(StoredFile(row["uri"], row["size_bytes"], row["etag"]), storage) for row in rows]
    assert got == list(pictures.values())


def webdataset(pictures):
    """Samples with a class, a caption and JSON, with the image first or last, as different tools write them."""
    members = []
    for i, (name, data) in enumerate(pictures.items()):
        stem = name.partition(".")[0]
        said = {"seed": i, "prompt": "p" if i else None, "id": "x", "deep": [1]}
        beside = [
            (f"{stem}.cls", str(i % 2).encode()),
            (f"{stem}.txt", f"a picture, {i}".encode()),
            (
                f"{stem}.json",
                json.dumps(said).encode(),
            ),
        ]
        members += [(f"{stem}.png", data), *beside] if i % 2 else [*beside, (f"{stem}.png", data)]
    return members


def test_a_webdataset_gives_one_row_per_image_with_its_label_caption_and_json(tmp_path, pictures):
    path = write_tar(tmp_path / "fake" / "shard-000.tar", webdataset(pictures))
    rows, _ = rows_of(tmp_path, tmp_path / "fake")
    assert_leads_to(rows, pictures)
    assert [row["id"] for row in rows] == [f"gan/shard-000.tar/{name}" for name in pictures]
    assert [row["label"] for row in rows] == ["0", "1"] * 4
    assert [row["seed"] for row in rows] == list(range(8))
    assert [row["prompt"] for row in rows] == [None] + ["p"] * 7
    assert rows[3]["caption"] == "a picture, 3"
    assert rows[3]["user_id"] == "x"
    assert "deep" not in rows[3]
    # The tar as the whole set gives the same rows.
    alone, _ = rows_of(tmp_path, path)
    assert [row["uri"] for row in alone] == [row["uri"] for row in rows]


def test_a_folder_may_mix_tars_and_images_and_folders_in_a_tar_are_labels(tmp_path, pictures, make_images):
    make_images(tmp_path / "fake", 3, seed=2)
    for i in range(2):
        write_tar(tmp_path / "fake" / f"{i}.tar", [(f"dog/{name}", data) for name, data in pictures.items()])
    rows, _ = rows_of(tmp_path, tmp_path / "fake")
    assert len(rows) == 3 + 16
    assert {row["label"] for row in rows[3:]} == {"dog"}
    assert_leads_to(rows[11:], pictures)


def test_a_column_of_mixed_types_becomes_strings(tmp_path, pictures):
    (first, one), (second, two), *_ = pictures.items()
    write_tar(tmp_path / "fake" / "a.tar", [(first, one), (f"{first[:-4]}.json", b'{"seed": 1, "size": 2}')])
    write_tar(tmp_path / "fake" / "b.tar", [(second, two), (f"{second[:-4]}.json", b'{"seed": "x", "size": 2.5}')])
    rows, _ = rows_of(tmp_path, tmp_path / "fake")
    assert [row["seed"] for row in rows] == ["1", "x"]


def test_a_truncated_tar_loses_only_its_last_image(tmp_path, pictures):
    path = write_tar(tmp_path / "fake" / "a.tar", pictures.items())
    data = path.read_bytes()
    rows, _ = rows_of(tmp_path, path)
    last = rows[-1]["uri"]
    path.write_bytes(data[: data.index(list(pictures.values())[-1]) + 10])
    assert fetch(StoredFile(rows[0]["uri"], rows[0]["size_bytes"]), LOCAL) == next(iter(pictures.values()))
    with pytest.raises(RowFault) as fault:
        fetch(StoredFile(last), LOCAL)
    assert fault.value.reason is Reason.TRUNCATED


@pytest.mark.parametrize("suffix", [".tar", ".zip", ".parquet"])
def test_a_file_that_only_pretends_to_be_an_archive_is_refused_by_name(tmp_path, pictures, suffix):
    (tmp_path / f"no{suffix}").write_bytes(b"no archive at all" * 500)
    with pytest.raises(InputError, match=rf"no\{suffix}: "):
        rows_of(tmp_path, tmp_path / f"no{suffix}")


def test_an_archive_without_images_and_a_missing_archive_are_refused(tmp_path, pictures):
    write_tar(tmp_path / "fake.tar", [("a.txt", b"x")])
    with pytest.raises(InputError, match="contains no images"):
        rows_of(tmp_path, tmp_path / "fake.tar")
    with pytest.raises(InputError, match="not found"):
        rows_of(tmp_path, tmp_path / "none.tar")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.json", b"{"),
        ("a.json", b""),
        ("a.json", b"[1]"),
        ("a.json", b"\xff\xfe"),
        pytest.param("a.json", b"[" * 100_000, id="nested"),
        ("a.txt", b"\xff\xfe\x00"),
        ("a.cls", b"\xff"),
        pytest.param("a.txt", b"x" * (2**20 + 1), id="large"),
    ],
)
def test_an_unreadable_text_member_is_left_out_with_a_note(tmp_path, pictures, name, data):
    first = next(iter(pictures.values()))
    write_tar(tmp_path / "fake.tar", [("a.png", first), (name, data), ("b.png", first), ("b.cls", b"7")])
    rows, found = rows_of(tmp_path, tmp_path / "fake.tar")
    assert [row["label"] for row in rows] == [None, "7"]
    (note,) = (line for line in found.notes if "fake.tar" in line)
    assert f"1 {name[1:]} members cannot be read and were left out (fake.tar/{name})" in note


def test_extensions_of_text_members_are_read_in_any_case_and_dots_in_folders_end_no_key(tmp_path, pictures):
    first = next(iter(pictures.values()))
    members = [
        ("v1.0/a.PNG", first),
        ("v1.0/a.CLS", b"cat"),
        ("v1.0/a.JSON", b'{"seed": 3}'),
        ("v1.0/a.Txt", b"hi"),
    ]
    write_tar(tmp_path / "fake.tar", members)
    ((row,), _) = rows_of(tmp_path, tmp_path / "fake.tar")
    assert (row["label"], row["seed"], row["caption"]) == ("cat", 3, "hi")


def test_an_empty_class_or_caption_is_none(tmp_path, pictures):
    write_tar(tmp_path / "fake.tar", [("a.png", next(iter(pictures.values()))), ("a.cls", b" "), ("a.txt", b"")])
    ((row,), _) = rows_of(tmp_path, tmp_path / "fake.tar")
    assert row["label"] is None


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_of_members_with_one_name_the_later_is_taken(tmp_path, pictures, suffix):
    one, two, three, *_ = pictures.values()
    members = [("x/a.png", one), ("x/b.png", two), ("x/a.png", three)]
    path = tmp_path / f"fake{suffix}"
    if suffix == ".tar":
        write_tar(path, members)
    else:
        with zipfile.ZipFile(path, "w") as file, warnings.catch_warnings(action="ignore"):
            for name, data in members:
                file.writestr(name, data)
    rows, found = rows_of(tmp_path, path)
    got = {
        row["image_filename"]: fetch(StoredFile(row["uri"], row["size_bytes"], row["etag"]), LOCAL) for row in rows
    }
    assert got == {"x/a.png": three, "x/b.png": two}
    assert any("1 names occur again" in note for note in found.notes)


def test_backslashes_in_a_zip_are_folders(tmp_path, pictures):
    with zipfile.ZipFile(tmp_path / "fake.zip", "w") as file:
        for name, data in pictures.items():
            info = zipfile.ZipInfo("x")
            info.filename = f"set\\cat\\{name}"
            file.writestr(info, data)
    rows, _ = rows_of(tmp_path, tmp_path / "fake.zip")
    assert {row["label"] for row in rows} == {"cat"}
    assert_leads_to(rows, pictures)


def test_a_zip_of_images_needs_no_table(tmp_path, pictures):
    with zipfile.ZipFile(tmp_path / "fake.zip", "w") as file:
        for name, data in pictures.items():
            file.writestr(f"top/cat/{name}", data)
        file.writestr("readme.txt", "x")
    rows, _ = rows_of(tmp_path, tmp_path / "fake.zip")
    assert_leads_to(rows, pictures)
    assert {row["label"] for row in rows} == {"cat"}


def hugging_face(path, pictures, rows_per_group=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pa.array([{"bytes": data, "path": name} for name, data in pictures.items()])
    table = pa.table(
        {"image": image, "label": [i % 2 for i in range(len(pictures))], "seed": range(len(pictures))}
    )
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


def test_a_hugging_face_parquet_file_gives_one_row_per_image(tmp_path, pictures):
    hugging_face(tmp_path / "fake" / "train-0.parquet", pictures)
    rows, _ = rows_of(tmp_path, tmp_path / "fake")
    assert_leads_to(rows, pictures)
    assert [row["label"] for row in rows] == ["cat", "dog"] * 4
    assert [row["seed"] for row in rows] == list(range(8))
    assert [row["image_filename"] for row in rows] == list(pictures)
    assert [row["id"] for row in rows][-1] == "gan/train-0.parquet/7"


def test_a_binary_parquet_column_is_read_and_a_null_is_a_failure_of_its_row(tmp_path, pictures):
    data = [*pictures.values(), None]
    pq.write_table(pa.table({"image": pa.array(data, pa.binary())}), tmp_path / "fake.parquet")
    rows, _ = rows_of(tmp_path, tmp_path / "fake.parquet")
    assert_leads_to(rows[:8], pictures)
    with pytest.raises(RowFault) as fault:
        fetch(StoredFile(rows[8]["uri"]), LOCAL)
    assert fault.value.reason is Reason.EMPTY


def test_parquet_without_an_image_column_is_left_out_with_a_note(tmp_path, pictures, make_images):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "fake.parquet")
    with pytest.raises(InputError, match=r"contains no images.*1 tables without a column of images"):
        rows_of(tmp_path, tmp_path / "fake.parquet")
    make_images(tmp_path / "fake", 3, seed=2)
    (tmp_path / "fake.parquet").rename(tmp_path / "fake" / "stats.parquet")
    rows, found = rows_of(tmp_path, tmp_path / "fake")
    assert len(rows) == 3
    assert any("stats.parquet" in note for note in found.notes)


def test_the_digest_changes_exactly_when_an_archive_does(tmp_path, pictures):
    write_tar(tmp_path / "fake" / "a.tar", pictures.items())
    first = rows_of(tmp_path, tmp_path / "fake")[1].digest
    assert rows_of(tmp_path, tmp_path / "fake")[1].digest == first
    write_tar(tmp_path / "fake" / "b.tar", pictures.items())
    assert rows_of(tmp_path, tmp_path / "fake")[1].digest != first


@pytest.mark.parametrize("kind", ["tar", "zip", "parquet"])
def test_archives_on_s3_are_read_in_place(s3, tmp_path, pictures, kind):
    path = tmp_path / "fake" / f"a.{kind}"
    path.parent.mkdir()
    if kind == "tar":
        write_tar(path, pictures.items())
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, data in pictures.items():
                file.writestr(name, data)
    else:
        hugging_face(path, pictures)
    bucket, storage = s3.bucket(), StorageConfig(endpoint_url=s3.endpoint_url)
    s3.put_folder(tmp_path / "fake", f"s3://{bucket}/fake")
    for uri in (f"s3://{bucket}/fake", f"s3://{bucket}/fake/a.{kind}"):
        rows, _ = rows_of(tmp_path, uri, storage)
        assert_leads_to(rows, pictures, storage)
    # A process that has not opened the archive yet refuses one that was replaced after the listing.
    fetching._zip.cache_clear()
    fetching._row_group.cache_clear()
    s3.client.put_object(Bucket=bucket, Key=f"fake/a.{kind}", Body=path.read_bytes()[::-1])
    with pytest.raises(RowFault) as fault:
        fetch(StoredFile(rows[0]["uri"], rows[0]["size_bytes"], rows[0]["etag"]), storage)
    assert fault.value.reason is Reason.CHANGED


def test_a_byte_range_beyond_the_end_of_a_tar_is_a_failure_of_its_row(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"x" * 100)
    for place in ((90, 20), (200, 5)):
        with pytest.raises(RowFault) as fault:
            fetch(StoredFile(tar_uri(str(tmp_path / "a.tar"), "a.png", *place)), LOCAL)
        assert fault.value.reason is Reason.TRUNCATED
