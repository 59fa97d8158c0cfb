"""Self-test of the radius: sampling, edits, distances, the summary and the warning."""

import hashlib
import io
import itertools
import json
import math
import pickle
import zlib

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from synthscale.embed.edited_copies import ALL_EDITS, EDITS, STRONG_EDITS, edited_copies
from synthscale.embed.encoders.descriptor import DescriptorEncoder
from synthscale.embed.images import MAX_PIXELS, decode
from synthscale.neighbors.search_space import SearchSpace
from synthscale.neighbors.self_test import WARN_BELOW, SelfTest, run_self_test, sample_rows, warning
from synthscale.tables.faults import Reason, RowFault
from tests.conftest import draw

NAMES = ("reencode", "resize", "disturb")
STRONG_NAMES = ("mirror", "crop")
ALL_NAMES = (*NAMES, *STRONG_NAMES)
ORIENTATION = 0x0112


def encoded(image, format="PNG", **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def opened(data):
    return Image.open(io.BytesIO(data))


def scene(seed=0, width=96, height=72):
    return Image.fromarray(draw(np.random.default_rng(seed), width, height))


def embedded(encoder, images):
    pixels = np.stack([decode(data, encoder.image_size)[0] for data in images])
    return encoder.encode(pixels)


def usual_radius(vectors, encoder):
    """0.13 times the median nearest-neighbour distance, by brute force."""
    unit = vectors[:, slice(*encoder.search)].astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    apart = 1 - unit @ unit.T
    np.fill_diagonal(apart, np.inf)
    return 0.13 * float(np.median(apart.min(axis=1)))


def by_direction(encoder):
    """The space of near-duplicates of a run with this encoder."""
    return SearchSpace("near_duplicates", "cosine", encoder.search)


def self_test_of(images, originals, encoder, batch_size, hashes=None):
    return run_self_test(images, originals, encoder, by_direction(encoder), batch_size, hashes)


def measured(**distances):
    """A self-test with these distances; copies by an edit that is not named are far."""
    count = len(next(iter(distances.values())))
    return SelfTest({name: np.array(distances.get(name, [1.0] * count), np.float64) for name in ALL_NAMES})


class Means:
    """An encoder whose search dimensions are the mean colour, between dimensions that a search must ignore."""

    name, image_size, dimensions = "means", 16, 5
    search, classify, fingerprint = (1, 4), (0, 5), "means"

    def encode(self, pixels):
        rng = np.random.default_rng(len(pixels))
        colour = pixels.mean(axis=(1, 2), dtype=np.float64)
        return np.column_stack([rng.normal(0, 99, len(pixels)), colour, rng.normal(0, 99, len(pixels))]).astype(
            "f4"
        )


@pytest.fixture(scope="module")
def encoder():
    return DescriptorEncoder()


@pytest.fixture(scope="module")
def photographs():
    return [encoded(scene(seed, 160, 120), "JPEG", quality=92) for seed in range(30)]


# --- the sample ---


def test_the_sample_does_not_depend_on_row_order_or_row_numbers():
    ids = [f"real/{i:04d}.png" for i in range(500)]
    rows = np.arange(500, dtype=np.int64)
    taken = sample_rows(ids, rows, 40, seed=3)
    assert taken.dtype == np.int64
    assert (np.diff(taken) > 0).all()
    assert len(taken) == 40
    order = np.random.default_rng(0).permutation(500)
    shuffled = [ids[i] for i in order]
    np.testing.assert_array_equal(sample_rows(shuffled, order.astype(np.int64), 40, 3), taken)
    renumbered = sample_rows(shuffled, 7000 + rows, 40, 3)
    assert {shuffled[row - 7000] for row in renumbered} == {ids[row] for row in taken}


def test_sampling_merged_samples_of_parts_equals_sampling_the_whole():
    ids = [f"{i}" for i in range(300)]
    rows = np.arange(300, dtype=np.int64)
    parts = [sample_rows(ids[start : start + 100], rows[start : start + 100], 25, 1) for start in (0, 100, 200)]
    together = np.concatenate(parts)
    np.testing.assert_array_equal(
        sample_rows([ids[row] for row in together], together, 25, 1), sample_rows(ids, rows, 25, 1)
    )


def test_the_sample_depends_on_the_seed_and_includes_all_if_there_are_few():
    ids, rows = [f"image {i}" for i in range(200)], np.arange(200, dtype=np.int64)
    by_hash = sorted(
        rows,
        key=lambda i: hashlib.blake2b(ids[i].encode(), digest_size=16, key=(5).to_bytes(8, "little")).digest(),
    )
    np.testing.assert_array_equal(sample_rows(ids, rows, 20, 5), sorted(by_hash[:20]))
    assert set(sample_rows(ids, rows, 20, 5)) != set(sample_rows(ids, rows, 20, 6))
    np.testing.assert_array_equal(sample_rows(ids, rows[::-1], 999, 5), rows)
    empty = sample_rows([], rows[:0], 20, 5)
    assert (empty.shape, empty.dtype) == ((0,), np.int64)


def test_a_growing_set_keeps_most_of_its_sample():
    ids, rows = [f"{i}" for i in range(1100)], np.arange(1100, dtype=np.int64)
    before, after = sample_rows(ids[:1000], rows[:1000], 100, 0), sample_rows(ids, rows, 100, 0)
    assert set(after[after < 1000]) <= set(before)


# --- the edits ---


def test_every_edit_changes_what_its_name_says():
    image = scene(1, 97, 41)
    original = np.asarray(image).astype(float)
    copies = edited_copies(encoded(image))
    assert (tuple(EDITS), tuple(STRONG_EDITS)) == (NAMES, STRONG_NAMES)
    assert tuple(copies) == tuple(ALL_EDITS) == ALL_NAMES
    jpeg = opened(copies["reencode"])
    assert (jpeg.format, jpeg.size, decode(copies["reencode"], 8)[1].jpeg_quality) == ("JPEG", (97, 41), 75)
    small = opened(copies["resize"])
    assert (small.format, small.size, small.mode) == ("PNG", (73, 31), "RGB")
    noisy = opened(copies["disturb"])
    assert (noisy.format, noisy.size, noisy.mode) == ("PNG", (97, 41), "RGB")
    for copy in (jpeg, small, noisy):
        assert copy.info.get("comment") is None
        shown = np.asarray(copy.resize(image.size, Image.Resampling.BICUBIC), float)
        assert 0 < np.abs(shown - original).mean() < 12


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((32, 32), (24, 24)),
        ((33, 500), (25, 375)),
        ((31, 31), (46, 46)),
        ((31, 500), (46, 750)),
        ((500, 31), (750, 46)),
        ((8, 8), (12, 12)),
        ((1, 1), (2, 2)),
        ((2, 300), (3, 450)),
    ],
)
def test_a_picture_with_a_side_under_32_px_is_enlarged_and_any_other_made_smaller(size, resized):
    image = scene(3, *size)
    copy = opened(edited_copies(encoded(image))["resize"])
    assert (copy.format, copy.size, copy.mode) == ("PNG", resized, "RGB")
    if min(size) < 32:
        # No detail is lost: scaled back down it is the same picture except for ringing of the filter.
        back = np.asarray(copy.resize(size, Image.Resampling.BOX), float)
        assert np.abs(back - np.asarray(image, float)).mean() < 12


def test_the_small_copy_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = np.asarray(opened(edited_copies(encoded(Image.fromarray(stripes)))["resize"]), float)
    # Sampling pixels without a filter would leave only black and white.
    assert small.min() > 10
    assert small.max() < 245


def test_the_disturbance_is_slightly_brighter_with_noise_of_two_levels():
    grey = Image.new("RGB", (400, 300), (100, 150, 200))
    pixels = np.asarray(opened(edited_copies(encoded(grey))["disturb"]), float)
    np.testing.assert_allclose(pixels.mean(axis=(0, 1)), [102, 153, 204], atol=0.05)
    # Rounding to whole levels adds 1/12 to the variance.
    np.testing.assert_allclose(pixels.std(axis=(0, 1)), math.sqrt(4 + 1 / 12), rtol=0.02)
    # Noise is uncorrelated between neighbouring pixels and between channels.
    flat = (pixels - pixels.mean(axis=(0, 1))).reshape(-1)
    assert max(abs(np.corrcoef(flat[:-lag], flat[lag:])[0, 1]) for lag in (1, 3, 1200)) < 0.02


def test_the_disturbance_stays_within_the_range_of_pixels():
    for level in (0, 255):
        pixels = np.asarray(opened(edited_copies(encoded(Image.new("RGB", (64, 64), (level,) * 3)))["disturb"]))
        assert np.abs(pixels.astype(int) - level).max() < 16


def test_strips_of_large_pictures_have_independent_noise():
    image = Image.new("RGB", (2048, 1200), (120, 120, 120))
    pixels = np.asarray(opened(edited_copies(encoded(image))["disturb"]), float)
    np.testing.assert_allclose(pixels.std(axis=(1, 2)), math.sqrt(4 + 1 / 12), rtol=0.1)
    assert not (pixels[:512] == pixels[512:1024]).all(axis=(1, 2)).any()


def test_the_mirrored_copy_has_left_and_right_swapped_and_the_cropped_one_lost_its_border():
    image = scene(5, 97, 41)
    pixels, copies = np.asarray(image), edited_copies(encoded(image))
    mirror, crop = (opened(copies[name]) for name in STRONG_NAMES)
    assert {(copy.format, copy.mode) for copy in (mirror, crop)} == {("PNG", "RGB")}
    np.testing.assert_array_equal(np.asarray(mirror), pixels[:, ::-1])
    # A twentieth of 97 and 41 px, rounded down, on either side.
    np.testing.assert_array_equal(np.asarray(crop), pixels[2:-2, 4:-4])


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 300), (19, 20)])
def test_the_cropped_copy_of_a_tiny_picture_is_not_empty(size):
    crop = opened(edited_copies(encoded(scene(6, *size)))["crop"])
    assert all(0.9 * side <= cropped <= side for side, cropped in zip(size, crop.size, strict=True))


def test_the_same_picture_gives_the_same_copies_and_another_one_other_noise():
    image = scene(2)
    first = edited_copies(encoded(image))
    assert edited_copies(encoded(image)) == first
    assert edited_copies(encoded(image, "BMP")) == first
    other = image.copy()
    other.putpixel((0, 0), (1, 2, 3))
    noise = np.asarray(opened(first["disturb"]), int) - np.asarray(
        opened(edited_copies(encoded(other))["disturb"]), int
    )
    assert (noise != 0).mean() > 0.5


def test_the_original_is_not_modified():
    image = scene(4)
    before = image.tobytes()
    for edit in ALL_EDITS.values():
        edit(image)
    assert image.tobytes() == before


def test_exif_rotation_is_applied_once():
    image = scene(3, 80, 40)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    copies = edited_copies(encoded(image, exif=exif))
    assert copies == edited_copies(encoded(image.transpose(Image.Transpose.ROTATE_270)))
    sizes = [(40, 80), (30, 60), (40, 80), (40, 80), (36, 72)]
    assert [opened(copies[name]).size for name in ALL_NAMES] == sizes
    assert all(ORIENTATION not in opened(copy).getexif() for copy in copies.values())


def awkward():
    ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64)
    glass = scene(5).convert("RGBA")
    glass.putalpha(Image.linear_gradient("L").resize(glass.size))
    palette = scene(6).convert("P", palette=Image.Palette.ADAPTIVE)
    return {
        "grey": encoded(scene(4).convert("L")),
        "one bit": encoded(scene(4).convert("1")),
        "alpha": encoded(glass),
        "grey and alpha": encoded(glass.convert("LA")),
        "16 bit": encoded(Image.fromarray(ramp.astype(np.uint16))),
        "float": encoded(Image.fromarray((ramp / 65535).astype(np.float32)), "TIFF"),
        "palette": encoded(palette),
        "transparent palette": encoded(palette, transparency=3),
        "transparent colour": encoded(scene(7), transparency=(1, 2, 3)),
        "cmyk": encoded(scene(8).convert("CMYK"), "JPEG", quality=95),
        "comment": encoded(scene(9), "JPEG", quality=95, comment=b"a word", icc_profile=b"no profile"),
        "gif": encoded(scene(10), "GIF"),
        "webp": encoded(scene(11), "WEBP", lossless=True),
        "1x1": encoded(Image.new("RGB", (1, 1), (90, 60, 200))),
        "2x1": encoded(Image.new("RGB", (2, 1), (90, 60, 200))),
        "sliver": encoded(scene(12, 300, 30).resize((300, 1))),
        "4x4": encoded(Image.linear_gradient("L").resize((4, 4)).convert("RGB")),
    }


@pytest.mark.parametrize("kind", awkward())
def test_awkward_images_are_edited_as_they_are_embedded(kind, encoder):
    data = awkward()[kind]
    copies = edited_copies(data)
    shown = decode(data, 32)[0].astype(float)
    for name, copy in copies.items():
        image = opened(copy)
        assert image.mode == "RGB"
        assert min(image.size) >= 1
        assert not {"comment", "icc_profile", "transparency", "exif"} & image.info.keys()
        if name in NAMES:
            assert np.abs(decode(copy, 32)[0] - shown).mean() < 16, name
    tested = self_test_of([data], embedded(encoder, [data]), encoder, 64)
    assert tested.left_out == 0
    assert max(tested.distances[name][0] for name in NAMES) < 0.2


# --- images that cannot be used ---


def png_header(width, height):
    """A PNG header that declares a size, without pixels."""
    data = bytearray(encoded(Image.new("L", (1, 1))))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.EMPTY),
        (b"<html>", Reason.UNSUPPORTED),
        (encoded(scene(), "JPEG")[:700], Reason.TRUNCATED),
        (png_header(MAX_PIXELS, 2), Reason.TOO_LARGE),
        # JPEG is limited to 65,500 pixels per side, so not every copy can be encoded.
        (encoded(Image.new("RGB", (65600, 1))), Reason.TOO_LARGE),
    ],
)
def test_an_image_that_cannot_be_edited_raises_a_row_fault(data, reason):
    with pytest.raises(RowFault) as caught:
        edited_copies(data)
    assert caught.value.reason == reason
    assert caught.value.detail


def test_unusable_and_changed_images_are_left_out_without_affecting_others():
    images = [encoded(scene(seed)) for seed in range(6)]
    means = Means()
    vectors = embedded(means, images)
    hashes = [decode(data, 8)[1].content_hash for data in images]
    clean = self_test_of(images[::2], vectors[::2], means, 64)
    assert clean.left_out == 0
    damaged = list(images)
    damaged[1] = b"no image"
    damaged[3] = RowFault(Reason.NOT_FOUND, "gone")
    damaged[5] = encoded(scene(77))
    tested = self_test_of(iter(damaged), vectors, means, 64, hashes)
    assert tested.left_out == 3
    for name in ALL_NAMES:
        np.testing.assert_array_equal(tested.distances[name], clean.distances[name])
    # Without hashes a changed file is taken for the original, and is far from the stored vector.
    unchecked = self_test_of(damaged, vectors, means, 64)
    assert unchecked.left_out == 2
    assert unchecked.distances["disturb"][-1] > 3 * clean.distances["disturb"].max()


def test_a_sample_without_usable_images_is_not_an_error():
    tested = self_test_of([b"", b"x"], np.ones((2, 5), np.float32), Means(), 64)
    assert tested.left_out == 2
    assert all(distance.shape == (0,) for distance in tested.distances.values())
    none = self_test_of([], np.empty((0, 5), np.float32), Means(), 64)
    for summary in (tested.summary(0.1), none.summary(0.1), SelfTest({}).summary(0.1)):
        assert summary == {"value": None, "low": None, "high": None, "reason": summary["reason"]}
        assert "no image" in summary["reason"]
        assert warning(summary) is None


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_an_image_with_a_zero_vector_copy_is_left_out(value):
    class Failing(Means):
        def encode(self, pixels):
            vectors = super().encode(pixels)
            vectors[1, 1:4] = value
            return vectors

    images = [encoded(scene(seed)) for seed in range(3)]
    vectors = embedded(Means(), images)
    tested = self_test_of(images, vectors, Failing(), 64)
    assert tested.left_out == 1
    clean = self_test_of(images, vectors, Means(), 64)
    for name in ALL_NAMES:
        np.testing.assert_array_equal(tested.distances[name], clean.distances[name][1:])


def test_images_and_vectors_must_have_the_same_length():
    images = [encoded(scene(seed)) for seed in range(2)]
    with pytest.raises(ValueError, match="zip"):
        self_test_of(images, np.ones((3, 5), np.float32), Means(), 64)


# --- distances ---


def test_distances_are_the_cosine_of_the_search_dimensions():
    images = [encoded(scene(seed)) for seed in range(5)]
    means = Means()
    originals = embedded(means, images)
    tested = self_test_of(images, originals, means, 64)
    assert tuple(tested.distances) == ALL_NAMES
    for name in ALL_NAMES:
        assert tested.distances[name].dtype == np.float64
        for i, data in enumerate(images):
            copy = decode(edited_copies(data)[name], 16)[0].mean(axis=(0, 1), dtype=np.float64)
            original = originals[i, 1:4].astype(np.float64)
            cosine = original @ copy / math.hypot(*original) / math.hypot(*copy)
            assert tested.distances[name][i] == pytest.approx(1 - cosine, abs=1e-9)


def test_the_batch_size_does_not_matter(encoder, photographs):
    vectors = embedded(encoder, photographs[:7])
    results = [self_test_of(photographs[:7], vectors, encoder, size) for size in (1, 6, 20, 999)]
    for other in results[1:]:
        for name in ALL_NAMES:
            np.testing.assert_allclose(other.distances[name], results[0].distances[name], rtol=0, atol=1e-9)


def test_an_unchanged_copy_is_at_distance_zero(encoder):
    # Resizing does not change a flat picture, and a second JPEG of quality 75 rarely changes the first.
    flat = encoded(Image.new("RGB", (64, 64), (96, 96, 96)))
    tested = self_test_of([flat], embedded(encoder, [flat]), encoder, 64)
    assert tested.distances["resize"][0] == 0
    assert tested.summary(1e-300)["by_edit"]["resize"] == 1


def test_the_descriptor_finds_the_copies_within_a_sensible_radius_and_hardly_any_within_a_tiny_one(
    encoder, photographs
):
    vectors = embedded(encoder, photographs)
    tested = self_test_of(photographs, vectors, encoder, 64)
    good = tested.summary(usual_radius(vectors, encoder))
    assert good["value"] >= 0.98
    assert warning(good) is None
    tiny = tested.summary(1e-9)
    assert tiny["value"] < 0.05
    assert warning(tiny)


@pytest.mark.parametrize("folder", ["photos", "cifar10/real_png_1600"])
def test_the_descriptor_finds_the_copies_of_real_images(folder, encoder, shared_data):
    files = sorted((shared_data / "data" / folder).iterdir())[::9][:60]
    images = [file.read_bytes() for file in files]
    vectors = embedded(encoder, images)
    summary = self_test_of(images, vectors, encoder, 64).summary(usual_radius(vectors, encoder))
    assert summary["images"] == len(files)
    assert min(summary["by_edit"].values()) >= 0.95


# --- the summary ---


def test_a_copy_at_exactly_the_radius_is_not_found():
    radius = 0.25
    below, above = np.nextafter(radius, 0), np.nextafter(radius, 1)
    tested = measured(reencode=[below, below], resize=[radius, below], disturb=[above, 0.0])
    summary = tested.summary(radius)
    assert summary["by_edit"] == {"reencode": 1.0, "resize": 0.5, "disturb": 0.5}
    assert summary["value"] == pytest.approx(4 / 6)
    assert summary["images"] == 2
    assert summary["median_distance_by_edit"]["disturb"] == pytest.approx(above / 2)


def test_an_exact_copy_is_always_found():
    tested = measured(reencode=[0.0, 1e-12], resize=[0.0, 0.0], disturb=[0.1, 0.1])
    smallest = float(np.nextafter(0.0, 1.0))
    for radius in (0.0, smallest):
        assert tested.summary(radius)["by_edit"] == {"reencode": 0.5, "resize": 1.0, "disturb": 0.0}


def test_without_a_radius_the_value_is_null_with_a_reason():
    summary = measured(reencode=[0.0], resize=[0.0], disturb=[0.0]).summary(None)
    assert summary == {"value": None, "low": None, "high": None, "reason": summary["reason"]}
    assert "radius" in summary["reason"]
    assert warning(summary) is None


def test_the_interval_is_clopper_pearson_if_copies_of_an_image_agree():
    for found, images in [(0, 5), (1, 7), (6, 9), (255, 256), (256, 256)]:
        distance = [0.0] * found + [1.0] * (images - found)
        summary = measured(reencode=distance, resize=distance, disturb=distance).summary(0.5)
        exact = binomtest(found, images).proportion_ci(0.95, "exact")
        assert (summary["low"], summary["high"]) == pytest.approx((exact.low, exact.high), abs=1e-9)
        assert summary["value"] == pytest.approx(found / images)


def of_shares(thirds):
    """A self-test in which thirds[i] of the three copies of image i are found."""
    found = np.arange(3)[:, None] < np.asarray(thirds)[None, :]
    return measured(**dict(zip(NAMES, np.where(found, 0.1, 0.9), strict=True)))


def test_the_interval_contains_the_value_for_every_outcome():
    for images in (1, 2, 3, 10):
        for counts in itertools.combinations_with_replacement(range(4), images):
            summary = of_shares(counts).summary(0.5)
            assert summary["value"] == pytest.approx(sum(counts) / 3 / images)
            assert 0 <= summary["low"] <= summary["value"] <= summary["high"] <= 1
            assert summary["low"] < summary["high"]


@pytest.mark.parametrize(
    "shares",
    [(0.1, 0, 0, 0.9), (0.5, 0, 0, 0.5), (0.05, 0.05, 0.1, 0.8), (0.02, 0.02, 0.06, 0.9), (0, 0.1, 0.9, 0)],
)
def test_the_interval_covers_the_truth_for_any_dependence_between_copies_of_an_image(shares):
    """Enumerate every outcome for ten images with 0, 1, 2 or 3 copies found, at these probabilities."""
    truth = sum(share * k / 3 for k, share in enumerate(shares))
    covered = 0.0
    for counts in itertools.combinations_with_replacement(range(4), 10):
        ways = math.factorial(10)
        chance = 1.0
        for k in range(4):
            ways //= math.factorial(counts.count(k))
            chance *= shares[k] ** counts.count(k)
        if chance == 0:
            continue
        summary = of_shares(counts).summary(0.5)
        covered += ways * chance * (summary["low"] <= truth <= summary["high"])
    assert covered >= 0.95


def test_the_interval_counts_images_and_not_copies():
    few, many = of_shares([3] * 8 + [0] * 2).summary(0.5), of_shares([3] * 80 + [0] * 20).summary(0.5)
    assert few["high"] - few["low"] > 2 * (many["high"] - many["low"])
    as_copies = binomtest(24, 30).proportion_ci(0.95, "exact")
    assert few["high"] - few["low"] > 1.3 * (as_copies.high - as_copies.low)


def test_the_summary_is_plain_json():
    summary = of_shares([0, 1, 2, 3]).summary(0.5)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert list(summary) == [
        "value",
        "low",
        "high",
        "images",
        "left_out",
        "by_edit",
        "by_strong_edit",
        "median_distance_by_edit",
        "notes",
    ]


def test_a_self_test_can_be_pickled():
    tested = SelfTest(of_shares([0, 1, 3]).distances, left_out=4)
    again = pickle.loads(pickle.dumps(tested))
    assert again.left_out == 4
    assert again.summary(0.5) == tested.summary(0.5)


def test_strong_edits_are_information_beside_the_value():
    light = {name: [0.1, 0.1, 0.1, 0.9] for name in NAMES}
    summary = measured(**light, mirror=[0.9] * 4, crop=[0.5, 0.1, 0.0, 0.1]).summary(0.5)
    without = measured(**light, mirror=[0.0] * 4, crop=[0.0] * 4).summary(0.5)
    # They count neither for the share nor for its interval and warning.
    assert [summary[name] for name in ("value", "low", "high", "by_edit")] == [
        without[name] for name in ("value", "low", "high", "by_edit")
    ]
    assert set(summary["by_edit"]) == set(NAMES)
    assert summary["by_strong_edit"] == {"mirror": 0.0, "crop": 0.75}
    assert set(summary["median_distance_by_edit"]) == set(ALL_NAMES)
    assert warning(summary) == warning(without)


def test_strong_edits_that_would_be_missed_are_put_into_words():
    light = {name: [0.0] * 10 for name in NAMES}
    mirror, crop = [0.9] * 8 + [0.1] * 2, [0.9] + [0.1] * 9
    notes = measured(**light, mirror=mirror, crop=crop).summary(0.5)["notes"]
    # Nine of ten cropped copies suffice.
    assert len(notes) == 1
    assert "mirrored copies of training images would not be seen" in notes[0]
    assert "20 %" in notes[0]
    notes = measured(**light, mirror=mirror, crop=mirror).summary(0.5)["notes"]
    assert "cropped to 90 %" in notes[1]
    assert measured(**light, mirror=crop, crop=crop).summary(0.5)["notes"] == []


def test_strong_edits_that_are_mostly_found_are_not_said_to_be_missed():
    light = {name: [0.0] * 10 for name in NAMES}
    (note,) = measured(**light, mirror=[0.1] * 10, crop=[0.9] * 2 + [0.1] * 8).summary(0.5)["notes"]
    assert "would not all be seen: only 80 %" in note


def test_distances_are_euclidean_where_near_duplicates_are():
    images = [encoded(scene(seed)) for seed in range(4)]
    means = Means()
    originals = embedded(means, images)
    center, scale = originals[:, 1:4].mean(axis=0).astype(np.float64), np.array([0.5, 2.0, 0.0])
    space = SearchSpace("near_duplicates", "euclidean", means.search, center, scale)
    tested = run_self_test(images, originals, means, space, 64)
    for name in ALL_NAMES:
        for i, data in enumerate(images):
            copy = decode(edited_copies(data)[name], 16)[0].mean(axis=(0, 1), dtype=np.float64)
            half = np.square((copy - originals[i, 1:4]) * scale).sum() / 2
            assert tested.distances[name][i] == pytest.approx(half, rel=1e-4, abs=1e-6)


# --- the warning ---


def test_the_warning_names_the_share_the_worst_edit_and_the_remedy():
    tested = measured(reencode=[0.9] * 4, resize=[0.1, 0.1, 0.1, 0.9], disturb=[0.1] * 4)
    text = warning(tested.summary(0.5))
    assert "58.3 %" in text
    assert "worst: reencode, 0.0 %" in text
    for word in ("copies its training images", "fresh", "neighbors.threshold", "docs/metrics.md"):
        assert word in text


def test_there_is_a_warning_only_below_its_limit():
    assert WARN_BELOW == 0.9
    # Ten images, three copies each: 27 of 30 is the limit itself.
    assert warning(of_shares([3] * 9 + [0]).summary(0.5)) is None
    assert warning(of_shares([3] * 8 + [2, 0]).summary(0.5))
    assert warning(of_shares([3] * 10).summary(0.5)) is None
