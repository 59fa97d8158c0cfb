"""Pretrained torchvision classifiers as encoders; the vector is the input of the last layer.

Weights are downloaded by torchvision's name (``torchvision:resnet50@IMAGENET1K_V2``) or read from a local or S3
file (a state dict, loaded with ``weights_only=True``, or safetensors). If they cannot be loaded, the run fails:
there is no fallback to other or random weights.
"""

import hashlib
import io
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from synthscale.errors import ConfigError
from synthscale.spelling import did_you_mean

VERSION = 1
"""Part of the fingerprint. Raise it when the same weights and pixels give other vectors."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_HEADS = ("fc", "classifier", "heads", "head")
"""Names of the attribute that contains a torchvision model's last layer."""


class TorchvisionEncoder:
    """Torchvision model without its last layer; all dimensions are used for search and for classification."""

    scaled = False

    def __init__(self, model: nn.Module, name: str, image_size: int, weights_id: str, device: str) -> None:
        """Wrap a model that outputs features (B, D).

        Args:
            model: the model without its last layer, with its weights loaded.
            name: ``encoder.name`` in the configuration.
            image_size: side of the model's input in pixels.
            weights_id: identifies the weights in the fingerprint.
            device: torch device.

        Raises:
            ConfigError: the model cannot process images of this size.
        """
        self.name = name
        self.image_size = image_size
        self._device = device
        self._model = model.eval().to(device)
        self._mean = torch.tensor(IMAGENET_MEAN, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(IMAGENET_STD, device=device).view(1, 3, 1, 1)
        self.fingerprint = f"{name}-{VERSION}/{image_size}/{weights_id}"
        blank = np.zeros((1, image_size, image_size, 3), np.uint8)
        try:
            self.dimensions = self.encode(blank).shape[1]
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"encoder {name}: cannot process images of {image_size} px: {error}") from error
        self.search = self.classify = (0, self.dimensions)

    def set_normalisation(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Self:
        """Set the per-channel mean and standard deviation (pixels 0..1) that the weights were trained with."""
        self._mean = torch.tensor(mean, device=self._device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=self._device).view(1, 3, 1, 1)
        self.fingerprint += f"/{list(mean)}/{list(std)}"
        return self

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the vectors (B, D) of RGB images, ``pixels`` (B, S, S, 3)."""
        # Pixels are transferred as uint8 and scaled on the device: a quarter of the bytes of float32.
        batch = torch.from_numpy(np.ascontiguousarray(pixels)).to(self._device).permute(0, 3, 1, 2)
        with torch.inference_mode():
            features = self._model((batch.float() / 255.0 - self._mean) / self._std)
        result: NDArray[np.float32] = features.flatten(1).float().cpu().numpy()
        return result


def build(
    name: str, image_size: int | None, weights_file: tuple[str, bytes] | None, device: str
) -> TorchvisionEncoder:
    """Build the encoder ``torchvision:<model>[@weights]``.

    Args:
        name: ``encoder.name`` in the configuration.
        image_size: side of the input in pixels; None for the crop size of the named weights, or 224 with a file.
        weights_file: URI and bytes of a state dict; None downloads torchvision's named weights.
        device: torch device.

    Raises:
        ConfigError: the model is unknown, or its weights cannot be loaded.
    """
    torchvision = import_torchvision()
    model_name, _, weights_name = name.removeprefix("torchvision:").partition("@")
    if model_name not in (known := torchvision.models.list_models(module=torchvision.models)):
        raise ConfigError(
            f"encoder {name}: torchvision has no model {model_name!r}{did_you_mean(model_name, known)}"
        )
    if weights_file is not None:
        uri, data = weights_file
        model = torchvision.models.get_model(model_name, weights=None, **_quiet_options(model_name))
        _drop_last_layer(model, name)
        _load_state(model, _read_state(uri, data), uri)
        weights_id = hashlib.blake2b(data, digest_size=12).hexdigest()
        return TorchvisionEncoder(model, name, image_size or 224, weights_id, device)
    try:
        options = torchvision.models.get_model_weights(model_name)
        weights = options[weights_name] if weights_name else options.DEFAULT
    except KeyError as error:
        raise ConfigError(
            f"encoder {name}: unknown weights {weights_name!r}; available are {', '.join(w.name for w in options)}"
            f"{did_you_mean(weights_name, [w.name for w in options])}"
        ) from error
    try:
        model = torchvision.models.get_model(model_name, weights=weights)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"encoder {name}: the weights {weights.name} could not be downloaded ({error}); give them as a file "
            "with encoder.weights=FILE_OR_S3_URI, or use encoder.name=descriptor, which needs none"
        ) from error
    _drop_last_layer(model, name)
    preset = weights.transforms()
    encoder = TorchvisionEncoder(model, name, image_size or preset.crop_size[0], str(weights), device)
    return encoder.set_normalisation(tuple(preset.mean), tuple(preset.std))


def import_torchvision() -> Any:
    """Import torchvision, even if it is a CUDA wheel installed with a CPU build of torch."""
    try:
        import torchvision
    except RuntimeError:
        # The wheel's compiled operators cannot be loaded. Importing needs only the declarations of two, and the
        # models use none.
        library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        globals()["_library"] = library  # the declarations are removed with this object
        import torchvision
    return torchvision


def _quiet_options(model_name: str) -> dict[str, Any]:
    # Without this option, these two models warn that their weight initialisation will change.
    return {"init_weights": False} if model_name in {"googlenet", "inception_v3"} else {}


def _drop_last_layer(model: nn.Module, name: str) -> None:
    for attribute in _HEADS:
        head = getattr(model, attribute, None)
        if isinstance(head, nn.Linear):
            setattr(model, attribute, nn.Identity())
            return
        if isinstance(head, nn.Sequential):
            linear = [i for i, layer in enumerate(head) if isinstance(layer, nn.Linear)]
            if linear:
                head[linear[-1]] = nn.Identity()
            else:  # the last layer of SqueezeNet is a convolution
                setattr(model, attribute, nn.AdaptiveAvgPool2d(1))
            return
    raise ConfigError(f"encoder {name}: not supported, because it has no last layer named {', '.join(_HEADS)}")


def _read_state(uri: str, data: bytes) -> Mapping[str, torch.Tensor]:
    try:
        if uri.endswith(".safetensors"):
            from safetensors.torch import load

            tensors: dict[str, torch.Tensor] = load(data)
            return tensors
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        # Loaders raise exceptions of any type for files that are not state dicts.
        raise ConfigError(f"{uri}: cannot be loaded as a state dict with weights_only=True: {error}") from error
    state = state.get("state_dict", state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ConfigError(f"{uri}: does not contain a state dict of tensors")
    return state


def _load_state(model: nn.Module, state: Mapping[str, torch.Tensor], uri: str) -> None:
    try:
        outcome = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ConfigError(f"{uri}: does not fit the model: {' '.join(str(error).split())[:300]}") from error
    # The file may contain weights of the dropped last layer and of auxiliary classifiers, but no other ones.
    unknown = [
        key for key in outcome.unexpected_keys if key.split(".")[0] not in {*_HEADS, "AuxLogits", "aux1", "aux2"}
    ]
    if outcome.missing_keys or unknown:
        raise ConfigError(
            f"{uri}: does not fit the model: missing {outcome.missing_keys[:3]}, unknown {unknown[:3]}"
        )
