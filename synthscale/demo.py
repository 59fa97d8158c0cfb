"""Make the demo's data: scanned digits as the real set, and five synthetic sets, four with one known flaw each.

Reads scikit-learn's bundled 1,797 digits (8 x 8 pixels, ink levels 0..16; no download) and writes
``FOLDER/<set>/<digit>/<index:05d>.png``, where the sub-folder is the label and the index is the row in the set.
Because the flaws are known, tests also use the sets to check that each metric reacts to the right flaw:

=============  =======================================================  ====================================
set            images                                                   flaw
=============  =======================================================  ====================================
``kde``        samples of a kernel density estimate per digit           none: the reference
``collapsed``  40 samples as in ``kde``, each repeated about 45 times   mode collapse: low diversity
``memorised``  every real image, re-encoded and slightly changed        copies of real images: low freshness
``blurry``     samples from 8 principal components of all digits        no detail: low precision
``missing``    samples as in ``kde``, without the digits 5 to 9         missing classes: low label coverage
=============  =======================================================  ====================================

All sets have as many images as the real set, and the same file format, size, mode, bit depth and 17 grey levels.
So they differ in content only: other grey levels, for instance, would identify synthetic images.
"""

import io
import re
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from synthscale.errors import InputError

GENERATOR_VERSION = 1
"""Increase it when `make_sets` gives other pixels for the same seed, so that existing folders are rewritten."""

SETS = ("real", "kde", "collapsed", "memorised", "blurry", "missing")
MARKER = ".synthscale-demo"
MAX_LEVEL = 16
SIDE_PX = 8
BLURRY_COMPONENTS = 8
PROTOTYPES_PER_DIGIT = 4
JITTERED_PIXELS = 3
JPEG_QUALITY = 90
BANDWIDTH = 0.75
"""Kernel bandwidth, in standard deviations of a digit's principal components. At 0.75, samples lie within the 5-NN
radius of a real image about as often as real images do; at 0.35, a tenth of them are near-duplicates of real
images."""

Levels = NDArray[np.int64]
Labels = NDArray[np.int64]
Pixels = NDArray[np.uint8]


def make_sets(seed: int = 0) -> dict[str, tuple[Pixels, Labels]]:
    """Make the real set and the five synthetic sets; the same seed gives the same pixels.

    Each set has its own random stream, so a change to one generator does not affect the other sets.

    Returns:
        For each set in `SETS`: grey images (1797, 8, 8) uint8, with the 17 values ``round(level * 255 / 16)``, and
        their labels (1797,), the digits.
    """
    data = load_digits()
    real: Levels = data.data.astype(np.int64)
    labels: Labels = data.target.astype(np.int64)
    kde, collapsed, memorised, blurry, missing = (np.random.default_rng([seed, i]) for i in range(5))
    low_digits = np.resize(labels[labels < 5], len(labels))
    order = memorised.permutation(len(real))
    levels = {
        "real": (real, labels),
        "kde": (_sample_kde(real, labels, labels, kde), labels),
        "collapsed": _collapse(real, labels, collapsed),
        "memorised": (_memorise(real[order], memorised), labels[order]),
        "blurry": (_sample_blurry(real, labels, blurry), labels),
        "missing": (_sample_kde(real, labels, low_digits, missing), low_digits),
    }
    return {name: (_to_pixels(images), digits) for name, (images, digits) in levels.items()}


def write_demo(folder: Path, seed: int = 0) -> None:
    """Write the sets of `make_sets` as PNG files below ``folder``, unless they are already there.

    The marker file `MARKER` contains the generator's version and the seed and is written last, so the data are
    complete if it is there. Data of an interrupted call, another version or another seed are replaced; each set's
    folder is replaced as a whole.

    Raises:
        InputError: a folder that would be replaced contains files that `write_demo` did not write.
    """
    marker = folder / MARKER
    fingerprint = f"synthscale demo, generator {GENERATOR_VERSION}, seed {seed}\n"
    if marker.is_file() and marker.read_text() == fingerprint:
        return
    sets = make_sets(seed)
    for name in sets:
        _refuse_foreign(folder / name)
    folder.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    for name, (pixels, labels) in sets.items():
        _write_set(folder / name, pixels, labels)
    partial = folder / f"{MARKER}.partial"
    partial.write_text(fingerprint)
    partial.replace(marker)


def _sample_kde(real: Levels, labels: Labels, wanted: Labels, rng: np.random.Generator) -> Levels:
    """Draw one image for each digit in ``wanted`` (n,) from a Gaussian kernel density estimate of that digit.

    The kernel is isotropic in the digit's whitened PCA space, so it has the shape of the digit's covariance. All
    components are used, because dropping some would blur the samples. Samples are shrunk so that their covariance
    stays that of the digit (smoothed bootstrap, Silverman & Young 1987). Gaussian samples have no exactly empty
    pixels, so finally each pixel's values are replaced by the digit's real values of the same rank.
    """
    samples = np.empty((len(wanted), real.shape[1]), dtype=np.int64)
    for digit in np.unique(wanted):
        of_digit, rows = real[labels == digit], np.flatnonzero(wanted == digit)
        mean, components, deviations = _principal_components(of_digit)
        whitened = (of_digit - mean) @ components.T / deviations
        centres = whitened[rng.integers(len(of_digit), size=len(rows))]
        moved = centres + BANDWIDTH * rng.standard_normal(centres.shape)
        gaussian = mean + moved / np.sqrt(1 + BANDWIDTH**2) * deviations @ components
        samples[rows] = _match_ranks(gaussian, of_digit)
    return samples


def _principal_components(
    rows: Levels,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean (D,), components (C, D) by descending variance, and their standard deviations (C,), > 0."""
    mean = rows.mean(axis=0)
    _, singular, components = np.linalg.svd(rows - mean, full_matrices=False)
    kept = singular > 1e-9 * singular[0]
    return mean, components[kept], singular[kept] / np.sqrt(len(rows))


def _match_ranks(samples: NDArray[np.float64], reference: Levels) -> Levels:
    """Map each column of ``samples`` to the distribution of that column in ``reference``, preserving ranks."""
    ranks = samples.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    picked = (2 * ranks + 1) * len(reference) // (2 * len(samples))
    return np.take_along_axis(np.sort(reference, axis=0), picked, axis=0)


def _collapse(real: Levels, labels: Labels, rng: np.random.Generator) -> tuple[Levels, Labels]:
    """Repeat a few sampled images of every digit up to the size of the real set; each repeat is jittered."""
    samples = _sample_kde(real, labels, labels, rng)
    prototypes = [np.flatnonzero(labels == digit)[:PROTOTYPES_PER_DIGIT] for digit in np.unique(labels)]
    rows = np.resize(np.concatenate(prototypes), len(real))
    return _jitter(samples[rows], rng), labels[rows]


def _memorise(real: Levels, rng: np.random.Generator) -> Levels:
    """Encode the real images as JPEG, then change a few pixels, as happens to copies on the web.

    At quality 90 about two pixels of an image return with another level. At 95 none does: errors are below half a
    level, so rounding to the 17 levels removes them. The jitter ensures that no copy is exact.
    """
    decoded = np.stack([_through_jpeg(image) for image in _to_pixels(real)])
    levels = np.rint(decoded.reshape(len(real), -1) * (MAX_LEVEL / 255)).astype(np.int64)
    return _jitter(levels, rng)


def _through_jpeg(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    decoded: Pixels = np.asarray(Image.open(buffer))
    return decoded


def _jitter(levels: Levels, rng: np.random.Generator) -> Levels:
    """Move a few pixels of each image by one level up or down.

    Pixels at levels 0 and 16 are left alone: ink where real digits never have any would identify the copies.
    """
    order = np.where((levels > 0) & (levels < MAX_LEVEL), rng.random(levels.shape), 1.0)
    chosen = order.argsort(axis=1)[:, :JITTERED_PIXELS]
    moved = np.take_along_axis(levels, chosen, axis=1) + rng.choice([-1, 1], size=chosen.shape)
    jittered = levels.copy()
    np.put_along_axis(jittered, chosen, moved, axis=1)
    return jittered


def _sample_blurry(real: Levels, labels: Labels, rng: np.random.Generator) -> Levels:
    """Draw images from a Gaussian per digit, in the space of the first few principal components of all digits.

    Projections of real images would be blurry but also copies, hence the samples. With fewer components, samples
    would be so similar that they are near-duplicates of each other, a second flaw.
    """
    mean, components, _ = _principal_components(real)
    components = components[:BLURRY_COMPONENTS]
    projected = (real - mean) @ components.T
    samples = np.empty(real.shape)
    for digit in np.unique(labels):
        rows = labels == digit
        fitted = projected[rows].mean(axis=0), np.cov(projected[rows].T)
        samples[rows] = mean + rng.multivariate_normal(*fitted, size=rows.sum()) @ components
    return np.clip(np.rint(samples), 0, MAX_LEVEL).astype(np.int64)


def _to_pixels(levels: Levels) -> Pixels:
    """Convert ink levels (n, 64) to grey images (n, 8, 8), 0..255."""
    pixels: Pixels = np.rint(levels * (255 / MAX_LEVEL)).astype(np.uint8)
    return pixels.reshape(-1, SIDE_PX, SIDE_PX)


def _refuse_foreign(folder: Path) -> None:
    """Raise InputError if a folder contains anything whose name `write_demo` does not use."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if not re.fullmatch(r"\d(/\d{5}\.png)?", name):
            raise InputError(
                f"{path} was not written by the demo and would be deleted; choose another folder for the demo"
            )


def _write_set(folder: Path, pixels: Pixels, labels: Labels) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    for stale in (partial, folder):
        if stale.exists():
            shutil.rmtree(stale)
    for digit in np.unique(labels):
        (partial / str(digit)).mkdir(parents=True)
    for index, (image, digit) in enumerate(zip(pixels, labels, strict=True)):
        Image.fromarray(image).save(partial / str(digit) / f"{index:05d}.png")
    partial.replace(folder)
