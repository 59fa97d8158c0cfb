"""synthscale scores the quality of synthetic images against real ones, with the evidence behind each number.

``score`` runs the main job on files, with Ray. ``score_features`` computes the same metrics from vectors in
memory, without Ray.
"""

from typing import TYPE_CHECKING, Any

from synthscale.config import Config, parse_config
from synthscale.config_files import load_config
from synthscale.errors import (
    ConfigError,
    InputError,
    ResumeConflict,
    SchemaError,
    StageError,
    StorageError,
    StorageFull,
    StorageUnavailable,
    SynthscaleError,
    TooManyFailures,
)

if TYPE_CHECKING:
    from synthscale.cli import main
    from synthscale.in_memory.scoring import FeatureScores, score_features
    from synthscale.pipeline import Options, score
    from synthscale.quality import score_synthetic_data_quality
    from synthscale.result import RunResult

__version__ = "0.1.0"

__all__ = [
    "Config",
    "ConfigError",
    "FeatureScores",
    "InputError",
    "Options",
    "ResumeConflict",
    "RunResult",
    "SchemaError",
    "StageError",
    "StorageError",
    "StorageFull",
    "StorageUnavailable",
    "SynthscaleError",
    "TooManyFailures",
    "load_config",
    "main",
    "parse_config",
    "score",
    "score_features",
    "score_synthetic_data_quality",
]

# Loaded on first use, so that `import synthscale` imports neither Ray nor torch.
_LAZY = {
    "FeatureScores": "in_memory.scoring",
    "Options": "pipeline",
    "RunResult": "result",
    "main": "cli",
    "score": "pipeline",
    "score_features": "in_memory.scoring",
    "score_synthetic_data_quality": "quality",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"synthscale.{_LAZY[name]}"), name)
