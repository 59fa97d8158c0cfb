"""Typed configuration of a run: its settings, their defaults, ranges and validation.

A configuration is built from keyword arguments or from a nested mapping (`parse_config`), which config_files.py
reads from YAML and ``--set``. Unknown keys are errors that name the key. `Config.result_settings` returns the
settings that change results; they enter the fingerprints by which a run recognizes work that it can resume.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from synthscale.config_errors import describe, shown
from synthscale.errors import ConfigError
from synthscale.gate_grammar import parse_gate
from synthscale.generator_names import check_generator_name
from synthscale.metric_names import CORE_METRICS, FAMILIES
from synthscale.spelling import did_you_mean

_ENDPOINT = r"https?://[^\s/?#@]+(/[^\s?#]*)?"
"""URL of a server: scheme, host with or without a port, and a path if the server has one."""

Section = Literal["input", "encoder", "neighbors", "classifier", "metrics"]
"""Sections of the configuration that have a fingerprint of their own."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True)

    @field_validator("*", mode="before")
    @classmethod
    def _is_what_it_seems(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true for a number, which pydantic takes for 1, and texts that no path or report can contain."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise PydanticCustomError("not_a_truth_value", "not a truth value")
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        for text in parts if isinstance(parts, (list, tuple)) else [parts]:
            if isinstance(text, str) and "\0" in text:
                raise ValueError(f"contains the character NUL: {shown(text)}")
            if isinstance(text, str) and not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text):
                raise ValueError(f"is not text in UTF-8: {shown(text)}")
        return value


class EncoderConfig(_Section):
    """Encoder that turns images into embedding vectors."""

    name: str = "descriptor"
    """``descriptor`` (built in, no weights) or ``torchvision:MODEL[@WEIGHTS_NAME]``."""
    weights: str | None = None
    """State dict for a torchvision model (``.pt``, ``.pth``, ``.safetensors``), local or ``s3://``."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to encode on; ``auto`` uses a GPU if Ray sees one, and else the CPU."""
    batch_size: int = Field(default=64, ge=1)
    """Images per forward pass."""
    image_size: int | None = Field(default=None, ge=8, le=2048)
    """Side in pixels of the square that images are resized to; by default the encoder's own."""
    mean: tuple[float, float, float] | None = None
    """Per-channel pixel mean (0..1) that torchvision weights were trained with; by default ImageNet's."""
    std: tuple[float, float, float] | None = None
    """Per-channel pixel standard deviation; must be set if ``mean`` is, and only then."""

    @model_validator(mode="after")
    def _mean_and_std_together(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be set together")
        return self


class NeighborsConfig(_Section):
    """Nearest-neighbour search and the definition of near-duplicates."""

    mode: Literal["exact", "datalab"] = "exact"
    """``exact`` finds every near-duplicate pair; ``datalab`` reproduces cleanlab Datalab's flags, to compare."""
    metric: Literal["auto", "cosine", "euclidean"] = "auto"
    """How near-duplicates are compared: ``auto`` takes the cosine distance of images and embeddings, and half the
    squared Euclidean distance of numeric columns, each scaled by the real rows."""
    calibrate_on: Literal["real", "all"] = "real"
    """Rows whose median nearest-neighbour distance sets the radius: distinct real rows, or those of both sets."""
    threshold: float = Field(default=0.13, gt=0, allow_inf_nan=False)
    """Near-duplicate radius in units of the median nearest-neighbour distance."""
    radius: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Near-duplicate radius as an absolute distance, instead of ``threshold`` times the median: a cosine distance,
    at most 2, or half a squared Euclidean one (see ``metric``)."""
    self_test_images: int = Field(default=32, ge=0, le=10_000)
    """Real images whose edited copies (re-encoded, resized, with noise) test the radius; 0 skips the test."""
    actor_memory_gib: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    """Memory for vectors in each search actor, GiB; a join task uses an eighth of it. Never changes results."""

    @model_validator(mode="after")
    def _radius_is_a_distance(self) -> Self:
        if self.radius is not None and self.radius > 2 and self.metric == "cosine":
            raise ValueError("radius must be at most 2, the largest cosine distance, unless metric is euclidean")
        if self.mode == "datalab" and self.metric == "euclidean":
            raise ValueError("mode datalab compares by cosine distance, as cleanlab does; leave metric at auto")
        return self

    @property
    def metric_in_force(self) -> Literal["auto", "cosine", "euclidean"]:
        """``metric``, or ``cosine`` in mode ``datalab``, which compares everything by direction."""
        return "cosine" if self.mode == "datalab" else self.metric


class ClassifierConfig(_Section):
    """Cross-validated classifier of real against synthetic images."""

    head: Literal["kernel", "linear", "mlp"] = "kernel"
    """Features and model: ``kernel`` (logistic regression on the embedding and random Fourier features) detects
    differences of mean and spread, ``linear`` (on the embedding) of mean only; ``mlp`` (one hidden layer) can
    detect any difference, given thousands of images or more."""
    folds: int = Field(default=5, ge=2, le=100)
    """Number of cross-validation folds; a near-duplicate group is never split between folds."""
    repeats: int = Field(default=1, ge=1, le=100)
    """Number of fold assignments over which logits are averaged; above 1, the metrics' spread is reported."""
    class_weight: Literal["balanced", "none"] = "balanced"
    """``balanced`` weights the classes in the loss; ``none`` removes the class prior from the fitted logits."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the fold assignment (repeat i uses seed + i), the random features and the network's weights."""
    strengths: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, math.inf)
    """Grid of L2 penalties, chosen from by out-of-fold log-loss; ``inf`` is the intercept-only model."""
    workers: int | None = Field(default=None, ge=0)
    """Number of Ray Train workers; 0 fits in the driver process; by default chosen by data size. Changes results
    only for ``mlp``, and only if features are read from storage in each pass."""
    worker_memory_gib: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    """Memory for each worker's features, GiB; features that do not fit are read from storage in each pass. Changes
    results only for ``mlp``, whose batches then follow the files."""

    @field_validator("strengths")
    @classmethod
    def _strengths_are_positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or any(not v > 0 for v in value) or len(set(value)) != len(value):
            raise ValueError("expected distinct positive numbers (.inf for the intercept-only model)")
        return tuple(sorted(value))

    @field_serializer("strengths", when_used="json")
    def _strengths_without_infinity(self, value: tuple[float, ...]) -> list[float | str]:
        return [strength if math.isfinite(strength) else "inf" for strength in value]


def _parse_names(value: Any) -> list[str]:
    """Return the names in a list or in a comma-separated string; empty for None."""
    items = value.split(",") if isinstance(value, str) else ([] if value is None else value)
    if not isinstance(items, (list, tuple)) or not all(
        isinstance(item, (str, int, float)) and not isinstance(item, bool) for item in items
    ):
        raise ValueError(f"expected a list of names, or one text with commas between them, found {shown(value)}")
    return [name for name in (str(item).strip() for item in items) if name]


class MetricsConfig(_Section):
    """Metrics to compute, and the columns to slice them by."""

    families: tuple[str, ...] = ()
    """Metric families to add to the core metrics: ``all``, or names from metric_names.py; ``core`` adds none."""
    slice_by: tuple[str, ...] = ()
    """Input columns to slice the metrics by, in addition to ``label``: prompt or model version, for example."""
    frechet_infinity: bool = False
    """Also extrapolate the Frechet distance to infinitely many images (Chong and Forsyth 2020)."""

    @field_validator("families", mode="before")
    @classmethod
    def _parse_families(cls, value: Any) -> tuple[str, ...]:
        names = _parse_names(value)
        unknown = [name for name in names if name not in {"core", "all", *FAMILIES}]
        if unknown:
            raise ValueError(
                f"unknown family {', '.join(map(str, unknown))}; choose from core, all, {', '.join(FAMILIES)}"
                f"{did_you_mean(unknown[0], ('core', 'all', *FAMILIES))}"
            )
        # A fixed order, so that the same families in any order give the same fingerprint.
        return tuple(name for name in FAMILIES if "all" in names or name in names)

    @field_validator("slice_by", mode="before")
    @classmethod
    def _parse_columns(cls, value: Any) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_parse_names(value)))


class InputConfig(_Section):
    """Which columns of a table are vectors; by default their names and types say so (docs/inputs.md)."""

    feature_columns: tuple[str, ...] = ()
    """Columns of the vectors: one of lists, or one for each dimension; by default ``embedding``, or all numeric
    columns of a table that has no column ``uri``, ``image_filename`` or ``file_name``."""
    ignore_columns: tuple[str, ...] = ()
    """Columns that are not read: neither features nor kept beside the results."""

    @field_validator("feature_columns", "ignore_columns", mode="before")
    @classmethod
    def _parse_columns(cls, value: Any) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_parse_names(value)))

    @model_validator(mode="after")
    def _no_column_is_both(self) -> Self:
        both = [name for name in self.feature_columns if name in self.ignore_columns]
        if both:
            raise ValueError(f"{', '.join(both)}: is in feature_columns and in ignore_columns")
        return self


class StorageConfig(_Section):
    """Access to storage. Credentials come from the environment or an AWS profile, never from the configuration."""

    endpoint_url: str | None = None
    """URL of an S3-compatible server; by default AWS."""
    region: str | None = None
    """AWS region of the bucket."""
    profile: str | None = None
    """Profile in the AWS configuration files."""
    anon: bool = False
    """Read public buckets without credentials."""
    requester_pays: bool = False
    """Agree to pay for requests and traffic of requester-pays buckets."""
    cache: str | None = Field(default=None, min_length=1)
    """Folder, local or ``s3://``, of an embedding cache that runs may share; by default there is no cache."""
    retry_s: float = Field(default=300.0, ge=0, allow_inf_nan=False)
    """Seconds, from the first failure on, for which a request is repeated that fails for a passing reason: reset,
    time-out, HTTP 429 or 5xx, lost mount. Then the run ends; running the same command again continues it."""
    requests_in_flight: int = Field(default=128, ge=1, le=1024)
    """Maximum number of concurrent S3 GET requests per process."""
    mib_in_flight: int = Field(default=256, ge=1)
    """Maximum MiB of images per process requested from S3 or waiting to be decoded; one image may exceed it."""
    shard_rows: int | None = Field(default=None, ge=1)
    """Rows per shard, that is per file of every table; by default chosen by data size. Never changes results."""

    @field_validator("endpoint_url")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        if value is not None and "@" in value:
            raise ValueError("must not contain credentials; use the AWS_* variables or a profile")
        if value is not None and not re.fullmatch(_ENDPOINT, value):
            raise ValueError(
                f"{value!r} is not a URL; write http://HOST:PORT or https://HOST, with the scheme in front"
            )
        return value


class Config(_Section):
    """Complete configuration of a run: input, output, and the settings of each stage."""

    real: str | None = Field(default=None, min_length=1)
    """Folder or ``s3://`` prefix of the real images."""
    synthetic: dict[str, str] = Field(default_factory=dict)
    """Folder or ``s3://`` prefix of each generator's images, by generator name."""
    manifest: str | None = Field(default=None, min_length=1)
    """Instead of folders: a metadata table (CSV, JSONL or Parquet), a Cleanlab Studio zip or folder with one, or
    Parquet files of precomputed vectors."""
    output: str | None = Field(default=None, min_length=1)
    """Run directory, local or ``s3://``."""
    input: InputConfig = InputConfig()
    encoder: EncoderConfig = EncoderConfig()
    neighbors: NeighborsConfig = NeighborsConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    storage: StorageConfig = StorageConfig()
    metrics: MetricsConfig = MetricsConfig()
    gates: tuple[str, ...] = ()
    """Conditions on metrics, such as ``fidelity>=0.3`` or ``generator=sdxl freshness.low>=0.98``; if one is
    missed, the exit code is 3."""
    control: bool = False
    """Hold out half of the real set and score it as the generator ``control``: what a perfect one would get."""
    max_failure_fraction: float = Field(default=0.01, ge=0, le=1)
    """Largest share of unusable rows in any set; above it the run ends with TooManyFailures."""

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, values: Any) -> Any:
        # YAML reads a section whose lines are all commented out as None.
        return (
            {key: value for key, value in values.items() if value is not None}
            if isinstance(values, dict)
            else values
        )

    @field_validator("synthetic")
    @classmethod
    def _names_and_folders(cls, value: dict[str, str]) -> dict[str, str]:
        for name, uri in value.items():
            check_generator_name(name)
            if not uri:
                raise ValueError(f"the folder of generator {name!r} is empty")
        return value

    @field_validator("gates", mode="before")
    @classmethod
    def _one_gate_to_tuple(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _gates_can_be_decided(self) -> Self:
        known = [*CORE_METRICS, "auc", *(name for family in self.metrics.families for name in FAMILIES[family])]
        for text in self.gates:
            try:
                parse_gate(text, known)
            except ValueError as error:
                raise ValueError(f"gates: {error}") from error
        return self

    def check_runnable(self) -> None:
        """Raise ConfigError unless there is an output and exactly one kind of input: folders or a manifest."""
        has_folders = self.real is not None or bool(self.synthetic)
        if has_folders and self.manifest is not None:
            raise ConfigError("give either real and synthetic folders or a manifest, not both")
        if not has_folders and self.manifest is None:
            raise ConfigError("no input: give --real and --synthetic folders, or --manifest")
        if has_folders and self.real is None:
            raise ConfigError("no real images: give --real FOLDER")
        if has_folders and not self.synthetic:
            raise ConfigError("no synthetic images: give --synthetic NAME=FOLDER at least once")
        if self.output is None:
            raise ConfigError("no output: give --output FOLDER for the run directory")

    def result_settings(self, section: Section) -> dict[str, Any]:
        """Return the settings of a section that change results, as JSON-compatible values."""
        if section == "input":
            inputs = {"real": self.real, "synthetic": dict(self.synthetic), "manifest": self.manifest}
            columns = {name: list(value) for name, value in self.input if value}
            return {**inputs, "control": self.control, **columns}
        excluded = {
            "encoder": {"device", "batch_size"},
            "neighbors": {"actor_memory_gib"},
            "classifier": {"workers", "worker_memory_gib"},
            "metrics": set[str](),
        }[section]
        settings: dict[str, Any] = getattr(self, section).model_dump(mode="json", exclude=excluded)
        return settings


_MAX_PROBLEMS = 10
"""Problems of a configuration that an error names; of more, it says how many."""


def parse_config(
    values: Mapping[str, Any], source: str = "configuration", origins: Mapping[str, str] | None = None
) -> Config:
    """Build a Config from nested values.

    Args:
        values: settings by key; sections are mappings.
        source: where the values come from, for messages.
        origins: where single keys (``section.key``) come from instead, such as ``--set``.

    Raises:
        ConfigError: a key is unknown or a value invalid; the message has the source and every such key.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems, previous = list[str](), ""
        for key, what in describe(error, Config, values):
            origin = (origins or {}).get(key, source)
            problems.append(": ".join(part for part in (origin if origin != previous else "", key, what) if part))
            previous = origin
        more = f"; and {len(problems) - _MAX_PROBLEMS:,} more" if len(problems) > _MAX_PROBLEMS else ""
        raise ConfigError("; ".join(problems[:_MAX_PROBLEMS]) + more) from error
