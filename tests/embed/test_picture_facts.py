"""Brightness, contrast and sharpness of pictures against plain float arithmetic on the luma."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthscale.embed.images import image_statistics

LEVEL = 1 / 255


def luma(pixels):
    """ITU-R BT.601, 0..1, in floats: no rounding to levels."""
    return (pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])) / 255


def expected(pixels):
    y = luma(pixels)
    n, m = y.shape
    edges = np.array(
        [
            y[i - 1, j] + y[i + 1, j] + y[i, j - 1] + y[i, j + 1] - 4 * y[i, j]
            for i in range(1, n - 1)
            for j in range(1, m - 1)
        ]
    )
    return y.mean(), y.std(), edges.var() if edges.size else 0.0


def grey(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


@given(seed=st.integers(0, 2**31), side=st.integers(1, 24), top=st.sampled_from([2, 40, 256]))
def test_facts_are_those_of_the_luma(seed, side, top):
    pixels = np.random.default_rng(seed).integers(0, top, (side, side, 3), dtype=np.uint8)
    brightness, contrast, sharpness = expected(pixels)
    found = image_statistics(pixels)
    # Pillow rounds the luma to whole levels, so each is off by half a level at most (and a bit in its weights).
    assert found["brightness"] == pytest.approx(brightness, abs=0.6 * LEVEL)
    assert found["contrast"] == pytest.approx(contrast, abs=0.6 * LEVEL)
    # The Laplacian adds eight halves: its deviation moves by four levels at most.
    assert np.sqrt(found["sharpness"]) == pytest.approx(np.sqrt(sharpness), abs=4.8 * LEVEL)


@given(seed=st.integers(0, 2**31), height=st.integers(3, 12), width=st.integers(3, 12))
def test_grey_pictures_are_not_rounded_at_all(seed, height, width):
    pixels = grey(np.random.default_rng(seed).integers(0, 256, (height, width)))
    brightness, contrast, sharpness = expected(pixels)
    found = image_statistics(pixels)
    assert found["brightness"] == pytest.approx(brightness, abs=1e-9)
    assert found["contrast"] == pytest.approx(contrast, abs=1e-7)
    assert found["sharpness"] == pytest.approx(sharpness, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("level", [0, 1, 128, 254, 255])
def test_a_flat_picture_has_neither_contrast_nor_edges(level):
    found = image_statistics(grey(np.full((16, 16), level)))
    assert found["brightness"] == pytest.approx(level / 255, abs=1e-12)
    assert found["contrast"] == pytest.approx(0, abs=1e-7)
    assert found["sharpness"] == 0


def test_black_and_white_are_the_ends():
    assert image_statistics(grey(np.zeros((8, 8))))["brightness"] == 0
    assert image_statistics(grey(np.full((8, 8), 255)))["brightness"] == pytest.approx(1)


def test_a_checkerboard_has_the_most_contrast_and_the_sharpest_edges():
    found = image_statistics(grey(np.indices((18, 18)).sum(0) % 2 * 255))
    # Every inner square differs by one from all four neighbours: +4 and -4, as many of each.
    assert found == {
        "brightness": pytest.approx(0.5),
        "contrast": pytest.approx(0.5),
        "sharpness": pytest.approx(16),
    }


def test_halves_have_contrast_and_one_edge():
    pixels = np.zeros((10, 10))
    pixels[:, 5:] = 255
    found = image_statistics(grey(pixels))
    assert found["contrast"] == pytest.approx(0.5)
    # Of 8 inner columns one has +1 and one -1.
    assert found["sharpness"] == pytest.approx(2 / 8)


def test_each_colour_has_its_weight():
    for channel, weight in enumerate((0.299, 0.587, 0.114)):
        pixels = np.zeros((6, 6, 3), np.uint8)
        pixels[..., channel] = 255
        assert image_statistics(pixels)["brightness"] == pytest.approx(weight, abs=0.6 * LEVEL)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (2, 7), (3, 2)])
def test_pictures_without_an_inner_pixel_have_no_edges(shape):
    pixels = grey(np.random.default_rng(0).integers(0, 256, shape))
    brightness, contrast, _ = expected(pixels)
    found = image_statistics(pixels)
    assert found["sharpness"] == 0
    assert (found["brightness"], found["contrast"]) == pytest.approx((brightness, contrast), abs=1e-7)


def test_a_single_inner_pixel_has_no_variance():
    pixels = np.zeros((3, 3))
    pixels[1, 1] = 255
    assert image_statistics(grey(pixels))["sharpness"] == 0


def test_a_bowl_has_the_same_curve_everywhere():
    # Luma x^2 + y^2: the Laplacian is 4 levels at every pixel, and its variance 0, not a bit below.
    across, down = np.mgrid[-10:11, -10:11]
    found = image_statistics(grey(across**2 + down**2))
    assert 0 <= found["sharpness"] < 1e-9


@given(seed=st.integers(0, 2**31), side=st.integers(1, 16))
def test_facts_keep_their_ranges_and_are_plain_floats(seed, side):
    found = image_statistics(np.random.default_rng(seed).choice([0, 255], (side, side, 3)).astype(np.uint8))
    assert all(type(value) is float for value in found.values())
    assert 0 <= found["brightness"] <= 1
    assert 0 <= found["contrast"] <= 0.5 + 1e-9
    assert 0 <= found["sharpness"] <= 16 + 1e-5


def test_blur_lowers_the_sharpness_and_keeps_the_brightness():
    rng = np.random.default_rng(3)
    rough = rng.integers(0, 256, (64, 64)).astype(float)
    smooth = (rough + np.roll(rough, 1, 0) + np.roll(rough, 1, 1) + np.roll(rough, (1, 1), (0, 1))) / 4
    one, two = image_statistics(grey(rough)), image_statistics(grey(smooth))
    assert two["sharpness"] < one["sharpness"] / 4
    assert two["brightness"] == pytest.approx(one["brightness"], abs=LEVEL)
