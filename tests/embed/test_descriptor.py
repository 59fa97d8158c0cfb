"""The descriptor: reproducible vectors, near copies, distant other images, and separable synthetic images."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from synthscale.embed.encoders.descriptor import DescriptorEncoder
from synthscale.embed.encoders.protocol import Encoder
from synthscale.errors import ConfigError

THRESHOLD = 0.13
SHARED = Path(os.environ.get("SYNTHSCALE_SHARED", Path(__file__).parents[3] / "shared"))
needs_shared = pytest.mark.skipif(
    not (SHARED / "data" / "photos").is_dir(), reason=f"no measurement data in {SHARED}: set SYNTHSCALE_SHARED"
)


@pytest.fixture(scope="module")
def encoder():
    return DescriptorEncoder()


@pytest.fixture(scope="module")
def scenes():
    """Make 40 images of random coloured shapes over a gradient, 160 x 120 px."""
    return [scene(np.random.default_rng(seed)) for seed in range(40)]


def scene(rng):
    down, across = np.mgrid[0:120, 0:160].astype(float)
    pixels = rng.uniform(40, 215, 3) + np.multiply.outer(across / 160 - 0.5, rng.uniform(-60, 60, 3))
    for _ in range(8):
        top, left, half = rng.uniform(0, 120), rng.uniform(0, 160), rng.uniform(8, 35)
        inside = np.hypot(down - top, (across - left) * rng.uniform(0.5, 2)) < half
        pixels[inside] = rng.uniform(0, 255, 3)
    return Image.fromarray(np.clip(pixels + rng.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8))


def squares(images, side=64):
    resized = [image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for image in images]
    return np.stack([np.asarray(image) for image in resized])


def reencoded(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return Image.open(buffer)


def shrunk(image):
    return image.resize((image.width * 9 // 10, image.height * 9 // 10), Image.Resampling.BICUBIC)


def noisy(image):
    pixels = np.asarray(image) + np.random.default_rng(0).normal(0, 2, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def directions(encoder, pixels):
    vectors = encoder.encode(pixels)[:, slice(*encoder.search)].astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def nearest_distances(rows):
    distances = 1 - rows @ rows.T
    np.fill_diagonal(distances, np.inf)
    return distances.min(axis=1)


def copy_recall(encoder, images, disturb):
    """Return the share of disturbed copies that are near-duplicates of their originals."""
    originals = directions(encoder, squares(images))
    copies = directions(encoder, squares([disturb(image) for image in images]))
    radius = THRESHOLD * np.median(nearest_distances(originals))
    return np.mean(np.sum((originals - copies) ** 2, axis=1) / 2 < radius)


def separability(encoder, real, fake):
    """Return the out-of-fold AUC of logistic regression on the ``classify`` dimensions."""
    rows = np.concatenate([encoder.encode(real), encoder.encode(fake)])[:, slice(*encoder.classify)]
    is_fake = np.repeat([0, 1], [len(real), len(fake)])
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return roc_auc_score(is_fake, cross_val_predict(head, rows, is_fake, cv=folds, method="decision_function"))


def test_attributes_agree_with_the_vectors(encoder, scenes):
    as_protocol: Encoder = encoder
    black, white = (Image.new("RGB", (8, 8), colour) for colour in ("black", "white"))
    vectors = as_protocol.encode(squares([*scenes, black, white]))
    attributes = (as_protocol.name, as_protocol.image_size, as_protocol.fingerprint)
    assert attributes == ("descriptor", 64, "descriptor-1/64")
    assert (vectors.shape, vectors.dtype) == ((42, as_protocol.dimensions), np.float32)
    for start, stop in (as_protocol.search, as_protocol.classify):
        assert 0 <= start < stop <= as_protocol.dimensions
    spread = np.ptp(vectors[:, slice(*as_protocol.classify)], axis=0)
    assert spread.min() > 0, "a dimension of the classify range is constant"


@pytest.mark.parametrize("side", [32, 48, 128])
def test_other_image_sizes_give_finite_vectors(side, scenes):
    encoder = DescriptorEncoder(image_size=side)
    vectors = encoder.encode(squares(scenes[:3], side))
    assert encoder.fingerprint == f"descriptor-1/{side}"
    assert vectors.shape == (3, encoder.dimensions)
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize("side", [0, 16, 100])
def test_image_sizes_that_are_not_multiples_of_16_from_32_are_refused(side):
    with pytest.raises(ConfigError, match=f"image_size is {side}"):
        DescriptorEncoder(image_size=side)


def test_all_filters_are_on_the_given_device():
    # Like a GPU, the meta device raises an error when tensors of two devices are mixed, but it computes nothing.
    assert DescriptorEncoder(device="meta").dimensions == DescriptorEncoder().dimensions


def test_vectors_do_not_depend_on_the_batch(encoder, scenes):
    pixels = squares(scenes)
    together = encoder.encode(pixels)
    alone = np.concatenate([encoder.encode(row[None]) for row in pixels])
    np.testing.assert_allclose(alone, together, atol=1e-6, rtol=0)
    np.testing.assert_allclose(encoder.encode(pixels[::-1]), together[::-1], atol=1e-6, rtol=0)
    np.testing.assert_array_equal(DescriptorEncoder().encode(pixels), together)
    assert encoder.encode(pixels[:0]).shape == (0, encoder.dimensions)


def test_read_only_and_strided_pixels_are_accepted(encoder, scenes):
    pixels = squares(scenes[:4])
    strided = np.repeat(pixels, 2, axis=2)[:, :, ::2]
    strided.flags.writeable = False
    np.testing.assert_array_equal(encoder.encode(strided), encoder.encode(pixels))


def test_blank_images_have_finite_vectors_close_to_those_of_similar_grey(encoder):
    levels = (0, 2, 127, 129, 253, 255)
    blank = np.stack([np.full((64, 64, 3), level, np.uint8) for level in levels])
    vectors = encoder.encode(blank)
    assert np.isfinite(vectors).all()
    assert np.linalg.norm(vectors[:, slice(*encoder.search)], axis=1).min() > 0.1
    distances = nearest_distances(directions(encoder, blank))
    assert distances.max() < 0.001
    black, white = directions(encoder, blank)[[0, -1]]
    assert 1 - black @ white > 0.1


@pytest.mark.parametrize("disturb", [reencoded, shrunk, noisy])
def test_copies_are_within_the_radius_and_other_images_are_not(encoder, scenes, disturb):
    assert copy_recall(encoder, scenes, disturb) == 1
    distances = nearest_distances(directions(encoder, squares(scenes)))
    assert distances.min() > THRESHOLD * np.median(distances)


def test_swapped_colour_channels_are_outside_the_radius(encoder, scenes):
    originals = directions(encoder, squares(scenes))
    swapped = directions(encoder, squares(scenes)[..., [2, 1, 0]])
    radius = THRESHOLD * np.median(nearest_distances(originals))
    assert np.median(np.sum((originals - swapped) ** 2, axis=1) / 2) > radius


def test_re_encoded_images_are_separable_and_images_of_equal_noise_are_not(encoder):
    real = squares([scene(np.random.default_rng(seed)) for seed in range(100, 140)])
    same = squares([scene(np.random.default_rng(seed)) for seed in range(200, 240)])
    denoised = squares([reencoded(Image.fromarray(pixels)) for pixels in same])
    assert separability(encoder, real, denoised) > 0.9
    assert 0.25 < separability(encoder, real, same) < 0.75


@needs_shared
@pytest.mark.parametrize("disturb", [reencoded, shrunk, noisy])
def test_copies_of_photographs_are_within_the_radius(encoder, disturb):
    files = sorted((SHARED / "data" / "photos").iterdir())[::5]
    photos = [Image.open(file).convert("RGB") for file in files]
    assert copy_recall(encoder, photos, disturb) >= 0.98


@needs_shared
@pytest.mark.parametrize(
    ("generator", "low", "high"),
    [("infomaxgan_64", 0.65, 1), ("ar_smoothing_64", 0.95, 1), ("gan_poor_1000", 0.97, 1), ("edm_64", 0.3, 0.75)],
)
def test_separability_of_image_generators_from_real_images(encoder, generator, low, high):
    real = sorted((SHARED / "data" / "cifar10" / "real_png_1600").iterdir())[::25]
    fake = sorted((SHARED / "data" / "cifar10" / generator).iterdir())
    fake = fake[:: len(fake) // 64][:64]
    pixels = [squares([Image.open(file) for file in files]) for files in (real, fake)]
    assert low <= separability(encoder, *pixels) <= high
