"""Claims: fidelity equals representativeness, whatever the sizes of the sets, the head and the difference.

Over all images a calibrated classifier makes them equal, as both classes have the same weight. Sets are
N(0, I_16) against N(shift, scale^2 I_16), scored with `score_features`.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.common import checked
from synthscale import parse_config, score_features
from synthscale.classify.calibration import fit_platt_scaling

DIMENSIONS = 16
TARGET = 0.01
SIZES = ((64, 1600), (1600, 64), (256, 1600), (64, 64))
MORE_SIZES = ((64, 256), (64, 1170), (800, 800), (1600, 256), (1600, 1600))
DIFFERENCES = ((0.0, 0.8), (0.25, 1.0), (0.6, 1.0))
MORE_DIFFERENCES = ((0.0, 1.0), (0.1, 1.0), (1.5, 1.0))


def claims(full: bool) -> Iterator[dict[str, object]]:
    """Yield the claims; ``full`` takes every head over the whole grid, three data sets a cell."""
    sizes = SIZES + MORE_SIZES if full else SIZES
    differences = DIFFERENCES + MORE_DIFFERENCES if full else DIFFERENCES
    grid = list(itertools.product(sizes, differences, range(3 if full else 1)))
    for head in ("linear", "kernel", "mlp"):
        # The slower heads get fewer cells, as their calibration is the same code.
        cells = grid if full else grid[:: {"linear": 1, "kernel": 2, "mlp": 4}[head]]
        gaps = {cell: _gap(*cell, {"head": head}) for cell in cells}
        worst = max(gaps, key=lambda cell: gaps[cell])
        yield checked(
            f"head {head}: largest |fidelity - representativeness|",
            gaps[worst],
            TARGET,
            "lower",
            "0, for a calibrated classifier",
            data_sets=len(cells),
            at={"sizes": worst[0], "shift": worst[1][0], "scale": worst[1][1], "seed": worst[2]},
        )
    gap = max(_gap((64, 1600), (0.25, 1.0), seed, {"repeats": 5}) for seed in range(10 if full else 1))
    yield checked("five fold assignments, 64 + 1,600: the same", gap, TARGET, "lower", "0")
    yield checked("matched subsample, 1,600 + 256 and 64: the same", _matched_gap(), TARGET, "lower", "0")
    yield _slopes_set_aside(1000 if full else 200)


def _draw(
    sizes: tuple[int, int], difference: tuple[float, float], seed: int
) -> tuple[np.ndarray, list[str], list[str]]:
    """Return vectors, whether each is real or synthetic, and ids."""
    shift, scale = difference
    rng = np.random.default_rng([*sizes, seed])
    sets = rng.normal(size=(sizes[0], DIMENSIONS)), rng.normal(size=(sizes[1], DIMENSIONS)) * scale + shift
    # Around a mean away from the origin, as the search for near-duplicates compares directions.
    x = (np.concatenate(sets) + 3).astype(np.float32)
    return x, ["real"] * sizes[0] + ["synthetic"] * sizes[1], [f"{seed}/{i}" for i in range(len(x))]


def _gap(sizes: tuple[int, int], difference: tuple[float, float], seed: int, classifier: dict[str, Any]) -> float:
    x, kinds, ids = _draw(sizes, difference, seed)
    config = parse_config({"classifier": classifier})
    return _difference(score_features(x, kinds, ids=ids, config=config).metrics["synthetic"]["metrics"])


def _difference(metrics: dict[str, Any]) -> float:
    return abs(float(metrics["fidelity"]["value"] - metrics["representativeness"]["value"]))


def _matched_gap() -> float:
    """Return the difference on a generator's subsample of the size of the smallest generator."""
    x, kinds, ids = _draw((1600, 256 + 64), (0.25, 1.0), 0)
    generator = ["large"] * (1600 + 256) + ["small"] * 64
    found = score_features(x, kinds, generator=generator, ids=ids).metrics
    return _difference(found["large"]["matched"]["metrics"])


def _slopes_set_aside(data_sets: int) -> dict[str, object]:
    """Claim the same of exact log-odds that are off centre, where the calibration often leaves slopes at 1."""
    rng = np.random.default_rng(0)
    gaps = []
    for _ in range(data_sets):
        x = rng.normal(size=256), rng.normal(size=1600) + 0.7
        logits = [(0.7 * own - 0.7**2 / 2 + 0.5)[:, None] for own in x]
        folds = [(rng.permutation(len(own)) % 5).astype(np.int8)[:, None] for own in x]
        blocks = [(i == 1, logits[i], folds[i]) for i in range(2)]
        calibration = fit_platt_scaling(blocks, 1, 5, lambda tensor: tensor)
        if not calibration.is_used:
            p = [0.5 * (1 + np.tanh(calibration(logits[i], folds[i]) / 2)).mean() for i in range(2)]
            gaps.append(abs(1 - float(p[1] + p[0])))
    return checked(
        "slopes set aside, 256 + 1,600: the same",
        # None set aside would leave the claim untested.
        max(gaps, default=1.0),
        TARGET,
        "lower",
        "0",
        data_sets=data_sets,
        set_aside=len(gaps),
    )
