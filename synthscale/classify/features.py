"""Map embeddings to the classifier's features, and evaluate linear heads on them.

Features are the standardised embedding and, for the kernel head, random Fourier features of it. A head that is
linear in the embedding detects differences of mean but not of spread; with random Fourier features of a Gaussian
kernel (Rahimi and Recht 2007) appended it approximates kernel logistic regression and stays convex.
Standardisation and bandwidth are computed from the distinct real rows alone, so that no generator changes
another's features.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

FOURIER_FEATURES = 512
"""Number of random Fourier features of the kernel head, by default."""
BANDWIDTH_ROWS = 1024
"""Size of the sample of distinct real rows whose median pairwise distance is the bandwidth."""
_CLIP = 10.0
"""Standardised values are clipped to this many standard deviations, so that one outlier cannot dominate a
direction."""


@dataclass(frozen=True)
class FeatureMap:
    """Map from embeddings, (n, d), to the classifier's features, (n, D).

    Attributes:
        mean: (d,) mean of the distinct real rows.
        scale: (d,) their standard deviations, floored so that constant dimensions are not divided by zero.
        frequencies: (d, m) frequencies of the random Fourier features, over the bandwidth; m = 0 without them.
        phases: (m,) phases of the random Fourier features, radians.
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
        """Standardise vectors by the distinct real rows' mean and deviation, and clip: (n, d) float64."""
        return ((vectors.double() - self.mean) / self.scale).clamp_(-_CLIP, _CLIP)

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Map vectors (n, d) to features (n, D) in float64; each of the two parts has a norm of about 1."""
        z = self.standardise(vectors)
        linear = z / math.sqrt(len(self.mean))
        if len(self.phases) == 0:
            return linear
        waves = torch.cos(z @ self.frequencies + self.phases) * math.sqrt(2.0 / len(self.phases))
        features: torch.Tensor = torch.cat([linear, waves], dim=1)
        return features

    def embedding_gradient(self, vectors: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return gradients with respect to the standardised embedding, by the chain rule: (n, d).

        Args:
            vectors: (n, d), where the gradients are taken.
            gradient: (n, D) gradients with respect to the features.
        """
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
    """Build the feature map from the distinct real rows.

    Args:
        mean: (d,) of the rows.
        deviation: (d,) their standard deviations.
        sample: (s, d) some of the rows; their median pairwise distance, once standardised, is the bandwidth.
        fourier_features: m; 0 for heads that use the standardised embedding alone.
        seed: of the random Fourier features.
    """
    # The floor catches dimensions that are constant up to rounding, and leaves merely small ones alone.
    floor = torch.maximum(1e-6 * mean.abs(), 1e-7 * deviation.square().mean().sqrt())
    scale = torch.where(torch.maximum(deviation, floor) > 0, torch.maximum(deviation, floor), 1.0)
    d = len(mean)
    linear_map = FeatureMap(mean, scale, mean.new_zeros((d, 0)), mean.new_zeros(0))
    if fourier_features == 0:
        return linear_map
    distances = torch.pdist(linear_map.standardise(sample)) if len(sample) > 1 else mean.new_zeros(0)
    median = float(distances.median()) if len(distances) else 0.0
    bandwidth = median if median > 0 else d**0.5
    rng = np.random.default_rng(seed)
    frequencies = torch.from_numpy(rng.standard_normal((d, fourier_features))) / bandwidth
    phases = torch.from_numpy(rng.uniform(0, 2 * np.pi, fourier_features))
    return FeatureMap(mean, scale, frequencies.to(mean.device), phases.to(mean.device))


@dataclass(frozen=True)
class LinearHeads:
    """The k linear heads of one generator and repeat: row x has logit x @ weights[f] + intercepts[f] for fold f.

    Attributes:
        weights: (k, D).
        intercepts: (k,).
    """

    weights: torch.Tensor
    intercepts: torch.Tensor

    def out_of_fold_logits(self, features: torch.Tensor, fold: NDArray[np.int8]) -> NDArray[np.float64]:
        """Return each row's logit from the head fitted without its fold: (n, D), (n,) -> (n,)."""
        index = torch.from_numpy(fold.astype(np.int64))
        logits = features @ self.weights.T + self.intercepts
        result: NDArray[np.float64] = logits.gather(1, index.to(logits.device)[:, None])[:, 0].cpu().numpy()
        return result

    def gradients(self, features: torch.Tensor, fold: NDArray[np.int8]) -> torch.Tensor:
        """Return the gradient of each row's out-of-fold logit in the features: (n, D), (n,) -> (n, D)."""
        return self.weights[torch.from_numpy(fold.astype(np.int64))]
