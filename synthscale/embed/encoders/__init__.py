"""Encoders compute embeddings from pixels: the protocol `Encoder` and its two implementations.

``descriptor`` is built in and needs no weights; ``torchvision:<model>[@weights]`` runs a pretrained network.
"""

from synthscale.config import EncoderConfig
from synthscale.embed.encoders.protocol import Encoder
from synthscale.errors import ConfigError
from synthscale.spelling import did_you_mean

__all__ = ["Encoder", "build_encoder"]


def build_encoder(config: EncoderConfig, weights: bytes | None, device: str) -> Encoder:
    """Build the configured encoder.

    Args:
        config: section ``encoder`` of the configuration.
        weights: content of the file at ``config.weights``; None if no file is configured.
        device: torch device that the encoder computes on.

    Raises:
        ConfigError: the encoder or its weights are unknown or do not fit, or a setting does not apply to it.
    """
    if config.name == "descriptor":
        if config.weights is not None:
            raise ConfigError(
                "encoder.weights: the descriptor takes none; set encoder.name=torchvision:<model> to use weights"
            )
        if config.mean is not None:
            raise ConfigError(
                "encoder.mean, encoder.std: the descriptor takes none; they apply to torchvision weights only"
            )
        from synthscale.embed.encoders.descriptor import DescriptorEncoder

        size = {} if config.image_size is None else {"image_size": config.image_size}
        return DescriptorEncoder(device=device, **size)
    if config.name.startswith("torchvision:"):
        from synthscale.embed.encoders.torchvision_model import build

        file = None if config.weights is None or weights is None else (config.weights, weights)
        encoder = build(config.name, config.image_size, file, device)
        if config.mean is not None and config.std is not None:
            encoder.set_normalisation(config.mean, config.std)
        return encoder
    raise ConfigError(
        f"encoder.name: {config.name!r} is neither 'descriptor' nor 'torchvision:<model>[@weights]'"
        f"{did_you_mean(config.name.partition(':')[0], ('descriptor', 'torchvision:<model>'))}"
    )
