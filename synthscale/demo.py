"""The demo's data: real scanned digits and five synthetic sets of them, four with one known flaw each.

Reads scikit-learn's bundled 1,797 digits (8 x 8 pixels, ink levels 0..16; no download) and writes
``FOLDER/<set>/<digit>/<index:05d>.png``, where the sub-folder is the label and the index is the row in the set.
As the flaws are known, the sets are also the truth test of the metrics:

=============  =====================================================  ===============================
``kde``        kernel density estimate per digit: an honest sampler   none: the yardstick
``collapsed``  40 novel images of ``kde``, each repeated 45 times     repeats itself: low diversity
``memorised``  every real image, re-encoded and slightly disturbed    copies: low freshness
``blurry``     samples from 8 principal components of all digits      no detail: low precision
``missing``    the sampler of ``kde``, without the digits 5 to 9      a hole: low coverage by label
=============  =====================================================  ===============================

So that only the pictures can tell the sets apart, all have as many images as the real set, the same file type,
size, mode and bit depth, and the same 17 grey levels: samples of any other level would give themselves away by it.
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
"""Raise it when `make_sets` gives other pixels for the same seed, so that earlier copies are rewritten."""

SETS = ("real", "kde", "collapsed", "memorised", "blurry", "missing")
MARKER = ".synthscale-demo"
MAX_LEVEL = 16
SIDE_PX = 8
BLURRY_COMPONENTS = 8
PROTOTYPES_PER_DIGIT = 4
NUDGED_PIXELS = 3
JPEG_QUALITY = 90
BANDWIDTH = 0.75
"""In standard deviations of a digit's components. At 0.75 samples lie within the 5-neighbour radius of a real
image about as often as real images do; at 0.35 a tenth of them are near-duplicates of real images."""

Levels = NDArray[np.int64]
Labels = NDArray[np.int64]
Pixels = NDArray[np.uint8]


def make_sets(seed: int = 0) -> dict[str, tuple[Pixels, Labels]]:
    """Make the real set and the five synthetic ones; the same seed gives the same pixels.

    Each set has its own random stream, so that a change of one generator leaves the others as they were.

    Returns:
        For each of ``real, kde, collapsed, memorised, blurry, missing``: grey images, shape (1797, 8, 8), with
        values among the 17 of ``round(level * 255 / 16)``, and their digits, shape (1797,).
    """
    data = load_digits()
    real: Levels = data.data.astype(np.int64)
    labels: Labels = data.target.astype(np.int64)
    kde, collapsed, memorised, blurry, missing = (np.random.default_rng([seed, i]) for i in range(5))
    few = np.resize(labels[labels < 5], len(labels))
    order = memorised.permutation(len(real))
    levels = {
        "real": (real, labels),
        "kde": (_sample_kde(real, labels, labels, kde), labels),
        "collapsed": _collapse(real, labels, collapsed),
        "memorised": (_memorise(real[order], memorised), labels[order]),
        "blurry": (_sample_blurry(real, labels, blurry), labels),
        "missing": (_sample_kde(real, labels, few, missing), few),
    }
    return {name: (_to_pixels(of_set), digits) for name, (of_set, digits) in levels.items()}


def write_demo(folder: Path, seed: int = 0) -> None:
    """Write the sets of `make_sets` as PNG files below ``folder``; do nothing if a complete copy is there.

    A marker file, written last, makes the copy complete; it names the generator's version and the seed. What an
    interrupted call or another version left is replaced, each set's folder whole or not at all.

    Raises:
        InputError: a folder that would be replaced holds files that are not the demo's.
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
    """Draw one image for each digit in ``wanted`` from a Gaussian kernel density per digit.

    The kernel lives in the digit's own whitened PCA space (all components: dropping some would blur), so it has
    the shape of the digit's covariance; samples are shrunk so that they keep that covariance (the smoothed
    bootstrap of Silverman & Young 1987). A Gaussian knows nothing of empty paper, so each pixel's values are last
    replaced by the real ones of the same rank in that digit.
    """
    drawn = np.empty((len(wanted), real.shape[1]), dtype=np.int64)
    for digit in np.unique(wanted):
        of_digit, rows = real[labels == digit], np.flatnonzero(wanted == digit)
        mean, components, deviations = _principal_components(of_digit)
        whitened = (of_digit - mean) @ components.T / deviations
        centres = whitened[rng.integers(len(of_digit), size=len(rows))]
        moved = centres + BANDWIDTH * rng.standard_normal(centres.shape)
        samples = mean + moved / np.sqrt(1 + BANDWIDTH**2) * deviations @ components
        drawn[rows] = _match_ranks(samples, of_digit)
    return drawn


def _principal_components(
    rows: Levels,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean (D,), components (C, D) in falling order of variance, and their standard deviations (C,), all > 0."""
    mean = rows.mean(axis=0)
    _, singular, components = np.linalg.svd(rows - mean, full_matrices=False)
    kept = singular > 1e-9 * singular[0]
    return mean, components[kept], singular[kept] / np.sqrt(len(rows))


def _match_ranks(samples: NDArray[np.float64], reference: Levels) -> Levels:
    """Give each column of ``samples`` the distribution of that column in ``reference``, keeping the order."""
    ranks = samples.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    picked = (2 * ranks + 1) * len(reference) // (2 * len(samples))
    return np.take_along_axis(np.sort(reference, axis=0), picked, axis=0)


def _collapse(real: Levels, labels: Labels, rng: np.random.Generator) -> tuple[Levels, Labels]:
    """Repeat a few novel images of every digit to as many as are real, each time slightly jittered."""
    novel = _sample_kde(real, labels, labels, rng)
    prototypes = [np.flatnonzero(labels == digit)[:PROTOTYPES_PER_DIGIT] for digit in np.unique(labels)]
    rows = np.resize(np.concatenate(prototypes), len(real))
    return _nudge(novel[rows], rng), labels[rows]


def _memorise(real: Levels, rng: np.random.Generator) -> Levels:
    """Copy the real images through a JPEG encoder, then disturb a few pixels, as copies on the web are.

    At quality 90 about two pixels of an image come back at another level. At 95 none does: errors are below half
    a level and vanish when the 17 levels are restored. The nudge keeps copies from being exact.
    """
    decoded = np.stack([_through_jpeg(image) for image in _to_pixels(real)])
    levels = np.rint(decoded.reshape(len(real), -1) * (MAX_LEVEL / 255)).astype(np.int64)
    return _nudge(levels, rng)


def _through_jpeg(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    decoded: Pixels = np.asarray(Image.open(buffer))
    return decoded


def _nudge(levels: Levels, rng: np.random.Generator) -> Levels:
    """Move a few pixels of each image by one level up or down.

    Only pixels that are neither empty nor full move: ink where no real digit has any would mark the set as fake.
    """
    order = np.where((levels > 0) & (levels < MAX_LEVEL), rng.random(levels.shape), 1.0)
    chosen = order.argsort(axis=1)[:, :NUDGED_PIXELS]
    moved = np.take_along_axis(levels, chosen, axis=1) + rng.choice([-1, 1], size=chosen.shape)
    nudged = levels.copy()
    np.put_along_axis(nudged, chosen, moved, axis=1)
    return nudged


def _sample_blurry(real: Levels, labels: Labels, rng: np.random.Generator) -> Levels:
    """Draw from a Gaussian per digit in the space of the first few principal components of all digits.

    These are samples, not projections of real images, which would be copies as well as blurry. Fewer components
    would add a second flaw: samples so alike that they count as near-duplicates.
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
    """Ink levels (n, 64) as grey images (n, 8, 8) of 0..255."""
    pixels: Pixels = np.rint(levels * (255 / MAX_LEVEL)).astype(np.uint8)
    return pixels.reshape(-1, SIDE_PX, SIDE_PX)


def _refuse_foreign(folder: Path) -> None:
    """Refuse to replace a folder with anything in it that `write_demo` did not write."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if not re.fullmatch(r"\d(/\d{5}\.png)?", name):
            raise InputError(f"{path} is not one of the demo's files: give the demo a folder of its own")


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
