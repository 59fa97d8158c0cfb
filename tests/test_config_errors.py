"""What is said about a wrong configuration: one line with file, key, what is expected and what was found."""

import pytest

from synthscale.config import parse_config
from synthscale.config_files import load_config, parse_yaml
from synthscale.errors import ConfigError

SAID = {
    "neighbors: {threshold: a}": 'neighbors.threshold: expected a number above 0, found "a"',
    "neighbors: {treshold: 1}": "neighbors.treshold: unknown key; did you mean threshold?",
    "neighbors: {Threshold: 1}": "neighbors.Threshold: unknown key; did you mean threshold?",
    "metrics: {slice-by: a}": "metrics.slice-by: unknown key; did you mean slice_by?",
    "threshold: 1": "threshold: unknown key; did you mean neighbors.threshold?",
    "fold: 3": "fold: unknown key; did you mean classifier.folds?",
    "encoder: {folds: 3}": "encoder.folds: unknown key; did you mean classifier.folds?",
    "classifer: {}": "classifer: unknown key; did you mean classifier?",
    "xyzzy: 1": "xyzzy: unknown key",
    "classifier: [1]": "classifier: expected keys and values, found [1]",
    "classifier: words": 'classifier: expected keys and values, found "words"',
    "classifier: {folds: true}": "classifier.folds: expected a whole number from 2 to 100, found true",
    "classifier: {folds: 1.5}": "classifier.folds: expected a whole number from 2 to 100, found 1.5",
    "classifier: {folds: }": "classifier.folds: expected a whole number from 2 to 100, found nothing",
    "classifier: {folds: .nan}": "classifier.folds: expected a whole number from 2 to 100, found nan",
    "classifier: {seed: -1}": "classifier.seed: expected a whole number of at least 0 and below 9,223",
    "classifier: {strengths: [a, .inf]}": 'classifier.strengths: expected a list of numbers, found ["a", inf]',
    "classifier: {strengths: [1, 1]}": "classifier.strengths: expected distinct positive numbers",
    "classifier: {head: Kernal}": 'expected one of kernel, linear, mlp, found "Kernal"; did you mean kernel?',
    "encoder: {mean: [1]}": "encoder.mean: expected a list of three numbers, found [1]",
    "encoder: {mean: [0, 0, 0]}": "encoder: mean and std must be set together",
    "encoder: {name: 3}": "encoder.name: expected text, found 3; put it in quotes",
    "storage: {region: no}": "storage.region: expected text, found false; put it in quotes",
    "real: 2024-01-02": "real: expected text that is not empty, found a value of type date; put it in quotes",
    "real: ''": 'real: expected text that is not empty, found ""',
    "real: {a: b}": "real: expected text that is not empty, found keys and values",
    'real: "a\\0b"': 'real: contains the character NUL: "a\\u0000b"',
    "synthetic: [a]": 'synthetic: expected names with a folder each, found ["a"]',
    "synthetic: {2024: x}": "synthetic: the key 2024 is not text; put it in quotes",
    "synthetic: {a: 3}": "synthetic.a: expected text, found 3",
    "synthetic: {a: }": "synthetic.a: expected text, found nothing",
    "synthetic: {a: ''}": "synthetic: the folder of generator 'a' is empty",
    "synthetic: {real: x}": "synthetic: generator name 'real': is reserved",
    "gates: 3": "gates: expected a list of texts, found 3",
    "gates: [fidelty>0.3]": "gates: gate 'fidelty>0.3': no metric fidelty; did you mean fidelity?",
    "gates: [fidelity.lo>0.3]": "lo is not one of value, low, high; did you mean low?",
    "metrics: {families: kernal}": "metrics.families: unknown family kernal; choose from",
    "metrics: {families: {a: b}}": "metrics.families: expected a list of names, or one text with commas",
    "metrics: {slice_by: [[a]]}": "metrics.slice_by: expected a list of names, or one text with commas",
    "control: maybe": 'control: expected true or false, found "maybe"',
    "max_failure_fraction: 3": "max_failure_fraction: expected a number from 0 to 1, found 3",
    "storage: {requests_in_flight: 0}": "expected a whole number from 1 to 1,024, found 0",
    "1: x": "the key 1 is not text; put it in quotes",
    "? [a]\n: x": "not valid YAML at line 1, column 3: found unhashable key",
    "real: a\nreal: b": "not valid YAML at line 2, column 1: the key real occurs twice",
    "classifier: {folds: 3, 'folds': 4}": "the key folds occurs twice",
    "classifier:\n\tfolds: 3": "found character '\\t' that cannot start any token; indent with blanks, not tabs",
    "a: b: c": "not valid YAML at line 1, column 5: mapping values are not allowed here",
    "real: *a": "not valid YAML at line 1, column 7: found undefined alias 'a'",
    "real: !!timestamp x": "not valid YAML: a date, number or tagged value cannot be read",
    "real: 2024-13-45": "not valid YAML: a date, number or tagged value cannot be read (month must be in 1..12)",
    "x: !!int ''": "not valid YAML: a date, number or tagged value cannot be read",
    "x: !!python/object:os.system {}": "not valid YAML at line 1, column 4: could not determine a constructor",
    "a: \x00": "not valid YAML: unacceptable character",
    "--- {}\n--- {}": "not valid YAML at line 2, column 1: but found another document",
    "a: " + "[" * 3000: "not valid YAML: nested too deeply",
    "classifier: {folds: " + "9" * 5000 + "}": "a date, number or tagged value cannot be read (Exceeds the limit",
    "classifier: {folds: "
    + "9" * 400
    + "}": "classifier.folds: expected a whole number from 2 to 100, found a very",
    "real: &a [*a]": "real: expected text that is not empty, found a list of 1",
    "classifier: {strengths: &a [*a]}": "classifier.strengths: expected a list of numbers, found a list of 1",
    "classifier: &c {x: *c}": "classifier.x: unknown key",
    "a: &a [x,x,x]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\nmetrics: {families: *c}": "metrics.families: expected",
    '"a\\nb\\e[31m": 1': '"a\\nb\\u001b[31m": unknown key',
    "k" * 500 + ": 1": "k" * 60 + '...": unknown key',
    "- a": 'expected a mapping of keys to values, found ["a"]',
    "3": "expected a mapping of keys to values, found 3",
    "\n".join(f"x{i}: 1" for i in range(13)): "x9: unknown key; and 3 more",
}


@pytest.mark.parametrize(("text", "said"), SAID.items(), ids=[ascii(text)[:40] for text in SAID])
def test_a_wrong_configuration_is_described_in_one_plain_line(text, said):
    with pytest.raises(ConfigError) as caught:
        parse_config(parse_yaml(text, "my.yaml"), "my.yaml")
    message = str(caught.value)
    assert message.startswith("my.yaml: ")
    assert said in message
    assert message.isprintable()
    assert len(message) < 1000
    assert not any(word in message for word in ("Value error", "[key]", "Input should", "pydantic", "Traceback"))


def test_a_key_that_an_option_gave_is_not_blamed_on_the_file():
    with pytest.raises(ConfigError) as caught:
        parse_config({"control": 3, "real": 3, "output": 4}, "my.yaml", {"real": "--real", "output": "--real"})
    assert str(caught.value).count("my.yaml: control") == 1
    assert str(caught.value).count("--real: real: ") == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_is_read_in_the_encodings_of_editors(tmp_path, encoding):
    (tmp_path / "c.yaml").write_text("real: ü\n", encoding=encoding)
    assert load_config(f"{tmp_path}/c.yaml") == {"real": "ü"}
    assert load_config(f"file://{tmp_path}/c.yaml") == {"real": "ü"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("real: \xfc".encode("latin-1"), "not text in UTF-8"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"PK\3\4\xff\xff", "UTF-8"),
    ],
)
def test_bytes_that_are_no_text_are_named(tmp_path, content, said):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        load_config(f"{tmp_path}/c.yaml")
