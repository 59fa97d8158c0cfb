"""Brightness, contrast and sharpness of images against float arithmetic on the luma."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthscale.embed.images import image_statistics

LEVEL = 1 / 255


def luma(pixels):
    """Compute the ITU-R BT.601 luma, 0..1, in floats: without rounding to 8 bits."""
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
def test_statistics_are_those_of_the_luma(seed, side, top):
    pixels = np.random.default_rng(seed).integers(0, top, (side, side, 3), dtype=np.uint8)
    brightness, contrast, sharpness = expected(pixels)
    found = image_statistics(pixels)
    # Pillow rounds the luma to whole levels, an error of at most half a level, and rounds the weights slightly.
    assert found["brightness"] == pytest.approx(brightness, abs=0.6 * LEVEL)
    assert found["contrast"] == pytest.approx(contrast, abs=0.6 * LEVEL)
    # The Laplacian sums eight such errors, so its standard deviation changes by at most four levels.
    assert np.sqrt(found["sharpness"]) == pytest.approx(np.sqrt(sharpness), abs=4.8 * LEVEL)


@given(seed=st.integers(0, 2**31), height=st.integers(3, 12), width=st.integers(3, 12))
def test_statistics_of_grey_images_have_no_rounding_error(seed, height, width):
    pixels = grey(np.random.default_rng(seed).integers(0, 256, (height, width)))
    brightness, contrast, sharpness = expected(pixels)
    found = image_statistics(pixels)
    assert found["brightness"] == pytest.approx(brightness, abs=1e-9)
    assert found["contrast"] == pytest.approx(contrast, abs=1e-7)
    assert found["sharpness"] == pytest.approx(sharpness, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("level", [0, 1, 128, 254, 255])
def test_a_flat_image_has_contrast_and_sharpness_zero(level):
    found = image_statistics(grey(np.full((16, 16), level)))
    assert found["brightness"] == pytest.approx(level / 255, abs=1e-12)
    assert found["contrast"] == pytest.approx(0, abs=1e-7)
    assert found["sharpness"] == 0


def test_brightness_is_0_for_black_and_1_for_white():
    assert image_statistics(grey(np.zeros((8, 8))))["brightness"] == 0
    assert image_statistics(grey(np.full((8, 8), 255)))["brightness"] == pytest.approx(1)


def test_a_checkerboard_has_the_largest_contrast_and_sharpness():
    found = image_statistics(grey(np.indices((18, 18)).sum(0) % 2 * 255))
    # Every inner pixel differs by 1 from all four neighbours, so the Laplacian is +4 or -4, each for half of them.
    assert found == {
        "brightness": pytest.approx(0.5),
        "contrast": pytest.approx(0.5),
        "sharpness": pytest.approx(16),
    }


def test_a_black_and_a_white_half_have_the_sharpness_of_one_edge():
    pixels = np.zeros((10, 10))
    pixels[:, 5:] = 255
    found = image_statistics(grey(pixels))
    assert found["contrast"] == pytest.approx(0.5)
    # The Laplacian is +1 in one of the 8 inner columns, -1 in another and 0 elsewhere.
    assert found["sharpness"] == pytest.approx(2 / 8)


def test_channels_are_weighted_as_in_bt_601():
    for channel, weight in enumerate((0.299, 0.587, 0.114)):
        pixels = np.zeros((6, 6, 3), np.uint8)
        pixels[..., channel] = 255
        assert image_statistics(pixels)["brightness"] == pytest.approx(weight, abs=0.6 * LEVEL)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (2, 7), (3, 2)])
def test_images_without_inner_pixels_have_sharpness_zero(shape):
    pixels = grey(np.random.default_rng(0).integers(0, 256, shape))
    brightness, contrast, _ = expected(pixels)
    found = image_statistics(pixels)
    assert found["sharpness"] == 0
    assert (found["brightness"], found["contrast"]) == pytest.approx((brightness, contrast), abs=1e-7)


def test_an_image_with_one_inner_pixel_has_sharpness_zero():
    pixels = np.zeros((3, 3))
    pixels[1, 1] = 255
    assert image_statistics(grey(pixels))["sharpness"] == 0


def test_sharpness_of_a_paraboloid_is_zero_and_not_negative():
    # With a luma of x^2 + y^2 the Laplacian is 4 levels at every pixel, so its variance is 0.
    across, down = np.mgrid[-10:11, -10:11]
    found = image_statistics(grey(across**2 + down**2))
    assert 0 <= found["sharpness"] < 1e-9


@given(seed=st.integers(0, 2**31), side=st.integers(1, 16))
def test_statistics_are_python_floats_within_their_ranges(seed, side):
    found = image_statistics(np.random.default_rng(seed).choice([0, 255], (side, side, 3)).astype(np.uint8))
    assert all(type(value) is float for value in found.values())
    assert 0 <= found["brightness"] <= 1
    assert 0 <= found["contrast"] <= 0.5 + 1e-9
    assert 0 <= found["sharpness"] <= 16 + 1e-5


def test_blur_lowers_the_sharpness_and_keeps_the_brightness():
    rng = np.random.default_rng(3)
    rough = rng.integers(0, 256, (64, 64)).astype(float)
    smooth = (rough + np.roll(rough, 1, 0) + np.roll(rough, 1, 1) + np.roll(rough, (1, 1), (0, 1))) / 4
    before, after = image_statistics(grey(rough)), image_statistics(grey(smooth))
    assert after["sharpness"] < before["sharpness"] / 4
    assert after["brightness"] == pytest.approx(before["brightness"], abs=LEVEL)
