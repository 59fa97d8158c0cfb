"""Configurations and command lines of any kind: each is taken, or refused with one line and exit code 2.

Seeded mutators, so that a failure can be repeated: the id of a test is the number of its batch. An exception that
is neither a SynthscaleError nor argparse's exit is a bug.
"""

import random
import string

import pytest

from synthscale import cli, plan
from synthscale.cli import main
from synthscale.config import parse_config
from synthscale.config_files import apply_overrides, load_config, parse_yaml
from synthscale.errors import ConfigError, InputError, SynthscaleError
from synthscale.terminal import printable
from tests.examples import FACTOR

BATCHES = 4 * FACTOR
CONFIGURATIONS, COMMAND_LINES = 80, 30
"""Cases of each batch."""

DOCUMENTS = [
    "real: a\nsynthetic: {gan: b, 'org/model-1.0': c}\noutput: o\n",
    "manifest: m.csv\noutput: o\ngates: ['fidelity>=0.3', 'generator=gan auc.high<0.9']\ncontrol: true\n",
    "encoder: {name: 'torchvision:resnet18', weights: w.pt, image_size: 64, mean: [0, 0, 0], std: [1, 1, 1]}\n",
    "neighbors:\n  mode: exact\n  metric: auto\n  threshold: 0.13\n  radius: 0.1\n  self_test_images: 3\n",
    "classifier:\n  head: mlp\n  folds: 3\n  strengths: [1e-3, 0.1, .inf]\n  seed: 7\n  class_weight: none\n",
    "metrics: {families: [kernel, vendi], slice_by: prompt, frechet_infinity: yes}\nmax_failure_fraction: 0.5\n",
    "storage: {endpoint_url: 'http://h:1', anon: false, retry_s: 1, shard_rows: 7, cache: c}\n",
    "base: &b {folds: 3}\nclassifier:\n  <<: *b\n  seed: 1\n",
]
SCALARS = [
    *("", "~", "null", "true", "no", "0", "-1", "1e400", ".nan", "-.inf", "0x1f", "007", "1_0", "12:30:45"),
    *("2024-01-02", "2024-99-99", "9" * 5000, "''", '"\\0"', '"\\e[31m"', '"\\ud800"', "größe", "模型", "\u202e"),
    *("[]", "{}", "[[]]", "{a: {b: c}}", "&x [*x]", "*y", "!!binary x", "!!int ''", "!!set {a}", "!!omap [a: 1]"),
    *(
        "!!python/name:os.system",
        "!x y",
        "|\n  text",
        ">",
        "- a",
        "? a",
        "a: b",
        "'",
        '"',
        "\t",
        "#",
        "%",
        "@",
        "`",
    ),
    *("x" * 300, "\ufeff", "\x00", "\x85", "\u2028", "[" * 2000, "{" * 2000, "../..", "s3://", "file://", "~/x"),
]
TEXTS = [
    *(
        "",
        " ",
        "-",
        "--",
        "=",
        "a=b",
        "a=",
        "=b",
        "org/m=x",
        "x=y=z",
        "~nobody/x",
        "/",
        ".",
        "..",
        "//",
        "\\",
        "*",
    ),
    *(
        "photos",
        "fakes",
        "gan=fakes",
        "a/b=fakes",
        "photos/cat",
        "photos/cat/000.png",
        "run",
        "photos/run",
        "c.yaml",
    ),
    *(
        "nowhere",
        "\0",
        "a\0b",
        "\udcff",
        "\x1b[31m",
        "größe",
        "模型=fakes",
        "a\nb",
        "x" * 300,
        "x/" * 3000,
        "\u202e",
    ),
    *(
        "s3://",
        "s3:///x",
        "http://x",
        "zip://a::b",
        "file://photos",
        "::",
        "a::b",
        "file:///",
        "{}",
        "[bold]",
        "%s",
    ),
    *(
        "9" * 5000,
        "1e400",
        "core",
        "all",
        "kernel,nothing",
        "label",
        "fidelity>=0.3",
        "generator=gan auc<2",
        "auc",
    ),
    *(
        "classifier.folds=3",
        "classifier=3",
        "a.b.c=1",
        ".=1",
        "real=[",
        "output=&x [*x]",
        "embed",
        "reduce",
        "local",
    ),
]
SHARED, DATA = ["--config", "--set"], ["--real", "--synthetic", "--manifest", "--output"]
WORK = ["--families", "--slice-by", "--gate", "--redo-from", "--ray-address"]
OPTIONS = {
    "score": [*SHARED, *DATA, *DATA, *WORK],
    "validate": [*SHARED, *DATA, *DATA],
    "status": SHARED,
    "report": SHARED,
    "compare": [*SHARED, "--output"],
    "vlidate": DATA,
}
"""Options of each command that have a value."""


def mutated(text, rng):
    """Return a text after a few random edits."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(text))
        to = min(len(text), at + rng.randint(0, 8))
        words = text.split(" ")
        text = rng.choice(
            [
                text[:at] + text[to:],
                text[:at] + text[at:to] * 3 + text[to:],
                text[:at] + rng.choice(SCALARS) + text[to:],
                text[:at] + rng.choice(string.punctuation + " \n\t") + text[at:],
                text + rng.choice(DOCUMENTS),
                " ".join([*words[:-1], rng.choice(SCALARS)]),
                text.replace(rng.choice(words), rng.choice(SCALARS), 1) if words != [""] else text,
            ]
        )
    return text


def check_one_line(error):
    message = str(error)
    assert error.exit_code == 2
    assert message
    assert "\n" not in printable(message)
    assert len(message) < 20_000
    assert not any(word in message for word in ("Value error", "[key]", "Input should", "Traceback"))


@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_configuration_is_taken_or_refused_in_one_line(batch, tmp_path):
    taken = 0
    for case in range(CONFIGURATIONS):
        rng = random.Random(f"{batch}/{case}")
        text = mutated(rng.choice(DOCUMENTS), rng)
        override = f"{rng.choice(['classifier.folds', 'gates', 'a', 'synthetic.gan'])}={rng.choice(SCALARS)}"
        try:
            if case % 4 == 0:
                data = bytearray(text.encode("utf-8", "surrogatepass"))
                at = rng.randrange(len(data) + 1)
                data[at : at + 1] = bytes([rng.randrange(256)])
                (tmp_path / "c.yaml").write_bytes(data)
                values = load_config(f"{tmp_path}/c.yaml")
            else:
                values = parse_yaml(text, "c.yaml")
            config = parse_config(apply_overrides(values, [override] * (case % 2)), "c.yaml")
            config.check_runnable()
            taken += 1
        except SynthscaleError as error:
            check_one_line(error)
        except BaseException as error:
            raise AssertionError(f"{text!r} {override!r}") from error
    assert taken < CONFIGURATIONS


@pytest.fixture
def folders(tmp_path, make_images, monkeypatch):
    """A folder with two sets of images and a configuration; runs end after the checks of their input."""
    make_images(tmp_path / "photos", 4)
    make_images(tmp_path / "fakes", 4, seed=1)
    (tmp_path / "c.yaml").write_text("real: photos\nsynthetic: {gan: fakes}\noutput: o\n")

    def score(config, options):
        plan.validate(config).check_failures()
        raise InputError("as far as this test goes")

    monkeypatch.setattr("synthscale.pipeline.score", score)
    monkeypatch.setattr(cli, "_configure_logging", lambda **more: None)
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words_of(rng):
    """Return a command line, valid in part."""
    command = rng.choice(["score", *["validate"] * 4, "validate", "status", "report", "compare", "vlidate"])
    words = [command]
    if command in {"score", "validate"}:
        if rng.random() < 0.7:
            words += ["--real", "photos", "--synthetic", "gan=fakes", "--output", "o"]
    else:
        words += [rng.choice(TEXTS) for _ in range(rng.choice([0, 1, 1, 1, 2]))]
    for _ in range(rng.randint(0, 3)):
        words.append(f"{rng.choice(OPTIONS[command])}={rng.choice(TEXTS)}")
    if rng.random() < 0.1:
        words.append(rng.choice([*TEXTS, "--control", "--sett", "-h", "--verbose"]))
    return words


@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_command_line_ends_with_0_or_with_one_line_and_2(batch, folders, capsys):
    for case in range(COMMAND_LINES):
        words = words_of(random.Random(f"{batch}/{case}"))
        try:
            code = main(words)
        except SystemExit as error:
            code = error.code
        except BaseException as error:
            raise AssertionError(f"{words!r}") from error
        out, err = capsys.readouterr()
        assert code in {0, 2}, words
        assert "\x1b" not in out + err
        if code == 2:
            assert err.startswith(("synthscale: ", "usage: ")), words
            assert err.startswith("usage: ") or err.count("\n") == 1, words


def test_the_fuzz_test_sees_a_bug(monkeypatch, tmp_path):
    """An exception of another kind is not taken for a refusal."""

    def broken(text, source):
        raise KeyError(text)

    monkeypatch.setattr("tests.test_fuzz.parse_yaml", broken)
    with pytest.raises(AssertionError):
        test_a_configuration_is_taken_or_refused_in_one_line(0, tmp_path)
    with pytest.raises(ConfigError):
        load_config("\0")
