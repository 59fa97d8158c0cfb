"""The classifier's features: the standardised embedding and, for the kernel head, random Fourier features of it.

A head that is linear in the embedding sees differences of mean and not of spread; with random Fourier features
(Rahimi and Recht 2007) of a Gaussian kernel beside it, it is kernel logistic regression and still convex.
Standardisation and bandwidth come from the distinct real rows alone, so that no generator changes another's.
"""

import io
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

FOURIER_FEATURES = 512
BANDWIDTH_ROWS = 1024
"""Real rows whose pairwise distances give the bandwidth."""
_CLIP = 10.0
"""Standardised values beyond this are clipped: one outlier must not own a direction."""


@dataclass(frozen=True)
class FeatureMap:
    """Maps embeddings to the classifier's features.

    Attributes:
        mean: (d,) of the distinct real rows.
        scale: (d,) standard deviations, floored so that constant dimensions do not explode.
        frequencies: (d, m) of the random Fourier features, bandwidth included; m = 0 for a linear head.
        phases: (m,).
    """

    mean: torch.Tensor
    scale: torch.Tensor
    frequencies: torch.Tensor
    phases: torch.Tensor

    @property
    def dimensions(self) -> int:
        """D = d + m, the number of features."""
        return len(self.mean) + len(self.phases)

    def standardise(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return (n, d) float64 vectors with mean 0 and deviation 1 over the distinct real rows, clipped."""
        return ((vectors.double() - self.mean) / self.scale).clamp_(-_CLIP, _CLIP)

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return features of shape (n, D) in float64; either part has a norm of about 1."""
        z = self.standardise(vectors)
        linear = z / math.sqrt(len(self.mean))
        if len(self.phases) == 0:
            return linear
        waves = torch.cos(z @ self.frequencies + self.phases) * math.sqrt(2.0 / len(self.phases))
        features: torch.Tensor = torch.cat([linear, waves], dim=1)
        return features


def fit_feature_map(
    mean: torch.Tensor,
    deviation: torch.Tensor,
    sample: torch.Tensor,
    head: Literal["kernel", "linear"],
    seed: int,
) -> FeatureMap:
    """Build the map from the real rows' moments, (d,) each, and a sample of them, (s, d)."""
    # A dimension that is constant but for rounding must not explode; one that is merely small keeps its voice.
    floor = torch.maximum(1e-6 * mean.abs(), 1e-7 * deviation.square().mean().sqrt())
    scale = torch.where(torch.maximum(deviation, floor) > 0, torch.maximum(deviation, floor), 1.0)
    d = len(mean)
    empty = FeatureMap(mean, scale, mean.new_zeros((d, 0)), mean.new_zeros(0))
    if head == "linear":
        return empty
    distances = torch.pdist(empty.standardise(sample)) if len(sample) > 1 else mean.new_zeros(0)
    median = float(distances.median()) if len(distances) else 0.0
    bandwidth = median if median > 0 else d**0.5
    rng = np.random.default_rng(seed)
    frequencies = torch.from_numpy(rng.standard_normal((d, FOURIER_FEATURES))) / bandwidth
    phases = torch.from_numpy(rng.uniform(0, 2 * np.pi, FOURIER_FEATURES))
    return FeatureMap(mean, scale, frequencies.to(mean.device), phases.to(mean.device))


@dataclass(frozen=True)
class Heads:
    """A generator's k fitted heads: logit of row x for fold f is x @ weights[f] + intercepts[f]."""

    weights: torch.Tensor
    intercepts: torch.Tensor

    def out_of_fold_logits(self, features: torch.Tensor, fold: NDArray[np.int8]) -> NDArray[np.float64]:
        """Return each row's logit of being synthetic, by the head that did not see it: (n, D), (n,) -> (n,)."""
        index = torch.from_numpy(fold.astype(np.int64))
        logits = features @ self.weights.T + self.intercepts
        result: NDArray[np.float64] = logits.gather(1, index[:, None])[:, 0].numpy()
        return result


def save_model(feature_map: FeatureMap, heads: dict[str, Heads]) -> bytes:
    """Return feature map and heads as the bytes of an ``.npz`` file."""
    arrays = {f"map/{name}": getattr(feature_map, name).cpu().numpy() for name in FeatureMap.__annotations__}
    for generator, head in heads.items():
        arrays[f"weights/{generator}"] = head.weights.cpu().numpy()
        arrays[f"intercepts/{generator}"] = head.intercepts.cpu().numpy()
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def load_model(data: bytes) -> tuple[FeatureMap, dict[str, Heads]]:
    """Read what ``save_model`` wrote."""
    with np.load(io.BytesIO(data)) as arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    feature_map = FeatureMap(**{name: tensors[f"map/{name}"] for name in FeatureMap.__annotations__})
    generators = [name.removeprefix("weights/") for name in tensors if name.startswith("weights/")]
    heads = {g: Heads(tensors[f"weights/{g}"], tensors[f"intercepts/{g}"]) for g in generators}
    return feature_map, heads
