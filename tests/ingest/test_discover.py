"""Finding the rows of a data set: folders, tables, Studio zips and folders, vectors; local and on S3."""

import os
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthscale.config import Config, StorageConfig
from synthscale.errors import InputError, StorageError
from synthscale.ingest import csv_tables, jsonl_tables, parquet_tables
from synthscale.ingest.discover import discover
from synthscale.ingest.vector_reader import read_vectors
from synthscale.storage.fetch import fetch
from synthscale.tables.layout import StoredFile


@pytest.fixture
def folders(tmp_path, make_images):
    """Two folders of images and the configuration that names them."""
    make_images(tmp_path / "photos", 4)
    make_images(tmp_path / "fakes", 6, seed=1)
    return tmp_path


def folder_config(top, **more):
    return Config(real=f"{top}/photos", synthetic={"gan": f"{top}/fakes"}, **more)


def rows_of(config):
    return discover(config).rows.to_pylist()


def refusal(config, kind=InputError):
    with pytest.raises(kind) as caught:
        discover(config)
    return str(caught.value)


# --- folders ---


def test_folder_rows_have_ids_kinds_and_generators(folders):
    rows = rows_of(folder_config(folders))
    real = [row for row in rows if row["real_or_synthetic"] == "real"]
    fake = [row for row in rows if row["real_or_synthetic"] == "synthetic"]
    assert sorted(row["id"] for row in real) == [
        "real/cat/000.png",
        "real/cat/002.png",
        "real/dog/001.png",
        "real/dog/003.png",
    ]
    assert len(fake) == 6
    assert all(row["id"].startswith("gan/") and row["generator"] == "gan" for row in fake)
    assert {row["generator"] for row in real} == {None}


def test_the_uri_of_a_folder_row_is_its_file(folders):
    for row in rows_of(folder_config(folders)):
        data = fetch(StoredFile(row["uri"]), StorageConfig())
        assert len(data) == row["size_bytes"]
        kind, _, relative = row["id"].partition("/")
        assert data == (folders / {"real": "photos", "gan": "fakes"}[kind] / relative).read_bytes()


def test_the_label_is_the_immediate_parent_folder_or_none(tmp_path, make_images):
    make_images(tmp_path / "photos", 2, labels=(None, "animals/cat"))
    make_images(tmp_path / "fakes", 1)
    labels = {row["id"]: row["label"] for row in rows_of(folder_config(tmp_path))}
    assert labels["real/000.png"] is None
    assert labels["real/animals/cat/001.png"] == "cat"


def test_suffixes_are_read_in_any_case(tmp_path, make_images):
    make_images(tmp_path / "photos", 1, format="JPG")
    make_images(tmp_path / "photos", 1, format="tiff")
    make_images(tmp_path / "photos", 1, format="webp")
    make_images(tmp_path / "fakes", 1)
    assert len(rows_of(folder_config(tmp_path))) == 4


def test_skipped_files_are_counted_in_a_note(folders):
    (folders / "photos" / "cat" / "notes.txt").write_text("no image")
    (folders / "photos" / "README").write_text("no image")
    dataset = discover(folder_config(folders))
    assert dataset.rows.num_rows == 10
    (note,) = dataset.notes
    assert "2 files" in note
    assert "photos" in note


def test_folders_without_other_files_leave_no_note(folders):
    assert discover(folder_config(folders)).notes == []


def test_an_empty_folder_is_refused_by_name(folders):
    (folders / "fakes").rename(folders / "elsewhere")
    (folders / "fakes").mkdir()
    assert f"{folders}/fakes: contains no images" in refusal(folder_config(folders))


def test_a_missing_folder_is_refused_by_name(tmp_path, make_images):
    make_images(tmp_path / "photos", 1)
    assert f"{tmp_path}/fakes" in refusal(folder_config(tmp_path))


def test_a_file_in_place_of_a_folder_is_refused(folders):
    config = Config(real=f"{folders}/photos", synthetic={"gan": f"{folders}/fakes/cat/000.png"})
    assert "fakes/cat/000.png" in refusal(config)


def test_each_generator_has_its_own_rows(folders, make_images):
    make_images(folders / "more", 3, seed=2)
    config = Config(real=f"{folders}/photos", synthetic={"a": f"{folders}/fakes", "b": f"{folders}/more"})
    generators = [row["generator"] for row in rows_of(config)]
    assert (generators.count("a"), generators.count("b"), generators.count(None)) == (6, 3, 4)


def test_an_unknown_scheme_is_refused(tmp_path):
    assert "gs://bucket/x" in refusal(Config(real="gs://bucket/x", synthetic={"a": str(tmp_path)}), StorageError)


# --- tables ---


def table_of(top, paths, **columns):
    """Rows that alternate real and synthetic, with file names relative to ``top``."""
    n = len(paths)
    values = {
        "id": [f"row-{i}" for i in range(n)],
        "image_filename": [os.path.relpath(path, top) for path in paths],
        "real_or_synthetic": ["real" if i % 2 == 0 else "synthetic" for i in range(n)],
        "label": [f"label-{i % 3}" for i in range(n)],
        "generator": [None if i % 2 == 0 else f"gen-{i % 4}" for i in range(n)],
        "camera": [f"c{i}" for i in range(n)],
        "weight": [i / 2 for i in range(n)],
    }
    return pd.DataFrame(values | columns)


@pytest.fixture
def dataset(tmp_path, make_images):
    """A data set folder with eight images below ``images/`` and no table yet."""
    return tmp_path / "set", make_images(tmp_path / "set" / "images", 8)


def check_dataset_rows(rows, paths):
    assert [row["id"] for row in rows] == [f"row-{i}" for i in range(8)]
    assert [row["real_or_synthetic"] for row in rows] == ["real", "synthetic"] * 4
    assert [row["label"] for row in rows] == [f"label-{i % 3}" for i in range(8)]
    assert [row["generator"] for row in rows] == [None, "gen-1", None, "gen-3"] * 2
    assert [row["camera"] for row in rows] == [f"c{i}" for i in range(8)]
    assert [row["weight"] for row in rows] == [i / 2 for i in range(8)]
    for row, path in zip(rows, paths, strict=True):
        assert fetch(StoredFile(row["uri"]), StorageConfig()) == path.read_bytes()


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.parquet"])
@pytest.mark.parametrize("by_folder", [True, False])
def test_a_metadata_table_gives_rows_and_carries_user_columns(dataset, name, by_folder):
    top, paths = dataset
    frame = table_of(top, paths)
    _ = frame.to_csv(top / name, index=False) if name.endswith("csv") else frame.to_parquet(top / name)
    config = Config(manifest=str(top if by_folder else top / name))
    check_dataset_rows(rows_of(config), paths)


@pytest.mark.parametrize("relative_to", ["top", "images"])
def test_a_studio_folder_may_name_files_from_its_top_or_from_images(dataset, relative_to):
    top, paths = dataset
    frame = table_of(top if relative_to == "top" else top / "images", paths)
    frame.to_csv(top / "images" / "metadata.csv", index=False)
    check_dataset_rows(rows_of(Config(manifest=str(top))), paths)


@pytest.mark.parametrize("relative_to", ["top", "images"])
@pytest.mark.parametrize("wrapped", ["", "export/"])
def test_a_studio_zip_may_name_files_from_its_top_or_from_images(dataset, tmp_path, relative_to, wrapped):
    top, paths = dataset
    frame = table_of(top if relative_to == "top" else top / "images", paths)
    with zipfile.ZipFile(tmp_path / "studio.zip", "w") as archive:
        archive.writestr(f"{wrapped}images/metadata.csv", frame.to_csv(index=False))
        for path in paths:
            archive.write(path, wrapped + path.relative_to(top).as_posix())
    check_dataset_rows(rows_of(Config(manifest=str(tmp_path / "studio.zip"))), paths)


def test_ids_that_look_like_numbers_stay_strings(dataset):
    top, paths = dataset
    ids = [f"{i:05d}" for i in range(8)]
    table_of(top, paths, id=ids, label=[f"0{i}" for i in range(8)]).to_csv(top / "metadata.csv", index=False)
    rows = rows_of(Config(manifest=str(top)))
    assert [row["id"] for row in rows] == ids
    assert [row["label"] for row in rows] == [f"0{i}" for i in range(8)]


def test_file_names_that_look_like_numbers_are_found(tmp_path, make_images):
    (path,) = make_images(tmp_path, 1, labels=(None,))
    path.rename(tmp_path / "007")
    (tmp_path / "metadata.csv").write_text("id,image_filename,real_or_synthetic\na,007,real\n")
    (row,) = rows_of(Config(manifest=str(tmp_path)))
    assert row["image_filename"] == "007"


def test_without_an_id_column_the_file_name_is_the_id(dataset):
    top, paths = dataset
    frame = table_of(top, paths).drop(columns="id")
    frame.to_csv(top / "metadata.csv", index=False)
    assert [row["id"] for row in rows_of(Config(manifest=str(top)))] == frame["image_filename"].tolist()


def test_synthetic_rows_without_a_generator_belong_to_one_called_synthetic(dataset):
    top, paths = dataset
    table_of(top, paths).drop(columns="generator").to_csv(top / "metadata.csv", index=False)
    assert [row["generator"] for row in rows_of(Config(manifest=str(top)))] == [None, "synthetic"] * 4


def test_a_label_column_may_be_absent(dataset):
    top, paths = dataset
    table_of(top, paths).drop(columns="label").to_csv(top / "metadata.csv", index=False)
    assert {row["label"] for row in rows_of(Config(manifest=str(top)))} == {None}


def test_a_uri_column_may_be_absolute(dataset, tmp_path):
    top, paths = dataset
    frame = table_of(top, paths).drop(columns="image_filename")
    frame["uri"] = [str(path) for path in paths]
    other = tmp_path / "elsewhere"
    other.mkdir()
    frame.to_csv(other / "metadata.csv", index=False)
    check_dataset_rows(rows_of(Config(manifest=str(other / "metadata.csv"))), paths)


@pytest.mark.parametrize("column", ["real_or_synthetic", "image_filename"])
def test_a_missing_column_is_named(dataset, column):
    top, paths = dataset
    table_of(top, paths).drop(columns=column).to_csv(top / "metadata.csv", index=False)
    message = refusal(Config(manifest=str(top)))
    assert column in message
    assert "metadata.csv" in message


def test_unknown_classes_are_named_with_their_counts(dataset):
    top, paths = dataset
    kinds = ["real", "fake", "fake", "synthetic", "Real", "SYNTHETIC ", "fake", "ai"]
    table_of(top, paths, real_or_synthetic=kinds).to_csv(top / "metadata.csv", index=False)
    message = refusal(Config(manifest=str(top)))
    assert "'fake' (3 rows)" in message
    assert "'ai' (1 row)" in message
    assert "Real" not in message.split("found")[1]


def test_a_missing_class_is_refused(dataset):
    top, paths = dataset
    table_of(top, paths, real_or_synthetic=["real", None] * 4).to_csv(top / "metadata.csv", index=False)
    assert "real_or_synthetic" in refusal(Config(manifest=str(top)))


LEAVING = [
    "../outside.png",
    "images/../../outside.png",
    "/etc/hostname",
    "s3://bucket/outside.png",
    "file:///etc/hostname",
    "..\\outside.png",
    "images\\..\\..\\outside.png",
    "C:\\..\\outside.png",
    "\\\\server\\share\\outside.png",
]


@pytest.mark.parametrize("name", LEAVING)
def test_a_file_name_that_leaves_the_data_set_is_refused_naming_the_row(dataset, name):
    top, paths = dataset
    (top.parent / "outside.png").write_bytes(paths[0].read_bytes())
    frame = table_of(top, paths)
    frame.loc[5, "image_filename"] = name
    frame.to_csv(top / "metadata.csv", index=False)
    message = refusal(Config(manifest=str(top)))
    assert "line 7" in message
    assert repr(name) in message


@pytest.mark.parametrize("name", ["../outside.png", "/etc/hostname", "..\\outside.png"])
def test_a_zip_whose_table_leaves_it_is_refused_naming_the_row(dataset, tmp_path, name):
    top, paths = dataset
    frame = table_of(top, paths)
    frame.loc[3, "image_filename"] = name
    with zipfile.ZipFile(tmp_path / "studio.zip", "w") as archive:
        archive.writestr("images/metadata.csv", frame.to_csv(index=False))
    assert "line 5" in refusal(Config(manifest=str(tmp_path / "studio.zip")))


@pytest.mark.parametrize("link", ["file", "folder"])
def test_a_link_that_leaves_the_data_set_is_refused_naming_the_row(dataset, tmp_path, link):
    top, paths = dataset
    frame = table_of(top, paths)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.png").write_bytes(paths[2].read_bytes())
    if link == "file":
        (top / "images" / "x.png").symlink_to(outside / "x.png")
        frame.loc[2, "image_filename"] = "images/x.png"
    else:
        (top / "linked").symlink_to(outside)
        frame.loc[2, "image_filename"] = "linked/x.png"
    frame.to_csv(top / "metadata.csv", index=False)
    message = refusal(Config(manifest=str(top)))
    assert "line 4" in message
    assert "link" in message


def test_a_link_inside_the_data_set_is_fine(dataset):
    top, paths = dataset
    (top / "images" / "x.png").symlink_to(paths[0])
    frame = table_of(top, paths)
    frame.loc[2, "image_filename"] = "images/x.png"
    frame.to_csv(top / "metadata.csv", index=False)
    assert len(rows_of(Config(manifest=str(top)))) == 8


def test_an_empty_file_name_is_a_failure_of_its_row(dataset):
    top, paths = dataset
    frame = table_of(top, paths)
    frame.loc[4, "image_filename"] = None
    frame.to_csv(top / "metadata.csv", index=False)
    found = discover(Config(manifest=str(top)))
    faults = found.rows.column("fault").to_pylist()
    assert faults[4].startswith("not_found: ")
    assert faults.count(None) == 7
    assert any("1 row without a file name" in note and "line 6" in note for note in found.notes)


def test_a_missing_image_is_not_an_error_of_the_table(dataset):
    top, paths = dataset
    paths[1].unlink()
    table_of(top, paths).to_csv(top / "metadata.csv", index=False)
    assert len(rows_of(Config(manifest=str(top)))) == 8


def test_a_missing_manifest_is_refused_by_name(tmp_path):
    assert f"{tmp_path}/none.csv" in refusal(Config(manifest=f"{tmp_path}/none.csv"))


def test_an_empty_csv_is_refused(tmp_path):
    (tmp_path / "metadata.csv").write_text("")
    assert "metadata.csv" in refusal(Config(manifest=str(tmp_path)))


def test_a_csv_of_binary_bytes_is_refused(tmp_path):
    (tmp_path / "metadata.csv").write_bytes(bytes(range(256)) * 10)
    assert "metadata.csv" in refusal(Config(manifest=str(tmp_path)))


def test_a_folder_without_any_table_is_refused(tmp_path):
    (tmp_path / "readme.txt").write_text("nothing here")
    assert "metadata.csv" in refusal(Config(manifest=str(tmp_path)))


def test_a_table_of_unknown_format_is_refused(tmp_path):
    (tmp_path / "table.xlsx").write_bytes(b"PK")
    assert ".csv" in refusal(Config(manifest=str(tmp_path / "table.xlsx")))


def test_a_file_that_is_not_a_zip_is_refused(tmp_path):
    (tmp_path / "studio.zip").write_bytes(b"this is no zip" * 100)
    assert "zip" in refusal(Config(manifest=str(tmp_path / "studio.zip"))).split(": ", 1)[1]


def test_a_zip_without_a_table_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "studio.zip", "w") as archive:
        archive.writestr("images/a.png", b"x")
    assert "metadata.csv" in refusal(Config(manifest=str(tmp_path / "studio.zip")))


def test_a_file_that_is_not_parquet_is_refused(tmp_path):
    (tmp_path / "table.parquet").write_bytes(b"PAR1 this is no parquet PAR1" * 10)
    assert "table.parquet" in refusal(Config(manifest=str(tmp_path / "table.parquet")), (InputError, StorageError))


# --- vectors ---

VECTORS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def vector_table(start=0, stop=6, kind="list<float32>", **columns):
    values = VECTORS[start:stop]
    kinds = {
        "list<float32>": pa.list_(pa.float32()),
        "list<float64>": pa.list_(pa.float64()),
        "large_list<float32>": pa.large_list(pa.float32()),
        "fixed<float32>": pa.list_(pa.float32(), 4),
        "fixed<float16>": pa.list_(pa.float16(), 4),
        "list<int64>": pa.list_(pa.int64()),
    }
    n = len(values)
    table = {
        "id": [f"v{i}" for i in range(start, stop)],
        "real_or_synthetic": ["real" if i % 2 == 0 else "synthetic" for i in range(start, stop)],
        "language": ["en"] * n,
    }
    if kind == "columns":
        table |= {f"f{j}": values[:, j] for j in range(4)}
        table["count"] = pa.array([7 * i for i in range(n)], pa.int32())
    else:
        exact = np.rint(values) if "int" in kind else values
        rows = list(exact.astype(np.float16)) if "16" in kind else exact.tolist()
        table["embedding"] = pa.array(rows, pa.float32() if kind is None else kinds[kind])
    return pa.table(table | columns)


@pytest.mark.parametrize(
    "kind", ["list<float32>", "list<float64>", "large_list<float32>", "fixed<float32>", "fixed<float16>"]
)
def test_an_embedding_column_of_lists_gives_vectors(tmp_path, kind):
    pq.write_table(vector_table(kind=kind), tmp_path / "v.parquet")
    dataset = discover(Config(manifest=str(tmp_path / "v.parquet")))
    assert dataset.vectors.dimensions == 4
    assert [row["id"] for row in dataset.rows.to_pylist()] == [f"v{i}" for i in range(6)]
    assert dataset.rows.column("uri").null_count == 6
    vectors, facts = read_vectors(dataset.vectors, 0, 6, StorageConfig())
    np.testing.assert_allclose(vectors, VECTORS, atol=2e-3 if "16" in kind else 1e-6)
    assert not any("reason" in fact for fact in facts)


def test_numeric_columns_give_vectors_and_the_others_are_carried(tmp_path):
    pq.write_table(vector_table(kind="columns"), tmp_path / "v.parquet")
    dataset = discover(Config(manifest=str(tmp_path / "v.parquet")))
    assert dataset.vectors.columns == ["f0", "f1", "f2", "f3", "count"]
    assert dataset.vectors.dimensions == 5
    assert dataset.rows.column("language").to_pylist() == ["en"] * 6
    vectors, _ = read_vectors(dataset.vectors, 0, 6, StorageConfig())
    np.testing.assert_allclose(vectors[:, :4], VECTORS, atol=1e-6)
    np.testing.assert_array_equal(vectors[:, 4], 7 * np.arange(6))


@pytest.mark.parametrize("name", [None, "position"])
def test_an_index_is_never_a_feature(tmp_path, name):
    frame = vector_table(kind="columns").to_pandas().sample(frac=1, random_state=0)
    # From pandas: row numbers in a column of their own, of the shuffled frame and of earlier files.
    frame.index.name = name
    frame[["Unnamed: 0", "index"]] = np.arange(12).reshape(6, 2)
    frame.to_parquet(tmp_path / "v.parquet")
    assert set(pq.read_schema(tmp_path / "v.parquet").names) > {name or "__index_level_0__"}
    dataset = discover(Config(manifest=str(tmp_path / "v.parquet")))
    assert dataset.vectors.columns == ["f0", "f1", "f2", "f3", "count"]


def test_several_vector_files_in_a_folder_are_one_set_in_the_order_of_their_names(tmp_path):
    pq.write_table(vector_table(4, 6), tmp_path / "b.parquet")
    pq.write_table(vector_table(0, 4), tmp_path / "a.parquet")
    dataset = discover(Config(manifest=str(tmp_path)))
    assert [row["id"] for row in dataset.rows.to_pylist()] == [f"v{i}" for i in range(6)]
    vectors, _ = read_vectors(dataset.vectors, 3, 5, StorageConfig())
    np.testing.assert_allclose(vectors, VECTORS[3:5])


def test_the_dimension_is_the_most_frequent_vector_length(tmp_path):
    lists = [*VECTORS[:5].tolist(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]
    table = vector_table().set_column(3, "embedding", pa.array(lists, pa.list_(pa.float32())))
    pq.write_table(table, tmp_path / "v.parquet")
    assert discover(Config(manifest=str(tmp_path / "v.parquet"))).vectors.dimensions == 4


@pytest.mark.parametrize("column", ["id", "real_or_synthetic"])
def test_vectors_without_a_needed_column_are_refused_by_its_name(tmp_path, column):
    pq.write_table(vector_table().drop_columns([column]), tmp_path / "v.parquet")
    assert column in refusal(Config(manifest=str(tmp_path / "v.parquet")))


def test_a_second_vector_file_without_a_needed_column_is_refused_by_its_name(tmp_path):
    pq.write_table(vector_table(0, 3), tmp_path / "a.parquet")
    pq.write_table(vector_table(3, 6).drop_columns(["id"]), tmp_path / "b.parquet")
    assert "b.parquet" in refusal(Config(manifest=str(tmp_path)), (InputError, StorageError))


def test_a_second_vector_file_without_vectors_is_refused_by_its_name(tmp_path):
    pq.write_table(vector_table(0, 3), tmp_path / "a.parquet")
    pq.write_table(vector_table(3, 6).drop_columns(["embedding"]), tmp_path / "b.parquet")
    assert "b.parquet" in refusal(Config(manifest=str(tmp_path)), (InputError, StorageError))


def test_an_embedding_column_without_lists_is_refused(tmp_path):
    table = vector_table().drop_columns(["embedding"]).append_column("embedding", pa.array(["x"] * 6))
    pq.write_table(table, tmp_path / "v.parquet")
    assert "embedding" in refusal(Config(manifest=str(tmp_path / "v.parquet")))


def test_a_table_without_images_and_without_numbers_is_refused(tmp_path):
    pq.write_table(vector_table().drop_columns(["embedding"]), tmp_path / "v.parquet")
    message = refusal(Config(manifest=str(tmp_path / "v.parquet")))
    assert "embedding" in message
    assert "image_filename" in message


def test_vectors_take_their_generator_column(tmp_path):
    table = vector_table(generator=[None, "g1", None, "g2", None, "g1"])
    pq.write_table(table, tmp_path / "v.parquet")
    dataset = discover(Config(manifest=str(tmp_path / "v.parquet")))
    assert dataset.rows.column("generator").to_pylist() == [None, "g1", None, "g2", None, "g1"]


# --- digests ---


def change_and_keep_size(path):
    """Replace a file's bytes, with the same length and a later modification time."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    later = path.stat().st_mtime_ns + 2_000_000_000
    os.utime(path, ns=(later, later))


def test_the_digest_of_folders_changes_exactly_when_a_file_does(folders):
    config = folder_config(folders)
    before = discover(config).digest
    assert discover(config).digest == before
    change_and_keep_size(folders / "fakes" / "cat" / "000.png")
    changed = discover(config).digest
    assert changed != before
    (folders / "fakes" / "cat" / "000.png").unlink()
    assert discover(config).digest not in {before, changed}


def test_the_digest_of_folders_ignores_other_files(folders):
    before = discover(folder_config(folders)).digest
    (folders / "photos" / "notes.txt").write_text("no image")
    assert discover(folder_config(folders)).digest == before


def test_the_digest_of_a_table_changes_exactly_when_the_table_does(dataset):
    top, paths = dataset
    frame = table_of(top, paths)
    frame.to_csv(top / "metadata.csv", index=False)
    before = discover(Config(manifest=str(top))).digest
    frame.to_csv(top / "metadata.csv", index=False)
    assert discover(Config(manifest=str(top))).digest == before
    frame.loc[0, "label"] = "another"
    frame.to_csv(top / "metadata.csv", index=False)
    assert discover(Config(manifest=str(top))).digest != before


def test_the_digest_of_a_zip_changes_exactly_when_a_member_does(dataset, tmp_path):
    top, paths = dataset
    uri = tmp_path / "studio.zip"

    def write(flipped):
        with zipfile.ZipFile(uri, "w") as archive:
            archive.writestr("metadata.csv", table_of(top, paths).to_csv(index=False))
            for path in paths:
                data = path.read_bytes()
                archive.writestr(path.relative_to(top).as_posix(), data[::-1] if flipped else data)

    write(False)
    before = discover(Config(manifest=str(uri))).digest
    assert discover(Config(manifest=str(uri))).digest == before
    write(True)
    assert discover(Config(manifest=str(uri))).digest != before


def test_the_digest_of_vectors_changes_exactly_when_the_file_does(tmp_path):
    path = tmp_path / "v.parquet"
    pq.write_table(vector_table(), path)
    before = discover(Config(manifest=str(path))).digest
    assert discover(Config(manifest=str(path))).digest == before
    table = vector_table()
    pq.write_table(table.set_column(0, "id", pa.array([f"w{i}" for i in range(6)])), path)
    later = path.stat().st_mtime_ns + 2_000_000_000
    os.utime(path, ns=(later, later))
    assert discover(Config(manifest=str(path))).digest != before


# --- S3 ---


@pytest.fixture
def storage(s3):
    return StorageConfig(endpoint_url=s3.endpoint_url)


def test_folders_on_s3_give_the_rows_of_the_same_folders_on_a_disk(s3, storage, folders):
    bucket = s3.bucket()
    (folders / "photos" / "notes.txt").write_text("no image")
    s3.put_folder(folders, f"s3://{bucket}/data")
    found = discover(folder_config(f"s3://{bucket}/data", storage=storage))
    local = discover(folder_config(folders))
    keep = ["id", "label", "generator", "real_or_synthetic", "image_filename", "size_bytes"]
    assert found.rows.select(keep).to_pylist() == local.rows.select(keep).to_pylist()
    assert found.rows.column("etag").null_count == 0
    assert len(found.notes) == len(local.notes) == 1
    for row, at_home in zip(found.rows.to_pylist(), local.rows.to_pylist(), strict=True):
        assert row["uri"].startswith(f"s3://{bucket}/data/")
        assert fetch(StoredFile(row["uri"]), storage) == fetch(StoredFile(at_home["uri"]), StorageConfig())


def test_the_digest_of_folders_on_s3_changes_exactly_when_an_object_does(s3, storage, folders):
    bucket = s3.bucket()
    s3.put_folder(folders, f"s3://{bucket}")
    config = folder_config(f"s3://{bucket}", storage=storage)
    before = discover(config).digest
    s3.put_folder(folders, f"s3://{bucket}")
    assert discover(config).digest == before
    change_and_keep_size(folders / "photos" / "dog" / "001.png")
    s3.put_folder(folders, f"s3://{bucket}")
    assert discover(config).digest != before


def test_the_uris_of_a_table_on_s3_are_its_objects(s3, storage, dataset):
    top, paths = dataset
    table_of(top, paths).to_csv(top / "metadata.csv", index=False)
    bucket = s3.bucket()
    s3.put_folder(top, f"s3://{bucket}/set")
    for manifest in (f"s3://{bucket}/set", f"s3://{bucket}/set/metadata.csv"):
        rows = rows_of(Config(manifest=manifest, storage=storage))
        assert [row["id"] for row in rows] == [f"row-{i}" for i in range(8)]
        for row, path in zip(rows, paths, strict=True):
            assert fetch(StoredFile(row["uri"]), storage) == path.read_bytes()


@pytest.mark.parametrize("name", ["../outside.png", "s3://other/x.png", "/x.png"])
def test_a_table_on_s3_may_not_leave_its_prefix(s3, storage, dataset, name):
    top, paths = dataset
    frame = table_of(top, paths)
    frame.loc[1, "image_filename"] = name
    frame.to_csv(top / "metadata.csv", index=False)
    bucket = s3.bucket()
    s3.put_folder(top, f"s3://{bucket}/set")
    assert "line 3" in refusal(Config(manifest=f"s3://{bucket}/set", storage=storage))


def test_vectors_on_s3_are_read(s3, storage, tmp_path):
    pq.write_table(vector_table(0, 4), tmp_path / "a.parquet")
    pq.write_table(vector_table(4, 6), tmp_path / "b.parquet")
    bucket = s3.bucket()
    s3.put_folder(tmp_path, f"s3://{bucket}/v")
    dataset = discover(Config(manifest=f"s3://{bucket}/v", storage=storage))
    vectors, _ = read_vectors(dataset.vectors, 0, 6, storage)
    np.testing.assert_allclose(vectors, VECTORS)


@pytest.mark.parametrize("missing", ["prefix", "bucket"])
def test_a_missing_prefix_or_bucket_is_refused_by_name(s3, storage, folders, missing):
    bucket = s3.bucket() if missing == "prefix" else "no-such-bucket-anywhere"
    config = Config(real=f"s3://{bucket}/none", synthetic={"gan": f"{folders}/fakes"}, storage=storage)
    assert f"s3://{bucket}/none" in refusal(config, (InputError, StorageError))


def test_a_set_inside_another_is_refused(tmp_path, make_images):
    make_images(tmp_path / "photos", 4)
    make_images(tmp_path / "photos" / "fakes", 4, seed=1)
    with pytest.raises(InputError, match="counted in both"):
        discover(Config(real=str(tmp_path / "photos"), synthetic={"x": str(tmp_path / "photos" / "fakes")}))


def test_a_csv_with_a_repeated_column_is_refused(tmp_path):
    (tmp_path / "m.csv").write_text("id,image_filename,real_or_synthetic,note,note\na,a.png,real,1,2\n")
    with pytest.raises(InputError, match="note"):
        discover(Config(manifest=str(tmp_path / "m.csv")))


def test_user_columns_named_size_bytes_or_etag_are_kept(tmp_path):
    (tmp_path / "m.csv").write_text("id,image_filename,real_or_synthetic,etag\na,a.png,real,mine\n")
    assert discover(Config(manifest=str(tmp_path / "m.csv"))).rows.column("user_etag").to_pylist() == ["mine"]


def test_only_the_row_groups_of_the_requested_rows_are_decoded(tmp_path, monkeypatch):
    table = pa.table(
        {"id": [str(i) for i in range(100)], "real_or_synthetic": ["real"] * 100, "x": range(0, 200, 2)}
    )
    pq.write_table(table, tmp_path / "v.parquet", row_group_size=10)
    source = discover(Config(manifest=str(tmp_path / "v.parquet"))).vectors
    read = []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, **more: read.append(i) or original(self, i, **more)
    )
    vectors, _ = read_vectors(source, 25, 41, StorageConfig())
    assert vectors[:, 0].tolist() == list(range(50, 82, 2))
    assert read == [2, 3, 4]


def test_a_jsonl_table_gives_rows_and_carries_user_columns(dataset):
    top, paths = dataset
    table_of(top, paths).to_json(top / "rows.jsonl", orient="records", lines=True)
    check_dataset_rows(rows_of(Config(manifest=str(top / "rows.jsonl"))), paths)


def test_a_malformed_jsonl_table_is_refused_by_name(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 1}\n{"id": ')
    assert "a.jsonl: not a readable table" in refusal(Config(manifest=str(tmp_path / "a.jsonl")))


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.parquet", "rows.jsonl"])
def test_the_rows_do_not_depend_on_the_batch_size(dataset, monkeypatch, name):
    top, paths = dataset
    frame = table_of(top, paths)
    if name.endswith("csv"):
        frame.to_csv(top / name, index=False)
    elif name.endswith("jsonl"):
        frame.to_json(top / name, orient="records", lines=True)
    else:
        frame.to_parquet(top / name)
    whole = discover(Config(manifest=str(top / name)))
    for module in (csv_tables, jsonl_tables):
        monkeypatch.setattr(module, "_BLOCK_BYTES", 400)
    monkeypatch.setattr(parquet_tables, "_BATCH_ROWS", 3)
    pieces = discover(Config(manifest=str(top / name)))
    assert pieces.rows.to_pylist() == whole.rows.to_pylist()
    assert pieces.digest == whole.digest


def test_errors_in_a_later_batch_count_rows_from_the_start_of_the_table(dataset, monkeypatch):
    top, paths = dataset
    frame = table_of(top, paths)
    frame.loc[6, "image_filename"] = "../out.png"
    frame.to_parquet(top / "metadata.parquet")
    monkeypatch.setattr(parquet_tables, "_BATCH_ROWS", 3)
    assert "row 6" in refusal(Config(manifest=str(top)))
