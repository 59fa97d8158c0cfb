"""Build the configured encoder and describe its vectors.

Reads the weights file at ``encoder.weights``, local or S3, if one is configured.
"""

from dataclasses import dataclass

from synthscale.config import Config
from synthscale.embed.encoders import Encoder, build_encoder
from synthscale.storage import filesystems as fsys
from synthscale.tables.layout import VectorLayout, VectorSource


def load_encoder(config: Config, device: str = "cpu") -> Encoder:
    """Build the encoder of a run, with the weights file of the configuration if there is one.

    Args:
        config: configuration of the run.
        device: torch device that the encoder computes on, such as ``cpu`` or ``cuda``.

    Raises:
        ConfigError: the encoder is unknown, or its weights cannot be loaded.
        StorageError: the weights file cannot be read.
    """
    weights = config.encoder.weights
    data = None if weights is None else fsys.read_bytes(fsys.absolute(weights), config.storage)
    return build_encoder(config.encoder, data, device)


@dataclass(frozen=True)
class EncoderSpec:
    """Properties of a run's vectors that are known before any image is embedded.

    Attributes:
        layout: number of dimensions, and those used by the search and by the classifier.
        fingerprint: text that differs for encoders that give different vectors for the same pixels.
        image_size: side in pixels of the encoder's input; None for precomputed vectors.
    """

    layout: VectorLayout
    fingerprint: str
    image_size: int | None


def encoder_spec(config: Config, vectors: VectorSource | None) -> EncoderSpec:
    """Return the specification of a run's vectors; builds the encoder unless the vectors are precomputed.

    Args:
        config: configuration of the run.
        vectors: location of precomputed vectors, of which all dimensions are used; None if the input is images.
    """
    if vectors is not None:
        d = vectors.dimensions
        columns = not vectors.holds_lists
        layout = VectorLayout(d, (0, d), (0, d), scaled=columns, columns=columns)
        # Vectors without a direction, all zeros, are failures only where directions are compared.
        return EncoderSpec(layout, f"vectors/{d}/{layout.metric(config.neighbors.metric_in_force)}", None)
    return spec_of(load_encoder(config))


def spec_of(encoder: Encoder) -> EncoderSpec:
    """Return the specification of an encoder's vectors."""
    layout = VectorLayout(encoder.dimensions, encoder.search, encoder.classify, scaled=encoder.scaled)
    return EncoderSpec(layout, encoder.fingerprint, encoder.image_size)
