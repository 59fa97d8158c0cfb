"""Who may write to a run directory, what --redo-from deletes, and when working files go; on a local Ray."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from synthscale import Options, RunResult, parse_config, score
from synthscale.cli import main
from synthscale.config import StorageConfig
from synthscale.errors import ConfigError, InputError, ResumeConflict, StageError, StorageUnavailable
from synthscale.neighbors import stage as neighbors
from synthscale.plan import driver_line
from synthscale.storage.run_directory import STAGES, RunDirectory
from tests.leases import elsewhere, set_age, write_lease
from tests.runs import run_until

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def images(tmp_path_factory, make_images):
    top = tmp_path_factory.mktemp("images")
    make_images(top / "real", 60, seed=1)
    make_images(top / "made", 40, seed=2)
    return top


def config_of(images, output, **more):
    values = {"real": str(images / "real"), "synthetic": {"made": str(images / "made")}, "output": str(output)}
    return parse_config({**values, **more})


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    return score(config_of(images, tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture
def copied(finished, images, tmp_path):
    """The configuration of a copy of the finished run, which a test may change."""
    shutil.copytree(finished.run.uri, tmp_path / "run")
    return config_of(images, tmp_path / "run")


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def times(folder):
    return {str(path): path.stat().st_mtime_ns for path in Path(folder).rglob("*") if path.is_file()}


def assert_same_scores(one, two):
    pd.testing.assert_frame_equal(one.scores(), two.scores())


# --- what --redo-from deletes ---


def test_every_file_of_a_finished_run_is_known_as_ours(copied):
    assert not (Path(copied.output) / "lease.json").exists()
    RunDirectory.open(copied.output, copied.storage).remove_from("ingest")
    assert list(tree(copied.output)) == ["run.json"]


def test_redo_from_leaves_the_files_of_users(finished, copied):
    own = [Path(copied.output) / name for name in ("notes.md", "scores/mine.csv", "classifier/x.json")]
    for path in own:
        path.write_text("mine")
    assert_same_scores(finished, score(copied, Options(redo_from="classify")))
    assert all(path.read_text() == "mine" for path in own)


@pytest.mark.parametrize("document", [{"run": "of another program"}, {"schema_version": 2}, "text"])
def test_redo_from_refuses_a_folder_with_a_run_json_of_another_program(images, tmp_path, document):
    folder = tmp_path / "theirs"
    for name in ("run.json", "scores/part-000000.parquet", "metrics.json", "report.html", "_train/model.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(document))
    before = tree(folder)
    with pytest.raises(ResumeConflict, match="was not written by synthscale"):
        score(config_of(images, folder), Options(redo_from="ingest"))
    assert tree(folder) == before


@pytest.mark.parametrize("change", [{"real": "nowhere"}, {"synthetic": {"made": "empty"}}, {"control": True}])
def test_redo_from_deletes_nothing_if_the_input_cannot_be_used(images, copied, tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "few").mkdir()
    shutil.copy(next((images / "real").rglob("*.png")), tmp_path / "few" / "only.png")
    before = tree(copied.output)
    # The control halves the real set.
    real = {"real": "few"} if "control" in change else {}
    config = copied.model_copy(update={"storage": StorageConfig(retry_s=0), **real, **change})
    # A folder that is missing when a run is continued may be a lost mount.
    with pytest.raises((InputError, StorageUnavailable)):
        score(config, Options(redo_from="ingest"))
    assert tree(copied.output) == before


def test_redo_from_an_unknown_stage_deletes_nothing(copied):
    before = tree(copied.output)
    with pytest.raises(ConfigError, match="no such stage"):
        score(copied, Options(redo_from="embedding"))
    assert tree(copied.output) == before


def test_redo_from_deletes_nothing_while_another_driver_holds_the_lease(copied):
    write_lease(RunDirectory.open(copied.output, copied.storage), elsewhere())
    before = tree(copied.output)
    with pytest.raises(StageError, match="is being written by elsewhere"):
        score(copied, Options(redo_from="ingest"))
    assert tree(copied.output) == before


def test_tables_that_a_killed_redo_from_left_are_not_taken_for_finished_work(finished, copied):
    output = Path(copied.output)
    for stage in STAGES[1:]:
        (output / "_stages" / f"{stage}.json").unlink()
    for path in (*output.glob("embeddings/*"), *output.glob("classifier/embedding.*")):
        path.write_bytes(b"of other settings")
    assert_same_scores(finished, score(copied))


# --- two drivers ---


def test_a_second_driver_is_refused_while_the_first_runs(images, finished, tmp_path):
    config, seen = config_of(images, tmp_path / "run"), []

    def on_stage(report):
        if report.stage in {"ingest", "embed"}:
            before = tree(tmp_path / "run")
            for redo_from in (None, "ingest"):
                with pytest.raises(StageError, match=rf"is being written by .* \(process {os.getpid()}\) since"):
                    score(config, Options(redo_from=redo_from))
            after = tree(tmp_path / "run")
            # The first driver's heartbeat goes on.
            seen.append({**before, "lease.json": b""} == {**after, "lease.json": b""})

    assert_same_scores(finished, score(config, Options(on_stage=on_stage)))
    assert seen == [True, True]
    assert not (tmp_path / "run" / "lease.json").exists()


def test_a_driver_that_was_replaced_writes_no_marker(images, tmp_path):
    config = config_of(images, tmp_path / "run")

    def on_stage(report):
        if report.stage == "ingest":
            write_lease(RunDirectory.open(config.output, config.storage), elsewhere())

    with pytest.raises(StageError, match="was taken over by elsewhere"):
        score(config, Options(on_stage=on_stage))
    run = RunDirectory.open(config.output, config.storage)
    assert run.marker("embed") is None
    assert json.loads(Path(run.path("lease.json")).read_text())["host"] == "elsewhere"


def test_a_driver_that_was_replaced_during_a_stage_does_not_complete_it(images, tmp_path, monkeypatch):
    config = config_of(images, tmp_path / "run")
    run, work = RunDirectory(config.output, config.storage), neighbors.run

    def replaced(context):
        outcome = work(context)
        write_lease(run, elsewhere())
        return outcome

    monkeypatch.setattr(neighbors, "run", replaced)
    with pytest.raises(StageError, match="was taken over by elsewhere"):
        score(config)
    assert not run.marker("neighbors").complete
    assert Path(run.path("_neighbors")).exists()
    # The other driver stops renewing its lease: the run goes on.
    monkeypatch.undo()
    with pytest.raises(StageError, match="is being written by elsewhere"):
        score(config)
    set_age(run, 65)
    reports = []
    score(config, Options(on_stage=reports.append))
    assert [report.stage for report in reports if report.skipped] == ["ingest", "embed"]
    assert not Path(run.path("_neighbors")).exists()


def test_a_run_that_breaks_off_releases_its_lease(images, tmp_path):
    run = run_until(config_of(images, tmp_path / "run"), "ingest")
    assert not Path(run.path("lease.json")).exists()


def test_the_report_is_not_rewritten_while_a_driver_runs(copied, capsys):
    run = RunDirectory.open(copied.output, copied.storage)
    write_lease(run, elsewhere())
    before = Path(run.path("report.html")).read_bytes()
    assert main(["report", run.uri, "--no-images"]) == 1
    assert "is being written by elsewhere" in capsys.readouterr().err
    assert Path(run.path("report.html")).read_bytes() == before
    set_age(run, 65)
    assert main(["report", run.uri, "--no-images"]) == 0
    assert not Path(run.path("lease.json")).exists()


# --- status ---


def test_the_status_says_where_a_driver_runs(images, tmp_path, capsys):
    lines = []

    def on_stage(report):
        assert main(["status", str(tmp_path / "run")]) == 0
        lines.append(capsys.readouterr().out.splitlines()[0])

    run = run_until(config_of(images, tmp_path / "run"), "ingest", on_stage=on_stage)
    (line,) = lines
    assert line.startswith(f"running on {os.uname().nodename} (process {os.getpid()}) since 20")
    assert "(heartbeat 0 s ago)" in line or "(heartbeat 1 s ago)" in line
    config = config_of(images, run.uri)
    assert (
        driver_line(run.uri, config) == "not running, not finished; run the same score command again to continue"
    )
    write_lease(run, elsewhere(), age_s=100)
    assert driver_line(run.uri, config).startswith(
        "was interrupted on elsewhere (process 4711), last heartbeat 20"
    )


def test_the_status_of_a_finished_run(finished, images):
    assert driver_line(finished.run.uri, config_of(images, finished.run.uri)) == "not running, finished"


# --- working files ---


def test_a_failing_self_test_repeats_no_search(finished, images, tmp_path, monkeypatch):
    config, output = config_of(images, tmp_path / "run"), tmp_path / "run"

    def fails():
        raise RuntimeError("self-test failed")

    with monkeypatch.context() as patch:
        patch.setattr(neighbors, "start_self_test", lambda *arguments: fails)
        with pytest.raises(RuntimeError, match="self-test failed"):
            score(config)
    kept = times(output / "_neighbors")
    assert any("nearest" in name for name in kept)
    found, start = {}, neighbors.start_self_test

    def observed(*arguments):
        test = start(*arguments)

        def run():
            found.update(times(output / "_neighbors"))
            return test()

        return run

    monkeypatch.setattr(neighbors, "start_self_test", observed)
    assert_same_scores(finished, score(config))
    # The files of the first run's searches were used, not written again.
    assert {name: time for name, time in found.items() if "nearest" in name} == {
        name: time for name, time in kept.items() if "nearest" in name
    }
    assert not (output / "_neighbors").exists()


def test_working_files_that_a_crash_left_are_removed_on_the_next_run(finished, images, tmp_path, monkeypatch):
    config = config_of(images, tmp_path / "run")
    remove = RunDirectory.remove_working_files

    def crash(self, stage):
        if stage == "neighbors":
            raise RuntimeError("power cut")
        remove(self, stage)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "remove_working_files", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            score(config)
    run = RunDirectory.open(config.output, config.storage)
    assert run.marker("neighbors").complete
    assert Path(run.path("_neighbors")).exists()
    reports = []
    result = score(config, Options(on_stage=reports.append))
    assert [report.stage for report in reports if report.skipped] == ["ingest", "embed", "neighbors"]
    assert not Path(run.path("_neighbors")).exists()
    assert_same_scores(finished, result)
    assert RunResult.open(run.uri).generators == ["made"]
