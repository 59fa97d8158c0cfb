"""The rules of the layout that import-linter (pyproject.toml) cannot say: verbs orchestrate, nouns compute."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import synthscale

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "synthscale"
MODULES = sorted(PACKAGE.rglob("*.py"))

STORAGE = {"synthscale.storage", "fsspec", "s3fs", "boto3", "botocore", "obstore"}

PUBLIC = [
    "Config",
    "ConfigError",
    "FeatureScores",
    "InputError",
    "Options",
    "ResumeConflict",
    "RunResult",
    "SchemaError",
    "StageError",
    "StorageError",
    "StorageFull",
    "StorageUnavailable",
    "SynthscaleError",
    "TooManyFailures",
    "load_config",
    "main",
    "parse_config",
    "score",
    "score_features",
    "score_synthetic_data_quality",
]


def relative(path):
    return path.relative_to(ROOT).as_posix()


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_of(path):
    """Return every dotted name that a file imports, anywhere in it: ``from a import b`` gives a and a.b."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.parent.relative_to(ROOT).parts
                kept = package[: len(package) - node.level + 1]
                base = ".".join([*kept, *filter(None, [node.module])])
            found.add(base)
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def is_of(name, module):
    return name == module or name.startswith(f"{module}.")


def imports_any(path, modules):
    return sorted(name for name in imports_of(path) if any(is_of(name, module) for module in modules))


def test_the_import_reader_sees_every_form(tmp_path):
    """The checks below stand on this function."""
    file = ROOT / "synthscale" / "embed" / "imagined.py"
    text = (
        "import a.b as c\nfrom d import e\ndef f():\n    from g.h import i\nfrom . import x\nfrom ..y import z\n"
    )

    class Imagined(type(file)):
        def read_text(self, **kwargs):
            return text

    found = imports_of(Imagined(file))
    assert found == {
        "a.b",
        "d",
        "d.e",
        "g.h",
        "g.h.i",
        "synthscale.embed",
        "synthscale.embed.x",
        "synthscale.y",
        "synthscale.y.z",
    }


def is_verb(path):
    """A room's stage, or the Ray tasks and actors of one."""
    return path.name == "stage.py" or path.name.startswith("ray_")


def room_of(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


NOUNS = [
    path
    for path in MODULES
    if not is_verb(path) and room_of(path) not in {None, "storage", "runtime"} and path.name != "__init__.py"
]
"""Arrays or bytes in, arrays out: everything in a room but its verbs."""

FRONT = [path for path in MODULES if room_of(path) is None]


def test_only_the_runtime_and_verbs_import_ray():
    breaches = {
        relative(path): imports_any(path, {"ray"})
        for path in MODULES
        if not is_verb(path) and room_of(path) != "runtime"
    }
    assert {path: names for path, names in breaches.items() if names} == {}
    assert imports_any(PACKAGE / "embed" / "stage.py", {"ray"})


def reads_storage(path):
    """Readers do, and so do those of inputs; redaction takes paths apart and opens none."""
    return room_of(path) == "ingest" or path.stem.endswith("_reader") or path.stem == "redaction"


@pytest.mark.parametrize("path", [path for path in NOUNS if not reads_storage(path)], ids=relative)
def test_nouns_do_not_touch_storage(path):
    assert imports_any(path, STORAGE) == []


def test_nouns_open_no_files():
    openers = {"open", "read_bytes", "read_text", "write_bytes", "write_text"}
    found = []
    for path in NOUNS:
        # The page reads its own templates.
        if reads_storage(path) or relative(path) == "synthscale/report/page.py":
            continue
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.Call):
                continue
            is_builtin = isinstance(node.func, ast.Name) and node.func.id == "open"
            is_method = isinstance(node.func, ast.Attribute) and node.func.attr in openers - {"open"}
            # Pillow opens bytes that are in memory already.
            if is_builtin or (is_method and ast.unparse(node.func) != "Image.open"):
                found.append(f"{relative(path)}:{node.lineno}")
    assert found == []


@pytest.mark.parametrize("path", [path for path in MODULES if is_verb(path)], ids=relative)
def test_verbs_import_no_verbs_of_other_rooms(path):
    foreign = {
        ".".join(other.relative_to(ROOT).with_suffix("").parts)
        for other in MODULES
        if is_verb(other) and room_of(other) != room_of(path)
    }
    assert imports_any(path, foreign) == []


@pytest.mark.parametrize("path", NOUNS + FRONT, ids=relative)
def test_ray_modules_are_imported_by_verbs_alone(path):
    verbs = {".".join(other.relative_to(ROOT).with_suffix("").parts) for other in MODULES if is_verb(other)}
    allowed = {name for name in verbs if name.endswith(".stage")} if path.name == "pipeline.py" else set()
    assert imports_any(path, verbs - allowed) == []


def test_no_class_name_stands_for_two_things():
    places = {}
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name.lstrip("_"), []).append(f"{relative(path)}:{node.lineno}")
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_tests_mirror_the_package():
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    folders = {path.name for path in (ROOT / "tests").iterdir() if (path / "__init__.py").is_file()}
    assert folders - {"reference"} == rooms


def test_jobs_import_only_public_names():
    jobs = sorted((ROOT / "jobs").glob("*.py"))
    assert jobs
    for path in jobs:
        ours = {name for name in imports_of(path) if is_of(name, "synthscale")}
        assert ours <= {"synthscale", *(f"synthscale.{name}" for name in synthscale.__all__)}, relative(path)


def test_only_the_command_line_prints():
    found = []
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if (
                path != PACKAGE / "cli.py"
                and isinstance(node, ast.Call)
                and ast.unparse(node.func)
                in {
                    "print",
                    "sys.stdout.write",
                    "sys.stderr.write",
                }
            ):
                found.append(f"{relative(path)}:{node.lineno}")
    assert found == []
    # terminal.py builds the tables that the command line prints.
    quiet = [path for path in MODULES if path.name not in {"cli.py", "terminal.py"}]
    assert "rich" not in {name.split(".")[0] for path in quiet for name in imports_of(path)}


def test_the_public_names_are_sorted_and_these():
    assert synthscale.__all__ == sorted(synthscale.__all__)
    assert synthscale.__all__ == PUBLIC


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in {"Options", "score"}])
def test_every_public_name_is_there_and_documented(name):
    """Options and score live in the pipeline, whose import costs Ray; the stage tests load them."""
    assert getattr(synthscale, name).__doc__


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = synthscale.nonsense


def loaded_by(statement):
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_importing_the_package_loads_neither_ray_nor_torch():
    assert loaded_by("import synthscale") & {"ray", "torch", "torchvision", "faiss", "sklearn"} == set()


def test_reading_arguments_loads_neither_ray_nor_torch():
    loaded = loaded_by("import synthscale.cli; synthscale.cli._parser().parse_args(['score', '--real', 'x'])")
    assert loaded & {"ray", "torch", "faiss"} == set()


def test_the_in_memory_interface_loads_no_ray():
    assert "ray" not in loaded_by("from synthscale import score_features, score_synthetic_data_quality")


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_every_module_has_a_docstring(path):
    assert ast.get_docstring(tree_of(path))


def test_every_public_class_and_function_has_a_docstring():
    bare = []
    for path in MODULES:
        for node in tree_of(path).body:
            is_definition = isinstance(node, (ast.ClassDef, ast.FunctionDef))
            if is_definition and not node.name.startswith("_") and not ast.get_docstring(node):
                bare.append(f"{relative(path)}:{node.name}")
    assert bare == []


def test_there_is_no_utils():
    names = {path.stem for path in MODULES} | {path.name for path in PACKAGE.rglob("*") if path.is_dir()}
    assert not names & {"util", "utils", "helpers", "common", "misc"}


def test_no_function_takes_more_than_six_arguments_or_sixty_lines():
    found = []
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef):
                arguments = [a for a in [*node.args.args, *node.args.kwonlyargs] if a.arg not in {"self", "cls"}]
                lines = node.end_lineno - node.lineno + 1
                # The names of the public in-memory call are the design's own.
                if lines > 60 or (len(arguments) > 6 and node.name != "score_features"):
                    found.append(f"{relative(path)}:{node.name} ({len(arguments)} arguments, {lines} lines)")
    assert found == []


SERIALISERS_THAT_RUN_CODE = {
    "_pickle",
    "cloudpickle",
    "dill",
    "jsonpickle",
    "joblib",
    "marshal",
    "pickle",
    "ray.cloudpickle",
    "shelve",
}


def breaches_of_plain_storage(tree, imported):
    """Return what could unpickle a file, or write a pickle: imports, and calls of NumPy, pandas and torch."""
    found = [name for name in imported if any(is_of(name, module) for module in SERIALISERS_THAT_RUN_CODE)]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        call, options = (
            ast.unparse(node.func),
            {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords},
        )
        is_numpy = call.split(".")[0] in {"np", "numpy"} and call.rpartition(".")[2] in {"load", "savez", "save"}
        is_bad = call.endswith(("read_pickle", "to_pickle", "torch.save", "torch.jit.load"))
        # Calls of NumPy have to say that they refuse objects: the defaults differ.
        is_bad |= is_numpy and options.get("allow_pickle") != "False"
        is_bad |= call.endswith("torch.load") and options.get("weights_only") != "True"
        if is_bad:
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    ("code", "breaks"),
    [
        ("import pickle as p", True),
        ("def f():\n    from ray import cloudpickle", True),
        ("from joblib import load", True),
        ("np.load(file, allow_pickle=True)", True),
        ("np.load(file)", True),
        ("np.savez(file, a=1)", True),
        ("torch.load(file)", True),
        ("torch.load(file, weights_only=False)", True),
        ("frame.to_pickle(path)", True),
        ("np.load(file, allow_pickle=False)", False),
        ("torch.load(file, weights_only=True)", False),
        ("import json", False),
    ],
)
def test_the_check_of_plain_storage_sees_every_form(code, breaks):
    tree = ast.parse(code)
    imported = {
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert bool(breaches_of_plain_storage(tree, imported)) == breaks


def test_nothing_is_unpickled_and_no_pickle_is_written():
    """Whoever can write to a run directory must not be able to run code; Ray's own messages are not storage."""
    breaches = {relative(path): breaches_of_plain_storage(tree_of(path), imports_of(path)) for path in MODULES}
    assert {path: found for path, found in breaches.items() if found} == {}


def test_no_error_is_swallowed_unseen():
    """``except Exception`` and bare ``except`` must raise, or hand on what they caught."""
    found = []
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            is_broad = node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"}
            uses = {item.id for item in ast.walk(node) if isinstance(item, ast.Name)}
            raises = any(isinstance(item, ast.Raise) for item in ast.walk(node))
            if is_broad and not raises and node.name not in uses:
                found.append(f"{relative(path)}:{node.lineno}")
    assert found == []
