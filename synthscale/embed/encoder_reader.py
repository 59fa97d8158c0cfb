"""The configured encoder, built from its weights file, and what it promises before a vector is made."""

from dataclasses import dataclass

from synthscale.config import Config
from synthscale.embed.encoders import Encoder, build_encoder
from synthscale.storage import filesystems as fsys
from synthscale.tables.layout import VectorLayout, VectorSource


def load_encoder(config: Config, device: str = "cpu") -> Encoder:
    """Build the run's encoder, reading its weights file if there is one."""
    weights = config.encoder.weights
    data = None if weights is None else fsys.read_bytes(fsys.absolute(weights), config.storage)
    return build_encoder(config.encoder, data, device)


@dataclass(frozen=True)
class EncoderSpec:
    """What is known of a run's vectors before any is made; ``image_size`` is None for precomputed ones."""

    layout: VectorLayout
    fingerprint: str
    image_size: int | None


def encoder_spec(config: Config, vectors: VectorSource | None) -> EncoderSpec:
    """Return what the vectors' dimensions are for, and the text that identifies how they are made."""
    if vectors is not None:
        d = vectors.dimensions
        return EncoderSpec(VectorLayout(d, (0, d), (0, d)), f"vectors/{d}", None)
    return spec_of(load_encoder(config))


def spec_of(encoder: Encoder) -> EncoderSpec:
    """Return what a built encoder promises."""
    layout = VectorLayout(encoder.dimensions, encoder.search, encoder.classify)
    return EncoderSpec(layout, encoder.fingerprint, encoder.image_size)
