"""Claims: KID is that of all pairs of rows, copies included, and a sample of repeats is as large as any.

Sets have 32 dimensions with a spectrum that falls as i^-0.5, scored with `score_features`, so near-duplicate
groups are those of the search. The peer is torch-fidelity's estimator, re-stated: random subsets of rows, the
unbiased MMD^2 with (x.y / d + 1)^3.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import checked
from synthscale import parse_config, score_features
from synthscale.metrics import embedding_families
from synthscale.metrics.embedding_families import VectorRows, VectorSums, kernel_family
from synthscale.tables.id_hashes import hash_ids

Matrix = NDArray[np.float64]
DIMENSIONS = 32
SPREAD = np.arange(1, DIMENSIONS + 1) ** -0.5 * 3
_CONFIG = parse_config({"metrics": {"families": "kernel"}, "classifier": {"head": "linear", "strengths": [0.01]}})


def _normal(rng: np.random.Generator, n: int) -> Matrix:
    return rng.normal(size=(n, DIMENSIONS)) * SPREAD


def _jitter(rng: np.random.Generator, n: int) -> Matrix:
    return 0.05 * SPREAD * rng.normal(size=(n, DIMENSIONS))


def _copying(rng: np.random.Generator, real: Matrix, m: int) -> Matrix:
    return real[rng.permutation(np.arange(m) % len(real))] + _jitter(rng, m)


def _half_copying(rng: np.random.Generator, real: Matrix, m: int) -> Matrix:
    return np.concatenate([_normal(rng, m - m // 2), _copying(rng, real, m // 2)])


def _collapsed(rng: np.random.Generator, _: Matrix, m: int) -> Matrix:
    return _normal(rng, 40)[rng.integers(0, 40, m)] + _jitter(rng, m)


def _equal(rng: np.random.Generator, _: Matrix, m: int) -> Matrix:
    return _normal(rng, m)


def _shifted(rng: np.random.Generator, _: Matrix, m: int) -> Matrix:
    return _normal(rng, m) + 0.3


GENERATORS: dict[str, Callable[[np.random.Generator, Matrix, int], Matrix]] = {
    "equal": _equal,
    "shifted": _shifted,
    "copies every real image": _copying,
    "copies real images in half of its own": _half_copying,
    "repeats 40 images": _collapsed,
}
SIZES = ((1000, 1000), (64, 800), (1000, 200))


def claims(full: bool) -> Iterator[dict[str, object]]:
    """Yield the claims; ``full`` has 200 data sets for the coverage instead of 10, and five seeds elsewhere."""
    yield from _as_all_pairs(5 if full else 1)
    yield from _closed_form(20_000 if full else 5000)
    yield _interval_coverage(200 if full else 10)
    yield from _sampled(20 if full else 5)


def polynomial_mmd(x: Matrix, y: Matrix) -> float:
    """The unbiased estimator of the squared MMD over all pairs of rows."""
    sums = []
    for a, b in ((x, x), (y, y), (x, y)):
        kernel = (a @ b.T / a.shape[1] + 1) ** 3
        pairs = kernel.size if a is not b else len(a) * (len(a) - 1)
        sums.append(float(kernel.sum() - (np.trace(kernel) if a is b else 0.0)) / pairs)
    return sums[0] + sums[1] - 2 * sums[2]


def _data(name: str, sizes: tuple[int, int], seed: int) -> tuple[Matrix, Matrix]:
    rng = np.random.default_rng([*sizes, seed])
    real = _normal(rng, sizes[0])
    # In float32, as vectors are stored.
    return tuple(x.astype(np.float32).astype(np.float64) for x in (real, GENERATORS[name](rng, real, sizes[1])))  # type: ignore[return-value]


def _scored(real: Matrix, synthetic: Matrix, seed: int) -> dict[str, Any]:
    """Return the block ``families`` of the generator."""
    x = np.concatenate([real, synthetic])
    kinds = ["real"] * len(real) + ["synthetic"] * len(synthetic)
    ids = [f"{seed}/{i}" for i in range(len(x))]
    found = score_features(x.astype(np.float32), kinds, ids=ids, config=_CONFIG)
    families: dict[str, Any] = found.metrics["synthetic"]["families"]
    return families


def _as_all_pairs(seeds: int) -> Iterator[dict[str, object]]:
    peer = "torch-fidelity's KID (random subsets of half of the smaller set)"
    for name in GENERATORS:
        apart, detail = 0.0, {}
        for sizes in SIZES:
            for seed in range(seeds):
                real, synthetic = _data(name, sizes, seed)
                value = _scored(real, synthetic, seed)["kernel"]["kid"]["value"]
                truth = polynomial_mmd(real, synthetic)
                apart = max(apart, abs(value - truth))
            rng = np.random.default_rng(0)
            size = min(sizes) // 2
            subsets = [
                polynomial_mmd(
                    real[rng.choice(len(real), size, False)], synthetic[rng.choice(len(synthetic), size, False)]
                )
                for _ in range(30)
            ]
            detail[f"{sizes[0]} + {sizes[1]}"] = {
                "kid": round(value, 4),
                "all_pairs": round(truth, 4),
                "subsets": round(float(np.mean(subsets)), 4),
            }
        yield checked(f"generator {name}: |KID - that of all pairs|", apart, 1e-6, "lower", peer, **detail)


def _closed_form(n: int) -> Iterator[dict[str, object]]:
    for shift, expected in ((0.3, 0.3001), (1.0, 7.142)):
        rng = np.random.default_rng(0)
        sets = rng.normal(size=(n, 64)), rng.normal(size=(n, 64)) + shift
        found = _of_rows(*sets, n)
        assert found.value is not None
        assert found.high is not None
        yield checked(
            f"N(0, I_64) against N({shift}, I_64), {n:,} rows each: |KID - closed form| over half the interval",
            abs(found.value - expected) / (found.high - found.value),
            1.0,
            "lower",
            f"{expected}",
            kid=round(found.value, 4),
        )


def _of_rows(real: Matrix, synthetic: Matrix, set_rows: int, group: NDArray[np.int64] | None = None) -> Any:
    """KID of rows in memory; ``group`` numbers the synthetic ones' groups."""
    sums = []
    for name, x in (("r", real), ("s", synthetic)):
        key = hash_ids(f"{name}/{i}" for i in range(len(x)))
        unit = key if group is None or name == "r" else hash_ids(f"g/{i}" for i in group.tolist())
        rows = VectorRows(x, key, unit[:, None], unit, [None] * len(x), np.zeros((len(x), 1), np.int8))
        sums.append(VectorSums.of(rows, set_rows, 1))
    return kernel_family(*sums, 0)["kid"]


def _interval_coverage(data_sets: int) -> dict[str, object]:
    held, means = {}, {}
    for name in GENERATORS:
        found = []
        for seed in range(data_sets):
            block = _scored(*_data(name, (400, 400), seed), seed)["kernel"]["kid"]
            found.append([block[end] for end in ("value", "low", "high")])
        value, low, high = np.array(found, float).T
        held[name] = round(100 * float(((low <= value.mean()) & (value.mean() <= high)).mean()), 1)
        means[name] = round(float(value.mean()), 4)
    return checked(
        "KID's intervals, 400 + 400: per cent that hold the mean over data sets, least of five generators",
        min(held.values()),
        # The nominal 95 less two standard errors, and one data set.
        round(95 - 200 * float(np.sqrt(0.05 * 0.95 / data_sets)) - 100 / data_sets, 1),
        "higher",
        "95 %",
        data_sets=data_sets,
        held=held,
        means=means,
    )


def _sampled(draws: int) -> Iterator[dict[str, object]]:
    """Claim that samples of a generator that repeats 40 images a thousand times are whole, and KID unbiased."""
    rng = np.random.default_rng(1)
    n = 2 * embedding_families.SAMPLE_ROWS
    real, images = _normal(rng, 2000), _normal(rng, 40)
    truth = polynomial_mmd(real, images)
    # All pairs of rows, of which most of one image are equal.
    kernel = (images @ images.T / DIMENSIONS + 1) ** 3
    within = float(kernel.mean()) - float(kernel.sum() - np.trace(kernel)) / (40 * 39)
    sizes, values = [], []
    for draw in range(draws):
        image = np.arange(n) % 40
        key = hash_ids(f"{draw}/{i}" for i in range(n))
        unit = hash_ids(f"{draw}/{i}" for i in range(40))[image]
        rows = VectorRows(images[image], key, unit[:, None], unit, [None] * n, np.zeros((n, 1), np.int8))
        # A share of 1 %: of whole groups, two draws in three were empty.
        sums = VectorSums.of(rows, 100 * embedding_families.SAMPLE_ROWS, 1)
        sizes.append(len(sums.sample.key))
        real_key = hash_ids(f"r/{i}" for i in range(2000))
        of_real = VectorRows(
            real, real_key, real_key[:, None], real_key, [None] * 2000, np.zeros((2000, 1), np.int8)
        )
        values.append(kernel_family(VectorSums.of(of_real, 2000, 1), sums, 0)["kid"].value or np.nan)
    yield checked(
        f"1 % of a generator of 40 images, {draws} draws: the smallest sample over the expected one",
        min(sizes) / (n / 100),
        0.7,
        "higher",
        "1",
        rows=sizes,
    )
    error = float(np.std(values, ddof=1) / np.sqrt(draws))
    yield checked(
        "the same: |mean KID - that of all rows| over its standard error",
        abs(float(np.mean(values)) - truth - within) / error,
        4.0,
        "lower",
        "0 up to 4",
        kid=round(float(np.mean(values)), 4),
        all_rows=round(truth + within, 4),
    )
