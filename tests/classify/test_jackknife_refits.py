"""Compare the jackknife's refits with heads fitted to the remaining rows alone."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from synthscale.classify import jackknife_refits as refits_module
from synthscale.classify.calibration import fit_platt_scaling
from synthscale.classify.classifier import fit_classifier
from synthscale.classify.fit_context import FitContext
from synthscale.classify.fold_views import FeatureBlock, FoldView
from synthscale.classify.logistic import LogisticFit, fit_logistic_heads
from synthscale.classify.model import FittedClassifier
from synthscale.classify.training import FoldPlan, NearDuplicates, TrainingData
from synthscale.config import ClassifierConfig
from synthscale.statistics.jackknife import reassigned_folds
from synthscale.statistics.size_matching import assignment_block_of, block_of, is_outside
from synthscale.tables.schemas import BLOCKS, REAL, REASSIGNMENTS
from tests.classify.trainings import Sets, assign_sets, cut, fit_on_workers, normal

Floats = NDArray[np.float64]
SOME = (1e-3, 1e-2, math.inf)
LINEAR = ClassifierConfig(head="linear", strengths=SOME, folds=3)
KERNEL = ClassifierConfig(head="kernel", strengths=SOME, folds=3)
UNWEIGHTED = ClassifierConfig(head="linear", strengths=SOME, folds=3, class_weight="none")
ways = pytest.mark.parametrize("settings", [LINEAR, KERNEL, UNWEIGHTED], ids=["linear", "kernel", "unweighted"])


def one_generator(settings: ClassifierConfig, n: int = 160, m: int = 120) -> Sets:
    """Two sets; some real rows are near-duplicates of one another, in clusters of three, two to a component."""
    groups = NearDuplicates(np.arange(30), np.arange(30) // 6 * 6, np.arange(30) // 3 * 3)
    return assign_sets(settings, groups, real=normal(0, n, 6), fake=normal(1, m, 6, mean=0.5))


def fitted(
    sets: Sets, settings: ClassifierConfig, training: TrainingData | None = None
) -> tuple[FittedClassifier, LogisticFit]:
    model, fits = fit_classifier(training or sets.training(is_refitted=True), settings)
    fit = fits["fake"]
    assert isinstance(fit, LogisticFit)
    return model, fit


def blocks_of(plan: FoldPlan) -> NDArray[np.int16]:
    """Jackknife block of each row."""
    return block_of(plan.block(None))


def vectors_of(sets: Sets, name: str = "fake") -> NDArray[np.float32]:
    """Vectors of the view, real rows first."""
    return np.vstack([sets.vectors[REAL], sets.vectors[name]]).astype(np.float32)


def without_blocks(sets: Sets, model: FittedClassifier, name: str = "fake") -> Floats:
    plan = sets.plans[name]
    found = model.predict_refits(name, vectors_of(sets, name), plan.fold[:, 0], plan.block(None))
    assert found.without is not None
    # No generator here has a matched subsample.
    assert found.matched is None
    return found.without


def features_of(sets: Sets, model: FittedClassifier) -> torch.Tensor:
    # The heads are fitted to float32 features.
    return model.feature_map(torch.from_numpy(vectors_of(sets))).float()


def fitted_without(
    sets: Sets, model: FittedClassifier, fit: LogisticFit, settings: ClassifierConfig, block: int
) -> Floats:
    """Logits of the rows outside a block from heads fitted and calibrated on these alone; NaN inside it."""
    plan, features = sets.plans["fake"], features_of(sets, model)
    assert fit.start is not None
    kept = {
        name: np.flatnonzero((blocks_of(plan) != block) & (plan.is_real == (name == REAL)))
        for name in (REAL, "fake")
    }
    blocks = [
        FeatureBlock(name, features[own], torch.from_numpy(plan.fold[own][:, :1]), plan.key[own])
        for name, own in kept.items()
    ]
    folds = int(plan.fold[:, 0].max()) + 1
    balanced = settings.class_weight == "balanced"
    heads = fit_logistic_heads(
        [FoldView("fake", 0, folds)], (fit.start[0],), lambda: blocks, balanced=balanced, workers=FitContext()
    )["fake"].heads[0]
    raw = {name: heads.out_of_fold_logits(features[own].double(), plan.fold[own, 0]) for name, own in kept.items()}
    result = np.full(len(plan.row), np.nan)
    scaling = fit_platt_scaling(
        ((name != REAL, raw[name][:, None], plan.fold[own][:, :1]) for name, own in kept.items()),
        1,
        folds,
        lambda tensor: tensor,
    )
    for name, own in kept.items():
        fold = plan.fold[own, 0]
        if model.calibrations["fake"].is_used:
            result[own] = scaling.slope[0, fold] * raw[name] + scaling.offset[0]
        else:
            result[own] = raw[name] + scaling.shift[0]
    return result


@ways
def test_refits_are_heads_fitted_to_the_rows_outside_the_block(settings: ClassifierConfig) -> None:
    sets = one_generator(settings)
    model, fit = fitted(sets, settings)
    assert math.isfinite(fit.strength)
    found = without_blocks(sets, model)
    assert found.shape == (280, BLOCKS)
    for block in range(BLOCKS):
        expected = fitted_without(sets, model, fit, settings, block)
        np.testing.assert_allclose(expit(found[:, block]), expit(expected), atol=5e-4)


@ways
def test_scikit_learn_finds_the_same_heads(settings: ClassifierConfig) -> None:
    sets = one_generator(settings)
    model, fit = fitted(sets, settings)
    plan, x = sets.plans["fake"], features_of(sets, model).double().numpy()
    own, fold, block, y = model.refits["fake"][0], plan.fold[:, 0], blocks_of(plan), ~plan.is_real
    folds = int(fold.max()) + 1
    for b in range(0, BLOCKS, 3):
        for f in range(folds):
            training, out = (fold != f) & (block != b), (fold == f) & (block != b)
            weight = "balanced" if settings.class_weight == "balanced" else None
            judge = LogisticRegression(
                C=1 / (fit.strength * training.sum()), class_weight=weight, tol=1e-9, max_iter=50_000
            )
            judge.fit(x[training], y[training])
            expected = judge.decision_function(x[out])
            if weight is None:
                expected -= np.log(y[training].sum() / (~y[training]).sum())
            head = b * folds + f
            raw = x[out] @ own.heads.weights[head].numpy() + float(own.heads.intercepts[head])
            np.testing.assert_allclose(expit(raw), expit(expected), atol=1e-3)


@ways
def test_a_row_has_nan_for_its_own_block_alone(settings: ClassifierConfig) -> None:
    sets = one_generator(settings)
    model, _ = fitted(sets, settings)
    unknown = np.isnan(without_blocks(sets, model))
    np.testing.assert_array_equal(unknown, blocks_of(sets.plans["fake"])[:, None] == np.arange(BLOCKS))
    # Members of a cluster are in one block, those of a component need not be.
    block = blocks_of(sets.plans["fake"])
    assert all(len(set(block[first : first + 3].tolist())) == 1 for first in range(0, 30, 3))
    assert any(len(set(block[first : first + 6].tolist())) == 2 for first in range(0, 30, 6))


def test_the_rows_of_a_block_do_not_affect_its_refit() -> None:
    # Only the feature map depends on them, and for the linear head it is just a scale.
    sets = one_generator(LINEAR)
    model, fit = fitted(sets, LINEAR)
    before = fitted_without(sets, model, fit, LINEAR, 3)
    inside = blocks_of(sets.plans["fake"])[160:] == 3
    moved = sets.vectors["fake"].copy()
    moved[inside] += 100
    other = replace(sets, vectors={**sets.vectors, "fake": moved})
    strength = LINEAR.model_copy(update={"strengths": (fit.strength,)})
    again, _ = fitted(other, strength)
    if again.calibrations["fake"].is_used == model.calibrations["fake"].is_used:
        found = without_blocks(other, again)
        np.testing.assert_allclose(expit(found[:, 3]), expit(before), atol=5e-4)
        assert np.nanmax(np.abs(expit(found[:, 4]) - expit(without_blocks(sets, model)[:, 4]))) > 0.01


def test_logits_without_a_block_stay_near_those_of_all_rows() -> None:
    sets = one_generator(KERNEL, 400, 400)
    model, _ = fitted(sets, KERNEL)
    found, whole = without_blocks(sets, model), sets.logits(model)
    away = np.abs(expit(found) - expit(whole)[:, None])
    assert np.nanmean(away) < 0.03
    assert np.nanmin(np.nanmax(away, axis=0)) > 0


@pytest.mark.parametrize("settings", [LINEAR, KERNEL], ids=["linear", "kernel"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_number_of_workers_changes_nothing(settings: ClassifierConfig, workers: int) -> None:
    sets = one_generator(settings)
    training = sets.training(is_refitted=True)
    expected = without_blocks(sets, fitted(sets, settings)[0])
    for found in fit_on_workers(training, settings, workers, lambda model, _: without_blocks(sets, model)):
        np.testing.assert_allclose(expit(found), expit(expected), atol=5e-4)


OTHERWISE: dict[str, Callable[[Sets], TrainingData]] = {
    "order": lambda sets: sets.training(order=1, is_refitted=True),
    "pieces": lambda sets: cut(sets.training(is_refitted=True), 5),
    "read again": lambda sets: replace(cut(sets.training(order=2, is_refitted=True), 3), is_cached=False),
}


@pytest.mark.parametrize("way", OTHERWISE)
@pytest.mark.parametrize("settings", [LINEAR, KERNEL], ids=["linear", "kernel"])
def test_caching_and_order_of_rows_change_nothing(settings: ClassifierConfig, way: str) -> None:
    sets = one_generator(settings)
    expected = without_blocks(sets, fitted(sets, settings)[0])
    found = without_blocks(sets, fitted(sets, settings, OTHERWISE[way](sets))[0])
    np.testing.assert_allclose(expit(found), expit(expected), atol=5e-4)


def three_generators(settings: ClassifierConfig) -> Sets:
    """One of them has the real distribution, another is far smaller."""
    return assign_sets(
        settings,
        real=normal(0, 150, 5),
        same=normal(1, 140, 5),
        fake=normal(2, 100, 5, mean=0.7),
        few=normal(3, 30, 5, mean=-1),
    )


@pytest.mark.parametrize("columns", [1000, 120, 1], ids=["together", "in twos", "one by one"])
def test_other_generators_change_nothing(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = three_generators(KERNEL)
    monkeypatch.setattr(refits_module, "_MAX_HEADS", columns)
    model, _ = fitted(sets, KERNEL)
    assert set(model.refits) == {"same", "fake", "few"}
    for name in model.refits:
        alone = assign_sets(KERNEL, real=sets.vectors[REAL], **{name: sets.vectors[name]})
        own, _ = fit_classifier(alone.training(is_refitted=True), KERNEL)
        np.testing.assert_allclose(
            expit(without_blocks(sets, model, name)), expit(without_blocks(alone, own, name)), atol=5e-4
        )


def test_the_first_of_several_repeats_is_refitted() -> None:
    # With one strength only, as repeats choose the strength together.
    one = ClassifierConfig(head="linear", strengths=(1e-2,), folds=3)
    several = one.model_copy(update={"repeats": 3})
    sets, alone = one_generator(several), one_generator(one)
    (model, _), (own, _) = fitted(sets, several), fitted(alone, one)
    assert len(model.refits["fake"][0].heads.intercepts) == BLOCKS * 3
    np.testing.assert_array_equal(sets.plans["fake"].fold[:, 0], alone.plans["fake"].fold[:, 0])
    assert model.calibrations["fake"].is_used
    assert own.calibrations["fake"].is_used
    found, expected = without_blocks(sets, model), without_blocks(alone, own)
    np.testing.assert_allclose(expit(found), expit(expected), atol=5e-4)


@pytest.mark.parametrize("is_scaled", [True, False])
def test_each_refit_has_equal_fidelity_and_representativeness(is_scaled: bool) -> None:
    worlds = (assign_sets(LINEAR, real=normal(i, 60), fake=normal(i + 100, 500, mean=0.2)) for i in range(30))
    sets, model = next(
        (s, m)
        for s, m in ((s, fitted(s, LINEAR)[0]) for s in worlds)
        if m.calibrations["fake"].is_used == is_scaled
    )
    plan = sets.plans["fake"]
    found = model.predict_refits("fake", vectors_of(sets), plan.fold[:, 0], plan.block(None))
    for logits in (found.without, found.reassigned):
        assert logits is not None
        quality = np.where(plan.is_real[:, None], expit(-logits), expit(logits))
        classes = [np.nanmean(quality[plan.is_real == kind], axis=0) for kind in (True, False)]
        np.testing.assert_allclose(classes[0], classes[1], atol=1e-3)


def test_after_an_intercept_only_choice_the_largest_finite_strength_is_refitted() -> None:
    # Equal sets, for which the intercept-only model is chosen most often.
    worlds = (assign_sets(LINEAR, real=normal(i, 200, 6), fake=normal(i + 100, 200, 6)) for i in range(30))
    sets, model, fit = next((s, m, f) for s, m, f in ((s, *fitted(s, LINEAR)) for s in worlds) if f.strength > 1)
    assert math.isinf(fit.strength)
    assert fit.start is not None
    assert fit.start[0] == 1e-2
    found = without_blocks(sets, model)
    for block in (0, 7):
        expected = fitted_without(sets, model, fit, LINEAR, block)
        np.testing.assert_allclose(expit(found[:, block]), expit(expected), atol=5e-4)


@pytest.mark.parametrize(
    "settings",
    [ClassifierConfig(strengths=(math.inf,)), ClassifierConfig(head="mlp", folds=2)],
    ids=["no finite strength", "mlp"],
)
def test_networks_and_intercept_only_models_have_no_refits(settings: ClassifierConfig) -> None:
    sets = one_generator(settings, 40, 40)
    model, _ = fit_classifier(sets.training(is_refitted=True), settings)
    plan = sets.plans["fake"]
    assert model.refits == {}
    assert model.predict_refits("fake", vectors_of(sets), plan.fold[:, 0], plan.block(None)).without is None


def test_nothing_is_refitted_by_default() -> None:
    sets = one_generator(LINEAR, 40, 40)
    assert fit_classifier(sets.training(), LINEAR)[0].refits == {}


def test_sets_with_empty_blocks_are_refitted() -> None:
    sets = assign_sets(LINEAR, real=normal(6, 9, 4), fake=normal(7, 7, 4, mean=1))
    model, _ = fitted(sets, LINEAR)
    found, block = without_blocks(sets, model), blocks_of(sets.plans["fake"])
    assert (np.isnan(found) == (block[:, None] == np.arange(BLOCKS))).all()
    empty = np.setdiff1d(np.arange(BLOCKS), block)
    assert len(empty) > 3
    # Without an empty block the logits are those of all rows, at the refitted strength.
    np.testing.assert_allclose(found[:, empty], np.repeat(found[:, empty[:1]], len(empty), axis=1), atol=1e-3)


def test_reassigned_folds_keep_groups_together_and_use_every_fold() -> None:
    block = np.arange(BLOCKS, dtype=np.int8).repeat(3)
    repeats = [reassigned_folds(block, reassignment, 5) for reassignment in range(1, REASSIGNMENTS + 1)]
    for fold in repeats:
        assert np.bincount(fold).tolist() == [12] * 5
        assert all(len(set(fold[block == b])) == 1 for b in range(BLOCKS))
    assert len({tuple(fold) for fold in repeats}) == REASSIGNMENTS


def test_reassigned_heads_are_those_of_a_classifier_with_the_reassigned_folds() -> None:
    sets = one_generator(LINEAR)
    model, fit = fitted(sets, LINEAR)
    plan = sets.plans["fake"]
    found = model.predict_refits("fake", vectors_of(sets), plan.fold[:, 0], plan.block(None)).reassigned
    assert found is not None
    # Fold assignments under which that classifier calibrates its logits as well.
    for reassignment in (1, 4):
        fold = reassigned_folds(assignment_block_of(plan.block(None)), reassignment, int(plan.fold.max()) + 1)
        other = Sets(sets.vectors, {"fake": replace(plan, fold=fold[:, None])})
        own = LINEAR.model_copy(update={"strengths": (fit.start[0],)})
        expected = other.logits(fitted(other, own)[0])
        np.testing.assert_allclose(expit(found[:, reassignment - 1]), expit(expected), atol=5e-4)


MATCHED = 90


def several_clusters_to_a_component(seed: int, times: int, components: int | None) -> Sets:
    """Return 200 real rows and 40 images repeated, in clusters of two; ``components`` of four images, or none.

    Without components, clusters are also what folds keep together.
    """
    n, m = 200, 40 * times
    image = np.repeat(np.arange(40), times)
    fake = normal(seed + 1, 40, 40)[image] + 0.01 * normal(seed + 2, m, 40)
    row = np.arange(n, n + m)
    cluster = n + np.arange(m) // 2 * 2
    component = cluster if components is None else n + image // 4 * 4 * times
    found = NearDuplicates(row, component, cluster)
    return assign_sets(KERNEL, found, real=normal(seed, n, 40), fake=fake)


def test_no_head_is_trained_on_a_row_of_the_component_that_it_scores() -> None:
    sets = several_clusters_to_a_component(0, 4, 10)
    plan = sets.plans["fake"]
    model, _ = fit_classifier(sets.training(is_refitted=True, matched={"fake": MATCHED}), LINEAR)
    code = plan.block(MATCHED)
    fold = plan.fold[:, 0]
    kinds = model.refits["fake"]
    assert [(refit.is_matched, bool(refit.reassignment.any())) for refit in kinds] == [
        (False, False),
        (False, True),
        (True, False),
    ]
    for refit in kinds:
        folds = refit.folds(fold, code)
        for view in range(folds.shape[1]):
            # A row is scored by the head of its fold, which was trained on the view's rows of all other folds.
            for component in np.unique(plan.hashes.group):
                members = folds[plan.hashes.group == component, view]
                assert len(set(members[members >= 0].tolist())) <= 1
        # The views leave out blocks of clusters, and the rows outside the subsample.
        expected = block_of(code)[:, None] == refit.without[None, :]
        expected |= (refit.is_matched & is_outside(code))[:, None]
        np.testing.assert_array_equal(folds < 0, expected)
    # Some components have rows both in a block and outside it, where leakage would be possible.
    blocks_of_component = [len(set(block_of(code)[plan.hashes.group == g])) for g in np.unique(plan.hashes.group)]
    assert max(blocks_of_component) > 3


@pytest.mark.slow
def test_near_duplicates_in_several_blocks_do_not_leak_into_the_refits() -> None:
    aucs: dict[bool, list[list[float]]] = {True: [], False: []}
    for has_components in aucs:
        for seed in range(0, 40, 4):
            sets = several_clusters_to_a_component(seed, 8, 10 if has_components else None)
            plan = sets.plans["fake"]
            model, _ = fit_classifier(sets.training(is_refitted=True, matched={"fake": 160}), KERNEL)
            found = model.predict_refits("fake", vectors_of(sets), plan.fold[:, 0], plan.block(160))
            assert found.without is not None
            assert found.matched is not None
            assert found.reassigned is not None
            for logits in (found.without, found.matched, found.reassigned):
                known = [np.isfinite(column) for column in logits.T]
                each = [
                    roc_auc_score(~plan.is_real[own], column[own])
                    for own, column in zip(known, logits.T, strict=True)
                ]
                aucs[has_components].append(np.mean(each))
    kept, split = (np.reshape(aucs[has_components], (-1, 3)).mean(0) for has_components in (True, False))
    # Both sets have one distribution. With the rows of an image in several folds the copies are recognised.
    assert (kept < 0.55).all()
    assert (split > kept + 0.1).all()
