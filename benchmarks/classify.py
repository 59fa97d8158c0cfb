"""The k-fold classifier: its solver against scikit-learn's, its growth, its stage, and how honest its p-value is.

``python -m benchmarks.classify`` takes about two minutes on two cores, with 50,000 rows; ``--full`` takes half an
hour: 200,000 x 512 against scikit-learn, three interleaved runs of each, and 800,000 rows.

Vectors have a power-law spectrum (standard deviations i^-0.5) and a shift of the mean along it, as embeddings of a
middling generator have: out-of-fold AUC about 0.8. CPU time is that of this process, on one thread.
"""

import argparse
import math
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from benchmarks.common import claim, write_images
from synthscale import Config, score_features
from synthscale.classify.fit_context import FitContext
from synthscale.classify.fold_views import FeatureBlock, FoldView
from synthscale.classify.logistic import LogisticFit, fit_logistic_heads
from synthscale.config import parse_config
from synthscale.tables.id_hashes import mix
from synthscale.tables.schemas import REAL

STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FOLDS = 5
Features = NDArray[np.float32]


def cpu_s() -> float:
    """CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def timed(work: Callable[[], object]) -> float:
    start = cpu_s()
    work()
    return cpu_s() - start


def features(n: int, d: int, seed: int = 0) -> tuple[Features, NDArray[np.bool_], NDArray[np.int8]]:
    """Features (n, d), which rows are synthetic, and folds; rows have a norm of about 1."""
    rng = np.random.default_rng(seed)
    spectrum = (np.arange(1, d + 1) ** -0.5).astype(np.float32)
    shift = rng.standard_normal(d, np.float32) * spectrum * np.float32(1.2 / math.sqrt(d))
    synthetic = rng.permutation(n) < n // 2
    x = rng.standard_normal((n, d), np.float32)
    x *= spectrum / np.float32(math.sqrt(float(np.square(spectrum).sum())))
    x[synthetic] += shift / np.float32(math.sqrt(float(np.square(spectrum).sum())))
    # Heavier tails and unequal spreads, as real features have.
    x *= rng.gamma(4.0, 0.25, (n, 1)).astype(np.float32)
    return x, synthetic, rng.integers(0, FOLDS, n).astype(np.int8)


def ours(x: Features, synthetic: NDArray[np.bool_], fold: NDArray[np.int8]) -> LogisticFit:
    """Fit all folds and strengths, and choose."""
    key = mix(np.arange(len(x), dtype=np.uint64), 1)
    blocks = [
        FeatureBlock(name, torch.from_numpy(x[own]), torch.from_numpy(fold[own][:, None]), key[own])
        for name, own in ((REAL, ~synthetic), ("fake", synthetic))
    ]
    return fit_logistic_heads(
        [FoldView("fake", 0, FOLDS)], STRENGTHS, lambda: blocks, balanced=True, workers=FitContext()
    )["fake"]


def of_scikit_learn(
    x: NDArray[np.float64], synthetic: NDArray[np.bool_], fold: NDArray[np.int8]
) -> dict[float, float]:
    """Balanced out-of-fold log-loss at each strength, one ``cross_val_predict`` after another."""
    weight = np.where(synthetic, 0.5 / synthetic.mean(), 0.5 / (~synthetic).mean())
    losses = {}
    for strength in STRENGTHS:
        # Our loss is a mean over the training rows, scikit-learn's a sum.
        rows = len(x) * (FOLDS - 1) / FOLDS
        model = LogisticRegression(C=1 / (strength * rows), class_weight="balanced", max_iter=1000)
        p = cross_val_predict(model, x, synthetic, cv=PredefinedSplit(fold), method="predict_proba")[:, 1]
        losses[strength] = log_loss(synthetic, p, sample_weight=weight)
    return losses


def against_scikit_learn(n: int, d: int, repeats: int) -> None:
    """Race the solvers over the same grid on the same matrix."""
    x, synthetic, fold = features(n, d)
    wide = x.astype(np.float64)
    times: dict[str, list[float]] = {"ours": [], "scikit-learn": []}
    fits, losses = [], []
    for _ in range(repeats):
        times["ours"].append(timed(lambda: fits.append(ours(x, synthetic, fold))))
        times["scikit-learn"].append(timed(lambda: losses.append(of_scikit_learn(wide, synthetic, fold))))
    median = {name: statistics.median(values) for name, values in times.items()}
    fit, peer = fits[0], losses[0]
    best = min(peer, key=lambda strength: peer[strength])
    detail = {
        "cpu_s": {name: [round(v, 1) for v in values] for name, values in times.items()},
        "passes": fit.passes,
        "strength": fit.strength,
        "strength_of_peer": best,
        "log_loss": {str(s): round(loss, 6) for s, loss in fit.log_loss.items()},
    }
    what = f"{n:,} x {d}, {len(STRENGTHS)} strengths x {FOLDS} folds"
    peer_name = "scikit-learn cross_val_predict(LogisticRegression), every strength"
    claim(
        f"{what}: solver CPU time, scikit-learn's over ours",
        median["scikit-learn"] / median["ours"],
        5.0,
        "higher",
        peer_name,
        **detail,
    )
    gap = max(fit.log_loss[s] - peer[s] for s in STRENGTHS)
    claim(
        f"{what}: out-of-fold log-loss above scikit-learn's, at the worst strength", gap, 1e-4, "lower", peer_name
    )


def growth(n: int, d: int, repeats: int) -> None:
    """Compare CPU time at n and at 4 n rows."""
    times: dict[int, list[float]] = {n: [], 4 * n: []}
    for _ in range(repeats):
        for rows in times:
            data = features(rows, d)
            times[rows].append(timed(lambda data=data: ours(*data)))
            del data
    median = {rows: statistics.median(values) for rows, values in times.items()}
    claim(
        f"linear head, {n:,} -> {4 * n:,} x {d}: growth of the solver's CPU time",
        median[4 * n] / median[n],
        4.5,
        "lower",
        "linear growth, 4",
        cpu_s={str(rows): round(value, 1) for rows, value in median.items()},
    )


def small_stage(repeats: int) -> None:
    """Time the classify stage of 402 images, kernel head and file facts, once Ray is up."""
    from synthscale.pipeline import score
    from synthscale.storage.run_directory import RunDirectory

    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "real", 200, 64, 0)
        write_images(Path(folder) / "fake", 202, 64, 1)
        for i in range(repeats):
            output = str(Path(folder) / f"run-{i}")
            synthetic = {"fake": f"{folder}/fake"}
            config = parse_config({"real": f"{folder}/real", "synthetic": synthetic, "output": output})
            score(config)
            seconds.append(RunDirectory.existing(output, config.storage).completed("classify").seconds)
    claim(
        "classify stage, 402 images, kernel head, 7 strengths, and file facts: seconds beside Ray's start",
        statistics.median(seconds),
        1.0,
        "lower",
        "the limit that the design sets",
        seconds=[round(value, 2) for value in seconds],
    )


def on_a_gpu(n: int, d: int) -> None:
    """Compare the solver on one GPU with the bare matrix products of its passes."""
    if not torch.cuda.is_available():
        print("no GPU here: the race on one is left out", file=sys.stderr)
        return
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn((n, d), generator=generator, device="cuda") / math.sqrt(d)
    x[n // 2 :] += 0.5 / d
    fold = torch.randint(0, FOLDS, (n, 1), generator=generator, device="cuda", dtype=torch.int8)
    key = mix(np.arange(n, dtype=np.uint64), 1)
    halves = ((REAL, slice(0, n // 2)), ("fake", slice(n // 2, n)))
    blocks = [FeatureBlock(name, x[half], fold[half], key[half]) for name, half in halves]
    workers = FitContext(device="cuda")
    times: dict[str, list[float]] = {"solver": [], "products": []}
    for _ in range(3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.device("cuda"):
            fit = fit_logistic_heads(
                [FoldView("fake", 0, FOLDS)], STRENGTHS, lambda: blocks, balanced=True, workers=workers
            )
        torch.cuda.synchronize()
        times["solver"].append(time.perf_counter() - start)
        points = torch.randn((d, FOLDS * len(STRENGTHS)), device="cuda", dtype=torch.float64)
        start = time.perf_counter()
        for _ in range(fit["fake"].passes):
            for part in torch.split(x, 1 << 17):
                wide = part.double()
                wide.T @ (wide @ points)
        torch.cuda.synchronize()
        times["products"].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in times.items()}
    claim(
        f"one GPU, {n:,} x {d}: seconds of the solver over those of its passes' bare products",
        median["solver"] / median["products"],
        2.0,
        "lower",
        f"torch.matmul in float64, {fit['fake'].passes} passes, on {torch.cuda.get_device_name()}",
        seconds={name: [round(v, 2) for v in values] for name, values in times.items()},
    )


def honest_p_value(runs: int) -> None:
    """Count how often equal sets are called different at the 5 % level, and how often different ones are found."""
    found = {0.0: 0, 0.15: 0}
    for shift in found:
        for seed in range(runs):
            rng = np.random.default_rng(seed)
            x = rng.normal(size=(400, 16)) + shift * (np.arange(400)[:, None] >= 200)
            kinds = ["real"] * 200 + ["synthetic"] * 200
            block = score_features(x, kinds, config=Config()).metrics["synthetic"]["classifier"]
            found[shift] += block["p_value"]["value"] < 0.05
    claim(
        f"two-sample test, 200 + 200 rows of one distribution, {runs} data sets: share with p < 0.05",
        found[0.0] / runs,
        0.05 + 2 * math.sqrt(0.05 * 0.95 / runs),
        "lower",
        "the level of the test, and two standard errors",
        power_at_a_shift_of_0_15=found[0.15] / runs,
        bayes_auc_there=round(float(_bayes_auc(0.15, 16)), 3),
    )


def _bayes_auc(shift: float, d: int) -> float:
    draws = np.random.default_rng(0).normal(size=200_000)
    return float((draws * math.sqrt(2) < shift * math.sqrt(d)).mean())


def heads(n: int) -> None:
    """Compare the three heads' out-of-fold log-loss where the difference is a product of features."""
    from synthscale.classify.classifier import fit_classifier
    from synthscale.classify.training import TrainingData, VectorBlock, bandwidth_sample, plan_folds
    from synthscale.config import ClassifierConfig

    rng = np.random.default_rng(0)
    x = rng.normal(size=(2 * n, 32)).astype(np.float32)
    # Real rows: neighbours in a ring of features agree in sign more often than not.
    flip = rng.random((n, 16)) < 0.25
    x[:n, 1::2] = np.abs(x[:n, 1::2]) * np.sign(x[:n, ::2]) * np.where(flip, -1, 1)
    is_real = np.arange(2 * n) < n
    keys = mix(np.arange(2 * n, dtype=np.uint64), 5)
    none = np.zeros(2 * n, np.bool_)
    result = {}
    for head in ("linear", "kernel", "mlp"):
        settings = ClassifierConfig(head=head)  # type: ignore[arg-type]
        empty = np.empty(0, np.int64)
        plan = plan_folds(np.arange(2 * n), keys, is_real, none, (empty, empty), settings)
        blocks = [
            VectorBlock(name, x[own], plan.fold[own], keys[own], none[own])
            for name, own in ((REAL, is_real), ("fake", ~is_real))
        ]
        training = TrainingData(
            plan.views("fake"),
            32,
            lambda name, blocks=blocks: [b for b in blocks if name in (None, b.name)],
            bandwidth_sample(plan),
            {REAL: n, "fake": n},
        )
        start = cpu_s()
        model, _ = fit_classifier(training, settings)
        p = expit(model.logits("fake", model.feature_map(torch.from_numpy(x)), plan.fold).mean(1))
        result[head] = {"log_loss": round(log_loss(~is_real, p), 4), "cpu_s": round(cpu_s() - start, 1)}
    claim(
        f"{n:,} + {n:,} x 32, sets that differ in which features agree: log-loss of mlp over the best other's",
        result["mlp"]["log_loss"] / min(result["linear"]["log_loss"], result["kernel"]["log_loss"]),
        1.0,
        "lower",
        "heads linear and kernel",
        **result,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--full", action="store_true", help="half an hour: 200,000 rows, three runs, growth to 800,000"
    )
    parser.add_argument(
        "--only", choices=("solver", "growth", "stage", "gpu", "test", "heads"), help="one of the races"
    )
    chosen = parser.parse_args()
    if "OMP_NUM_THREADS" not in os.environ:
        # As in Ray's workers; BLAS threads that wait for each other would count as CPU time, ours and the peer's.
        command = [sys.executable, "-m", "benchmarks.classify", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "OMP_NUM_THREADS": "1"})
    races: dict[str, Callable[[], None]] = {
        "solver": lambda: against_scikit_learn(*((200_000, 512, 3) if chosen.full else (50_000, 256, 1))),
        "growth": lambda: growth(*((200_000, 512, 3) if chosen.full else (50_000, 256, 1))),
        "stage": lambda: small_stage(3),
        "test": lambda: honest_p_value(400 if chosen.full else 50),
        "gpu": lambda: on_a_gpu(2_000_000, 768),
        "heads": lambda: heads(50_000 if chosen.full else 5_000),
    }
    for name, race in races.items():
        if chosen.only in (None, name):
            race()


if __name__ == "__main__":
    main()
