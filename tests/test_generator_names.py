"""Names of generators: which are refused, and what folders and ids contain instead of the others."""

from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from synthscale import Config, ConfigError, InputError, parse_config, score_features
from synthscale.gate_grammar import generator_gates, parse_gate
from synthscale.generator_names import check_generator_name, partition, path_name
from synthscale.ingest.folders import from_folders
from synthscale.storage.owned_files import is_owned

NAMES = [
    "org/model-1.0",
    "SDXL (turbo)",
    "größe 50%",
    "模型",
    "a=b",
    "a%2Fb",
    "a//b",
    "../x",
    "/",
    "real/x",
    "007",
    "1e5",
    "null",
    " edge ",
    "it's",
    'say "x"',
    "C:\\new",
    "*?[x]",
    "~",
    "-",
    "👩‍🎨",
    "x" * 245,
    "ü" * 40,
]


@pytest.mark.parametrize("name", ["gan", "sd-2.1_x", "x" * 64, "...", "control"])
def test_a_name_of_plain_letters_is_its_own_path_name(name):
    check_generator_name(name)
    assert path_name(name) == name


@pytest.mark.parametrize("name", NAMES)
def test_a_path_name_is_one_plain_folder_and_says_the_name(name):
    check_generator_name(name)
    assert unquote(path_name(name)) == name
    assert path_name(name).isascii()
    assert "/" not in path_name(name)
    assert len(partition(name)) <= 255
    assert is_owned("scores", f"{partition(name)}/part-000000.parquet")


REFUSED = {
    "": "blanks",
    "  ": "blanks",
    "\u3000": "blanks",
    "\t": "blanks",
    "gan\n": "control characters",
    "a\x00b": "control characters",
    "\x1b[31mred": "control characters",
    "a\x85b": "control characters",
    "a\u2028b": "control characters",
    "a\udc80b": "not UTF-8",
    "real": "reserved",
    ".": "reserved",
    "..": "reserved",
    "__HIVE_DEFAULT_PARTITION__": "reserved",
    "x" * 246: "256 bytes",
    "模" * 28: "262 bytes",
}


@pytest.mark.parametrize(("name", "why"), REFUSED.items(), ids=[ascii(name)[:20] for name in REFUSED])
def test_a_name_that_means_nothing_is_refused_with_one_line(name, why):
    with pytest.raises(ValueError, match=why) as caught:
        check_generator_name(name)
    assert str(caught.value).isprintable()
    with pytest.raises(ConfigError) as caught:
        parse_config({"synthetic": {name: "folder"}})
    assert str(caught.value).isprintable()


def test_score_features_takes_and_refuses_the_same_names():
    kinds = ["real", "synthetic"] * 12
    x = [[i * i % 7, i % 5] for i in range(24)]
    scored = score_features(x, kinds, generator=["org/model 1"] * 24)
    assert list(scored.metrics) == ["org/model 1"]
    with pytest.raises(InputError, match="reserved"):
        score_features(x, kinds, generator=["real"] * 24)


def test_readers_of_partitions_read_the_names(tmp_path):
    names = [name for name in NAMES if name != "x" * 245]
    for name in names:
        (tmp_path / partition(name)).mkdir()
        pq.write_table(pa.table({"x": [1]}), tmp_path / partition(name) / "part-000000.parquet")
    found = {"arrow": ds.dataset(tmp_path, partitioning="hive").to_table().column("generator").to_pylist()}
    duckdb, polars = pytest.importorskip("duckdb"), pytest.importorskip("polars")
    query = f"select generator from read_parquet('{tmp_path}/*/*.parquet', hive_partitioning=true)"
    found["duckdb"] = [row[0] for row in duckdb.sql(query).fetchall()]
    frame = polars.read_parquet(tmp_path / "**" / "*.parquet", hive_partitioning=True)
    found["polars"] = frame["generator"].to_list()
    for read in found.values():
        assert sorted(read) == sorted(names)


@pytest.mark.parametrize("form", ["{}", '"{}"', "'{}'"])
@pytest.mark.parametrize("name", NAMES)
def test_a_gate_names_any_generator(name, form):
    quote = form[0]
    must_be_quoted = name != name.strip() and quote == "{"
    if must_be_quoted or quote in name:
        return
    text = f"generator={form.format(name)} fidelity.low >= 0.5"
    assert generator_gates([text]) == [(text, name)]
    gate = parse_gate(text, ["fidelity"])
    assert (gate.generator, gate.metric, gate.end, gate.limit) == (name, "fidelity", "low", 0.5)


def test_ids_of_sets_never_meet(tmp_path, make_images):
    """Folders of sets whose names and paths together give the same text."""
    sets = {"a": "b/c", "a/b": "c", "real/cat": ".", "a%2Fb": "c"}
    make_images(tmp_path / "photos", 3)
    for i, inner in enumerate(sets.values()):
        make_images(tmp_path / f"{i}" / inner, 3, seed=i + 1)
    config = Config(
        real=f"{tmp_path}/photos", synthetic={name: f"{tmp_path}/{i}" for i, name in enumerate(sets)}, output="o"
    )
    ids = from_folders(config).rows.column("id").to_pylist()
    assert len(set(ids)) == len(ids) == 3 * 5
