"""What is taken of a set and what is passed over, alike in folders, archives and on S3; where labels come from."""

import io
import re
import tarfile
import zipfile

import pytest
from PIL import Image

from synthscale.config import Config, StorageConfig
from synthscale.errors import InputError
from synthscale.ingest.discover import discover
from synthscale.ingest.file_kinds import Kind, kind_of_bytes
from synthscale.ingest.intake import Intake
from synthscale.storage.fetch import fetch
from synthscale.tables.layout import StoredFile


def encoded(format_name="PNG", color=(1, 2, 3)):
    out = io.BytesIO()
    Image.new("RGB", (16, 16), color).save(out, format_name)
    return out.getvalue()


PNG, JPEG = encoded(), encoded("JPEG")

# Path, content, and what it is: "taken", or the kind that it is passed over as.
MEMBERS = [
    ("cat/1.png", PNG, "taken"),
    ("cat/2.JPG", JPEG, "taken"),
    ("cat/3.jfif", JPEG, "taken"),
    ("cat/4.JPE", JPEG, "taken"),
    ("cat/5.jfi", JPEG, "taken"),
    ("cat/6.mpo", JPEG, "taken"),
    ("cat/7.avif", encoded("AVIF"), "taken"),
    ("cat/8.png", JPEG, "taken"),
    ("cat/n01440764_10026", JPEG, "taken"),
    ("cat/9.image", PNG, "taken"),
    ("cat/10.orig", encoded("WEBP"), "taken"),
    ("cat/11.1", encoded("GIF"), "taken"),
    ("cat/12.x", encoded("BMP"), "taken"),
    ("cat/13.y", encoded("TIFF"), "taken"),
    ("cat/._1.png", b"\0\5\26\7", Kind.SYSTEM),
    ("cat/.hidden.png", PNG, Kind.SYSTEM),
    ("cat/.ipynb_checkpoints/1-checkpoint.png", PNG, Kind.SYSTEM),
    ("__MACOSX/cat/._1.png", b"\0\5\26\7", Kind.SYSTEM),
    ("cat/Thumbs.db", b"x", Kind.SYSTEM),
    ("cat/desktop.ini", b"x", Kind.SYSTEM),
    ("@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg", JPEG, Kind.SYSTEM),
    ("#recycle/1.png", PNG, Kind.SYSTEM),
    ("$RECYCLE.BIN/1.png", PNG, Kind.SYSTEM),
    (".Trash-1000/files/1.png", PNG, Kind.SYSTEM),
    (".thumbnails/1.png", PNG, Kind.SYSTEM),
    ("lost+found/1.png", PNG, Kind.SYSTEM),
    ("README", b"text", Kind.OTHER),
    ("notes.md", b"text", Kind.OTHER),
    ("cat/empty", b"", Kind.OTHER),
    ("cat/BMW.models", b"BMW and others, a text", Kind.OTHER),
    ("labels.csv", b"a,b", Kind.OTHER),
    ("features.npz", b"PK", Kind.ARRAYS),
    ("more.tar.gz", b"\x1f\x8b", Kind.COMPRESSED_TAR),
    ("more.TGZ", b"\x1f\x8b", Kind.COMPRESSED_TAR),
    ("cat/14.heic", b"\0\0\0\x18ftypheic", Kind.UNREADABLE),
    ("cat/heic", b"\0\0\0\x18ftypheic" + bytes(30), Kind.UNREADABLE),
]


def write_folder(top):
    for name, data, _ in MEMBERS:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(data)
    return str(top)


def write_tar(top):
    with tarfile.open(f"{top}.tar", "w") as tar:
        for name, data, _ in MEMBERS:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return f"{top}.tar"


def write_zip(top):
    with zipfile.ZipFile(f"{top}.zip", "w") as file:
        for name, data, _ in MEMBERS:
            file.writestr(name, data)
    return f"{top}.zip"


@pytest.fixture
def real(tmp_path, make_images):
    make_images(tmp_path / "real", 4)
    return str(tmp_path / "real")


@pytest.mark.parametrize("place", ["folder", "tar", "zip", "s3"])
def test_the_same_is_taken_from_folders_archives_and_s3(tmp_path, real, place, request):
    storage = StorageConfig()
    if place == "s3":
        s3 = request.getfixturevalue("s3")
        storage, top = StorageConfig(endpoint_url=s3.endpoint_url), f"s3://{s3.bucket()}/odd"
        write_folder(tmp_path / "odd")
        s3.put_folder(tmp_path / "odd", top)
    else:
        top = {"folder": write_folder, "tar": write_tar, "zip": write_zip}[place](tmp_path / "odd")
    dataset = discover(Config(real=real, synthetic={"gan": top}, storage=storage))
    intake = dataset.sets[1]
    rows = [row for row in dataset.rows.to_pylist() if row["generator"] == "gan"]
    wanted = {name: data for name, data, kind in MEMBERS if kind == "taken"}
    got = {row["image_filename"]: fetch(StoredFile(row["uri"]), storage) for row in rows}
    assert got == wanted
    assert {row["label"] for row in rows} == {"cat"}
    counts = {kind: tally.count for kind, tally in intake.passed.items()}
    expected = {}
    for _, _, kind in MEMBERS:
        if kind != "taken":
            expected[kind] = expected.get(kind, 0) + 1
    assert counts == expected
    assert (intake.taken, intake.found) == (len(wanted), len(MEMBERS))
    notes = "\n".join(intake.notes())
    assert re.search(r"passed over: 12 hidden and system files \(.*, \.\.\.\)", notes)
    assert re.search(r"4 with rare extensions are read as JPEG \(.*\.jfif, ", notes)
    assert "1 with rare extensions are read as AVIF (" in notes
    assert re.search(r"6 whose names do not say so are images by their first bytes \(", notes)


def test_a_set_without_images_is_refused_with_what_it_has(tmp_path, real):
    (tmp_path / "odd").mkdir()
    for i in range(3):
        (tmp_path / "odd" / f"{i}.npy").write_bytes(b"x")
    (tmp_path / "odd" / "a.txt").write_bytes(b"x")
    words = r"odd: contains no images .*3 files of arrays.*1 files that are no images \(\.txt 1\)"
    with pytest.raises(InputError, match=words):
        discover(Config(real=real, synthetic={"gan": str(tmp_path / "odd")}))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("set.tar.gz", "compressed tars"),
        ("set.tgz", "compressed tars"),
        ("x.npz", "arrays"),
        ("x.png", "but a file; give its folder"),
        ("none", "no such folder of images$"),
        ("none.tar", "not found"),
    ],
)
def test_a_path_that_is_no_set_gets_its_own_word(tmp_path, real, name, words):
    if not name.startswith("none"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=rf"{name}: .*{words}"):
        discover(Config(real=real, synthetic={"gan": str(tmp_path / name)}))


def test_links_to_folders_are_followed_and_noted(tmp_path, real, make_images):
    make_images(tmp_path / "elsewhere", 3)
    make_images(tmp_path / "fake" / "a", 2, seed=3, labels=(None,))
    (tmp_path / "fake" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "fake" / "b").symlink_to("a")
    (tmp_path / "fake" / "a" / "loop").symlink_to("..")
    dataset = discover(Config(real=real, synthetic={"gan": str(tmp_path / "fake")}))
    assert dataset.sets[1].taken == 3 + 2 + 2
    notes = "\n".join(dataset.notes)
    assert "1 links to folders outside were followed (dog)" in notes
    assert "1 links to other folders inside were followed, whose images are taken twice (b)" in notes
    assert "2 links to folders that contain them were not followed (a/loop, b/loop)" in notes


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["cat/1.png", "dog/2.png"], ["cat", "dog"]),
        (["cat/images/1.png", "dog/images/2.png"], ["cat", "dog"]),
        (["train/cat/images/1.png", "train/dog/images/2.png"], ["cat", "dog"]),
        (["cat/a/images/1.png", "dog/a/images/2.png"], ["cat", "dog"]),
        (["cat/images/1.png", "dog/2.png"], ["images", "dog"]),
        (["cat/images/1.png"], ["cat"]),
        (["train/cat/1.png"], ["cat"]),
        (["1.png", "2.png"], [None, None]),
        (["1.png", "cat/2.png"], [None, "cat"]),
    ],
)
@pytest.mark.parametrize("place", ["folder", "zip"])
def test_a_folder_that_every_class_has_is_not_the_label(tmp_path, real, paths, labels, place):
    if place == "folder":
        for path in paths:
            (tmp_path / "fake" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "fake" / path).write_bytes(PNG)
        top = tmp_path / "fake"
    else:
        top = tmp_path / "fake.zip"
        with zipfile.ZipFile(top, "w") as file:
            for path in paths:
                file.writestr(path, PNG)
    dataset = discover(Config(real=real, synthetic={"gan": str(top)}))
    found = {row["image_filename"]: row["label"] for row in dataset.rows.to_pylist() if row["generator"] == "gan"}
    assert found == dict(zip(paths, labels, strict=True))
    # The real set keeps its own.
    assert {row["label"] for row in dataset.rows.to_pylist() if row["generator"] is None} == {"cat", "dog"}


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (("cat", "bird"), None),
        (("bird", "fish"), r"real and gan have no label in common \(real: cat, dog; gan: bird, fish\)"),
        ((None,), r"real has labels \(folder names\), gan has none"),
    ],
)
def test_labels_that_have_nothing_in_common_are_noted(tmp_path, real, make_images, labels, words):
    make_images(tmp_path / "fake", 2, labels=labels)
    notes = "\n".join(discover(Config(real=real, synthetic={"gan": str(tmp_path / "fake")})).notes)
    assert ("label" in notes) == (words is not None)
    assert words is None or re.search(words, notes)


def test_a_line_says_what_a_set_gave():
    intake = Intake("gan", "/x", found=40, taken=30)
    intake.set_labels({str(i) for i in range(7)}, "folder names")
    assert intake.summary() == "gan: 30 of 40 files in /x; 7 labels from folder names (0, 1, 2, 3, 4, ...)"


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF"])
def test_formats_are_known_by_their_first_bytes(format_name):
    assert kind_of_bytes(encoded(format_name)[:32]) is Kind.IMAGE
    for size in range(8):
        assert kind_of_bytes(encoded(format_name)[:size]) in {Kind.IMAGE, Kind.OTHER}
