import json
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import log_loss, roc_auc_score

from synthscale.classify import network
from synthscale.classify.classifier import fit_classifier
from synthscale.classify.fit_context import FitContext, FitState, ReduceSum
from synthscale.classify.fold_views import FeatureBlock, FoldView
from synthscale.classify.model import FittedClassifier
from synthscale.classify.network import MlpFit, MlpHeads, fit_mlp_heads
from synthscale.classify.training import TrainingData
from synthscale.config import ClassifierConfig
from synthscale.tables.id_hashes import hash_ids
from synthscale.tables.schemas import REAL
from tests.classify.trainings import Sets, assign_sets, cut, fit_on_workers, normal, on_workers

MLP = ClassifierConfig(head="mlp")
FEW_EPOCHS = 3


@pytest.fixture
def few_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_EPOCHS", FEW_EPOCHS)


def fitted(
    sets: Sets, settings: ClassifierConfig = MLP, training: TrainingData | None = None
) -> tuple[FittedClassifier, MlpFit]:
    model, fits = fit_classifier(training or sets.training(), settings)
    fit = fits["fake"]
    assert isinstance(fit, MlpFit)
    return model, fit


def test_a_difference_of_spread_is_detected() -> None:
    # The likelihood ratio of N(0, I_32) against N(0, 0.5 I_32) has an AUC of 0.97.
    sets = assign_sets(MLP, real=normal(0, 1000, 32), fake=normal(1, 1000, 32, variance=0.5))
    model, fit = fitted(sets)
    logit, synthetic = sets.logits(model), ~sets.is_real()
    assert roc_auc_score(synthetic, logit) > 0.94
    assert sets.fidelity(model) < 0.25
    assert log_loss(synthetic, expit(logit)) < 0.35
    assert fit.converged
    assert fit.log_loss[fit.epoch] == min(fit.log_loss)
    # Training ended soon after its best epoch, and the heads are those of that epoch.
    assert fit.epoch < len(fit.log_loss) - 1 < fit.epoch + 25
    json.dumps(fit.summary(), allow_nan=False)


@pytest.mark.parametrize(("n", "m", "tolerance"), [(2000, 2000, 0.02), (2000, 200, 0.05), (200, 2000, 0.05)])
def test_equal_distributions_have_an_auc_near_one_half(n: int, m: int, tolerance: float) -> None:
    sets = assign_sets(MLP, real=normal(2, n), fake=normal(3, m))
    model, fit = fitted(sets)
    assert sets.fidelity(model) == pytest.approx(0.5, abs=tolerance)
    assert fit.log_loss[fit.epoch] <= np.log(2) + 1e-12


def test_a_network_without_an_improvement_predicts_one_half_for_every_row() -> None:
    sets = assign_sets(MLP, real=normal(4, 60, 40), fake=normal(5, 60, 40))
    model, fit = fitted(sets)
    assert fit.epoch == 0
    np.testing.assert_array_equal(sets.logits(model), 0)
    assert fit.summary()["log_loss_by_epoch"][0] == pytest.approx(np.log(2))


def random_networks(seed: int, folds: int, d: int, hidden: int = 7) -> MlpHeads:
    rng = np.random.default_rng(seed)
    shapes = ((folds, d, hidden), (folds, hidden), (folds, hidden), (folds,))
    return MlpHeads(*(torch.from_numpy(rng.normal(size=shape)) for shape in shapes))


def by_hand(networks: MlpHeads, x: NDArray[np.float64], fold: NDArray[np.int8]) -> NDArray[np.float64]:
    """Row by row: the logit of the network of the row's own fold, silu(z) = z / (1 + exp(-z))."""
    hidden, hidden_bias, output, output_bias = (
        getattr(networks, name).numpy() for name in ("hidden", "hidden_bias", "output", "output_bias")
    )
    result = []
    for row, f in zip(x, fold.tolist(), strict=True):
        inner = row @ hidden[f] + hidden_bias[f]
        result.append(inner * expit(inner) @ output[f] + output_bias[f])
    return np.array(result)


@pytest.mark.parametrize("folds", [[0, 1, 2, 3], [2], [1, 3]], ids=["all", "one", "some"])
@pytest.mark.parametrize("chunk", [8192, 3])
def test_a_rows_logit_is_from_the_network_of_its_own_fold(
    folds: list[int], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "_CHUNK_ROWS", chunk)
    networks, x = random_networks(0, 4, 5), normal(6, 40, 5)
    fold = np.random.default_rng(0).choice(folds, 40).astype(np.int8)
    found = networks.out_of_fold_logits(torch.from_numpy(x), fold)
    np.testing.assert_allclose(found, by_hand(networks, x, fold), rtol=1e-12)
    all_logits = networks.logits(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(all_logits[fold, np.arange(40)], found, rtol=1e-12)


def test_no_rows_give_empty_logits() -> None:
    none = torch.zeros((0, 5), dtype=torch.float64)
    networks, fold = random_networks(1, 4, 5), np.zeros(0, np.int8)
    assert networks.out_of_fold_logits(none, fold).shape == (0,)
    assert networks.gradients(none, fold).shape == (0, 5)


def test_gradients_are_finite_differences_of_the_logits() -> None:
    networks, x = random_networks(2, 3, 5), normal(7, 30, 5)
    fold, step = (np.arange(30) % 3).astype(np.int8), 1e-5
    features = torch.from_numpy(x)
    found = networks.gradients(features, fold).numpy()
    for j in range(5):
        aside = np.zeros(5)
        aside[j] = step
        slope = (by_hand(networks, x + aside, fold) - by_hand(networks, x - aside, fold)) / (2 * step)
        np.testing.assert_allclose(found[:, j], slope, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(features.numpy(), x)
    assert not features.requires_grad


VIEW = FoldView("fake", 0, 4)


def feature_blocks(
    seed: int, n: int, m: int, d: int = 5, *, pieces: int = 1, shift: float = 1.0
) -> list[FeatureBlock]:
    """Features of n real and m synthetic rows, in 4 folds, each set in ``pieces`` blocks."""
    rng, blocks = np.random.default_rng(seed), []
    for name, count, mean in ((REAL, n, 0.0), ("fake", m, shift)):
        x = torch.from_numpy(((rng.normal(size=(count, d)) + mean) / d**0.5).astype(np.float32))
        fold = torch.from_numpy((np.arange(count) % 4).astype(np.int8)[:, None])
        key = hash_ids(f"{name}/{i}" for i in range(count))
        whole = FeatureBlock(name, x, fold, key)
        blocks += [whole.rows(part) for part in np.array_split(np.arange(count), pieces)]
    return blocks


def only(blocks: Iterable[FeatureBlock]) -> Callable[[str], list[FeatureBlock]]:
    held = list(blocks)
    return lambda name: [block for block in held if block.name == name]


def trained(blocks: list[FeatureBlock]) -> MlpFit:
    return fit_mlp_heads([VIEW], [0], only(blocks), blocks[0].features.shape[1], 0, FitContext())


def test_a_row_does_not_enter_the_network_of_its_own_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_EPOCHS", 1)
    blocks = feature_blocks(0, 200, 160)
    changed = [
        replace(block, features=torch.where(block.fold == 2, 0.5 * block.features + 0.1, block.features))
        for block in blocks
    ]
    plain, other = trained(blocks), trained(changed)
    # Otherwise the result would be the constant network.
    assert plain.epoch == other.epoch == 1
    (one,), (two,) = plain.heads, other.heads
    for name in ("hidden", "hidden_bias", "output", "output_bias"):
        moved = [(getattr(one, name)[f] - getattr(two, name)[f]).abs().max() for f in range(4)]
        assert moved[2] < 1e-12
        assert min(moved[f] for f in (0, 1, 3)) > 1e-6


def test_the_epoch_is_chosen_by_the_out_of_fold_log_loss(few_epochs: None) -> None:
    sets = assign_sets(MLP, real=normal(8, 300), fake=normal(9, 120, mean=0.5))
    model, fit = fitted(sets)
    assert fit.epoch > 0
    x = torch.from_numpy(np.vstack([sets.vectors[REAL], sets.vectors["fake"]]).astype(np.float32))
    logit = model.heads["fake"][0].out_of_fold_logits(model.feature_map(x), sets.plans["fake"].fold[:, 0])
    y = ~sets.is_real()
    weight = np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum())
    assert fit.log_loss[fit.epoch] == pytest.approx(log_loss(y, expit(logit), sample_weight=weight), abs=1e-6)


def test_the_heads_are_those_of_the_best_epoch_and_not_of_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    # Few rows of many dimensions: over-fitted within a few epochs, so the log-loss rises after the first ones.
    sets = assign_sets(MLP, real=normal(10, 80, 64), fake=normal(11, 80, 64, mean=0.25))
    model, fit = fitted(sets)
    assert 0 < fit.epoch < len(fit.log_loss) - 1
    monkeypatch.setattr(network, "_EPOCHS", fit.epoch)
    shorter, again = fitted(sets)
    assert again.epoch == fit.epoch
    assert again.log_loss == fit.log_loss[: fit.epoch + 1]
    assert not again.converged
    np.testing.assert_array_equal(sets.logits(shorter), sets.logits(model))


def three_sets(settings: ClassifierConfig = MLP) -> Sets:
    return assign_sets(
        settings,
        real=normal(12, 300, 8),
        fake=normal(13, 200, 8, mean=0.5),
        other=normal(14, 150, 8, variance=3),
    )


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.usefixtures("few_epochs")
def test_any_number_of_workers_and_order_of_rows_give_the_same_probabilities(workers: int) -> None:
    sets = three_sets(MLP.model_copy(update={"repeats": 2}))
    whole, _ = fitted(sets)
    expected = {name: sets.probabilities(whole, name) for name in sets.plans}
    assert all(np.ptp(p) > 0.1 for p in expected.values())
    for model in fit_on_workers(sets.training(order=workers), MLP, workers, lambda model, _: model):
        for name, p in expected.items():
            np.testing.assert_allclose(sets.probabilities(model, name), p, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("few_epochs")
@pytest.mark.parametrize("pieces", [2, 5])
def test_cached_rows_may_come_in_any_number_of_blocks(pieces: int) -> None:
    sets = three_sets()
    expected = sets.probabilities(fitted(sets)[0])
    found, _ = fitted(sets, training=cut(sets.training(order=1), pieces))
    np.testing.assert_allclose(sets.probabilities(found), expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("few_epochs")
def test_rows_read_again_in_each_pass_give_the_same_probabilities() -> None:
    sets = three_sets()
    expected = sets.probabilities(fitted(sets)[0])
    found, _ = fitted(sets, training=replace(sets.training(), is_cached=False))
    np.testing.assert_allclose(sets.probabilities(found), expected, rtol=0, atol=1e-5)


def test_rows_read_again_in_many_blocks_give_as_low_a_log_loss() -> None:
    # Batches are then drawn from a few neighbouring blocks of each set.
    sets = assign_sets(MLP, real=normal(19, 600, 8), fake=normal(20, 500, 8, mean=0.5))
    training = replace(cut(sets.training(order=1), 6), is_cached=False)
    areas = [
        roc_auc_score(~sets.is_real(), sets.logits(fitted(sets, training=rows)[0]))
        for rows in (sets.training(), training)
    ]
    assert areas[1] == pytest.approx(areas[0], abs=0.02)
    assert areas[0] > 0.8


@pytest.mark.usefixtures("few_epochs")
def test_a_generators_networks_do_not_depend_on_another_generator() -> None:
    both = three_sets()
    alone = assign_sets(MLP, real=both.vectors[REAL], fake=both.vectors["fake"])
    found = both.probabilities(fitted(both)[0])
    np.testing.assert_allclose(found, alone.probabilities(fitted(alone)[0]), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("few_epochs")
def test_repeats_have_separate_networks() -> None:
    settings = MLP.model_copy(update={"repeats": 3})
    sets = three_sets(settings)
    model, _ = fitted(sets, settings)
    assert len(model.heads["fake"]) == 3
    weights = [repeat.output for repeat in model.heads["fake"]]  # type: ignore[attr-defined]
    assert not any(torch.equal(weights[i], weights[j]) for i in range(3) for j in range(i))


class KilledError(Exception):
    """Raised in place of a worker's death."""


def interrupted(training: TrainingData, after: int) -> dict[str, torch.Tensor]:
    """Interrupt a fit at its ``after``-th checkpoint, and return that checkpoint."""
    checkpoint: dict[str, torch.Tensor] = {}
    saves = 0

    def save(get_state: Callable[[], dict[str, torch.Tensor]]) -> None:
        nonlocal saves
        saves += 1
        checkpoint.update({name: tensor.clone() for name, tensor in get_state().items()})
        if saves == after:
            raise KilledError

    with pytest.raises(KilledError):
        fit_classifier(replace(training, workers=FitContext(resume=FitState({}, save))), MLP)
    return checkpoint


@pytest.mark.usefixtures("few_epochs")
@pytest.mark.parametrize("after", [1, 2, FEW_EPOCHS, FEW_EPOCHS + 1, 2 * FEW_EPOCHS])
def test_an_interrupted_fit_resumes_to_the_same_result(after: int) -> None:
    # The later interruptions fall into the second generator's training.
    sets = three_sets()
    undisturbed, fit = fitted(sets)
    state = interrupted(sets.training(), after)
    left: list[int] = []
    again = replace(sets.training(), workers=FitContext(resume=FitState(state, lambda get_state: left.append(1))))
    resumed, fit_again = fitted(sets, training=again)
    assert len(left) == 2 * FEW_EPOCHS - after
    assert fit_again.log_loss == pytest.approx(fit.log_loss, abs=1e-12)
    assert fit_again.epoch == fit.epoch
    for name in sets.plans:
        np.testing.assert_allclose(
            sets.probabilities(resumed, name), sets.probabilities(undisturbed, name), rtol=0, atol=1e-9
        )


def test_patience_counts_the_epochs_before_an_interruption() -> None:
    # Epochs without improvement before the interruption count towards early stopping after it.
    sets = assign_sets(MLP, real=normal(15, 60, 40), fake=normal(16, 60, 40))
    undisturbed, fit = fitted(sets)
    assert len(fit.log_loss) - 1 > 6
    again = replace(sets.training(), workers=FitContext(resume=FitState(interrupted(sets.training(), 6))))
    resumed, fit_again = fitted(sets, training=again)
    assert fit_again.log_loss == pytest.approx(fit.log_loss, abs=1e-12)
    assert fit_again.converged
    np.testing.assert_allclose(sets.logits(resumed), sets.logits(undisturbed), rtol=0, atol=1e-9)


def batches_of(
    blocks: list[FeatureBlock], epoch: int, reduce_sum: ReduceSum = lambda tensor: tensor
) -> list[list[FeatureBlock]]:
    training = network._MlpLoss([VIEW], [0], only(blocks), reduce_sum)
    return list(training.batches(epoch))


def keys_of(blocks: Iterable[FeatureBlock]) -> list[int]:
    return [key for block in blocks for key in block.key.tolist()]


@pytest.mark.parametrize("pieces", [1, 3, 10, 16, 40])
@pytest.mark.parametrize(("n", "m"), [(3000, 2500), (20_000, 1500)])
def test_an_epoch_sees_every_row_once_and_both_classes_in_every_step(pieces: int, n: int, m: int) -> None:
    blocks = feature_blocks(1, n, m, 2, pieces=pieces)
    batches = batches_of(blocks, 1)
    # Blocks of float32 rows are read one at a time, so a step is at most a few of them.
    assert len(batches) == max(16, -(-(n + m) // 1024))
    seen = keys_of(part for batch in batches for part in batch)
    assert sorted(seen) == sorted(keys_of(blocks))
    assert len(set(seen)) == n + m
    for batch in batches:
        assert {block.name for block in batch if len(block.key)} == {REAL, "fake"}
        for block in batch:
            assert len(block.key) == len(block.features) == len(block.fold)


@pytest.mark.parametrize("pieces", [1, 5])
def test_batched_rows_keep_their_features_and_folds(pieces: int) -> None:
    blocks = feature_blocks(2, 300, 200, pieces=pieces)
    given = {
        key: (row.tolist(), int(fold))
        for block in blocks
        for key, row, fold in zip(block.key.tolist(), block.features, block.fold[:, 0], strict=True)
    }
    for part in (part for batch in batches_of(blocks, 1) for part in batch):
        for key, row, fold in zip(part.key.tolist(), part.features, part.fold[:, 0], strict=True):
            assert given[key] == (row.tolist(), int(fold))


def test_batches_are_of_about_equal_size_and_differ_between_epochs() -> None:
    blocks = feature_blocks(3, 3200, 3200, 2)
    epochs = [[sorted(keys_of(batch)) for batch in batches_of(blocks, epoch)] for epoch in (1, 2)]
    assert all(300 < len(batch) < 500 for batch in epochs[0])
    assert all(one != two for one, two in zip(*epochs, strict=True))


def test_a_rows_step_depends_only_on_its_hash() -> None:
    blocks = feature_blocks(4, 500, 400, 2)
    alone = [set(keys_of(batch)) for batch in batches_of(blocks, 3)]
    order = np.random.default_rng(0).permutation(500)
    shuffled = batches_of([blocks[0].rows(order), blocks[1]], 3)
    assert [set(keys_of(batch)) for batch in shuffled] == alone


def test_every_worker_takes_as_many_steps_and_all_of_them_see_every_row_once() -> None:
    blocks = feature_blocks(5, 700, 500, 2, pieces=4)
    # Unequal shards; the third worker has real rows only and the last none at all.
    shares = [blocks[:1] + blocks[4:7], blocks[7:], blocks[1:4], []]
    found = on_workers(4, lambda rank, reduce_sum: batches_of(shares[rank], 1, reduce_sum))
    assert {len(batches) for batches in found} == {16}
    seen = keys_of(part for batches in found for batch in batches for part in batch)
    assert sorted(seen) == sorted(keys_of(blocks))


def test_workers_that_read_blocks_again_in_each_pass_end_with_the_same_networks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(network, "_EPOCHS", 2)
    blocks = feature_blocks(6, 300, 200, pieces=3)
    shares = [[blocks[0], blocks[3], blocks[4]], [blocks[1], blocks[2], blocks[5]], []]

    def work(rank: int, reduce_sum: ReduceSum) -> MlpFit:
        def read(name: str) -> Iterable[FeatureBlock]:
            yield from (block for block in shares[rank] if block.name == name)

        return fit_mlp_heads([VIEW], [0], read, 5, 0, FitContext(reduce_sum, True))

    found = on_workers(3, work)
    for fit in found[1:]:
        assert fit.log_loss == found[0].log_loss
        assert torch.equal(fit.heads[0].hidden, found[0].heads[0].hidden)
    assert found[0].epoch == 2


def test_a_steps_gradient_estimates_that_of_all_rows_at_any_class_sizes() -> None:
    # Averaged over the steps of an epoch, the gradient is that of the class-balanced loss over the training rows.
    blocks = feature_blocks(7, 2000, 150)
    training = network._MlpLoss([VIEW], [0], only(blocks), lambda tensor: tensor)
    networks = random_networks(8, 4, 5)
    parameters = [
        getattr(networks, name).requires_grad_() for name in ("hidden", "hidden_bias", "output", "output_bias")
    ]
    total = [torch.zeros_like(p) for p in parameters]
    for batch in training.batches(1):
        for parameter in parameters:
            parameter.grad = None
        training.set_gradients(networks, parameters, batch)
        for one, parameter in zip(total, parameters, strict=True):
            assert parameter.grad is not None
            one += parameter.grad / training.steps
    loss = torch.zeros((), dtype=torch.float64)
    for block in blocks:
        for f in range(4):
            outside = block.fold[:, 0] != f
            logit = networks.of_fold(f).logits(block.features[outside].double())[0]
            loss = loss + torch.nn.functional.softplus(-block.sign * logit).mean() / 2
    for one, expected in zip(total, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-6, atol=1e-9)


def test_the_seed_draws_the_initial_weights() -> None:
    training = network._MlpLoss([VIEW], [0], only(feature_blocks(9, 40, 40)), lambda tensor: tensor)
    one, same, other = (training.initial(5, seed) for seed in (1, 1, 2))
    assert torch.equal(one.hidden, same.hidden)
    assert not torch.equal(one.hidden, other.hidden)
    # Each fold's network has its own initial weights.
    assert not torch.equal(one.hidden[0], one.hidden[1])


def test_few_rows_of_one_class_give_finite_logits() -> None:
    sets = assign_sets(MLP, real=normal(17, 400), fake=normal(18, 3))
    model, _ = fitted(sets)
    assert np.isfinite(sets.logits(model)).all()


def test_bfloat16_products_give_logits_and_gradients_to_its_precision() -> None:
    # As on a GPU, where parameters stay in float64 and products do not.
    networks, features = random_networks(0, 3, 20), torch.from_numpy(normal(31, 50, 20))
    exact = networks.logits(features)
    networks.hidden.requires_grad_()
    found = network.bfloat16_autocast(networks, features.float())
    assert found.dtype == torch.float64
    assert (found - exact).abs().max() < 0.05 * exact.abs().max()
    found.square().sum().backward()  # type: ignore[no-untyped-call]
    assert networks.hidden.grad is not None
    assert networks.hidden.grad.dtype == torch.float64
    assert torch.isfinite(networks.hidden.grad).all()


@pytest.mark.usefixtures("few_epochs")
def test_a_finished_fit_keeps_only_its_result_in_the_shared_checkpoint() -> None:
    sets, states = three_sets(), list[dict[str, torch.Tensor]]()
    whole, _ = fitted(sets)
    workers = FitContext(resume=FitState({}, lambda get_state: states.append(dict(get_state()))))
    fit_classifier(replace(sets.training(), workers=workers), MLP)
    ended = {name.removeprefix("fake//") for name in states[-1] if name.startswith("fake//")}
    assert ended == {"losses", "chosen", *(f"best/{part}" for part in vars(whole.heads["fake"][0]))}
    assert "other//now/hidden" in states[-1]
    # A fit can resume from that.
    again = replace(sets.training(), workers=FitContext(resume=FitState(states[-1])))
    resumed, _ = fitted(sets, training=again)
    for name in sets.plans:
        np.testing.assert_allclose(
            sets.probabilities(resumed, name), sets.probabilities(whole, name), rtol=0, atol=1e-9
        )
