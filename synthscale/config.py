"""The typed configuration of a run: what may be set, the defaults, and how files and ``--set`` are read.

A configuration comes from keyword arguments, a mapping or a YAML file (local or ``s3://``); unknown keys are
refused by name. ``Config.result_settings`` is the part that changes results and so enters fingerprints.
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
    field_serializer,
    field_validator,
    model_validator,
)

from synthscale.errors import ConfigError
from synthscale.gate_grammar import parse_gate
from synthscale.metric_names import CORE_METRICS, FAMILIES

GENERATOR_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


Section = Literal["input", "encoder", "neighbors", "classifier", "metrics"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True)


class EncoderConfig(_Section):
    """How images become vectors."""

    name: str = "descriptor"
    """``descriptor`` (built in, no weights) or ``torchvision:<model>[@weights name]``."""
    weights: str | None = None
    """A state dict (``.pt``, ``.pth``, ``.safetensors``), local or ``s3://``, for a torchvision model."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes a GPU where Ray sees one."""
    batch_size: int = Field(default=64, ge=1)
    """Images per forward pass."""
    image_size: int | None = Field(default=None, ge=8, le=2048)
    """Side in pixels of the square that images are resized to; the encoder's own default when not given."""
    mean: tuple[float, float, float] | None = None
    """Mean of the pixels (0..1) that torchvision weights were trained with; ImageNet's when not given."""
    std: tuple[float, float, float] | None = None
    """Standard deviation that goes with ``mean``; the two are given together."""

    @model_validator(mode="after")
    def _mean_and_std_together(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std are given together")
        return self


class NeighborsConfig(_Section):
    """What counts as a near-duplicate."""

    mode: Literal["exact", "datalab"] = "exact"
    """``datalab`` reproduces cleanlab Datalab's near_duplicate flags, for comparison only."""
    calibrate_on: Literal["real", "all"] = "real"
    """Whose median nearest-neighbour distance sets the radius: the distinct real rows, or all rows."""
    threshold: float = Field(default=0.13, gt=0, allow_inf_nan=False)
    """radius = threshold x median nearest-neighbour cosine distance."""
    radius: float | None = Field(default=None, gt=0, le=2)
    """An absolute cosine distance instead of the relative rule."""
    self_test_images: int = Field(default=32, ge=0, le=10_000)
    """Real images that are re-encoded, resized and disturbed to see whether the radius finds them again."""
    actor_memory_gib: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    """Memory for vectors in each search actor, in GiB, whatever the number of rows; a join task uses an eighth."""


class ClassifierConfig(_Section):
    """The k-fold real-vs-synthetic classifier."""

    head: Literal["kernel", "linear", "mlp"] = "kernel"
    """``kernel`` (embedding and random Fourier features) sees spread as well as mean; ``linear`` only mean;
    ``mlp`` (one hidden layer) finds what neither does, given thousands of images or more."""
    folds: int = Field(default=5, ge=2, le=100)
    """k; near-duplicate groups are never split between folds."""
    repeats: int = Field(default=1, ge=1, le=100)
    """Deals to folds over which logits are averaged; with more than one, the metrics' spread is reported."""
    class_weight: Literal["balanced", "none"] = "balanced"
    """``balanced`` weighs the classes in the loss; ``none`` takes the prior out of the odds afterwards."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Deals the folds and draws the random features."""
    strengths: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, math.inf)
    """L2 penalties to choose from by out-of-fold log-loss; ``inf`` is the intercept-only model."""
    workers: int | None = Field(default=None, ge=0)
    """Ray Train workers; 0 fits inside the driver; chosen by size when not given. Never changes results, but those
    of ``mlp`` where features are read in each pass."""
    worker_memory_gib: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    """Memory for a worker's features, in GiB; more rows than fit are read again from storage in each pass. Never
    changes results, but those of ``mlp``, whose batches then follow the files."""

    @field_validator("strengths")
    @classmethod
    def _strengths_are_positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or any(not v > 0 for v in value) or len(set(value)) != len(value):
            raise ValueError("strengths must be distinct positive numbers (.inf for the intercept-only model)")
        return tuple(sorted(value))

    @field_serializer("strengths", when_used="json")
    def _strengths_without_infinity(self, value: tuple[float, ...]) -> list[float | str]:
        return [strength if math.isfinite(strength) else "inf" for strength in value]


def _texts(value: Any) -> list[str]:
    """Read names from a list, or from a text with commas; none from nothing."""
    if not isinstance(value, (str, list, tuple, type(None))):
        raise ValueError("expected names, in a list or with commas")
    listed = value.split(",") if isinstance(value, str) else value or []
    return [name for name in (str(item).strip() for item in listed) if name]


class MetricsConfig(_Section):
    """Which metrics are given, and for which parts of the sets."""

    families: tuple[str, ...] = ()
    """Metrics beyond the core: ``core`` (none), ``all``, or names of families (metrics/__init__.py)."""
    slice_by: tuple[str, ...] = ()
    """Columns of the input that metrics are also given by, beside ``label``: prompt, model version, seed."""
    frechet_infinity: bool = False
    """Extrapolate the Frechet distance to infinitely many images (Chong and Forsyth 2020)."""

    @field_validator("families", mode="before")
    @classmethod
    def _named_families(cls, value: Any) -> tuple[str, ...]:
        names = _texts(value)
        unknown = [name for name in names if name not in {"core", "all", *FAMILIES}]
        if unknown:
            raise ValueError(
                f"no family {', '.join(map(str, unknown))}; there are core, all, {', '.join(FAMILIES)}"
            )
        # In one order, so that the same families are the same configuration.
        return tuple(name for name in FAMILIES if "all" in names or name in names)

    @field_validator("slice_by", mode="before")
    @classmethod
    def _columns(cls, value: Any) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_texts(value)))


class StorageConfig(_Section):
    """How storage is reached; credentials come from the environment or a profile, never from here."""

    endpoint_url: str | None = None
    """An S3-compatible server instead of AWS."""
    region: str | None = None
    """The bucket's region."""
    profile: str | None = None
    """A profile of the AWS configuration files."""
    anon: bool = False
    """Read public buckets without credentials."""
    cache: str | None = Field(default=None, min_length=1)
    """A folder, local or ``s3://``, in which embeddings are kept and found again by later runs."""
    requests_in_flight: int = Field(default=128, ge=1, le=1024)
    """GETs that a process makes of S3 at once, at most."""
    mib_in_flight: int = Field(default=256, ge=1)
    """What a process has asked S3 for, or holds, before it is decoded: MiB, at most, or one image."""
    shard_rows: int | None = Field(default=None, ge=1)
    """Rows per file of every table; chosen by size when not given. Never changes results."""

    @field_validator("endpoint_url")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        if value is not None and "@" in value:
            raise ValueError("endpoint_url must not hold credentials; use the AWS_* variables or a profile")
        return value


class Config(_Section):
    """One run: what to score, where to write, and how."""

    real: str | None = Field(default=None, min_length=1)
    """Folder, or ``s3://`` prefix, of real images."""
    synthetic: dict[str, str] = Field(default_factory=dict)
    """Name of each generator and the folder or prefix of its images."""
    manifest: str | None = Field(default=None, min_length=1)
    """``metadata.csv``/Parquet, a Studio-style zip or folder, or a Parquet of precomputed vectors."""
    output: str | None = Field(default=None, min_length=1)
    """The run directory, local or ``s3://``."""
    encoder: EncoderConfig = EncoderConfig()
    neighbors: NeighborsConfig = NeighborsConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    storage: StorageConfig = StorageConfig()
    metrics: MetricsConfig = MetricsConfig()
    gates: tuple[str, ...] = ()
    """What a run must meet, else its exit code is 3: ``fidelity>=0.3``, ``generator=sdxl freshness.low>=0.98``."""
    control: bool = False
    """Hold out half of the real set and score it as a generator, ``control``: what a perfect one would get."""
    max_failure_fraction: float = Field(default=0.01, ge=0, le=1)
    """Largest share of unusable rows, in each set on its own, that a run may go on with."""

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, values: Any) -> Any:
        # A YAML section whose lines are all commented out is None.
        return (
            {key: value for key, value in values.items() if value is not None}
            if isinstance(values, dict)
            else values
        )

    @model_validator(mode="after")
    def _names_are_plain(self) -> Self:
        for name, uri in self.synthetic.items():
            check_generator_name(name)
            if not uri:
                raise ValueError(f"the folder of {name!r} is empty text")
        return self

    @field_validator("gates", mode="before")
    @classmethod
    def _gates_are_listed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _gates_can_be_decided(self) -> Self:
        known = [*CORE_METRICS, "auc", *(name for family in self.metrics.families for name in FAMILIES[family])]
        for text in self.gates:
            parse_gate(text, known)
        return self

    def check_runnable(self) -> None:
        """Raise ConfigError unless there is exactly one kind of input and an output."""
        folders = self.real is not None or bool(self.synthetic)
        if folders and self.manifest is not None:
            raise ConfigError("give either real and synthetic folders or a manifest, not both")
        if not folders and self.manifest is None:
            raise ConfigError("no input: give --real and --synthetic folders, or --manifest")
        if folders and self.real is None:
            raise ConfigError("no real images: give --real FOLDER")
        if folders and not self.synthetic:
            raise ConfigError("no synthetic images: give --synthetic NAME=FOLDER at least once")
        if self.output is None:
            raise ConfigError("no output: give --output FOLDER for the run directory")

    def result_settings(self, section: Section) -> dict[str, Any]:
        """Return the settings of one section that change results, ready for JSON."""
        if section == "input":
            inputs = {"real": self.real, "synthetic": dict(self.synthetic), "manifest": self.manifest}
            return {**inputs, "control": self.control}
        outside = {
            "encoder": {"device", "batch_size"},
            "neighbors": {"actor_memory_gib"},
            "classifier": {"workers", "worker_memory_gib"},
            "metrics": set[str](),
        }[section]
        settings: dict[str, Any] = getattr(self, section).model_dump(mode="json", exclude=outside)
        return settings


def check_generator_name(name: str) -> None:
    """Raise ValueError unless ``name`` can stand in a path and in ``generator=NAME``."""
    if not GENERATOR_NAME.fullmatch(name) or name in {".", "..", "real"}:
        raise ValueError(f"generator name {name!r} must match {GENERATOR_NAME.pattern} and not be 'real'")


def parse_config(values: Mapping[str, Any], source: str = "configuration") -> Config:
    """Build a Config from nested values; raise ConfigError naming ``source`` and each bad key."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            hint = "unknown key" if item["type"] == "extra_forbidden" else item["msg"]
            problems.append(f"{key}: {hint}" if key else hint)
        raise ConfigError(f"{source}: " + "; ".join(problems)) from error
