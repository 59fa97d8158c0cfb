"""Tables as people have them, a test a kind: dialects, names, layouts, features, other files, odd rows."""

import io
import json
import random

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthscale.config import Config, StorageConfig, parse_config
from synthscale.errors import ConfigError, InputError, SynthscaleError
from synthscale.ingest import csv_tables, jsonl_tables, table_reader
from synthscale.ingest.checks import check_rows
from synthscale.ingest.discover import discover
from synthscale.ingest.vector_reader import read_vectors
from synthscale.storage.fetch import fetch
from synthscale.tables.layout import StoredFile
from tests.examples import FACTOR

N = 6
KINDS = ["real", "synthetic"] * (N // 2)


@pytest.fixture
def images(tmp_path, make_images):
    """A folder with N images ``images/000.png`` and so on."""
    paths = make_images(tmp_path / "images", N, labels=(None,))
    assert [path.name for path in paths] == [f"{i:03d}.png" for i in range(N)]
    return tmp_path


def frame_of(name="image_filename", path="images/{:03d}.png", **columns):
    return pd.DataFrame(
        {
            "id": [f"row-{i}" for i in range(N)],
            name: [path.format(i) for i in range(N)],
            "real_or_synthetic": KINDS,
            "weight": [i + 0.5 for i in range(N)],
            **columns,
        }
    )


def parquet(table):
    buffer = io.BytesIO()
    pq.write_table(table if isinstance(table, pa.Table) else pa.Table.from_pandas(table), buffer)
    return buffer.getvalue()


def jsonl(frame):
    return frame.to_json(orient="records", lines=True)


def found_in(folder, name, data, **values):
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return discover(parse_config({"manifest": str(folder / name), **values}))


def refusal(folder, name, data, **values):
    with pytest.raises(SynthscaleError) as caught:
        found_in(folder, name, data, **values)
    text = str(caught.value)
    assert "\n" not in text
    return text


def check_images(dataset, folder):
    """Check that the rows are the N images, in order, and can be read."""
    assert dataset.vectors is None
    check_rows(dataset.rows)
    for i, uri in enumerate(dataset.rows.column("uri").to_pylist()):
        assert fetch(StoredFile(uri), StorageConfig()) == (folder / "images" / f"{i:03d}.png").read_bytes()


def vectors_of(dataset):
    vectors, _ = read_vectors(dataset.vectors, 0, dataset.rows.num_rows, StorageConfig())
    return vectors


CSV = frame_of().to_csv(index=False)
DIALECTS = {
    "commas": (CSV, None),
    "crlf": (CSV.replace("\n", "\r\n"), None),
    "semicolons": (frame_of().to_csv(index=False, sep=";"), "semicolons"),
    "tabs": (frame_of().to_csv(index=False, sep="\t"), "tabs"),
    "vertical bars": (frame_of().to_csv(index=False, sep="|"), "vertical bars"),
    "byte order mark": (b"\xef\xbb\xbf" + CSV.encode(), None),
    "UTF-16": (frame_of().to_csv(index=False, sep="\t").encode("utf-16"), "UTF-16"),
    "UTF-16, big endian": (b"\xfe\xff" + CSV.encode("utf-16-be"), "UTF-16"),
    "Excel's sep=": ("sep=;\r\n" + frame_of().to_csv(index=False, sep=";"), "semicolons"),
    "decimal commas": (frame_of().to_csv(index=False, sep=";", decimal=","), "decimal comma"),
    "blank lines": ("\n\n" + CSV.replace("\n", "\n\n"), None),
    "quotes": (frame_of().to_csv(index=False, quoting=1), None),
    "values of two lines": (frame_of(prompt=["a\nb"] * N).to_csv(index=False), None),
    "no newline at the end": (CSV.rstrip("\n"), None),
    "an index without a name": (frame_of().to_csv(), "Unnamed: 0"),
}


@pytest.mark.parametrize(("data", "note"), DIALECTS.values(), ids=DIALECTS)
@pytest.mark.parametrize("suffix", ["csv", "tsv", "CSV"])
def test_dialects_of_csv_are_read(images, data, note, suffix):
    found = found_in(images, f"t.{suffix}", data)
    check_images(found, images)
    assert found.rows.column("weight").to_pylist() == [i + 0.5 for i in range(N)]
    assert found.rows.column("id").to_pylist() == [f"row-{i}" for i in range(N)]
    assert note is None or any(note in line for line in found.notes)


NAMES = {
    "capitals": {"id": "ID", "image_filename": "Image_Filename", "real_or_synthetic": "REAL_OR_SYNTHETIC"},
    "blanks around": {
        "id": " id",
        "image_filename": "image_filename ",
        "real_or_synthetic": "  real_or_synthetic",
    },
    "blanks and hyphens within": {"image_filename": "Image Filename", "real_or_synthetic": "real-or-synthetic"},
    "file_name": {"image_filename": "file_name"},
    "File Name": {"image_filename": "File Name"},
    "image": {"image_filename": "image"},
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_columns_are_known_by_similar_names_and_that_is_said(images, names, suffix):
    frame = frame_of().rename(columns=names)
    writers = {"csv": lambda f: f.to_csv(index=False), "parquet": parquet, "jsonl": jsonl}
    found = found_in(images, f"t.{suffix}", writers[suffix](frame))
    check_images(found, images)
    for written in names.values():
        assert any(written in note for note in found.notes)


def test_a_column_with_a_name_as_it_should_be_is_preferred(images):
    found = found_in(images, "t.csv", frame_of(label=["a"] * N, Label=["b"] * N).to_csv(index=False))
    assert found.rows.column("label").to_pylist() == ["a"] * N
    assert found.rows.column("Label").to_pylist() == ["b"] * N


def test_windows_paths_are_read_with_slashes_and_that_is_said(images):
    found = found_in(images, "t.csv", frame_of(path="images\\{:03d}.png").to_csv(index=False))
    check_images(found, images)
    assert any("6 rows with Windows paths" in note and "line 2" in note for note in found.notes)


def test_a_backslash_in_the_name_of_a_file_stays(images):
    for path in (images / "images").iterdir():
        path.rename(images / f"odd\\{path.name}")
    found = found_in(images, "t.csv", frame_of(path="odd\\{:03d}.png").to_csv(index=False))
    assert found.rows.column("uri").to_pylist() == [f"{images}/odd\\{i:03d}.png" for i in range(N)]


def image_structs(folder, **changes):
    return [
        {"bytes": (folder / "images" / f"{i:03d}.png").read_bytes(), "path": f"{i:03d}.png"} | changes
        for i in range(N)
    ]


def test_images_within_a_parquet_table_are_read(images):
    other = {"bytes": None, "path": "images/000.png"}
    tables = {
        "structs": pa.table({"image": image_structs(images), "real_or_synthetic": KINDS, "score": np.arange(6.0)}),
        "bytes": pa.table({"image": [s["bytes"] for s in image_structs(images)], "real_or_synthetic": KINDS}),
        "a path among structs": pa.table(
            {"image": [other, *image_structs(images)[1:]], "real_or_synthetic": KINDS}
        ),
        "the same path": pa.table({"image": image_structs(images, path="x.png"), "real_or_synthetic": KINDS}),
    }
    for name, table in tables.items():
        found = found_in(images, "t.parquet", parquet(table))
        check_images(found, images)
        assert len(set(found.rows.column("id").to_pylist())) == N, name


def test_structs_of_paths_in_jsonl_are_read(images):
    rows = [
        {"image": {"path": f"images/{i:03d}.png", "bytes": None}, "real_or_synthetic": KINDS[i]} for i in range(N)
    ]
    check_images(found_in(images, "t.jsonl", "\n".join(map(json.dumps, rows))), images)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet", "only.csv"])
def test_a_folder_may_have_any_metadata_table(images, name):
    frame = frame_of("file_name")
    data = {"csv": frame.to_csv(index=False), "jsonl": jsonl(frame), "parquet": parquet(frame)}[name.split(".")[1]]
    (images / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    (images / "._metadata.csv").write_bytes(b"\0\1\2")
    check_images(discover(Config(manifest=str(images))), images)


def test_class_numbers_of_hugging_face_are_read_as_names(images):
    features = {"label": {"names": ["cat", "dog"]}, "real_or_synthetic": {"names": ["real", "synthetic"]}}
    frame = frame_of("file_name", label=[0, 1, -1] * 2).assign(real_or_synthetic=[0, 1] * 3)
    table = pa.Table.from_pandas(frame).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    found = found_in(images, "t.parquet", parquet(table))
    assert found.rows.column("label").to_pylist() == ["cat", "dog", None] * 2
    assert found.rows.column("real_or_synthetic").to_pylist() == KINDS


IDS = {
    "integers": pa.array(range(N)),
    "integers with a null, from pandas": pa.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
    "categories": pa.array([str(i) for i in range(N)]).dictionary_encode(),
    "large strings": pa.array([str(i) for i in range(N)], pa.large_string()),
    "bytes": pa.array([str(i).encode() for i in range(N)]),
}


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
def test_ids_of_any_type_are_text(images, ids):
    table = pa.Table.from_pandas(frame_of()).drop_columns(["id"]).append_column("id", ids)
    assert found_in(images, "t.parquet", parquet(table)).rows.column("id").to_pylist() == list("012345")


MIXED = {
    "number and text": ([1, "a", 2, "b", None, 3], ["1", "a", "2", "b", None, "3"]),
    "number and boolean": ([1, True, 2, 2, 2, 2], ["1", "true", "2", "2", "2", "2"]),
    "object and list": ([{"a": 1}, [2], 1, 1, 1, 1], ['{"a": 1}', "[2]", "1", "1", "1", "1"]),
    "a lone surrogate": (["\ud800", "x", "x", "x", "x", "x"], ["?", "x", "x", "x", "x", "x"]),
}


@pytest.mark.parametrize(("values", "texts"), MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("block", [2**20, 60])
def test_jsonl_columns_of_mixed_types_are_text(images, monkeypatch, values, texts, block):
    monkeypatch.setattr(jsonl_tables, "_BLOCK_BYTES", block)
    rows = [
        {"id": i, "file_name": f"images/{i:03d}.png", "real_or_synthetic": KINDS[i], "x": value}
        for i, value in enumerate(values)
    ]
    found = found_in(images, "t.jsonl", "\n".join(map(json.dumps, rows)))
    check_images(found, images)
    assert found.rows.column("x").to_pylist() == texts
    assert found.rows.column("id").to_pylist() == list("012345")


def test_csv_columns_whose_type_changes_later_are_read(images, monkeypatch):
    monkeypatch.setattr(csv_tables, "_BLOCK_BYTES", 120)
    monkeypatch.setattr(table_reader, "_SNIFF_BYTES", 60)
    frame = frame_of(
        late=["1", "2", "3", "4", "5", "x"], real=["1", "2", "3", "4", "5", "6.5"], empty=[""] * 5 + ["7"]
    )
    rows = found_in(images, "t.csv", frame.to_csv(index=False)).rows
    assert rows.column("late").to_pylist() == ["1", "2", "3", "4", "5", "x"]
    assert rows.column("real").to_pylist() == [1, 2, 3, 4, 5, 6.5]
    assert rows.column("empty").to_pylist() == [None] * 5 + [7]


FEATURES = np.random.default_rng(0).normal(size=(N, 2))


def vector_frame(**columns):
    values = {"id": range(N), "real_or_synthetic": KINDS, "language": ["en"] * N}
    return pd.DataFrame(values | {"f0": FEATURES[:, 0], "f1": FEATURES[:, 1]} | columns)


VECTOR_FILES = {
    "csv": lambda f: f.to_csv(index=False),
    "tsv": lambda f: f.to_csv(index=False, sep="\t"),
    "jsonl": jsonl,
    "parquet": parquet,
}


@pytest.mark.parametrize("suffix", VECTOR_FILES)
def test_vectors_are_read_from_any_table(tmp_path, suffix):
    found = found_in(tmp_path, f"v.{suffix}", VECTOR_FILES[suffix](vector_frame()))
    np.testing.assert_allclose(vectors_of(found), FEATURES, atol=1e-6)
    assert found.rows.column("id").to_pylist() == list("012345")
    assert any("features: 2 columns (f0, f1)" in note and "metadata: language" in note for note in found.notes)


TEXT_VECTORS = {
    "lists": [str(row.tolist()) for row in FEATURES],
    "NumPy": [str(row) for row in FEATURES],
    "lists of NumPy's numbers": [str(list(row)) for row in FEATURES],
    "arrays": [repr(row.astype(np.float32)) for row in FEATURES],
    "blanks": [" ".join(map(str, row)) for row in FEATURES],
}


@pytest.mark.parametrize("texts", TEXT_VECTORS.values(), ids=TEXT_VECTORS)
def test_embeddings_in_csv_are_texts_of_lists(tmp_path, texts):
    frame = vector_frame(embedding=texts).drop(columns=["f0", "f1"])
    found = found_in(tmp_path, "v.csv", frame.to_csv(index=False))
    assert found.vectors.dimensions == 2
    np.testing.assert_allclose(vectors_of(found), FEATURES, atol=1e-6)


def test_a_text_in_an_embedding_is_a_failure_of_its_row(tmp_path):
    texts = [str(row.tolist()) for row in FEATURES[:4]] + ["[1, x]", ""]
    found = found_in(tmp_path, "v.csv", vector_frame(embedding=texts).to_csv(index=False))
    vectors, facts = read_vectors(found.vectors, 0, N, StorageConfig())
    assert np.isfinite(vectors).all(axis=1).tolist() == [True] * 4 + [False, True]
    assert ["reason" in fact for fact in facts] == [False] * 5 + [True]


COUNTERS = {
    "from 0": np.arange(N),
    "shuffled": np.array([3, 1, 0, 5, 4, 2]),
    "from elsewhere": np.arange(N) - 1000,
    "in each set": np.array([2, 7, 1, 8, 0, 6]),
    "unsigned": np.arange(N).astype(np.uint64),
}


@pytest.mark.parametrize("values", COUNTERS.values(), ids=COUNTERS)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_counters_are_no_features_and_that_is_said(tmp_path, values, suffix):
    data = VECTOR_FILES[suffix](vector_frame(n=values))
    found = found_in(tmp_path, f"v.{suffix}", data)
    assert found.vectors.columns == ["f0", "f1"]
    assert any("ignored: n (a counter" in note for note in found.notes)
    chosen = found_in(tmp_path, f"v.{suffix}", data, input={"feature_columns": "f0,n"})
    assert chosen.vectors.columns == ["f0", "n"]


def test_counters_with_repeated_or_missing_rows_are_no_features(tmp_path):
    n = 200
    frame = pd.DataFrame({"id": range(n), "real_or_synthetic": ["real", "synthetic"] * (n // 2)})
    frame = frame.assign(f=np.random.default_rng(0).normal(size=n), n=np.arange(n) + 5, age=np.arange(n) % 90)
    frame = pd.concat([frame.drop(index=[50, 60]), frame.iloc[:3]])
    found = found_in(tmp_path, "v.csv", frame.to_csv(index=False))
    assert found.vectors.columns == ["f", "age"]
    assert found.rows.num_rows == n - 2


INTEGERS = {
    "gaps": np.arange(N) * 2,
    "repeated": np.array([1, 1, 2, 3, 4, 4]),
    "floats": np.arange(N) + 0.0,
}


@pytest.mark.parametrize("values", INTEGERS.values(), ids=INTEGERS)
def test_other_numbers_are_features(tmp_path, values):
    assert found_in(tmp_path, "v.parquet", parquet(vector_frame(n=values))).vectors.columns == ["f0", "f1", "n"]


CHOICES = {
    "features": ({"feature_columns": ["f1"]}, ["f1"]),
    "features in another case": ({"feature_columns": "F1, F0"}, ["f1", "f0"]),
    "ignored": ({"ignore_columns": "f0"}, ["f1"]),
    "a list by another name": ({"feature_columns": "clip"}, ["clip"]),
}


@pytest.mark.parametrize(("settings", "columns"), CHOICES.values(), ids=CHOICES)
def test_settings_choose_columns(tmp_path, settings, columns):
    frame = vector_frame(clip=FEATURES.tolist())
    found = found_in(tmp_path, "v.parquet", parquet(frame), input=settings)
    assert found.vectors.columns == columns
    wanted = FEATURES if columns == ["clip"] else FEATURES[:, [int(name[1]) for name in columns]]
    np.testing.assert_allclose(vectors_of(found), wanted, atol=1e-6)
    assert not set(columns) & set(found.rows.column_names)


@pytest.mark.parametrize("setting", ["feature_columns", "ignore_columns"])
def test_a_column_that_does_not_exist_is_an_error_with_a_suggestion(tmp_path, setting):
    with pytest.raises(ConfigError, match=rf"input.{setting}: .*'f_0'; did you mean f0\?"):
        found_in(tmp_path, "v.csv", vector_frame().to_csv(index=False), input={setting: "f_0"})


@pytest.mark.parametrize("name", ["image_filename", "file_name", "uri"])
@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_a_table_with_numbers_and_images_is_of_images(images, name, suffix):
    path = f"{images}/images/{{:03d}}.png" if name == "uri" else "images/{:03d}.png"
    found = found_in(images, f"t.{suffix}", VECTOR_FILES[suffix](frame_of(name, path, seed=range(N))))
    check_images(found, images)
    assert any("metadata: weight, seed" in note for note in found.notes)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
NO_TABLES = {
    "Excel": ("t.xlsx", b"PK\x03\x04", "CSV UTF-8"),
    "Excel, old": ("t.xls", b"\xd0\xcf\x11\xe0", "CSV UTF-8"),
    "Excel named CSV": ("t.csv", b"PK\x03\x04", "Excel"),
    "npz": ("t.npz", b"PK\x03\x04", "NumPy"),
    "npy": ("t.npy", b"\x93NUMPY", "NumPy"),
    "npy named Parquet": ("t.parquet", b"\x93NUMPY", "NumPy"),
    "Git LFS, CSV": ("t.csv", LFS, "git lfs pull"),
    "Git LFS, Parquet": ("t.parquet", LFS, "git lfs pull"),
    "Git LFS, JSONL": ("t.jsonl", LFS, "git lfs pull"),
    "gzip": ("t.csv.gz", b"\x1f\x8b", "gunzip"),
    "gzip named CSV": ("t.csv", b"\x1f\x8b", "gunzip"),
    "tar.gz": ("t.tar.gz", b"\x1f\x8b", "gunzip"),
    "pickle": ("t.pkl", b"\x80", "Parquet"),
    "HDF5": ("t.h5", b"\x89HDF", "Parquet"),
    "Parquet named CSV": ("t.csv", parquet(frame_of()), "Parquet"),
    "CSV named Parquet": ("t.parquet", CSV, "not a readable Parquet"),
    "JSON": ("t.json", "[]", "JSON Lines"),
    "a JSON array named JSONL": ("t.jsonl", "[{}]", "jq"),
    "text named JSONL": ("t.jsonl", CSV, "line 1"),
    "empty": ("t.csv", "", "empty"),
    "blank": ("t.csv", " \n\n", "empty"),
    "header only": ("t.csv", CSV.split("\n")[0] + "\n", "no rows"),
    "cp1252": ("t.csv", CSV.replace("row-3", "é").encode("cp1252"), "line 5 is not UTF-8"),
    "UTF-16 without a mark": ("t.csv", CSV.encode("utf-16-le"), "CSV UTF-8"),
    "latin-1 JSONL": ("t.jsonl", '{"id": 1}\n{"id": "é"}'.encode("latin-1"), "line 2"),
    "half a JSONL": ("t.jsonl", '{"id": 1}\n\n{"id": ', "line 3"),
    "bytes": ("t.csv", bytes(range(256)) * 9, "CSV"),
    "null in JSONL": ("t.jsonl", '{"id": 1}\nnull\n', "line 2"),
    "null first in JSONL": ("t.jsonl", 'null\n{"id": 1}\n', "line 1"),
    "null after an object": ("t.jsonl", '{"id": 1} null\n', "line 1"),
    "no suffix": ("table", CSV, ".csv"),
}


@pytest.mark.parametrize(("name", "data", "word"), NO_TABLES.values(), ids=NO_TABLES)
def test_files_that_are_no_tables_are_refused_with_a_remedy(tmp_path, name, data, word):
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(SynthscaleError) as caught:
        check_rows(discover(Config(manifest=str(tmp_path / name))).rows)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


CULPRITS = {
    "misspelt": (CSV.replace("real_or_synthetic", "real_or_syntetic"), "rename 'real_or_syntetic'"),
    "another name": (CSV.replace("real_or_synthetic", "is_real"), "rename 'is_real'"),
    "a colon": (CSV.replace(",", ":"), "separated by ':'"),
    "no header": (CSV.split("\n", 1)[1], "first line seems to be data"),
    "a misspelt file name": (frame_of("image_fliename").to_csv(index=False), "image_fliename"),
    "a path": (frame_of("image_path").to_csv(index=False), "image_path"),
}


@pytest.mark.parametrize(("data", "words"), CULPRITS.values(), ids=CULPRITS)
def test_a_missing_column_comes_with_its_likely_cause(tmp_path, data, words):
    assert words in refusal(tmp_path, "t.csv", data)


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (frame_of().replace("images/003.png", "../3.png").to_csv(index=False), "line 5"),
        ("\n" + frame_of().replace("images/003.png", "../3.png").to_csv(index=False), "line 6"),
        (frame_of(x=["a\nb"] * N).replace("images/003.png", "../3.png").to_csv(index=False), "line 8"),
        (frame_of().replace("images/003.png", "../3.png").to_csv(index=False).replace("\n", "\n\n"), "line 9"),
    ],
    ids=["plain", "after a blank line", "after values of two lines", "between blank lines"],
)
def test_lines_are_those_of_an_editor(tmp_path, data, place):
    assert f"{place}:" in refusal(tmp_path, "t.csv", data)


def test_lines_of_jsonl_are_those_of_an_editor(tmp_path):
    data = jsonl(frame_of().replace("images/003.png", "../3.png")).replace("\n", "\n\n")
    assert "line 7:" in refusal(tmp_path, "t.jsonl", data)


ODD_ROWS = {
    "a class that is none": ("x,images/001.png,fake,1", None, "left out"),
    "no class": ("x,images/001.png,,1", None, "left out"),
    "a value too many": ("x,images/001.png,real,1,2", None, "left out"),
    "no file name": ("x,,real,1", "not_found", "without a file name"),
    "the same row": ("row-1,images/001.png,synthetic,1.5", None, "left out"),
    "another row with an id": ("row-1,images/002.png,real,1", "duplicate_id", "duplicate_id"),
}


@pytest.mark.parametrize(("line", "fault", "note"), ODD_ROWS.values(), ids=ODD_ROWS)
def test_one_odd_row_refuses_no_set(images, line, fault, note):
    found = found_in(images, "t.csv", f"{CSV}{line}\n", max_failure_fraction=0.2)
    check_rows(found.rows)
    assert found.rows.slice(0, N).column("id").to_pylist() == [f"row-{i}" for i in range(N)]
    faults = found.rows.column("fault").to_pylist()
    assert [text.split(": ")[0] for text in faults[N:]] == ([] if fault is None else [fault])
    assert faults[:N] == [None] * N
    assert any(note in text and "1 " in text for text in found.notes)


@pytest.mark.parametrize("name", ["a class that is none", "a value too many"])
def test_many_odd_rows_refuse_the_set(images, name):
    with pytest.raises(InputError):
        found_in(images, "t.csv", f"{CSV}{ODD_ROWS[name][0]}\n", max_failure_fraction=0.1)


def test_a_uri_that_cannot_be_read_is_a_failure_of_its_row(images):
    frame = frame_of("uri", f"{images}/images/{{:03d}}.png")
    frame.loc[2, "uri"] = "gs://bucket/x.png"
    found = found_in(images, "t.csv", frame.to_csv(index=False))
    faults = found.rows.column("fault").to_pylist()
    assert faults[2].startswith("unsupported: gs://bucket/x.png")
    assert faults.count(None) == N - 1


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_vectors_stay_with_their_rows_when_rows_are_left_out(tmp_path, suffix):
    frame = vector_frame()
    more = [frame.iloc[[1]], frame.iloc[[2]].assign(f0=9.0), frame.iloc[[3]].assign(real_or_synthetic="x")]
    frame = pd.concat([frame.iloc[:2], *more, frame.iloc[2:]], ignore_index=True)
    data = frame.to_csv(index=False) if suffix == "csv" else parquet(frame)
    found = found_in(tmp_path, f"v.{suffix}", data, max_failure_fraction=0.2)
    check_rows(found.rows)
    kept = frame.drop(index=found.vectors.dropped)
    assert len(kept) == found.rows.num_rows == N + 1
    assert found.vectors.dropped == [2, 4]
    for start in range(N + 1):
        for stop in range(start + 1, N + 2):
            vectors, _ = read_vectors(found.vectors, start, stop, StorageConfig())
            np.testing.assert_allclose(vectors, kept[["f0", "f1"]].iloc[start:stop], atol=1e-6)


def test_mutated_tables_never_give_a_traceback(images):
    seeds = {
        "csv": CSV,
        "tsv": frame_of().to_csv(sep="\t"),
        "jsonl": jsonl(frame_of()),
        "parquet": parquet(frame_of()),
    }
    seeds = [(s, d if isinstance(d, bytes) else d.encode()) for s, d in seeds.items()]
    seeds += [("csv", vector_frame().to_csv().encode()), ("jsonl", jsonl(vector_frame()).encode())]
    pieces = [
        b",",
        b";",
        b'"',
        b"\n",
        b"\r",
        b"\0",
        b"\xff",
        b"{",
        b"}",
        b"[",
        b"\xef\xbb\xbf",
        b"\t",
        b"NaN",
        b"1e999",
    ]
    pieces += [b"real", b"..", b"\\", b"null", b"://", b"\xe2\x80\xa8", b"99999999999999999999", b"'", b"id", b""]
    draw = random.Random(FACTOR - 1)
    for _ in range(400 * FACTOR):
        suffix, data = draw.choice(seeds)
        for _ in range(draw.randint(1, 4)):
            at, length = draw.randrange(len(data) + 1), draw.choice([0, 0, 1, 5, 40])
            data = data[:at] + draw.choice(pieces) * draw.choice([1, 1, 3]) + data[at + length :]
        (images / f"m.{suffix}").write_bytes(data)
        try:
            found = discover(Config(manifest=str(images / f"m.{suffix}"), max_failure_fraction=1))
            check_rows(found.rows)
            if found.vectors is not None:
                vectors_of(found)
        except SynthscaleError as error:
            assert "\n" not in str(error), (suffix, data)  # noqa: PT017
        except Exception as error:
            raise AssertionError((suffix, data)) from error
