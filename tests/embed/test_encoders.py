"""Encoders: the protocol, torchvision models with weights from files, and error messages."""

import importlib
import io
import pickle
import urllib.error

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_safetensors

from synthscale.config import EncoderConfig
from synthscale.embed.encoders import build_encoder
from synthscale.embed.encoders.torchvision_model import import_torchvision
from synthscale.errors import ConfigError

MODEL = "torchvision:squeezenet1_1"  # the smallest one that torchvision has
SIZE = 64


def build(name=MODEL, weights=None, data=None, **more):
    return build_encoder(EncoderConfig(name=name, weights=weights, image_size=SIZE, **more), data, "cpu")


def refusal(*arguments, **more):
    with pytest.raises(ConfigError) as caught:
        build(*arguments, **more)
    return str(caught.value)


@pytest.fixture(scope="module")
def state():
    """Return a state dict of MODEL with random weights from a fixed seed."""
    torch.manual_seed(0)
    model = import_torchvision().models.get_model(MODEL.partition(":")[2], weights=None)
    return {name: value.contiguous() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)


def saved(value):
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def downloads_fail_with(monkeypatch, failure):
    """Make downloads raise ``failure``, in torch.hub and in torchvision's own reference to its function."""

    def fail(*arguments, **more):
        raise failure

    import_torchvision()
    monkeypatch.setattr(importlib.import_module("torchvision.models._api"), "load_state_dict_from_url", fail)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch):
    """Keep tests from using the network."""
    downloads_fail_with(monkeypatch, urllib.error.URLError("no network in tests"))


# --- the protocol ---


@pytest.fixture(params=["descriptor", MODEL])
def encoder(request, state):
    if request.param == "descriptor":
        return build("descriptor")
    return build(weights="w.pt", data=saved(state))


def test_vectors_have_the_declared_dimensions_and_type(encoder, pictures):
    vectors = encoder.encode(pictures)
    assert vectors.shape == (5, encoder.dimensions)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    for low, high in (encoder.search, encoder.classify):
        assert 0 <= low < high <= encoder.dimensions


def test_only_the_filters_have_dimensions_of_different_units(encoder):
    assert encoder.scaled == (encoder.name == "descriptor")


def test_equal_pixels_give_equal_vectors_and_different_pixels_different_ones(encoder, pictures):
    first, second = encoder.encode(pictures), encoder.encode(pictures.copy())
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first, axis=0)) == 5


def test_vectors_depend_on_the_batch_by_rounding_only(encoder, pictures):
    together = encoder.encode(pictures)
    alone = np.concatenate([encoder.encode(pictures[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-5)


def test_read_only_views_are_accepted_and_not_changed(encoder, pictures):
    flipped = pictures[:, :, ::-1]
    before = flipped.copy()
    flipped.flags.writeable = False
    np.testing.assert_array_equal(encoder.encode(flipped), encoder.encode(before))
    np.testing.assert_array_equal(flipped, before)


def test_the_fingerprint_has_the_name_and_the_image_size(encoder):
    assert encoder.fingerprint.startswith(encoder.name)
    assert str(SIZE) in encoder.fingerprint


# --- torchvision with weights from a file ---


def test_pretrained_weights_give_1280_features(shared_data, pictures):
    path = shared_data / "data" / "weights" / "mobilenet_v2_tf2_ptq_dequant.pt"
    half = (0.5, 0.5, 0.5)
    encoder = build("torchvision:mobilenet_v2", str(path), path.read_bytes(), mean=half, std=half)
    assert encoder.dimensions == 1280
    assert encoder.search == encoder.classify == (0, 1280)
    np.testing.assert_array_equal(encoder.encode(pictures), encoder.encode(pictures))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_state_dicts_and_safetensors_give_the_same_vectors(state, pictures, suffix):
    reference = build(weights="w.pt", data=saved(state)).encode(pictures)
    data = save_safetensors(state) if suffix == ".safetensors" else saved(state)
    np.testing.assert_array_equal(build(weights=f"w{suffix}", data=data).encode(pictures), reference)


def test_other_weights_in_the_file_change_the_vectors_and_the_fingerprint(state, pictures):
    changed = {name: value * 1.5 for name, value in state.items()}
    plain, other = build(weights="w.pt", data=saved(state)), build(weights="w.pt", data=saved(changed))
    assert not np.allclose(plain.encode(pictures), other.encode(pictures))
    assert plain.fingerprint != other.fingerprint


def test_a_state_dict_inside_a_checkpoint_is_found(state, pictures):
    reference = build(weights="w.pt", data=saved(state)).encode(pictures)
    checkpoint = saved({"state_dict": state, "epoch": 3})
    np.testing.assert_array_equal(build(weights="w.pt", data=checkpoint).encode(pictures), reference)


def test_a_state_dict_without_the_last_layer_is_accepted(state):
    headless = {name: value for name, value in state.items() if not name.startswith("classifier")}
    assert build(weights="w.pt", data=saved(headless)).dimensions == 512


def test_mean_and_std_change_the_vectors_and_the_fingerprint(state, pictures):
    plain = build(weights="w.pt", data=saved(state))
    other = build(weights="w.pt", data=saved(state), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert not np.allclose(plain.encode(pictures), other.encode(pictures))
    assert plain.fingerprint != other.fingerprint


def test_each_channel_is_normalised_by_its_own_mean(state):
    """An image of exactly the mean colour gives the same vector as a black one with mean 0."""
    at_mean = build(weights="w.pt", data=saved(state), mean=(1.0, 0.0, 0.2), std=(0.5, 0.5, 0.5))
    black = build(weights="w.pt", data=saved(state), mean=(0.0, 0.0, 0.0), std=(0.5, 0.5, 0.5))
    colour = np.broadcast_to(np.array([255, 0, 51], np.uint8), (1, SIZE, SIZE, 3))
    dark = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    np.testing.assert_allclose(at_mean.encode(colour), black.encode(dark), atol=1e-5)


# --- error messages ---


class Harmful:
    """Object that runs code when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("code of the weights file was run",))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"no weights at all", id="text"),
        pytest.param(b"", id="empty"),
        pytest.param(pickle.dumps(Harmful(), protocol=2), id="harmful pickle"),
        pytest.param(saved({"state_dict": {"a": 1}}), id="numbers"),
        pytest.param(saved([torch.zeros(3)]), id="list"),
        pytest.param(saved(torch.zeros(3)), id="tensor"),
    ],
)
@pytest.mark.parametrize("uri", ["s3://bucket/w.pt", "w.safetensors"])
def test_a_file_without_a_state_dict_is_refused_by_name_and_runs_no_code(data, uri):
    assert uri in refusal(weights=uri, data=data)


def test_weights_of_another_model_are_refused_with_file_and_key(state):
    renamed = {f"module.{name}": value for name, value in state.items()}
    message = refusal(weights="w.pt", data=saved(renamed))
    assert "w.pt: does not fit the model" in message
    assert "module.features" in message


def test_weights_without_a_layer_are_refused_with_its_key(state):
    partial = {name: value for name, value in state.items() if not name.startswith("features.0")}
    assert "features.0.weight" in refusal(weights="w.pt", data=saved(partial))


def test_weights_of_another_shape_are_refused_with_file_and_key(state):
    wrong = state | {"features.0.weight": torch.zeros(8, 3, 3, 3)}
    message = refusal(weights="w.pt", data=saved(wrong))
    assert "w.pt: does not fit the model" in message
    assert "features.0.weight" in message


def test_an_unknown_model_is_refused_by_name():
    assert "resnet5000" in refusal("torchvision:resnet5000")


def test_the_error_of_an_unknown_encoder_lists_the_valid_names():
    message = refusal("clip")
    assert "'clip'" in message
    assert "descriptor" in message
    assert "torchvision:" in message


def test_the_error_of_unknown_weights_lists_the_valid_names():
    message = refusal(f"{MODEL}@IMAGENET9K")
    assert "IMAGENET9K" in message
    assert "IMAGENET1K_V1" in message


@pytest.mark.parametrize("model", ["mnasnet0_75", "shufflenet_v2_x1_5"])
def test_models_without_pretrained_weights_are_refused_instead_of_being_random(model):
    assert "NOPE" in refusal(f"torchvision:{model}@NOPE")


def test_a_model_that_is_not_a_classifier_is_refused_by_name():
    message = refusal("torchvision:fasterrcnn_resnet50_fpn", weights="w.pt", data=b"x")
    assert "fasterrcnn_resnet50_fpn" in message


@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError("no route to host"),
        urllib.error.HTTPError("https://download", 403, "Forbidden", {}, None),
        RuntimeError('invalid hash value (expected "a", got "b")'),
        TimeoutError("timed out"),
    ],
    ids=["unreachable", "forbidden", "wrong hash", "timeout"],
)
def test_the_error_of_a_failed_download_names_the_alternatives(monkeypatch, failure):
    downloads_fail_with(monkeypatch, failure)
    message = refusal(MODEL)
    assert "encoder.weights" in message
    assert "descriptor" in message
    assert "IMAGENET1K_V1" in message


def test_the_descriptor_refuses_weights():
    assert "descriptor takes none" in refusal("descriptor", weights="w.pt", data=b"x")


def test_the_descriptor_refuses_a_mean():
    half = (0.5, 0.5, 0.5)
    assert "mean" in refusal("descriptor", mean=half, std=half)


def test_an_image_size_that_the_model_cannot_process_is_refused_by_size(state):
    with pytest.raises(ConfigError, match="8 px"):
        build_encoder(EncoderConfig(name=MODEL, weights="w.pt", image_size=8), saved(state), "cpu")
