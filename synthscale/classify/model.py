"""The fitted classifier: out-of-fold logits of rows, and its ``.npz`` format.

`FittedClassifier.to_bytes` and `from_bytes` convert it to and from ``classifier/*.npz``, which `ray_train.py`
writes and `ray_prediction.py` reads.
"""

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
from synthscale.tables.plain_data import arrays_from_npz, arrays_to_npz
from synthscale.tables.schemas import DIRECTIONS


class OutOfFoldModel(Protocol):
    """The k fitted heads of one generator and repeat, linear or networks: a dataclass of tensors."""

    def out_of_fold_logits(self, features: torch.Tensor, fold: NDArray[np.int8]) -> NDArray[np.float64]:
        """Return each row's logit from the head fitted without its fold: (n, D), (n,) -> (n,)."""
        ...

    def gradients(self, features: torch.Tensor, fold: NDArray[np.int8]) -> torch.Tensor:
        """Return the gradient of each row's out-of-fold logit in the features: (n, D), (n,) -> (n, D)."""
        ...


def to_cpu(heads: OutOfFoldModel) -> OutOfFoldModel:
    """Return the heads with their tensors in CPU memory."""
    kind = type(heads)
    moved: OutOfFoldModel = kind(*(getattr(heads, f.name).cpu() for f in fields(cast(Any, kind))))
    return moved


def out_of_fold_logits(
    heads: tuple[OutOfFoldModel, ...], features: torch.Tensor, fold: NDArray[np.int8]
) -> NDArray[np.float64]:
    """Return the out-of-fold logits of each repeat, not calibrated: (n, repeats).

    Args:
        heads: one for each repeat.
        features: (n, D).
        fold: (n, repeats).
    """
    return np.stack([repeat.out_of_fold_logits(features, fold[:, i]) for i, repeat in enumerate(heads)], 1)


class FitWithSummary(Protocol):
    """A fit that reports what it chose."""

    def summary(self) -> dict[str, Any]:
        """Return the fit's keys of metrics.json."""
        ...


_ROWS = 8192
"""Rows whose features are in memory at once during prediction."""
_KINDS: dict[str, type[Any]] = {"logistic": LinearHeads, "mlp": MlpHeads}


@dataclass(frozen=True)
class SeparatingDirections:
    """Directions along which the logit changes most, strongest first (`directions.find_directions`).

    Attributes:
        axes: (a, d) unit vectors in the standardised embedding; the synthetic mean is at the positive end.
        share: (a,) share of the logit's change along each, 0..1.
    """

    axes: torch.Tensor
    share: torch.Tensor

    def coordinates(self, standardised: torch.Tensor) -> NDArray[np.float64]:
        """Return the coordinates of standardised rows, (n, d), along each direction: (n, a)."""
        result: NDArray[np.float64] = (standardised @ self.axes.T).numpy()
        return result


@dataclass(frozen=True)
class RefittedLogits:
    """Calibrated out-of-fold logits of the jackknife's refitted heads; None for kinds that were not refitted.

    Attributes:
        without: (n, BLOCKS) from heads without each jackknife block; NaN for the row's own block.
        matched: (n, 1 + BLOCKS) from heads of the matched subsample, then of it without each block; NaN for rows
            outside the subsample or in the block.
        reassigned: (n, REASSIGNMENTS) from heads under other fold assignments.
    """

    without: NDArray[np.float64] | None = None
    matched: NDArray[np.float64] | None = None
    reassigned: NDArray[np.float64] | None = None


_KIND_NAMES = tuple(part.name for part in fields(RefittedLogits))
_REFIT_ARRAYS = ("slope", "offset", "without", "reassignment")


@dataclass(frozen=True)
class FittedClassifier:
    """The feature map and, by generator, heads, calibration, separating directions and the jackknife's refits.

    Attributes:
        feature_map: shared by all generators.
        heads: each generator's heads, one entry per repeat.
        calibrations: Platt scaling of each generator's logits.
        directions: directions along which each generator's logit changes most.
        refits: heads refitted without each jackknife block, under other fold assignments and on the matched
            subsample; empty for networks.
    """

    feature_map: FeatureMap
    heads: dict[str, tuple[OutOfFoldModel, ...]]
    calibrations: dict[str, PlattScaling] = field(default_factory=dict)
    directions: dict[str, SeparatingDirections] = field(default_factory=dict)
    refits: dict[str, list[JackknifeRefits]] = field(default_factory=dict)

    def logits(self, generator: str, features: torch.Tensor, fold: NDArray[np.int8]) -> NDArray[np.float64]:
        """Return calibrated out-of-fold logits: (n, repeats).

        Args:
            generator: whose heads to use.
            features: (n, D).
            fold: (n, repeats).
        """
        logits = out_of_fold_logits(self.heads[generator], features, fold)
        return self.calibrations[generator](logits, fold) if generator in self.calibrations else logits

    def predict(
        self, generator: str, vectors: NDArray[np.floating], fold: NDArray[np.int8]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Predict rows, in chunks.

        Args:
            generator: whose heads to use.
            vectors: (n, d).
            fold: (n, repeats).

        Returns:
            Calibrated out-of-fold logits, (n, repeats), and coordinates along the generator's directions,
            (n, DIRECTIONS); NaN for directions that it lacks.
        """
        logits, direction_coordinates = np.empty(fold.shape), np.full((len(fold), DIRECTIONS), np.nan)
        directions = self.directions.get(generator)
        for start in range(0, len(fold), _ROWS):
            part = slice(start, start + _ROWS)
            # A copy, because torch warns about read-only arrays.
            rows = torch.from_numpy(vectors[part].copy())
            logits[part] = self.logits(generator, self.feature_map(rows), fold[part])
            if directions is not None:
                coordinates = directions.coordinates(self.feature_map.standardise(rows))
                direction_coordinates[part, : len(directions.axes)] = coordinates
        return logits, direction_coordinates

    def predict_refits(
        self, generator: str, vectors: NDArray[np.floating], fold: NDArray[np.int8], block: NDArray[np.int16]
    ) -> "RefittedLogits":
        """Predict rows by the jackknife's refitted heads, in chunks.

        Args:
            generator: whose heads to use.
            vectors: (n, d).
            fold: (n,) folds of the first repeat.
            block: (n,) jackknife block codes (`size_matching.block_codes`).
        """
        refits = self.refits.get(generator, [])
        logits = [np.empty((len(fold), len(refit.without))) for refit in refits]
        for start in range(0, len(fold) if refits else 0, _ROWS):
            part = slice(start, start + _ROWS)
            features = self.feature_map(torch.from_numpy(vectors[part].copy()))
            for refit, refit_logits in zip(refits, logits, strict=True):
                refit_logits[part] = refit.logits(features, fold[part], block[part])
        by_kind = {_kind(refit): refit_logits for refit, refit_logits in zip(refits, logits, strict=True)}
        return RefittedLogits(*(by_kind.get(kind) for kind in _KIND_NAMES))

    def summaries(self, fits: Mapping[str, FitWithSummary]) -> dict[str, Any]:
        """Return, for each generator, the keys of metrics.json from its fit, calibration and directions."""
        return {
            name: {
                **fit.summary(),
                "calibrated": self.calibrations[name].summary(),
                "directions": self.directions[name].share.tolist() if name in self.directions else [],
            }
            for name, fit in fits.items()
        }

    def to_bytes(self) -> bytes:
        """Serialise the model to an ``.npz`` file."""
        arrays = {f"map/{f.name}": getattr(self.feature_map, f.name).cpu().numpy() for f in fields(FeatureMap)}
        for generator, repeats in self.heads.items():
            for i, heads in enumerate(repeats):
                kind = next(name for name, head_type in _KINDS.items() if isinstance(heads, head_type))
                for part in fields(_KINDS[kind]):
                    arrays[f"{kind}/{i}/{generator}/{part.name}"] = getattr(heads, part.name).cpu().numpy()
        for generator, calibration in self.calibrations.items():
            for part in fields(PlattScaling):
                arrays[f"calibration/{generator}/{part.name}"] = np.asarray(getattr(calibration, part.name))
        for generator, directions in self.directions.items():
            for part in fields(directions):
                arrays[f"directions/{generator}/{part.name}"] = getattr(directions, part.name).numpy()
        for generator, refits in self.refits.items():
            for refit in refits:
                name = f"refits/{_kind(refit)}/{generator}"
                # float32 halves the file and is precise enough, as only the spread over refits is used.
                arrays[f"{name}/weights"] = refit.heads.weights.cpu().numpy().astype(np.float32)
                arrays[f"{name}/intercepts"] = refit.heads.intercepts.cpu().numpy()
                arrays |= {f"{name}/{part}": getattr(refit, part) for part in _REFIT_ARRAYS}
        return arrays_to_npz(arrays)

    @classmethod
    def from_bytes(cls, data: bytes, path: str = "model") -> "FittedClassifier":
        """Deserialise a model from the output of `to_bytes`; ``path`` names it if it is damaged (StorageError)."""
        tensors = {name: torch.from_numpy(array) for name, array in arrays_from_npz(data, path).items()}
        feature_map = FeatureMap(**{f.name: tensors[f"map/{f.name}"] for f in fields(FeatureMap)})
        tensors_of: dict[str, dict[int, tuple[str, dict[str, torch.Tensor]]]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            if kind in _KINDS:
                repeat, _, rest = rest.partition("/")
                # The generator's name may contain slashes itself.
                generator, _, part = rest.rpartition("/")
                tensors_of.setdefault(generator, {}).setdefault(int(repeat), (kind, {}))[1][part] = tensor
        heads = {
            generator: tuple(_KINDS[kind](**parts) for _, (kind, parts) in sorted(repeats.items()))
            for generator, repeats in tensors_of.items()
        }
        calibrations = {
            generator: PlattScaling(
                tensors[f"calibration/{generator}/slope"].numpy(),
                tensors[f"calibration/{generator}/offset"].numpy(),
                tensors[f"calibration/{generator}/shift"].numpy(),
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
    """Return the field of `RefittedLogits` that these heads predict."""
    return "matched" if refits.is_matched else ("reassigned" if refits.reassignment.any() else "without")


def _refits_of(tensors: dict[str, torch.Tensor], generator: str) -> list[JackknifeRefits]:
    """Return a generator's refits from the tensors of a model file."""
    refits = []
    for kind in _KIND_NAMES:
        prefix = f"refits/{kind}/{generator}"
        if f"{prefix}/weights" in tensors:
            heads = LinearHeads(tensors[f"{prefix}/weights"].double(), tensors[f"{prefix}/intercepts"])
            slope, offset, without, reassignment = (tensors[f"{prefix}/{part}"].numpy() for part in _REFIT_ARRAYS)
            refits.append(JackknifeRefits(heads, slope, offset, without, reassignment, kind == "matched"))
    return refits
