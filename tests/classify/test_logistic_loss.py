import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import approx_fprime
from scipy.special import expit

from synthscale.classify.fit_context import FitState, ReduceSum
from synthscale.classify.fold_views import FeatureBlock, FoldView, HeadColumns
from synthscale.classify.logistic_loss import LOG_2, LogisticLoss
from synthscale.tables.id_hashes import Hashes, hash_ids
from synthscale.tables.schemas import REAL
from tests.classify.trainings import on_workers
from tests.examples import examples

Floats = NDArray[np.float64]
VIEWS = (FoldView("a", 0, 4), FoldView("b", 0, 2), FoldView("a", 1, 3), FoldView("c", 0, 2))
STRENGTHS = {"a": (0.3, 1e-3), "b": (0.3, 1e-3), "c": (0.05,)}
D = 3
balanced_or_not = pytest.mark.parametrize("balanced", [True, False], ids=["balanced", "unweighted"])


def same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@dataclass(frozen=True)
class Rows:
    """Set name, features, fold in each view and key of every row."""

    name: NDArray[np.str_]
    x: Floats
    fold: NDArray[np.int8]
    key: Hashes

    def take(self, rows: NDArray[np.integer]) -> "Rows":
        return Rows(self.name[rows], self.x[rows], self.fold[rows], self.key[rows])

    def blocks(self, size: int = 1000) -> list[FeatureBlock]:
        """Blocks of one set each, with at most ``size`` rows."""
        found = []
        for name in dict.fromkeys(self.name.tolist()):
            own = np.flatnonzero(self.name == name)
            for start in range(0, len(own), size):
                part = self.take(own[start : start + size])
                features, fold = torch.from_numpy(part.x.astype(np.float32)), torch.from_numpy(part.fold)
                found.append(FeatureBlock(name, features, fold, part.key))
        return found

    def problem(self, balanced: bool = True, size: int = 1000, reduce_sum: ReduceSum = same) -> LogisticLoss:
        blocks = self.blocks(size)
        return LogisticLoss(HeadColumns.of(VIEWS, STRENGTHS), lambda: blocks, balanced, reduce_sum)


def three_generators(seed: int = 0, scale: int = 1) -> Rows:
    """A real set and generators of different sizes, one of them small."""
    rng = np.random.default_rng(seed)
    sizes = {REAL: 41 * scale, "a": 29 * scale, "b": 67 * scale, "c": 7 * scale}
    name = np.repeat(list(sizes), list(sizes.values()))
    # Values that float32 represents exactly, so that the oracle has the same.
    x = (rng.normal(size=(len(name), D)) + 0.3 * (name != REAL)[:, None]).astype(np.float32).astype(np.float64)
    fold = np.full((len(name), len(VIEWS)), -1, np.int8)
    for v, view in enumerate(VIEWS):
        inside = np.isin(name, [REAL, view.generator])
        fold[inside, v] = rng.permutation(np.arange(inside.sum()) % view.folds)
    return Rows(name, x, fold, hash_ids(f"{seed}/{i}" for i in range(len(name))))


def heads() -> list[tuple[int, int, float]]:
    """View, fold and strength of each head, in the order of the columns."""
    columns = HeadColumns.of(VIEWS, STRENGTHS)
    return list(zip(columns.view.tolist(), columns.fold.tolist(), columns.strength.tolist(), strict=True))


def points(seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(D + 1, len(heads()))))


def held_out(problem: LogisticLoss, at: torch.Tensor) -> torch.Tensor:
    """Each head's sums over its own fold from out-of-fold logits: class (real, synthetic) by (loss, rows)."""
    sums = torch.zeros((2, 2, len(heads())), dtype=torch.float64)
    for generator in dict.fromkeys(view.generator for view in VIEWS):
        pairs = [
            (v, s) for v, view in enumerate(VIEWS) if view.generator == generator for s in STRENGTHS[generator]
        ]
        for synthetic, logit, fold in problem.out_of_fold(at, generator, pairs):
            loss = np.logaddexp(0, -logit if synthetic else logit)
            for i, (v, s) in enumerate(pairs):
                for f in range(VIEWS[v].folds):
                    inside = fold[:, i] == f
                    c = heads().index((v, f, s))
                    sums[int(synthetic), 0, c] += loss[inside, i].sum()
                    sums[int(synthetic), 1, c] += inside.sum()
    return problem.reduce_sum(sums)


def weights(rows: Rows, view: int, fold: int, balanced: bool) -> Floats:
    """The weight of each row in the loss of a head; they add up to 1."""
    real = (rows.name == REAL) & (rows.fold[:, view] != fold)
    synthetic = (rows.name == VIEWS[view].generator) & (rows.fold[:, view] != fold)
    if balanced:
        result: Floats = real / (2 * real.sum()) + synthetic / (2 * synthetic.sum())
    else:
        result = (real | synthetic) / (real | synthetic).sum()
    return result


def loss(rows: Rows, weight: Floats, strength: float, point: Floats) -> float:
    signed = np.where(rows.name == REAL, -1, 1) * (rows.x @ point[:-1] + point[-1])
    return float(weight @ np.log1p(np.exp(-signed)) + strength / 2 * point[:-1] @ point[:-1])


def test_there_is_a_head_for_every_view_strength_and_fold() -> None:
    expected = {
        (v, f, s) for v, view in enumerate(VIEWS) for f in range(view.folds) for s in STRENGTHS[view.generator]
    }
    assert set(heads()) == expected
    assert len(heads()) == len(expected)
    columns = HeadColumns.of(iter(VIEWS), STRENGTHS)
    assert columns.using_set(REAL).all()
    for c, (view, _, _) in enumerate(heads()):
        assert columns.generator_of(torch.tensor([c])) == VIEWS[view].generator
        assert [bool(columns.using_set(name)[c]) for name in "abc"] == [
            VIEWS[view].generator == name for name in "abc"
        ]


def test_heads_are_grouped_by_generator_and_strength() -> None:
    columns, listed = HeadColumns.of(VIEWS, STRENGTHS), heads()
    chosen = torch.tensor([c for c in range(len(listed)) if c % 3])
    groups = [group.tolist() for group in columns.group_by_strength(chosen)]
    assert sorted(c for group in groups for c in group) == chosen.tolist()
    kinds = [{(VIEWS[listed[c][0]].generator, listed[c][2]) for c in group} for group in groups]
    assert all(len(kind) == 1 for kind in kinds)
    assert len(set.union(*kinds)) == len(groups)


@balanced_or_not
def test_losses_and_gradients_are_those_of_each_head_computed_alone(balanced: bool) -> None:
    rows, at = three_generators(), points()
    found, gradient = rows.problem(balanced).loss_and_gradient(at, torch.arange(len(heads())))
    for c, (view, fold, strength) in enumerate(heads()):
        weight, point = weights(rows, view, fold, balanced), at[:, c].numpy()
        assert weight.sum() == pytest.approx(1)
        assert float(found[c]) == pytest.approx(loss(rows, weight, strength, point), abs=1e-12)
        slope = approx_fprime(point, lambda p, w=weight, s=strength: loss(rows, w, s, p), 1e-7)
        np.testing.assert_allclose(gradient[:, c], slope, atol=1e-6)


@balanced_or_not
def test_gradients_are_exact(balanced: bool) -> None:
    rows, at = three_generators(3), points(2)
    _, gradient = rows.problem(balanced).loss_and_gradient(at, torch.arange(len(heads())))
    x, sign = torch.from_numpy(rows.x), torch.from_numpy(np.where(rows.name == REAL, -1.0, 1.0))
    for c, (view, fold, strength) in enumerate(heads()):
        point = at[:, c].clone().requires_grad_()
        losses = torch.nn.functional.softplus(-sign * (x @ point[:-1] + point[-1]))
        total = torch.from_numpy(weights(rows, view, fold, balanced)) @ losses
        (total + strength / 2 * point[:-1] @ point[:-1]).backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(gradient[:, c], point.grad, rtol=0, atol=1e-13)


@given(st.lists(st.integers(0, len(heads()) - 1), min_size=1, unique=True))
@examples(15)
def test_a_subset_of_heads_gives_the_same_values(chosen: list[int]) -> None:
    problem, at, index = three_generators().problem(), points(), torch.tensor(chosen)
    every, gradients = problem.loss_and_gradient(at, torch.arange(len(heads())))
    some, gradient = problem.loss_and_gradient(at[:, index], index)
    torch.testing.assert_close(some, every[index], rtol=0, atol=1e-14)
    torch.testing.assert_close(gradient, gradients[:, index], rtol=0, atol=1e-14)


@balanced_or_not
def test_hessians_are_the_means_over_their_heads(balanced: bool) -> None:
    rows, at = three_generators(4), points(5)
    problem = rows.problem(balanced)
    ones = np.hstack([rows.x, np.ones((len(rows.x), 1))])

    def alone(c: int) -> Floats:
        view, fold, _ = heads()[c]
        p = expit(ones @ at[:, c].numpy())
        return (ones * (weights(rows, view, fold, balanced) * p * (1 - p))[:, None]).T @ ones

    one_each = [torch.tensor([c]) for c in range(len(heads()))]
    for group in (one_each, problem.columns.group_by_strength(torch.arange(len(heads())))):
        found = problem.hessians(at, group)
        assert found.shape == (len(group), D + 1, D + 1)
        for matrix, members in zip(found.numpy(), group, strict=True):
            # In float32, which is enough to precondition.
            np.testing.assert_allclose(matrix, np.mean([alone(c) for c in members.tolist()], axis=0), atol=2e-6)


def test_a_hessian_is_the_derivative_of_the_gradient_without_penalty() -> None:
    problem, at, c = three_generators(6).problem(), points(7), 5
    index, step = torch.tensor([c]), 1e-4
    columns = []
    for j in range(D + 1):
        move = torch.zeros((D + 1, 1), dtype=torch.float64)
        move[j] = step
        ahead, behind = (problem.loss_and_gradient(at[:, [c]] + sign * move, index)[1] for sign in (1, -1))
        columns.append((ahead - behind)[:, 0] / (2 * step))
    slopes = torch.stack(columns, 1) - torch.diag(problem.penalty(index)[:, 0])
    torch.testing.assert_close(problem.hessians(at, [index])[0], slopes, rtol=0, atol=2e-6)


def test_intercepts_are_not_penalised() -> None:
    chosen = torch.tensor([7, 2])
    penalty = three_generators().problem().penalty(chosen)
    for column, c in enumerate(chosen.tolist()):
        assert penalty[:, column].tolist() == [heads()[c][2]] * D + [0.0]


@balanced_or_not
def test_out_of_fold_logits_are_those_of_a_heads_own_fold_without_the_prior(balanced: bool) -> None:
    rows, at = three_generators(8), points(9)
    sums = held_out(rows.problem(balanced), at).numpy()
    for c, (view, fold, _) in enumerate(heads()):
        weight = weights(rows, view, fold, balanced)
        prior = 0 if balanced else np.log(weight[rows.name != REAL].sum() / weight[rows.name == REAL].sum())
        for kind, name, sign in ((0, REAL, 1), (1, VIEWS[view].generator, -1)):
            own = (rows.name == name) & (rows.fold[:, view] == fold)
            logit = rows.x[own] @ at[:-1, c].numpy() + float(at[-1, c]) - prior
            assert sums[kind, 0, c] == pytest.approx(np.log1p(np.exp(sign * logit)).sum(), abs=1e-10)
            assert sums[kind, 1, c] == own.sum()


def test_the_prior_is_the_log_ratio_of_the_weights_outside_the_fold() -> None:
    rows = three_generators()
    assert (rows.problem(balanced=True).prior == 0).all()
    prior = rows.problem(balanced=False).prior
    for c, (view, fold, _) in enumerate(heads()):
        outside = rows.fold[:, view] != fold
        ratio = (outside & (rows.name == VIEWS[view].generator)).sum() / (outside & (rows.name == REAL)).sum()
        assert float(prior[c]) == pytest.approx(math.log(ratio))


@balanced_or_not
def test_a_row_is_masked_out_of_the_heads_of_its_own_fold(balanced: bool) -> None:
    rows, at, everyone = three_generators(10), points(), torch.arange(len(heads()))
    before, gradient = rows.problem(balanced).loss_and_gradient(at, everyone)
    for name in (REAL, "a"):
        changed = np.flatnonzero((rows.name == name) & (rows.fold[:, 0] == 2))
        x = rows.x.copy()
        x[changed] += 50
        other = replace(rows, x=x).problem(balanced)
        after, slope = other.loss_and_gradient(at, everyone)
        for c, (view, fold, _) in enumerate(heads()):
            if (view, fold) == (0, 2):
                assert after[c] == before[c]
                assert (slope[:, c] == gradient[:, c]).all()
            elif view == 0:
                assert abs(after[c] - before[c]) > 1e-3
            elif name == "a" and VIEWS[view].generator != "a":
                # Another generator's rows are in no view of this one.
                assert after[c] == before[c]


@balanced_or_not
def test_logits_of_any_size_have_finite_losses_and_gradients(balanced: bool) -> None:
    rows, everyone = three_generators(), torch.arange(len(heads()))
    for size in (1e3, 1e6):
        value, gradient = rows.problem(balanced).loss_and_gradient(size * points(), everyone)
        assert torch.isfinite(value).all()
        assert torch.isfinite(gradient).all()
        assert torch.isfinite(held_out(rows.problem(balanced), size * points())).all()
        hessians = rows.problem(balanced).hessians(size * points(), [everyone[:1]])
        assert torch.isfinite(hessians).all()


def everything(problem: LogisticLoss) -> list[torch.Tensor]:
    """All sums of a LogisticLoss at some points."""
    at, everyone = points(11), torch.arange(len(heads()))
    groups = problem.columns.group_by_strength(everyone)
    sums = [*problem.loss_and_gradient(at, everyone), held_out(problem, at), problem.prior]
    return [*sums, *(problem.weight[name] for name in sorted(problem.weight)), problem.hessians(at, groups)]


def assert_same_sums(found: LogisticLoss, expected: LogisticLoss) -> None:
    *exact, hessians = zip(everything(found), everything(expected), strict=True)
    for one, other in exact:
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    torch.testing.assert_close(*hessians, rtol=0, atol=2e-6)
    assert found.rows == expected.rows
    assert found.width == expected.width


@given(st.booleans(), st.integers(1, 50), st.integers(0, 100))
@examples(12)
def test_blocks_of_any_size_and_order_have_the_same_sums(balanced: bool, size: int, seed: int) -> None:
    rows = three_generators()
    order = np.random.default_rng(seed).permutation(len(rows.name))
    assert_same_sums(rows.take(order).problem(balanced, size), rows.problem(balanced))


def test_blocks_of_thousands_of_rows_have_the_same_sums_as_small_ones() -> None:
    rows = three_generators(scale=150)
    assert_same_sums(rows.problem(size=20_000), rows.problem(size=999))


@balanced_or_not
@pytest.mark.parametrize(
    "cuts", [(70,), (10, 120), (0, 60), (41, 70, 137)], ids=["two", "three", "empty", "by-set"]
)
def test_rows_sharded_over_workers_have_the_same_sums(balanced: bool, cuts: tuple[int, ...]) -> None:
    rows = three_generators()
    parts = [rows.take(part) for part in np.split(np.arange(len(rows.name)), cuts)]

    def work(rank: int, reduce_sum: ReduceSum) -> tuple[list[torch.Tensor], dict[str, int], int]:
        problem = parts[rank].problem(balanced, 13, reduce_sum)
        return everything(problem), problem.rows, problem.width

    whole = rows.problem(balanced)
    expected = everything(whole)
    for sums, counts, width in on_workers(len(parts), work):
        assert (counts, width) == (whole.rows, whole.width)
        for found, one in zip(sums[:-1], expected[:-1], strict=True):
            torch.testing.assert_close(found, one, rtol=0, atol=1e-11)
        torch.testing.assert_close(sums[-1], expected[-1], rtol=0, atol=2e-6)


def test_a_sample_of_all_rows_is_the_object_itself() -> None:
    problem = three_generators().problem()
    assert problem.sampled(67) is problem
    assert problem.sampled(34) is problem


@balanced_or_not
def test_a_sample_estimates_the_sums_of_all_rows(balanced: bool) -> None:
    rows, at, everyone = three_generators(scale=300), points() / 2, torch.arange(len(heads()))
    problem = rows.problem(balanced)
    sample = problem.sampled(4000)
    # The small set is complete; the others have about one row in 3, 2 and 5.
    assert sample.rows["c"] == 7 * 300
    for name, one_in in ((REAL, 3), ("a", 2), ("b", 5)):
        assert sample.rows[name] == pytest.approx(problem.rows[name] / one_in, rel=0.05)
    torch.testing.assert_close(sample.prior, problem.prior, rtol=0, atol=0.05)
    for part, whole in zip(
        sample.loss_and_gradient(at, everyone), problem.loss_and_gradient(at, everyone), strict=True
    ):
        torch.testing.assert_close(part, whole, rtol=0, atol=0.05)
    groups = problem.columns.group_by_strength(everyone)
    torch.testing.assert_close(sample.hessians(at, groups), problem.hessians(at, groups), rtol=0, atol=0.02)


@balanced_or_not
def test_the_weights_of_a_sample_add_up_to_one(balanced: bool) -> None:
    # With zero weights the loss is that of the intercept, for every head of a sample too.
    at = torch.zeros((D + 1, len(heads())), dtype=torch.float64)
    sample = three_generators(scale=20).problem(balanced).sampled(100)
    assert sum(sample.rows.values()) < 700
    found, _ = sample.loss_and_gradient(at, torch.arange(len(heads())))
    torch.testing.assert_close(found, torch.full_like(found, LOG_2), rtol=0, atol=1e-12)


def test_a_sample_of_a_sample_estimates_the_sums_of_all_rows() -> None:
    rows = three_generators(scale=300)
    problem = rows.problem(balanced=False)
    torch.testing.assert_close(problem.sampled(4000).sampled(1000).prior, problem.prior, rtol=0, atol=0.1)


def test_a_sample_depends_on_hashes_and_not_on_blocks_or_workers() -> None:
    rows = three_generators(scale=20)
    expected = everything(rows.problem().sampled(100))
    order = np.random.default_rng(0).permutation(len(rows.name))
    for found, one in zip(everything(rows.take(order).problem(size=50).sampled(100)), expected, strict=True):
        torch.testing.assert_close(found, one, rtol=0, atol=2e-6)
    parts = np.split(order, [100, 100, 2000])

    def work(rank: int, reduce_sum: ReduceSum) -> list[torch.Tensor]:
        return everything(rows.take(parts[rank]).problem(True, 50, reduce_sum).sampled(100))

    for sums in on_workers(len(parts), work):
        for found, one in zip(sums, expected, strict=True):
            torch.testing.assert_close(found, one, rtol=0, atol=2e-6)


def test_a_sample_is_read_once_and_cached() -> None:
    rows, passes = three_generators(scale=20), []
    blocks = rows.blocks()

    def counted() -> list[FeatureBlock]:
        passes.append(1)
        return blocks

    sample = LogisticLoss(HeadColumns.of(VIEWS, STRENGTHS), counted, True, same).sampled(100)
    before = len(passes)
    for _ in range(3):
        sample.loss_and_gradient(points(), torch.arange(len(heads())))
    assert len(passes) == before


def test_chosen_rows_of_a_block_keep_their_folds_and_keys() -> None:
    block = three_generators().blocks()[1]
    chosen = np.array([5, 0, 5, 11])
    some = block.rows(chosen)
    assert some.name == block.name == "a"
    assert some.key.tolist() == block.key[chosen].tolist()
    assert torch.equal(some.features, block.features[torch.from_numpy(chosen)])
    assert torch.equal(some.fold, block.fold[torch.from_numpy(chosen)])
    assert len(block.rows(np.array([], np.int64)).key) == 0
    assert torch.equal(block.sampled(1).features, block.features)


def test_chosen_rows_of_a_block_keep_their_jackknife_blocks() -> None:
    block = three_generators().blocks()[1]
    own = torch.arange(29 * 4, dtype=torch.int8).reshape(29, 4)
    chosen = np.array([5, 0, 11])
    some = replace(block, block=own).rows(chosen)
    assert some.block is not None
    assert torch.equal(some.block, own[torch.from_numpy(chosen)])
    assert block.rows(chosen).block is None


@balanced_or_not
def test_rows_outside_a_view_have_no_effect(balanced: bool) -> None:
    # Fold -1: the row enters no loss, class weight or out-of-fold sum of that view.
    rows, at, everyone = three_generators(12), points(13), torch.arange(len(heads()))
    out = np.random.default_rng(14).random(len(rows.name)) < 0.3
    masked = replace(rows, fold=np.where(out[:, None], -1, rows.fold).astype(np.int8))
    found, expected = masked.problem(balanced), rows.take(np.flatnonzero(~out)).problem(balanced)
    for one, other in zip(
        found.loss_and_gradient(at, everyone), expected.loss_and_gradient(at, everyone), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    torch.testing.assert_close(held_out(found, at), held_out(expected, at), rtol=0, atol=1e-11)
    torch.testing.assert_close(found.prior, expected.prior, rtol=0, atol=1e-11)
    groups = found.columns.group_by_strength(everyone)
    torch.testing.assert_close(found.hessians(at, groups), expected.hessians(at, groups), rtol=0, atol=2e-6)


def test_the_chunks_of_a_block_are_its_rows_in_float64() -> None:
    block = three_generators().blocks()[2]
    features, folds = zip(*block.chunks(10), strict=True)
    assert [len(part) for part in features] == [10] * 6 + [7]
    assert all(part.dtype == torch.float64 for part in features)
    assert torch.equal(torch.cat(features), block.features.double())
    assert torch.equal(torch.cat(folds), block.fold)


def test_the_states_of_several_fits_share_a_checkpoint() -> None:
    offered: list[dict[str, torch.Tensor]] = []
    whole = FitState({"b//points": torch.tensor([7.0])}, lambda give: offered.append(dict(give())))
    first, second = whole.part("a"), whole.part("b")
    assert first.state == {}
    assert {key: value.tolist() for key, value in second.state.items()} == {"points": [7.0]}
    first.save(lambda: {"points": torch.tensor([1.0]), "x/y": torch.tensor([2.0])})
    second.save(lambda: {"points": torch.tensor([3.0])})
    again = FitState(offered[-1])
    assert {key: value.tolist() for key, value in again.part("a").state.items()} == {"points": [1.0], "x/y": [2.0]}
    assert {key: value.tolist() for key, value in again.part("b").state.items()} == {"points": [3.0]}
    assert again.part("c").state == {}


def test_the_state_is_built_only_if_a_checkpoint_is_written() -> None:
    def give() -> dict[str, torch.Tensor]:
        raise AssertionError("nobody asked")

    FitState().save(give)
    FitState().part("a").save(give)
