"""A stage that gives other numbers has another version, so that runs of two versions are never mixed."""

import copy
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from synthscale.storage.run_directory import STAGES
from tests import expected_outputs
from tests.expected_outputs import ENTRIES, TOLERANCE, complaint, outputs_of_a_run, read, write


@pytest.fixture(scope="module")
def found(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outputs of this version."""
    return outputs_of_a_run(tmp_path_factory.mktemp("outputs"))


def test_every_stage_gives_the_output_of_its_version(found: dict[str, Any]) -> None:
    text = complaint(read(), found)
    if text is not None:
        pytest.fail(text)


def test_the_versions_are_those_in_the_code(found: dict[str, Any]) -> None:
    for stage in STAGES:
        module = import_module(f"synthscale.{'metrics' if stage == 'reduce' else stage}.stage")
        assert found[stage]["versions"]["algorithm"] == module.ALGORITHM_VERSION


def test_every_table_of_a_run_is_covered(found: dict[str, Any]) -> None:
    assert list(found) == list(ENTRIES)
    assert all(len(found[stage]["outputs"]) >= 8 for stage in STAGES if stage != "report")
    # Where a table were empty or a column null, a change of it would not be seen.
    for stage, name, least in (
        ("embed", "embeddings/vector[0:]", 200 * 32),
        ("neighbors", "neighbors/distance", 20),
        ("neighbors", "groups/diameter", 20),
        ("neighbors", "nearest/real_radii_containing", 20),
        ("classify", "predictions/logit_deviation", 200),
        ("classify", "predictions/logit_without[0:]", 200),
        ("classify", "predictions/logit_matched[0:]", 50),
        ("reduce", "scores/generator=copier/near_duplicate_score", 90),
        ("reduce", "metrics/fidelity/low", 3),
    ):
        assert found[stage]["outputs"][name][1] >= least, name


def changed(found: dict[str, Any], stage: str, name: str, factor: float) -> dict[str, Any]:
    other = copy.deepcopy(found)
    values = other[stage]["outputs"][name]
    other[stage]["outputs"][name] = [*values[:2], *(value * factor for value in values[2:])]
    return other


def test_a_change_names_the_stage_and_what_to_do(found: dict[str, Any]) -> None:
    name = "predictions/logit_synthetic"
    # Later stages change with it, but need no version of their own.
    other = changed(changed(found, "classify", name, 1 + 3 * TOLERANCE), "reduce", "metrics/fidelity/value", 2)
    text = complaint(found, other)
    assert text is not None
    assert text.startswith("classify: gives other output under the same version; 1 of ")
    assert name in text
    assert "raise ALGORITHM_VERSION in synthscale/classify/stage.py" in text
    assert text.endswith("python -m tests.expected_outputs")
    assert complaint(found, changed(found, "classify", name, 1 + TOLERANCE / 10)) is None


def test_a_raised_version_asks_for_new_expected_output(found: dict[str, Any]) -> None:
    other = copy.deepcopy(found)
    other["neighbors"]["versions"]["algorithm"] += 1
    text = complaint(found, other)
    assert text is not None
    assert text.startswith("neighbors: has the versions")
    assert "python -m tests.expected_outputs" in text
    assert complaint({}, found) is not None


def test_the_command_keeps_no_version_under_which_numbers_differ(
    found: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(expected_outputs, "EXPECTED", tmp_path / "expected.json")
    write(found)
    assert read() == found == json.loads(json.dumps(found))
    other = changed(found, "embed", "embeddings/brightness", 2)
    monkeypatch.setattr(expected_outputs, "outputs_of_a_run", lambda folder: other)
    assert expected_outputs.main([]) == 1
    assert read() == found
    assert expected_outputs.main(["--force"]) == 0
    assert read() == other
    other["embed"]["versions"]["algorithm"] += 1
    assert expected_outputs.main([]) == 0
