"""Configuration: unknown keys, validation, YAML, overrides, and which settings enter fingerprints."""

import ast
import inspect
import json
import math

import pytest

from synthscale import config as config_module
from synthscale.config import Config, StorageConfig, parse_config
from synthscale.config_files import apply_overrides, load_config, parse_yaml
from synthscale.errors import ConfigError
from synthscale.metric_names import FAMILIES

INPUT = {"real": "a", "synthetic": {"g": "b"}, "output": "c"}


def refusal(values, source="configuration"):
    """Return the message of the ConfigError that the values raise."""
    with pytest.raises(ConfigError) as caught:
        parse_config(values, source)
    assert caught.value.exit_code == 2
    return str(caught.value)


# --- unknown keys and bad values ---


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"reel": "x"}, "reel"),
        ({"encoder": {"nam": "x"}}, "encoder.nam"),
        ({"neighbors": {"raduis": 1}}, "neighbors.raduis"),
        ({"classifier": {"fold": 5}}, "classifier.fold"),
        ({"storage": {"secret_key": "x"}}, "storage.secret_key"),
    ],
)
def test_unknown_keys_at_any_level_are_errors_that_name_the_key(values, named):
    message = refusal(values, "my.yaml")
    assert f"{named}: unknown key" in message
    assert message.startswith("my.yaml: ")


def test_one_error_names_every_problem():
    message = refusal({"reel": "x", "classifier": {"folds": 1}, "encoder": {"device": "tpu"}})
    assert all(key in message for key in ("reel", "classifier.folds", "encoder.device"))
    assert "\n" not in message


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("encoder", "batch_size", 0),
        ("encoder", "image_size", 4),
        ("encoder", "device", "gpu"),
        ("neighbors", "threshold", 0),
        ("neighbors", "threshold", "wide"),
        ("neighbors", "radius", 0.0),
        ("neighbors", "metric", "manhattan"),
        ("neighbors", "mode", "fast"),
        ("neighbors", "self_test_images", -1),
        ("neighbors", "self_test_images", 10_001),
        ("neighbors", "self_test_images", 1.5),
        ("neighbors", "actor_memory_gib", 0),
        ("neighbors", "actor_memory_gib", -1.0),
        ("neighbors", "actor_memory_gib", math.inf),
        ("neighbors", "actor_memory_gib", math.nan),
        ("classifier", "folds", 1),
        ("classifier", "seed", -1),
        ("classifier", "head", "forest"),
        ("classifier", "strengths", []),
        ("classifier", "strengths", [0.0, 1.0]),
        ("classifier", "strengths", [-1.0]),
        ("classifier", "strengths", [1.0, 1.0]),
        ("classifier", "strengths", [math.nan]),
        ("storage", "shard_rows", 0),
    ],
)
def test_values_out_of_range_are_errors_that_name_the_key(section, key, value):
    assert f"{section}.{key}" in refusal({section: {key: value}})


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("key", ["threshold", "radius"])
def test_a_threshold_or_radius_that_is_not_finite_is_an_error(key, value):
    assert f"neighbors.{key}" in refusal({"neighbors": {key: value}})


def test_a_cosine_radius_is_at_most_2_and_a_euclidean_one_may_be_larger():
    assert "at most 2" in refusal({"neighbors": {"radius": 2.5, "metric": "cosine"}})
    for metric in ("auto", "euclidean"):
        assert parse_config({"neighbors": {"radius": 2.5, "metric": metric}}).neighbors.radius == 2.5


def test_mode_datalab_compares_by_cosine_distance_alone():
    assert "datalab" in refusal({"neighbors": {"mode": "datalab", "metric": "euclidean"}})
    parse_config({"neighbors": {"mode": "datalab", "metric": "cosine"}})


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_a_failure_fraction_outside_0_and_1_is_an_error(value):
    assert "max_failure_fraction" in refusal({"max_failure_fraction": value})


def test_mean_without_std_is_an_error():
    assert "mean and std" in refusal({"encoder": {"mean": [0.5, 0.5, 0.5]}})
    parse_config({"encoder": {"mean": [0.5] * 3, "std": [0.5] * 3}})


def test_a_configuration_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        parse_config(INPUT).encoder.name = "other"


@pytest.mark.parametrize("url", ["https://key:secret@host:9000", "http://token@host"])
def test_credentials_in_the_endpoint_are_an_error_that_does_not_repeat_them(url):
    message = refusal({"storage": {"endpoint_url": url}})
    assert "credentials" in message
    assert "secret" not in message
    assert "token" not in message


# --- strengths ---


def test_strengths_are_sorted_and_survive_json():
    config = parse_config({"classifier": {"strengths": [math.inf, 1.0, 0.01]}})
    assert config.classifier.strengths == (0.01, 1.0, math.inf)
    text = json.dumps(config.model_dump(mode="json"), allow_nan=False)
    assert parse_config(json.loads(text)) == config


def test_the_default_grid_reaches_the_intercept_only_model():
    assert math.inf in Config().classifier.strengths


# --- metrics and gates ---


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], ()),
        (["core"], ()),
        ("core", ()),
        (["kernel", "copying"], ("kernel", "copying")),
        (["copying", "kernel", "core", "copying"], ("kernel", "copying")),
        ("copying, kernel", ("kernel", "copying")),
        ("all", tuple(FAMILIES)),
        (["all", "kernel"], tuple(FAMILIES)),
        (("vendi",), ("vendi",)),
    ],
)
def test_families_may_be_listed_in_any_order_and_are_kept_in_a_fixed_one(value, expected):
    config = parse_config({"metrics": {"families": value}})
    assert config.metrics.families == expected
    text = json.dumps(config.model_dump(mode="json"), allow_nan=False)
    assert parse_config(json.loads(text)) == config


@pytest.mark.parametrize("value", ["frechet distance", ["kid"], "kernel;vendi", ["Kernel"], [1]])
def test_an_unknown_family_is_an_error_that_lists_the_known_ones(value):
    message = refusal({"metrics": {"families": value}})
    assert "metrics.families" in message
    assert all(name in message for name in ("core", "all", *FAMILIES))


@pytest.mark.parametrize("key", ["families", "slice_by"])
@pytest.mark.parametrize("value", [None, 3, True])
def test_a_value_that_is_not_a_list_of_names_is_empty_or_an_error_that_names_the_key(key, value):
    # YAML reads "families:" without a value as None.
    try:
        assert getattr(parse_config({"metrics": {key: value}}).metrics, key) == ()
    except ConfigError as error:
        assert f"metrics.{key}" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], ()),
        ("prompt", ("prompt",)),
        ("prompt, model version,prompt", ("prompt", "model version")),
        (["seed", "prompt"], ("seed", "prompt")),
    ],
)
def test_columns_to_slice_by_keep_their_order(value, expected):
    assert parse_config({"metrics": {"slice_by": value}}).metrics.slice_by == expected


@pytest.mark.parametrize("value", ["", "prompt,,seed", " , ", ["prompt", ""]])
def test_an_empty_column_name_to_slice_by_is_an_error_or_left_out(value):
    try:
        assert "" not in parse_config({"metrics": {"slice_by": value}}).metrics.slice_by
    except ConfigError as error:
        assert "metrics.slice_by" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("fidelity>=0.3", ("fidelity>=0.3",)),
        (["auc.high<0.9", "generator=g freshness>=0.98"], ("auc.high<0.9", "generator=g freshness>=0.98")),
        ([], ()),
    ],
)
def test_gates_are_a_string_or_a_list(value, expected):
    assert parse_config({**INPUT, "gates": value}).gates == expected


@pytest.mark.parametrize(
    ("gate", "named"),
    [("fidelty>=0.3", "fidelty"), ("fidelity", "fidelity"), ("fidelity>=x", "'x'"), ("fidelity.mid>=0", "mid")],
)
def test_an_invalid_gate_is_a_configuration_error(gate, named):
    message = refusal({"gates": ["auc<0.9", gate]})
    assert repr(gate) in message
    assert named in message


def test_a_gate_on_a_metric_of_a_family_needs_the_family():
    assert "no metric kid" in refusal({"gates": "kid<=0.1"})
    assert parse_config({"gates": "kid<=0.1", "metrics": {"families": "kernel"}}).gates == ("kid<=0.1",)


# --- YAML and overrides ---


@pytest.mark.parametrize("text", ["a: [1, 2", "a: b: c", "\t- x", "a: !!python/object:os.system {}"])
def test_invalid_yaml_is_an_error_of_one_line_that_names_the_source(text):
    with pytest.raises(ConfigError, match=r"^my\.yaml: ") as caught:
        parse_yaml(text, "my.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b", "just words", "3"])
def test_yaml_that_is_not_a_mapping_is_an_error(text):
    with pytest.raises(ConfigError, match="mapping"):
        parse_yaml(text, "my.yaml")


def test_empty_yaml_gives_no_settings():
    assert parse_yaml("# nothing\n", "x") == {}


@pytest.mark.parametrize("section", ["metrics", "gates", "synthetic", "storage", "max_failure_fraction"])
def test_an_empty_section_has_its_defaults(section):
    assert parse_config(parse_yaml(f"{section}:\n", "file"), "file") == Config()


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("classifier.folds=3", 3),
        ("classifier.strengths=[.inf, 0.1]", [math.inf, 0.1]),
        ("encoder.weights=s3://bucket/a=b.pt", "s3://bucket/a=b.pt"),
        ("neighbors.radius=null", None),
        ("storage.anon=true", True),
        ("max_failure_fraction=0.5", 0.5),
    ],
)
def test_an_override_is_read_as_yaml(override, value):
    merged = apply_overrides({}, [override])
    for key in override.partition("=")[0].split("."):
        merged = merged[key]
    assert merged == value


def test_overrides_win_over_the_file_and_later_ones_over_earlier_ones():
    values = {"classifier": {"folds": 3, "seed": 9}}
    merged = apply_overrides(values, ["classifier.folds=4", "classifier.folds=5"])
    assert merged == {"classifier": {"folds": 5, "seed": 9}}
    assert values == {"classifier": {"folds": 3, "seed": 9}}


@pytest.mark.parametrize(
    "override", ["folds", "=3", ".folds=3", "classifier.=3", "max_failure_fraction.x=1", "encoder.name=[1"]
)
def test_the_error_of_an_invalid_override_repeats_it(override):
    with pytest.raises(ConfigError) as caught:
        apply_overrides({"max_failure_fraction": 0.1}, [override])
    assert override in str(caught.value)


def test_an_empty_section_can_be_overridden():
    # YAML reads "encoder:" with nothing under it as None.
    assert apply_overrides({"encoder": None}, ["encoder.name=descriptor"]) == {"encoder": {"name": "descriptor"}}


def test_an_override_of_an_unknown_key_is_an_error_that_names_it():
    assert "classifier.fold: unknown key" in refusal(apply_overrides({}, ["classifier.fold=3"]))


def test_a_file_is_read(tmp_path):
    (tmp_path / "c.yaml").write_text("real: ü\nclassifier: {folds: 3}\n", encoding="utf-8")
    assert load_config(f"{tmp_path}/c.yaml") == {"real": "ü", "classifier": {"folds": 3}}


def test_a_file_on_s3_is_read(s3):
    bucket = s3.bucket()
    s3.client.put_object(Bucket=bucket, Key="c.yaml", Body=b"real: x\n")
    assert load_config(f"s3://{bucket}/c.yaml") == {"real": "x"}


@pytest.mark.parametrize("uri", ["{tmp}/none.yaml", "{tmp}", "{tmp}/binary.yaml", "nosuchscheme://x/c.yaml"])
def test_the_error_of_an_unreadable_file_names_it(tmp_path, uri):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    uri = uri.format(tmp=tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_config(uri)
    assert uri in str(caught.value)


# --- required settings ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": None}, "no output"),
        ({"real": None, "synthetic": {}}, "no input"),
        ({"real": None}, "no real images"),
        ({"synthetic": {}}, "no synthetic images"),
        ({"manifest": "m.csv"}, "not both"),
    ],
)
def test_the_error_says_which_required_setting_is_missing(change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(INPUT | change).check_runnable()
    assert "--" in str(caught.value) or "not both" in message


@pytest.mark.parametrize("values", [INPUT, {"manifest": "m.csv", "output": "c"}])
def test_complete_configurations_can_be_run(values):
    parse_config(values).check_runnable()


# --- fingerprints ---


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("encoder", "device", "cpu"),
        ("encoder", "batch_size", 8),
        ("neighbors", "actor_memory_gib", 0.5),
        ("classifier", "workers", 3),
    ],
)
def test_settings_that_do_not_change_results_are_not_in_fingerprints(section, key, value):
    changed = parse_config({section: {key: value}})
    assert changed.result_settings(section) == Config().result_settings(section)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("encoder", "name", "torchvision:resnet50"),
        ("encoder", "image_size", 96),
        ("neighbors", "threshold", 0.2),
        ("neighbors", "radius", 0.2),
        ("neighbors", "mode", "datalab"),
        ("neighbors", "calibrate_on", "all"),
        ("neighbors", "self_test_images", 0),
        ("classifier", "folds", 3),
        ("classifier", "seed", 3),
        ("classifier", "head", "linear"),
        ("classifier", "class_weight", "none"),
        ("classifier", "strengths", [1.0]),
        ("metrics", "families", ["kernel"]),
        ("metrics", "slice_by", ["prompt"]),
        ("metrics", "frechet_infinity", True),
    ],
)
def test_settings_that_change_results_are_in_fingerprints(section, key, value):
    changed = parse_config({section: {key: value}}).result_settings(section)
    assert changed != Config().result_settings(section)
    json.dumps(changed, allow_nan=False)


def test_self_test_images_and_actor_memory_have_their_defaults_and_bounds():
    neighbors = Config().neighbors
    assert (neighbors.self_test_images, neighbors.actor_memory_gib) == (32, 4.0)
    for key, value in (("self_test_images", 0), ("self_test_images", 10_000), ("actor_memory_gib", 1e-3)):
        assert getattr(parse_config({"neighbors": {key: value}}).neighbors, key) == value
    settings = Config().result_settings("neighbors")
    assert "actor_memory_gib" not in settings
    assert settings["self_test_images"] == 32


def test_storage_enters_no_fingerprint():
    one = Config(**INPUT)
    two = Config(**INPUT, storage=StorageConfig(endpoint_url="http://h", shard_rows=7))
    for section in ("input", "encoder", "neighbors", "classifier", "metrics"):
        assert one.result_settings(section) == two.result_settings(section)


def test_gates_enter_no_fingerprint_and_the_control_enters_that_of_the_input():
    one, two = Config(**INPUT), Config(**INPUT, gates=("fidelity>=0.3",))
    for section in ("input", "encoder", "neighbors", "classifier", "metrics"):
        assert one.result_settings(section) == two.result_settings(section)
    assert Config(**INPUT, control=True).result_settings("input") != one.result_settings("input")


# --- documentation ---


def test_every_field_has_a_docstring():
    tree = ast.parse(inspect.getsource(config_module))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name != "_Section"]
    fields, bare = 0, []
    # A field of Config that is a section is documented by the docstring of its class.
    sections = {node.name for node in classes}
    for node in classes:
        assert ast.get_docstring(node), node.name
        for i, item in enumerate(node.body):
            if not isinstance(item, ast.AnnAssign) or ast.unparse(item.annotation) in sections:
                continue
            fields += 1
            after = node.body[i + 1] if i + 1 < len(node.body) else None
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if not (is_text and isinstance(after.value.value, str)):
                bare.append(f"{node.name}.{item.target.id}")
    assert fields > 20
    assert bare == []


@pytest.mark.parametrize("values", [{"real": ""}, {"output": ""}, {"manifest": ""}, {"synthetic": {"x": ""}}])
def test_an_empty_path_is_an_error(values):
    with pytest.raises(ConfigError):
        parse_config(values)
