from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits

from synthscale.demo import MARKER, make_sets, write_demo
from synthscale.errors import InputError

SYNTHETIC = ("kde", "collapsed", "memorised", "blurry", "missing")
Sets = dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]


@pytest.fixture(scope="module")
def sets() -> Sets:
    return make_sets(0)


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `write_demo` write 20 images per set: thousands of small files can take seconds."""

    def few(seed: int) -> Sets:
        return {name: (pixels[:20], labels[:20]) for name, (pixels, labels) in make_sets(seed).items()}

    monkeypatch.setattr("synthscale.demo.make_sets", few)


def levels(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Convert images (n, 8, 8) to rows of ink levels 0..16: (n, 64)."""
    return np.rint(pixels.reshape(len(pixels), -1) * (16 / 255))


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_same_seed_gives_the_same_pixels_and_another_seed_others(sets: Sets) -> None:
    again, other = make_sets(0), make_sets(1)
    assert list(sets) == ["real", *SYNTHETIC]
    for name, (pixels, labels) in sets.items():
        np.testing.assert_array_equal(pixels, again[name][0])
        np.testing.assert_array_equal(labels, again[name][1])
        assert (name == "real") == np.array_equal(pixels, other[name][0])


def test_real_is_the_bundled_digits(sets: Sets) -> None:
    digits = load_digits()
    np.testing.assert_array_equal(levels(sets["real"][0]), digits.data)
    np.testing.assert_array_equal(sets["real"][1], digits.target)


@pytest.mark.parametrize("name", ["real", *SYNTHETIC])
def test_sets_differ_in_image_content_only(sets: Sets, name: str) -> None:
    pixels, labels = sets[name]
    assert pixels.shape == (1797, 8, 8)
    assert pixels.dtype == np.uint8
    assert labels.shape == (1797,)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(np.unique(pixels), np.unique(sets["real"][0]))
    assert len(np.unique(pixels)) == 17


def test_only_the_set_missing_lacks_digits(sets: Sets) -> None:
    for name in ("kde", "collapsed", "memorised", "blurry"):
        counts = np.bincount(sets[name][1], minlength=10)
        assert counts.min() >= 174
        assert counts.max() <= 183
    assert set(sets["missing"][1]) == {0, 1, 2, 3, 4}


def test_kde_and_missing_match_the_real_pixel_distribution_and_contain_no_copies(sets: Sets) -> None:
    real, labels = levels(sets["real"][0]), sets["real"][1]
    np.testing.assert_array_equal(np.sort(levels(sets["kde"][0]), axis=0), np.sort(real, axis=0))
    for name in ("kde", "missing"):
        assert cdist(levels(sets[name][0]), real).min() > 5  # as the two most similar real images
    three = cdist(levels(sets["missing"][0])[sets["missing"][1] == 3], real)
    assert np.mean(labels[three.argmin(axis=1)] == 3) > 0.9


def test_collapsed_repeats_forty_new_images(sets: Sets) -> None:
    collapsed, labels = levels(sets["collapsed"][0]), sets["collapsed"][1]
    count, group = connected_components(cdist(collapsed, collapsed) <= np.sqrt(12))
    assert count == 40
    assert np.bincount(group).min() >= 44
    assert all(len(set(labels[group == g])) == 1 for g in range(count))
    assert cdist(collapsed, levels(sets["real"][0])).min() > 6


def test_each_memorised_image_is_close_to_a_different_real_image(sets: Sets) -> None:
    (real, labels), (copies, copy_labels) = sets["real"], sets["memorised"]
    distances = cdist(levels(copies), levels(real))
    nearest = distances.argmin(axis=1)
    np.testing.assert_array_equal(np.sort(nearest), np.arange(1797))
    np.testing.assert_array_equal(labels[nearest], copy_labels)
    assert distances.min() >= 1
    assert np.abs(levels(copies) - levels(real)[nearest]).max() <= 2
    assert np.median(distances.min(axis=1)) < 3


def test_blurry_has_eight_components_and_no_copies(sets: Sets) -> None:
    real, blurry = levels(sets["real"][0]), levels(sets["blurry"][0])

    def share_of_eight(rows: NDArray[np.float64]) -> float:
        variance = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) ** 2
        return float(variance[:8].sum() / variance.sum())

    assert share_of_eight(blurry) > 0.9
    assert share_of_eight(real) < 0.7
    assert cdist(blurry, real).min() > 6


@pytest.mark.usefixtures("few_rows")
def test_files_are_in_label_folders_and_decode_to_the_same_pixels(sets: Sets, tmp_path: Path) -> None:
    write_demo(tmp_path / "new" / "data")
    folder = tmp_path / "new" / "data"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    expected = {f"{name}/{sets[name][1][row]}/{row:05d}.png" for name in sets for row in range(20)}
    assert files == expected | {MARKER}
    for file in expected:
        name, _, row = file.removesuffix(".png").split("/")
        with Image.open(folder / file) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (8, 8))
            np.testing.assert_array_equal(np.asarray(image), sets[name][0][int(row)])
        assert (folder / file).read_bytes()[24] == 8  # bit depth, in the PNG header


@pytest.mark.usefixtures("few_rows")
def test_complete_data_are_not_rewritten(tmp_path: Path) -> None:
    write_demo(tmp_path)
    before = times(tmp_path)
    write_demo(tmp_path)
    assert times(tmp_path) == before


@pytest.mark.usefixtures("few_rows")
def test_incomplete_data_are_rewritten(tmp_path: Path) -> None:
    write_demo(tmp_path)
    expected = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    (tmp_path / MARKER).unlink()
    (tmp_path / "kde" / "3" / "99999.png").write_bytes(b"")
    (tmp_path / ".real.partial" / "0").mkdir(parents=True)
    write_demo(tmp_path)
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == expected


@pytest.mark.usefixtures("few_rows")
def test_another_seed_replaces_the_data(tmp_path: Path) -> None:
    write_demo(tmp_path)
    write_demo(tmp_path, seed=1)
    pixels, labels = make_sets(1)["blurry"]
    with Image.open(tmp_path / "blurry" / str(labels[0]) / "00000.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels[0])


def test_foreign_files_are_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    photo = tmp_path / "real" / "holiday.jpg"
    photo.write_bytes(b"x")
    with pytest.raises(InputError, match=r"holiday\.jpg"):
        write_demo(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["real", "holiday.jpg"]
