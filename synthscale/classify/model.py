"""A run's fitted classifier: feature map, heads and separating directions, and their form in a file."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray

from synthscale.classify.calibration import PlattScaling
from synthscale.classify.features import FeatureMap, LinearHeads
from synthscale.classify.jackknife_refits import JackknifeRefits
from synthscale.classify.network import MlpHeads
from synthscale.tables.schemas import DIRECTIONS


class OutOfFoldModel(Protocol):
    """Fitted heads of one deal, whatever their kind: a dataclass of tensors."""

    def out_of_fold_logits(self, features: torch.Tensor, fold: NDArray[np.int8]) -> NDArray[np.float64]:
        """Return each row's logit of being synthetic, by the head that did not see it: (n, D), (n,) -> (n,)."""
        ...

    def gradients(self, features: torch.Tensor, fold: NDArray[np.int8]) -> torch.Tensor:
        """Return the logits' gradients by the features: (n, D)."""
        ...


def to_cpu(heads: OutOfFoldModel) -> OutOfFoldModel:
    """Return heads with their tensors in the processor's memory."""
    kind = type(heads)
    moved: OutOfFoldModel = kind(*(getattr(heads, f.name).cpu() for f in fields(cast(Any, kind))))
    return moved


def out_of_fold_logits(
    heads: tuple[OutOfFoldModel, ...], features: torch.Tensor, fold: NDArray[np.int8]
) -> NDArray[np.float64]:
    """Return each deal's out-of-fold logits of rows with features (n, D) and folds (n, deals): (n, deals)."""
    return np.stack([repeat.out_of_fold_logits(features, fold[:, i]) for i, repeat in enumerate(heads)], 1)


class FitWithSummary(Protocol):
    """A fit that can say what was chosen and why."""

    def summary(self) -> dict[str, Any]:
        """Return it, for JSON."""
        ...


_ROWS = 8192
"""Rows whose features are in memory at once when rows are answered."""
_KINDS: dict[str, type[Any]] = {"logistic": LinearHeads, "mlp": MlpHeads}


@dataclass(frozen=True)
class SeparatingDirections:
    """Directions that separate a generator from the real set most, strongest first.

    Attributes:
        axes: (a, d) unit vectors in the standardised embedding; synthetic rows lie towards the positive end.
        share: (a,) of the change of the logit that each one holds, 0..1.
    """

    axes: torch.Tensor
    share: torch.Tensor

    def places(self, standardised: torch.Tensor) -> NDArray[np.float64]:
        """Return where rows, (n, d), lie along each direction: (n, a)."""
        result: NDArray[np.float64] = (standardised @ self.axes.T).numpy()
        return result


@dataclass(frozen=True)
class RefittedLogits:
    """Calibrated out-of-fold logits by heads that did not see some rows; None where nothing was refitted.

    Attributes:
        without: (n, BLOCKS) without each block of the jackknife, NaN in the row's own.
        matched: (n, 1 + BLOCKS) on the matched subsample, and on that without each block; NaN outside of it.
        reassigned: (n, REASSIGNMENTS) under other fold assignments.
    """

    without: NDArray[np.float64] | None = None
    matched: NDArray[np.float64] | None = None
    reassigned: NDArray[np.float64] | None = None


_KIND_NAMES = tuple(part.name for part in fields(RefittedLogits))
_REFIT_ARRAYS = ("slope", "offset", "without", "reassignment")


@dataclass(frozen=True)
class FittedClassifier:
    """A feature map, each generator's heads, one a deal, how they are calibrated, and what they separate by.

    ``refits`` are the heads without some rows, where they are logistic: without each block of the jackknife, and
    on the matched subsample where there is one.
    """

    feature_map: FeatureMap
    heads: dict[str, tuple[OutOfFoldModel, ...]]
    calibrations: dict[str, PlattScaling] = field(default_factory=dict)
    directions: dict[str, SeparatingDirections] = field(default_factory=dict)
    refits: dict[str, list[JackknifeRefits]] = field(default_factory=dict)

    def logits(self, generator: str, features: torch.Tensor, fold: NDArray[np.int8]) -> NDArray[np.float64]:
        """Return calibrated out-of-fold logits of rows with features (n, D) and folds (n, deals): (n, deals)."""
        logits = out_of_fold_logits(self.heads[generator], features, fold)
        return self.calibrations[generator](logits, fold) if generator in self.calibrations else logits

    def answers(
        self, generator: str, vectors: NDArray[np.floating], fold: NDArray[np.int8]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Answer rows with vectors (n, d) and folds (n, deals), some at a time.

        Returns:
            Calibrated out-of-fold logits, (n, deals), and places along the generator's directions,
            (n, DIRECTIONS); NaN where it has fewer.
        """
        logits, direction_coordinates = np.empty(fold.shape), np.full((len(fold), DIRECTIONS), np.nan)
        found = self.directions.get(generator)
        for start in range(0, len(fold), _ROWS):
            part = slice(start, start + _ROWS)
            # A copy: torch warns of arrays that may not be written.
            rows = torch.from_numpy(vectors[part].copy())
            logits[part] = self.logits(generator, self.feature_map(rows), fold[part])
            if found is not None:
                direction_coordinates[part, : len(found.axes)] = found.places(self.feature_map.standardise(rows))
        return logits, direction_coordinates

    def refitted(
        self, generator: str, vectors: NDArray[np.floating], fold: NDArray[np.int8], block: NDArray[np.int8]
    ) -> "RefittedLogits":
        """Answer rows with vectors (n, d), folds (n,) of the first deal and codes of blocks (n,)."""
        refits = self.refits.get(generator, [])
        logits = [np.empty((len(fold), len(own.without))) for own in refits]
        for start in range(0, len(fold) if refits else 0, _ROWS):
            part = slice(start, start + _ROWS)
            features = self.feature_map(torch.from_numpy(vectors[part].copy()))
            for own, found in zip(refits, logits, strict=True):
                found[part] = own.logits(features, fold[part], block[part])
        by_kind = {_kind(own): found for own, found in zip(refits, logits, strict=True)}
        return RefittedLogits(*(by_kind.get(kind) for kind in _KIND_NAMES))

    def summaries(self, fits: Mapping[str, FitWithSummary]) -> dict[str, Any]:
        """Return what each generator's fit, calibration and directions say of themselves, for JSON."""
        return {
            name: {
                **fit.summary(),
                "calibrated": self.calibrations[name].summary(),
                "directions": self.directions[name].share.tolist() if name in self.directions else [],
            }
            for name, fit in fits.items()
        }

    def to_bytes(self) -> bytes:
        """Return the model as the bytes of an ``.npz`` file."""
        arrays = {f"map/{f.name}": getattr(self.feature_map, f.name).cpu().numpy() for f in fields(FeatureMap)}
        for generator, repeats in self.heads.items():
            for i, heads in enumerate(repeats):
                kind = next(name for name, kept in _KINDS.items() if isinstance(heads, kept))
                for part in fields(_KINDS[kind]):
                    arrays[f"{kind}/{i}/{generator}/{part.name}"] = getattr(heads, part.name).cpu().numpy()
        for generator, calibration in self.calibrations.items():
            for part in fields(PlattScaling):
                arrays[f"calibration/{generator}/{part.name}"] = np.asarray(getattr(calibration, part.name))
        for generator, found in self.directions.items():
            arrays |= {f"directions/{generator}/{f.name}": getattr(found, f.name).numpy() for f in fields(found)}
        for generator, refits in self.refits.items():
            for own in refits:
                name = f"refits/{_kind(own)}/{generator}"
                # Half the size; they only say how far figures spread.
                arrays[f"{name}/weights"] = own.heads.weights.cpu().numpy().astype(np.float32)
                arrays[f"{name}/intercepts"] = own.heads.intercepts.cpu().numpy()
                arrays |= {f"{name}/{part}": getattr(own, part) for part in _REFIT_ARRAYS}
        out = io.BytesIO()
        np.savez(out, allow_pickle=False, **arrays)
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "FittedClassifier":
        """Read what `to_bytes` gave."""
        with np.load(io.BytesIO(data)) as arrays:
            tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        feature_map = FeatureMap(**{f.name: tensors[f"map/{f.name}"] for f in fields(FeatureMap)})
        found: dict[str, dict[int, tuple[str, dict[str, torch.Tensor]]]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            if kind in _KINDS:
                repeat, generator, part = rest.split("/")
                found.setdefault(generator, {}).setdefault(int(repeat), (kind, {}))[1][part] = tensor
        heads = {
            generator: tuple(_KINDS[kind](**parts) for _, (kind, parts) in sorted(repeats.items()))
            for generator, repeats in found.items()
        }
        calibrations = {
            generator: PlattScaling(
                tensors[f"calibration/{generator}/slope"].numpy(),
                tensors[f"calibration/{generator}/offset"].numpy(),
                tuple(tensors[f"calibration/{generator}/log_loss"].tolist()),
                float(tensors[f"calibration/{generator}/error"]),
            )
            for generator in heads
            if f"calibration/{generator}/slope" in tensors
        }
        directions = {
            generator: SeparatingDirections(
                *(tensors[f"directions/{generator}/{f.name}"] for f in fields(SeparatingDirections))
            )
            for generator in heads
            if f"directions/{generator}/axes" in tensors
        }
        refits = {generator: _refits_of(tensors, generator) for generator in heads}
        return cls(feature_map, heads, calibrations, directions, refits)


def _kind(refits: JackknifeRefits) -> str:
    """Return which of the fields of `Refitted` these heads answer."""
    return "matched" if refits.is_matched else ("reassigned" if refits.reassignment.any() else "without")


def _refits_of(tensors: dict[str, torch.Tensor], generator: str) -> list[JackknifeRefits]:
    found = []
    for kind in _KIND_NAMES:
        own = f"refits/{kind}/{generator}"
        if f"{own}/weights" in tensors:
            heads = LinearHeads(tensors[f"{own}/weights"].double(), tensors[f"{own}/intercepts"])
            slope, offset, without, reassignment = (tensors[f"{own}/{part}"].numpy() for part in _REFIT_ARRAYS)
            found.append(JackknifeRefits(heads, slope, offset, without, reassignment, kind == "matched"))
    return found
