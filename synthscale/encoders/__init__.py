"""Encoders turn pixels into embeddings: one small protocol, two families.

``descriptor`` is built in and needs no weights; ``torchvision:<model>[@weights]`` runs a pretrained network.
"""

from synthscale.encoders.protocol import Encoder

__all__ = ["Encoder"]
