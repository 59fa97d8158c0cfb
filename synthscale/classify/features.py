"""The classifier's features: the standardised embedding and, for the kernel head, random Fourier features of it.

A head that is linear in the embedding sees differences of mean and not of spread; with random Fourier features
(Rahimi and Recht 2007) of a Gaussian kernel beside it, it is kernel logistic regression and still convex.
Standardisation and bandwidth come from the distinct real rows alone, so that no generator changes another's.
"""

import math
from dataclasses import dataclass

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

    def pulled_back(self, vectors: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return gradients by the standardised embedding, (n, d), of what has gradients (n, D) by the features."""
        d = len(self.mean)
        result = gradient[:, :d] / math.sqrt(d)
        if len(self.phases):
            sines = torch.sin(self.standardise(vectors) @ self.frequencies + self.phases)
            result = result - (gradient[:, d:] * sines * math.sqrt(2.0 / len(self.phases))) @ self.frequencies.T
        return result


def fit_feature_map(
    mean: torch.Tensor,
    deviation: torch.Tensor,
    sample: torch.Tensor,
    fourier_features: int,
    seed: int,
) -> FeatureMap:
    """Build the map from the real rows' moments, (d,) each, and a sample of them, (s, d).

    ``fourier_features`` is m; 0 for heads that take the standardised embedding alone.
    """
    # A dimension that is constant but for rounding must not explode; one that is merely small keeps its voice.
    floor = torch.maximum(1e-6 * mean.abs(), 1e-7 * deviation.square().mean().sqrt())
    scale = torch.where(torch.maximum(deviation, floor) > 0, torch.maximum(deviation, floor), 1.0)
    d = len(mean)
    empty = FeatureMap(mean, scale, mean.new_zeros((d, 0)), mean.new_zeros(0))
    if fourier_features == 0:
        return empty
    distances = torch.pdist(empty.standardise(sample)) if len(sample) > 1 else mean.new_zeros(0)
    median = float(distances.median()) if len(distances) else 0.0
    bandwidth = median if median > 0 else d**0.5
    rng = np.random.default_rng(seed)
    frequencies = torch.from_numpy(rng.standard_normal((d, fourier_features))) / bandwidth
    phases = torch.from_numpy(rng.uniform(0, 2 * np.pi, fourier_features))
    return FeatureMap(mean, scale, frequencies.to(mean.device), phases.to(mean.device))


@dataclass(frozen=True)
class LinearHeads:
    """A generator's k fitted heads: logit of row x for fold f is x @ weights[f] + intercepts[f]."""

    weights: torch.Tensor
    intercepts: torch.Tensor

    def out_of_fold_logits(self, features: torch.Tensor, fold: NDArray[np.int8]) -> NDArray[np.float64]:
        """Return each row's logit of being synthetic, by the head that did not see it: (n, D), (n,) -> (n,)."""
        index = torch.from_numpy(fold.astype(np.int64))
        logits = features @ self.weights.T + self.intercepts
        result: NDArray[np.float64] = logits.gather(1, index.to(logits.device)[:, None])[:, 0].cpu().numpy()
        return result

    def gradients(self, features: torch.Tensor, fold: NDArray[np.int8]) -> torch.Tensor:
        """Return the gradient of each row's out-of-fold logit by the features: (n, D), (n,) -> (n, D)."""
        return self.weights[torch.from_numpy(fold.astype(np.int64))]
