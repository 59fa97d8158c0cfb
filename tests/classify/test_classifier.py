import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from synthscale.classify.classifier import fit_classifier
from synthscale.classify.features import BANDWIDTH_ROWS, FeatureMap
from synthscale.classify.fit_context import FitContext
from synthscale.classify.fold_views import FoldView
from synthscale.classify.folds import assign_folds
from synthscale.classify.logistic import LogisticFit
from synthscale.classify.model import FittedClassifier, out_of_fold_logits
from synthscale.classify.training import FoldPlan, TrainingData, VectorBlock, bandwidth_sample, plan_folds
from synthscale.config import ClassifierConfig
from synthscale.statistics.size_matching import RowHashes
from synthscale.tables.id_hashes import Hashes, hash_ids
from synthscale.tables.schemas import REAL
from tests.classify.trainings import (
    blocks_of,
    cut,
    normal,
    on_workers,
    one_cluster_each,
    shard_rows,
    take_rows,
)

Groups = tuple[NDArray[np.int64], NDArray[np.int64]]
Floats = NDArray[np.float64]
NO_GROUPS: Groups = (np.empty(0, np.int64), np.empty(0, np.int64))
LINEAR = ClassifierConfig(head="linear")
KERNEL = ClassifierConfig(head="kernel")
both_heads = pytest.mark.parametrize("settings", [LINEAR, KERNEL], ids=["linear", "kernel"])


@dataclass(frozen=True)
class Sets:
    """Vectors and copy flags of the real set and of generators, and the generators' fold plans."""

    vectors: dict[str, NDArray[np.floating]]
    is_copy: dict[str, NDArray[np.bool_]]
    plans: dict[str, FoldPlan]

    @classmethod
    def with_folds(
        cls,
        settings: ClassifierConfig,
        groups: Groups = NO_GROUPS,
        copies: dict[str, NDArray[np.bool_]] | None = None,
        **vectors: NDArray[np.floating],
    ) -> "Sets":
        """Assign folds; groups number rows in the order of the sets, real ones first."""
        start = np.cumsum([0, *map(len, vectors.values())])
        rows = {name: np.arange(start[i], start[i + 1]) for i, name in enumerate(vectors)}
        is_copy = {name: (copies or {}).get(name, np.zeros(len(x), np.bool_)) for name, x in vectors.items()}
        plans = {}
        for name in vectors:
            if name != REAL:
                view = np.concatenate([rows[REAL], rows[name]])
                keys = hash_ids([f"{s}/{i}" for s in (REAL, name) for i in range(len(vectors[s]))])
                inside = np.isin(groups[0], view)
                plans[name] = plan_folds(
                    view,
                    keys,
                    np.arange(len(view)) < len(rows[REAL]),
                    np.concatenate([is_copy[REAL], is_copy[name]]),
                    one_cluster_each(groups[0][inside], groups[1][inside]),
                    settings,
                )
        return cls(vectors, is_copy, plans)

    def without(self, *names: str) -> "Sets":
        kept = [name for name in self.vectors if name not in names]
        return Sets(
            {name: self.vectors[name] for name in kept},
            {name: self.is_copy[name] for name in kept},
            {name: plan for name, plan in self.plans.items() if name in kept},
        )

    @property
    def views(self) -> list[FoldView]:
        return [view for name, plan in self.plans.items() for view in plan.views(name)]

    def training(self, fourier_features: int = 512) -> TrainingData:
        """The rows of all sets that have a classifier."""
        classified = {view.generator for view in self.views}
        blocks = [self._block(name) for name in self.vectors if name == REAL or name in classified]
        first = next(iter(self.plans.values()))
        return TrainingData(
            self.views,
            blocks[0].vectors.shape[1],
            blocks_of(blocks),
            bandwidth_sample(first),
            {block.name: len(block.key) for block in blocks},
            fourier_features=fourier_features,
        )

    def _block(self, name: str) -> VectorBlock:
        x = self.vectors[name]
        fold = np.full((len(x), len(self.views)), -1, np.int8)
        for c, view in enumerate(self.views):
            plan = self.plans[view.generator]
            if name in (REAL, view.generator):
                fold[:, c] = plan.fold[plan.is_real == (name == REAL), view.repeat]
        return VectorBlock(name, x, fold, hash_ids(f"{name}/{i}" for i in range(len(x))), self.is_copy[name])

    def features(self, model: FittedClassifier, name: str = "fake") -> torch.Tensor:
        return model.feature_map(torch.from_numpy(np.concatenate([self.vectors[REAL], self.vectors[name]])))

    def probabilities(self, model: FittedClassifier, name: str = "fake") -> Floats:
        """Calibrated logits: (n, repeats)."""
        return expit(model.logits(name, self.features(model, name), self.plans[name].fold))

    def everything(self, model: FittedClassifier) -> dict[str, Floats]:
        return {name: self.probabilities(model, name) for name in model.heads}


@dataclass(frozen=True)
class Result:
    """One generator's out-of-fold logits."""

    sets: Sets
    model: FittedClassifier
    fit: LogisticFit

    @property
    def plan(self) -> FoldPlan:
        return self.sets.plans["fake"]

    @property
    def logit(self) -> Floats:
        return self.model.logits("fake", self.sets.features(self.model), self.plan.fold).mean(1)

    def fidelity(self, prior: float | Floats = 0.0) -> float:
        """1 - mean q over synthetic rows, after a prior is added to the logits."""
        return 1 - float(expit(self.logit + prior)[~self.plan.is_real].mean())

    def representativeness(self) -> float:
        return 1 - float(expit(-self.logit)[self.plan.is_real].mean())

    def auc(self) -> float:
        return float(roc_auc_score(~self.plan.is_real, self.logit))


def classify(
    real: NDArray[np.floating],
    synthetic: NDArray[np.floating],
    settings: ClassifierConfig = LINEAR,
    groups: Groups = NO_GROUPS,
    fourier_features: int = 512,
) -> Result:
    sets = Sets.with_folds(settings, groups, real=real.astype(np.float32), fake=synthetic.astype(np.float32))
    model, fits = fit_classifier(sets.training(fourier_features), settings)
    fit = fits["fake"]
    assert isinstance(fit, LogisticFit)
    return Result(sets, model, fit)


def assert_as_scikit_learn(result: Result) -> None:
    """Compare heads, before calibration, with LogisticRegression on the same features and folds."""
    features, y = result.sets.features(result.model), ~result.plan.is_real
    logits = out_of_fold_logits(result.model.heads["fake"], features, result.plan.fold)
    x, strength = features.numpy(), result.fit.strength
    for repeat, fold in enumerate(result.plan.fold.T):
        for f in np.unique(fold):
            training = fold != f
            model = LogisticRegression(
                C=1 / (strength * training.sum()), class_weight="balanced", tol=1e-9, max_iter=50_000
            )
            model.fit(x[training], y[training])
            difference = np.abs(expit(logits[~training, repeat]) - model.predict_proba(x[~training])[:, 1])
            assert difference.max() <= 1e-3
            assert difference.mean() <= 1e-4


@pytest.mark.parametrize("head", ["linear", "kernel"])
@pytest.mark.parametrize("fourier_features", [100, 512], ids=["fewer-features", "more-features-than-rows"])
@pytest.mark.parametrize("collapsed", [False, True], ids=["plain", "collapsed"])
def test_heads_on_the_features_agree_with_scikit_learn(head: str, fourier_features: int, collapsed: bool) -> None:
    real, synthetic = normal(0, 250), normal(1, 200, mean=0.3, variance=0.6)
    groups = NO_GROUPS
    if collapsed:
        # Half of the synthetic rows are one image, in one fold.
        synthetic[:100] = synthetic[0] + 1e-3 * synthetic[:100]
        groups = (np.arange(250, 350), np.full(100, 250))
    settings = ClassifierConfig(head=head, strengths=(1e-3,), repeats=2)  # type: ignore[arg-type]
    result = classify(real, synthetic, settings, groups, fourier_features)
    assert result.fit.converged
    assert_as_scikit_learn(result)


@both_heads
@pytest.mark.parametrize("sizes", [(60, 40), (12, 30)])
def test_fewer_rows_than_dimensions_agree_with_scikit_learn(
    settings: ClassifierConfig, sizes: tuple[int, int]
) -> None:
    result = classify(normal(22, sizes[0], 300), normal(23, sizes[1], 300, mean=0.1), settings)
    assert result.fit.converged
    strength = 1e-2
    alone = classify(
        *(result.sets.vectors[name] for name in (REAL, "fake")),
        settings.model_copy(update={"strengths": (strength,)}),
    )
    assert alone.model.heads["fake"][0].weights.shape[1] == alone.model.feature_map.dimensions  # type: ignore[attr-defined]
    assert_as_scikit_learn(alone)


@both_heads
def test_a_generator_of_fewer_groups_than_folds_agrees_with_scikit_learn(settings: ClassifierConfig) -> None:
    # Three images, repeated: there are only three groups, and so three folds.
    synthetic = normal(24, 3, mean=0.5)[np.arange(120) % 3] + 1e-3 * normal(25, 120)
    groups = (np.arange(150, 270), 150 + np.arange(120) % 3)
    settings = settings.model_copy(update={"strengths": (1e-3,)})
    result = classify(normal(26, 150), synthetic, settings, groups, 64)
    synthetic_folds = result.plan.fold[150:, 0]
    assert len(set(synthetic_folds.tolist())) == 3
    assert_as_scikit_learn(result)


@both_heads
def test_equal_distributions_have_an_auc_near_one_half(settings: ClassifierConfig) -> None:
    result = classify(normal(2, 2000), normal(3, 2000), settings)
    assert result.fidelity() == pytest.approx(0.5, abs=0.02)
    assert result.representativeness() == pytest.approx(0.5, abs=0.02)
    assert result.auc() == pytest.approx(0.5, abs=0.03)


@both_heads
@pytest.mark.parametrize(("n", "m"), [(2000, 200), pytest.param(200, 2000, marks=pytest.mark.slow)])
def test_unequal_sizes_do_not_move_fidelity_from_one_half(settings: ClassifierConfig, n: int, m: int) -> None:
    result = classify(normal(4, n), normal(5, m), settings)
    assert result.fidelity() == pytest.approx(0.5, abs=0.05)
    assert result.representativeness() == pytest.approx(0.5, abs=0.05)


@both_heads
@pytest.mark.parametrize(("n", "m"), [(64, 1600), (1600, 64), (256, 1600)])
def test_fidelity_equals_representativeness_whatever_the_sizes(settings: ClassifierConfig, n: int, m: int) -> None:
    # A ridge penalty on the calibration's offset left a difference of up to 0.06 here.
    for shift, variance in ((0.0, 0.64), (0.25, 1.0), (0.6, 1.0)):
        result = classify(normal(4, n), normal(5, m, mean=shift, variance=variance), settings)
        assert result.fidelity() == pytest.approx(result.representativeness(), abs=1e-3)


@pytest.mark.parametrize(
    ("n", "m"), [(2000, 200), *(pytest.param(*own, marks=pytest.mark.slow) for own in ((2000, 2000), (200, 2000)))]
)
@pytest.mark.parametrize("weight", ["balanced", "none"])
def test_a_known_shift_of_the_mean_gives_the_fidelity_of_its_closed_form(n: int, m: int, weight: str) -> None:
    # N(0, I_16) against N(0.25, I_16): the Bayes classifier's fidelity and representativeness are 0.397. One draw
    # of 200 rows alone has a standard error of 0.012, hence the mean over several.
    settings = ClassifierConfig(head="linear", class_weight=weight)  # type: ignore[arg-type]
    results = [classify(normal(2 * s, n), normal(2 * s + 1, m, mean=0.25), settings) for s in range(100, 106)]
    assert np.mean([result.fidelity() for result in results]) == pytest.approx(0.397, abs=0.02)
    assert np.mean([result.representativeness() for result in results]) == pytest.approx(0.397, abs=0.02)


def test_only_the_kernel_head_detects_a_difference_of_spread() -> None:
    real, narrow = normal(8, 2000, 32), normal(9, 2000, 32, variance=0.5)
    kernel = classify(real, narrow, KERNEL)
    assert kernel.auc() > 0.94
    assert kernel.fidelity() < 0.25
    assert kernel.fit.converged
    linear = classify(real, narrow)
    assert linear.auc() == pytest.approx(0.5, abs=0.04)
    assert linear.fidelity() == pytest.approx(0.5, abs=0.02)


def test_weights_in_the_loss_and_odds_scaled_afterwards_agree() -> None:
    real, synthetic = normal(10, 2000), normal(11, 500, mean=0.2)
    balanced = classify(real, synthetic)
    scaled = classify(real, synthetic, ClassifierConfig(head="linear", class_weight="none"))
    assert np.abs(expit(balanced.logit) - expit(scaled.logit)).mean() < 0.02
    assert balanced.fidelity() == pytest.approx(scaled.fidelity(), abs=0.01)


@pytest.mark.parametrize("weight", ["balanced", "none"])
@pytest.mark.parametrize("m", [222, 2000, 6000])
def test_with_the_prior_back_in_the_odds_fidelity_is_one_minus_the_synthetic_share(weight: str, m: int) -> None:
    settings = ClassifierConfig(head="linear", class_weight=weight)  # type: ignore[arg-type]
    result = classify(normal(12, 2000), normal(13, m), settings)
    assert result.fidelity() == pytest.approx(0.5, abs=0.05)
    assert result.fidelity(result.plan.log_prior) == pytest.approx(2000 / (2000 + m), abs=0.02)


def repeated(seed: int, source: Floats, times: int) -> Floats:
    return np.repeat(source, times, axis=0) + 0.01 * np.random.default_rng(seed).normal(
        size=(times * len(source), source.shape[1])
    )


def test_repeated_images_do_not_leak_through_the_folds() -> None:
    real, synthetic = normal(14, 1000), repeated(0, normal(15, 250), 4)
    grouped = (np.arange(1000, 2000), 1000 + np.arange(1000) // 4 * 4)
    assert classify(real, synthetic, KERNEL, grouped).auc() < 0.54
    # The test has power: with rows assigned one by one, the copies are recognised.
    assert classify(real, synthetic, KERNEL).auc() > 0.56


@both_heads
def test_jittered_copies_of_real_images_look_no_better_than_real(settings: ClassifierConfig) -> None:
    real = normal(16, 800)
    copies = repeated(1, real, 1)
    grouped = (np.arange(1600), np.tile(np.arange(800), 2))
    result = classify(real, copies, settings, grouped)
    assert result.fidelity() == pytest.approx(0.5, abs=0.02)
    assert result.representativeness() == pytest.approx(0.5, abs=0.02)


def test_every_row_of_a_group_is_in_one_fold_of_each_repeat() -> None:
    rows, is_real = np.arange(10, 110), np.arange(100) % 2 == 0
    member = np.arange(10, 70)
    settings = ClassifierConfig(repeats=3)
    plan = plan_folds(
        rows,
        hash_ids(f"{i}" for i in range(100)),
        is_real,
        np.zeros(100, np.bool_),
        one_cluster_each(member, member // 6),
        settings,
    )
    assert plan.fold.shape == (100, 3)
    for fold in plan.fold.T:
        for group in np.unique(member // 6):
            assert len(set(fold[np.isin(rows, member[member // 6 == group])].tolist())) == 1
    assert plan.views("gan") == [FoldView("gan", repeat, 5) for repeat in range(3)]


def test_folds_depend_on_ids_and_not_on_row_numbers() -> None:
    rng = np.random.default_rng(0)
    ids, is_real = [f"file-{i}" for i in range(60)], np.arange(60) < 30
    group = np.arange(60) // 3
    move = rng.permutation(60)

    def repeat(order: NDArray[np.int64]) -> dict[str, list[int]]:
        # A group is numbered by its smallest row, so its number changes with the order too.
        own = group[order]
        named = np.array([np.flatnonzero(own == g).min() for g in own])
        keys = hash_ids(ids[i] for i in order)
        settings, none = ClassifierConfig(repeats=2), np.zeros(60, np.bool_)
        plan = plan_folds(
            np.arange(60), keys, is_real[order], none, one_cluster_each(np.arange(60), named), settings
        )
        return dict(zip([ids[i] for i in order], plan.fold.tolist(), strict=True))

    assert repeat(np.arange(60)) == repeat(move)


def test_repeat_i_is_the_fold_assignment_of_seed_plus_i() -> None:
    keys, is_real = hash_ids(f"{i}" for i in range(50)), np.arange(50) < 30
    settings = ClassifierConfig(repeats=4, seed=7)
    plan = plan_folds(np.arange(50), keys, is_real, np.zeros(50, np.bool_), one_cluster_each(*NO_GROUPS), settings)
    for repeat in range(4):
        alone = assign_folds(keys, is_real, 5, 7 + repeat)
        assert alone is not None
        np.testing.assert_array_equal(plan.fold[:, repeat], alone)
    assert len({fold.tobytes() for fold in plan.fold.T}) == 4


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_class_in_one_group_is_assigned_by_row(repeats: int) -> None:
    is_real, none = np.arange(40) < 20, np.zeros(40, np.bool_)
    everything = one_cluster_each(np.arange(40), np.zeros(40, np.int64))
    keys = hash_ids(map(str, range(40)))
    plan = plan_folds(np.arange(40), keys, is_real, none, everything, ClassifierConfig(repeats=repeats))
    assert plan.is_by_row
    assert plan.fold.shape == (40, repeats)
    for fold in plan.fold.T:
        assert all((is_real[fold != f]).any() and (~is_real[fold != f]).any() for f in np.unique(fold))
    # Intervals still see one cluster, and other fold assignments rows.
    assert len(set(plan.hashes.cluster.tolist())) == 1
    np.testing.assert_array_equal(plan.hashes.group, keys)


def test_whole_components_are_assigned_wherever_that_is_possible() -> None:
    is_real, none = np.arange(40) < 20, np.zeros(40, np.bool_)
    halves = one_cluster_each(np.arange(40), np.arange(40) % 2)
    plan = plan_folds(np.arange(40), hash_ids(map(str, range(40))), is_real, none, halves, ClassifierConfig())
    assert not plan.is_by_row
    assert all(len(set(plan.fold[np.arange(40) % 2 == half, 0])) == 1 for half in (0, 1))


def test_a_class_of_one_row_has_no_classifier() -> None:
    no_groups, none = one_cluster_each(*NO_GROUPS), np.zeros(4, np.bool_)
    plan = plan_folds(np.arange(4), hash_ids("abcd"), np.arange(4) < 1, none, no_groups, ClassifierConfig())
    assert plan.fold.shape == (4, 0)
    assert plan.views("gan") == []
    assert plan.log_prior.tolist() == [0, 0, 0, 0]


def test_the_prior_is_that_of_the_rows_outside_the_fold() -> None:
    is_real = np.arange(47) < 20
    plan = plan_folds(
        np.arange(47),
        hash_ids(f"{i}" for i in range(47)),
        is_real,
        np.zeros(47, np.bool_),
        one_cluster_each(np.arange(9), np.full(9, 3)),
        ClassifierConfig(repeats=2),
    )
    for row in range(47):
        odds = []
        for fold in plan.fold.T:
            outside = fold != fold[row]
            odds.append(np.log((outside & ~is_real).sum() / (outside & is_real).sum()))
        assert plan.log_prior[row] == pytest.approx(np.mean(odds))
    assert len(set(plan.log_prior.tolist())) > 1


TWO_REPEATS = ClassifierConfig(head="kernel", repeats=2, strengths=(1e-4, 1e-2, float("inf")))
"""Settings of the tests of what logits must not depend on."""


def two_generators(d: int = 16, scale: int = 1) -> Sets:
    """Real rows and two generators, with groups across sets; some rows are copies."""
    vectors = {
        REAL: normal(17, 75 * scale, d),
        "a": normal(18, 50 * scale, d, mean=0.2),
        "b": normal(19, 100 * scale, d, variance=3),
    }
    rng = np.random.default_rng(0)
    total = 225 * scale
    member = np.sort(rng.choice(total, total // 3, replace=False))
    copies = {REAL: np.arange(75 * scale) % 10 == 3}
    narrow = {name: x.astype(np.float32) for name, x in vectors.items()}
    return Sets.with_folds(TWO_REPEATS, (member, member % 37), copies, **narrow)


def assert_same(found: dict[str, Floats], expected: dict[str, Floats], atol: float = 1e-5) -> None:
    assert set(found) == set(expected)
    for name, p in expected.items():
        np.testing.assert_allclose(found[name], p, atol=atol, rtol=0)


def shuffled(training: TrainingData, seed: int) -> TrainingData:
    rng = np.random.default_rng(seed)
    blocks = [take_rows(block, rng.permutation(len(block.key))) for block in training.blocks(None)]
    return replace(training, blocks=blocks_of([blocks[i] for i in rng.permutation(len(blocks))]))


OTHERWISE: dict[str, Callable[[TrainingData], TrainingData]] = {
    "read-again": lambda training: replace(training, is_cached=False),
    "in-pieces": lambda training: cut(training, 7),
    "pieces-read-again": lambda training: replace(cut(training, 5), is_cached=False),
    "row-order": lambda training: shuffled(training, 0),
    "row-order-read-again": lambda training: replace(shuffled(cut(training, 3), 1), is_cached=False),
    "empty-blocks": lambda training: replace(
        training,
        blocks=blocks_of([part for b in training.blocks(None) for part in (take_rows(b, np.arange(0)), b)]),
    ),
}


@pytest.fixture(scope="module")
def wide() -> tuple[Sets, TrainingData, dict[str, Floats]]:
    """More rows than features: 900 of 16 + 48."""
    sets = two_generators(scale=4)
    training = sets.training(48)
    return sets, training, sets.everything(fit_classifier(training, TWO_REPEATS)[0])


@pytest.fixture(scope="module")
def thin() -> tuple[Sets, TrainingData, dict[str, Floats]]:
    """More features than rows: a single worker that caches them projects onto the span of the rows."""
    sets = two_generators(d=8)
    training = sets.training(256)
    return sets, training, sets.everything(fit_classifier(training, TWO_REPEATS)[0])


@pytest.mark.parametrize("shape", ["wide", "thin"])
@pytest.mark.parametrize("way", OTHERWISE)
def test_caching_and_order_of_rows_change_no_probability(
    way: str, shape: str, request: pytest.FixtureRequest
) -> None:
    sets, training, expected = request.getfixturevalue(shape)
    model, _ = fit_classifier(OTHERWISE[way](training), TWO_REPEATS)
    assert_same(sets.everything(model), expected)


@pytest.mark.parametrize("shape", ["wide", "thin"])
@pytest.mark.parametrize(
    ("workers", "is_cached"),
    [(2, False), (4, True), *(pytest.param(*own, marks=pytest.mark.slow) for own in ((2, True), (4, False)))],
)
def test_the_number_of_workers_changes_no_probability(
    workers: int, is_cached: bool, shape: str, request: pytest.FixtureRequest
) -> None:
    sets, training, expected = request.getfixturevalue(shape)
    shares = shard_rows(training, workers)
    # One worker has no rows at all.
    shares.append([take_rows(block, np.arange(0)) for block in training.blocks(None)] if is_cached else [])

    def work(rank: int, reduce_sum: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Floats]:
        own = replace(
            training,
            blocks=blocks_of(shares[rank]),
            is_cached=is_cached,
            workers=FitContext(reduce_sum, is_distributed=True),
        )
        return sets.everything(fit_classifier(own, TWO_REPEATS)[0])

    for found in on_workers(len(shares), work):
        assert_same(found, expected)


@pytest.mark.parametrize("shape", ["wide", "thin"])
def test_a_generators_probabilities_do_not_depend_on_another_generator(
    shape: str, request: pytest.FixtureRequest
) -> None:
    sets, training, expected = request.getfixturevalue(shape)
    for name, other in (("a", "b"), ("b", "a")):
        alone = sets.without(other)
        np.testing.assert_array_equal(alone.training().sample, training.sample)
        model, _ = fit_classifier(alone.training(training.fourier_features), TWO_REPEATS)
        assert_same(alone.everything(model), {name: expected[name]})


def test_a_generator_without_a_fold_assignment_does_not_change_the_others() -> None:
    # The second generator has one row.
    vectors = {
        REAL: normal(30, 100).astype(np.float32),
        "works": normal(31, 60, mean=0.4).astype(np.float32),
        "collapsed": normal(32, 1).astype(np.float32),
    }
    sets = Sets.with_folds(TWO_REPEATS, **vectors)
    assert sets.plans["collapsed"].views("collapsed") == []
    model, fits = fit_classifier(sets.training(32), TWO_REPEATS)
    assert set(fits) == set(model.heads) == {"works"}
    alone = sets.without("collapsed")
    expected, _ = fit_classifier(alone.training(32), TWO_REPEATS)
    assert_same(sets.everything(model), alone.everything(expected))


def test_repeats_share_a_strength_and_have_separate_heads() -> None:
    real, synthetic = normal(33, 200), normal(34, 150, mean=0.2)
    both = classify(real, synthetic, ClassifierConfig(head="linear", repeats=2, seed=3))
    assert len(both.model.heads["fake"]) == 2
    strengths = (both.fit.strength,)
    for repeat in range(2):
        settings = ClassifierConfig(head="linear", seed=3 + repeat, strengths=strengths)
        one = classify(real, synthetic, settings)
        np.testing.assert_array_equal(one.plan.fold[:, 0], both.plan.fold[:, repeat])
        features = one.sets.features(one.model)
        np.testing.assert_allclose(
            out_of_fold_logits(both.model.heads["fake"], features, both.plan.fold)[:, repeat],
            out_of_fold_logits(one.model.heads["fake"], features, one.plan.fold)[:, 0],
            atol=1e-5,
        )


def fitted_map(sets: Sets, settings: ClassifierConfig = KERNEL) -> FeatureMap:
    return fit_classifier(sets.training(16), settings.model_copy(update={"strengths": (1.0,)}))[0].feature_map


def test_standardisation_and_bandwidth_come_from_the_distinct_real_rows() -> None:
    distinct = normal(35, 100) * np.geomspace(0.1, 10, 16) + 5
    # Many copies of one row, and a distant generator: neither may affect the feature map.
    real = np.vstack([distinct, np.repeat(distinct[:1], 200, axis=0)]).astype(np.float32)
    copies = {REAL: np.arange(300) >= 100, "fake": np.arange(50) % 2 == 0}
    sets = Sets.with_folds(KERNEL, NO_GROUPS, copies, real=real, fake=100 * normal(36, 50).astype(np.float32))
    found = fitted_map(sets)
    wide = real[:100].astype(np.float64)
    np.testing.assert_allclose(found.mean, wide.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.scale, wide.std(axis=0), rtol=1e-12)
    plain = fitted_map(Sets.with_folds(KERNEL, real=real[:100], fake=normal(37, 80).astype(np.float32)))
    torch.testing.assert_close(found.frequencies, plain.frequencies, rtol=1e-12, atol=0)
    # Twice the distances halve the frequencies: they are in units of the median distance.
    z = (wide - wide.mean(axis=0)) / wide.std(axis=0)
    median = np.sort(pdist(z))[[2474, 2475]]
    drawn = np.random.default_rng(0).standard_normal((16, 16))
    bandwidth = float(np.median(drawn / found.frequencies.numpy()))
    assert median[0] - 1e-9 <= bandwidth <= median[1] + 1e-9


def test_the_bandwidth_of_many_rows_comes_from_a_sample_by_hash() -> None:
    n = 3 * BANDWIDTH_ROWS
    keys, is_real = hash_ids(f"{i}" for i in range(2 * n)), np.arange(2 * n) < n
    is_copy = np.arange(2 * n) % 3 == 1

    def sample(order: NDArray[np.int64]) -> Hashes:
        moved = Sets.with_folds(KERNEL, real=np.zeros((3, 1)), fake=np.zeros((3, 1))).plans["fake"]
        hashes = RowHashes(keys[order], keys[order], keys[order])
        return bandwidth_sample(
            replace(moved, row=order, is_real=is_real[order], hashes=hashes, is_copy=is_copy[order])
        )

    straight = sample(np.arange(2 * n))
    assert straight.shape == (BANDWIDTH_ROWS,)
    assert (np.diff(straight.astype(object)) > 0).all()
    assert sample(np.random.default_rng(0).permutation(2 * n)).tolist() == straight.tolist()
    # Neither copies nor other generators' rows are in it.
    distinct = np.flatnonzero(is_real & ~is_copy)
    assert sample(distinct).tolist() == straight.tolist()
    assert sample(np.concatenate([distinct, np.flatnonzero(~is_real)[:10]])).tolist() == straight.tolist()


def test_the_bandwidth_is_computed_from_the_sampled_rows_alone() -> None:
    real = normal(38, BANDWIDTH_ROWS + 400, 4).astype(np.float32)
    sets = Sets.with_folds(KERNEL, real=real, fake=normal(39, 20, 4).astype(np.float32))
    training = sets.training(8)
    found = fitted_map(sets).frequencies
    chosen = replace(training, sample=training.sample[:200])
    other = fit_classifier(replace(chosen, fourier_features=16), ClassifierConfig(strengths=(1.0,)))[0].feature_map
    ratio = (other.frequencies / found).unique()
    assert ratio.max() - ratio.min() < 1e-9
    assert 0 < abs(float(ratio[0]) - 1) < 0.1


@both_heads
def test_vectors_in_half_precision_up_to_its_limits_are_fitted_as_in_double(settings: ClassifierConfig) -> None:
    # Sums, squares and differences of such values overflow in float16.
    rng = np.random.default_rng(40)
    real = rng.uniform(-6e4, 6e4, size=(200, 12)).astype(np.float16)
    synthetic = (rng.uniform(-6e4, 6e4, size=(150, 12)) * 0.5 + 2e4).astype(np.float16)
    answers = []
    for dtype in (np.float16, np.float64):
        sets = Sets.with_folds(settings, real=real.astype(dtype), fake=synthetic.astype(dtype))
        model, fits = fit_classifier(sets.training(64), settings)
        assert fits["fake"].converged
        answers.append(sets.probabilities(model))
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-6)
    assert roc_auc_score(np.arange(350) >= 200, answers[0][:, 0]) > 0.9


@both_heads
@pytest.mark.parametrize("value", [1e3, 3e38])
def test_a_feature_far_outside_the_real_range_separates_only_its_own_rows(
    settings: ClassifierConfig, value: float
) -> None:
    real, synthetic = normal(41, 400), normal(42, 400)
    synthetic[:40, 3] = value
    result = classify(real, synthetic, settings, fourier_features=128)
    p = expit(result.logit)
    assert np.isfinite(p).all()
    assert (p[400:440] > 0.5).all()
    assert p[400:440].mean() > 0.8
    # The other rows lose the ten per cent of odds of these rows, and no more.
    assert p[440:].mean() == pytest.approx(p[:400].mean(), abs=0.03)
    assert p[440:].mean() == pytest.approx(0.48, abs=0.04)


@both_heads
def test_constant_features_change_nothing_but_the_scale_of_the_penalty(settings: ClassifierConfig) -> None:
    real, synthetic = normal(43, 300, 6), normal(44, 300, 6, mean=0.5)
    plain = classify(real, synthetic, settings, fourier_features=64)
    constant = np.repeat([[0.0, 1.0, 0.1, -1e6]], 300, axis=0)
    found = classify(np.hstack([real, constant]), np.hstack([synthetic, constant]), settings, fourier_features=64)
    assert found.fit.converged
    assert found.auc() == pytest.approx(plain.auc(), abs=0.02)
    assert found.fidelity() == pytest.approx(plain.fidelity(), abs=0.03)


@both_heads
def test_a_feature_constant_only_in_the_real_set_separates_the_sets(settings: ClassifierConfig) -> None:
    real, synthetic = normal(45, 200, 6), normal(46, 200, 6)
    real[:, 2] = 0.5
    synthetic[:, 2] = 0.5 + np.abs(synthetic[:, 2])
    result = classify(real, synthetic, settings, fourier_features=64)
    assert result.auc() > 0.99
    assert result.fidelity() < 0.1


@both_heads
@pytest.mark.parametrize("alike", [REAL, "fake", "both"])
def test_a_set_of_identical_rows_is_separated(settings: ClassifierConfig, alike: str) -> None:
    sets = {REAL: normal(47, 200, 6), "fake": normal(48, 150, 6)}
    for name in sets:
        if alike in (name, "both"):
            sets[name][:] = [1, 2, 3, 4, 5, 6 + (name == REAL)]
    result = classify(sets[REAL], sets["fake"], settings, fourier_features=32)
    assert np.isfinite(result.logit).all()
    assert result.auc() > 0.99
    assert result.fidelity() < 0.1
    assert result.representativeness() < 0.1


@both_heads
@pytest.mark.parametrize("value", [0.0, 1.0, 6e4])
def test_sets_of_one_identical_row_have_probability_one_half(settings: ClassifierConfig, value: float) -> None:
    result = classify(np.full((60, 4), value), np.full((40, 4), value), settings, fourier_features=16)
    np.testing.assert_allclose(expit(result.logit), 0.5, atol=1e-6)
    assert result.fit.converged


@both_heads
def test_perfectly_separable_sets_give_finite_and_confident_logits(settings: ClassifierConfig) -> None:
    result = classify(normal(49, 300), normal(50, 300, mean=8), settings, fourier_features=64)
    assert result.fit.converged
    assert np.isfinite(result.logit).all()
    assert result.fidelity() < 0.02
    assert result.auc() == 1


def test_a_fit_resumes_from_a_checkpoint() -> None:
    sets = two_generators(scale=4)
    training, states = sets.training(32), []
    saving = replace(training.workers.resume, save=lambda get_state: states.append(dict(get_state())))
    model, _ = fit_classifier(replace(training, workers=FitContext(resume=saving)), TWO_REPEATS)
    expected = sets.everything(model)
    for state in (states[0], states[len(states) // 2], states[-1]):
        resume = replace(training.workers.resume, state=state)
        again, _ = fit_classifier(replace(training, workers=FitContext(resume=resume)), TWO_REPEATS)
        assert_same(sets.everything(again), expected, 1e-6)


def test_fitting_leaves_vectors_and_settings_as_they_were() -> None:
    sets = two_generators()
    before = {name: x.copy() for name, x in sets.vectors.items()}
    for x in sets.vectors.values():
        x.setflags(write=False)
    fit_classifier(sets.training(16), TWO_REPEATS)
    for name, x in before.items():
        np.testing.assert_array_equal(sets.vectors[name], x)


def test_the_summary_is_plain_json() -> None:
    summary = classify(normal(20, 100), normal(21, 100)).fit.summary()
    assert summary["strength"] == "inf" or summary["strength"] > 0
    assert "inf" in [strength for strength, _ in summary["log_loss_by_strength"]]
    json.dumps(summary, allow_nan=False)
