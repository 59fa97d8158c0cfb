"""The command line: how arguments become a configuration, and exit codes with one line on standard error."""

import argparse
import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from synthscale import cli
from synthscale.cli import config_from, main, metrics_table, print_warnings, stage_line
from synthscale.errors import ConfigError
from synthscale.generator_names import split_synthetic
from synthscale.metric_names import CORE_METRICS
from synthscale.pipeline import StageReport
from synthscale.tables.schemas import SCHEMA_VERSION
from synthscale.terminal import SafeConsole, failure_lines, print_gates


@pytest.fixture(autouse=True)
def process_stays_as_it_is(monkeypatch):
    """Keep main() from changing logging and signal handlers of the test process."""
    monkeypatch.setattr(cli, "_configure_logging", lambda **more: None)
    monkeypatch.setattr("signal.signal", lambda number, handler: None)


@pytest.fixture
def folders(tmp_path, make_images):
    make_images(tmp_path / "photos", 5)
    make_images(tmp_path / "fakes", 7, seed=1)
    return tmp_path


# --- arguments ---


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("gan=fakes", ("gan", "fakes")),
        ("gan=/a/b=c/d", ("gan", "/a/b=c/d")),
        ("sd-2.1_x=s3://bucket/p", ("sd-2.1_x", "s3://bucket/p")),
        ("fakes", ("synthetic", "fakes")),
        ("/data/run=3/fakes", ("synthetic", "/data/run=3/fakes")),
        ("./epoch=10", ("synthetic", "./epoch=10")),
        ("s3://bucket/step=10/x", ("synthetic", "s3://bucket/step=10/x")),
        ("../epoch=10", ("synthetic", "../epoch=10")),
        ("~/epoch=10", ("synthetic", "~/epoch=10")),
        ("file:///a/epoch=10", ("synthetic", "file:///a/epoch=10")),
        ("SDXL (turbo)=x", ("SDXL (turbo)", "x")),
        ("größe=x", ("größe", "x")),
        ("x" * 200 + "=y", ("x" * 200, "y")),
        ("=y", ("synthetic", "=y")),
        ("org/model-1.0=s3://bucket/p", ("org/model-1.0", "s3://bucket/p")),
        ("org/model-1.0=there", ("org/model-1.0", "there")),
        ("org/model-1.0=nowhere", ("synthetic", "org/model-1.0=nowhere")),
        ("org/step=10", ("synthetic", "org/step=10")),
        ("step=20", ("synthetic", "step=20")),
        ("step=30", ("step", "30")),
    ],
)
def test_a_synthetic_set_is_a_path_or_a_name_and_a_path(text, split, tmp_path, monkeypatch):
    for folder in ("there", "org/step=10", "10", "step=20", "20"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert split_synthetic(text) == split


def parsed(**values):
    blank = {"config": None, "set": [], "real": None, "synthetic": None, "manifest": None, "output": None}
    return argparse.Namespace(**blank | values)


def test_arguments_alone_make_a_configuration():
    config = config_from(parsed(real="r", synthetic=["a=x", "y"], output="o", set=["classifier.folds=3"]))
    assert (config.real, config.output) == ("r", "o")
    assert config.synthetic == {"a": "x", "synthetic": "y"}
    assert config.classifier.folds == 3


def test_options_override_the_file_and_set_overrides_both(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("real: file\noutput: file\nsynthetic: {a: x}\nclassifier: {folds: 3, seed: 7}\n")
    config = config_from(
        parsed(config=str(path), real="option", synthetic=["b=y"], set=["classifier.folds=4", "output=set"])
    )
    assert (config.real, config.output) == ("option", "set")
    assert config.synthetic == {"a": "x", "b": "y"}
    assert (config.classifier.folds, config.classifier.seed) == (4, 7)


def test_metric_and_gate_options_override_the_file_and_set_overrides_both(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "metrics: {families: [vendi], slice_by: [seed], frechet_infinity: true}\ngates: ['fidelity>=0.9']\n"
    )
    from_file = config_from(parsed(config=str(path)))
    assert (from_file.metrics.families, from_file.metrics.slice_by) == (("vendi",), ("seed",))
    assert from_file.gates == ("fidelity>=0.9",)
    assert from_file.control is False
    options = {
        "families": "kernel,copying",
        "slice_by": "prompt, version",
        "gate": ["auc<0.9", "kid<1"],
        "control": True,
    }
    config = config_from(parsed(config=str(path), **options))
    assert config.metrics.families == ("kernel", "copying")
    assert config.metrics.slice_by == ("prompt", "version")
    assert config.metrics.frechet_infinity
    assert config.gates == ("auc<0.9", "kid<1")
    assert config.control
    over = config_from(parsed(config=str(path), **options, set=["metrics.families=[kernel]", "gates=[]"]))
    assert (over.metrics.families, over.metrics.slice_by, over.gates) == (("kernel",), ("prompt", "version"), ())


def test_a_file_whose_metrics_are_empty_takes_the_options(tmp_path):
    (tmp_path / "c.yaml").write_text("metrics:\n")
    config = config_from(parsed(config=f"{tmp_path}/c.yaml", slice_by="prompt"))
    assert config.metrics.slice_by == ("prompt",)


@pytest.mark.parametrize("text", ["metrics: words", "metrics: [kernel]", "metrics: 3"])
def test_a_file_whose_metrics_are_not_a_section_is_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match="metrics"):
        config_from(parsed(config=f"{tmp_path}/c.yaml", slice_by="prompt"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--gate", "fidelty>=0.3"], "fidelty"),
        (["--gate", "kid<=0.1"], "kid"),
        (["--families", "kernel,nothing"], "nothing"),
    ],
)
def test_invalid_metric_options_exit_with_2_before_the_run(options, named, capsys, folders):
    data = ["--real", f"{folders}/photos", "--synthetic", f"{folders}/fakes", "--output", f"{folders}/run"]
    assert main(["score", *data, *options]) == 2
    assert named in capsys.readouterr().err
    assert not (folders / "run").exists()


def test_two_sets_with_one_name_are_refused_unless_they_are_the_same():
    with pytest.raises(ConfigError, match="NAME=FOLDER"):
        config_from(parsed(synthetic=["x", "y"]))
    assert config_from(parsed(synthetic=["a=x", "a=x"])).synthetic == {"a": "x"}


def test_a_file_whose_synthetic_key_is_empty_takes_the_option(tmp_path):
    (tmp_path / "c.yaml").write_text("real: r\nsynthetic:\n")
    assert config_from(parsed(config=f"{tmp_path}/c.yaml", synthetic=["a=x"])).synthetic == {"a": "x"}


def test_a_file_with_a_list_of_synthetic_sets_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_text("synthetic: [a, b]\n")
    with pytest.raises(ConfigError, match="synthetic"):
        config_from(parsed(config=f"{tmp_path}/c.yaml", synthetic=["a=x"]))


# --- exit codes ---


def one_line(capsys):
    """Return standard error; check that it is one line and standard output is empty."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("synthscale: ")
    return err


@pytest.mark.parametrize("command", ["score", "validate"])
def test_no_input_exits_with_2(command, capsys, tmp_path):
    assert main([command, "--output", f"{tmp_path}/run"]) == 2
    assert "no input" in one_line(capsys)


@pytest.mark.parametrize("command", ["score", "validate"])
def test_an_unknown_key_exits_with_2_and_is_named(command, capsys, folders):
    arguments = ["--real", f"{folders}/photos", "--synthetic", f"{folders}/fakes", "--output", f"{folders}/run"]
    assert main([command, *arguments, "--set", "classifier.fold=3"]) == 2
    assert "classifier.fold: unknown key" in one_line(capsys)
    assert not (folders / "run").exists()


@pytest.mark.parametrize("command", ["validate"])
@pytest.mark.parametrize("kind", ["--real", "--synthetic"])
def test_a_missing_folder_exits_with_2_and_is_named(command, kind, capsys, folders):
    places = {"--real": f"{folders}/photos", "--synthetic": f"{folders}/fakes"} | {kind: f"{folders}/none"}
    arguments = [word for pair in places.items() for word in pair]
    assert main([command, *arguments, "--output", f"{folders}/run"]) == 2
    assert f"{folders}/none" in one_line(capsys)


def test_a_missing_configuration_exits_with_2_and_is_named(capsys, tmp_path):
    assert main(["score", "--config", f"{tmp_path}/none.yaml"]) == 2
    assert f"{tmp_path}/none.yaml" in one_line(capsys)


def test_a_broken_configuration_exits_with_2_and_one_line(capsys, tmp_path):
    (tmp_path / "c.yaml").write_text("a: [1,\nb: 2\n")
    assert main(["score", "--config", f"{tmp_path}/c.yaml"]) == 2
    assert "c.yaml" in one_line(capsys)


@pytest.mark.parametrize("command", ["status", "report"])
def test_a_missing_run_exits_with_2_and_is_named(command, capsys, tmp_path):
    assert main([command, f"{tmp_path}/none"]) == 2
    assert f"{tmp_path}/none" in one_line(capsys)


def test_an_output_with_other_files_exits_with_2(capsys, folders):
    (folders / "mine").mkdir()
    (folders / "mine" / "thesis.tex").write_text("x")
    arguments = ["--real", f"{folders}/photos", "--synthetic", f"{folders}/fakes"]
    assert main(["validate", *arguments, "--output", f"{folders}/mine"]) == 2
    assert f"{folders}/mine" in one_line(capsys)


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["score", "--nonsense"]])
def test_invalid_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_an_interrupt_exits_with_130(monkeypatch, capsys, tmp_path):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("synthscale.plan.validate", interrupt)
    assert main(["validate", "--output", str(tmp_path)]) == 130
    assert "interrupted" in one_line(capsys)


def test_markup_in_errors_is_printed_as_text(capsys):
    assert main(["score", "--set", "[red]x[/red]=1"]) == 2
    assert "[red]x[/red]" in one_line(capsys)


def test_the_process_exits_with_the_code_and_one_line(tmp_path):
    """The streams and the exit code as a shell sees them."""
    code = "import sys; from synthscale import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "score", "--config", f"{tmp_path}/none.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[0].startswith("synthscale: ")
    assert len(done.stderr.splitlines()) == 1


# --- what a person sees ---


def test_validate_prints_sets_and_skipped_files(capsys, folders):
    (folders / "photos" / "notes.txt").write_text("x")
    (folders / "fakes" / "cat" / "000.png").write_bytes(b"broken [bold]")
    arguments = [
        "--real",
        f"{folders}/photos",
        "--synthetic",
        f"gan={folders}/fakes",
        "--output",
        f"{folders}/run",
    ]
    assert main(["validate", *arguments]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("synthscale: gan: 1 of 7 rows tried could not be read")
    assert main(["validate", *arguments, "--set", "max_failure_fraction=0.2"]) == 0
    again, err = capsys.readouterr()
    timed = "embedding  "
    assert [line for line in again.splitlines() if timed not in line] == [
        line for line in out.splitlines() if timed not in line
    ]
    assert err == ""
    counts = {line.split()[0]: line.split()[1] for line in out.splitlines() if " rows, " in line}
    assert counts == {"real": "5", "gan": "7"}
    assert "7 rows, 7 tried, 1 could not be read" in out
    assert "descriptor" in out
    assert "gan/cat/000.png" in out
    assert f"real: 5 of 6 files in {folders}/photos; 2 labels from folder names (cat, dog)" in out
    assert f"note: {folders}/photos: passed over: 1 files that are no images (.txt 1)" in out
    assert f"{folders}/run" in out
    assert not (folders / "run").exists()


def test_status_prints_a_line_per_stage(capsys, tmp_path):
    from synthscale.config import StorageConfig
    from synthscale.storage.run_directory import STAGES, Marker, RunDirectory

    run = RunDirectory.open(f"{tmp_path}/run", StorageConfig())
    run.write_json("run.json", {"schema_version": SCHEMA_VERSION, "run_id": "abc"})
    run.write_marker(Marker("ingest", True, {}, {"rows": 1234}, {"shard_stops": [1234]}))
    assert main(["status", f"{tmp_path}/run"]) == 0
    driver, *lines = capsys.readouterr().out.splitlines()
    assert driver.startswith("not running, not finished; run the same score command again")
    assert [line.split()[0] for line in lines] == list(STAGES)
    assert "done" in lines[0]
    assert "1,234 rows" in lines[0]
    assert all("waiting" in line for line in lines[1:])


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(command in out for command in ("score", "demo", "validate", "status", "report"))


def test_a_stage_line_has_rows_failures_time_and_rate():
    from types import SimpleNamespace

    line = stage_line(SimpleNamespace(stage="embed", rows=2000, failed=3, seconds=4.0, skipped=False))
    assert all(part in line for part in ("embed", "2,000 rows", "3 failed", "4.0 s", "500 rows/s"))
    assert "already done" in stage_line(
        SimpleNamespace(stage="embed", rows=1, failed=0, seconds=1.0, skipped=True)
    )
    stage_line(SimpleNamespace(stage="report", rows=0, failed=0, seconds=0.0, skipped=False))


def test_failures_are_counted_by_set():
    sets = {"real": (1200, {"truncated": 2, "empty": 1}), "org/model": (500, {"": 4})}
    assert failure_lines(StageReport("embed", 1700, 7, 1.0, False, sets)) == [
        "           3 of 1,200 rows of real could not be read (truncated 2, empty 1)",
        "           4 of 500 rows of org/model could not be read",
    ]


def metrics(value, name="gan", warnings=()):
    block = {metric: {"value": value} for metric in CORE_METRICS}
    return {
        "generators": {
            name: {"metrics": block, "classifier": {"auc": {"value": value}}, "warnings": list(warnings)}
        }
    }


def printed(thing):
    console = Console(width=200, record=True, file=io.StringIO())
    thing(console)
    return console.export_text()


def test_the_table_shows_metrics_and_na_where_there_is_no_value():
    text = printed(lambda console: console.print(metrics_table(metrics(0.12345))))
    assert text.count("0.123") == 7
    assert "n/a" in printed(lambda console: console.print(metrics_table(metrics(None))))


def test_the_table_shows_intervals_and_references_that_say_something():
    def shown(**figure):
        found = metrics(0.5)
        found["generators"]["gan"]["metrics"]["coverage"] = figure
        return printed(lambda console: console.print(metrics_table(found)))

    assert "0.12-0.31" in shown(value=0.2, low=0.123, high=0.312)
    assert "±0.0003" in shown(value=0.5, low=0.4997, high=0.5003)
    assert "1.00-1.00" in shown(value=1.0, low=0.9991, high=1.0)
    assert "ref 0.97" in shown(value=0.2, reference=0.969)
    assert "ref" not in shown(value=0.2, reference=0.5) + shown(value=0.2, reference=0.999)


def test_the_table_fits_in_80_columns():
    console = Console(width=80, record=True, file=io.StringIO())
    found = metrics(0.123, name="generator")
    for figure in found["generators"]["generator"]["metrics"].values():
        figure |= {"low": 0.111, "high": 0.222, "reference": 0.333}
    console.print(metrics_table(found))
    lines = console.export_text().splitlines()
    assert sum("0.11-0.22" in line for line in lines) == 1
    assert next(line for line in lines if "0.11-0.22" in line).count("0.11-0.22") == 6


def test_a_warning_of_several_generators_is_printed_once():
    both = metrics(0.1, "a", ["few rows [of] a class"])
    both["generators"] |= metrics(0.1, "b", ["few rows [of] a class", "another"])["generators"]
    text = printed(lambda console: print_warnings(both, console))
    assert text.count("few rows [of] a class") == 1
    assert "a, b" in text
    assert "another" in text


def decided(*passed, reason=None):
    gate = {"gate": "fidelity>=0.3", "on": "value", "value": 0.12345}
    gate |= {"value": None, "reason": reason} if reason else {}
    gates = [gate | {"generator": f"gan[{i}]", "passed": value} for i, value in enumerate(passed)]
    return {"gates": gates}


@pytest.mark.parametrize(
    ("passed", "code"), [((), 0), ((True,), 0), ((True, True), 0), ((False,), 3), ((True, False, True), 3)]
)
def test_a_missed_gate_exits_with_3(passed, code):
    found = []
    text = printed(lambda console: found.append(print_gates(decided(*passed), console)))
    assert found == [code]
    assert len(text.splitlines()) == len(passed)
    for line, one in zip(text.splitlines(), passed, strict=True):
        assert ("passed" in line) == one
        assert ("missed" in line) != one
        assert all(part in line for part in ("gan[", "fidelity>=0.3", "0.1235"))


def test_a_gate_on_an_undefined_metric_gives_the_reason():
    text = printed(lambda console: print_gates(decided(False, reason="no classifier: [few] rows"), console))
    assert "n/a" in text
    assert "no classifier: [few] rows" in text


# --- what a terminal cannot print ---

ODD = {
    "a\x1b[31mred": r"a\x1b[31mred",
    "a\nb\r\tc": r"a\nb\r\tc",
    "a\x9bb\x7f": r"a\x9bb\x7f",
    "a\udcffb": r"a\udcffb",
    "a\u202egnp": r"a\u202egnp",
    "a\u2028b": r"a\u2028b",
    "größe 模型 👩‍🎨": "größe 模型 👩‍🎨",
    "back\\slash [bold]": "back\\slash [bold]",
}


@pytest.mark.parametrize(("text", "shown"), ODD.items(), ids=[ascii(text) for text in ODD])
def test_control_characters_are_shown_escaped(text, shown):
    """In texts, in tables and in errors."""
    console = SafeConsole(width=200, record=True, file=io.StringIO(), emoji=False)
    console.print(text, markup=False)
    console.print(metrics_table(metrics(0.5, text)))
    first, *table = console.export_text().splitlines()
    assert first.rstrip() == shown
    assert any(line.startswith(shown) for line in table)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_cannot_print_a_name_shows_it_escaped(encoding, folders):
    """The standard streams of a process, in encodings that lack the characters of names, ids and paths."""
    odd = folders / "模型\x1b[31m"
    (folders / "fakes").rename(odd)
    (odd / "cat" / "000.png").write_bytes(b"broken")
    words = ["validate", "--real", f"{folders}/photos", "--synthetic", f"größe ± 模型={odd}"]
    words += ["--output", f"{folders}/run", "--set", "max_failure_fraction=1"]
    code = "import sys; from synthscale import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}

    def run(*arguments):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, env=environment)
        assert b"\x1b" not in done.stdout + done.stderr
        assert b"Traceback" not in done.stderr
        return done

    done = run(*words)
    assert (done.returncode, done.stderr) == (0, b"")
    out = done.stdout.decode(encoding)
    assert ("größe ± 模型" if encoding == "utf-8" else r"\u6a21\u578b") in out
    assert "7 rows, 7 tried, 1 could not be read" in out
    done = run("validate", "--real", f"{odd}/none", "--synthetic", str(odd), "--output", f"{folders}/run")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.count(b"\n") == 1
    assert run("status", os.fsencode(folders) + b"/\xff\xfe").returncode == 2
    done = run("score", "--réal\x1b[31m", "x")
    assert done.returncode == 2
    assert rb"\x1b[31m x" in done.stderr


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["scor"], "score"),
        (["valdiate"], "validate"),
        (["score", "--sythetic", "x"], "--synthetic"),
        (["score", "--slice_by=x"], "--slice-by"),
        (["score", "--reel", "x"], "--real"),
        (["compare", "run", "--ouput", "x"], "--output"),
    ],
)
def test_a_misspelt_command_or_option_is_suggested(words, meant, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert capsys.readouterr().err.rstrip().endswith(f"did you mean {meant}?")
