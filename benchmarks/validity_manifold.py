"""Claims: precision and coverage see broken generators, equal ``prdc``, and tables are compared by differences.

CIFAR-10 images of ../shared/data (`SYNTHSCALE_SHARED`) in the space of the built-in encoder, Gaussians with known
values, and tables in raw units from an honest sampler.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import checked
from synthscale import parse_config, score_features
from synthscale.config import Config, NeighborsConfig
from synthscale.embed.encoder_reader import load_encoder, spec_of
from synthscale.embed.image_reader import decode_all
from synthscale.in_memory.neighbors import Analysis, analyse_vectors
from synthscale.neighbors.copies import copies_from_pairs, equal_pairs, vector_keys
from synthscale.tables.layout import StoredFile, VectorLayout

Vectors = NDArray[np.float32]

CIFAR = {
    "edm_64": (0.81, 0.40),
    "ddpm_256": (0.82, 0.79),
    "infomaxgan_64": (0.84, 0.35),
    "dcgan_64": (0.28, 0.02),
    "ar_smoothing_64": (0.25, 0.04),
    "gan_poor_1000": (0.25, 0.04),
    "real_jpeg_1000": (0.42, 0.34),
}
"""Precision and coverage by set, from a script of its own (numpy, all pairs) on the same embeddings."""
HELD_OUT = (0.81, 0.97)
"""The same of the real images that are not in the real set."""
_FAST = parse_config({"classifier": {"head": "linear", "strengths": [0.01]}, "metrics": {"families": "manifold"}})


def shared() -> Path:
    """Return the folder of measurement data; raise FileNotFoundError if it is not there."""
    folder = Path(os.environ.get("SYNTHSCALE_SHARED", "../shared")) / "data"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: set SYNTHSCALE_SHARED to the folder of measurement data")
    return folder


def embedded(folder: Path, config: Config) -> Vectors:
    """Return the embeddings of a folder's images, in the order of their names."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in {".png", ".jpg", ".jpeg"})
    encoder = load_encoder(config)
    pixels, _ = decode_all([StoredFile(str(path)) for path in files], encoder.image_size, config)
    return encoder.encode(pixels)


def analysed(sets: dict[str, Vectors], layout: VectorLayout | None = None) -> Analysis:
    """Run the near-duplicate and manifold analysis of sets of vectors, ``real`` first."""
    vectors, rows, start = np.concatenate(list(sets.values())), {}, 0
    for name, own in sets.items():
        rows[name] = np.arange(start, start + len(own))
        start += len(own)
    copies = copies_from_pairs(equal_pairs(vector_keys(vectors[own], name), own) for name, own in rows.items())
    return analyse_vectors(vectors, rows, copies, NeighborsConfig(), counts=True, layout=layout)


def precision_and_coverage(found: Analysis, name: str) -> tuple[float, float]:
    """Return both metrics of one generator."""
    nearest = found.nearest[name]
    inside, covered = nearest.in_real_manifold[~nearest.is_real], nearest.covered[nearest.is_real]
    return float(inside.mean()), float(covered.mean())


def scored(real: NDArray[np.floating], synthetic: NDArray[np.floating], config: Config = _FAST) -> dict[str, Any]:
    """Return the block of metrics of two sets of rows."""
    kinds = ["real"] * len(real) + ["synthetic"] * len(synthetic)
    block: dict[str, Any] = score_features(np.concatenate([real, synthetic]), kinds, config=config).metrics[
        "synthetic"
    ]
    return block


def claims(full: bool) -> Iterator[dict[str, object]]:
    """Yield the claims; ``full`` makes ten times the draws."""
    yield from _cifar()
    yield _as_prdc()
    yield from _gaussians()
    yield _tables(40 if full else 4)


def _cifar() -> Iterator[dict[str, object]]:
    config = Config()
    top = shared() / "cifar10"
    real = embedded(top / "real_png_1600", config)
    order = np.random.default_rng(0).permutation(len(real))
    sets = {"real": real[order[:800]], "held_out": real[order[800:]]}
    sets |= {name: embedded(top / name, config) for name in CIFAR}
    found = analysed(sets, spec_of(load_encoder(config)).layout)
    for name, expected in {"held_out": HELD_OUT, **CIFAR}.items():
        values = precision_and_coverage(found, name)
        apart = max(abs(value - wanted) for value, wanted in zip(values, expected, strict=True))
        precision, coverage = (round(value, 3) for value in values)
        yield checked(
            f"CIFAR-10, {name}: precision and coverage, largest difference",
            apart,
            0.05,
            "lower",
            "all pairs in numpy, standardized embeddings",
            precision=precision,
            coverage=coverage,
            expected=expected,
        )


def _as_prdc() -> dict[str, object]:
    from prdc import compute_prdc

    rng = np.random.default_rng(0)
    real, synthetic = (rng.normal(size=(600, 32)).astype(np.float32) * np.arange(1, 33) + 5 for _ in range(2))
    synthetic = (synthetic * 0.8 + 3).astype(np.float32)
    nearest = analysed({"real": real, "synthetic": synthetic}).nearest["synthetic"]
    is_real = nearest.is_real
    ours = {
        "precision": nearest.in_real_manifold[~is_real].mean(),
        "coverage": nearest.covered[is_real].mean(),
        "recall": (nearest.in_synthetic_manifold[is_real] > 0).mean(),
        "density": nearest.real_radii_containing[~is_real].mean() / 5,
    }
    theirs = compute_prdc(real, synthetic, nearest_k=5)
    apart = max(abs(float(value) - float(theirs[name])) for name, value in ours.items())
    return checked("vectors: precision, coverage, recall, density against prdc", apart, 0.0, "lower", "prdc")


def _gaussians() -> Iterator[dict[str, object]]:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(600, 16))
    cases = {
        "the same": (rng.normal(size=(600, 16)), (0.895, 0.978, 0.872)),
        "N(0, 0.3^2 I)": (0.3 * rng.normal(size=(600, 16)), (1.0, 0.888, 0.0)),
        "N(1, I)": (1 + rng.normal(size=(600, 16)), (0.285, 0.217, None)),
        "N(3, I)": (3 + rng.normal(size=(600, 16)), (0.0, 0.0, 0.0)),
        "N(10, I)": (10 + rng.normal(size=(600, 16)), (0.0, 0.0, 0.0)),
    }
    for name, (synthetic, expected) in cases.items():
        block = scored(real, synthetic)
        metrics = block["metrics"] | block["families"]["manifold"]
        values = [metrics[metric]["value"] for metric in ("precision", "coverage", "recall")]
        apart = max(abs(v - e) for v, e in zip(values, expected, strict=True) if e is not None)
        peer = "one draw in numpy, all pairs"
        text = f"N(0, I_16) against {name}: precision, coverage, recall"
        yield checked(text, apart, 0.05, "lower", peer, values=values, expected=expected)
        if name in {"N(3, I)", "N(10, I)"}:
            worst = max(1 - metrics["diversity"]["value"], metrics["fidelity"]["value"])
            yield checked(f"{name}: 1 - diversity, and fidelity", worst, 0.01, "lower", "0: all rows differ")


def _tables(draws: int) -> dict[str, object]:
    rng = np.random.default_rng(1)
    values = [scored(_table(rng), _table(rng))["metrics"]["freshness"]["value"] for _ in range(draws)]
    text = "tables of five columns in raw units, honest sampler: lowest freshness"
    return checked(text, min(values), 0.96, "higher", "1: no row is a copy", draws=draws)


def _table(rng: np.random.Generator, n: int = 600) -> NDArray[np.float64]:
    age, height = rng.normal(40, 12, n), rng.normal(170, 9, n)
    income = np.exp(rng.normal(10.5, 0.6, n))
    return np.stack([age, income, height + 0.05 * age, income * rng.beta(2, 5, n), rng.gamma(3, 100, n)], axis=1)
