"""Small networks for large data: one hidden layer, all folds and deals of a generator at once, by AdamW.

Which epoch to stop at is chosen as the strength of the other heads is: one for all folds, by class-balanced
out-of-fold log-loss, from the network that knows nothing (every row 0.5) on. A row's batch is drawn from its key,
so where rows are held in memory batches do not depend on their order or the number of workers; on a CPU all is in
float64, so neither do the answers. Rows that are read in each pass take turns by files. On a GPU products are in
bfloat16.
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
from synthscale.classify.logistic_loss import LOG_2, FeatureBlock, FoldView
from synthscale.tables.id_hashes import mix
from synthscale.tables.schemas import REAL

_HIDDEN = 128
_BATCH_ROWS = 1024
_LEAST_STEPS = 16
"""Steps in an epoch, however few rows there are."""
_EPOCHS = 200
_PATIENCE = 10
"""Epochs without a lower log-loss after which training ends."""
_LEARNING_RATE = 1e-3
_WEIGHT_DECAY = 1e-2
_CHUNK_ROWS = 8192
_BATCH_STREAM = 1_000_000


@dataclass(frozen=True)
class MlpHeads:
    """k networks: the logit for fold f is silu(x @ hidden[f] + hidden_bias[f]) @ output[f] + output_bias[f]."""

    hidden: torch.Tensor
    hidden_bias: torch.Tensor
    output: torch.Tensor
    output_bias: torch.Tensor

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return every network's logits: (n, D) -> (k, n)."""
        inner = silu(
            torch.baddbmm(self.hidden_bias[:, None], features.expand(len(self.hidden), -1, -1), self.hidden)
        )
        return (inner * self.output[:, None]).sum(2) + self.output_bias[:, None]

    def of(self, fold: int) -> "MlpHeads":
        """Return one fold's network alone."""
        return MlpHeads(*(getattr(self, f.name)[fold : fold + 1] for f in fields(self)))

    def out_of_fold_logits(self, features: torch.Tensor, fold: NDArray[np.int8]) -> NDArray[np.float64]:
        """Return each row's logit of being synthetic, by the network that did not see it: (n, D), (n,) -> (n,)."""
        result = np.zeros(len(fold))
        with torch.no_grad():
            for f in np.unique(fold).tolist():
                own = np.flatnonzero(fold == f)
                for part in np.array_split(own, math.ceil(len(own) / _CHUNK_ROWS)):
                    result[part] = self.of(f).logits(features[torch.from_numpy(part)])[0].cpu().numpy()
        return result

    def gradients(self, features: torch.Tensor, fold: NDArray[np.int8]) -> torch.Tensor:
        """Return the gradient of each row's out-of-fold logit by the features: (n, D), (n,) -> (n, D)."""
        result = torch.zeros_like(features)
        for f in np.unique(fold).tolist():
            own = torch.from_numpy(np.flatnonzero(fold == f))
            inputs = features[own].requires_grad_()
            (result[own],) = torch.autograd.grad(self.of(f).logits(inputs).sum(), inputs)
        return result


@dataclass(frozen=True)
class MlpFit:
    """A generator's networks at the chosen epoch, one ``Networks`` a deal, and what the choice was made by."""

    heads: tuple[MlpHeads, ...]
    epoch: int
    log_loss: list[float]
    converged: bool

    def summary(self) -> dict[str, Any]:
        """Return what was chosen and why, for JSON."""
        return {
            "epoch": self.epoch,
            "log_loss_by_epoch": self.log_loss,
            "converged": self.converged,
        }


def bfloat16_autocast(networks: MlpHeads, features: torch.Tensor) -> torch.Tensor:
    """Return every network's logits, (n, D) -> (k, n), with products in bfloat16 and all else in float32."""
    narrow = MlpHeads(*(getattr(networks, f.name).float() for f in fields(networks)))
    with torch.autocast(features.device.type, dtype=torch.bfloat16):
        return narrow.logits(features.float()).double()


SetBlocks = Callable[[str], Iterable[FeatureBlock]]
"""A pass over this worker's rows of one set."""


def fit_mlp_heads(
    views: list[FoldView], columns: list[int], blocks: SetBlocks, dimensions: int, seed: int, workers: FitContext
) -> MlpFit:
    """Train the networks of one generator.

    Args:
        views: its deals.
        columns: their columns in the blocks' folds.
        blocks: a pass over a set's rows; features are the standardised embedding, (n, D), of norm about 1.
        dimensions: D.
        seed: of the first weights.
        workers: how they add up, and where an interrupted fit goes on.
    """
    training = _MlpLoss(views, columns, blocks, workers.reduce_sum)
    course = _MlpTraining(training, dimensions, seed, workers.resume.part(views[0].generator))
    while course.epoch < _EPOCHS and not course.is_settled:
        course.train_an_epoch()
    course.end()
    return MlpFit(training.by_deal(course.best), course.chosen, course.losses, course.is_settled)


class _MlpTraining:
    """Training so far: the networks, the optimiser, and the best networks yet."""

    def __init__(self, training: "_MlpLoss", dimensions: int, seed: int, resume: FitState) -> None:
        self.training, self._resume = training, resume
        self.networks = training.initial(dimensions, seed)
        self._parameters = [getattr(self.networks, f.name).requires_grad_() for f in fields(MlpHeads)]
        self._optimiser = torch.optim.AdamW(self._parameters, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
        self.losses, self.chosen, self.best = [LOG_2], 0, training.nothing(self.networks)
        if resume.state:
            self._load(resume.state)

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.losses) - 1

    @property
    def is_settled(self) -> bool:
        """Whether more epochs did not help."""
        return self.epoch - self.chosen >= _PATIENCE

    def train_an_epoch(self) -> None:
        """Go once over the rows; keep the networks if they are the best yet."""
        for batch in self.training.batches(self.epoch + 1):
            self._optimiser.zero_grad()
            self.training.set_gradients(self.networks, self._parameters, batch)
            self._optimiser.step()
        self.losses.append(self.training.held_out_loss(self.networks))
        if self.losses[-1] < self.losses[self.chosen] - 1e-10:
            self.chosen = self.epoch
            self.best = MlpHeads(*(p.detach().clone() for p in self._parameters))
        self._resume.keep(self._state)

    def end(self) -> None:
        """Leave only the answer with what other fits keep: neither parameters nor optimiser are needed again."""
        self._resume.settle(self._answer())

    def _answer(self) -> dict[str, torch.Tensor]:
        numbers = {"losses": torch.tensor(self.losses, dtype=torch.float64), "chosen": torch.tensor(self.chosen)}
        return numbers | {f"best/{f.name}": getattr(self.best, f.name) for f in fields(MlpHeads)}

    def _state(self) -> dict[str, torch.Tensor]:
        state = self._answer()
        for f, parameter in zip(fields(MlpHeads), self._parameters, strict=True):
            state[f"now/{f.name}"] = parameter.detach()
            state |= {f"{key}/{f.name}": value for key, value in self._optimiser.state[parameter].items()}
        return state

    def _load(self, state: dict[str, torch.Tensor]) -> None:
        self.losses, self.chosen = state["losses"].tolist(), int(state["chosen"])
        device = self._parameters[0].device
        self.best = MlpHeads(*(state[f"best/{f.name}"].to(device) for f in fields(MlpHeads)))
        if "now/hidden" not in state:
            return  # it had ended
        for f, parameter in zip(fields(MlpHeads), self._parameters, strict=True):
            parameter.data.copy_(state[f"now/{f.name}"])
            self._optimiser.state[parameter] = {
                key: state[f"{key}/{f.name}"].to(device, copy=True) for key in ("step", "exp_avg", "exp_avg_sq")
            }


class _MlpLoss:
    """The rows of one generator's views, in batches that all workers agree on."""

    def __init__(
        self, views: list[FoldView], columns: list[int], blocks: SetBlocks, reduce_sum: ReduceSum
    ) -> None:
        self.views, self.columns, self.blocks, self.reduce_sum = views, columns, blocks, reduce_sum
        self.sets = (REAL, views[0].generator)
        # One network for each deal and fold.
        self.column = torch.tensor([c for c, view in zip(columns, views, strict=True) for _ in range(view.folds)])
        self.fold = torch.tensor([f for view in views for f in range(view.folds)])
        self.windows = dict.fromkeys(self.sets, 0)
        outside = torch.zeros((2, len(self.fold) + 1), dtype=torch.float64)
        for at, name in enumerate(self.sets):
            for block in blocks(name):
                self.windows[name] += 1
                outside[at, :-1] += self._outside(block).sum(1)
                outside[at, -1] += len(block.fold)
        outside = reduce_sum(outside)
        self.steps = max(_LEAST_STEPS, math.ceil(float(outside[:, -1].sum()) / _BATCH_ROWS))
        # A step sees one part in so many of the rows, and stands for all of them.
        self.weight = self.steps * torch.where(outside[:, :-1] > 0, 0.5 / outside[:, :-1], 0.0)

    def _outside(self, block: FeatureBlock) -> torch.Tensor:
        return (block.fold.T[self.column] != self.fold[:, None]).double()

    def initial(self, dimensions: int, seed: int) -> MlpHeads:
        """Return networks with small random weights, of each fold and deal its own."""
        rng = np.random.default_rng(seed)
        # Features have a norm of about 1, so this gives the hidden units a deviation of about 1.
        hidden = torch.tensor(rng.normal(size=(len(self.fold), dimensions, _HIDDEN)))
        output = torch.tensor(rng.normal(size=(len(self.fold), _HIDDEN))) * (0.1 / math.sqrt(_HIDDEN))
        return MlpHeads(
            hidden, torch.zeros((len(self.fold), _HIDDEN)).double(), output, hidden.new_zeros(len(self.fold))
        )

    def nothing(self, networks: MlpHeads) -> MlpHeads:
        """Return the networks that answer 0.5 to every row."""
        still = replace(networks, output=torch.zeros_like(networks.output))
        return MlpHeads(*(getattr(still, f.name).detach().clone() for f in fields(still)))

    def by_deal(self, networks: MlpHeads) -> tuple[MlpHeads, ...]:
        """Return the networks of each deal."""
        sizes = [view.folds for view in self.views]
        parts = zip(*(torch.split(getattr(networks, f.name), sizes) for f in fields(networks)), strict=True)
        return tuple(MlpHeads(*part) for part in parts)

    def batches(self, epoch: int) -> Iterator[list[FeatureBlock]]:
        """Yield this worker's share of each step's rows, as often on every worker.

        A set's blocks take turns along the epoch, so both classes are in every batch and one block of each is read
        at a time; with one block a set, batches are drawn from all rows.
        """
        turns = [_EpochSchedule(self.blocks(name), self.windows[name], self.steps, epoch) for name in self.sets]
        for step in range(self.steps):
            yield [part for turn in turns for part in turn.at(step)]

    def set_gradients(self, networks: MlpHeads, parameters: list[torch.Tensor], batch: list[FeatureBlock]) -> None:
        """Set the parameters' gradients to those of the class-balanced loss over a batch of all workers."""
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

    def held_out_loss(self, networks: MlpHeads) -> float:
        """Return the class-balanced out-of-fold log-loss over all deals."""
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
    """One set's blocks along an epoch: block j of B serves the steps from j T / B to (j + 1) T / B."""

    def __init__(self, blocks: Iterable[FeatureBlock], windows: int, steps: int, epoch: int) -> None:
        self._blocks, self._windows, self._steps, self._epoch = iter(blocks), windows, steps, epoch
        self._next, self._parts = 0, dict[int, list[FeatureBlock]]()

    def at(self, step: int) -> list[FeatureBlock]:
        """Return the rows of a step; steps are asked for in order."""
        while self._next < self._windows and self._next * self._steps // self._windows <= step:
            start = self._next * self._steps // self._windows
            stop = max(start + 1, (self._next + 1) * self._steps // self._windows)
            block = next(self._blocks)
            drawn = start + (mix(block.key, _BATCH_STREAM + self._epoch) % np.uint64(stop - start)).astype(
                np.int64
            )
            for chosen in np.unique(drawn).tolist():
                self._parts.setdefault(chosen, []).append(block.rows(np.flatnonzero(drawn == chosen)))
            self._next += 1
        return self._parts.pop(step, [])
