"""Claims: groups, intervals and references say the right thing where images repeat, copy, or are all alike.

Simulated vectors with known answers, scikit-learn's digits, and CIFAR-10 files of ../shared/data.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sklearn.datasets import load_digits

from benchmarks.common import checked, python
from benchmarks.validity_manifold import analysed, embedded, scored, shared
from synthscale import parse_config
from synthscale.config import Config
from synthscale.embed.encoder_reader import load_encoder, spec_of

Matrix = NDArray[np.float64]
_EXACT = "closed form"


def claims(full: bool) -> Iterator[dict[str, object]]:
    """Yield the claims; ``full`` takes more draws of the held-out digits."""
    yield from _chain_told_apart()
    yield _repeated_file()
    yield from _one_image_repeated()
    yield _chain_from_a_copy()
    yield from _references(20 if full else 4)
    yield _null_case()
    yield from _mirrored()


def _chain_told_apart() -> Iterator[dict[str, object]]:
    """A set whose rows are one chain of near-duplicates, far from all real rows."""
    rng = np.random.default_rng(0)
    real = rng.normal(size=(500, 16))
    steps = rng.normal(size=(500, 16))
    chain = 30 + np.cumsum(0.6 * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)
    block = scored(real, chain)
    auc, precision = block["classifier"]["auc"], block["metrics"]["precision"]
    yield checked("chain, told apart: lower end of the AUC", auc["low"], 0.9, "higher", "1: they are far apart")
    p_value = block["classifier"]["p_value"]["value"]
    yield checked("chain, told apart: p-value", p_value, 0.001, "lower", "0: they are far apart")
    yield checked("chain: upper end of precision", precision["high"], 0.1, "lower", "0: no row is near a real one")


def _repeated_file() -> dict[str, object]:
    """PNG against JPEG of the same data set, one JPEG 400 times among 500."""
    top = shared() / "cifar10"
    with tempfile.TemporaryDirectory(prefix="synthscale-validity-") as folder:
        real, fake = Path(folder, "real"), Path(folder, "fake")
        for target, source, count in ((real, "real_png_1600", 500), (fake, "real_jpeg_1000", 100)):
            target.mkdir()
            for path in sorted(top.joinpath(source).rglob("*.[pj][np]g"))[:count]:
                shutil.copy(path, target / path.name)
        repeated = min(fake.iterdir())
        for i in range(400):
            shutil.copy(repeated, fake / f"copy_{i:03d}.jpg")
        options = ("--real", str(real), "--synthetic", f"fake={fake}", "--output", f"{folder}/run")
        python("-m", "synthscale.cli", "score", *options)
        block = json.loads(Path(folder, "run", "metrics.json").read_text())["generators"]["fake"]
    low = block["confounders"]["auc"]["low"]
    warned = any("file" in warning for warning in block["warnings"])
    text = "one JPEG repeated 400 of 500 times against PNG: lower end of the confounders' AUC"
    return checked(text, low, 0.9, "higher", "1: the formats differ", is_warned=warned)


def _one_image_repeated() -> Iterator[dict[str, object]]:
    rng = np.random.default_rng(0)
    real, novel = rng.normal(size=(500, 16)), rng.normal(size=(100, 16))
    for name, image, freshness, diversity in (
        ("a real one", real[:1], 0.2, 1.0),
        ("a novel one", rng.normal(size=(1, 16)), 1.0, 0.2),
    ):
        metrics = scored(real, np.concatenate([novel, np.repeat(image, 400, axis=0)]))["metrics"]
        expected = {"freshness": freshness, "diversity": diversity, "unique_share": 101 / 500}
        apart = max(abs(metrics[metric]["value"] - value) for metric, value in expected.items())
        text = f"{name} repeated 400 of 500 times: freshness, diversity, unique_share"
        yield checked(text, apart, 1e-9, "lower", _EXACT, expected=expected)


def _chain_from_a_copy() -> dict[str, object]:
    """s1 .. s9, each near the next, s1 alone near a real row; 91 other rows."""
    rng = np.random.default_rng(0)
    real, others = rng.normal(size=(500, 16)), 20 + 5 * rng.normal(size=(91, 16))
    # The radius is about 0.13 x 5 (half squared): steps of 0.9 are within it, steps of 1.8 are not.
    direction = np.zeros(16)
    direction[0] = 0.9
    chain = real[np.argmax(real[:, 0])] + np.arange(1, 10)[:, None] * direction
    metrics = scored(real, np.concatenate([chain, others]))["metrics"]
    expected = {"freshness": 0.99, "diversity": 0.92, "unique_share": 0.92}
    apart = max(abs(metrics[name]["value"] - value) for name, value in expected.items())
    text = "chain of nine from one copy, of 100: freshness, diversity, unique_share"
    return checked(text, apart, 1e-9, "lower", _EXACT, expected=expected)


def _references(draws: int) -> Iterator[dict[str, object]]:
    """Halves of the digits, where real images resemble one another."""
    digits = load_digits().data
    apart: dict[str, list[float]] = {}
    for seed in range(draws):
        order = np.random.default_rng(seed).permutation(len(digits))
        half = len(digits) // 2
        real, held_out = digits[order[:half]], digits[order[half : 2 * half]]
        metrics = scored(real, held_out)["metrics"]
        for name in ("diversity", "unique_share", "freshness", "precision", "coverage"):
            apart.setdefault(name, []).append(metrics[name]["value"] - metrics[name]["reference"])
    for name, gaps in apart.items():
        text = f"held-out digits: {name} minus its reference, mean of {draws} halves"
        yield checked(text, abs(float(np.mean(gaps))), 0.02, "lower", "0: they are real images")


def _null_case() -> dict[str, object]:
    """Equal sets where every image gets the same score: intervals still have a width."""
    rng = np.random.default_rng(0)
    config = parse_config({"classifier": {"strengths": [float("inf")]}})
    block = scored(*rng.normal(size=(2, 300, 16)), config)
    metrics = [block["metrics"]["fidelity"], block["metrics"]["representativeness"], block["classifier"]["auc"]]
    width = min(metric["high"] - metric["low"] for metric in metrics)
    return checked("all scores equal: narrowest interval of fidelity and AUC", width, 1e-3, "higher", "not 0")


def _mirrored() -> Iterator[dict[str, object]]:
    """Mirrored training images look fresh, and the self-test says so."""
    config = Config()
    files = sorted((shared() / "cifar10" / "real_png_1600").rglob("*.png"))[:400]
    with tempfile.TemporaryDirectory(prefix="synthscale-validity-") as folder:
        for path in files:
            with Image.open(path) as image:
                ImageOps.mirror(image).save(Path(folder, path.name))
        mirrored = embedded(Path(folder), config)
    real = embedded(shared() / "cifar10" / "real_png_1600", config)
    found = analysed({"real": real, "mirrored": mirrored}, spec_of(load_encoder(config)).layout)
    groups, synthetic = found.views[0].groups, len(real) + np.arange(len(mirrored))
    fresh = 1 - np.isin(synthetic, groups.row[groups.near_real]).mean()
    yield checked(
        "mirrored training images: freshness is blind to them", fresh, 0.9, "higher", "0 if they were seen"
    )
    yield _self_test_note(real, [path.read_bytes() for path in files[:32]], config)


def _self_test_note(real: NDArray[np.float32], images: list[bytes], config: Config) -> dict[str, object]:
    from synthscale.neighbors.self_test import run_self_test

    encoder = load_encoder(config)
    found = analysed({"real": real, "other": real[:5] + 1}, spec_of(encoder).layout)
    tested = run_self_test(images, real[: len(images)], encoder, found.spaces[0], 64)
    summary = tested.summary(found.views[0].radius)
    said = any("mirrored" in note for note in summary["notes"])
    share = summary["by_strong_edit"]["mirror"]
    return checked("the self-test says so (1: yes)", float(said), 1.0, "higher", "a note", mirrored_found=share)
