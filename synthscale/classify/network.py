"""Train the ``mlp`` heads: one hidden layer, all folds and repeats of a generator at once, by AdamW.

Reads blocks of features and folds, returns an `MlpFit` for one generator. The epoch is chosen like the strength
of the logistic heads: one for all folds and repeats, by the least class-balanced out-of-fold log-loss; epoch 0 is
the constant network (every row 0.5). A row's batch is drawn by the hash of its id, so with features cached in
memory batches depend neither on the order of rows nor on the number of workers. On a CPU all arithmetic is in
float64, so the logits do not depend on them either; on a GPU matrix products are in bfloat16. Without the cache, a
step's rows come from a few files, which are read in turn along the epoch.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import silu, softplus

from synthscale.classify.fit_context import FitContext, FitState, ReduceSum
from synthscale.classify.fold_views import FeatureBlock, FoldView
from synthscale.classify.logistic_loss import LOG_2
from synthscale.generator_names import path_name
from synthscale.tables.id_hashes import mix
from synthscale.tables.schemas import REAL

_HIDDEN = 128
"""Hidden units."""
_BATCH_ROWS = 1024
"""Rows of a batch on average, over all workers and both classes."""
_MIN_STEPS = 16
"""Steps in an epoch, at least; batches of small sets are smaller than ``_BATCH_ROWS``."""
_EPOCHS = 200
"""Epochs, at most; a fit that reaches them is reported as not converged."""
_PATIENCE = 10
"""Early stopping: epochs without a lower log-loss after which training ends."""
_LEARNING_RATE = 1e-3
_WEIGHT_DECAY = 1e-2
_CHUNK_ROWS = 8192
"""Rows whose hidden activations are in memory at once."""
_BATCH_STREAM = 1_000_000
"""First of the hash streams that draw the batches, one for each epoch."""


@dataclass(frozen=True)
class MlpHeads:
    """k networks: the logit for fold f is silu(x @ hidden[f] + hidden_bias[f]) @ output[f] + output_bias[f].

    Attributes:
        hidden: (k, D, h).
        hidden_bias: (k, h).
        output: (k, h).
        output_bias: (k,).
    """

    hidden: torch.Tensor
    hidden_bias: torch.Tensor
    output: torch.Tensor
    output_bias: torch.Tensor

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits of all networks: (n, D) -> (k, n)."""
        inner = silu(
            torch.baddbmm(self.hidden_bias[:, None], features.expand(len(self.hidden), -1, -1), self.hidden)
        )
        return (inner * self.output[:, None]).sum(2) + self.output_bias[:, None]

    def of_fold(self, fold: int) -> "MlpHeads":
        """Return the network of one fold, as heads with k = 1."""
        return MlpHeads(*(getattr(self, f.name)[fold : fold + 1] for f in fields(self)))

    def out_of_fold_logits(self, features: torch.Tensor, fold: NDArray[np.int8]) -> NDArray[np.float64]:
        """Return each row's logit from the network trained without its fold: (n, D), (n,) -> (n,)."""
        result = np.zeros(len(fold))
        with torch.no_grad():
            for f in np.unique(fold).tolist():
                in_fold = np.flatnonzero(fold == f)
                for part in np.array_split(in_fold, math.ceil(len(in_fold) / _CHUNK_ROWS)):
                    result[part] = self.of_fold(f).logits(features[torch.from_numpy(part)])[0].cpu().numpy()
        return result

    def gradients(self, features: torch.Tensor, fold: NDArray[np.int8]) -> torch.Tensor:
        """Return the gradient of each row's out-of-fold logit in the features: (n, D), (n,) -> (n, D)."""
        result = torch.zeros_like(features)
        for f in np.unique(fold).tolist():
            in_fold = torch.from_numpy(np.flatnonzero(fold == f))
            inputs = features[in_fold].requires_grad_()
            (result[in_fold],) = torch.autograd.grad(self.of_fold(f).logits(inputs).sum(), inputs)
        return result


@dataclass(frozen=True)
class MlpFit:
    """A generator's networks at the chosen epoch, and how it was chosen.

    Attributes:
        heads: the k networks of each repeat.
        epoch: the chosen epoch; 0 is the constant network.
        log_loss: class-balanced out-of-fold log-loss (nats) by epoch.
        converged: whether early stopping ended training, before the limit of epochs.
    """

    heads: tuple[MlpHeads, ...]
    epoch: int
    log_loss: list[float]
    converged: bool

    def summary(self) -> dict[str, Any]:
        """Return the fit's keys of metrics.json."""
        return {
            "epoch": self.epoch,
            "log_loss_by_epoch": self.log_loss,
            "converged": self.converged,
        }


def bfloat16_autocast(networks: MlpHeads, features: torch.Tensor) -> torch.Tensor:
    """Return the logits of all networks, (n, D) -> (k, n), with products in bfloat16 and the rest in float32."""
    narrow = MlpHeads(*(getattr(networks, f.name).float() for f in fields(networks)))
    with torch.autocast(features.device.type, dtype=torch.bfloat16):
        return narrow.logits(features.float()).double()


SetBlocks = Callable[[str], Iterable[FeatureBlock]]
"""Starts a pass over this worker's rows of one set."""


def fit_mlp_heads(
    views: list[FoldView], columns: list[int], blocks: SetBlocks, dimensions: int, seed: int, workers: FitContext
) -> MlpFit:
    """Train the networks of one generator.

    Args:
        views: its fold assignments, one for each repeat.
        columns: their columns in the blocks' folds.
        blocks: starts a pass over a set's rows; features are the standardised embedding, (n, D), of norm about 1.
        dimensions: D.
        seed: of the initial weights.
        workers: all-reduce, and state of an interrupted fit.
    """
    loss = _MlpLoss(views, columns, blocks, workers.reduce_sum)
    training = _MlpTraining(loss, dimensions, seed, workers.resume.part(path_name(views[0].generator)))
    while training.epoch < _EPOCHS and not training.has_stopped:
        training.train_epoch()
    training.finish()
    return MlpFit(loss.split_by_repeat(training.best), training.best_epoch, training.losses, training.has_stopped)


class _MlpTraining:
    """Training state: the current networks, the optimizer, and the best networks so far."""

    def __init__(self, loss: "_MlpLoss", dimensions: int, seed: int, resume: FitState) -> None:
        self.loss, self._resume = loss, resume
        self.networks = loss.initial(dimensions, seed)
        self._parameters = [getattr(self.networks, f.name).requires_grad_() for f in fields(MlpHeads)]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
        self.losses, self.best_epoch, self.best = [LOG_2], 0, loss.constant(self.networks)
        if resume.state:
            self._load(resume.state)

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.losses) - 1

    @property
    def has_stopped(self) -> bool:
        """Whether early stopping ends the training: no lower log-loss for ``_PATIENCE`` epochs."""
        return self.epoch - self.best_epoch >= _PATIENCE

    def train_epoch(self) -> None:
        """Train for one epoch; copy the networks if their out-of-fold log-loss is the lowest so far."""
        for batch in self.loss.batches(self.epoch + 1):
            self._optimizer.zero_grad()
            self.loss.set_gradients(self.networks, self._parameters, batch)
            self._optimizer.step()
        self.losses.append(self.loss.out_of_fold_loss(self.networks))
        if self.losses[-1] < self.losses[self.best_epoch] - 1e-10:
            self.best_epoch = self.epoch
            self.best = MlpHeads(*(p.detach().clone() for p in self._parameters))
        self._resume.save(self._state)

    def finish(self) -> None:
        """Drop parameters and optimizer state from the checkpoint; keep the result."""
        self._resume.save_final(self._result())

    def _result(self) -> dict[str, torch.Tensor]:
        """Return the tensors of the result: log-losses, chosen epoch and best networks."""
        losses = torch.tensor(self.losses, dtype=torch.float64)
        numbers = {"losses": losses, "chosen": torch.tensor(self.best_epoch)}
        return numbers | {f"best/{f.name}": getattr(self.best, f.name) for f in fields(MlpHeads)}

    def _state(self) -> dict[str, torch.Tensor]:
        """Return the tensors of a checkpoint: the result so far, current parameters and optimizer state."""
        state = self._result()
        for f, parameter in zip(fields(MlpHeads), self._parameters, strict=True):
            state[f"now/{f.name}"] = parameter.detach()
            state |= {f"{key}/{f.name}": value for key, value in self._optimizer.state[parameter].items()}
        return state

    def _load(self, state: dict[str, torch.Tensor]) -> None:
        self.losses, self.best_epoch = state["losses"].tolist(), int(state["chosen"])
        device = self._parameters[0].device
        self.best = MlpHeads(*(state[f"best/{f.name}"].to(device) for f in fields(MlpHeads)))
        if "now/hidden" not in state:
            # Training had finished: the checkpoint has the result alone.
            return
        for f, parameter in zip(fields(MlpHeads), self._parameters, strict=True):
            parameter.data.copy_(state[f"now/{f.name}"])
            self._optimizer.state[parameter] = {
                key: state[f"{key}/{f.name}"].to(device, copy=True) for key in ("step", "exp_avg", "exp_avg_sq")
            }


class _MlpLoss:
    """Loss of one generator's networks, one for each repeat and fold, and the batches of its rows.

    Attributes:
        views: the fold assignments, one for each repeat.
        columns: their columns in the blocks' folds.
        sets: the real set and the generator, the order of classes in sums.
        column: (K,) column of the folds, for each network.
        fold: (K,) fold that each network leaves out.
        block_counts: number of this worker's blocks of each set.
        steps: steps in an epoch, the same on all workers.
        weight: (2, K) weight of a row in a batch's loss, by class and network.
    """

    def __init__(
        self, views: list[FoldView], columns: list[int], blocks: SetBlocks, reduce_sum: ReduceSum
    ) -> None:
        self.views, self.columns, self.blocks, self.reduce_sum = views, columns, blocks, reduce_sum
        self.sets = (REAL, views[0].generator)
        self.column = torch.tensor([c for c, view in zip(columns, views, strict=True) for _ in range(view.folds)])
        self.fold = torch.tensor([f for view in views for f in range(view.folds)])
        self.block_counts = dict.fromkeys(self.sets, 0)
        outside = torch.zeros((2, len(self.fold) + 1), dtype=torch.float64)
        for at, name in enumerate(self.sets):
            for block in blocks(name):
                self.block_counts[name] += 1
                outside[at, :-1] += self._outside(block).sum(1)
                outside[at, -1] += len(block.fold)
        outside = reduce_sum(outside)
        self.steps = max(_MIN_STEPS, math.ceil(float(outside[:, -1].sum()) / _BATCH_ROWS))
        # A batch has 1 / steps of the rows, on average, and its loss estimates that of all rows.
        self.weight = self.steps * torch.where(outside[:, :-1] > 0, 0.5 / outside[:, :-1], 0.0)

    def _outside(self, block: FeatureBlock) -> torch.Tensor:
        """Return 1.0 where a row is outside a network's fold, else 0.0: (K, n)."""
        return (block.fold.T[self.column] != self.fold[:, None]).double()

    def initial(self, dimensions: int, seed: int) -> MlpHeads:
        """Return networks with random weights, different for each repeat and fold."""
        rng = np.random.default_rng(seed)
        # Features have a norm of about 1, so with unit weights the hidden units have a deviation of about 1.
        hidden = torch.tensor(rng.normal(size=(len(self.fold), dimensions, _HIDDEN)))
        output = torch.tensor(rng.normal(size=(len(self.fold), _HIDDEN))) * (0.1 / math.sqrt(_HIDDEN))
        return MlpHeads(
            hidden, torch.zeros((len(self.fold), _HIDDEN)).double(), output, hidden.new_zeros(len(self.fold))
        )

    def constant(self, networks: MlpHeads) -> MlpHeads:
        """Return copies of initial networks with zero output weights: the probability is 0.5 for every row."""
        constant = replace(networks, output=torch.zeros_like(networks.output))
        return MlpHeads(*(getattr(constant, f.name).detach().clone() for f in fields(constant)))

    def split_by_repeat(self, networks: MlpHeads) -> tuple[MlpHeads, ...]:
        """Split the networks by repeat, k each."""
        sizes = [view.folds for view in self.views]
        parts = zip(*(torch.split(getattr(networks, f.name), sizes) for f in fields(networks)), strict=True)
        return tuple(MlpHeads(*part) for part in parts)

    def batches(self, epoch: int) -> Iterator[list[FeatureBlock]]:
        """Yield this worker's part of each step's batch; the number of steps is the same on all workers.

        Each block of a set serves an interval of the epoch's steps, so every batch has rows of both classes and
        one block of each set is in memory at a time. With one block per set, batches are drawn from all rows.
        """
        schedules = [
            _EpochSchedule(self.blocks(name), self.block_counts[name], self.steps, epoch) for name in self.sets
        ]
        for step in range(self.steps):
            yield [part for schedule in schedules for part in schedule.rows_at(step)]

    def set_gradients(self, networks: MlpHeads, parameters: list[torch.Tensor], batch: list[FeatureBlock]) -> None:
        """Set the parameters' gradients to those of a batch's class-balanced loss, all-reduced over workers."""
        for block in batch:
            signed = block.sign * self._logits(networks, block.features)
            weight = self._outside(block) * self.weight[int(block.sign > 0)][:, None]
            (softplus(-signed) * weight).sum().backward()  # type: ignore[no-untyped-call]
        shapes = [p.shape for p in parameters]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).ravel() for p in parameters])
        pieces = torch.split(self.reduce_sum(flat), [math.prod(shape) for shape in shapes])
        for parameter, piece, shape in zip(parameters, pieces, shapes, strict=True):
            parameter.grad = piece.view(shape)

    def _logits(self, networks: MlpHeads, features: torch.Tensor) -> torch.Tensor:
        return bfloat16_autocast(networks, features) if features.is_cuda else networks.logits(features.double())

    def out_of_fold_loss(self, networks: MlpHeads) -> float:
        """Return the class-balanced out-of-fold log-loss (nats) over all repeats."""
        sums = torch.zeros((2, 2), dtype=torch.float64)
        with torch.no_grad():
            for at, name in enumerate(self.sets):
                for block in self.blocks(name):
                    inside = 1 - self._outside(block)
                    for start in range(0, len(block.fold), _CHUNK_ROWS):
                        part = slice(start, start + _CHUNK_ROWS)
                        loss = softplus(-block.sign * self._logits(networks, block.features[part]))
                        sums[at, 0] += (loss * inside[:, part]).sum()
                    sums[at, 1] += inside.sum()
        sums = self.reduce_sum(sums)
        return float((sums[:, 0] / sums[:, 1]).mean())


class _EpochSchedule:
    """Split one set's rows over an epoch's T steps.

    The rows of block j of B are drawn in steps j T / B to (j + 1) T / B.
    """

    def __init__(self, blocks: Iterable[FeatureBlock], block_count: int, steps: int, epoch: int) -> None:
        self._blocks, self._block_count, self._steps, self._epoch = iter(blocks), block_count, steps, epoch
        self._next, self._parts = 0, dict[int, list[FeatureBlock]]()

    def rows_at(self, step: int) -> list[FeatureBlock]:
        """Return the rows of a step; call it for steps in ascending order."""
        while self._next < self._block_count and self._next * self._steps // self._block_count <= step:
            start = self._next * self._steps // self._block_count
            stop = max(start + 1, (self._next + 1) * self._steps // self._block_count)
            block = next(self._blocks)
            drawn = start + (mix(block.key, _BATCH_STREAM + self._epoch) % np.uint64(stop - start)).astype(
                np.int64
            )
            for chosen in np.unique(drawn).tolist():
                self._parts.setdefault(chosen, []).append(block.rows(np.flatnonzero(drawn == chosen)))
            self._next += 1
        return self._parts.pop(step, [])
