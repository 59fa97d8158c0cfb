"""Thumbnails, redaction and tiles of the report: byte budget, missing images, no local folders."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from synthscale.config import Config
from synthscale.report.choice import EXTREMES
from synthscale.report.pictures import Thumbnails, files_by_id
from synthscale.report.redaction import Redaction
from synthscale.report.tiles import GALLERIES, Tiler
from synthscale.storage.filesystems import file_etag
from synthscale.tables.layout import StoredFile
from synthscale.tables.schemas import MANIFEST_COLUMNS

CONFIG = Config()
ROOM = 10**9


@pytest.fixture(scope="module")
def files(make_images, tmp_path_factory) -> dict[str, StoredFile]:
    """Return 80 image files by id: more than one batch of fetches."""
    paths = make_images(tmp_path_factory.mktemp("pictures"), 80, size=(40, 30))
    return {f"p{i}": StoredFile(str(path)) for i, path in enumerate(paths)}


def opened(album: Thumbnails, name: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(album.data[album.index[name]], validate=True)))


def difference(album: Thumbnails, name: str, stored: StoredFile) -> float:
    """Return the mean absolute difference between a thumbnail and its file, 0..255."""
    own = opened(album, name).convert("RGB")
    other = Image.open(stored.uri).convert("RGB").resize(own.size, Image.Resampling.BICUBIC)
    pairs = zip(own.tobytes(), other.tobytes(), strict=True)
    return sum(abs(a - b) for a, b in pairs) / len(own.tobytes())


def kept(album: Thumbnails) -> dict[str, str]:
    assert sorted(album.index.values()) == list(range(len(album.data)))
    assert album.held_bytes == sum(map(len, album.data))
    return {name: album.data[place] for name, place in album.index.items()}


# The album.


def test_each_id_has_a_small_jpeg_of_its_file(files) -> None:
    album = Thumbnails()
    album.add(list(files), files, 24, ROOM, CONFIG)
    assert list(kept(album)) == list(files)
    assert not album.missing | album.left_out
    for name in ("p0", "p63", "p64", "p79"):
        assert opened(album, name).format == "JPEG"
        assert opened(album, name).size == (24, 18)
        other = files["p1" if name == "p0" else "p0"]
        assert difference(album, name, files[name]) < 15 < difference(album, name, other)


def test_an_id_that_is_added_again_keeps_its_thumbnail(files) -> None:
    album = Thumbnails()
    album.add(["p1", "p2", "p1"], files, 24, ROOM, CONFIG)
    before = dict(kept(album))
    album.add(["p2", "p3"], files, 12, ROOM, CONFIG)
    assert list(kept(album)) == ["p1", "p2", "p3"]
    assert {name: kept(album)[name] for name in before} == before
    assert opened(album, "p2").size == (24, 18)
    assert opened(album, "p3").size == (12, 9)


def test_ids_without_a_file_are_neither_shown_nor_missing(files) -> None:
    album = Thumbnails()
    album.add(["vector", "p4"], files, 24, ROOM, CONFIG)
    assert list(kept(album)) == ["p4"]
    assert not album.missing | album.left_out
    Thumbnails().add([], files, 24, ROOM, CONFIG)


def test_unreadable_files_are_missing_and_the_others_shown(files, tmp_path) -> None:
    whole = Path(files["p5"].uri).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "changed.png").write_bytes(whole)
    (tmp_path / "same.png").write_bytes(whole)
    etag = file_etag((tmp_path / "same.png").stat())
    own = {name: StoredFile(str(tmp_path / f"{name}.png")) for name in ("cut", "empty", "text", "gone")}
    own["changed"] = StoredFile(str(tmp_path / "changed.png"), len(whole), "another")
    own["same"] = StoredFile(str(tmp_path / "same.png"), len(whole), etag)
    album = Thumbnails()
    album.add(["cut", "p5", *own, "p6"], files | own, 24, ROOM, CONFIG)
    assert list(kept(album)) == ["p5", "same", "p6"]
    assert album.missing == {"cut", "empty", "text", "gone", "changed"}
    assert not album.left_out
    # Missing files are not fetched again.
    (tmp_path / "gone.png").write_bytes(whole)
    album.add(["gone"], files | own, 24, ROOM, CONFIG)
    assert "gone" not in album.index


def test_thumbnails_beyond_the_byte_budget_are_left_out(files) -> None:
    sizes = Thumbnails()
    sizes.add(list(files), files, 24, ROOM, CONFIG)
    first = sum(len(sizes.data[sizes.index[f"p{i}"]]) for i in range(70))
    for limit, expected in ((first, 70), (first - 1, 69)):
        album = Thumbnails()
        album.add(list(files), files, 24, limit, CONFIG)
        assert kept(album).items() <= kept(sizes).items()
        assert list(album.index)[:expected] == list(files)[:expected]
        assert album.held_bytes <= limit
        assert album.left_out == set(files) - set(album.index)
        assert not album.missing
    nothing = Thumbnails()
    nothing.add(list(files), files, 24, 0, CONFIG)
    assert (nothing.data, nothing.left_out) == ([], set(files))


def test_the_byte_budget_includes_earlier_thumbnails(files) -> None:
    album = Thumbnails()
    album.add(["p0", "p1"], files, 24, ROOM, CONFIG)
    held = album.held_bytes
    album.add(["p2", "p3"], files, 12, held, CONFIG)
    assert (list(album.index), album.left_out) == (["p0", "p1"], {"p2", "p3"})
    album.add(["p4"], files, 12, held + 10**5, CONFIG)
    assert list(album.index) == ["p0", "p1", "p4"]


def test_an_id_that_fits_later_is_no_longer_left_out(files) -> None:
    album = Thumbnails()
    album.add(["p0"], files, 24, 0, CONFIG)
    assert album.left_out == {"p0"}
    album.add(["p0"], files, 12, ROOM, CONFIG)
    assert list(kept(album)) == ["p0"]
    assert album.left_out == set()


def test_thumbnails_contain_no_metadata(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    Image.new("RGB", (50, 20), "red").save(tmp_path / "a.jpg", exif=exif, comment=b"secret of the camera")
    assert b"taken at home" in (tmp_path / "a.jpg").read_bytes()
    album = Thumbnails()
    album.add(["a"], {"a": StoredFile(str(tmp_path / "a.jpg"))}, 10, ROOM, CONFIG)
    data = base64.b64decode(album.data[0])
    assert b"taken at home" not in data
    assert b"secret" not in data
    assert opened(album, "a").size == (10, 4)


# Files by id.


def manifest(folder: Path, parts: list[list[dict[str, Any]]]) -> ds.Dataset:
    """Write a manifest of several files; columns that a row does not give are null or constant."""
    of_all = {"real_or_synthetic": "real", "row": 0}
    for i, rows in enumerate(parts):
        table = pa.Table.from_pylist([of_all | row for row in rows], MANIFEST_COLUMNS)
        ds.write_dataset(
            table,
            folder,
            format="parquet",
            basename_template=f"{i}-{{i}}.parquet",
            existing_data_behavior="overwrite_or_ignore",
        )
    return ds.dataset(folder)


def test_files_are_found_by_id_in_any_file_of_the_manifest(tmp_path) -> None:
    rows = [{"id": f"id {i}", "uri": f"/x/{i}.png", "size_bytes": i, "etag": f"e{i}"} for i in range(9)]
    found = files_by_id(
        manifest(tmp_path, [rows[:4], rows[4:5], rows[5:]]), ["id 8", "id 0", "id 4", "id 8", "no"]
    )
    assert found == {f"id {i}": StoredFile(f"/x/{i}.png", i, f"e{i}") for i in (0, 4, 8)}
    assert files_by_id(ds.dataset(tmp_path), []) == {}


def test_vectors_have_no_file_and_unknown_sizes_stay_unknown(tmp_path) -> None:
    rows = [{"id": "vector", "size_bytes": 3}, {"id": "s3", "uri": "s3://b/k.png"}]
    assert files_by_id(manifest(tmp_path, [rows]), ["vector", "s3"]) == {
        "s3": StoredFile("s3://b/k.png", None, None)
    }


# Redaction.

FOLDERS = Config(
    real="/home/ann/data/real",
    synthetic={"near": "/home/ann/data/real/fake", "far": "s3://bucket/prefix/fake"},
    output="/srv/runs/first",
    encoder={"name": "torchvision:resnet18", "weights": "/opt/secret/weights.pt"},
    storage={"endpoint_url": "http://intern:9000", "profile": "ann", "cache": "/srv/cache", "region": "eu-1"},
)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("/home/ann/data/real/cat/1.png is broken", "real/cat/1.png is broken"),
        ("/home/ann/data/real/fake/1.png", "fake/1.png"),
        ("from /home/ann/data/real/fake and /home/ann/data/real", "from fake and real"),
        ("/srv/runs/first/scores, /opt/secret/weights.pt", "first/scores, weights.pt"),
        ("s3://bucket/prefix/fake/1.png", "s3://bucket/prefix/fake/1.png"),
        ("nothing to hide", "nothing to hide"),
        ("", ""),
    ],
)
def test_configured_folders_are_shortened_to_their_last_part(text: str, clean: str) -> None:
    assert Redaction(FOLDERS).text(text) == clean


@given(
    st.lists(st.sampled_from(["/home/ann/data/real", "/home/ann/data/real/fake", "/srv/runs/first", " ", "x/y"]))
)
def test_no_parent_folder_remains_in_a_text(parts: list[str]) -> None:
    clean = Redaction(FOLDERS).text(" ".join(parts))
    assert not any(secret in clean for secret in ("ann", "srv", "home", "runs"))


def test_the_folder_of_a_manifest_is_removed_too() -> None:
    redaction = Redaction(Config(manifest="/home/ann/sets/metadata.csv", output="/tmp/run"))
    assert redaction.text("/home/ann/sets/metadata.csv: 3 rows") == "metadata.csv: 3 rows"
    assert redaction.name("/home/ann/sets/img/1.png") == "sets/img/1.png"
    assert (
        Redaction(Config(manifest="s3://bucket/sets/metadata.csv")).text("s3://bucket/sets") == "s3://bucket/sets"
    )


@pytest.mark.parametrize("given_folder", ["{}", "{}/", "file://{}", "{}/../real"])
def test_folders_are_recognised_in_any_notation(given_folder: str, tmp_path) -> None:
    folder = str(tmp_path / "real")
    assert Redaction(Config(real=given_folder.format(folder))).text(f"{folder}/1.png") == "real/1.png"


def test_relative_folders_are_resolved(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    redaction = Redaction(Config(real="sets/real", synthetic={"a": "~/fake"}, manifest=None))
    assert redaction.text(f"{tmp_path}/sets/real/1.png") == "real/1.png"
    assert redaction.text(f"{tmp_path}/home/fake/1.png") == "fake/1.png"


def test_the_root_folder_is_not_removed() -> None:
    assert Redaction(Config(real="/", manifest="/metadata.csv")).text("a / b") == "a / b"


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("near/cat/1.png", "near/cat/1.png"),
        ("/home/ann/data/real/cat/1.png", "real/cat/1.png"),
        ("/mnt/disk/other/cat/1.png", "…/cat/1.png"),
        ("~/pictures/cat/1.png", "…/cat/1.png"),
        ("s3://bucket/prefix/1.png", "s3://bucket/prefix/1.png"),
    ],
)
def test_ids_keep_their_last_parts_without_local_folders(name: str, clean: str) -> None:
    assert Redaction(FOLDERS).name(name) == clean


def test_file_uris_as_ids_lose_local_folders() -> None:
    assert "ann" not in Redaction(FOLDERS).name("file:///home/ann/pictures/cat/1.png")


def test_s3_prefixes_that_contain_a_folder_name_are_kept() -> None:
    config = Config(real="/data/real", synthetic={"far": "s3://bucket/data/real"}, output="/tmp/run")
    assert Redaction(config).settings(config)["synthetic"] == {"far": "s3://bucket/data/real"}


@pytest.mark.parametrize("text", ["see /mnt/data/real/1.png", "see /data/realistic/1.png", "far/data/real/1.png"])
def test_other_paths_that_contain_a_folder_name_are_kept(text: str) -> None:
    assert Redaction(Config(real="/data/real")).text(text) == text


def test_settings_give_the_same_results_without_local_paths() -> None:
    found = Redaction(FOLDERS).settings(FOLDERS)
    text = json.dumps(found)
    assert not any(secret in text for secret in ("home", "ann", "srv", "opt/", "intern", "cache"))
    assert found["real"] == "real"
    assert found["synthetic"] == {"near": "fake", "far": "s3://bucket/prefix/fake"}
    assert found["encoder"]["weights"] == "weights.pt"
    assert found["storage"]["region"] == "eu-1"
    paths = {"real": None, "synthetic": {}, "output": None}
    again = Config.model_validate(found).model_copy(update=paths)
    for section in ("neighbors", "classifier", "metrics"):
        assert again.result_settings(section) == FOLDERS.result_settings(section)
    assert Config.model_validate(found).encoder.name == "torchvision:resnet18"


# Tiles.


def row(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "real_or_synthetic": "synthetic", **more}


ALBUM = Thumbnails(
    ["x", "y"], {"near/shown.png": 1, "real/nearest.png": 0}, missing={"near/gone.png"}, left_out={"late"}
)
WITH_FILE = {"near/shown.png", "real/nearest.png", "near/gone.png", "late"}


def tiler(shows_images: bool = True) -> Tiler:
    return Tiler(ALBUM if shows_images else Thumbnails(), WITH_FILE, Redaction(FOLDERS), shows_images)


def test_every_extreme_has_a_gallery() -> None:
    assert set(GALLERIES) == set(EXTREMES)
    assert all(title and words for title, words in GALLERIES.values())


def test_a_tile_describes_a_row_and_its_nearest_real_image() -> None:
    tile = tiler().tile(
        row(
            "near/shown.png",
            label="cat",
            label_quality_score=0.75,
            distance_to_nearest_neighbor=0.25,
            nearest_real_id="real/nearest.png",
            distance_to_nearest_real=0.5,
        )
    )
    assert (tile.name, tile.short, tile.label, tile.kind) == ("near/shown.png", "shown.png", "cat", "synthetic")
    assert (tile.score, tile.distance, tile.picture) == (0.75, 0.25, 1)
    assert (tile.nearest, tile.nearest_distance, tile.nearest_picture) == ("real/nearest.png", 0.5, 0)


def test_a_tile_of_a_row_with_missing_values() -> None:
    tile = tiler().tile(row("vector", label=None, nearest_real_id=None))
    assert (tile.label, tile.nearest) == ("", "")
    assert {tile.score, tile.distance, tile.picture, tile.nearest_distance, tile.nearest_picture} == {None}


@pytest.mark.parametrize(
    ("name", "why"),
    [("vector", "no image file"), ("near/gone.png", "picture missing"), ("late", "left out: page is full")],
)
def test_a_tile_without_a_picture_says_why(name: str, why: str) -> None:
    tile = tiler().tile(row(name))
    assert (tile.picture, tile.why) == (None, why)


def test_every_tile_says_that_pictures_are_left_out() -> None:
    found = tiler(shows_images=False).tiles(row(name) for name in ("vector", "near/shown.png", "late"))
    assert [(tile.picture, tile.why) for tile in found] == [(None, "pictures left out")] * 3


def test_tiles_have_redacted_names_and_their_own_pictures() -> None:
    name, real = "/home/ann/data/real/fake/1.png", "/elsewhere/ann/cat/2.png"
    album = Thumbnails(["x", "y"], {name: 0, real: 1})
    tile = Tiler(album, {name, real}, Redaction(FOLDERS), True).tile(row(name, nearest_real_id=real))
    assert (tile.name, tile.short, tile.nearest) == ("fake/1.png", "1.png", "…/cat/2.png")
    assert (tile.picture, tile.nearest_picture) == (0, 1)


def test_tiles_are_in_the_order_of_their_rows() -> None:
    assert [tile.short for tile in tiler().tiles(row(f"a/{i}.png") for i in "312")] == ["3.png", "1.png", "2.png"]
    assert tiler().tiles([]) == []
